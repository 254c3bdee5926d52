"""Makes the pictures of the review desk in README and docs: the real desk over a small filled store.

    python docs/desk_picture.py [DIR]

The images are drawn, so that nobody's picture is published, and the addresses lead nowhere.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from filled_store import Crawl, Desk  # noqa: E402

from scanner.records import ReasonCode, ReviewDecision, Verdict  # noqa: E402
from scanner.store.store import Store  # noqa: E402
from tui.app import DeskApp  # noqa: E402

# The pictures: columns and rows of the terminal, and the keys that lead to what is shown.
PICTURES = {
    "desk.svg": ((112, 34), ("enter", "b")),
    "desk-list.svg": ((124, 30), ("b",)),
    "desk-overview.svg": ((112, 30), ("2",)),
}
SIDE = 96  # pixels of a drawn image
FONTS = '"DejaVu Sans Mono", Menlo, Consolas, monospace'


def landscape(number: int) -> Image.Image:
    """A drawn landscape, different for each number: sky, sun, two ridges of hills, and water."""
    drawn = Image.new("RGB", (SIDE, SIDE))
    pen = ImageDraw.Draw(drawn)
    for y in range(SIDE):
        warm = y / SIDE
        pen.line((0, y, SIDE, y), fill=(int(90 + 150 * warm), int(130 + 60 * warm), int(200 - 70 * warm)))
    sun = 20 + number * 13 % 56
    pen.ellipse((sun - 11, 16, sun + 11, 38), fill=(255, 226, 140))
    for base, height, colour in ((58, 14, (92, 104, 130)), (68, 10, (58, 92, 78))):
        ridge = [(x, base - height * math.sin((x + number * 31 + base) / 15)) for x in range(0, SIDE + 1, 2)]
        pen.polygon([(0, SIDE), *ridge, (SIDE, SIDE)], fill=colour)
    pen.rectangle((0, 78, SIDE, SIDE), fill=(52, 110, 136))
    pen.polygon([(sun - 5, 78), (sun + 5, 78), (sun + 9, SIDE), (sun - 9, SIDE)], fill=(222, 200, 150))
    return drawn.filter(ImageFilter.GaussianBlur(0.6))


def fill(folder: Path) -> Store:
    """A store as a small crawl leaves it: a flag on both grounds, with two decisions on its evidence."""
    (folder / "landscapes").mkdir()
    crawl = Crawl(Store(folder / "store", create=True), folder / "landscapes", landscape)
    repo = "example/coast-in-oil"
    fields: dict[str, object] = {
        "url": f"https://hub.example/{repo}",
        "caption": "an oil painting of the coast",
        "license": "openrail",
    }
    margins = [0.31, 0.27, 0.02, 0.2, 0.14, 0.04, 0.18]
    crawl.flagged(repo, [0.943, 0.871, 0.802, 0.74, 0.702, 0.31], 0.004, fields, margins=margins)
    crawl.scan("example/no-result", Verdict.NOTHING_FOUND)
    flux: dict[str, object] = {"family": "flux", "base": "black-forest-labs/FLUX.1-dev", "source": "civitai"}
    crawl.flagged("example/harbour-lora", [0.861, 0.77], 0.004, flux, margins=[0.2, 0.01])
    crawl.flagged("example/ridge-and-lake", [0.74, 0.71], 0.011)
    crawl.flagged("example/evening-hills", [], 0.4, flux, margins=[0.19, 0.12])
    crawl.flagged("example/plain-photos", [0.31, 0.3], 0.8)
    crawl.scan("example/pickled", Verdict.SKIPPED, reason="holds its weights as a pickle",
               reason_code=ReasonCode.PICKLE)  # fmt: skip
    crawl.list("example/not-yet")
    _, second, third, *_ = crawl.matches[repo]
    crawl.decide(second.match_id, ReviewDecision.CONFIRM, "vera")
    crawl.decide(third.match_id, ReviewDecision.UNSURE, "vera")
    return crawl.store


async def screenshot(store: Store, name: str) -> str:
    """One of `PICTURES` as an SVG that loads nothing."""
    size, keys = PICTURES[name]
    app = DeskApp(Store(store.root), "vera")
    async with app.run_test(size=size) as pilot:
        desk = Desk(app, pilot)
        await desk.settle()
        await desk.press(*keys)
        await desk.settle()
        svg = app.export_screenshot(title="finextract-tui", simplify=True)
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)  # these name fonts on other servers
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: Fira Code, monospace", f"font-family: {FONTS}", svg)
    return re.sub(r"\n\s*\n+", "\n", svg)


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with tempfile.TemporaryDirectory() as folder:
        store = fill(Path(folder))
        for name in PICTURES:
            svg = asyncio.run(screenshot(store, name))
            (target / name).write_text(svg)
            print(f"{target / name}: {len(svg.encode()) / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
