"""`scanner report`: what a page says, that it stands alone, and that no text from a hub can act in it."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filled_store import Crawl

from scanner.cli import cli
from scanner.config import ScanConfig
from scanner.records import ReviewDecision, Verdict
from scanner.store.store import Store

HOSTILE = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    folder = tmp_path_factory.mktemp("report")
    (folder / "mine").mkdir()
    made = Crawl(Store(folder / "store", create=True), folder / "mine")
    made.flagged("anna/style", (0.81, 0.4), 0.004, margins=(0.3, 0.02), of_corpus=0.2)
    made.flagged(HOSTILE, (0.91,), 0.002, margins=(0.3,), checkpoint={"license": "<img src=x onerror=y>"})
    made.flagged("kim/unconfirmed", (0.7,), 0.01)
    made.scan("kim/plain", Verdict.NOTHING_FOUND)
    made.scan("kim/broken", Verdict.SKIPPED, reason="the file is a pickle")
    made.list("kim/to-do")
    made.decide(made.matches["anna/style"][0].match_id, ReviewDecision.CONFIRM, "rosa <b>")
    corpora = {"mine": "reference:d1", "background": "background:d2"}
    config_id = made.scans["anna/style"].config_id
    made.store.append([replace(ScanConfig(corpora=corpora).row(), config_id=config_id)])
    return made


def report(crawl: Crawl, out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["report", "-o", str(out), "--store", str(crawl.store.root), *words])


def page(crawl: Crawl, out: Path, *words: str) -> str:
    done = report(crawl, out, *words)
    assert done.exit_code == 0, done.output
    return out.read_text()


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_says_what_was_found_what_was_not_claimed_and_how_to_check_it(
    crawl: Crawl, tmp_path: Path
) -> None:
    text = " ".join(Tags(page(crawl, tmp_path / "a.html", "anna/style")).text.split())
    match, scan = crawl.matches["anna/style"][0], crawl.scans["anna/style"]
    for part in (
        "Flagged: it was trained on images that were looked for and it gives such images back",
        "1 image came back", "1 image was among the training images",
        "It does not say who trained the checkpoint", "1-0.png: trained on and given back, confirmed",
        "the similarity of the two pictures is 0.81", "at most 1 in 1,000 comparisons (p 0.0010)",
        "fewer than 1 in 1,000 cases",
        "q is 0.0040", "rosa <b>: confirmed", scan.scan_id, match.reference_id,
        "https://huggingface.co/anna/style", "The collection “mine” as a whole: trained on",
        "none of 20 was found", "24 images of the collection “mine” were looked for in it.",
        "Not shown to be given back: the similarity of the two pictures is 0.40",
        "Training is not shown: the checkpoint knows this picture",
    ):  # fmt: skip
        assert part in text


def test_a_page_fetches_nothing_runs_nothing_and_escapes_what_strangers_wrote(
    crawl: Crawl, tmp_path: Path
) -> None:
    written = page(crawl, tmp_path / "a.html", HOSTILE)
    tags = Tags(written)
    assert HOSTILE in tags.text
    assert "<img src=x onerror=y>" in tags.text
    assert not {"script", "link", "iframe", "object", "a", "form"} & {tag for tag, _ in tags.tags}
    policy = next(a["content"] for t, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    sources = [a["src"] for _, a in tags.tags if "src" in a]
    assert len(sources) == 2
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert all(a.get("alt") for tag, a in tags.tags if tag == "img")
    assert not any(name.startswith("on") for _, a in tags.tags for name in a)
    assert not re.search(r"url\(|@import", written)


def test_pictures_are_blurred_until_a_box_without_script_is_checked(crawl: Crawl, tmp_path: Path) -> None:
    written = page(crawl, tmp_path / "a.html", "anna/style")
    boxes = [a for tag, a in Tags(written).tags if tag == "input"]
    assert boxes
    assert all(box["type"] == "checkbox" and box["aria-label"] and "checked" not in box for box in boxes)
    assert "filter: blur(22px)" in written
    assert ".veil input:checked ~ img { filter: none; }" in written


def test_the_json_twin_has_the_data_of_the_page_and_the_page_its_digest(crawl: Crawl, tmp_path: Path) -> None:
    written = page(crawl, tmp_path / "a.html", "anna/style")
    twin = (tmp_path / "a.json").read_bytes()
    assert hashlib.sha256(twin).hexdigest() in written
    data = json.loads(twin)
    assert data["checkpoint"]["repo"] == "anna/style"
    first = data["evidence"][0]
    assert (first["grounds"], first["standing_decision"]) == (["trained_on", "gives_back"], "confirm")
    assert first["match"]["similarity"] == 0.81
    assert first["candidate"]["image_sha256"] in written
    for file in (tmp_path / "a.html", tmp_path / "a.json"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["a.html", "a.json"]


def test_a_report_replaces_a_report_and_nothing_else(crawl: Crawl, tmp_path: Path) -> None:
    page(crawl, tmp_path / "a.html", "anna/style")
    assert "kim/plain" in page(crawl, tmp_path / "a.html", "kim/plain")
    for name in ("b.html", "c.json"):
        (tmp_path / name).write_text("{}")
        done = report(crawl, (tmp_path / name).with_suffix(".html"), "anna/style")
        assert "exists and is no report, so it is kept" in str(done.exception)
        assert (tmp_path / name).read_text() == "{}"


def test_weights_that_two_repositories_publish_are_found_under_both_names(
    crawl: Crawl, tmp_path: Path
) -> None:
    first = crawl.list("twin/first", checkpoint_id="f" * 64)
    crawl.list("twin/second", checkpoint_id="f" * 64, listed_at=first.listed_at + timedelta(days=1))
    for repo in ("twin/first", "twin/second"):
        text = Tags(page(crawl, tmp_path / "a.html", repo)).text
        assert "What was found in twin/second" in text
        assert "twin/first" in text


def test_a_report_of_one_match_has_no_other(crawl: Crawl, tmp_path: Path) -> None:
    match = crawl.matches["anna/style"][1]
    written = page(crawl, tmp_path / "a.html", match.match_id)
    assert match.reference_id in written
    assert crawl.matches["anna/style"][0].reference_id not in written


@pytest.mark.parametrize(
    ("option", "repos"),
    [("--flagged", [HOSTILE, "anna/style", "kim/unconfirmed"]), ("--confirmed", ["anna/style"])],
)
def test_a_page_may_be_about_all_that_is_flagged_or_was_confirmed(
    crawl: Crawl, tmp_path: Path, option: str, repos: list[str]
) -> None:
    written = page(crawl, tmp_path / "a.html", option)
    known = (HOSTILE, "anna/style", "kim/unconfirmed", "kim/plain", "kim/broken")
    assert [repo for repo in known if html.escape(repo) in written] == repos


@pytest.mark.parametrize(
    ("repo", "sentence"),
    [
        ("kim/plain", "Nothing was found."),
        ("kim/broken", "It could not be scanned: the file is a pickle"),
        ("kim/to-do", "This checkpoint has not been scanned."),
    ],
)
def test_a_checkpoint_without_a_flag_has_a_page_too(
    crawl: Crawl, tmp_path: Path, repo: str, sentence: str
) -> None:
    text = " ".join(Tags(page(crawl, tmp_path / "a.html", repo)).text.split())
    assert sentence in text
    examined = repo == "kim/plain"
    assert ("weak traces are missed" in text) == examined
    assert ("Nothing was examined" in text) != examined


def test_a_picture_that_the_store_lost_is_told_and_the_rest_of_the_page_stands(
    crawl: Crawl, tmp_path: Path
) -> None:
    copied = shutil.copytree(crawl.store.root, tmp_path / "store")
    crawl_of = Crawl(Store(copied), tmp_path / "mine")
    shutil.rmtree(copied / "images")
    crawl_of.matches = crawl.matches
    written = page(crawl_of, tmp_path / "a.html", "anna/style")
    assert "The store holds no copy of the picture that the checkpoint drew." in written
    assert "the similarity of the two pictures is 0.81" in written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody/x"], "the store knows no checkpoint or match nobody/x"),
        ([], "no checkpoint is named. Name a repository or an id"),
        (["anna/style", "-o", "nowhere/a.html"], "nowhere/a.html cannot be written"),
        (["anna/style", "-o", "a.png"], "a.png is no name of a page. Name it FILE.html."),
    ],
)
def test_what_cannot_be_reported_is_an_error_that_says_what_to_do(
    crawl: Crawl, tmp_path: Path, words: list[str], message: str
) -> None:
    done = report(crawl, tmp_path / "a.html", *words)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def browse(folder: Path, address: str, *words: str) -> str:
    """What headless Chromium prints."""
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-pdf-header-footer"
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={folder / 'profile'}", *words, address],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.stdout


def asked_by_the_page(folder: Path) -> set[str]:
    """The addresses that a page on loopback has asked for, by the browser's own log and by the server."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{server.server_port}"
        browse(folder, f"{origin}/a.html", f"--log-net-log={folder / 'log.json'}", "--dump-dom")
        server.shutdown()
    events = json.loads((folder / "log.json").read_text())["events"]
    asked = [event.get("params", {}) for event in events]
    own = {p["url"].removeprefix(origin) for p in asked if p.get("initiator") == origin and "url" in p}
    return own - {"/a.html"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
def test_a_browser_prints_the_page_asks_nobody_for_it_and_shows_a_script_as_text(
    crawl: Crawl, tmp_path: Path
) -> None:
    text = page(crawl, tmp_path / "a.html", HOSTILE)
    address = (tmp_path / "a.html").as_uri()
    browse(tmp_path, address, f"--print-to-pdf={tmp_path / 'a.pdf'}")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    shown = browse(tmp_path, address, "--dump-dom")
    assert html.escape(HOSTILE) in shown
    assert "<script" not in shown
    assert asked_by_the_page(tmp_path) == set()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy is not None
    open_page = text.replace(policy[0], '<img src="x.png"><img src="http://example.org/y.png">')
    (tmp_path / "a.html").write_text(open_page)
    assert {"/x.png", "http://example.org/y.png"} <= asked_by_the_page(tmp_path), "as it would be noticed"
