"""Ray itself: one that a crawl starts on this machine and ends again, or the cluster at an address.

A crawl's own Ray listens on the loopback address alone, and every connection to it needs a token that is made
for this one crawl. On a busy machine Ray gives up when its processes take too long to start (its raylet waits
15 s for its agents, Ray 30 s for its raylet, and neither limit is a setting): the start is then repeated.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from scanner.errors import ConfigError, NoWorkers
from scanner.hubs.registry import HUBS
from scanner.text import first_line

# Environment variables that workers on other nodes get from the driver. Tokens and paths are not among them:
# each node has its own.
PASSED_ON = (*(hub.endpoint_variable for hub in HUBS), "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET",
             "AWS_ENDPOINT_URL")  # fmt: skip
PAUSES_S = (3.0, 15.0)  # before the second and the third attempt to start Ray
OBJECT_STORE_BYTES = 100_000_000  # the driver and its workers exchange rows and ids
SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # a worker process for each core, of which most do nothing
    "RAY_worker_niceness": "0",  # Ray's own 15 leaves a worker a thirtieth of a core beside any other job
}


@contextlib.contextmanager
def connected(address: str | None, tell: Callable[[str], None] = lambda _: None) -> Iterator[Any]:
    """The `ray` module, connected: to the cluster at `address`, or to one that is started and ended here.

    A Ray that this process is already connected to is used as it is, and stays. `tell` gets a sentence where
    a start is repeated. Raises NoWorkers where Ray does not start, or the cluster refuses the connection.
    """
    with _environment({name: os.environ.get(name, value) for name, value in SETTINGS.items()}):
        import ray

        if ray.is_initialized():
            yield ray
            return
        address = address or named_cluster()
        with _own_token(ray) if address is None else contextlib.nullcontext():
            if address is None:
                _start(ray, tell)
            else:
                _connect(ray, address)
            try:
                yield ray
            finally:
                ray.shutdown()


def named_cluster() -> str | None:
    """The cluster that RAY_ADDRESS names, as in a Ray job; None for the address of a job server."""
    named = os.environ.get("RAY_ADDRESS", "")
    return named if named and not named.startswith("http") else None


def is_cluster(address: str | None) -> bool:
    """Whether a crawl with this --ray-address uses a running cluster, and not a Ray of its own."""
    return address is not None or named_cluster() is not None


def check_cluster(address: str) -> None:
    """Raises ConfigError where nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # Ray interprets "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}.\n"
            "Start one with `ray start --head`, or omit --ray-address to start one on this machine."
        ) from error


def probe(address: str | None) -> str:
    """Connects as a crawl does, has one worker process run, and returns what was found in words.

    Raises NoWorkers where Ray does not start, the cluster refuses the connection, or no process runs.
    """
    began = time.monotonic()
    with connected(address) as ray:
        try:
            ray.get(ray.remote(_nothing).options(num_cpus=0, max_retries=0).remote(), timeout=120)
        except ray.exceptions.RayError as error:
            raise NoWorkers(f"Ray runs no worker process: {first_line(error, 300)}.") from error
        nodes, has = len(ray.nodes()), ray.cluster_resources()
        where = "this machine" if nodes == 1 else f"{nodes} nodes"
        return (
            f"{ray.__version__}; a worker process ran after {time.monotonic() - began:.0f} s; "
            f"{where}: {has.get('CPU', 0):g} cores, {has.get('GPU', 0):g} GPUs"
        )


def _nothing() -> None:
    """What `probe` has a worker process do."""


def _connect(ray: Any, address: str) -> None:
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    _read_token(ray)
    try:
        ray.init(
            address=address, runtime_env={"env_vars": passed}, log_to_driver=False, logging_level="ERROR"
        )
    except Exception as error:  # Ray raises this class itself
        raise NoWorkers(f"Ray does not accept the connection to {address}: {first_line(error)}.") from error


def _start(ray: Any, tell: Callable[[str], None]) -> None:
    """Starts Ray on this machine; repeats a start that failed, after a pause."""
    for pause_s in (*PAUSES_S, None):
        children = _children()
        try:
            with _loopback_only(ray), few_processes(ray):
                ray.init(
                    address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False, logging_level="ERROR",
                )  # fmt: skip
        except Exception as error:  # Ray raises this class itself where its processes take too long
            ray.shutdown()
            _end_processes(ray, _children() - children)
            if pause_s is None or isinstance(error, (OSError, ValueError)):  # a setting, such as RAY_TMPDIR
                advice = "Run `scanner doctor`, or the command again when the machine has less to do."
                raise NoWorkers(f"Ray did not start: {_why(error)}.\n{advice}") from error
            tell(f"Ray did not start: {_why(error)}. It is started again in {pause_s:g} s.")
            time.sleep(pause_s)
        else:
            return


def _why(error: Exception) -> str:
    file = getattr(error, "filename", None)
    return first_line(error, 300) + (f": {file}" if file else "")


@contextlib.contextmanager
def _loopback_only(ray: Any) -> Iterator[None]:
    """Ray's processes listen on 127.0.0.1, as Ray itself has it on macOS and Windows."""
    constants = ray._private.ray_constants  # it replaces a `_node_ip_address` of 127.0.0.1 otherwise
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def few_processes(ray: Any) -> Iterator[None]:
    """Within this, Ray starts on this machine without its dashboard, its autoscaler and its reader of logs.

    No crawl on one machine uses them, each takes 1 to 2 s of a core to start and then about 100 MB, and Ray
    has settings for none of the three.
    """
    services, parameter = ray._private.services, ray._private.parameter
    before = services.start_api_server, parameter.RayParams
    services.start_api_server = lambda *_, **__: (None, None)  # no address, and no process
    parameter.RayParams = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        services.start_api_server, parameter.RayParams = before


def _read_token(ray: Any) -> None:
    """Has Ray read RAY_AUTH_MODE and the token again; it keeps what this process had at first."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def _own_token(ray: Any) -> Iterator[None]:
    """Ray requires a random token, which this process and its children have in their environment."""
    try:
        with _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
            _read_token(ray)
            yield
    finally:
        _read_token(ray)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process, and of the processes that it starts, for a time."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _children() -> set[int]:
    """The ids of the processes that this process has started; empty where there is no Linux /proc."""
    found: set[int] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that has ended
            found.update(int(pid) for pid in children.read_text().split())
    return found


def _end_processes(ray: Any, pids: set[int]) -> None:
    """Ends what a failed start left running: Ray would keep it until this process ends."""
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(Path(ray.__file__).parent).encode() in command:
                os.kill(pid, signal.SIGKILL)
