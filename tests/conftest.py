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

# The files that take longest, by about how many seconds: those that wait for Ray, and those that compute.
WAITING = {
    "test_crawl.py": 175, "test_engine.py": 120, "test_reliability.py": 85, "test_job.py": 60,
    "test_nightly.py": 55, "test_families.py": 45, "test_service.py": 45, "test_gpu.py": 40,
    "test_listing.py": 38, "test_autoscaling.py": 35, "test_cluster.py": 35,
}  # fmt: skip
COMPUTING = {
    "test_screening.py": 115, "test_store.py": 60, "test_zoo_membership.py": 55, "test_comparisons.py": 50,
    "test_adapter_kinds_full_size.py": 34, "test_zoo_models.py": 30, "test_civitai.py": 25,
    "test_commands.py": 25, "test_desk_decisions.py": 25, "test_desk_exports.py": 22, "test_patience.py": 20,
    "test_learned_words.py": 19, "test_verbs.py": 18, "test_delta.py": 16, "test_rematching.py": 16,
    "test_gpu_paths.py": 15, "test_z_image.py": 14, "test_planning.py": 13, "test_unet_families.py": 13,
    "test_base_files.py": 12, "test_desk_checkpoint.py": 12, "test_desk_focus.py": 12,
    "test_desk_memberships.py": 11, "test_flow_full_size.py": 11, "test_formats.py": 10,
    "test_single_file_bases.py": 10, "test_pictures.py": 10, "test_pickles.py": 10, "test_desk_list.py": 10,
    "test_public_names.py": 9, "test_isolated.py": 8, "test_chroma.py": 8, "test_flow_files.py": 8,
    "test_huggingface.py": 8, "test_adapters.py": 7,
}  # fmt: skip
NOWHERE = "http://127.0.0.1:9"  # refuses every connection


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What needs a GPU is listed as not run where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first; those that wait for Ray go to one of two processes while there are any.

    A core idles while both processes wait. Files are handed out in this order, each to the process that has
    at most two tests left.
    """
    tests = Counter(item.path for item in items)
    seconds = {file: (WAITING | COMPUTING).get(file.name, 0.04 * count) for file, count in tests.items()}
    longest = sorted(tests, key=lambda file: -seconds[file])
    waiting = [file for file in longest if file.name in WAITING]
    lanes = [waiting, [file for file in longest if file not in waiting]]
    order: list[Path] = []
    ends, asks = [0.0, 0.0], [0.0, 0.0]
    while any(lanes):
        lane = min((n for n in (0, 1) if lanes[n]), key=lambda n: asks[n])
        file = lanes[lane].pop(0)
        order.append(file)
        ends[lane] += seconds[file]
        asks[lane] = ends[lane] - seconds[file] * min(1.0, 2 / tests[file])
    rank = {file: n for n, file in enumerate(order)}
    items.sort(key=lambda item: rank[item.path])


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
