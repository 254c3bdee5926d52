"""Whether this terminal draws pictures (sixel or kitty's protocol), by the optional package textual-image.

Without it, or in a terminal that draws none, images are half-block cells (tui.images).
"""

from __future__ import annotations

import logging
import os
import sys

from PIL import Image
from textual.widget import Widget

type PictureWidget = type[Widget]  # made without arguments; draws its attribute `image`


def picture_widget() -> PictureWidget | None:
    """Returns the widget for this terminal's pictures; None if they are to be drawn as cells.

    Asks the terminal, which answers only before an app runs. $NO_COLOR stands for cells, which are grey then.
    """
    if os.environ.get("NO_COLOR") or sys.__stdout__ is None or not sys.__stdout__.isatty():
        return None
    # A terminal that does not answer is no reason to print a traceback.
    logging.getLogger("textual_image").setLevel(logging.CRITICAL)
    try:
        from textual_image import renderable
        from textual_image.widget import Image as Found
    except ImportError:
        return None
    draws = renderable.Image in (renderable.SixelImage, renderable.TGPImage)
    return Found if draws else None


def cells_of(image: Image.Image, columns: int, rows: int, cell: float) -> tuple[int, int]:
    """Returns the size of an image in cells that fits a place; `cell` is a cell's width over its height."""
    scale = min(columns * cell / image.width, rows / image.height)
    width, height = round(image.width * scale / cell), round(image.height * scale)
    return max(1, min(columns, width)), max(1, min(rows, height))


def cell_shape() -> float:
    """Returns a cell's width over its height, as the terminal told it."""
    from textual_image._terminal import get_cell_size

    size = get_cell_size()
    return size.width / size.height if size.width and size.height else 0.5
