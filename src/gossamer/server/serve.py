"""Start and stop the server. Layer 8."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from rich.console import Console

from gossamer.core.errors import GossamerError
from gossamer.server.app import Served, build_app

__all__ = ["ServeError", "bind", "serve"]

_GRACE = 5  # seconds that open connections get at the end


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
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise ServeError(f"serve: {host}:{port} cannot be used ({error.strerror}). Choose another "
                         "with --port, or stop what uses it.") from None
    return made


def serve(served: Served, listening: socket.socket, console: Console) -> None:
    """Serve until Ctrl-C or SIGTERM; running replies are ended, then the socket is closed."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    console.print(f"{served.name} is at http://{shown}:{port}  (OpenAI API: "
                  f"http://{shown}:{port}/v1; Ctrl-C ends it)", highlight=False, soft_wrap=True)
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "lifespan": "on",
                               "timeout_graceful_shutdown": _GRACE}
    server = uvicorn.Server(uvicorn.Config(build_app(served), **options))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises it again after a clean end
        pass
    finally:
        listening.close()
