"""Start and stop the server. Layer 8."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console

from gossamer.core.errors import GossamerError
from gossamer.server.app import Served, build_app

__all__ = ["ServeError", "bind", "model_name", "serve"]

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


def serve(served: Served, listening: socket.socket, console: Console) -> None:
    """Serve until Ctrl-C or SIGTERM; running replies are ended, then the socket is closed.

    Raises:
        ServeError: the model cannot decode.
    """
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host

    def tell() -> None:
        console.print(f"{served.name} is at http://{shown}:{port}  (OpenAI API: "
                      f"http://{shown}:{port}/v1; Ctrl-C ends it)", highlight=False,
                      soft_wrap=True)

    try:
        _Announced(served, tell).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after a clean end
        pass
    finally:
        listening.close()
    if served.host.failure is not None and not served.host.ready:
        raise ServeError(f"serve: {served.name} cannot decode ({served.host.failure}). Try another "
                         "checkpoint, or fewer --rows.")
