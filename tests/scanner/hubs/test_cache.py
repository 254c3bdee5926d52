"""Caps, checks, resuming, and that a scan's download goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from servers.hub import File, Handler, Hub
from servers.trouble import lora_shapes, small_tensors, write_card, write_safetensors

from scanner.errors import ConfigError, Skipped, Unavailable
from scanner.hashing import sha256_of
from scanner.hubs.base import Query
from scanner.hubs.base_fetcher import BaseFetcher
from scanner.hubs.cache import DownloadCache, check_room, locked
from scanner.hubs.fetching import LocalFiles, fetched
from scanner.hubs.huggingface.source import HuggingFaceSource
from scanner.records import Checkpoint
from scanner.units import parse_size, show_size

FILE = "sks.safetensors"


class Dropping(Handler):
    """Closes the connection in the middle of a large file, once for each file; the next request is served."""

    dropped: ClassVar[set[str]] = set()
    honours_ranges = True

    def send_content(self, file: File, headers: dict[str, str]) -> None:
        if file.path == FILE and not self.headers.get("Range") and file.sha256 not in self.dropped:
            self.dropped.add(file.sha256)
            content = file.source.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        if not self.honours_ranges and self.headers.get("Range", "bytes=0-").split("=")[1] != "0-100000":
            del self.headers["Range"]
        super().send_content(file, headers)


class Restarting(Dropping):
    """As above, and serves from the start whatever range is asked for."""

    dropped: ClassVar[set[str]] = set()
    honours_ranges = False


class Endless(Handler):
    """Sends more than it listed; `sent` counts megabytes."""

    sent = 0

    def send_content(self, file: File, headers: dict[str, str]) -> None:
        if file.path != FILE or self.headers.get("Range"):
            super().send_content(file, headers)
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for _ in range(64):
            self.wfile.write(b"x" * 1_000_000)
            Endless.sent += 1


@pytest.fixture
def repos(tmp_path: Path) -> dict[str, Path]:
    """A base and a LoRA."""
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    write_safetensors(base / "unet/diffusion_pytorch_model.safetensors", small_tensors({"w": (4, 4)}))
    (base / "model_index.json").write_text("{}")
    write_card(tuned, base_model="lab/base", instance_prompt="a sks", tags=["lora", "text-to-image"])
    tensors = {
        **small_tensors(lora_shapes()),
        "unet.more.alpha": ("U8", (300_000,), bytes(range(250)) * 1200),
    }
    write_safetensors(tuned / FILE, tensors)
    return {"lab/base": base, "o/tuned": tuned}


def inspected(source: HuggingFaceSource) -> Checkpoint:
    return source.inspect(next(c for c in source.list(Query(10)) if c.repo == "o/tuned"))


def served(repos: dict[str, Path], **options: Any) -> tuple[Hub, HuggingFaceSource]:
    hub = Hub(repos, **options)
    return hub, HuggingFaceSource(endpoint=hub.url)


def files_of(
    hub: Hub, source: HuggingFaceSource, checkpoint: Checkpoint, cache: Path, **options: Any
) -> AbstractContextManager[LocalFiles]:
    return fetched(source, BaseFetcher(hub_endpoint=hub.url), checkpoint, DownloadCache(cache, **options))


def test_a_checkpoint_is_removed_after_its_scan_and_its_base_is_kept(
    repos: dict[str, Path], tmp_path: Path
) -> None:
    hub, source = served(repos)
    cache = tmp_path / "cache"
    with hub:
        with files_of(hub, source, inspected(source), cache) as files:
            weights, base = files.weights, files.base.model
            assert sha256_of(weights) == sha256_of(repos["o/tuned"] / FILE)
            assert (base / "model_index.json").is_file()
        assert not weights.exists()
        assert list((cache / "scans").iterdir()) == []
        assert (base / "model_index.json").is_file()


def test_kept_weights_are_not_downloaded_again(repos: dict[str, Path], tmp_path: Path) -> None:
    hub, source = served(repos)
    with hub:
        checkpoint = inspected(source)
        for _ in range(2):
            with fetched(
                source,
                BaseFetcher(hub_endpoint=hub.url),
                checkpoint,
                DownloadCache(tmp_path / "cache", keep=True),
            ) as files:
                pass
        assert checkpoint.sha256 is not None
        assert (tmp_path / "cache/weights" / checkpoint.sha256[:2] / checkpoint.sha256).is_file()
        assert not files.weights.exists(), "the link goes with its scan, the file stays"
        whole = [r for r in hub.requests if r[1].endswith(FILE) and "resolve" in r[1] and r[2] is None]
        assert len(whole) == 1


def test_an_unfinished_download_is_resumed_by_the_next_crawl(repos: dict[str, Path], tmp_path: Path) -> None:
    hub, source = served(repos)
    content = (repos["o/tuned"] / FILE).read_bytes()
    with hub:
        checkpoint = inspected(source)
        assert checkpoint.sha256 is not None
        part = tmp_path / "cache/weights" / checkpoint.sha256[:2] / f"{checkpoint.sha256}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(content[:1000])  # as a killed process leaves it
        with files_of(hub, source, checkpoint, tmp_path / "cache") as files:
            assert files.weights.read_bytes() == content
    assert "bytes=1000-" in [r[2] for r in hub.requests]
    assert not part.exists()


def test_a_partial_file_of_other_content_is_discarded(repos: dict[str, Path], tmp_path: Path) -> None:
    hub, source = served(repos)
    with hub:
        checkpoint = inspected(source)
        assert checkpoint.sha256 is not None
        part = tmp_path / "cache/weights" / checkpoint.sha256[:2] / f"{checkpoint.sha256}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 1000)
        with (
            pytest.raises(Unavailable, match="not what was listed"),
            files_of(hub, source, checkpoint, tmp_path / "cache"),
        ):
            pass
        assert not part.exists()
        with files_of(hub, source, checkpoint, tmp_path / "cache") as files:
            assert sha256_of(files.weights) == checkpoint.sha256


def _complete(content: bytes) -> Callable[[Path], None]:
    return lambda part: part.write_bytes(content) and None


def test_the_least_recently_used_file_is_evicted_first_and_none_in_use(tmp_path: Path) -> None:
    def get(downloads: DownloadCache, name: str) -> Path:
        return downloads.get(name * 64, 100, name, _complete(b"x" * 100), stays=True)

    options: dict[str, Any] = {"cache_bytes": 250}
    with DownloadCache(tmp_path, **options) as first:
        old = get(first, "a")
    with DownloadCache(tmp_path, **options) as second:
        newer = get(second, "b")
        os.utime(old, (1, 1))
        with DownloadCache(tmp_path, **options) as third:
            newest = get(third, "c")
            assert (old.exists(), newer.exists(), newest.exists()) == (False, True, True)
            with (
                pytest.raises(Unavailable, match="all 200 bytes are in use"),
                DownloadCache(tmp_path, **options) as fourth,
            ):
                get(fourth, "d")
    with DownloadCache(tmp_path, **options) as fifth:
        get(fifth, "d")
    assert not newer.exists()


def test_two_processes_that_need_a_file_download_it_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from scanner.hubs.cache import DownloadCache\n"
        "def download(part):\n"
        "    with open(sys.argv[2], 'a') as log: log.write('once\\n')\n"
        "    time.sleep(2); part.write_bytes(b'x' * 100)\n"
        "with DownloadCache(Path(sys.argv[1])) as downloads:\n"
        "    print(downloads.get('a' * 64, 100, 'a', download, stays=True).stat().st_size)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "log")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["100", "100"]
    assert (tmp_path / "log").read_text() == "once\n"


def test_a_checkpoint_is_removed_when_its_scan_fails(repos: dict[str, Path], tmp_path: Path) -> None:
    hub, source = served(repos)
    with (
        hub,
        pytest.raises(RuntimeError),
        files_of(hub, source, inspected(source), tmp_path / "cache") as files,
    ):
        raise RuntimeError
    assert not files.weights.exists()


def test_the_next_scan_removes_what_a_killed_process_left(repos: dict[str, Path], tmp_path: Path) -> None:
    hub, source = served(repos)
    cache = tmp_path / "cache"
    code = (
        "import sys, time; from pathlib import Path; from scanner.hubs.fetching import _scratch\n"
        "with _scratch(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_bytes(b'x'); print(folder, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with hub:
        checkpoint = inspected(source)
        with files_of(hub, source, checkpoint, cache):
            assert (left / "weights").exists()  # another process is at work there
        process.kill()
        process.wait()
        with files_of(hub, source, checkpoint, cache):
            assert not left.exists()


@pytest.mark.parametrize("handler", [Dropping, Restarting])
def test_a_broken_download_is_resumed(
    handler: type[Dropping], repos: dict[str, Path], tmp_path: Path
) -> None:
    handler.dropped = set()
    hub, source = served(repos, handler=handler)
    with (
        hub,
        files_of(hub, source, inspected(source), tmp_path / "cache") as files,
    ):
        assert sha256_of(files.weights) == sha256_of(repos["o/tuned"] / FILE)
    ranges = [r[2] for r in hub.requests if r[1].endswith(FILE) and "resolve" in r[1]]
    size = (repos["o/tuned"] / FILE).stat().st_size
    assert ranges == ["bytes=0-100000", None, f"bytes={size // 2}-"]


def test_a_download_stops_at_the_first_byte_too_many(repos: dict[str, Path], tmp_path: Path) -> None:
    hub, source = served(repos, handler=Endless)
    Endless.sent = 0
    with (
        hub,
        pytest.raises(Skipped, match="is larger than"),
        files_of(hub, source, inspected(source), tmp_path / "c"),
    ):
        pass
    assert Endless.sent < 64, "the connection was closed"
    sha256 = sha256_of(repos["o/tuned"] / FILE)
    assert not list((tmp_path / "c/weights").glob(f"*/{sha256}*"))


def test_more_than_the_disk_has_to_spare_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Make room there"):
        check_room(1 << 49, tmp_path, 1 << 50, "o/a")
    with pytest.raises(Skipped, match=r"o/a is 7\.0 GB, and at most 2\.0 GB are fetched"):
        check_room(7_000_000_000, tmp_path, 2_000_000_000, "o/a")


def test_a_lock_holds_off_another_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock), pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
    with locked(tmp_path / "lock", wait=False):
        assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("2GB", 2 * 10**9),
        ("500MB", 5 * 10**8),
        ("1.5 GiB", 3 * 2**29),
        ("1000", 1000),
        ("10k", 10_000),
        ("7B", 7),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GB", "two", "-1GB", "1e9", "1XB", "1IB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="500MB"):
        parse_size(text)


def test_sizes_are_shown_for_people() -> None:
    assert [show_size(n) for n in (0, 999, 1500, 10**9, 999 * 10**9)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "1.0 GB",
        "999 GB",
    ]


@pytest.mark.parametrize("moved", [False, True])
def test_a_base_that_another_worker_fetches_again_never_misses_a_file(
    zoo_path: Path, tmp_path: Path, moved: bool
) -> None:
    """The other worker may be loading it at that moment, and would find the base damaged."""

    def fetch() -> Path:
        return BaseFetcher(hub_endpoint=hub.url).fetch("lab/base", DownloadCache(tmp_path / "cache")).model

    def watch() -> None:
        while not done.is_set():
            missing.extend(link for link in links if not link.is_symlink())

    missing, done = list[Path](), threading.Event()
    with Hub({"lab/base": zoo_path / "base"}) as hub:
        links = [path for path in fetch().rglob("*.safetensors") if path.is_symlink()]
        assert links
        watching = threading.Thread(target=watch)
        watching.start()
        for _ in range(20):
            if moved:  # a link that leads to another place than the cache has the file now
                for link in links:
                    (tmp_path / "new").symlink_to(tmp_path / "elsewhere")
                    (tmp_path / "new").replace(link)
            fetch()
        done.set()
        watching.join()
    assert missing == []
    assert all(link.is_file() for link in links)
