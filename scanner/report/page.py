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
from scanner.report.words import DECIDED, in_short, meaning_of, standing_of, verdict_of
from scanner.store.report_queries import path_of_reference
from scanner.store.store import Store
from scanner.text import printable
from scanner.wording import count, one_in, probability, utc

PICTURES = 40  # rows with pictures on a page, so that it can still be sent
BAR = 300  # pixels of a similarity of 1
CHANCE = "If it had not been trained on, this would come up in"
HUBS = {"hf": "HuggingFace", "civitai": "Civitai"}
KINDS = {"full": "a whole model", "lora": "an adapter (LoRA), which changes its base model"}
ONE_ROW = "This page is about one of the images alone; the counts below are of it."
CHECKED = 1e-3  # whether smaller p-values of membership are right was not checked
DRAWN_AGAIN = (
    "The same file, base model and configuration draw the same pictures again, but for rounding: what gives "
    "a picture, its seed and the strength of guidance w', stands beside it. `scanner reproduce ID` draws one "
    "again and compares it; ID is that of the match."
)
METHOD = (
    "Candidates are drawn by model guidance: samples of the checkpoint are pushed away from what its base "
    "model would draw (FineXtract: Wu, Zhang and Wu, Leveraging Model Guidance to Extract Training Data from "
    "Personalized Diffusion Models, ICML 2025). They are compared with the images by SSCD, a descriptor made "
    "for finding copies (Pizzi et al., CVPR 2022). Whether an image was trained on is told from the errors "
    "of the checkpoint and of its base in removing noise from it.",
    "Measured on small models whose training images are known (docs/benchmarks.md, docs/method.md and "
    "docs/membership.md of the program). Where a model saw each image whole, a hundred times or more, all "
    "137 training images of 25 checkpoints were found to be trained on, and none of 52 other works by the "
    "same artists. Where it saw another random part of each image every time, none of 20 was found. Of works "
    "that were trained on 400 times each, 47 of 68 were given back, and none of 68 others by the same "
    "artists was said to be; of 204 that were trained on a hundred times or less, one was given back. "
    "Published models, which are larger, may differ in all of this.",
)


@dataclass(frozen=True, slots=True)
class _Picture:
    uri: str
    alt: str
    caption: str


def rendered(store: Store, contents: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The page about one or more reports, and its data."""
    first = contents[0]
    data = first if len(contents) == 1 else {
        **{name: first[name] for name in ("format", "program", "written_at")}, "reports": list(contents),
    }  # fmt: skip
    return page_of(store, contents, data), data


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
        "short": [*([ONE_ROW] if data["about"] else []), *in_short(scan, rows)],
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
        ("Repository", c["repo"]), ("Page", c["address"]), ("Listed by", HUBS.get(c["source"], c["source"])),
        ("File", c["file"] or "all of the repository"), ("Revision", c["revision"]),
        ("Listed also as", ", ".join(name for name in c["listed_as"] if name != c["repo"])),
        ("Kind", f"{KINDS.get(c['kind'], c['kind'])}, model family {c['family']}"),
        ("Base model", c["base"] or "not known"),
        ("Licence", c["license"] or "not stated"), ("Published", _readable(c["published_at"])),
        ("Listed", _readable(c["listed_at"])),
    ]  # fmt: skip
    if scan is not None and scan["verdict"] in (Verdict.FLAGGED, Verdict.NOTHING_FOUND):
        pairs += [
            ("Scanned", _readable(scan["finished_at"])),
            ("Compared with", _compared(scan)),
        ]
        if scan["samples"]:
            drawn = f"{count(scan['samples'], 'sample')}, {count(scan['candidates'], 'candidate')}"
            pairs.append(("Drawn", drawn))
            recovered = " (not stated: recovered, and used beside none)"
            origin = recovered if scan["caption_origin"] == "recovered" else ""
            pairs.append(("Caption", f"{scan['caption']}{origin}" if scan["caption"] else "none"))
        else:
            pairs.append(("Drawn", "nothing"))
    return [(name, printable(str(value), 500)) for name, value in pairs if value]


def _readable(time: str | None) -> str:
    return "not stated" if time is None else utc(datetime.fromisoformat(time))


def _compared(scan: dict[str, Any]) -> str:
    if not scan["background_images"]:
        return f"{count(scan['references'], 'image')}; there was no background"
    background = count(scan["background_images"], "background image")
    return (
        f"{count(scan['references'], 'image')}, and as a yardstick {background}: pictures that, as whoever "
        "ran the scan says, it was not trained on"
    )


def _row(
    store: Store, row: dict[str, Any], scan: dict[str, Any], *, with_pictures: bool
) -> dict[str, Any]:  # fmt: skip
    match, found = row["match"], row["membership"]
    name = printable(row["reference"]["name"] or row["reference"]["sha256"], 200)
    title = name if row["reference"]["sha256"] else f"The collection “{row['corpus']}” as a whole"
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
        path = path_of_reference(store, reference["sha256"], row["corpus"])
        stored = StoredPicture(reference["sha256"], row["corpus"], path, reference["copy_sha256"], store)
        try:
            stored.open().save(stream := io.BytesIO(), format="PNG")
            caption = f"The image, of the collection “{row['corpus']}”."
            pictures.append(_Picture(_uri(stream.getvalue()), "the image", printable(caption, 200)))
        except UnreadablePicture:
            missing.append("The store holds no copy of the image.")
    if candidate and row["match"]:
        alt, caption = (
            "the picture that the checkpoint drew",
            f"Drawn by the checkpoint: {_drawn(candidate)}. Match {row['id'][:12]}.",
        )
        try:
            pictures.append(_Picture(_uri(store.image(candidate["image_sha256"])), alt, caption))
        except FileNotFoundError:
            missing.append(f"The store holds no copy of {alt}.")
    elif row["match"]:
        missing.append("The picture that the checkpoint drew is no longer in the store.")
    return pictures, missing


def _drawn(candidate: dict[str, Any]) -> str:
    """What gives the picture again: its seed, and the strength of guidance."""
    scale, correction = candidate["guidance_scale"], candidate["correction"]
    strength = "" if scale is None else f", w' {scale:g}"
    return f"seed {candidate['seed']}{strength}" + (f", correction {correction:g}" if correction else "")


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _bars(match: dict[str, Any]) -> list[dict[str, Any]]:
    values = [
        ("this match", match["similarity"], True),
        ("needed for a flag of this image", match["needed"], False),
        ("this image and the other most like it", match["nearest_other"], False),
        ("unrelated (background) images, the highest", match["background_similarity"], False),
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
    if match["background_similarity"] is None:
        return [
            f"Similar, and not shown to be given back: the similarity of the two pictures is "
            f"{match['similarity']:.2f}, where 1 is the same picture. There was no background, so it is not "
            "known how often pictures are as similar by chance."
        ]
    background = count(scan["background_images"], "background image")
    claim = "Given back" if match["flagged"] else "Not shown to be given back"
    return [
        f"{claim}: the similarity of the two pictures is {match['similarity']:.2f}, where 1 is the same "
        f"picture; of {background} none is nearer to a candidate than {match['background_similarity']:.2f}. "
        f"An unrelated image is as near in at most {one_in(match['p'])} comparisons "
        f"(p {probability(match['p'])}); corrected for all images that were compared, q is "
        f"{probability(match['q'])}."
    ]


def _of_membership(found: dict[str, Any]) -> list[str]:
    margin = "" if found["margin"] is None else f", by a margin of {found['margin']:.2f}"
    what = "this picture" if found["pictures"] == 1 else f"these {found['pictures']:,} pictures"
    versions = "its own mirrored and moved versions" if found["pictures"] == 1 else "their mirror images"
    claim = "Trained on" if found["trained_on"] else "Training is not shown"
    alone = found["pictures"] == 1 and not found["compared_with_background"]
    also = " There was no background that it was compared with as well." if alone else ""
    return [
        f"{claim}: the checkpoint knows {what} better than {versions}{margin}, compared with its base "
        f"model. {CHANCE} {_frequency(found['p'])}; corrected for all images, q is "
        f"{probability(found['q'])}.{also}"
    ]


def _frequency(p_value: float) -> str:
    rarest = f"fewer than {one_in(CHECKED)} cases (p < {CHECKED:g}, which is as far as this was checked)"
    return rarest if p_value < CHECKED else f"at most {one_in(p_value)} cases (p {probability(p_value)})"


def _decision(event: dict[str, Any]) -> str:
    what = {
        "decide": DECIDED.get(event["decision"]),
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
        *([DRAWN_AGAIN] if scan["samples"] else []),
    ]


def _hashes(data: dict[str, Any]) -> list[tuple[str, str]]:
    c = data["checkpoint"]
    found = [(c["file"] or c["repo"], c["sha256"] or f"{c['id']} (the identifier of a folder's weights)")]
    if c["base_sha256"]:
        found.append((f"{c['base']}, the base model's weights", c["base_sha256"]))
    for row in data["evidence"]:
        reference, candidate = row["reference"], row["candidate"]
        if reference["sha256"]:
            name = f"{reference['name'] or 'an image'} of {row['corpus']}"
            found.append((f"{name}, the original file", reference["sha256"]))
            if reference["copy_sha256"]:
                found.append((f"{name}, the copy in the store", reference["copy_sha256"]))
        if candidate and row["match"]:
            found.append((f"drawn: {_drawn(candidate)}", candidate["image_sha256"]))
    return [(printable(name, 300), printable(value, 200)) for name, value in dict.fromkeys(found)]
