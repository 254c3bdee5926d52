"""One image on the screen, as half-block cells, blurred by default; or a text in its place."""

from __future__ import annotations

from PIL import Image
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from tui.images import HalfCells, NoImage, blur, fit


class ImageView(Widget):
    """Shows an image scaled to the widget's own size."""

    blurred = reactive(True)

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.image: Image.Image | NoImage = NoImage("")

    def show(self, image: Image.Image | NoImage) -> None:
        """Replaces the image."""
        self.image = image
        self.refresh()

    def render(self) -> HalfCells | Text:
        """Returns the scaled image, or the text in its place."""
        if isinstance(self.image, NoImage):
            return Text(self.image.why, justify="center")
        if not self.size.width or not self.size.height:
            return Text("")
        shown = blur(self.image) if self.blurred else self.image
        return HalfCells(fit(shown, self.size.width, self.size.height))
