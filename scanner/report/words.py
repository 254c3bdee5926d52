"""What a report says in sentences, for the page and for the terminal. The texts are not escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scanner.match.duplicates import NEARLY_SAME
from scanner.records import Verdict
from scanner.wording import count, share

DECIDED = {"confirm": "confirmed", "dismiss": "dismissed", "unsure": "unsure"}  # by a reviewer
NOTHING = "Nothing was found."
REMOVED = "What was found was removed from the store together with it. Nothing is said about what it was."
EXAMINED = {
    "sampled": "Pictures were drawn from it; how well it knows each image was not measured.",
    "screened": "It was measured how well it knows each image, and no picture was drawn from it.",
    "screened_and_sampled": "It was measured how well it knows each image, and pictures were drawn from it.",
}


def verdict_of(scan: dict[str, Any] | None) -> str:
    """The verdict, with the grounds of a flag, or the reason why there is none."""
    if scan is None:
        return "This checkpoint has not been scanned."
    grounds = {
        "trained_on": "it was trained on images that were looked for",
        "gives_back": "it gives such images back",
    }
    return {
        Verdict.FLAGGED: f"Flagged: {' and '.join(grounds[g] for g in scan['grounds'])}.",
        Verdict.NOTHING_FOUND: f"Not flagged any more: {scan['reason']}." if scan["reason"] else NOTHING,
        Verdict.SKIPPED: f"It could not be scanned: {scan['reason']}",
        Verdict.FAILED: f"The scan failed: {scan['reason']}",
    }[Verdict(scan["verdict"])]


def in_short(scan: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was found, in a few sentences."""
    if scan is None or scan["verdict"] in (Verdict.SKIPPED, Verdict.FAILED):
        return []
    if scan["verdict"] == Verdict.NOTHING_FOUND and scan["reason"]:
        return [REMOVED]
    given = sum("gives_back" in row["grounds"] for row in rows)
    trained = sum("trained_on" in row["grounds"] for row in rows if row["reference"]["sha256"])
    names = " and ".join(f"“{name}”" for name in scan["corpora"])
    of = f" of the collection{'' if len(scan['corpora']) == 1 else 's'} {names}" if names else ""
    are = "was" if scan["references"] == 1 else "were"
    asked = f"{count(scan['references'], 'image')}{of} {are} looked for in it."
    sentences = [f"{asked} {EXAMINED.get(scan['examined'], '')}".rstrip()]
    if given:
        them = "it" if given == 1 else "them"
        sentences.append(
            f"{count(given, 'image')} came back: the checkpoint drew pictures that are nearer to {them} than "
            "to any other picture, and nearer than chance explains."
        )
    if trained:
        sentences.append(
            f"{count(trained, 'image')} {'was' if trained == 1 else 'were'} among the training images, by "
            "what the checkpoint knows better than its base model. This was measured, and not drawn."
        )
    if not given and not trained and not scan["grounds"]:
        sentences.append("None of the images was shown to be in the checkpoint.")
    if not scan["background_images"]:
        sentences += _without_background(rows)
    return sentences


def _without_background(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How sure an answer is for which no background was there."""
    sentences = [
        "There was no background to compare with. What is said of training rests on each image's own "
        "mirrored and moved versions, and that a picture comes back cannot be shown."
    ]
    best = max((row["match"]["similarity"] for row in rows if row["match"]), default=0.0)
    if best >= NEARLY_SAME:
        sentences.append(
            f"It drew a picture with a similarity of {best:.2f} to one of the images. Of pairs with "
            f"{NEARLY_SAME:g} or more, 90 % are copies in the collection of SSCD's authors. This was not "
            "tested here: look at the pair, and add a background."
        )
    return sentences


def meaning_of(scan: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What it means, and what it does not claim."""
    if scan is None or scan["verdict"] in (Verdict.SKIPPED, Verdict.FAILED):
        return ["Nothing was examined, so nothing is said about what the checkpoint contains."]
    sentences = [
        '"Trained on" says that an image was used to make the file. "Gives back" says that the file draws a '
        "picture like it. Where only one of the two is said, the other was not shown, which does not rule it "
        "out.",
        "It does not say who trained the checkpoint, or whether they were allowed to.",
        "Finding nothing proves nothing: weak traces are missed.",
    ]
    flagged = [v["q"] for row in rows for v in (row["match"], row["membership"]) if v and _is_flagged(v)]
    if flagged and scan and scan["alpha"] is not None:
        sentences.append(
            f"A flag may be wrong. Of the flags of this checkpoint {share(max(flagged))} are expected to be "
            "false. Where thousands of checkpoints are examined, a few that contain none of the images are "
            "flagged all the same. A person should look at each pair."
        )
    return sentences


def _is_flagged(values: dict[str, Any]) -> bool:
    return bool(values.get("flagged") or values.get("trained_on"))


def standing_of(row: dict[str, Any]) -> str:
    """What was found about one reference, and what a reviewer decided."""
    words = {"trained_on": "trained on", "gives_back": "given back"}
    found = " and ".join(words[ground] for ground in row["grounds"]) or "not flagged"
    undecided = "not decided yet" if row["grounds"] else ""
    decided = DECIDED.get(row["standing_decision"], undecided)
    return f"{found}, {decided}" if decided else found
