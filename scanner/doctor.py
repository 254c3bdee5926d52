"""Checks of what a crawl needs, each with a way to fix it. Shows no secrets and changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from scanner.config import default_cache
from scanner.errors import ScannerError
from scanner.hubs import http
from scanner.hubs.addresses import trust
from scanner.hubs.deadlines import SMALL, limited
from scanner.hubs.problems import what_happened
from scanner.hubs.registry import HUBS, Hub
from scanner.store.delta import LOG
from scanner.store.storage import open_storage
from scanner.store.store import MARKER
from scanner.text import first_line, printable
from scanner.units import show_size
from scanner.wording import count

if TYPE_CHECKING:
    from scanner.crawl.delivery import Notify

TIMEOUT_S = 8.0
LITTLE_BYTES = 20_000_000_000  # of free disk space, below which few checkpoints fit


class State(StrEnum):
    """The result of a check."""

    GOOD = "ok"
    POOR = "note"  # a crawl works, but could work better
    BAD = "wrong"  # a crawl cannot work


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    state: State
    finding: str
    remedy: str = ""  # how to fix or improve it


def examine(
    store: str, ray_address: str | None, notify: Callable[[], Notify | None] = lambda: None
) -> Iterator[Check]:
    """Runs every check and yields its result. Raises nothing for what a check finds."""
    checks: tuple[Callable[[], Check], ...] = (
        check_torch,
        check_sscd,
        lambda: check_ray(ray_address),
        lambda: check_store(store),
        lambda: check_disk("cache", default_cache()),
        *((lambda hub=hub: check_hub(hub)) for hub in HUBS),
        *((lambda hub=hub: check_token(hub)) for hub in HUBS),
        lambda: check_notify(store, notify),
        check_isolation,
    )
    for check in checks:
        yield check()


def check_torch() -> Check:
    """The version of torch, and the GPUs that it can use."""
    from scanner.crawl.worker import devices

    try:
        found = devices()
    except (ImportError, OSError, RuntimeError) as error:
        return Check("torch", State.BAD, f"cannot be used: {error}", "Run `make setup` again.")
    finding = f"{version('torch')}, " + (
        ", ".join(f"{n} ({show_size(size)})" for n, size in found) or "CPU only"
    )
    if found:
        return Check("torch", State.GOOD, finding)
    return Check("torch", State.POOR, finding, "Without a GPU, the scan of a real checkpoint takes hours.")


def check_sscd() -> Check:
    """The weights of the descriptor, and their SHA256."""
    from scanner.crawl.worker import sscd_weights

    try:
        name, path = sscd_weights()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (ImportError, OSError) as error:
        return Check("SSCD", State.BAD, f"its weights cannot be read: {error}", "Run `make setup` again.")
    return Check("SSCD", State.GOOD, f"{name}, {show_size(path.stat().st_size)}, SHA256 {digest[:16]}...")


def check_ray(address: str | None) -> Check:
    """Whether Ray starts on this machine as for a crawl, or the cluster at an address accepts a worker."""
    from scanner.crawl.cluster import check_cluster, named_cluster, probe

    address = address or named_cluster()
    try:
        if address:
            check_cluster(address)
        return Check("Ray", State.GOOD, probe(address))
    except ScannerError as error:
        finding, _, remedy = str(error).partition("\n")
        remedy = remedy or "Check RAY_AUTH_TOKEN, and the version of Ray there."
        return Check("Ray", State.BAD, finding, remedy)


def check_store(uri: str) -> Check:
    """The format of the store, and its disk, or whether its object store answers."""
    try:
        names = open_storage(uri).names(MARKER)
    except (OSError, ScannerError) as error:
        remedy = "Check AWS_ENDPOINT_URL, the credentials, and the bucket's name."
        return Check("store", State.BAD, f"{uri} does not answer: {first_line(error)}", remedy)
    if names and LOG not in names:
        remedy = f"Run `scanner migrate --store {uri}`."
        return Check("store", State.BAD, f"{uri} has the format of an older version", remedy)
    if "://" not in uri:
        return check_disk("store", Path(uri))
    return Check("store", State.GOOD, f"{uri}{'' if names else ', not created yet'}")


def check_disk(name: str, folder: Path) -> Check:
    """Whether a folder can be written, and the free space of its disk."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    finding = f"{folder}, {show_size(free)} free" + (
        "" if there == folder.absolute() else ", not created yet"
    )
    if not os.access(there, os.W_OK):
        return Check(
            name, State.BAD, f"{folder} cannot be written", "Use another folder, or change its permissions."
        )
    if free < LITTLE_BYTES:
        return Check(
            name, State.POOR, finding, f"Less than {show_size(LITTLE_BYTES)}: use a small --cache-size."
        )
    return Check(name, State.GOOD, finding)


def check_hub(hub: Hub) -> Check:
    """Whether a hub answers, and the limits that it states."""
    name, variable = hub.name, hub.endpoint_variable
    endpoint = os.environ.get(variable) or hub.endpoint
    try:
        endpoint = trust(endpoint)
        with limited(SMALL), http.new_session() as session:
            answer = session.get(endpoint + hub.probe, timeout=TIMEOUT_S)
        limits = answer.headers.get("RateLimit") or answer.headers.get("Retry-After") or ""
        kind = answer.headers.get("Content-Type", "")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ScannerError) as error:
        why = what_happened(error, endpoint)
        remedy = f"Check the network and its proxy, or {variable}."
        return Check(name, State.BAD, f"{endpoint} does not answer: {why}", remedy)
    shown = f"; limits: {printable(limits, 100)}" if limits else ""
    if answer.status_code == 429:
        return Check(name, State.POOR, f"{endpoint} limits requests now{shown}", "A crawl waits for it.")
    if answer.status_code != 200 or "json" not in kind:
        finding = f"{endpoint} answers {answer.status_code}, which is not the answer of a hub{shown}"
        return Check(name, State.BAD, finding, f"Check {variable}, and that no proxy answers instead.")
    return Check(name, State.GOOD, f"{endpoint} answers{shown or '; it states no limits'}")


def check_token(hub: Hub) -> Check:
    """Whether the token of a hub is set; its value is never shown."""
    name = hub.token_variable
    there = bool(os.environ.get(name, "").strip())
    if name == "HF_TOKEN" and not there:
        from huggingface_hub import get_token

        there = get_token() is not None
    if there:
        return Check(name, State.GOOD, "set (not shown)")
    return Check(name, State.POOR, "not set", f"Without it {hub.without_token}.")


def check_notify(store: str, setting: Callable[[], Notify | None]) -> Check:
    """Whether anybody is told of new flags, and whether messages wait."""
    from scanner.crawl.delivery import SECRET_VARIABLE
    from scanner.crawl.outbox import Outbox

    try:
        notify = setting()
    except ScannerError as error:
        return Check("notify", State.BAD, first_line(error), "Correct [notify] in scanner.toml.")
    if notify is None:
        return Check("notify", State.GOOD, "not set: new flags are recorded, and nobody is told")
    signed = "signed" if os.environ.get(SECRET_VARIABLE) else f"not signed: {SECRET_VARIABLE} is not set"
    finding = f"{notify}" + (f", {signed}" if notify.webhook else "")
    try:
        waiting = len(Outbox(open_storage(store), "doctor").waiting())
    except (OSError, ScannerError):  # which the check of the store says
        waiting = 0
    if waiting:
        remedy = "Run `scanner notify` to send them, or `scanner notify --test` to see what fails."
        return Check("notify", State.POOR, f"{finding}; {count(waiting, 'message')} not delivered", remedy)
    return Check("notify", State.GOOD, finding)


def check_isolation() -> Check:
    """Whether a process can be isolated from files, network and other processes, as --allow-pickle needs."""
    from scanner.hubs.pickles import isolation_error

    error = isolation_error()
    if error is None:
        found = "a process can be isolated from files, network and other processes on this machine"
        return Check("--allow-pickle", State.GOOD, found)
    return Check(
        "--allow-pickle", State.POOR, f"no process can be isolated on this machine: {error}",
        "Without that no pickle is opened. It needs Linux 5.12 or newer and user namespaces, which most "
        "containers do not allow.",
    )  # fmt: skip
