"""The chat in a terminal and the command line: streams, commands, one clear line for mistakes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from rich.cells import cell_len
from rich.console import Console

from gossamer import cli
from gossamer.chat import terminal
from gossamer.chat.engine import Request, Token
from gossamer.chat.interrupt import Terminated, command
from gossamer.chat.message import Content, pieces_of
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.chat.terminal import ChatSession, run_chat, wrap_words
from gossamer.chat.text import TextStream
from gossamer.chat.tokenizer import Tokenizer
from gossamer.cli import app
from gossamer.cli.commands import FiniteCommand

TOKENIZER = Tokenizer.train(["hello there, how are you? Spell cat: c-a-t"] * 9, 290)


class Parrot:
    """A stand-in for an engine: it replies with what it was told to, token by token."""

    def __init__(self, reply: Content, sequence_len: int = 128) -> None:
        self.context = sequence_len
        self.reply = reply
        self.prompts: list[str] = []
        self.requests: list[Request] = []

    def generate(self, request: Request) -> Iterator[Token]:
        self.prompts.append(TOKENIZER.decode(request.ids))
        self.requests.append(request)
        for kind, text in pieces_of(self.reply):
            open_call = [TOKENIZER.python_start] if kind == "call" else []
            close_call = [TOKENIZER.python_end] if kind == "call" else []
            for token in [*open_call, *TOKENIZER.encode(text), *close_call]:
                yield Token(token, 0.0)
                for forced in request.follow(token) if request.follow else ():
                    yield Token(forced, 0.0, forced=True)


def session(reply: Content, sequence_len: int = 128) -> tuple[ChatSession, Parrot]:
    parrot = Parrot(reply, sequence_len)
    return ChatSession(parrot, TOKENIZER), parrot  # type: ignore[arg-type]


def typed(lines: list[str]) -> Callable[[str], str]:
    """Stands for `input`: gives the lines, then the end of input."""
    rest = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    return read


def chat(talk: ChatSession, lines: list[str]) -> str:
    out = io.StringIO()
    run_chat(talk, Console(file=out, width=200), typed(lines))
    return out.getvalue()


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 ok", "👩‍🚀!", "a\ufffdb", ""])
def test_stream_never_shows_half_a_character(text: str) -> None:
    stream, shown = TextStream(TOKENIZER), []
    for token in TOKENIZER.encode(text):
        shown.append(stream.push(token))
        if "\ufffd" not in text:
            assert "\ufffd" not in shown[-1]
    assert "".join(shown) + stream.rest() == text


def test_stream_shows_what_stays_broken() -> None:
    stream = TextStream(TOKENIZER)
    half = TOKENIZER.encode("é")[:1]
    assert stream.push(half[0]) == "" and stream.rest() == "\ufffd"


def test_conversation_is_remembered_and_cleared() -> None:
    talk, parrot = session("hello")
    output = chat(talk, ["hi", "again", "/clear", "new"])
    assert output.count("bot > hello") == 3
    assert "hi<|user_end|><|assistant_start|>hello<|assistant_end|>" in parrot.prompts[1]
    assert "again" not in parrot.prompts[2] and "forgotten" in output
    assert [m["content"] for m in talk.messages] == ["new", "hello"]


def test_a_call_of_the_calculator_is_answered_shown_and_remembered() -> None:
    talk, parrot = session((("call", "6*7"), ("text", " => 42")))
    output = chat(talk, ["what is 6 x 7?", "again"])
    assert output.count("bot > [6*7] = 42 => 42") == 2
    call = "<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|> => 42"
    assert f"<|assistant_start|>{call}<|assistant_end|>" in parrot.prompts[1]


def test_old_turns_are_left_out_when_the_context_is_full() -> None:
    talk, parrot = session("hello there", sequence_len=110)
    output = chat(talk, [f"turn {i} how are you?" for i in range(6)])
    assert "no longer fit" in output
    assert "turn 5" in parrot.prompts[-1] and "turn 0" not in parrot.prompts[-1]
    assert all(len(TOKENIZER.encode(p)) for p in parrot.prompts)


def test_a_message_longer_than_the_context_is_refused() -> None:
    talk, parrot = session("hello", sequence_len=64)
    output = chat(talk, ["x7 " * 100, "hi"])
    assert "reads at most 63" in output and "bot > hello" in output
    assert len(parrot.prompts) == 1 and len(talk.messages) == 2


def test_commands() -> None:
    talk, parrot = session("hello")
    output = chat(talk, ["/help", "/temperature 0.5", "hi", "/temperature 9", "/temperature x",
                         "/nonsense", "", "/quit", "never"])
    assert parrot.requests[0].sampling.temperature == 0.5 and talk.temperature == 0.5
    assert output.count("must be a number from 0 to 2") == 2
    assert "/nonsense: no such command" in output and "Ctrl-D" in output
    assert len(parrot.prompts) == 1


def test_another_answer_and_another_question() -> None:
    talk, parrot = session("hello")
    output = chat(talk, ["/regenerate", "/edit x", "hi", "one", "/regenerate", "/edit two",
                         "/edit", "three", "/edit", "", "/history"])
    assert output.count("nothing was asked yet") == 2 and "Nothing was changed" in output
    assert output.count("always the same") == 1
    assert len(parrot.prompts) == 5 and parrot.prompts[1] == parrot.prompts[2]
    assert [r.sampling.seed for r in parrot.requests] == [0, 1, 2, 3, 4]  # other random numbers
    assert "one" not in parrot.prompts[3] and "two" in parrot.prompts[3]
    assert [m["content"] for m in talk.messages] == ["hi", "hello", "three", "hello"]
    assert "you > hi\nbot > hello\nyou > three\nbot > hello\n" in output


def test_a_question_that_is_refused_leaves_what_was_said() -> None:
    talk, _ = session("hello", sequence_len=64)
    output = chat(talk, ["hi", "/edit " + "x7 " * 100])
    assert "reads at most 63" in output
    assert [m["content"] for m in talk.messages] == ["hi", "hello"]


def test_an_edit_begins_as_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal with readline the line to edit is there already."""
    lines, hooks = iter(["hi", "/edit", None, "/quit"]), []
    inserted: list[str] = []
    monkeypatch.setattr(terminal, "_edit_lines", lambda: SimpleNamespace(
        set_startup_hook=hooks.append, insert_text=inserted.append))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def read(prompt: str) -> str:
        line = next(lines)
        if line is None:
            hooks[-1]()
            assert prompt == "edit > "
            return inserted[-1] + " there"
        return line

    talk, _ = session("hello")
    run_chat(talk, Console(file=io.StringIO(), width=200), read)
    assert [m["content"] for m in talk.messages] == ["hi there", "hello"]
    assert len(hooks) == 2 and hooks[1] is None


def test_what_is_piped_in_reads_as_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n/quit\n"))
    talk, _ = session("hello")
    run_chat(talk, Console(file=sys.stdout, width=200))
    assert "you > hi\nbot > hello\n" in capsys.readouterr().out


def test_ctrl_c_ends_the_reply_not_the_chat() -> None:
    talk, parrot = session("hello")
    whole = parrot.generate

    def interrupted(request: Request) -> Iterator[Token]:
        yield from list(whole(request))[:2]
        if len(parrot.prompts) == 1:
            raise KeyboardInterrupt

    parrot.generate = interrupted  # type: ignore[method-assign]
    output = chat(talk, ["hi", "again"])
    assert output.count("bot >") == 2
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2


@pytest.mark.parametrize("line", ["again", "/edit two", "/regenerate"])
def test_ctrl_c_before_the_question_is_asked(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """While it is encoded: nothing is remembered of it, and nothing forgotten."""
    talk, parrot = session("hello")
    chat(talk, ["hi"])
    encode, calls = TOKENIZER.encode, iter([KeyboardInterrupt])

    def interrupted(text: str) -> list[int]:
        for error in calls:
            raise error
        return encode(text)

    monkeypatch.setattr(TOKENIZER, "encode", interrupted)
    output = chat(talk, [line, "and now?"])
    assert "bot >  ...\n" in output and "bot > hello" in output
    assert [m["content"] for m in talk.messages] == ["hi", "hello", "and now?", "hello"]
    assert len(parrot.prompts) == 2


def test_a_question_that_cannot_be_sampled_is_not_remembered() -> None:
    talk, parrot = session("hello")
    talk.temperature = float("nan")
    assert "temperature=nan" in chat(talk, ["hi"])
    assert not talk.messages and not parrot.prompts
    assert "bot > hello" in chat(talk, ["/temperature nan", "/temperature 0", "hi"])


def test_control_characters_are_spelled_out() -> None:
    talk, _ = session("red \x1b[31m\x07 \x9b")
    assert r"bot > red \x1b[31m\x07 \x9b" in chat(talk, ["hi"])


def test_bytes_that_are_no_text_are_answered_or_asked_again() -> None:
    """In the C locale they come as half surrogate pairs, in UTF-8 as an error."""
    talk, parrot = session("hello")
    lines = iter(["a\udcff", None, "b"])

    def read(prompt: str) -> str:
        line = next(lines, "/quit")
        if line is None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return line

    out = io.StringIO()
    run_chat(talk, Console(file=out, width=200), read)
    assert "type it again" in out.getvalue() and out.getvalue().count("bot > hello") == 2
    assert "a\ufffd" in parrot.prompts[0]


def test_a_kill_ends_the_whole_chat() -> None:
    talk, parrot = session("hello")

    def killed(request: Request) -> Iterator[Token]:
        raise Terminated
        yield

    parrot.generate = killed  # type: ignore[method-assign]
    with pytest.raises(Terminated):
        chat(talk, ["hi", "again"])


@pytest.mark.parametrize("width", [20, 33, 80])
def test_long_replies_break_between_words(width: int) -> None:
    text = "the quick brown fox, 日本語, jumps\nover the lazy dog again and again. " * 3
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    lines = ("bot > " + "".join(wrap_words(pieces, width, 6))).split("\n")
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace("bot > ", "").replace(" ", "") == "".join(text.split())


def test_words_come_as_they_are_ready() -> None:
    seen: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("one t", "wo ", "three"):
            seen.append(piece)
            yield piece

    words = wrap_words(pieces(), 80, 0)
    assert next(words) == "one" and seen == ["one t"]
    assert next(words) == " two" and seen == ["one t", "wo "]
    assert list(words) == [" three"]


# The command line ---------------------------------------------------------------------------


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gossamer", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    if isinstance(code, str):  # as the interpreter does with a message
        print(code, file=sys.stderr)
        return 1
    return int(code or 0)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("gossamer 0.")


@pytest.mark.parametrize("name", ["chat", "serve --port 0", "infer-bench"])
def test_without_a_model_they_say_which_command_makes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert run_cli(monkeypatch, *name.split(), "--root", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "gossamer speedrun" in error and error.count("\n") == 1


@pytest.mark.parametrize("arguments", [("speedrun", "--resume", "nobody"),
                                       ("chat", "nobody"),
                                       ("speedrun", "--resume"),
                                       ("speedrun", "--name", "../other")])
def test_mistakes_are_one_line_and_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    assert run_cli(monkeypatch, *arguments, "--root", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("gossamer: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [
    "--minutes soon", "--minutes -1", "--minutes 0", "--minutes inf", "--minutes nan",
    "--optimizer sgd", "--depth 1000000", "--questions 0", "--seed x"])
def test_bad_arguments_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    assert run_cli(monkeypatch, "speedrun", *arguments.split()) == 2
    assert f"'{arguments.split()[0]}'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("command", [
    "speedrun --minutes", "speedrun --lr-scale", "speedrun --clip", "speedrun --practice",
    "speedrun --save-every", "practice --lr-scale", "chat --temperature", "serve --temperature",
    "eval --temperature", "tok train x.txt --most"])
def test_what_is_no_number_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, value: str
) -> None:
    assert run_cli(monkeypatch, *command.split(), value) == 2
    assert f"'{command.split()[-1]}'" in capsys.readouterr().err


def test_no_command_can_forget_to_refuse_it() -> None:
    """Whatever Typer itself refuses: nan is beside every range, inf beside one that is open."""
    def commands(group: Any) -> Iterator[Any]:
        for one in group.commands.values():
            yield from commands(one) if hasattr(one, "commands") else [one]

    found = list(commands(typer.main.get_command(app.app)))
    assert len(found) > 10 and all(isinstance(one, FiniteCommand) for one in found)


@pytest.mark.parametrize("command", ["", "speedrun", "chat"])
def test_help_shows_defaults_and_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run_cli(monkeypatch, *command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert "Usage:" in text and " ." not in text
    if command:
        assert "newest" in text and "[default: runs]" in text


@pytest.mark.parametrize(("given", "taken"), [
    (["speedrun", "--resume"], ["speedrun", "--resume", ""]),
    (["speedrun", "--resume", "--no-chat"], ["speedrun", "--resume", "", "--no-chat"]),
    (["speedrun", "--resume", "mine"], ["speedrun", "--resume", "mine"]),
    (["speedrun", "--resume=mine"], ["speedrun", "--resume=mine"]),
])
def test_resume_needs_no_name(given: list[str], taken: list[str]) -> None:
    assert app._name_the_newest(given) == taken


def test_the_command_is_named_as_it_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the search path `gossamer`, in a checkout's environment its path, else the module."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("chat x") == "`python -m gossamer chat x`"
    (folder / "gossamer").write_text("#!/bin/sh\n")
    (folder / "gossamer").chmod(0o755)
    assert command("chat x") == "`.venv/bin/gossamer chat x`"
    monkeypatch.setenv("PATH", str(folder))
    assert command("chat x") == "`gossamer chat x`"


@pytest.mark.parametrize("package", ["typer", "rich", "tokenizers", "matplotlib", "starlette",
                                     "uvicorn"])
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    package: str,
) -> None:
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    rooms = ("gossamer.chat", "gossamer.cli.app", "gossamer.server")
    for name in [n for n in sys.modules if n.startswith(rooms)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert run_cli(monkeypatch, "speedrun", "--root", str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    error = capsys.readouterr().err
    assert package in error and "pip install 'gossamer[chat]'" in error


# From nothing to a report -------------------------------------------------------------------


def test_speedrun_from_nothing_to_a_report(tmp_path: Path) -> None:
    """Six seconds of a model of one layer: nothing is learned, but every phase runs."""
    out = io.StringIO()
    options = SpeedrunOptions(minutes=0.1, questions=4, depth=1, root=tmp_path)
    folder = speedrun(options, console=Console(file=out, width=200))
    assert folder == tmp_path / "speedrun"
    report = (folder / "report.md").read_text()
    assert "48 held-out" in report and "| story |" in report and "none dropped" in report
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "mean exact match" in out.getvalue() and "left" in out.getvalue()
    resumed = speedrun(
        SpeedrunOptions(root=tmp_path), resume="speedrun",
        console=Console(file=out, width=200),
    )
    assert resumed == folder  # nothing was left to train: tested and reported again
    with pytest.raises(ValueError, match="--resume with --minutes"):
        speedrun(SpeedrunOptions(minutes=1.0, root=tmp_path), resume="speedrun",
                 given={"minutes"})
    quiet = Console(file=io.StringIO())
    speedrun(SpeedrunOptions(clip=1.0, root=tmp_path), resume="", given={"clip"},
             console=quiet)
    assert json.loads((folder / "run.json").read_text())["options"]["clip"] == 1.0
    with pytest.raises(FileExistsError, match="--resume .*speedrun"):
        speedrun(SpeedrunOptions(name="speedrun", root=tmp_path))
