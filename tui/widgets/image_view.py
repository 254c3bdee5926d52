"""One image on the screen, blurred by default; or a text in its place.

It is drawn as half-block cells, or by the terminal itself where it can (tui.pictures).
"""

from __future__ import annotations

from PIL import Image
from rich.text import Text
from textual.app import ComposeResult
from textual.reactive import reactive
from textual.widget import Widget

from tui.images import HalfCells, NoImage, blur, fit, quarter
from tui.pictures import PictureWidget, cell_shape, cells_of


class ImageView(Widget):
    """Shows an image, or a quarter of it, scaled to the widget's own size."""

    blurred = reactive(True)
    corner: reactive[tuple[float, float] | None] = reactive(None)  # of the quarter; None = the whole image

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.image: Image.Image | NoImage = NoImage("")
        self.picture: Widget | None = None  # draws the image where the terminal can

    def compose(self) -> ComposeResult:
        made: PictureWidget | None = getattr(self.app, "picture_widget", None)
        if made is not None:
            self.picture = made()
            yield self.picture

    def show(self, image: Image.Image | NoImage) -> None:
        """Replaces the image."""
        self.image = image
        self.draw()

    def draw(self) -> None:
        """Draws the image again, after it or the room for it has changed."""
        if self.picture is not None:
            shown = self.shown()
            room = bool(shown and self.size.width and self.size.height)
            self.picture.display = room
            if shown is not None and room:
                width, height = cells_of(shown, self.size.width, self.size.height, cell_shape())
                self.picture.styles.width, self.picture.styles.height = width, height
            setattr(self.picture, "image", shown)  # noqa: B010 - the class is known when the desk runs
        self.refresh()

    def on_resize(self) -> None:
        """Fits a picture of the terminal's to the new size; cells are scaled when they are drawn."""
        if self.picture is not None:
            self.draw()

    def watch_blurred(self) -> None:
        """Draws the image again."""
        self.draw()

    def watch_corner(self) -> None:
        """Draws the image again."""
        self.draw()

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
        image = None if self.picture is not None else self.shown()
        if image is None or not self.size.width or not self.size.height:
            return Text("")
        return HalfCells(fit(image, self.size.width, self.size.height))
