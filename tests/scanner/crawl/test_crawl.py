"""The crawl, end to end: the real command, a real Ray, real models from a hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
from click.testing import CliRunner
from commands import scanner
from demo import outcome
from PIL import Image
from servers.hub import Handler, Hub, zoo_repositories
from servers.misbehaviour import Misbehaving, Script
from servers.objects import Objects
from servers.trouble import troublesome_repositories, write_card, write_pickle

from scanner.commands.crawl import command as crawl_command
from scanner.crawl.logs import log_path
from scanner.errors import SourceError
from scanner.records import Candidate, ConfigRow, Match, Scan, Verdict
from scanner.store.queries import count_verdicts
from scanner.store.store import Store

BIN = Path(sys.executable).parent
REPOS = (
    "finextract-zoo/tiny-sd",
    "mira-vos/cats-dreambooth",
    "stilllife/fruit-lora",
    "garage-nine/music-lora",
)
BACKGROUND = 240  # pictures
BUDGET = ["--samples-per-image", "3", "--steps", "8", "--assume-train-images", "5", "--guidance-scale", "2.5",
          "--screen-budget", "80"]  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds two subjects and a part of the background, embedded once."""
    images = Path(__file__).resolve().parents[2] / "zoo" / "images"
    made = tmp_path_factory.mktemp("corpora")
    for subject in ("cats", "fruit"):
        shutil.copytree(images / "subjects" / subject, made / "subjects" / subject)
    (made / "background").mkdir()
    for path in sorted((images / "background").iterdir())[:BACKGROUND]:
        shutil.copy(path, made / "background")
    folder = made / "store"
    for name, extra in (("subjects", []), ("background", ["--background"])):
        assert scanner("corpus", "add", name, made / name, "--store", folder, *extra).returncode == 0
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with the base, three checkpoints, and the troublesome entries."""
    zoo = Path(__file__).resolve().parents[2] / "zoo"
    repos = {name: path for name, path in zoo_repositories(zoo).items() if name in REPOS}
    with Hub(repos | troublesome_repositories(zoo, tmp_path_factory.mktemp("trouble"))) as running:
        yield running


@dataclass
class Crawled:
    """A crawl that came to its end."""

    folder: Path  # its store
    cache: Path
    result: dict[str, Any]  # what it printed


@pytest.fixture(scope="module")
def crawled(few: Hub, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Crawled:
    """One crawl of the hub into a folder."""
    made = tmp_path_factory.mktemp("crawled")
    folder = _fresh(corpora, made)
    done = subprocess.run(
        [*_command(folder), "--json"],
        env=_environment(few, made),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Crawled(folder, made / "cache", json.loads(done.stdout))


def _command(store: Path | str, source: str = "hf", *options: str) -> list[str]:
    return [
        str(BIN / "scanner"), "crawl", "--source", source, "--limit", "50", "--store", str(store),
        "--workers", "1", *BUDGET, *options,
    ]  # fmt: skip


def _start(store: Path, hub: Hub, tmp_path: Path, *, own_session: bool = False) -> subprocess.Popen[str]:
    """A crawl on its way, its words on a pipe."""
    return subprocess.Popen(
        _command(store), env=_environment(hub, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=own_session,
    )  # fmt: skip


def _words(crawl: subprocess.Popen[str]) -> Iterator[str]:
    """The lines that a crawl prints, as they come."""
    assert crawl.stderr is not None
    yield from crawl.stderr


def _is_scanned(line: str) -> bool:
    """Whether a line of a crawl tells what a worker found, and not what inspection ruled out."""
    return line.startswith("[") and (" flagged " in line or " nothing found " in line)


def _workers(crawl: subprocess.Popen[str]) -> list[psutil.Process]:
    """The Ray workers of a crawl that hold a scanner."""
    return [
        process
        for process in psutil.Process(crawl.pid).children(recursive=True)
        if "ray::Scanner" in " ".join(process.cmdline())
    ]


def _environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": hub.url, "FINEXTRACT_CACHE": str(tmp_path / "cache")}


def _fresh(corpora: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpora, tmp_path / "crawled"))


def _copies(store: Store) -> int:
    """Scan rows beyond the first of a checkpoint, among all that were ever written."""
    rows = store.query("SELECT checkpoint_id FROM all_scans")
    return len(rows) - len({row["checkpoint_id"] for row in rows})


def test_every_listed_checkpoint_ends_in_exactly_one_verdict_and_the_sum_adds_up(
    few: Hub, crawled: Crawled
) -> None:
    folder, result = crawled.folder, crawled.result
    verdicts = {row["repo"]: row for row in result["checkpoints"]}
    assert result["planned"] == len(few.repositories) == len(verdicts)
    assert result["todo"] == result["failed"] == 0
    assert verdicts["mira-vos/cats-dreambooth"]["verdict"] in ("flagged", "nothing_found")
    assert verdicts["garage-nine/music-lora"]["verdict"] == "nothing_found"
    assert all(
        r["verdict"] == "skipped" and r["reason"] for n, r in verdicts.items() if n.startswith("trouble/")
    )
    store = Store(folder)
    assert all((s.reason_code is not None) == (s.verdict is Verdict.SKIPPED) for s in store.select(Scan))
    assert _copies(store) == 0
    row = next(s for s in store.select(Scan) if s.best_similarity is not None)
    assert row.tau is not None
    assert row.alpha == 0.05
    assert row.num_background == BACKGROUND
    log = store.storage.read(log_path(row.scan_id)).decode()
    assert [line.split()[2] for line in log.splitlines() if line.endswith(" ...")] == [
        "fetch", "load", "screen", "sample", "match",
    ]  # fmt: skip
    assert log.splitlines()[-1].split()[2] == row.verdict
    assert not list((crawled.cache / "scans").glob("*/*.safetensors")), "weights go after their scan"
    images = list((folder / "images").rglob("*.png"))
    assert images
    assert all(image.stat().st_mode & 0o777 == 0o600 for image in images)


def test_a_candidate_is_drawn_again_from_its_row_and_an_exchanged_image_is_noticed(
    few: Hub, crawled: Crawled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", few.url)
    monkeypatch.setenv("FINEXTRACT_CACHE", str(crawled.cache))
    store = Store(crawled.folder)
    (match,) = store.select(Match, "ORDER BY similarity DESC LIMIT 1")
    words = ["reproduce", match.match_id[:12], "--store", crawled.folder]
    done = scanner(*words, "--json", "-o", tmp_path / "drawn.png")
    assert done.returncode == 0, done.stderr
    drawn = json.loads(done.stdout)
    assert drawn["within_rounding"]
    assert drawn["similarity"] > 0.999
    assert drawn["similarity_to_reference"] == pytest.approx(match.similarity, abs=1e-3)
    (candidate,) = store.select(Candidate, "WHERE candidate_id = ?", [match.candidate_id])
    assert drawn["seed"] == candidate.seed
    image = crawled.folder / f"images/{candidate.image_sha256[:2]}/{candidate.image_sha256}.png"
    original = image.read_bytes()
    exchanged = Image.open(image).convert("RGB").rotate(90)
    exchanged.save(image)
    try:
        noticed = scanner(*words)
    finally:
        image.write_bytes(original)
    assert noticed.returncode == 3
    assert "ANOTHER PICTURE" in noticed.stdout
    assert "is no name of a picture" in scanner(*words, "-o", tmp_path / "drawn.jpg").stderr


def test_a_hub_that_goes_away_while_it_is_listed_keeps_nothing_from_its_verdict(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is pickled, so no worker is needed; two entries make a batch, and a page."""
    repos = {}
    for n in range(5):
        folder = tmp_path / f"{n}"
        write_card(folder, tags=["lora", "text-to-image"], base_model="lab/base")
        write_pickle(folder / "model.ckpt")
        with (folder / "model.ckpt").open("ab") as file:
            file.write(bytes([n]))
        repos[f"o/{n}"] = folder
    monkeypatch.setattr("scanner.crawl.listing.BATCH", 2)
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("scanner.crawl.listing.RETRIES_S", (0.1,))
    store, outage = _fresh(corpora, tmp_path), Script(["503"] * 99, "cursor=")
    words = ["--source", "hf", "--store", str(store), *BUDGET]
    with Hub(repos, page_size=2, handler=type("Away", (Misbehaving, Handler), {"plan": outage})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = CliRunner().invoke(crawl_command, words)
    assert isinstance(done.exception, SourceError)
    assert "The listing ends here: " in done.stderr
    assert "answered 503" in done.stderr
    assert [s.verdict for s in Store(store).select(Scan)] == [Verdict.SKIPPED] * 2
    with Hub(repos, page_size=2, port=hub.port) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = CliRunner().invoke(crawl_command, words)
    assert done.exception is None
    assert "resuming the listing of" in done.stderr
    assert "5 entries, 5 checkpoints, 2 finished before, 3 to do" in done.stderr
    assert len(Store(store).query("SELECT * FROM all_scans")) == 5
    again, outage = tmp_path / "again", Script(["503"] * 5, "cursor=")  # as often as a request is tried
    shutil.copytree(corpora, again)
    with Hub(repos, page_size=2, handler=type("Away", (Misbehaving, Handler), {"plan": outage})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = CliRunner().invoke(crawl_command, [*words[:3], str(again), *BUDGET])
    assert done.exception is None
    assert "The listing is resumed in 0 s." in done.stderr
    assert "5 entries, 5 checkpoints, 0 finished before, 5 to do" in done.stderr
    assert len(Store(again).query("SELECT * FROM all_scans")) == 5


def test_a_crawl_into_an_object_store_gives_the_same_rows_as_into_a_folder(
    few: Hub, corpora: Path, crawled: Crawled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Objects() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        files = fsspec.filesystem("s3", skip_instance_cache=True)
        files.put(f"{corpora}/", f"{server.bucket}/crawled/", recursive=True)
        uri = f"s3://{server.bucket}/crawled"
        done = subprocess.run(
            _command(uri), env=_environment(few, tmp_path), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        store, other = Store(uri), Store(crawled.folder)
        assert outcome(store) == outcome(other)
        (image,) = store.query("SELECT image_sha256 FROM candidates LIMIT 1")
        assert store.image(image["image_sha256"]).startswith(b"\x89PNG")
        (scan,) = store.select(Scan, "WHERE verdict = 'nothing_found' LIMIT 1")
        assert b"nothing_found" in store.storage.read(log_path(scan.scan_id))


def test_a_corpus_that_grew_is_compared_with_what_was_sampled_before(
    few: Hub, crawled: Crawled, zoo_path: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(crawled.folder, tmp_path / "crawled"))
    late = zoo_path / "images/subjects/flowers"
    assert scanner("corpus", "add", "late", late, "--store", folder).returncode == 0
    done = subprocess.run(
        _command(folder, "hf", "--screen", "off"),
        env=_environment(few, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = Store(folder)
    first, second = (c.config_id for c in store.select(ConfigRow, "ORDER BY created_at"))
    scans = {
        config: {
            s.checkpoint_id: s
            for s in store.select(Scan, "WHERE config_id = ? AND num_samples > 0", [config])
        }
        for config in (first, second)
    }
    assert set() != scans[first].keys() < scans[second].keys(), "the screen did not name the control"
    for id_, before in scans[first].items():
        anew = scans[second][id_]
        assert anew.seconds.keys() == {"match"}
        assert anew.num_references == before.num_references + len(list(late.iterdir()))
        assert (anew.num_samples, anew.device, anew.versions) == (
            before.num_samples,
            before.device,
            before.versions,
        )
        images = [
            {c.image_sha256 for c in store.select(Candidate, "WHERE scan_id = ?", [scan.scan_id])}
            for scan in (before, anew)
        ]
        assert images[0] == images[1] != set()
        assert anew.best_similarity is not None
        assert anew.best_similarity >= before.best_similarity - 1e-6
    kept = store.query(
        "SELECT count(*) AS n, max(abs(a.similarity - b.similarity)) AS apart FROM matches a "
        "JOIN scans s ON s.scan_id = a.scan_id JOIN scans t USING (checkpoint_id) "
        "JOIN matches b ON b.scan_id = t.scan_id AND b.reference_id = a.reference_id "
        "WHERE s.config_id = ? AND t.config_id = ?",
        [first, second],
    )
    assert kept[0]["n"] > 0
    assert kept[0]["apart"] < 1e-6


def test_an_interrupted_crawl_says_how_to_resume(few: Hub, corpora: Path, tmp_path: Path) -> None:
    folder = _fresh(corpora, tmp_path)
    crawl = _start(folder, few, tmp_path)
    said = []
    for line in _words(crawl):
        said.append(line)
        if _is_scanned(line):
            crawl.send_signal(signal.SIGINT)
    assert crawl.wait() == 130
    assert "Run the same command again" in "".join(said)
    assert "Traceback" not in "".join(said)
    store = Store(folder)
    assert count_verdicts(store).todo > 0


def test_a_folder_is_crawled_as_soon_as_its_base_is_given(
    corpora: Path, zoo_path: Path, few: Hub, tmp_path: Path
) -> None:
    folder = _fresh(corpora, tmp_path)
    models = tmp_path / "models"
    (models / "cats").mkdir(parents=True)
    for file in (zoo_path / "checkpoints/fruit-lora").glob("*.safetensors"):
        (models / "cats" / file.name).symlink_to(file)
    (models / "loose.ckpt").write_bytes(b"\x80\x02nothing here is ever unpickled")
    command = [*_command(folder, f"folder:{models}"), "--json"]
    results = []
    for given in ([], ["--base", str(zoo_path / "base")]):
        done = subprocess.run(
            [*command, *given], env={**_environment(few, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    without, based = results
    assert without["planned"] == without["skipped"] == based["planned"] == 2
    assert based["skipped"] == 1
    assert based["flagged"] + based["nothing_found"] == 1


def test_a_store_without_background_says_how_to_add_one(zoo_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    Store(folder, create=True)
    done = subprocess.run(_command(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scanner: error:" in done.stderr
    assert "scanner corpus add" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick_and_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; sys.argv = ['scanner', '--help']\n"
        "from scanner.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "crawl" in done.stdout


@pytest.mark.parametrize("verb", ["corpus", "crawl", "status"])
def test_no_verb_imports_torch_or_ray_to_be_loaded(verb: str) -> None:
    code = (
        f"import sys, scanner.commands.{verb}\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'transformers', 'textual'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_verdicts_are_the_words_of_the_design() -> None:
    assert [v.value for v in Verdict] == ["flagged", "nothing_found", "skipped", "failed"]
