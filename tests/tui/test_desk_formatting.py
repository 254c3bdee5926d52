"""Untrusted text, numbers and images as terminal text."""

from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from scanner.text import for_terminal
from tui.content.formatting import one_in, probability, short_time, web_address
from tui.images import blur, fit


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        ("anna/shoe", "anna/shoe"),
        ("a\x1b]52;c;Zm9v\x07b", "a�]52;c;Zm9v�b"),
        ("a\u202eb\u200bc\x9bd", "a�b�c�d"),
        ("one\ntwo\tthree\u2028four", "one two three�four"),
        ("z" + "\u0301" * 40, "z\u0301\u0301"),
        ("鞋の写真 👟", "鞋の写真 👟"),
        (None, ""),
    ],
)
def test_untrusted_text_becomes_one_line_that_controls_no_terminal(untrusted: str | None, shown: str) -> None:
    assert for_terminal(untrusted) == shown


def test_long_untrusted_text_is_cut() -> None:
    assert for_terminal("x" * 100, limit=10) == "x" * 10 + "…"


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("https://huggingface.co/a/b", True),
        ("http://127.0.0.1:8000/a/b", True),
        ("file:///etc/passwd", False),
        ("javascript:alert(1)", False),
        ("https://", False),
        ("https://a/\u202eb", False),
        ("https://a b", False),
        ("https://[bad", False),
        ("/home/anna/models", False),
        ("", False),
    ],
)
def test_a_browser_is_sent_to_plain_web_addresses_only(url: str, opened: bool) -> None:
    assert (web_address(url) == url) is opened


def test_a_probability_is_never_a_bare_zero() -> None:
    assert [probability(value) for value in (0.00001, 0.0012345, 1.0, None)] == [
        "<0.0001",
        "0.0012",
        "1.0000",
        "–",
    ]
    assert [one_in(value) for value in (0.000999, 0.25, 0.8)] == ["1 in 1,001", "1 in 4", "80%"]


def test_a_time_is_shown_as_short_as_possible() -> None:
    present = datetime(2026, 11, 24, 12, tzinfo=UTC)
    shown = [short_time(present - timedelta(days=days), present) for days in (0, 2, 700)]
    assert shown[0].endswith(":00")
    assert shown[1:] == ["22 Nov", "Dec 2024"]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (640, 40), (3, 900), (1, 1)])
def test_an_image_fits_its_cells_and_keeps_its_shape(width: int, height: int) -> None:
    fitted = fit(Image.new("RGB", (width, height)), 38, 19)
    assert fitted.width <= 38
    assert fitted.height <= 38
    assert fitted.height % 2 == 0
    assert 38 in fitted.size


def test_a_blurred_image_has_lost_its_detail() -> None:
    stripes = Image.new("L", (64, 64))
    stripes.putdata([255 * (x % 2) for _ in range(64) for x in range(64)])
    low, high = blur(stripes.convert("RGB")).convert("L").getextrema()
    assert high - low < 30
