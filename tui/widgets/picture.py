"""One picture on the screen, as half cells, blurred unless told otherwise; or why there is none."""

from __future__ import annotations

from PIL import Image
from rich.text import Text
from textual.reactive import reactive
from textual.widget import Widget

from tui.pictures import HalfCells, Unseen, blur, fit


class Picture(Widget):
    """Scales what it holds to its own size."""

    blurred = reactive(True)

    def __init__(self, title: str, *, id: str) -> None:
        super().__init__(id=id)
        self.border_title = title
        self.held: Image.Image | Unseen = Unseen("")

    def hold(self, picture: Image.Image | Unseen) -> None:
        """Shows another picture."""
        self.held = picture
        self.refresh()

    def render(self) -> HalfCells | Text:
        """The picture, scaled; or words in its place."""
        if isinstance(self.held, Unseen):
            return Text(self.held.why, justify="center")
        if not self.size.width or not self.size.height:
            return Text("")
        shown = blur(self.held) if self.blurred else self.held
        return HalfCells(fit(shown, self.size.width, self.size.height))
