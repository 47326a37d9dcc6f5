"""`gossamer tok`: train, measure and see a tokenizer. Layer 8: arguments to calls, no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gossamer.chat.checkpoint import find_checkpoint
from gossamer.chat.compression import (
    our_texts,
    print_compression,
    read_rival,
    texts_of,
    train_tokenizer,
)
from gossamer.chat.look import show_tokens
from gossamer.chat.tokenizer import Tokenizer
from gossamer.cli.commands import Commands

__all__ = ["tok"]

tok = Commands(no_args_is_help=True, help="Train, measure and see a tokenizer.",
               rich_markup_mode=None)

_FILE = "A tokenizer.json instead of a run's."
Run = Annotated[str | None, typer.Option("--run", metavar="RUN", show_default="the newest",
                                         help="Whose tokenizer.")]
OfFile = Annotated[Path | None, typer.Option("--tokenizer", metavar="FILE", help=_FILE)]
Root = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the runs.")]
_ROOT = Path("runs")


def _chosen(run: str | None, file: Path | None, root: Path) -> Tokenizer:
    return Tokenizer.load(file or find_checkpoint(root, run) / "tokenizer.json")


@tok.command("train")
def train_command(
    files: Annotated[
        list[str], typer.Argument(metavar="PATH ...", help="Files, folders and addresses as "
                                  "`speedrun --data` takes them.")
    ],
    vocab: Annotated[
        int, typer.Option(min=1, max=1 << 20, metavar="N", help="Tokens in all.")
    ] = 4096,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where to write it; must not exist yet.")
    ] = Path("tokenizer.json"),
    digits: Annotated[
        int, typer.Option(min=0, max=8, metavar="N", help="Most digits of a token; 0: one, and "
                          "two from 32,768 tokens on.")
    ] = 0,
    most: Annotated[
        float, typer.Option(min=0.001, metavar="MB", help="Most text to learn from.")
    ] = 64.0,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of which text that is.")] = 0,
) -> None:
    """Learn a vocabulary from your own text: byte pairs, merged from the most frequent on."""
    train_tokenizer(Console(), files, out, vocab, digits or None, int(most * 1e6), seed)


@tok.command("eval")
def eval_command(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH ...]", show_default=False,
                                         help="Texts of your own, besides ours.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Another tokenizer: vocab.bpe or merges.txt (GPT-2), a "
                     ".tiktoken file (GPT-4, GPT-4o), a tokenizer.json, or the folder of one; may "
                     "be given several times.")
    ] = None,
    run: Run = None,
    tokenizer: OfFile = None,
    root: Root = _ROOT,
) -> None:
    """Bytes per token on news, code, digits, ten languages and your files, beside others'."""
    rivals = [read_rival(path) for path in against or ()]
    console = Console()
    texts = {**our_texts(), **texts_of(files or (), console)}
    print_compression(console, _chosen(run, tokenizer, root), rivals, texts)


@tok.command("show")
def show_command(
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    run: Run = None,
    tokenizer: OfFile = None,
    root: Root = _ROOT,
) -> None:
    """See a text as its tokens, with their ids."""
    show_tokens(Console(), _chosen(run, tokenizer, root), text)
