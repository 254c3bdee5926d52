"""A server on loopback in front of another one, which can be away and can lose answers."""

from __future__ import annotations

import http.client
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Front(ThreadingHTTPServer):
    """Passes requests on to the server at `url`; a context manager.

    `refusing` counts down: so many requests from now on find their connection closed. `losing` is a part of a
    path: the next PUT of it is passed on, but its answer is lost, and after it `then_refusing` requests too.
    """

    daemon_threads = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = urlsplit(url).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.refusing = self.then_refusing = self.refused = 0
        self.losing: str | None = None
        self.lost: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> Front:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients, or of the server behind, that are gone in the middle of an answer."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def refuses(self) -> bool:
        with self.lock:
            self.refusing -= (refuses := self.refusing > 0)
            self.refused += refuses
            return refuses

    def loses(self, method: str, path: str) -> bool:
        with self.lock:
            if method != "PUT" or self.losing is None or self.losing not in path:
                return False
            self.losing, self.refusing = None, self.then_refusing
            self.lost.append(path)
            return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def pass_on(self) -> None:
        if self.server.refuses():
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behind = http.client.HTTPConnection(self.server.behind, timeout=30)
        behind.request(self.command, self.path, body, dict(self.headers.items()))
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        if self.server.loses(self.command, self.path):
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    def log_message(self, *_: object) -> None:
        """Nothing."""
