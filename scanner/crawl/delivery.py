"""One message about a flag, given to a command or sent to a webhook. Knows no store and no queue."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx2

from scanner.errors import ConfigError
from scanner.hubs import http
from scanner.hubs.addresses import AddressRefused
from scanner.hubs.deadlines import TimeLimit, limit_reads
from scanner.hubs.problems import Refused, what_happened, words_of
from scanner.text import first_line, for_terminal, printable

SECRET_VARIABLE = "FINEXTRACT_WEBHOOK_SECRET"
SIGNATURE, ID = "X-Finextract-Signature", "X-Finextract-Id"
TIMEOUT_S = 30.0  # of a command, and of one request
RETRIES = 2  # of a request, after transient errors; the message itself is tried again later
RATE_LIMIT_WAIT_S = 10.0
SLICE_S = 0.2  # after which a command that is abandoned is ended
MAX_OUTPUT_BYTES = 10_000  # of a command, that are kept


class DeliveryFailed(Exception):
    """A message was not accepted; it may be tried again. The text says why, in one clause."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Who is told of new flags: a command, or a webhook. `Notify.given` checks the settings."""

    command: tuple[str, ...] = ()  # a program and its arguments
    webhook: str = ""  # its address, which may hold a secret
    timeout_s: float = TIMEOUT_S

    @staticmethod
    def given(command: str | None, webhook: str | None, timeout_s: float | None = None) -> Notify | None:
        """The settings of [notify]; None where nobody is to be told. Raises ConfigError."""
        if command and webhook:
            raise ConfigError("[notify] takes a command or a webhook, not both. Remove one of them.")
        limit = TIMEOUT_S if timeout_s is None else timeout_s
        if command:
            return Notify(command=_command(command), timeout_s=limit)
        return Notify(webhook=_webhook(webhook), timeout_s=limit) if webhook else None

    def __str__(self) -> str:
        """For people: without the arguments of a command and the path of an address, which may be secret."""
        if self.command:
            return f"the command {for_terminal(self.command[0])}"
        return f"the webhook at {for_terminal(shown_address(self.webhook))}"


def shown_address(address: str) -> str:
    """The scheme and the host of an address, and that there is more."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        if parts.hostname:
            port = f":{parts.port}" if parts.port else ""
            return f"{parts.scheme}://{parts.hostname}{port}/..."
    return "..."


def _command(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"the command of [notify] cannot be read: {error}. Check its quotes.") from error
    if not words or shutil.which(words[0]) is None:
        shown = for_terminal(words[0]) if words else "nothing"
        raise ConfigError(
            f"the command of [notify] names {shown}, which is no program on this machine. Name its path."
        )
    return words


def _webhook(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError("the webhook of [notify] is not an address. Write it as https://HOST/PATH.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(
            f"the webhook of [notify] is http://{for_terminal(host)}, which anybody on the way could read. "
            "Use https; http is for this machine alone."
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def deliver(notify: Notify, message: Mapping[str, Any], abandoned: threading.Event | None = None) -> str:
    """Hands over one message; returns what a command printed, "" for a webhook.

    A command is ended when `abandoned` is set. Raises DeliveryFailed, and http.Interrupted where the crawl is
    being interrupted.
    """
    body = json.dumps(message, ensure_ascii=True, sort_keys=True).encode()
    if notify.command:
        return _run(notify, body, abandoned or threading.Event())
    _post(notify, body, str(message["id"]))
    return ""


def _run(notify: Notify, body: bytes, abandoned: threading.Event) -> str:
    """Runs the command without a shell, in a session of its own, with the message on its stdin."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as given:
        given.write(body + b"\n")
        given.seek(0)
        try:
            process = subprocess.Popen(
                notify.command, stdin=given, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise DeliveryFailed(f"{notify} cannot be started: {first_line(error)}") from error
        until = time.monotonic() + notify.timeout_s
        try:
            while (code := process.poll()) is None and time.monotonic() < until and not abandoned.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SLICE_S)
        finally:  # what it started and did not wait for ends too
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        printed = output.read(MAX_OUTPUT_BYTES).decode(errors="replace")
    if code is None and abandoned.is_set():
        raise DeliveryFailed(f"{notify} had not ended when the crawl did")
    if code is None:
        raise DeliveryFailed(f"{notify} did not end within {notify.timeout_s:g} s")
    if code:
        last = next((line for line in reversed(printed.splitlines()) if line.strip()), "")
        said = f": {printable(last, 200)}" if last else ""
        raise DeliveryFailed(f"{notify} ended with code {code}{said}")
    return printed


def _post(notify: Notify, body: bytes, id_: str) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": http.USER_AGENT, ID: id_}
    if secret := os.environ.get(SECRET_VARIABLE, ""):
        headers[SIGNATURE] = signature(secret, body)
    host = urlsplit(notify.webhook).hostname or ""
    limit = TimeLimit(deadline_s=notify.timeout_s)
    policy = http.RetryPolicy(RATE_LIMIT_WAIT_S, RETRIES, limit)
    # A session of its own: the addresses of hubs are an allow-list, and this address is the user's.
    client = httpx2.Client(timeout=min(http.TIMEOUT_S, notify.timeout_s), follow_redirects=False)
    with limit_reads(client, partial(http.pause, 0)) as session:

        def send() -> None:
            with session.stream("POST", notify.webhook, content=body, headers=headers) as response:
                http.check_status(response)
                if response.is_redirect:
                    words = "a redirect, which is not followed: name the last address"
                    raise Refused(host, response.status_code, words)
                if not response.is_success:
                    raise Refused(host, response.status_code, words_of(response))

        try:
            http.with_retries(send, host, policy)
        except (httpx2.HTTPError, httpx2.InvalidURL, AddressRefused, OSError) as error:
            raise DeliveryFailed(what_happened(error, host)) from error


def signature(secret: str, body: bytes) -> str:
    """The value of the header `X-Finextract-Signature`: HMAC-SHA256 of the body under the secret."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"
