"""Failures of servers, on demand and reproducible. Standard library only.

A plan says which request fails in which way; `Misbehaving` is mixed in before a handler of either server:

    class Troubled(Misbehaving, Handler):
        plan = Seeded(ALL, share=0.3)

A handler needs what those of hub.py and civitai.py have: `do_GET`, and `send_bytes(status, body, headers)`
with which it sends every response.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Protocol

# Responses that are sent instead of the right one: status, headers, body.
_PAGE = b"<!DOCTYPE html><html><title>Just a moment...</title></html>"
_ERROR = json.dumps({"error": "Internal", "message": "please try again"}).encode()
_JSON, _HTML = {"Content-Type": "application/json"}, {"Content-Type": "text/html; charset=utf-8"}
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "429": (429, _JSON, _ERROR),
    "429-seconds": (429, _JSON | {"Retry-After": "0"}, _ERROR),
    "429-date": (429, _JSON, _ERROR),  # Retry-After is the present, as a date
    "429-ratelimit": (
        429,
        _JSON | {"RateLimit": '"api";r=0;t=0', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'},
        _ERROR,
    ),
    "500": (500, _HTML, _PAGE),
    "502": (502, _HTML, _PAGE),
    "503": (503, _HTML, _PAGE),
    "503-seconds": (503, _JSON | {"Retry-After": "0"}, _ERROR),
    "504": (504, _HTML, b""),
    "html": (200, _HTML, _PAGE),
    "json": (200, _JSON, _ERROR),  # an error with the status of a success
    "off-host": (302, {"Location": "https://elsewhere.invalid/?token=1"}, b""),
}
# What happens to a true answer.
HARM = ("drop", "truncate", "cut", "slow", "wrong")
LIMITS = ("429", "429-seconds", "429-date", "429-ratelimit", "503-seconds")
ALL = (*ANSWERS, *HARM)
# A true answer that comes byte by byte, for DRIP_ENDS_S at most: its headers, or the second half of its body.
DRIPS = ("drip-headers", "drip-body")
SLOW_S = 0.05  # between the pieces of a slow answer
SLOW_PIECES = 5
DRIP_S, DRIP_ENDS_S = 0.02, 6.0


class Plan(Protocol):
    """Which fault a request meets: a name in ALL or DRIPS, or None for the true answer."""

    def fault(self, request: str) -> str | None: ...


class Script:
    """The first requests meet these, one after another; the rest, and the Nones, are answered truly.

    `part` is what a request must contain to count.
    """

    def __init__(self, faults: Iterable[str | None], part: str = "") -> None:
        self._faults, self._part, self._lock = iter(list(faults)), part, threading.Lock()

    def fault(self, request: str) -> str | None:
        if self._part not in request:
            return None
        with self._lock:
            return next(self._faults, None)


class Seeded:
    """A share of all different requests meets a fault at its first `times` tries, and is answered then.

    Which requests depends on the seed and the request alone, so threads in any order meet the same faults.
    `times` is below the client's retry limit, so every request succeeds in the end.
    """

    def __init__(self, faults: Sequence[str], share: float = 0.3, seed: int = 0, times: int = 1) -> None:
        self._faults, self._share, self._seed, self._times = tuple(faults), share, seed, times
        self._tries: Counter[int] = Counter()
        self._lock = threading.Lock()

    def fault(self, request: str) -> str | None:
        source = random.Random(f"{self._seed} {request}")
        if source.random() >= self._share:
            return None
        with self._lock:
            self._tries[hash(request)] += 1
            tries = self._tries[hash(request)]
        return source.choice(self._faults) if tries <= self._times else None


class Misbehaving(BaseHTTPRequestHandler):
    """A mixin that lets requests meet the faults of a plan. To be named before the handler."""

    plan: Plan = Script(())
    met: Counter[str] | None = None  # counts the faults that were met, where it is a Counter
    _fault: str | None = None

    def do_GET(self) -> None:
        self._fault = self.plan.fault(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if self._fault is not None and self.met is not None:
            self.met[self._fault] += 1
        if self._fault in ANSWERS:
            status, headers, body = ANSWERS[self._fault]
            if self._fault == "429-date":
                headers = headers | {"Retry-After": email.utils.formatdate(usegmt=True)}
            self._fault = None
            self.send_bytes(status, body, headers)
        elif self._fault == "drop":
            self._hang_up()
        elif self._fault == "drip-headers":
            self._fault = None
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            self._drip(b"x" * 1_000_000)
        else:
            super().do_GET()  # type: ignore[misc]

    do_HEAD = do_GET

    def send_bytes(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """The answer, or what the fault makes of it: sizes stay as stated, unless it is cut."""
        fault, self._fault = self._fault, None
        if fault == "cut":
            body = body[: len(body) // 2]
        elif fault == "wrong" and body:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        if fault not in ("truncate", "slow", "drip-body") or self.command == "HEAD":
            super().send_bytes(status, body, headers)  # type: ignore[misc]
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        step = len(body) // SLOW_PIECES + 1
        if fault == "truncate":
            self.wfile.write(body[: len(body) // 2])
            self._hang_up()
            return
        if fault == "drip-body":
            self.wfile.write(body[: len(body) // 2])
            self._drip(body[len(body) // 2 :])
            return
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            self.wfile.flush()
            time.sleep(SLOW_S)

    def _drip(self, content: bytes) -> None:
        """Sends a byte every DRIP_S, and hangs up after DRIP_ENDS_S or when the client is gone."""
        with contextlib.suppress(OSError):
            for start in range(min(len(content), int(DRIP_ENDS_S / DRIP_S))):
                self.wfile.write(content[start : start + 1])
                self.wfile.flush()
                time.sleep(DRIP_S)
        self.close_connection = True

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
