"""The desk in a browser on this machine: textual-serve on loopback, below a random path.

Whoever knows the path can decide as the reviewer, so it is the only way in: without it the page, its files
and the websocket answer 403.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import shlex
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from scanner.errors import ConfigError
from scanner.text import first_line

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Middleware

HOST = "127.0.0.1"
PROGRAM = "from tui.app import main; main()"
# The page of textual-serve asks another host for a font; nobody else is to hear of the desk.
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'self' 'unsafe-inline' data: blob:; connect-src 'self' ws://{HOST}:*"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
}


def serve_desk(store: str, port: int, *, read_only: bool) -> None:
    """Serves the desk until Ctrl-C; prints its address to stdout. Each browser tab runs a desk of its own.

    Raises ConfigError where textual-serve is not installed, or where the port is not free.
    """
    words = [sys.executable, "-c", PROGRAM, "--store", store, *(["--read-only"] if read_only else [])]
    token = secrets.token_urlsafe(24)
    try:
        asyncio.run(_serve(shlex.join(words), port, token))
    except ImportError as error:
        raise ConfigError(
            "--serve needs the package textual-serve, which is not installed.\n"
            "Install it with pip install 'finextract-scanner[serve]'."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the port {port} of {HOST} cannot be used: {first_line(error)}.\nName another one with --port."
        ) from error
    except KeyboardInterrupt:
        click.echo("The desk is no longer served.", err=True)


async def _serve(command: str, port: int, token: str) -> None:
    from aiohttp import web
    from textual_serve.server import Server

    class DeskServer(Server):  # type: ignore[misc]  # textual-serve is optional
        """Says nothing by itself, and names the desk instead of its command line."""

        async def on_startup(self, app: web.Application) -> None:
            """Prints nothing: the address is printed once the port is open."""

    logging.getLogger("textual-serve").setLevel(logging.ERROR)
    server = DeskServer(command, HOST, port, title="finextract-tui")
    application = web.Application(middlewares=[_guard(token)])
    application.add_subapp(f"/{token}", await server._make_app())
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        click.echo(f"http://{HOST}:{port}/{token}/")
        click.echo("Open this address in a browser on this machine. Ctrl-C ends it.", err=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _guard(token: str) -> Middleware:
    """Refuses every request whose path does not begin with the token."""
    from aiohttp import web

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.path.split("/")[1]
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise web.HTTPForbidden(text="This address lacks the token that finextract-tui printed.\n")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return guard
