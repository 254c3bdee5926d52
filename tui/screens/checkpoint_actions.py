"""What the keys of an opened checkpoint do, apart from decisions: images, pages, its address, its report."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.text import Text
from textual import work

from scanner.errors import ScannerError
from scanner.records import ConfigRow
from scanner.store.desk_queries import OpenedCheckpoint
from scanner.store.report_queries import Target
from scanner.store.store import Store
from scanner.text import for_terminal
from tui.content.formatting import web_address
from tui.content.styles import MUTED
from tui.screens.marking import MarkingScreen
from tui.widgets.pair_view import PairView
from tui.widgets.table import Table


class CheckpointActions(MarkingScreen):
    """The actions of the screen that shows `opened`."""

    opened: OpenedCheckpoint | None
    toml: str | None

    def explain(self) -> None:
        """Shows the words about the row under the cursor, on the page that is open."""
        raise NotImplementedError

    @property
    def pair(self) -> PairView:
        """The images of the row under the cursor."""
        return self.query_one(PairView)

    def action_reveal(self) -> None:
        """Shows the images, or blurs them again."""
        if self.has_images():
            self.pair.blurred = not self.pair.blurred

    def action_large(self) -> None:
        """Shows the images alone, or with everything else again."""
        if self.has_images():
            self.toggle_class("-large")
            self.query_one(Table).focus()  # the text, which is hidden now, may have had the focus

    def action_turn(self) -> None:
        """Shows candidate and reference in turn at the same place."""
        if self.has_images():
            self.pair.take_turns()

    def action_flicker(self) -> None:
        """The same by itself, or side by side again."""
        if self.has_images():
            self.pair.toggle_flicker()

    def action_side(self) -> None:
        """Shows candidate and reference side by side."""
        self.pair.stop_turns()

    def action_zoom(self) -> None:
        """Enlarges a quarter of both images, or shows all of them."""
        if self.has_images():
            self.pair.toggle_zoom()

    def action_move(self, right: int, down: int) -> None:
        """Moves the enlarged quarter."""
        if not self.pair.move(right, down):
            self.show_message("m enlarges a quarter of both images; then this key moves it.", "warning")

    def has_images(self) -> bool:
        """Whether a row with its images is shown; else a message says that there is none."""
        if self.opened is None or not self.opened.rows:
            self.show_message("There are no images here: this scan found no reference.", "warning")
            return False
        if self.has_class("-details"):
            self.show_message("i returns to the evidence and its images.", "warning")
            return False
        return True

    @work(group="checkpoint")
    async def action_details(self) -> None:
        """Shows ids, hashes and configuration in the place of the evidence, or the evidence again."""
        details = not self.has_class("-details")
        self.set_class(False, "-large")
        self.set_class(details, "-details")
        without_rows = self.opened is not None and not self.opened.rows
        (self.query_one("#words") if details or without_rows else self.query_one(Table)).focus()
        self.query_one("#words").scroll_home(animate=False)
        self.explain()
        scan = self.opened.scan if self.opened else None
        if details and scan and self.toml is None:
            store = self.session.store
            try:
                rows = await asyncio.to_thread(
                    store.select, ConfigRow, "WHERE config_id = ?", [scan.config_id]
                )
            except ScannerError as error:
                self.show_message(for_terminal(str(error)), "warning")
                return
            self.toml = rows[0].toml if rows else None
            self.explain()

    @work(exclusive=True, group="report")
    async def action_report(self) -> None:
        """Writes the report of the checkpoint in a thread; a message says where it is."""
        if self.opened is None:
            return
        target = Target(
            self.opened.checkpoint.checkpoint_id,
            self.opened.scan.scan_id if self.opened.scan else None,
            self.opened.checkpoint.repo,
            self.opened.checkpoint.file,
            None,
        )
        self.show_message("Writing the report …")
        try:
            page = await asyncio.to_thread(_write_report, self.session.store, target)
        except (ScannerError, OSError) as error:
            self.show_message(f"No report was written: {for_terminal(str(error))}", "warning")
            return
        self.show_message(f"Written: {for_terminal(str(page), 400)}, and its data beside it.")

    def action_back(self) -> None:
        """Returns to the screen below."""
        self.pair.blurred = True
        self.dismiss(None)

    def action_open_link(self) -> None:
        """Opens the checkpoint's page in a browser, if its address is a web address."""
        url = self.opened.checkpoint.url if self.opened else ""
        if (address := web_address(url)) is None:
            self.show_message("Only http and https addresses are opened. y copies this one.", "warning")
            return
        self.app.open_url(address)
        self.show_message(f"Opening {address}")

    def action_copy_link(self) -> None:
        """Copies the address of the checkpoint's page."""
        url = for_terminal(self.opened.checkpoint.url) if self.opened else ""
        self.app.copy_to_clipboard(url)
        self.show_message(f"Copied {url}")

    def _link(self, opened: OpenedCheckpoint) -> Text:
        url = opened.checkpoint.url
        if not url:
            return Text().append("The address of this checkpoint is not known.", style=MUTED)
        link = Text().append(for_terminal(url), style=MUTED)
        return link.append("  (o opens it)", style=MUTED) if web_address(url) else link


def _write_report(store: Store, target: Target) -> Path:
    """Writes a report into the current folder. Raises ScannerError where a file there is in the way."""
    from scanner.report.writing import file_name, write_report  # takes a while, and few need it

    page = Path.cwd() / file_name(target.repo, target.checkpoint_id)
    write_report(store, [target], page)
    return page
