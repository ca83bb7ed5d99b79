"""The page's server: who may ask, how much, and which answer belongs to which address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metalearn.errors import TrainingStopped, UsageError
from metalearn.play.answers import Answers
from metalearn.play.request import MOST_BYTES, parse

HOSTS = ("127.0.0.1", "localhost")
"""The names of this machine. A request with another name is for a site that resolves to it."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/drawing.js": ("drawing.js", "text/javascript"),
    "/results.js": ("results.js", "text/javascript"),
    "/charts.js": ("charts.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_FIELDS = {
    "examples": ("classes", "drawings", "seed"),
    "adapt": ("classes", "query", "steps"),
    "stability": ("classes", "steps", "initialisation", "step"),
}


def make_app(answers: Answers) -> Starlette:
    """Return the application that serves the page and its answers."""
    folder = Path(__file__).parent
    routes = [
        *(_file(path, folder / name, kind) for path, (name, kind) in FILES.items()),
        Route("/api/setup", lambda _: JSONResponse(answers.setup())),
        *(_answer(name, getattr(answers, name), known) for name, known in _FIELDS.items()),
    ]
    handlers: Mapping[Any, Any] = {
        UsageError: lambda _, error: _refusal(400, str(error)),
        ClientDisconnect: lambda _, error: _refusal(400, "the request was broken off"),
        TrainingStopped: lambda _, error: _refusal(503, str(error)),
        HTTPException: lambda _, error: _refusal(error.status_code, error.detail),
    }
    return Starlette(routes=routes, middleware=[Middleware(_Guard)], exception_handlers=handlers)


def _file(path: str, file: Path, kind: str) -> Route:
    content = file.read_bytes()
    return Route(path, lambda _: Response(content, media_type=kind))


def _answer(
    name: str, function: Callable[[dict[str, Any]], dict[str, Any]], known: tuple[str, ...]
) -> Route:
    async def endpoint(request: Request) -> Response:
        body = parse(await _read(request), known)
        return JSONResponse(await run_in_threadpool(function, body))

    return Route(f"/api/{name}", endpoint, methods=["POST"])


async def _read(request: Request) -> bytes:
    """Return the body of a request; raise HTTPException if it is no JSON or is too long."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected a request of the type application/json")
    found = bytearray()
    length = request.headers.get("content-length", "0")
    too_long = not length.isdecimal() or int(length) > MOST_BYTES
    if not too_long:
        async for chunk in request.stream():
            found += chunk
            if too_long := len(found) > MOST_BYTES:
                break
    if too_long:
        raise HTTPException(413, f"the request is too long: expected at most {MOST_BYTES} bytes")
    return bytes(found)


def _refusal(status: int, sentence: str) -> Response:
    return JSONResponse({"error": " ".join(sentence.split())}, status)


class _Guard:
    """The middleware that refuses other sites, and that adds the headers to each response.

    A site may let its name resolve to this machine (DNS rebinding). A request then has this name
    as its host. A page of another site has another origin than the host.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if refusal := _foreign(Headers(scope=scope)):
            await refusal(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def _foreign(headers: Headers) -> Response | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if host.partition(":")[0].lower() not in HOSTS:
        return _refusal(403, f"the host {host[:80]!r} is not this machine: expected {HOSTS[0]}")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return _refusal(403, "the request is of another site's page: expected this page's own")
    return None
