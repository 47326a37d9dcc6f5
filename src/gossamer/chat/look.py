"""What a model is given to learn, made visible: questions, tales, prose, masks. Layer 7."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice
from random import Random

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gossamer.chat.corpus import Corpus, Shard, find_shards, is_measured
from gossamer.chat.dialogues import draw_dialogue
from gossamer.chat.document import LONGEST, Document, text_of
from gossamer.chat.evaluate import to_conversation
from gossamer.chat.lexicon import SMALL
from gossamer.chat.message import pieces_of, shown, words_of
from gossamer.chat.narrative import Tale, draw_tale
from gossamer.chat.progress import say
from gossamer.chat.prose import read_prose
from gossamer.chat.task import sample
from gossamer.chat.tasks import TASKS
from gossamer.chat.terminal import visible
from gossamer.chat.tokenizer import Tokenizer

__all__ = ["show_data", "show_made", "show_mask", "show_tasks",
           "show_tokens"]

_SHARDS_SHOWN = 20
_PREVIEW = 160  # characters of a document
_STYLES = ("bold green", "dim")  # supervised, not supervised
_SUPERVISED, _GIVEN = "▔", " "  # under the tokens, where there is no colour


def show_made(console: Console, seed: int) -> None:
    """All that a run without data of one's own can learn from, a piece of each kind.

    Cost: 6 s, the prose is read.
    """
    rng = Random(seed)
    show_tasks(console, seed)
    _show_tale(console, draw_tale(rng, SMALL))
    talk = draw_dialogue(rng, {}, tale_share=0.0)
    say(console, "\na dialogue:")
    for turn in talk:
        say(console, f"  {turn['role']}: {words_of(turn['content'])}")
    say(console, f"\nprose, with `speedrun --prose`: {read_prose().text()}")


def show_tasks(console: Console, seed: int) -> None:
    """A question and its reply for each task, and how many wordings it has."""
    table = Table("task", "wordings", "a question", "the reply to learn", show_lines=True)
    rng = Random(seed)
    for name, task in TASKS.items():
        question = sample(task, rng)
        reply = "".join(map(shown, pieces_of(question.answer)))
        table.add_row(name, str(sum(map(len, task.ask.values()))), Text(question.text),
                      Text(reply))
    console.print(table)


def _show_tale(console: Console, tale: Tale) -> None:
    """A tale, and the state of its world after each sentence, from which questions are answered."""
    table = Table("a tale", "who is where", "who has what",
                  title=f"a tale of the plot {tale.plot!r}, {tale.bits:.0f} bits, and its trace")
    for moment in tale.trace:
        where = (f"{who}: {place}" for who, place in moment.place.items())
        has = (f"{holder}: {what}" for what, holder in moment.holder.items())
        table.add_row(Text(moment.sentence), Text(", ".join(where)), Text(", ".join(has)))
    console.print(table)


def show_data(console: Console, paths: Sequence[str], documents: int) -> None:
    """Check files and folders, count what they hold, and show some documents.

    Raises:
        DataError: as `find_shards`.
    """
    shards = find_shards(paths, console)
    table = Table(Column("file", overflow="fold"), "documents", "MB of text", "cut")
    for shard in shards[:_SHARDS_SHOWN]:
        table.add_row(Text(shard.name), f"{shard.documents:,}", f"{shard.size / 1e6:.2f}",
                      f"{shard.split:,}" if shard.split else "")
    if len(shards) > _SHARDS_SHOWN:
        table.add_row(f"... and {len(shards) - _SHARDS_SHOWN} more", "", "", "")
    console.print(table)
    corpus = Corpus(shards)
    held_out = sum(is_measured(d) for shard in shards for d in _documents(shard))
    console.print(f"{corpus.documents:,} documents, {corpus.size / 1e6:.2f} MB of text; "
                  f"{held_out:,} of them are held out for measuring.", highlight=False)
    if corpus.split:
        console.print(f"{corpus.split:,} rows are longer than {LONGEST:,} characters; each is read "
                      "in pieces, nothing of it is lost.", highlight=False)
    for _ in range(min(documents, corpus.documents - held_out)):
        text = " ".join(visible(text_of(corpus.next())).split())
        console.print(Text(f"- {text[:_PREVIEW]}{'…' if len(text) > _PREVIEW else ''}"))


def _documents(shard: Shard) -> chain[Document]:
    return chain.from_iterable(shard.format.read(shard.path, block) for block in shard.blocks)


def show_mask(console: Console, tokenizer: Tokenizer, path: str | None, documents: int) -> None:
    """Show which tokens of a document count in the loss, token by token.

    On a terminal supervised tokens are green; elsewhere a line below marks them.

    Args:
        path: a file as `--data` takes it; None shows a question of each task.
        documents: how many of a file's.

    Raises:
        DataError: as `find_shards`.
    """
    if path is None:
        rng = Random(0)
        chosen: Sequence[Document] = [tuple(to_conversation(sample(task, rng)))
                                      for task in TASKS.values()]
    else:
        read = chain.from_iterable(_documents(shard) for shard in find_shards([path], console))
        chosen = list(islice(read, documents))
    for document in chosen:
        ids, mask = (tokenizer.render_document(document) if isinstance(document, str)
                     else tokenizer.render(document))
        pieces = [visible(tokenizer.decode([i])).replace("\n", "⏎") for i in ids]
        if console.is_terminal:
            line = Text()
            for piece, supervised in zip(pieces, mask, strict=True):
                line.append(piece, _STYLES[not supervised])
                line.append("|", "dim")
            console.print(line)
        else:
            console.print("|".join(pieces), markup=False, highlight=False, soft_wrap=True)
            console.print(" ".join((_SUPERVISED if m else _GIVEN) * len(p)
                                   for p, m in zip(pieces, mask, strict=True)),
                          markup=False, highlight=False, soft_wrap=True)
        console.print(f"{sum(mask)} of {len(mask)} tokens count in the loss.", highlight=False)


def show_tokens(console: Console, tokenizer: Tokenizer, text: str) -> None:
    """Show a text cut into its tokens, a line each: id, bytes, what it stands for."""
    ids = tokenizer.encode(text)
    table = Table("id", "bytes", "token")
    for index in ids:
        data = tokenizer.token_bytes[index]
        shown = visible(data.decode("utf-8", "backslashreplace"))
        table.add_row(str(index), str(len(data)),
                      Text(shown.replace(" ", "␣").replace("\n", "⏎")))
    console.print(table)
    size = len(text.encode("utf-8", "replace"))
    per_token = f", {size / len(ids):.2f} bytes a token" if ids else ""
    console.print(f"{len(ids)} tokens, {size} bytes{per_token}", highlight=False)
