"""The command itself: what it imports, how it fails, and its keys."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from filled_store import Crawl, Opener

from tui.app import DeskApp, main
from tui.keys import GROUPS
from tui.screens.checkpoint import CheckpointScreen
from tui.screens.checkpoint_list import ListScreen
from tui.screens.confirm import ConfirmScreen
from tui.screens.help import HelpScreen
from tui.screens.log import LogScreen
from tui.screens.note import NoteScreen
from tui.screens.overview import OverviewScreen
from tui.screens.pictures import PictureScreen, PicturesScreen
from tui.screens.saved_filters import SavedFiltersScreen
from tui.widgets.table import Table

VIEWS = OverviewScreen, PicturesScreen, PictureScreen, LogScreen
SCREENS = ListScreen, CheckpointScreen, HelpScreen, NoteScreen, ConfirmScreen, SavedFiltersScreen, *VIEWS
HOLDERS = DeskApp, Table, *SCREENS


def test_a_missing_store_is_an_error_of_two_lines_and_exit_code_2(tmp_path: Path) -> None:
    ended = CliRunner().invoke(main, ["--store", str(tmp_path / "none")])
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"finextract-tui: error: there is no store at {tmp_path / 'none'}.\n")
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == 2


@pytest.mark.parametrize("given", [[], ["FINEXTRACT_STORE"], ["FINEXTRACT_STORE", "--store"]])
def test_the_store_of_the_settings_is_opened_unless_the_environment_or_the_command_line_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FINEXTRACT_STORE", raising=False)
    monkeypatch.delenv("FINEXTRACT_CONFIG", raising=False)
    Path("scanner.toml").write_text('store = "of-the-settings"\n[crawl]\nstore = "of-a-crawl"\n')
    if "FINEXTRACT_STORE" in given:
        monkeypatch.setenv("FINEXTRACT_STORE", "of-the-environment")
    ended = CliRunner().invoke(main, ["--store", "of-the-command-line"] if "--store" in given else [])
    expected = {0: "of-the-settings", 1: "of-the-environment", 2: "of-the-command-line"}[len(given)]
    assert ended.exit_code == 2
    assert f"there is no store at {tmp_path / expected}." in ended.stderr


@pytest.mark.parametrize(
    ("content", "why"), [("store = 7", "store takes text in quotes, not 7"), ("x", "TOML")]
)
def test_settings_that_cannot_be_used_are_an_error_of_the_desk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, why: str
) -> None:
    (tmp_path / "scanner.toml").write_text(content)
    monkeypatch.setenv("FINEXTRACT_CONFIG", str(tmp_path / "scanner.toml"))
    monkeypatch.delenv("FINEXTRACT_STORE", raising=False)
    ended = CliRunner().invoke(main, [])
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"finextract-tui: error: {tmp_path / 'scanner.toml'}")
    assert why in ended.stderr


def test_the_desk_imports_neither_torch_nor_ray_and_of_the_method_only_what_is_light() -> None:
    program = "import sys, tui.app; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = ended.stdout.split()
    packages = {name.partition(".")[0] for name in modules}
    assert not packages & {"torch", "ray", "diffusers", "transformers", "onnxruntime", "huggingface_hub"}
    method = {name for name in modules if name.partition(".")[0] == "finextract"}
    assert method <= {
        "finextract",
        *(f"finextract.{name}" for name in ("errors", "images", "reasons", "text")),
    }


async def test_the_help_lists_every_key_and_a_remapped_one_as_it_is_now(filled: Crawl, desk: Opener) -> None:
    async with desk(size=(120, 160)) as seen:
        seen.app.set_keymap({"decide.confirm": "x"})
        await seen.press("question_mark")
        for keys in GROUPS.values():
            for key in keys:
                assert key.sentence in seen.flat, key.id
        assert "x Decide: yes" in seen.flat
        await seen.press("question_mark", "enter", "b", "x")
        assert "Recorded: ✓ confirmed" in seen.toast


def test_every_binding_of_the_desk_comes_from_the_keys_that_the_help_shows() -> None:
    documented = {key.id for keys in GROUPS.values() for key in keys}
    assert len(documented) == sum(len(keys) for keys in GROUPS.values())
    bound = {binding.id for holder in HOLDERS for binding in holder.BINDINGS}
    assert bound == documented


@pytest.mark.parametrize("holder", HOLDERS)
def test_every_key_has_its_action(holder: type) -> None:
    for binding in holder.BINDINGS:
        action = binding.action.partition("(")[0]
        if not action.startswith("app."):
            assert hasattr(holder, f"action_{action}"), binding.id


@pytest.mark.parametrize("screen", [ListScreen, CheckpointScreen, OverviewScreen, LogScreen])
def test_no_two_actions_on_a_screen_share_a_key(screen: type) -> None:
    bound = [*screen.BINDINGS, *DeskApp.BINDINGS, *Table.BINDINGS]
    keys = [key for binding in bound for key in binding.key.split(",")]
    assert len(keys) == len(set(keys))


async def test_q_quits_and_escape_goes_back(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("enter", "escape", "escape")
        assert isinstance(seen.app.screen, ListScreen)
        await seen.pilot.press("q")
        await seen.pilot.pause()
        assert not seen.app.is_running


async def test_without_colour_everything_is_still_shown(filled: Crawl, desk: Opener, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("NO_COLOR", "1")
    async with desk() as seen:
        await seen.press("enter", "b", "c", "d", "b")
        assert "✓ confirmed" in seen.text
        assert "✗ dismissed" in seen.text
        assert all(red == green == blue for red, green, blue in seen.colours("#candidate"))
