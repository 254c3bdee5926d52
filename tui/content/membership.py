"""The evidence for a membership in words, and its null drawn in cells; as Rich renderables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.text import Text

from scanner.records import Membership, Scan
from scanner.wording import rarely
from tui.content.formatting import NONE, count, probability
from tui.content.styles import MUTED

# What each framing does with a picture (finextract.framing, which the desk does not import).
FRAMINGS = {
    "squash": "the whole picture, squashed to that size",
    "centre": "the largest centred part of that shape",
    "top-left": "a crop at the top left",
    "top-right": "a crop at the top right",
    "bottom-left": "a crop at the bottom left",
    "bottom-right": "a crop at the bottom right",
    "shift-left": "the centred part, moved a little to the left",
    "shift-right": "the centred part, moved a little to the right",
    "shift-up": "the centred part, moved up a little",
    "shift-down": "the centred part, moved down a little",
}
SHADES = "·░▒▓█"  # of a heat map, from no help to the most
HEAT_LEGEND = "denser: where in the picture the fine-tuning helped most (·: hardly or not)"
LEGEND = "• one of its own versions (a digit: so many)"

type Row = tuple[str, str, RenderableType]  # a name, a number, and what the number means


def rows_of(scan: Scan | None, found: Membership) -> list[Row]:
    """Returns the evidence for a membership."""
    return _of_corpus(scan, found) if not found.reference_id else _of_reference(scan, found)


def framing_in_words(name: str) -> str:
    """Returns what a framing does with a picture: "zoom-90" is `a centred crop with 90 % of the side`."""
    kind, _, value = name.partition("-")
    if kind == "zoom":
        return f"a centred crop with {value} % of the side"
    if "x" in name and all(side.isdigit() for side in name.split("x")):
        height, width = name.split("x")
        return f"a centred part of {width} x {height} pixels, a size of the trainer's own"
    return FRAMINGS.get(name, name)


def _of_reference(scan: Scan | None, found: Membership) -> list[Row]:
    compared = found.background_p is not None
    if found.trained_on:
        also = ", and its log-ratio stands out of the background's" if compared else ""
        result = f"Its q value is what a flag needs{also}."
    else:
        also = ", and a log-ratio that stands out of the background's" if compared else ""
        result = f"A flag needs the q value that is named below{also}."
    rows: list[Row] = [("Trained on", "flagged" if found.trained_on else "no flag", result)]
    if found.margin is not None and found.framed_log_ratio is not None:
        theirs = found.framed_log_ratio - found.margin
        margin = (
            "The fine-tuning helped this much more on this picture than on its own mirrored and moved "
            f"versions, which nobody trains on: log-ratio {found.framed_log_ratio:.3f}, theirs {theirs:.3f}."
        )
        rows.append(("Margin", f"{found.margin:.3f}", margin))
    if found.variant_log_ratios and found.framed_log_ratio is not None:
        rows.append(("Drawn", "", Drawing(found.framed_log_ratio, found.variant_log_ratios)))
    if found.heat:
        rows.append(("Where", "", HeatMap(found.heat)))
    rows.append(
        (
            "p value",
            probability(found.p_value),
            "If the checkpoint was not trained on this picture, a margin this high comes up in "
            f"{rarely(found.p_value)} pictures.",
        )
    )
    rows += [_q_value(scan, found), *_framing(found), _log_ratio(found)]
    return rows


def _of_corpus(scan: Scan | None, found: Membership) -> list[Row]:
    result = (
        "Pictures of this corpus were trained on. This does not say which."
        if found.trained_on
        else "It does not pass the test, which is about the corpus as a whole."
    )
    margin = (
        f"The fine-tuning helped this much more on {count(found.num_pictures, 'picture')} of the corpus than "
        "on their mirror images, as a mean difference of log-ratios."
    )
    if found.margin_low is not None and found.margin_high is not None:
        margin += f" 95 % interval: {found.margin_low:.3f} to {found.margin_high:.3f}."
    return [
        ("Trained on", "flagged" if found.trained_on else "no flag", result),
        ("Margin", NONE if found.margin is None else f"{found.margin:.3f}", margin),
        (
            "p value",
            probability(found.p_value),
            "If the checkpoint was trained on none of these pictures, a margin this high comes up in "
            f"{rarely(found.p_value)} corpora.",
        ),
        _q_value(scan, found),
        (
            "Log-ratio",
            f"{found.log_ratio:.3f}",
            "log of the base model's loss over the checkpoint's, on average.",
        ),
    ]


def _q_value(scan: Scan | None, found: Membership) -> Row:
    references = (
        count(scan.num_references, "reference") if scan and scan.num_references else "many references"
    )
    needs = f" A flag needs {scan.alpha:g} or less." if scan and scan.alpha is not None else ""
    return (
        "q value",
        probability(found.q_value),
        f"Expected to be false: {rarely(found.q_value)} of this scan's memberships with this q value or "
        f"less. Corrected for examining {references} and their corpora.{needs}",
    )


def _framing(found: Membership) -> list[Row]:
    if not found.framing:
        return []
    words = framing_in_words(found.framing)
    if found.framings_tried < 2:
        return [("Framing", "", f"The picture was cut to the model's size as {words}.")]
    return [
        (
            "Framing",
            f"{found.framings_tried} tried",
            "Of these ways to cut the picture to the model's size, the fine-tuning helped most on "
            f"{words}. The p value is corrected for the choice.",
        )
    ]


def _log_ratio(found: Membership) -> Row:
    words = "log of the base model's loss over the checkpoint's, on the whole picture"
    if not found.num_background or found.background_p is None:
        return "Log-ratio", f"{found.log_ratio:.3f}", f"{words}. There was no background to compare it with."
    reached = (
        round(found.background_p * (found.num_background + 1)) - 1
    )  # p counts the pictures that reach it
    lower = found.num_background - reached
    highest = (
        ""
        if found.background_highest is None
        else f"; the highest of them has {found.background_highest:.3f}"
    )
    return (
        "Log-ratio",
        f"{found.log_ratio:.3f}",
        f"{words}: higher than {lower:,} of {found.num_background:,} background pictures{highest}.",
    )


class Drawing:
    """The log-ratios of a picture and of its own variants on one axis, as wide as there is room."""

    def __init__(self, picture: float, variants: Sequence[float]) -> None:
        self.picture, self.variants = picture, variants

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(20, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in drawn(self.picture, self.variants, options.max_width):
            yield Text(line, no_wrap=True, overflow="crop")
        yield Text(LEGEND, style=MUTED)


class HeatMap:
    """Where in the framed picture the log-ratio comes from."""

    def __init__(self, cells: Sequence[float]) -> None:
        self.cells = cells

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(math.isqrt(len(self.cells)), options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in shaded(self.cells):
            yield Text(line, no_wrap=True, overflow="crop")
        yield Text(HEAT_LEGEND, style=MUTED)


def shaded(cells: Sequence[float]) -> list[str]:
    """Returns the lines of a square heat map; a shade tells a value's share of the highest one.

    A line shows the means of two rows of cells, because a character is twice as high as it is wide.
    """
    side = math.isqrt(len(cells))
    rows = [cells[at : at + side] for at in range(0, len(cells), side)]
    pairs = zip(rows[::2], rows[1::2], strict=True)
    means = [[(upper + lower) / 2 for upper, lower in zip(*pair, strict=True)] for pair in pairs]
    highest = max(map(max, means))

    def shade(value: float) -> str:
        return SHADES[max(0, round(value / highest * (len(SHADES) - 1)))] if highest > 0 else SHADES[0]

    return ["".join(map(shade, line)) for line in means]


def drawn(picture: float, variants: Sequence[float], width: int) -> list[str]:
    """Returns three lines: the variants on an axis, a mark at the picture, and the ends of the axis."""
    low, high = min(picture, *variants), max(picture, *variants)

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (width - 1)) if high > low else width // 2

    axis = ["─"] * width
    for at, number in Counter(map(place, variants)).items():
        axis[at] = "•" if number == 1 else str(min(number, 9))
    at, name = place(picture), "this picture"
    fits_left = at > len(name)
    mark = f"{name} ▲".rjust(at + 1) if fits_left else " " * at + f"▲ {name}"
    left, right = f"{low:.3f}", f"{high:.3f}"
    ends = f"{left}{right.rjust(width - len(left))}" if high > low else left.center(width)
    return ["".join(axis), mark, ends]
