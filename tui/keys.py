"""Every key of the desk. The bindings of all screens and the list of keys that `?` shows are made from these.

To add a key, add a `Key` to one of the groups, and a method `action_<action>` to the screens that bind the
group. Each key has an id, by which `App.set_keymap` can map it to another key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from textual.binding import Binding, BindingType


@dataclass(frozen=True, slots=True)
class Key:
    """One key and what it does: one or two words for the footer, one sentence for the list of keys."""

    id: str
    keys: str  # Textual's names, separated by commas if several keys do the same
    action: str
    label: str
    sentence: str
    in_footer: bool = True


MOVE = [
    Key("move.up", "up,k", "cursor_up", "Up", "One row up", False),
    Key("move.down", "down,j", "cursor_down", "Down", "One row down; at the last row, load more", False),
    Key("move.page_up", "pageup", "page_up", "Page up", "One page up", False),
    Key("move.page_down", "pagedown", "page_down", "Page down", "One page down", False),
    Key("move.first", "home,g", "scroll_top", "First", "To the first row", False),
    Key("move.last", "end,G", "scroll_bottom", "Last", "To the last loaded row", False),
    Key("move.open", "enter", "select_cursor", "Open", "Open the checkpoint under the cursor", False),
]
DECIDE = [
    Key(
        "decide.confirm",
        "c",
        "decide('confirm')",
        "Confirm",
        "Decide: yes, the claim of the row holds: given back, or trained on",
    ),
    Key(
        "decide.dismiss",
        "d",
        "decide('dismiss')",
        "Dismiss",
        "Decide: no, it is another image, or the evidence does not convince",
    ),
    Key("decide.unsure", "u", "decide('unsure')", "Unsure", "Decide: cannot tell after looking at it"),
    Key(
        "decide.undo",
        "z",
        "undo",
        "Undo",
        "Withdraw the decision under the cursor, or what you recorded last",
    ),
    Key("decide.note", "n", "note", "Note", "Write a note, with or without a decision"),
]
LIST = [
    Key("list.filter", "slash", "filter", "Find", "Filter by part of a repo's name, or by the words below"),
    Key("list.saved", "f", "saved_filters", "Filters", "Choose a saved filter, or save this one", False),
    Key(
        "list.next",
        "v",
        "shift_filter(1)",
        "View",
        "List the next verdict: flagged, all, nothing found, …",
    ),
    Key("list.previous", "V", "shift_filter(-1)", "Back", "List the previous verdict", False),
    Key("list.sort", "s", "sort", "Sort", "Sort by the next column; a click on a heading sorts by it"),
    Key("list.reverse", "S", "reverse", "Reverse", "Reverse the order", False),
    Key("list.undecided", "N", "next_undecided", "Next", "To the next undecided row of the whole list"),
    Key("list.reveal", "b", "reveal", "Show", "Show the images beside the list, or blur them again", False),
    Key("list.reload", "r", "reload", "Reload", "Read the store again now", False),
    Key("list.unfilter", "escape", "clear_filter", "Clear", "Clear the filter, or else the marks", False),
]
MARK = [
    Key("mark.toggle", "space", "mark", "Mark", "Mark the row or take its mark away, and go one row down"),
    Key("mark.all", "asterisk", "mark_all", "Mark all", "Mark all loaded rows, or none", False),
]
CHECKPOINT = [
    Key("checkpoint.reveal", "b", "reveal", "Show", "Show the images, or blur them again"),
    Key("checkpoint.large", "f", "large", "Large", "Images as large as the terminal, or small again"),
    Key("checkpoint.details", "i", "details", "Details", "Ids, hashes and configuration, or back", False),
    Key("checkpoint.report", "e", "report", "Report", "Write a report of it: a page and its data", False),
    Key("checkpoint.turn", "w", "turn", "Swap", "Candidate and reference in turn at the same place", False),
    Key("checkpoint.flicker", "W", "flicker", "Flicker", "The same by itself, or side by side again", False),
    Key("checkpoint.side", "s", "side", "Side", "Candidate and reference side by side again", False),
    Key("checkpoint.zoom", "m", "zoom", "Zoom", "Enlarge a quarter of both images, or show all", False),
    Key("checkpoint.left", "H,shift+left", "move(-1,0)", "Left", "Move the enlarged quarter left", False),
    Key("checkpoint.right", "L,shift+right", "move(1,0)", "Right", "Move the enlarged quarter right", False),
    Key("checkpoint.higher", "K,shift+up", "move(0,-1)", "Up", "Move the enlarged quarter up", False),
    Key("checkpoint.lower", "J,shift+down", "move(0,1)", "Down", "Move the enlarged quarter down", False),
    Key("checkpoint.open_link", "o", "open_link", "Link", "Open the checkpoint's page in the browser", False),
    Key("checkpoint.copy_link", "y", "copy_link", "Copy", "Copy the address of the checkpoint's page", False),
    Key("checkpoint.back", "escape", "back", "Back", "Back to the list; the images are blurred again"),
]
VIEW = [
    Key("view.close", "escape", "close", "Back", "Back to the screen before"),
    Key("view.reload", "r", "reload", "Reload", "Read the store again now", False),
]
PICTURES = [
    Key("pictures.reveal", "b", "reveal", "Show", "Show the picture, or blur it again"),
]
LOG = [
    Key("log.reviewer", "v", "next_reviewer", "Reviewer", "List the events of the next reviewer, or of all"),
    Key("log.export", "x", "export", "Export", "Write the events that are listed into a file (JSON lines)"),
]
EVERYWHERE = [
    Key("desk.list", "1", "view('list')", "Checkpoints", "The list of checkpoints", False),
    Key("desk.overview", "2", "view('overview')", "Overview", "What the store holds, drawn as bars", False),
    Key(
        "desk.pictures",
        "3",
        "view('pictures')",
        "Pictures",
        "Your pictures that were found",
        False,
    ),
    Key("desk.log", "4", "view('log')", "Log", "All that reviewers have said, newest first", False),
    Key(
        "desk.help",
        "question_mark",
        "help",
        "Keys",
        "Show all keys, the words of the filter and those of the lists",
    ),
    Key("desk.palette", "ctrl+p", "command_palette", "Commands", "Find any command by its name", False),
    Key(
        "desk.next_pane",
        "tab",
        "app.focus_next",
        "Next",
        "To the next part of the screen, to scroll it",
        False,
    ),
    Key("desk.theme", "T", "change_theme", "Theme", "Choose the colours; kept for the next run", False),
    Key("desk.quit", "q", "quit", "Quit", "Quit; every decision is already recorded"),
]
NOTE = [
    Key("note.save", "enter", "save", "Save", "Record the note"),
    Key("note.cancel", "escape", "cancel", "Cancel", "Close without changing the note"),
]
CONFIRM = [
    Key("confirm.yes", "enter,y", "answer('all')", "All", "Do it for all of them"),
    Key("confirm.one", "o", "answer('one')", "Only this", "Do it for the row under the cursor alone"),
    Key("confirm.no", "escape", "answer('')", "Cancel", "Do nothing"),
]
SAVED = [
    Key("saved.choose", "enter", "choose", "Choose", "List what the filter selects, or save under the name"),
    Key("saved.remove", "delete,ctrl+d", "remove", "Remove", "Remove the saved filter under the cursor"),
    Key("saved.close", "escape", "close", "Close", "Close without choosing one"),
]
HELP = [
    Key("help.close", "escape,question_mark,q", "close", "Close", "Close this list of keys"),
]
GROUPS = {
    "Moving": MOVE,
    "Deciding, on a row of evidence or on a whole checkpoint": DECIDE,
    "The list": LIST,
    "Marked rows: the keys above decide on all of them at once": MARK,
    "A checkpoint": CHECKPOINT,
    "Overview, pictures and log": VIEW,
    "My pictures": PICTURES,
    "The log": LOG,
    "Writing a note": NOTE,
    "Before a decision on several rows": CONFIRM,
    "Saved filters": SAVED,
    "Everywhere": EVERYWHERE,
    "Here": HELP,
}


def bindings(*groups: Iterable[Key]) -> list[BindingType]:
    """Returns the keys of the groups as bindings for Textual."""
    return [
        Binding(key.keys, key.action, key.label, show=key.in_footer, tooltip=key.sentence, id=key.id)
        for group in groups
        for key in group
    ]
