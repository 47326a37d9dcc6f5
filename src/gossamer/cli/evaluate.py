"""`gossamer eval`. Layer 8: arguments to calls, no logic.

In a file of its own, since `app.py` only lists the commands that have many options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gossamer.chat.checkpoint import find_checkpoint, load_model
from gossamer.chat.exercises import Drawing
from gossamer.chat.interrupt import unwind_when_told
from gossamer.chat.suite import EvalOptions, run_eval

__all__ = ["eval_command"]

_HOT = 1.0  # where several samples are asked for: the distribution as it was learned


def eval_command(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", show_default="the newest run",
                                   help="Name or folder of a run, or of one of its checkpoints.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", show_default="all that --data holds, else first-grade",
                     help="Tasks, or groups of them: first-grade, stories, core, choice, gsm8k, "
                     "code, text; separated by commas, or given several times.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Questions of your own: a folder of CORE's tasks, a "
                     "folder or .jsonl file of multiple choice, GSM8K or HumanEval, or a text "
                     "(.txt, .md) for its bits per byte; may be given several times.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Most questions a task; 0: all (of "
                          "first-grade, which has no end, 250).")
    ] = 0,
    samples: Annotated[
        int, typer.Option(min=1, max=1024, metavar="K", help="Replies a question, for pass@k and "
                          "the majority's vote.")
    ] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=10.0, metavar="T", show_default="0, or with "
                                   "several samples 1", help="Of the sampling.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Longest reply.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of questions and samples.")] = 0,
    failures: Annotated[
        int, typer.Option(min=0, metavar="N", help="Questions that went wrong to keep a task.")
    ] = 5,
    twin: Annotated[
        bool, typer.Option("--twin", help="Decode first-grade as well, and see that both ways of "
                           "scoring agree on every question.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="eval in the run's folder, "
                                  "numbered if taken", help="Where the results go.")
    ] = None,
    root: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the runs.")
    ] = Path("runs"),
) -> None:
    """Ask a trained model questions, and write down how many it gets right."""
    names = tuple(name.strip() for part in tasks or () for name in part.split(",") if name.strip())
    heat = temperature if temperature is not None else (_HOT if samples > 1 else 0.0)
    options = EvalOptions(names, tuple(data or ()), limit,
                          Drawing(samples, heat, max_tokens, seed), seed, failures, twin)
    with unwind_when_told():
        run_eval(load_model(find_checkpoint(root, model)), options, Console(), out)
