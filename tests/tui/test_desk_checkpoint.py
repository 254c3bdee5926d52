"""One checkpoint opened: images, evidence, links, and untrusted text."""

from dataclasses import replace
from pathlib import Path

import pytest
from filled_store import BEGAN, Crawl, Opener
from PIL import Image

from scanner.records import ConfigRow, Verdict
from tui.content.evidence import _of_match as match_lines
from tui.widgets.image_view import ImageView

HOSTILE = "evil/[bold red]x[/]\x1b[31m\u202egnp\x07\n[@click=app.quit]go[/]"


async def test_enter_opens_a_checkpoint_with_everything_that_a_decision_needs(
    filled: Crawl, desk: Opener
) -> None:
    async with desk(size=(90, 110)) as seen:
        await seen.press("enter")
        shown = seen.flat
        for needed in (
            "ben/strong-shoe",
            "https://huggingface.co/ben/strong-shoe",
            "0 of 3 flags decided",
            "0.943",
            "A flag needs 0.620 or more",
            "0.412",
            "Expected to be false: at most 1 in 250 of this scan's matches with this q value or less.",
            "a photo of sks shoe",
            "demo/tiny-diffusion",
            "creativeml-openrail-m",
            "undecided",
        ):
            assert needed in shown, needed
        assert "seed 17" not in shown
        assert "c0ffee" not in shown


async def test_the_details_have_everything_that_is_needed_to_repeat_the_scan(
    filled: Crawl, desk: Opener
) -> None:
    config = ConfigRow(filled.scans["ben/strong-shoe"].config_id, 'preset = "paper"\ntau = 0.62\n', BEGAN)
    filled.store.append([config])
    async with desk(size=(90, 110)) as seen:
        await seen.press("enter", "i")
        for needed in (
            "1,000 background",
            "0.0010",
            "1 in 1,000 comparisons",
            "24 references",
            "7 samples",
            "w' 3, correction -0.02",
            "100 samples from seed 0, 5 candidates",
            "seed 17",
            "c0ffee" * 8,
            "diffusers 0.42.0, torch 2.13.0",
            'preset = "paper"',
        ):
            assert needed in seen.flat, needed
        await seen.press("i")
        assert "seed 17" not in seen.flat
        assert seen.colours("#candidate")


async def test_images_are_blurred_until_a_key_and_again_after_leaving(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("enter")
        assert "Blurred: may show people. b shows" in seen.text
        assert "esc Back ? Keys q Quit" in seen.text  # the way back is shown on the narrowest terminal too
        blurred = seen.colours("#candidate")
        await seen.press("b")
        assert "Shown." in seen.text
        assert seen.colours("#candidate") != blurred
        assert seen.colours("#reference")
        await seen.press("b")
        assert seen.colours("#candidate") == blurred
        await seen.press("b", "escape", "enter")
        assert "Blurred" in seen.text
        assert seen.colours("#candidate") == blurred


async def test_the_candidate_stands_beside_the_reference_of_the_match_under_the_cursor(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("enter", "b")
        first = seen.colours("#reference")
        await seen.press("down")
        assert "Similarity 0.871" in seen.part("#evidence")
        assert seen.colours("#reference") != first


async def test_flagged_matches_come_first_and_the_others_state_that_they_are_no_flags(
    filled: Crawl, desk: Opener
) -> None:
    async with desk() as seen:
        await seen.press("enter", "end")
        assert "0.310 no flag" in seen.flat
        assert "A flag needs both the similarity and the q value" in seen.part("#evidence")


async def test_images_fill_the_terminal_and_the_arrows_still_select_matches(
    filled: Crawl, desk: Opener
) -> None:
    async with desk(size=(80, 24)) as seen:
        await seen.press("enter")
        small = seen.app.screen.query_one("#candidate", ImageView).size
        await seen.press("f", "down")
        large = seen.app.screen.query_one("#candidate", ImageView).size
        assert large.width * large.height > 2 * small.width * small.height
        assert "Match 2 of 4: similarity 0.871" in seen.text
        await seen.press("f")
        assert seen.app.screen.query_one("#candidate", ImageView).size == small


async def test_a_missing_reference_is_reported_in_its_place(filled: Crawl, desk: Opener) -> None:
    (filled.folder / "2-0.png").unlink()
    async with desk() as seen:
        await seen.press("enter")
        assert "The reference image is no longer in its place." in seen.part("#reference")
        assert seen.colours("#candidate")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
async def test_a_damaged_image_is_reported_in_its_place(filled: Crawl, desk: Opener, content: bytes) -> None:
    (filled.folder / "2-0.png").write_bytes(content)
    async with desk() as seen:
        await seen.press("enter")
        assert "The reference image is not an image in a supported format." in seen.part("#reference")


async def test_a_skipped_checkpoint_opens_with_its_reason(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("v", "v", "v", "enter")
        assert "Skipped: weights.ckpt is a pickle; only safetensors are opened" in seen.part("#evidence")
        await seen.press("c", "b", "down", "n")
        assert filled.store.query("SELECT count(*) AS n FROM decisions") == [{"n": 0}]


async def test_a_checkpoint_without_a_scan_opens_too(filled: Crawl, desk: Opener) -> None:
    async with desk() as seen:
        await seen.press("V", "enter")
        assert "has no scan yet" in seen.part("#evidence")


async def test_untrusted_text_is_shown_literally_and_controls_no_terminal(crawl: Crawl, desk: Opener) -> None:
    crawl.flagged(
        HOSTILE,
        [0.9],
        0.01,
        checkpoint={"caption": HOSTILE, "license": HOSTILE, "base": HOSTILE, "source": "hf"},
    )
    crawl.scan("odd/reason", Verdict.SKIPPED, reason=HOSTILE)
    async with desk(size=(160, 60)) as seen:
        assert "evil/[bold red]x[/]" in seen.text
        await seen.press("enter")
        assert "evil/[bold red]x[/]�[31m�gnp� [@click=app.quit]go[/]" in seen.text
        await seen.press("c")  # and in a toast
        await seen.press("escape", "c", "v", "v", "v")
        assert "[bold red]x[/]" in seen.text
        assert not {"\x1b", "\x07", "\u202e"} & set(seen.text)
        assert seen.app.is_running


async def test_only_web_addresses_are_opened(
    filled: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.flagged("zoe/local", [0.99], 0.0001, checkpoint={"url": "file:///etc/passwd"})
    opened: list[str] = []
    async with desk() as seen:
        monkeypatch.setattr(seen.app, "open_url", lambda url, **_: opened.append(url))
        await seen.press("enter", "o")
        assert opened == []
        assert "Only http and https" in seen.toast
        await seen.press("escape", "down", "enter", "o")
        assert opened == ["https://huggingface.co/ben/strong-shoe"]


async def test_a_large_image_is_refused_before_it_is_decoded(
    filled: Crawl, desk: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tui.images.MAX_PIXELS", 1000)
    async with desk() as seen:
        await seen.press("enter")
        assert "too large to open: 64 x 64 pixels" in seen.part("#reference")


async def test_a_image_of_any_shape_keeps_it(filled: Crawl, desk: Opener) -> None:
    Image.new("RGB", (300, 20), (200, 30, 30)).save(Path(filled.folder / "2-0.png"))
    async with desk() as seen:
        await seen.press("enter", "b")
        assert seen.colours("#reference") == {(200 // 16, 30 // 16, 30 // 16)}


def test_a_similarity_without_a_background_is_told_to_be_no_evidence(filled: Crawl) -> None:
    scan = filled.scans["ben/strong-shoe"]
    match = replace(filled.matches["ben/strong-shoe"][0], null_similarity=None, flagged=False)
    lines = match_lines(scan, match, None)
    assert [name for name, *_ in lines] == ["Gives back", "Similarity", "Clique"]
    assert "There was no background" in lines[0][2]
    assert "A flag needs" not in " ".join(text for *_, text in lines)
