"""The command line. Layer 8: arguments to calls, no logic.

Here are speedrun, practice, chat, serve, data, mask, infer-bench and compare; eval and tok, which
have more options, have files of their own, as have explain, doctor and cache (`cli/__init__.py`).
"""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gossamer
from gossamer.chat.checkpoint import find_checkpoint, load_model
from gossamer.chat.compare import comparison_table, print_table, read_results, results_folder
from gossamer.chat.interrupt import Interrupted
from gossamer.chat.lighter import Weights, lighten, reply_bits
from gossamer.chat.look import show_data, show_made, show_mask
from gossamer.chat.progress import say
from gossamer.chat.speed import print_speed
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.chat.tokenizer import Tokenizer
from gossamer.cli.commands import Commands
from gossamer.cli.evaluate import eval_command
from gossamer.cli.talk import HOST, PORT, ROWS, in_terminal, on_page, talk
from gossamer.cli.tok import tok
from gossamer.core.errors import GossamerError
from gossamer.models.gpt import SWITCHES
from gossamer.server.serve import bind

__all__ = ["app", "run"]

app = Commands(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"max_content_width": 100},
    help="Train a chat model from nothing on your own CPU, and talk to it.",
    epilog="Also: explain, doctor, cache (each has --help).",
)
app.add_typer(tok, name="tok")
_ROOT = Path("runs")
_NEWEST = ""  # what `--resume` without a name stands for

Run = Annotated[
    str | None, typer.Argument(metavar="RUN", show_default="the newest",
                               help="Name or folder of a run, or of one of its checkpoints.")
]
Root = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the runs.")]
Quantize = Annotated[Weights, typer.Option(help="Hold the large matrices in fewer bits.")]


class Optimizer(StrEnum):
    """The recipes that there are."""

    muon = "muon"
    adamw = "adamw"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gossamer {gossamer.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True,
                           help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("speedrun")
def speedrun_command(
    context: typer.Context,
    minutes: Annotated[
        float, typer.Option(min=0.1, max=100_000, metavar="MINUTES", help="Everything included.")
    ] = 10.0,
    name: Annotated[
        str, typer.Option(metavar="NAME", show_default="speedrun, numbered if taken",
                          help="Name of the run's folder.")
    ] = "",
    resume: Annotated[
        str | None, typer.Option(metavar="[NAME]", help="Go on with an interrupted run, as it was "
                                 "begun; without a name with the newest.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of weights and data.")] = 0,
    questions: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Held-out questions a task.")
    ] = 250,
    optimizer: Annotated[Optimizer, typer.Option(help="Of the matrices.")] = Optimizer.muon,
    lr_scale: Annotated[
        float, typer.Option(min=0.0, metavar="FACTOR", help="On every learning rate.")
    ] = 1.0,
    clip: Annotated[
        float, typer.Option(min=0.0, metavar="NORM", help="Largest norm of the gradients; 0: any.")
    ] = 0.0,
    depth: Annotated[
        int, typer.Option(min=0, max=32, metavar="N",
                          help="Layers, each 32 x depth wide; 0: by the minutes and the machine.")
    ] = 0,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Of products: float32, bfloat16, or auto, what "
                          "this machine is faster at.")
    ] = "auto",
    without: Annotated[
        list[str] | None, typer.Option(metavar="FEATURE", help="Of the model, to leave out: "
                                       f"{', '.join(SWITCHES)}; may be given several times.")
    ] = None,
    having: Annotated[
        list[str] | None, typer.Option("--with", metavar="FEATURE", help="To switch on.")
    ] = None,
    borders: Annotated[
        bool, typer.Option(help="Attention ends where one example in a row ends.")
    ] = True,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A file or folder of your own to read besides (txt, md, "
                     "jsonl, parquet), or an address: https://…, hf://datasets/OWNER/NAME/PATTERN; "
                     "may be given several times.")
    ] = None,
    prose: Annotated[
        bool, typer.Option("--prose", help="Read the help texts and docstrings of this Python "
                           "besides.")
    ] = False,
    practice: Annotated[
        float | None, typer.Option(
            min=0.0, max=0.9, metavar="SHARE", show_default="0; of an hour 0.1, for tales",
            help="Of the training, at its end, for reinforcement: own replies, rewarded if right.")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="Length of the training instead of --minutes: "
                          "the same run, bit for bit, however fast the machine. 0: by the clock.")
    ] = 0,
    save_every: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Between checkpoints.")
    ] = 60.0,
    chat: Annotated[bool, typer.Option(help="Talk to the model at the end: on its page if a "
                                            "browser can be opened, else here.")] = True,
    root: Root = _ROOT,
) -> None:
    """From nothing to a chat model: data, tokenizer, training, test and report."""
    options = SpeedrunOptions(
        minutes, name, seed, questions, optimizer.value, lr_scale, clip, depth,
        dtype=dtype, borders=borders, without=tuple(without or ()), having=tuple(having or ()),
        data=tuple(data or ()), prose=prose, practice=practice, steps=steps,
        save_every=save_every, root=root
    )
    console = Console()
    folder = speedrun(options, resume=resume, given=_given(context) - {"resume", "chat"},
                      console=console)
    if chat:
        talk(folder, console)


def _given(context: typer.Context) -> set[str]:
    """Names of the arguments that were written on the command line, whatever their values."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


@app.command("practice")
def practice_command(
    run: Run = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="TASK", show_default="all",
                                       help="What to practise, a task or \"tale\" (telling "
                                       "stories); may be given several times.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Of reinforcement.")] = 60,
    attempts: Annotated[
        tuple[int, int], typer.Option(metavar="QUESTIONS REPLIES", help="Of each step: how many "
                                      "questions, and how many replies to each.")
    ] = (8, 16),
    lr_scale: Annotated[
        float, typer.Option(min=0.0, metavar="FACTOR", help="On training's learning rates.")
    ] = 0.1,
    name: Annotated[
        str, typer.Option(metavar="NAME", show_default="practice, numbered if taken",
                          help="Name of the new run's folder; the old run stays as it is.")
    ] = "",
    questions: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Held-out questions a task.")
    ] = 250,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the questions.")] = 0,
    root: Root = _ROOT,
) -> None:
    """Reinforcement of a trained model: it replies, and right replies become likelier."""
    start = str(find_checkpoint(root, run))
    options = SpeedrunOptions(
        name=name, seed=seed, questions=questions, lr_scale=lr_scale, practice=1.0, start=start,
        tasks=tuple(task or ()), attempts=attempts, steps=steps, dtype="float32", root=root)
    speedrun(options)


@app.command("chat")
def chat_command(
    run: Run = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, metavar="T", help="0: always the likeliest word.")
    ] = 0.0,
    quantize: Quantize = Weights.float32,
    root: Root = _ROOT,
) -> None:
    """Talk to a trained model."""
    in_terminal(find_checkpoint(root, run), Console(), temperature=temperature, quantize=quantize)


@app.command("serve")
def serve_command(
    run: Run = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="0.0.0.0 for every network.")
    ] = HOST,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0: any free one.")
    ] = PORT,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Replies decoded at once.")] = ROWS,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, metavar="T", help="Where a request names none.")
    ] = 0.0,
    quantize: Quantize = Weights.float32,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show the page in the browser.")
    ] = False,
    root: Root = _ROOT,
) -> None:
    """Serve a trained model: the OpenAI API and a chat page."""
    with bind(host, port) as listening:  # before the model is read: a port in use is told at once
        on_page(find_checkpoint(root, run), listening, Console(), rows=rows,
                temperature=temperature, quantize=quantize, open_page=open_page)


@app.command("data")
def data_command(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH ...]", show_default=False,
                       help="Files and folders as `speedrun --data` takes them; none: what is "
                       "made.")
    ] = None,
    documents: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many documents to show.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the questions shown.")] = 0,
) -> None:
    """See what there is to learn: tasks, a tale, a chat, prose; or your own files, checked."""
    if paths:
        show_data(Console(), paths, documents)
    else:
        show_made(Console(), seed)


@app.command("mask")
def mask_command(
    path: Annotated[
        str | None,
        typer.Argument(metavar="FILE", show_default="a question of each task",
                       help="A file as `speedrun --data` takes it.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", show_default="the newest",
                                 help="Whose tokenizer.")
    ] = None,
    documents: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many documents of the file.")
    ] = 10,
    root: Root = _ROOT,
) -> None:
    """See the loss mask: which tokens of a conversation or text the model must produce."""
    tokenizer = Tokenizer.load(find_checkpoint(root, run) / "tokenizer.json")
    show_mask(Console(), tokenizer, path, documents)


@app.command("infer-bench")
def infer_bench_command(
    run: Run = None,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", show_default="1, 4 and 16",
                                       help="Replies at once; may be given several times.")
    ] = None,
    quantize: Quantize = Weights.float32,
    root: Root = _ROOT,
) -> None:
    """Measure a model: time to the first token, tokens a second, share of the bandwidth."""
    checkpoint, console = load_model(find_checkpoint(root, run)), Console()
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if quantize is not Weights.float32:
        before = reply_bits(model, tokenizer)
        after = reply_bits(lighten(model, quantize), tokenizer)
        console.print(f"{quantize} weights: {after.value:.4f} ± {after.error:.4f} bits per byte of "
                      f"right replies, {before.value:.4f} ± {before.error:.4f} before",
                      highlight=False)
    print_speed(console, model, rows or (1, 4, 16), (8, 64, 200))


app.command("eval")(eval_command)


@app.command("compare")
def compare_command(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run that came to its end, "
                                         "or a folder of `gossamer eval`.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="Another.")],
    root: Root = _ROOT,
) -> None:
    """Compare two runs task by task: which differences chance does not explain."""
    scores = [read_results(results_folder(root, name)) for name in (first, second)]
    print_table(Console(), comparison_table(scores[0], scores[1], (first, second)))


def run() -> None:
    """Run the command line; what we raise on purpose becomes one line and exit status 1."""
    try:
        app(args=_name_the_newest(sys.argv[1:]))
    except Interrupted as error:
        _complain(error)
        sys.exit(128 + signal.SIGINT)
    except (GossamerError, OSError, ValueError) as error:
        _complain(error)
        sys.exit(1)


def _complain(error: Exception) -> None:
    """One line on stderr."""
    say(Console(stderr=True), f"gossamer: {error}")


def _name_the_newest(arguments: list[str]) -> list[str]:
    """Give a `--resume` that no name follows the empty one: the parser knows no optional values."""
    named = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        named.append(argument)
        if argument == "--resume" and following.startswith("-"):
            named.append(_NEWEST)
    return named
