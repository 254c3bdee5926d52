"""The candidate beside the reference: blurred until asked, in turn at one place, and a quarter enlarged."""

from __future__ import annotations

import asyncio

from PIL import Image
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.reactive import reactive
from textual.timer import Timer
from textual.widgets import Static

from scanner.store.desk_queries import EvidenceRow
from scanner.store.store import Store
from tui.images import NoImage
from tui.pair import load_pair
from tui.widgets.image_view import ImageView

BLURRED = "Blurred: may show people. b shows"
SHOWN = "Shown. b or escape blurs again."
TURN_S = 0.6  # between two images that are shown in turn by themselves
STEP = 0.25  # by which the enlarged quarter is moved, as a share of the image
CENTRE = (0.25, 0.25)


class PairView(Vertical):
    """Shows the pair of one row of evidence, and keeps of which rows both images could be seen."""

    blurred = reactive(True)
    turn: reactive[str | None] = reactive(None)  # the image that is shown alone; None = both side by side
    corner: reactive[tuple[float, float] | None] = reactive(None)  # of the enlarged quarter

    def __init__(self, store: Store, *, id: str) -> None:
        super().__init__(id=id)
        self.store = store
        self.images_of: str | None = None  # the row whose images are shown
        self.clear: set[ImageView] = set()  # those of its images that could be seen
        self.seen: set[str] = set()  # the rows of which every image could be seen
        self.flicker: Timer | None = None

    def compose(self) -> ComposeResult:
        with Horizontal(id="pair"):
            yield ImageView("candidate", id="candidate")
            yield ImageView("reference", id="reference")
        yield Static(Text(BLURRED), id="blur-state")

    @work(exclusive=True, group="images")
    async def show_row(self, row: EvidenceRow, *, sampled: bool) -> None:
        """Loads the images of a row in a thread, and shows them."""
        if row.subject_id == self.images_of:
            return
        self.images_of = None
        for view in self.query(ImageView):  # never the images of one row beside the evidence for another
            view.show(NoImage(""))
        pair = await asyncio.to_thread(load_pair, self.store, row, sampled=sampled)
        for view, image in zip(self.query(ImageView), pair, strict=True):
            view.show(image)
        self.images_of = row.subject_id
        self.clear = set()
        self._note_what_is_seen()

    def watch_blurred(self, blurred: bool) -> None:
        """Blurs or shows both images, and changes the line below them."""
        for view in self.query(ImageView):
            view.blurred = blurred
        self._describe()

    def watch_turn(self, turn: str | None) -> None:
        """Shows one image in the place of both, or both again."""
        for view in self.query(ImageView):
            view.display = turn in (None, view.id)
        self._describe()

    def watch_corner(self, corner: tuple[float, float] | None) -> None:
        """Enlarges the same quarter of both images."""
        for view in self.query(ImageView):
            view.corner = corner
        self._describe()

    def take_turns(self) -> None:
        """Shows the other image at the same place; at first the candidate."""
        self._stop()
        self.turn = "reference" if self.turn == "candidate" else "candidate"

    def toggle_flicker(self) -> None:
        """Shows both images in turn at one place by itself, or both side by side again."""
        if self.flicker is None:
            self.flicker = self.set_interval(TURN_S, self._next)
            self.turn = self.turn or "candidate"
            self._describe()
        else:
            self.stop_turns()

    def stop_turns(self) -> None:
        """Shows both images side by side."""
        self._stop()
        self.turn = None

    def toggle_zoom(self) -> None:
        """Enlarges the quarter in the middle of both images, or shows them whole again."""
        self.corner = CENTRE if self.corner is None else None

    def move(self, right: int, down: int) -> bool:
        """Moves the enlarged quarter by steps; returns whether there is one."""
        if self.corner is None:
            return False
        left, top = self.corner
        self.corner = (min(max(left + right * STEP, 0), 0.5), min(max(top + down * STEP, 0), 0.5))
        return True

    def _next(self) -> None:
        self.turn = "reference" if self.turn == "candidate" else "candidate"

    def _stop(self) -> None:
        if self.flicker is not None:
            self.flicker.stop()
            self.flicker = None

    def _describe(self) -> None:
        self._note_what_is_seen()
        if not self.is_mounted:
            return
        words = [BLURRED if self.blurred else SHOWN]
        if self.turn is not None or self.corner is not None:
            words = ["Blurred."] if self.blurred else []  # there is room for less
        if self.turn is not None:
            how = "in turn" if self.flicker else "w other"
            words.append(f"The {self.turn}: {how}, s both.")
        if self.corner is not None:
            words.append("A quarter: H J K L move, m all.")
        self.query_one("#blur-state", Static).update(Text(" ".join(words)))

    def _note_what_is_seen(self) -> None:
        """An image that is missing hides nothing; each other one must have been on the screen."""
        views = list(self.query(ImageView))
        self.clear |= {view for view in views if view.is_clear}
        images = {view for view in views if isinstance(view.image, Image.Image)}
        if self.images_of and images <= self.clear:
            self.seen.add(self.images_of)
