"""A server on a port of this machine, which no other machine reaches."""

from __future__ import annotations

import errno
import os
import socket
import sys

import uvicorn
from starlette.applications import Starlette

from metalearn.errors import UsageError

ADDRESS = "127.0.0.1"
_WAIT_S = 3
"""The time that running requests have to end after Ctrl-C."""


def listen(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine alone; 0 chooses a free port.

    Raises:
        UsageError: the port is no port, is in use, or may not be used.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port={port}: expected a number from 0 to 65535. Give such as port=8765")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would share the port with another program
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((ADDRESS, port))
        found.listen(64)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port={port} is in use by another program: expected a free port. Give another "
                "one, or port=0 for any free port"
            ) from error
        raise UsageError(
            f"port={port} cannot be used ({error.strerror or error}): expected a free port from "
            "1024. Give another one, or port=0 for any free port"
        ) from error
    return found


def make_server(app: Starlette) -> uvicorn.Server:
    """Return a server that `run(sockets=[...])` starts, and that a signal ends."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_WAIT_S,
        )
    )


def has_browser() -> bool:
    """Return True if a browser has a screen, so that opening the page does not fill a terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
