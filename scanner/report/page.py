"""The page of a report: the contents in words, with the pictures. Every text is escaped by the template."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from scanner.match.pictures import StoredPicture, UnreadablePicture
from scanner.records import Verdict
from scanner.report.contents import digest_of
from scanner.report.words import in_short, meaning_of, standing_of, verdict_of
from scanner.store.store import Store
from scanner.text import printable
from scanner.wording import count, one_in, probability, utc

PICTURES = 40  # rows with pictures on a page, so that it can still be sent
BAR = 300  # pixels of a similarity of 1
CHANCE = "If it had not been trained on, this would come up in at most"
METHOD = (
    "Candidates are drawn by model guidance: samples of the checkpoint are pushed away from what its base "
    "model would draw (FineXtract: Wu, Zhang and Wu, Leveraging Model Guidance to Extract Training Data from "
    "Personalized Diffusion Models, ICML 2025). They are compared with the images by SSCD, a descriptor made "
    "for finding copies (Pizzi et al., CVPR 2022). Whether an image was trained on is told from the errors "
    "of the checkpoint and of its base in removing noise from it.",
    "Measured on small models whose training images are known (docs/benchmarks.md and docs/method.md of the "
    "program): on 25 checkpoints all 137 training images were found to be trained on, and none of 52 other "
    "works of the same hands; of 272 works of the same hands that were not trained on, none was said to be "
    "given back. Full-size models may err more or less often.",
)


@dataclass(frozen=True, slots=True)
class _Picture:
    uri: str
    alt: str
    caption: str


def page_of(store: Store, contents: Sequence[dict[str, Any]], data: dict[str, Any]) -> str:
    """One page for the reports of `contents`, whose JSON twin is `data`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("scanner.report").joinpath("page.jinja").read_text("utf-8"))
    repos = [printable(c["checkpoint"]["repo"], 200) for c in contents]
    title = (
        f"What was found in {repos[0]}" if len(repos) == 1 else f"What was found in {len(repos)} checkpoints"
    )
    return template.render(
        title=title,
        written=_readable(data["written_at"]),
        data=data,
        reports=[_report(store, c) for c in contents],
        method=METHOD,
        digest=digest_of(data),
    )


def _report(store: Store, data: dict[str, Any]) -> dict[str, Any]:
    scan, rows = data["scan"], data["evidence"]
    shown = [_row(store, row, scan, with_pictures=n < PICTURES) for n, row in enumerate(rows)]
    return {
        "data": data,
        "flagged": scan is not None and scan["verdict"] == Verdict.FLAGGED,
        "verdict": verdict_of(scan),
        "short": in_short(scan, rows),
        "meaning": meaning_of(scan, rows),
        "examined": _examined(data),
        "rows": shown,
        "decisions": [_decision(event) for event in data["decisions"]],
        "repeat": _repeat(data),
        "hashes": _hashes(data),
    }


def _examined(data: dict[str, Any]) -> list[tuple[str, str]]:
    c, scan = data["checkpoint"], data["scan"]
    pairs = [
        ("Repository", c["repo"]), ("Page", c["address"]), ("Listed by", c["source"]),
        ("File", c["file"] or "all of the repository"), ("Revision", c["revision"]),
        ("Kind", f"{c['kind']}, {c['family']}"), ("Base model", c["base"] or "not known"),
        ("Licence", c["license"] or "not stated"), ("Published", _readable(c["published_at"])),
        ("Listed", _readable(c["listed_at"])),
    ]  # fmt: skip
    if scan is not None:
        pairs += [
            ("Scanned", _readable(scan["finished_at"])),
            ("Compared with", _compared(scan)),
        ]
        if scan["samples"]:
            drawn = f"{count(scan['samples'], 'sample')}, {count(scan['candidates'], 'candidate')}"
            pairs.append(("Drawn", drawn))
            pairs.append(("Caption", scan["caption"] or "none; drawn without a prompt"))
    return [(name, printable(str(value), 500)) for name, value in pairs]


def _readable(time: str | None) -> str:
    return "not stated" if time is None else utc(datetime.fromisoformat(time))


def _compared(scan: dict[str, Any]) -> str:
    background = count(scan["background_images"], "background image")
    return f"{count(scan['references'], 'image')}, and {background} that it was not trained on"


def _row(
    store: Store, row: dict[str, Any], scan: dict[str, Any], *, with_pictures: bool
) -> dict[str, Any]:  # fmt: skip
    match, found = row["match"], row["membership"]
    name = printable(row["reference"]["path"] or row["reference"]["sha256"], 200).replace("\\", "/")
    title = (
        name.rsplit("/", 1)[-1] if row["reference"]["sha256"] else f"The corpus {row['corpus']} as a whole"
    )
    pictures, missing = _pictures(store, row) if with_pictures else ([], [])
    sentences = [*(_of_match(match, scan) if match else []), *(_of_membership(found) if found else [])]
    return {
        "title": f"{title}: {standing_of(row)}",
        "pictures": pictures,
        "missing": missing,
        "bars": _bars(match) if match else [],
        "dots": _dots(found) if found else None,
        "sentences": sentences,
        "decisions": [_decision(event) for event in row["decisions"]],
    }


def _pictures(store: Store, row: dict[str, Any]) -> tuple[list[_Picture], list[str]]:
    """The reference and the candidate of a row, and a sentence for each that is lost."""
    reference, candidate = row["reference"], row["candidate"]
    pictures, missing = [], []
    if reference["sha256"]:
        stored = StoredPicture(
            reference["sha256"], row["corpus"], reference["path"] or "", reference["copy_sha256"], store
        )
        try:
            stored.open().save(stream := io.BytesIO(), format="PNG")
            caption = f"Your image, of the corpus {row['corpus']}."
            pictures.append(_Picture(_uri(stream.getvalue()), "your image", printable(caption, 200)))
        except UnreadablePicture:
            missing.append("The store holds no copy of your image.")
    if candidate and row["match"]:
        alt, caption = "the image that the checkpoint drew", f"Drawn from seed {candidate['seed']}."
        try:
            pictures.append(_Picture(_uri(store.image(candidate["image_sha256"])), alt, caption))
        except FileNotFoundError:
            missing.append(f"The store holds no copy of {alt}.")
    return pictures, missing


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _bars(match: dict[str, Any]) -> list[dict[str, Any]]:
    values = [
        ("this match", match["similarity"], True),
        ("needed for a flag", match["needed"], False),
        ("your image and its nearest other", match["nearest_other"], False),
        ("background images, the highest", match["background_similarity"], False),
    ]
    return [
        {"label": label, "shown": f"{value:.2f}", "width": round(BAR * min(1, max(0, value))), "own": own}
        for label, value, own in values
        if value is not None
    ]


def _dots(found: dict[str, Any]) -> dict[str, Any] | None:
    if not found["variants"]:
        return None
    values = [found["log_ratio"], *found["variants"]]
    low, high = min(values), max(values)
    places = [round(20 + 600 * (v - low) / (high - low or 1)) for v in values]
    label = (
        f"log-ratio {values[0]:.3f}, that of its own versions {min(values[1:]):.3f} to {max(values[1:]):.3f}"
    )
    return {"own": places[0], "variants": places[1:], "label": label}


def _of_match(match: dict[str, Any], scan: dict[str, Any]) -> list[str]:
    background = count(scan["background_images"], "background image")
    claim = "Given back" if match["flagged"] else "Not shown to be given back"
    return [
        f"{claim}: the similarity of the two pictures is {match['similarity']:.2f}, where 1 is the same "
        f"picture; of {background} none is nearer to a candidate than {match['background_similarity']:.2f}. "
        f"{CHANCE} {one_in(match['p'])} comparisons (p {probability(match['p'])}); corrected for all images "
        f"that were compared, q is {probability(match['q'])}."
    ]


def _of_membership(found: dict[str, Any]) -> list[str]:
    margin = "" if found["margin"] is None else f", by a margin of {found['margin']:.2f}"
    what = "this picture" if found["pictures"] == 1 else f"these {found['pictures']:,} pictures"
    versions = "its own mirrored and moved versions" if found["pictures"] == 1 else "their mirror images"
    claim = "Trained on" if found["trained_on"] else "Training is not shown"
    return [
        f"{claim}: the checkpoint knows {what} better than {versions}{margin}, compared with its base "
        f"model. {CHANCE} {one_in(max(found['p'], 1e-9))} cases (p {probability(found['p'])}); corrected, q "
        f"is {probability(found['q'])}."
    ]


def _decision(event: dict[str, Any]) -> str:
    what = {
        "decide": {"confirm": "confirmed", "dismiss": "dismissed", "unsure": "unsure"}.get(event["decision"]),
        "note": f"note: {event['note']}" if event["note"] else "note removed",
        "withdraw": f"withdrew the event {event['withdraws']}",
    }[event["event"]]
    return printable(f"{_readable(event['at'])}, {event['reviewer']}: {what}", 1000)


def _repeat(data: dict[str, Any]) -> list[str]:
    scan = data["scan"]
    if scan is None:
        return ["There is no scan to repeat."]
    versions = ", ".join(f"{name} {number}" for name, number in scan["versions"].items()) or "not recorded"
    device, precision = scan["device"] or "an unknown device", scan["precision"] or "an unknown precision"
    return [
        f"The scan {scan['id']} ran from {_readable(scan['started_at'])} to "
        f"{_readable(scan['finished_at'])} on {device} in {precision}, with {versions}.",
        "The same file, base model, configuration and seeds give the same pictures but for rounding. The "
        "seed of each picture stands beside it.",
    ]


def _hashes(data: dict[str, Any]) -> list[tuple[str, str]]:
    c = data["checkpoint"]
    found = [(c["file"] or c["repo"], c["sha256"] or f"{c['id']} (the identifier of a folder's weights)")]
    for row in data["evidence"]:
        reference, candidate = row["reference"], row["candidate"]
        if reference["sha256"]:
            found.append((f"image of {row['corpus']}: {reference['path'] or ''}", reference["sha256"]))
        if candidate and row["match"]:
            found.append((f"drawn from seed {candidate['seed']}", candidate["image_sha256"]))
    return [(printable(name, 300), printable(value, 200)) for name, value in dict.fromkeys(found)]
