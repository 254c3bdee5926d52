"""A server on loopback that serves pictures, and counts what was asked of it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answer:
    """What the server answers to a path."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    claimed: int | None = None  # the Content-Length, where it is not that of the content


class PictureServer(ThreadingHTTPServer):
    """Answers a path, without its query, with what `answers` has for it; a context manager."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()

    def __enter__(self) -> PictureServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that are gone in the middle of an answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PictureServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        answer = self.server.answers.get(path, Answer(b"nothing here", 404))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.content) if answer.claimed is None else answer.claimed
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer.content)
        if answer.claimed is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""
