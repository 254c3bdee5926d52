"""What the tests share: the zoo, a fresh store, a hub on loopback, and surroundings that reach no network.

`scanner`, `finextract` and `tui` are also folders of tests, so the root of the project comes first on the
path.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

# The tests run in a few processes on two cores: each computes with one thread, and none spins while it waits.
# Ray gives its workers a low priority, with which they would wait for whatever test runs beside theirs.
os.environ.update(
    OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", RAY_worker_niceness="0"
)  # fmt: skip
# huggingface_hub reads these when it is imported.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("HF_TOKEN", None)

from servers.hub import Hub, zoo_repositories  # noqa: E402
from servers.trouble import troublesome_repositories  # noqa: E402

from scanner.store.store import Store  # noqa: E402

# The speed at which a machine makes examples is not tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LONGEST = "test_reliability.py"
CRAWLS = ROOT / "tests/scanner/crawl"  # a test takes seconds to minutes there
NOWHERE = "http://127.0.0.1:9"  # refuses every connection


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a GPU is listed as not run where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process ends long before the other."""
    tests = Counter(item.path for item in items)

    def rank(item: pytest.Item) -> tuple[object, ...]:
        return item.path.name != LONGEST, CRAWLS not in item.path.parents, -tests[item.path]

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What was imported is left out of garbage collection, a sixth of the time of some tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolates a test: no public hub, no user settings, no existing store or cache."""
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("CIVITAI_ENDPOINT", NOWHERE)
    monkeypatch.setenv("FINEXTRACT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("FINEXTRACT_CACHE", str(tmp_path / "downloads"))
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("HF_TOKEN", "CIVITAI_TOKEN", "CIVITAI_API_TOKEN", "HF_HUB_OFFLINE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def zoo_path() -> Path:
    """The zoo: small real checkpoints, listed in zoo.json."""
    zoo = ROOT / "tests" / "zoo"
    if not (zoo / "zoo.json").is_file():
        pytest.skip("the zoo has not been built: run tests/zoo/build.py")
    return zoo


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A fresh store."""
    return Store(tmp_path / "store", create=True)


@pytest.fixture
def hub(zoo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback that serves the zoo and the troublesome entries; HF_ENDPOINT names it."""
    repos = zoo_repositories(zoo_path) | troublesome_repositories(zoo_path, tmp_path / "trouble")
    with Hub(repos) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
