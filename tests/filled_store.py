"""A real store with small real images, and the real desk, driven by keys and read from its screen."""

from __future__ import annotations

import asyncio
import colorsys
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from textual.pilot import Pilot

from scanner.records import (
    Candidate,
    Checkpoint,
    Decision,
    EventKind,
    Examination,
    Match,
    Membership,
    Reference,
    ReviewDecision,
    Role,
    Scan,
    Verdict,
    new_id,
    now,
)
from scanner.store.decisions import fold
from scanner.store.store import Store
from tui.app import DeskApp

BEGAN = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
DESCRIPTOR = "sscd_disc_mixup/int8"
VARIANTS = (0.104, 0.081, 0.117, 0.109, 0.064, 0.098, 0.131, 0.092, 0.104)  # log-ratios of a reference's own
LOADS = ("list", "checkpoint", "images", "view", "report")  # the groups of the workers of the desk
HEAT = tuple(0.6 - 0.1 * (abs(x - 2) + abs(y - 3)) for y in range(8) for x in range(8))  # of a reference


def image(number: int) -> Image.Image:
    """A small image that is different for each number: a disc and a bar on a background."""
    background, disc, bar = (
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb((number * 0.17 + turn) % 1, 0.7, 0.9))
        for turn in (0.0, 0.4, 0.7)
    )
    drawn = Image.new("RGB", (64, 64), background)
    pen = ImageDraw.Draw(drawn)
    pen.ellipse((12 + number % 9, 10, 44, 42), fill=disc)
    pen.rectangle((6, 50, 58, 56), fill=bar)
    return drawn


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@dataclass
class Crawl:
    """Writes what a crawl writes, one checkpoint after another."""

    store: Store
    folder: Path  # of the reference images; its name is the corpus
    draw: Callable[[int], Image.Image] = image  # a different image for each number
    count: int = 0
    scans: dict[str, Scan] = field(default_factory=dict)  # by repo
    matches: dict[str, list[Match]] = field(default_factory=dict)  # by repo
    memberships: dict[str, list[Membership]] = field(default_factory=dict)  # by repo
    _held: dict[type, list[Any]] | None = None  # rows that wait to be written at once

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Writes the rows of the block at its end, a commit for each table: a fraction of the time."""
        self._held = {}
        yield
        held, self._held = self._held, None
        for rows in held.values():
            self.store.append(rows)

    def _append(self, rows: Sequence[Any]) -> None:
        if self._held is None:
            self.store.append(rows)
        elif rows:
            self._held.setdefault(type(rows[0]), []).extend(rows)

    def log(self, subject_id: str) -> list[tuple[str, str, str]]:
        """All events about a subject, oldest first: what was decided, written or withdrawn, by whom."""
        events = {event.decision_id: event for event in self._events(subject_id)}
        shown = []
        for event in events.values():
            content = event.decision or event.note
            if event.event is EventKind.WITHDRAW:
                withdrawn = events[event.withdraws or ""]
                content = f"{withdrawn.decision or withdrawn.note} of {withdrawn.reviewer}"
            shown.append((str(event.event), str(content), event.reviewer))
        return shown

    def decision(self, subject_id: str) -> str | None:
        """The decision that stands for a new reader of the store."""
        return fold(self._events(subject_id)).decision

    def decide(
        self, subject_id: str, decision: ReviewDecision, reviewer: str, ahead: timedelta = timedelta()
    ) -> None:
        """Another reviewer's decision, from a machine whose clock is ahead."""
        time = now() + ahead
        event = Decision(new_id(), subject_id, EventKind.DECIDE, decision, "", None, reviewer, time)
        self.store.append([event])

    def _events(self, subject_id: str) -> list[Decision]:
        store = Store(self.store.root)
        return store.select(Decision, "WHERE subject_id = ? ORDER BY decided_at", [subject_id])

    def list(self, repo: str, **changes: object) -> Checkpoint:
        """A checkpoint as a source lists it, still to do."""
        self.count += 1
        listed = Checkpoint(
            checkpoint_id=hashlib.sha256(repo.encode(errors="replace")).hexdigest(),
            source="hf",
            repo=repo,
            revision="4f1c9a2e" * 5,
            file="pytorch_lora_weights.safetensors",
            url=f"https://huggingface.co/{repo}",
            sha256=None,
            size_bytes=3_240_000,
            kind="lora",
            family="sd1",
            base="demo/tiny-diffusion",
            caption="a photo of sks shoe",
            num_train_images=5,
            license="creativeml-openrail-m",
            created_at=BEGAN - timedelta(days=40),
            listed_at=BEGAN,
            raw=json.dumps({"id": repo}),
        )
        listed = replace(listed, **changes)  # type: ignore[arg-type]
        self._append([listed])
        return listed

    def scan(
        self,
        repo: str,
        verdict: Verdict,
        *,
        reason: str = "",
        checkpoint: dict[str, object] | None = None,
        **changes: object,
    ) -> Scan:
        """A finished scan of a newly listed checkpoint."""
        listed = self.list(repo, **(checkpoint or {}))
        scan = Scan(
            scan_id=hashlib.sha256(f"scan {repo}".encode(errors="replace")).hexdigest()[:32],
            checkpoint_id=listed.checkpoint_id,
            config_id="c0ffee" * 10 + "abcd",
            run_id="run-1",
            verdict=verdict,
            reason=reason,
            stage="inspect" if verdict is Verdict.SKIPPED else "match",
            started_at=BEGAN + timedelta(minutes=self.count),
            finished_at=BEGAN + timedelta(minutes=self.count, seconds=43),
            caption=listed.caption,
            base=listed.base,
            guidance_scale=3.0,
            correction=-0.02,
            num_samples=100,
            num_candidates=5,
            num_references=24,
            num_background=1000,
            tau=0.62,
            alpha=0.05,
            device="cpu",
            versions={"torch": "2.13.0", "diffusers": "0.42.0"},
        )
        scan = replace(scan, **changes)  # type: ignore[arg-type]
        self._append([scan])
        self.scans[repo] = scan
        return scan

    def many(self, number: int) -> None:
        """That many flagged checkpoints, without images."""
        first = self.scan("many/0", Verdict.FLAGGED, best_similarity=0.9, q_value=0.01)
        (listed,) = self.store.select(Checkpoint)
        others = [f"many/{n}" for n in range(1, number)]
        self.store.append([replace(listed, checkpoint_id=repo, repo=repo) for repo in others])
        self.store.append([replace(first, scan_id=f"scan {repo}", checkpoint_id=repo) for repo in others])

    def flagged(
        self,
        repo: str,
        similarities: Sequence[float],
        q_value: float,
        checkpoint: dict[str, object] | None = None,
        *,
        margins: Sequence[float] = (),
        of_corpus: float | None = None,
        **changes: object,
    ) -> Scan:
        """A scan with one match a similarity and one membership a margin, of the same references in order.

        Similarities of 0.62 and more are flagged, and so are margins of 0.1 and more. `of_corpus` is the
        margin of the corpus as a whole. Without margins it is a scan of the time before there was a screen.
        """
        gives_back = any(similarity >= 0.62 for similarity in similarities)
        trained = [margin for margin in (*margins, of_corpus or 0) if margin >= 0.1]
        grounds = "+".join(["trained_on"] * bool(trained) + ["gives_back"] * gives_back)
        if margins or of_corpus:
            changes = {
                "grounds": grounds,
                "examined": Examination.BOTH if similarities else Examination.SCREENED,
                "trained_on": sum(margin >= 0.1 for margin in margins),
                "membership_q": 0.004 if trained else 0.7,
                "screen_evaluations": 412,
                "screen_base_evaluations": 388,
                "screened_references": 24,
                **changes,
            }
        if similarities:
            changes = {"best_similarity": max(similarities), "q_value": q_value, **changes}
        else:
            changes = {"num_samples": 0, "num_candidates": 0, "stage": "screen", **changes}
        scan = self.scan(
            repo, Verdict.FLAGGED if grounds else Verdict.NOTHING_FOUND, checkpoint=checkpoint, **changes
        )
        owned = [self.draw(10 * self.count + n) for n in range(max(len(similarities), len(margins)))]
        references = [self._reference(f"{self.count}-{n}.png", picture) for n, picture in enumerate(owned)]
        candidates, matches = [], []
        for number, similarity in enumerate(similarities):
            came_out = Image.blend(owned[number], self.draw(number + 3), 0.15)
            candidate = Candidate(
                f"{scan.scan_id}-k{number}",
                scan.scan_id,
                17 + number,
                7 - number,
                0.88,
                self.store.put_image(png(came_out)),
                DESCRIPTOR,
                (1.0, 0.0),
            )
            matches.append(
                Match(
                    f"{scan.scan_id}-m{number}",
                    scan.scan_id,
                    candidate.candidate_id,
                    self.folder.name,
                    references[number].reference_id,
                    similarity,
                    0.412,
                    0.001,
                    q_value + number / 1000,
                    similarity >= 0.62,
                )
            )
            candidates.append(candidate)
        memberships = [
            self._membership(scan, number, reference.reference_id, margin)
            for number, (reference, margin) in enumerate(zip(references, margins, strict=False))
        ]
        if of_corpus is not None:
            whole = self._membership(scan, len(margins), "", of_corpus)
            memberships.append(
                replace(
                    whole,
                    framed_log_ratio=None,
                    variant_log_ratios=(),
                    framing="",
                    framings_tried=0,
                    background_p=None,
                    num_pictures=24,
                    margin_low=of_corpus - 0.05,
                    margin_high=of_corpus + 0.05,
                )
            )
        for rows in (references, candidates, matches, memberships):
            self._append(rows)
        self.matches[repo], self.memberships[repo] = matches, memberships
        return scan

    def _reference(self, name: str, picture: Image.Image) -> Reference:
        path = self.folder / name
        path.write_bytes(png(picture))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return Reference(
            sha256,
            self.folder.name,
            Role.REFERENCE,
            str(path),
            sha256,
            picture.width,
            picture.height,
            DESCRIPTOR,
            (1.0, 0.0),
            BEGAN,
        )

    def _membership(self, scan: Scan, number: int, reference_id: str, margin: float) -> Membership:
        log_ratio, trained = sum(VARIANTS) / len(VARIANTS) + margin, margin >= 0.1
        return Membership(
            membership_id=f"{scan.scan_id}-t{number}",
            scan_id=scan.scan_id,
            corpus=self.folder.name,
            reference_id=reference_id,
            log_ratio=log_ratio - 0.02,
            margin=margin,
            framed_log_ratio=log_ratio,
            variant_log_ratios=VARIANTS,
            framing="zoom-90",
            framings_tried=11,
            background_p=0.01 if trained else 0.04,
            p_value=0.0002 + number / 10_000 if trained else 0.3,
            q_value=0.004 + number / 1000 if trained else 0.7,
            trained_on=trained,
            num_background=99,
            background_highest=0.117,
            heat=HEAT if trained else (),
        )


class Desk:
    """The app under test, driven by keys and read from its screen."""

    def __init__(self, app: DeskApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    async def press(self, *keys: str) -> None:
        """Presses keys one at a time, and waits for what each one starts."""
        for key in keys:
            await self.pilot.press(key)
            await self.settle()

    async def write(self, text: str) -> None:
        """Types text."""
        await self.pilot.press(*("space" if letter == " " else letter for letter in text))
        await self.settle()

    async def settle(self) -> None:
        """Waits until the store has answered and the screen is drawn."""
        quiet = 0
        while quiet < 2:
            await self.pilot.pause()
            groups = ("list", "checkpoint", "images", "index", "hint", "view", "report")
            busy = any(w.group in groups for w in self.app.workers)
            quiet = 0 if busy else quiet + 1
            if busy:
                await asyncio.sleep(0.005)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits until the screen shows something, and until nothing changes any more; fails after minutes."""
        for _ in range(3000):
            await self.settle()
            if holds():
                return
            await self.pilot.pause(0.05)
        raise AssertionError(self.text)

    @property
    def text(self) -> str:
        """The whole screen, as its reader sees it."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join(line.text for line in lines)

    @property
    def flat(self) -> str:
        """The screen's words in one line, for what may be wrapped, without the borders of its parts."""
        return " ".join(self.text.replace("│", " ").split())

    def part(self, selector: str) -> str:
        """The words inside one widget, in one line."""
        return " ".join(" ".join(self.part_lines(selector)).split())

    def part_lines(self, selector: str) -> list[str]:
        """The lines inside one widget."""
        region = self.app.screen.query_one(selector).content_region
        strips = self.app.screen._compositor.render_strips()[region.y : region.bottom]
        return [strip.crop(region.x, region.right).text for strip in strips]

    @property
    def toast(self) -> str:
        """The newest toast."""
        return list(self.app._notifications)[-1].message

    def colours(self, selector: str) -> set[tuple[int, int, int]]:
        """The colours that an image is drawn in, rounded."""
        region = self.app.screen.query_one(selector).content_region
        strips = self.app.screen._compositor.render_strips()[region.y : region.bottom]
        return {
            tuple(channel // 16 for channel in segment.style.color.get_truecolor())  # type: ignore[misc]
            for strip in strips
            for segment in strip.crop(region.x, region.right)
            if segment.style and segment.style.color and "▀" in segment.text
        }


Opener = Callable[..., AbstractAsyncContextManager[Desk]]
