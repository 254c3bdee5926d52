"""Colours, marks and themes: every meaning has a mark, and a colour of the theme that is in use."""

from __future__ import annotations

from pathlib import Path

import pytest
from filled_store import Crawl, Desk, Opener
from rich.console import Console
from textual.app import App
from textual.theme import BUILTIN_THEMES

from scanner.records import Ground, ReviewDecision, Verdict
from scanner.store.store import Store
from tui.app import DeskApp
from tui.content.styles import (
    COLOURS,
    bar,
    decision_mark,
    ground_mark,
    grounds_mark,
    verdict_mark,
)
from tui.preferences import Preferences
from tui.themes import Styles, rich_theme


def colours_of(seen: Desk, words: str) -> set[str]:
    """The colours in which some words stand on the screen."""
    return {
        segment.style.color.name
        for strip in seen.app.screen._compositor.render_strips()
        for segment in strip
        if words in segment.text and segment.style and segment.style.color
    }


def test_no_two_verdicts_grounds_or_decisions_have_the_same_mark() -> None:
    texts = [
        *(verdict_mark(verdict) for verdict in (*Verdict, None)),
        *(ground_mark(ground) for ground in Ground),
        *(decision_mark(decision) for decision in (*ReviewDecision, None)),
    ]
    words = [text.plain for text in texts]
    marks = [word.partition(" ")[0] for word in words]
    assert len(set(marks)) == len(marks) == 5 + 2 + 4
    assert grounds_mark([Ground.TRAINED_ON, Ground.GIVES_BACK]).plain == "◆● both"
    assert {"● gives back", "◆ trained on", "✓ confirmed", "▲ flagged"} <= set(words)


@pytest.mark.parametrize("name", BUILTIN_THEMES)
def test_every_style_has_a_colour_in_every_theme_that_textual_has(name: str) -> None:
    app = App[None]()
    app.theme = name
    theme = rich_theme(app.get_css_variables())
    assert set(COLOURS) <= set(theme.styles)
    for style, variable in COLOURS.items():
        assert bool(variable) == (theme.styles[style].color is not None), style


def test_another_theme_replaces_the_colours_of_the_styles() -> None:
    console, app = Console(), App[None]()
    styles, found = Styles(console), []
    for name in ("textual-dark", "textual-light", "textual-dark"):
        app.theme = name
        styles.use(app.get_css_variables())
        found.append(console.get_style("decision.confirm"))
    assert found[0] == found[2] != found[1]


def test_a_bar_is_as_long_as_its_share_and_never_empty_for_something() -> None:
    assert bar(50, 100, 10).plain == "█████"
    assert bar(1, 100_000, 10).plain == "▏"
    assert bar(0, 100, 10).plain == ""
    assert bar(0, 0, 10).plain == ""


async def test_a_flag_and_a_confirmation_have_other_colours_than_an_open_row(
    filled: Crawl, desk: Opener
) -> None:
    async with desk(size=(120, 40)) as seen:
        await seen.press("enter", "b", "c", "d", "down")
        back, dismissed, confirmed = (
            colours_of(seen, w) for w in ("● gives back", "✗ dismissed", "✓ confirmed")
        )
        assert len(back | dismissed | confirmed) >= 3


async def test_the_theme_is_chosen_from_a_list_redraws_what_is_open_and_is_kept_for_the_next_run(
    filled: Crawl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    kept = tmp_path / "config" / "desk.toml"
    app = DeskApp(Store(filled.store.root), "vera", 60, preferences=Preferences(kept))
    async with app.run_test(size=(120, 40)) as pilot:
        seen = Desk(app, pilot)
        await seen.settle()
        await seen.press("enter")
        dark = colours_of(seen, "flagged: gives back")
        await seen.press("T")
        await seen.write("textual-light")
        await seen.until(lambda: "textual-light" in seen.text)
        await seen.press("enter")
        await seen.until(lambda: app.theme == "textual-light" and "What was found" in seen.text)
        assert colours_of(seen, "flagged: gives back") not in (dark, set())
    assert kept.read_text() == 'theme = "textual-light"\n'
    assert DeskApp(Store(filled.store.root), "vera", preferences=Preferences(kept)).theme == "textual-light"


@pytest.mark.parametrize("content", [None, "theme = 7", 'theme = "none such"', "\0 no TOML"])
def test_preferences_that_cannot_be_used_are_ignored(
    filled: Crawl, tmp_path: Path, content: str | None
) -> None:
    kept = tmp_path / "desk.toml"
    if content is not None:
        kept.write_text(content)
    app = DeskApp(Store(filled.store.root), "vera", preferences=Preferences(kept))
    assert app.theme == "textual-dark"
    Preferences(tmp_path / "desk.toml" / "below a file").keep_theme("nord")  # cannot be written: no error
