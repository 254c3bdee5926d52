"""Pictures as terminal cells. Opens files safely, blurs, scales; knows Pillow and Rich, no Textual.

A cell shows two pixels, one above the other: the upper half block in the upper pixel's colour on the lower
pixel's. So a picture of w x h pixels takes w x h/2 cells, and its pixels are nearly square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from scanner.images import ImageError, open_image

MAX_PIXELS = 64_000_000  # a larger picture is refused before it is decoded: it may be a decompression bomb
KEPT_SIDE = 1024  # pixels; no terminal shows more
BLUR_SIDE = 5  # pixels of the longer side that a blurred picture is made from: colours stay, faces do not
PAPER = (128, 128, 128)  # behind transparent pixels


@dataclass(frozen=True, slots=True)
class Unseen:
    """Why a picture cannot be shown, for its place on the screen."""

    why: str


def load(source: Path | Callable[[], bytes] | None, what: str) -> Image.Image | Unseen:
    """The picture in a file, as RGB, at most KEPT_SIDE pixels wide or high; or why it cannot be shown.

    `source` is the file, or gives its content.
    """
    if source is None:
        return Unseen(f"No {what} is recorded.")
    try:
        with source.open("rb") if isinstance(source, Path) else BytesIO(source()) as file:
            return open_image(file, max_pixels=MAX_PIXELS, max_side=KEPT_SIDE, background=PAPER)
    except FileNotFoundError:
        return Unseen(f"The {what} is no longer where it was.")
    except PermissionError:
        return Unseen(f"The {what} may not be read by this user.")
    except ImageError as error:
        return Unseen(f"The {what} {error}.")
    except OSError as error:
        return Unseen(f"The {what} cannot be read: {error.strerror}.")


def blur(picture: Image.Image) -> Image.Image:
    """The picture as a few patches of colour: enough to tell two rows apart, too little to know a face."""
    scale = BLUR_SIDE / max(picture.size)
    few = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.BOX
    )
    return few.resize(picture.size, Image.Resampling.BICUBIC)


def fit(picture: Image.Image, columns: int, rows: int) -> Image.Image:
    """The picture scaled to fill `columns` x `rows` cells as far as its shape allows; an even height."""
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width = max(1, min(columns, round(picture.width * scale)))
    height = max(2, min(2 * rows, 2 * round(picture.height * scale / 2)))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


class HalfCells:
    """A Rich renderable: a picture of even height, two pixels a cell."""

    def __init__(self, picture: Image.Image) -> None:
        assert picture.height % 2 == 0, "two pixels a cell"
        self.picture = picture

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.picture.width, self.picture.width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = self.picture.size
        pixels = self.picture.tobytes()  # [height, width, 3] uint8
        for top in range(0, height, 2):
            for x in range(width):
                upper, lower = 3 * (top * width + x), 3 * ((top + 1) * width + x)
                yield Segment(
                    "▀",
                    Style(
                        color=Color.from_rgb(*pixels[upper : upper + 3]),
                        bgcolor=Color.from_rgb(*pixels[lower : lower + 3]),
                    ),
                )
            yield Segment.line()
