"""Start and stop the server. Layer 8."""

from __future__ import annotations

import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console

from gossamer.core.errors import GossamerError
from gossamer.core.settings import setting
from gossamer.server.app import Served, build_app

__all__ = ["ServeError", "bind", "has_browser", "model_name", "serve"]

_GRACE = 5  # seconds that open connections get at the end
# Seconds that a connection may wait for its next request (nginx's default): a client that sends one
# just as it is closed sees an error, and on a busy machine uvicorn's 5 s pass quickly.
_IDLE = 75


class ServeError(GossamerError):
    """The address cannot be used."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ServeError: the port is taken or not allowed, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # there it would let two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise ServeError(f"serve: {host}:{port} cannot be used ({error.strerror}). Choose another "
                         "with --port, or stop what uses it.") from None
    return made


def has_browser() -> bool:
    """Whether a browser with windows can be opened here.

    On Linux and the BSDs that needs a display: without one only browsers in text would start, and
    take the terminal. Nobody sits before the display at the other end of SSH, unless it is sent
    along (`ssh -X`). Who sets `BROWSER` has chosen one.
    """
    if not setting("BROWSER"):
        if sys.platform == "darwin" or os.name == "nt":
            windows = not setting("SSH_CONNECTION")
        else:
            windows = bool(setting("DISPLAY") or setting("WAYLAND_DISPLAY"))
        if not windows:
            return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def model_name(checkpoint: Path) -> str:
    """What a model is called in the API: as its run, or as the folder that it was copied to.

    >>> model_name(Path("/runs/mine/checkpoints/step-000400")), model_name(Path("/models/copy"))
    ('mine', 'copy')
    """
    folder = Path(os.path.abspath(checkpoint))  # "." has no name; a link keeps its own
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    return run.name or folder.name or "model"


class _Announced(uvicorn.Server):
    """A server that tells its address when it answers there, not before."""

    def __init__(self, served: Served, tell: Callable[[], None]) -> None:
        options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on",
                                   "timeout_graceful_shutdown": _GRACE, "timeout_keep_alive": _IDLE}
        super().__init__(uvicorn.Config(build_app(served), **options))
        self._served, self._tell = served, tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._served.host.healthy:
            self._tell()
        else:
            self.should_exit = True


def serve(served: Served, listening: socket.socket, console: Console, *,
          open_page: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM; running replies are ended, then the socket is closed.

    Args:
        served: the model and how it replies.
        listening: from `bind`.
        console: where the address is told.
        open_page: whether to show the chat page in the browser as soon as it answers.

    Raises:
        ServeError: the model cannot decode.
    """
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, shown)  # a browser needs an address

    def tell() -> None:
        console.print(f"{served.name} is at http://{shown}:{port}  (OpenAI API: "
                      f"http://{shown}:{port}/v1; Ctrl-C ends it)", highlight=False,
                      soft_wrap=True)
        if open_page:  # beside the server: some browsers return only when they are closed
            threading.Thread(target=webbrowser.open, args=(f"http://{here}:{port}",),
                             daemon=True).start()

    try:
        _Announced(served, tell).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after a clean end
        pass
    finally:
        listening.close()
    if served.host.failure is not None and not served.host.ready:
        raise ServeError(f"serve: {served.name} cannot decode ({served.host.failure}). Try another "
                         "checkpoint, or fewer --rows.")
