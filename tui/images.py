"""Images as terminal cells: loaded, blurred, scaled. Uses Pillow and Rich, not Textual.

A cell shows two pixels, one above the other: an upper half block in the colour of the upper pixel, on a
background in the colour of the lower one. An image of w x h pixels takes w x h/2 cells.
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

MAX_PIXELS = 64_000_000  # a larger image may be a decompression bomb, and is not decoded
MAX_SIDE = 1024  # pixels; no terminal shows more
BLUR_SIDE = 5  # pixels on the longer side of a blurred image: keeps colours, hides faces
BACKGROUND = (128, 128, 128)  # of transparent pixels


@dataclass(frozen=True, slots=True)
class NoImage:
    """Why an image cannot be shown; the text takes its place on the screen."""

    why: str


def load(source: Path | Callable[[], bytes] | None, what: str) -> Image.Image | NoImage:
    """Returns an image as RGB, at most MAX_SIDE pixels wide or high, or why it cannot be shown.

    `source` is the file, or a function that returns its content; `what` names the image in a message.
    """
    if source is None:
        return NoImage(f"No {what} is recorded.")
    try:
        with source.open("rb") if isinstance(source, Path) else BytesIO(source()) as file:
            return open_image(file, max_pixels=MAX_PIXELS, max_side=MAX_SIDE, background=BACKGROUND)
    except FileNotFoundError:
        return NoImage(f"The {what} is no longer in its place.")
    except PermissionError:
        return NoImage(f"The {what} cannot be read: permission denied.")
    except ImageError as error:
        return NoImage(f"The {what} {error}.")
    except OSError as error:
        return NoImage(f"The {what} cannot be read: {error.strerror}.")


def blur(image: Image.Image) -> Image.Image:
    """Returns an image of the same size that consists of a few patches of colour."""
    scale = BLUR_SIDE / max(image.size)
    few = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX
    )
    return few.resize(image.size, Image.Resampling.BICUBIC)


def quarter(image: Image.Image, left: float, top: float) -> Image.Image:
    """Returns the part of half the width and height whose corner is that share of the image in."""
    width, height = max(1, image.width // 2), max(1, image.height // 2)
    x, y = round(left * image.width), round(top * image.height)
    return image.crop((x, y, x + width, y + height))


def fit(image: Image.Image, columns: int, rows: int) -> Image.Image:
    """Returns the image scaled to fit `columns` x `rows` cells, with its shape kept and an even height."""
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, min(columns, round(image.width * scale)))
    height = max(2, min(2 * rows, 2 * round(image.height * scale / 2)))
    return image.resize((width, height), Image.Resampling.LANCZOS)


class HalfCells:
    """A Rich renderable of an image of even height, with two pixels in each cell."""

    def __init__(self, image: Image.Image) -> None:
        assert image.height % 2 == 0, "two pixels a cell"
        self.image = image

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self.image.width, self.image.width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = self.image.size
        pixels = self.image.tobytes()  # [height, width, 3] uint8
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
