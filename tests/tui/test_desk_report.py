"""`e` writes the report of the opened checkpoint into the current folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filled_store import Crawl, Opener

from scanner.records import Verdict
from scanner.report.writing import file_name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def test_e_writes_the_page_and_its_data_and_says_where(filled: Crawl, desk: Opener, here: Path) -> None:
    async with desk(size=(120, 40)) as seen:
        await seen.press("enter", "e")
        page, twin = sorted(here.iterdir())
        assert str(page) in seen.toast
        assert (page.suffix, twin.suffix) == (".html", ".json")
        assert "ben-strong-shoe" in page.name
        assert {file.stat().st_mode & 0o777 for file in (page, twin)} == {0o600}
        assert "ben/strong-shoe" in page.read_text()
        before = json.loads(twin.read_text())
        assert before["checkpoint"]["repo"] == "ben/strong-shoe"
        await seen.press("b", "c", "e")  # a report of the same checkpoint is replaced
        assert len(list(here.iterdir())) == 2
        assert json.loads(twin.read_text())["evidence"][0]["standing_decision"] == "confirm"


async def test_another_file_of_that_name_is_kept(filled: Crawl, desk: Opener, here: Path) -> None:
    checkpoint = filled.scans["ben/strong-shoe"].checkpoint_id
    other = here / file_name("ben/strong-shoe", checkpoint)
    other.write_text("my own notes")
    async with desk() as seen:
        await seen.press("enter", "e")
        assert "exists and is no report, so it is kept" in seen.toast
    assert other.read_text() == "my own notes"
    assert list(here.iterdir()) == [other]


@pytest.mark.parametrize(
    "repo", ["../../etc/cron.d/x", "a/\x1b]0;x\x07\n\0", "-rf/*", "." * 300, "日本/語", ""]
)
def test_a_file_name_is_safe_whatever_a_repository_is_called(repo: str) -> None:
    name = file_name(repo, "../0123456789abcdef")
    assert name == Path(name).name
    assert name.isascii()
    assert name.isprintable()
    assert name.startswith("report-")
    assert name.endswith(".html")
    assert len(name) < 120
    assert not set(name) & set("/\\*?\"'<>| ")


async def test_a_skipped_checkpoint_has_a_report_too(crawl: Crawl, desk: Opener, here: Path) -> None:
    crawl.scan("../../evil/name", Verdict.SKIPPED, reason="a pickle")
    async with desk() as seen:
        await seen.press("v", "enter", "e")
        assert "Written: " in seen.toast
    assert len(list(here.iterdir())) == 2
