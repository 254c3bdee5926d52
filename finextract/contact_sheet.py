"""The contact sheet of an audit: every training image above the sample that comes nearest to it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from finextract.audit import Audit
from finextract.membership import ReferenceEvidence
from finextract.text import printable

MARGIN, LINE, SIZE, COLUMNS = 8, 16, 160, 6
FONT = ImageFont.load_default(size=12)


def contact_sheet(result: Audit, heading: Sequence[str]) -> Image.Image:
    """Each training image above its nearest sample, and the candidates below them.

    `heading` is printed line by line at the top: what was audited, when and how. Below each pair stand the
    file name of the training image, whether it came back (the SSCD similarity of the two, of that which a
    perfect copy would have), and whether it was trained on.
    """
    extraction = result.extraction
    pairs = [
        (
            [picture, extraction.picture(result.nearest[i])] if result.nearest else [picture],
            [
                name,
                f"{'came back' if back else 'not back'}: {similarity:.2f} of {ceiling:.2f}",
                _trained_on(result.membership.references[i]),
            ],
        )
        for i, (name, picture, similarity, ceiling, back) in enumerate(
            zip(
                result.names,
                result.references,
                result.over_samples,
                result.ceilings,
                result.gives_back,
                strict=True,
            )
        )
    ]
    candidates = [
        (
            [extraction.picture(clique.representative)],
            [
                f"seed {extraction.seeds[clique.representative]}",
                f"in {len(clique.members)} sample{'s' if len(clique.members) != 1 else ''}",
            ],
        )
        for clique in extraction.candidates
    ]
    sections = [
        ("Each training image above its nearest sample", pairs, 2),
        ("Candidates: one image of each group of samples that are alike", candidates, 1),
    ]
    columns = min(COLUMNS, max(len(pairs), len(candidates)))
    width = max(
        MARGIN + columns * (SIZE + MARGIN),
        2 * MARGIN + max(int(FONT.getlength(line)) for line in (*heading, *(s[0] for s in sections))),
    )
    height = 2 * MARGIN + LINE * len(heading)
    for _, cells, stacked in sections:
        height += 2 * MARGIN + LINE + -(-len(cells) // columns) * _cell_height(stacked)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for line in heading:
        draw.text((MARGIN, y), printable(line, 400), fill="black", font=FONT)
        y += LINE
    for title, cells, stacked in sections:
        y += 2 * MARGIN
        draw.text((MARGIN, y), title, fill="black", font=FONT)
        y += LINE
        for i, (pictures, lines) in enumerate(cells):
            left, top = MARGIN + i % columns * (SIZE + MARGIN), y + i // columns * _cell_height(stacked)
            for k, picture in enumerate(pictures):
                sheet.paste(_fit(picture), (left, top + k * SIZE))
            for k, line in enumerate(lines):
                draw.text((left, top + stacked * SIZE + k * LINE), _shortened(line), fill="black", font=FONT)
        y += -(-len(cells) // columns) * _cell_height(stacked)
    return sheet


def _trained_on(found: ReferenceEvidence) -> str:
    return f"trained on (q {found.q_value:.1g})" if found.trained_on else "training is not shown"


def _cell_height(stacked: int) -> int:
    """The height of a cell with this many pictures above each other, three lines of text, and a margin."""
    return stacked * SIZE + 3 * LINE + MARGIN


def _shortened(text: str) -> str:
    """A text without control characters, cut in its middle where it is wider than a picture."""
    text = printable(text, 200)
    if FONT.getlength(text) <= SIZE:
        return text
    ends = next(n for n in range(len(text) // 2, -1, -1) if FONT.getlength(_ends(text, n)) <= SIZE)
    return _ends(text, ends)


def _ends(text: str, n: int) -> str:
    return f"{text[:n]}...{text[len(text) - n :]}"


def _fit(picture: Image.Image) -> Image.Image:
    """The picture on a white square of SIZE x SIZE pixels."""
    scale = SIZE / max(picture.size)
    small = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.BICUBIC,
    )
    square = Image.new("RGB", (SIZE, SIZE), "white")
    square.paste(small, ((SIZE - small.width) // 2, (SIZE - small.height) // 2))
    return square
