"""Every key of the desk. Screens take their bindings from here, and `?` shows them from here.

Each has an id, by which `App.set_keymap` can give it another key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from textual.binding import Binding, BindingType


@dataclass(frozen=True, slots=True)
class Key:
    """One key, what it does in a word for the footer, and in a sentence for the help."""

    id: str
    keys: str  # as Textual names them, comma-separated where several do the same
    action: str
    word: str
    sentence: str
    in_footer: bool = True


MOVE = [
    Key("move.up", "up,k", "cursor_up", "Up", "One row up", False),
    Key("move.down", "down,j", "cursor_down", "Down", "One row down; more rows come at the end", False),
    Key("move.page_up", "pageup", "page_up", "Page up", "One page up", False),
    Key("move.page_down", "pagedown", "page_down", "Page down", "One page down", False),
    Key("move.first", "home,g", "scroll_top", "First", "To the first row", False),
    Key("move.last", "end,G", "scroll_bottom", "Last", "To the last row that is loaded", False),
    Key("move.open", "enter", "select_cursor", "Open", "Open the checkpoint under the cursor", False),
]
DECIDE = [
    Key("decide.confirm", "c", "decide('confirm')", "Confirm", "Record: yes, this is the reference picture"),
    Key("decide.dismiss", "d", "decide('dismiss')", "Dismiss", "Record: no, this is another picture"),
    Key("decide.unsure", "u", "decide('unsure')", "Unsure", "Record: looked at it, cannot tell"),
    Key(
        "decide.undo",
        "z",
        "take_back",
        "Undo",
        "Take back the decision under the cursor, or, where there is none, your last one",
    ),
    Key("decide.note", "n", "note", "Note", "Write a note beside the decision"),
]
LIST = [
    Key("list.filter", "slash", "filter", "Find", "List only repos whose name contains what you type"),
    Key("list.next", "v", "turn(1)", "View", "List other verdicts: flagged, all, nothing found, skipped …"),
    Key("list.previous", "V", "turn(-1)", "Back", "The same, the other way round", False),
    Key("list.reload", "r", "reload", "Reload", "Ask the store again now", False),
    Key("list.unfilter", "escape", "unfilter", "Clear", "Clear the filter", False),
]
CHECKPOINT = [
    Key("checkpoint.reveal", "b", "reveal", "Show", "Show the pictures, or blur them again"),
    Key("checkpoint.large", "f", "large", "Large", "Pictures as large as the terminal, or back"),
    Key("checkpoint.open_link", "o", "open_link", "Link", "Open the source in the browser", False),
    Key("checkpoint.copy_link", "y", "copy_link", "Copy", "Copy the source's address", False),
    Key("checkpoint.back", "escape", "back", "Back", "Back to the list; pictures are blurred again", False),
]
EVERYWHERE = [
    Key("desk.help", "question_mark", "help", "Keys", "Show this list of keys"),
    Key(
        "desk.next_pane",
        "tab",
        "app.focus_next",
        "Next",
        "To the next part of the screen (to scroll it)",
        False,
    ),
    Key("desk.quit", "q", "quit", "Quit", "Leave; every decision is already recorded"),
]
NOTE = [
    Key("note.save", "enter", "save", "Save", "Record the note that is being written"),
    Key("note.cancel", "escape", "cancel", "Cancel", "Leave the note as it was"),
]
HELP = [
    Key("help.close", "escape,question_mark,q", "close", "Close", "Close this list of keys"),
]
GROUPS = {
    "Moving": MOVE,
    "Deciding, on a match or on a whole checkpoint": DECIDE,
    "The list": LIST,
    "A checkpoint": CHECKPOINT,
    "Writing a note": NOTE,
    "Everywhere": EVERYWHERE,
    "Here": HELP,
}


def bindings(*groups: Iterable[Key]) -> list[BindingType]:
    """The groups' keys as Textual takes them, the footer's words included."""
    return [
        Binding(key.keys, key.action, key.word, show=key.in_footer, tooltip=key.sentence, id=key.id)
        for group in groups
        for key in group
    ]
