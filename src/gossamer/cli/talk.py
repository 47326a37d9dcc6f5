"""A trained model, ready to talk: in the terminal, or behind HTTP with its page. Layer 8."""

from __future__ import annotations

import sys
from pathlib import Path
from socket import socket

from rich.console import Console

from gossamer.chat.checkpoint import find_checkpoint, load_model
from gossamer.chat.engine import Engine, Sampling
from gossamer.chat.interrupt import unwind_when_told
from gossamer.chat.lighter import Weights, lighten
from gossamer.chat.terminal import ChatSession, run_chat
from gossamer.server.app import Served
from gossamer.server.host import Host
from gossamer.server.serve import ServeError, bind, has_browser, model_name, serve

__all__ = ["HOST", "PORT", "ROWS", "in_terminal", "on_page", "talk"]

HOST, PORT = "127.0.0.1", 8000
ROWS = 16  # replies decoded at once
_CHATS_KEPT = 4  # conversations whose keys and values a chat keeps, so that /clear costs nothing


def in_terminal(folder: Path, console: Console, *, temperature: float = 0.0,
                quantize: Weights = Weights.float32) -> None:
    """Talk to the model of a checkpoint's folder until the person leaves."""
    checkpoint = load_model(folder)
    console.print(f"{folder}: {checkpoint.model.count_parameters():,} parameters",
                  highlight=False, markup=False)
    engine = Engine(lighten(checkpoint.model, quantize), rows=1, kept=_CHATS_KEPT)
    with unwind_when_told():
        run_chat(ChatSession(engine, checkpoint.tokenizer, temperature), console)


def on_page(folder: Path, listening: socket, console: Console, *, rows: int = ROWS,
            temperature: float = 0.0, quantize: Weights = Weights.float32,
            open_page: bool = False) -> None:
    """Serve the model of a checkpoint's folder until Ctrl-C.

    Raises:
        ServeError: the model cannot decode.
    """
    checkpoint = load_model(folder)
    facts = {"parameters": checkpoint.model.count_parameters(), "temperature": temperature}
    engine = Engine(lighten(checkpoint.model, quantize), rows, kept=rows)
    served = Served(model_name(folder), Host(engine), checkpoint.tokenizer, Sampling(temperature),
                    int(folder.stat().st_mtime), facts)
    serve(served, listening, console, open_page=open_page)


def talk(run: Path, console: Console) -> None:
    """What comes after training: the page if a browser can show it, else the terminal.

    Where no person sits at a terminal, nothing.
    """
    if not (sys.stdin.isatty() and console.is_terminal):
        return
    folder = find_checkpoint(run.parent, run.name)
    if not has_browser():
        in_terminal(folder, console)
        return
    try:
        listening = bind(HOST, PORT)
    except ServeError:  # taken: any other will do, for nobody has named one
        listening = bind(HOST, 0)
    with listening:
        on_page(folder, listening, console, open_page=True)
