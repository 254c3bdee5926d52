"""The box in which the list's filter is typed, with a line below it that completes and explains words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.suggester import Suggester
from textual.timer import Timer
from textual.widgets import Input, Static

from scanner.errors import ScannerError
from scanner.records import now
from scanner.store.desk_filter import Filter
from scanner.text import for_terminal
from tui.filter_words import FilterError, completion, hint, parse

TYPING_S = 0.15  # after the last key that was typed, until the list is asked for


class WordSuggester(Suggester):
    """Completes the last word by the words of the filter, and by the values in the store."""

    def __init__(self, values: Callable[[str], Sequence[str]]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.values = values

    async def get_suggestion(self, value: str) -> str | None:
        """Returns the text with its last word completed, if it can be."""
        try:
            found = await asyncio.to_thread(completion, value, self.values)
        except ScannerError:
            return None
        longer = (word for word in found.values if word.startswith(found.begun) and word != found.begun)
        word = next(longer, None)
        return value[: len(value) - len(found.begun)] + word if word and word == for_terminal(word) else None


class FilterBox(Vertical):
    """Posts the filter once the typing pauses. Not displayed while there is none."""

    class Changed(Message):
        """The filter is another one."""

        def __init__(self, words: str, where: Filter) -> None:
            super().__init__()
            self.words, self.where = words, where

    class Done(Message):
        """The typing has ended; the filter stays."""

    def __init__(self, values: Callable[[str], Sequence[str]], *, id: str) -> None:
        super().__init__(id=id)
        self.values = values  # of a property, in the store
        self.words = ""  # what was posted last
        self.typing: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Input(
            placeholder="part of a repo's name, or words: corpus: kind: since: undecided",
            id="filter",
            select_on_focus=False,
            suggester=WordSuggester(self.values),
        )
        yield Static(id="hint")

    def on_mount(self) -> None:
        self.display = False

    @property
    def box(self) -> Input:
        """The input."""
        return self.query_one("#filter", Input)

    def open(self) -> None:
        """Displays the box and puts the cursor into it."""
        self.display = True
        self.box.focus()
        self.explain(self.box.value)

    def put(self, words: str) -> None:
        """Replaces the words without posting them."""
        self.words = words
        self.box.value = words
        self.display = bool(words)
        self.query_one("#hint", Static).display = False

    @on(Input.Changed, "#filter")
    def typed(self, event: Input.Changed) -> None:
        """Explains the words at once, and posts their filter once the typing pauses."""
        event.stop()
        if event.value == self.words:
            return
        self.explain(event.value)
        if self.typing:
            self.typing.stop()
        self.typing = self.set_timer(TYPING_S, self.post)

    def post(self) -> None:
        """Posts the filter, unless it is the one that was posted last or has a word that is not known."""
        words = self.box.value
        if words == self.words:
            return
        try:
            where = parse(words, now())
        except FilterError:
            return
        self.words = words
        self.post_message(self.Changed(words, where))

    @on(Input.Submitted, "#filter")
    def submitted(self, event: Input.Submitted) -> None:
        """Posts the filter at once, and that it is done, unless a word is not known."""
        event.stop()
        try:
            parse(event.value, now())
        except FilterError:
            return
        self.post()
        self.display = bool(event.value.strip())
        self.query_one("#hint", Static).display = False
        self.post_message(self.Done())

    @work(exclusive=True, group="hint")
    async def explain(self, words: str) -> None:
        """Shows what is wrong with the words, or else what the last one may be."""
        line = self.query_one("#hint", Static)
        line.display = True
        try:
            parse(words, now())
            found = await asyncio.to_thread(completion, words, self.values)
        except ScannerError as error:
            line.update(Text(for_terminal(str(error)), style="bold"))
            return
        line.update(Text(for_terminal(hint(words, found)), style="dim"))
