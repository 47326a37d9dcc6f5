"""The commands: speedrun, chat, serve. Layer 8: arguments to calls, no logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gossamer
from gossamer.chat.checkpoint import find_run, latest, load_model
from gossamer.chat.engine import Engine, Sampling
from gossamer.chat.speedrun import SpeedrunOptions, speedrun
from gossamer.chat.terminal import ChatSession, run_chat
from gossamer.core.errors import GossamerError
from gossamer.server.app import Served
from gossamer.server.host import Host
from gossamer.server.serve import bind, serve

__all__ = ["app", "run"]

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Train a chat model from nothing on your own CPU, and talk to it.",
)
_ROOT = Path("runs")

Root = Annotated[Path, typer.Option(help="Folder of runs.")]


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
    minutes: Annotated[float, typer.Option(min=0.1, help="Everything included.")] = 10.0,
    name: Annotated[str, typer.Option(help="Name of the run; speedrun if left out.")] = "",
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    resume: Annotated[str | None, typer.Option(help="Go on with an interrupted run.")] = None,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions a task.")] = 250,
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    lr_scale: Annotated[float, typer.Option(min=0.0, help="Factor on learning rates.")] = 1.0,
    clip: Annotated[float, typer.Option(min=0.0, help="Largest gradient norm; 0 = none.")] = 0.0,
    depth: Annotated[
        int, typer.Option(min=0, help="Layers, 32 x depth wide; 0 = by the minutes.")
    ] = 0,
    chat: Annotated[bool, typer.Option(help="Talk to the model at the end.")] = True,
    root: Root = _ROOT,
) -> None:
    """From nothing to a chat model: data, tokenizer, training, test and report."""
    options = SpeedrunOptions(
        minutes, name, seed, questions, optimizer, lr_scale, clip, depth, root
    )
    speedrun(options, resume=resume, chat=chat)


@app.command("chat")
def chat_command(
    run_name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name or path; the newest if left out.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    root: Root = _ROOT,
) -> None:
    """Talk to a trained model."""
    folder = find_run(root, run_name)
    checkpoint = load_model(latest(folder) or folder)
    session = ChatSession(Engine(checkpoint.model, rows=1), checkpoint.tokenizer, temperature)
    run_chat(session, Console())


@app.command("serve")
def serve_command(
    run_name: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name or path; the newest if left out.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 8000,
    rows: Annotated[int, typer.Option(min=1, help="Replies decoded at once.")] = 16,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="Where a request names none.")
    ] = 0.0,
    root: Root = _ROOT,
) -> None:
    """Serve a trained model: the OpenAI API and a chat page."""
    listening = bind(host, port)  # before the model is read: a port in use is told at once
    folder = find_run(root, run_name)
    checkpoint = load_model(latest(folder) or folder)
    facts = {"parameters": checkpoint.model.count_parameters(), "temperature": temperature}
    served = Served(folder.name, Host(Engine(checkpoint.model, rows)), checkpoint.tokenizer,
                    Sampling(temperature), int(checkpoint.folder.stat().st_mtime), facts)
    serve(served, listening, Console())


def run() -> None:
    """Run the command line; what we raise on purpose becomes one line and exit status 1."""
    try:
        app()
    except (GossamerError, OSError, ValueError) as error:
        print(f"gossamer: {error}", file=sys.stderr)
        sys.exit(1)
