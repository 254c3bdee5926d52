"""A screen that shows one answer of the store, and asks again when the store has changed."""

from __future__ import annotations

import asyncio

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widgets import Footer, Static

from scanner.errors import ScannerError
from scanner.text import for_terminal
from tui.screens.working import is_working
from tui.session import Session
from tui.widgets.screens_bar import ScreensBar


class ViewScreen[Answer](Screen[None]):
    """Reads an answer in a thread and shows it; a later answer replaces it."""

    name_in_bar = ""  # a key of SCREENS

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.answer: Answer | None = None
        self.stamp: tuple[object, ...] = ()  # of the store, at the last load

    def body(self) -> ComposeResult:
        """The widgets between the heading and the footer."""
        raise NotImplementedError

    def read(self) -> Answer:
        """Asks the store; called in a thread. Raises ScannerError."""
        raise NotImplementedError

    def show(self, answer: Answer) -> None:
        """Fills the screen."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        yield ScreensBar(self.name_in_bar)
        yield Static(Text("Reading the store …"), id="head")
        yield from self.body()
        yield Footer()

    def on_mount(self) -> None:
        self.load()
        self.set_interval(self.session.refresh_s, self.load_if_changed)

    def on_screen_resume(self) -> None:
        """Loads again after another screen was closed, because decisions may have been made there."""
        if self.answer is not None:
            self.load()

    def on_resize(self) -> None:
        """Fits what is drawn to the terminal."""
        self.query_one(Footer).compact = self.size.width < 90
        self.repaint()

    def repaint(self) -> None:
        """Shows the same answer again, in the colours of another theme or for another size."""
        self.query_one(ScreensBar).repaint()
        if self.answer is not None:
            self.show(self.answer)

    def load_if_changed(self) -> None:
        """Loads again if the store has changed, unless a load is still running."""
        if self.is_current and not is_working(self, "view"):
            self.load(only_if_changed=True)

    @work(exclusive=True, group="view")
    async def load(self, only_if_changed: bool = False) -> None:
        """Queries the store in a thread and shows the answer. A later load replaces this one."""
        try:
            stamp = await asyncio.to_thread(self.session.store.stamp)
            if only_if_changed and stamp == self.stamp:
                return
            answer = await asyncio.to_thread(self.read)
        except ScannerError as error:
            self.heading(Text(f"The store cannot be read: {for_terminal(str(error))}"))
            return
        if self.query(ScreensBar):  # else the screen was closed meanwhile
            self.stamp, self.answer = stamp, answer
            self.show(answer)

    def heading(self, text: Text) -> None:
        """Shows the line at the top."""
        self.query_one("#head", Static).update(text)

    def show_message(self, text: str, severity: str = "information") -> None:
        """Shows a short message."""
        self.app.notify(text, severity="warning" if severity == "warning" else "information", markup=False)

    def action_reload(self) -> None:
        """Loads again now."""
        self.load()

    def action_close(self) -> None:
        """Returns to the screen below."""
        self.dismiss(None)
