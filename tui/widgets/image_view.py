"""One image on the screen, as half-block cells, blurred by default; or a text in its place."""

from __future__ import annotations

from PIL import Image
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from tui.images import HalfCells, NoImage, blur, fit, quarter


class ImageView(Widget):
    """Shows an image, or a quarter of it, scaled to the widget's own size."""

    blurred = reactive(True)
    corner: reactive[tuple[float, float] | None] = reactive(None)  # of the quarter; None = the whole image

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.image: Image.Image | NoImage = NoImage("")

    def show(self, image: Image.Image | NoImage) -> None:
        """Replaces the image."""
        self.image = image
        self.refresh()

    @property
    def is_clear(self) -> bool:
        """Whether an image can be seen on the screen without the blur."""
        return isinstance(self.image, Image.Image) and self.display and not self.blurred

    def shown(self) -> Image.Image | None:
        """Returns the pixels to be drawn, before they are scaled; None if there is no image."""
        if isinstance(self.image, NoImage):
            return None
        # The whole image is blurred: the patches of a blurred quarter would show more of it.
        image = blur(self.image) if self.blurred else self.image
        return image if self.corner is None else quarter(image, *self.corner)

    def render(self) -> HalfCells | Text:
        """Returns the scaled image, or the text in its place."""
        if isinstance(self.image, NoImage):
            return Text(self.image.why, justify="center")
        if not self.size.width or not self.size.height or (image := self.shown()) is None:
            return Text("")
        return HalfCells(fit(image, self.size.width, self.size.height))
