"""The pair of images of the strongest evidence for the checkpoint under the cursor of the list."""

from __future__ import annotations

import asyncio

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.reactive import reactive
from textual.widgets import Static

from scanner.errors import ScannerError
from scanner.records import Examination
from scanner.store.desk_queries import CheckpointRow, EvidenceRow, strongest_evidence
from scanner.store.store import Store
from scanner.text import for_terminal
from scanner.wording import probability, similarity
from tui.images import NoImage
from tui.pair import Pair, load_pair
from tui.widgets.image_view import ImageView

PAUSE_S = 0.15  # of the cursor on a row, until its images are loaded
BLURRED, SHOWN = "b shows the images", "b blurs the images"


class Preview(Vertical):
    """Follows the cursor without holding it up: everything is loaded in threads, after a pause."""

    blurred = reactive(True)

    def __init__(self, store: Store, *, id: str) -> None:
        super().__init__(id=id)
        self.store = store
        self.row: CheckpointRow | None = None
        self.loaded: str | None = None  # the scan whose images are shown
        self.seen: set[str | None] = set()  # scans whose strongest pair was shown without the blur

    def compose(self) -> ComposeResult:
        yield Static(id="preview-words")
        yield ImageView("candidate", id="preview-candidate")
        yield ImageView("reference", id="preview-reference")
        yield Static(Text(BLURRED), id="preview-state")

    @property
    def width(self) -> int:
        """The width that the style sheet gives it, in cells."""
        return int(width.value) if (width := self.styles.width) else 0

    def follow(self, row: CheckpointRow | None) -> None:
        """Shows the images of another row, once the cursor pauses there."""
        if not self.display or (row and self.row and row.scan_id == self.row.scan_id):
            return
        self.row, self.loaded = row, None
        for view in self.query(ImageView):  # never the images of one row beside another
            view.show(NoImage(""))
        self.query_one("#preview-words", Static).update(Text(""))
        self.load()

    @work(exclusive=True, group="images")
    async def load(self) -> None:
        """Loads the strongest evidence and its images in threads."""
        row = self.row
        if row is None or row.scan_id is None:
            return
        await asyncio.sleep(PAUSE_S)
        try:
            evidence = await asyncio.to_thread(strongest_evidence, self.store, row.scan_id)
            pair = (
                await asyncio.to_thread(
                    load_pair, self.store, evidence, sampled=row.examined is not Examination.SCREENED
                )
                if evidence
                else Pair(NoImage("This scan compared no image."), NoImage(""))
            )
        except ScannerError as error:
            evidence, pair = None, Pair(NoImage(for_terminal(str(error))), NoImage(""))
        for view, image in zip(self.query(ImageView), pair, strict=True):
            view.show(image)
        self.query_one("#preview-words", Static).update(Text(self._words(row, evidence)))
        self.loaded = row.scan_id
        self._note_what_is_seen()

    @staticmethod
    def _words(row: CheckpointRow, evidence: EvidenceRow | None) -> str:
        if evidence is None:
            return ""
        name = (
            evidence.reference.path.rpartition("/")[2] if evidence.reference else evidence.reference_id[:12]
        )
        words = [for_terminal(evidence.corpus, 30)] + ([for_terminal(name, 40)] if name else [])
        if evidence.match:
            words.append(f"similarity {similarity(evidence.match.similarity)}")
        elif evidence.membership:
            words.append(f"q {probability(evidence.membership.q_value)}")
        others = f"\nThe strongest of {row.flags:,} flags; enter shows all." if row.flags > 1 else ""
        return " · ".join(words) + others

    def watch_blurred(self, blurred: bool) -> None:
        """Blurs or shows both images."""
        for view in self.query(ImageView):
            view.blurred = blurred
        self._note_what_is_seen()
        if self.is_mounted:
            self.query_one("#preview-state", Static).update(Text(BLURRED if blurred else SHOWN))

    def _note_what_is_seen(self) -> None:
        if self.loaded and not self.blurred and self.display:
            self.seen.add(self.loaded)
