"""The pictures of the desk in the README and the docs, made from the real desk."""

import importlib.util
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


async def test_the_pictures_of_the_desk_can_be_made_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("desk_picture", DOCS / "desk_picture.py")
    assert spec is not None
    assert spec.loader is not None
    desk_picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(desk_picture)
    store = desk_picture.fill(tmp_path)
    for name, words in (
        ("desk.svg", "example/coast-in-oil"),
        ("desk-list.svg", "example/harbour-lora"),
        ("desk-overview.svg", "civitai"),
    ):
        for svg in (await desk_picture.screenshot(store, name), (DOCS / name).read_text()):
            assert words in svg
            assert set(re.findall(r"https?://[^/\"&]+", svg)) <= {"http://www.w3.org", "https://hub.example"}
            assert "url(http" not in svg
            assert len(svg.encode()) < 300_000
