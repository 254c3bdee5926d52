"""The captions that a checkpoint is sampled with: the one that is stated, or else what a recovery finds.

Runs in the worker, and like it imports the part of the method that needs torch inside its functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from finextract.errors import RequestError
from finextract.metadata.phrases import own_subjects
from finextract.reasons import ReasonCode
from scanner.config import ScanConfig
from scanner.crawl.logs import LOGGER
from scanner.errors import Unavailable
from scanner.records import STATED_CAPTION, Checkpoint

if TYPE_CHECKING:
    from finextract.caption_model import CaptionModel
    from finextract.extract import ExtractionSettings


class Chosen(NamedTuple):
    """The captions that share the samples of a checkpoint, and the facts for its scan's row."""

    captions: tuple[str, ...]
    facts: dict[str, Any]


class Captions:
    """Chooses the captions of one checkpoint after another; holds the caption model, if one is named."""

    def __init__(self, config: ScanConfig, folder: str | None) -> None:
        self._config, self._folder = config, folder

    @cached_property
    def _ranker(self) -> CaptionModel | None:
        from pathlib import Path

        from finextract.caption_model import CaptionModel, caption_model_id

        if self._folder is None:
            return None
        try:
            if caption_model_id(Path(self._folder)) == self._config.caption_model:
                return CaptionModel(Path(self._folder))
        except RequestError as error:
            raise Unavailable(str(error), ReasonCode.UNREADABLE) from error
        raise Unavailable(
            f"the caption model {self._folder} of this machine is not that of the crawl. Copy it there.",
            ReasonCode.CHANGED,
        )

    def of(self, pair: Any, checkpoint: Checkpoint, settings: ExtractionSettings, images: int) -> Chosen:
        """The captions of a pair that is sampled for a number of training images.

        Raises NotFinite, and Unavailable where the caption model cannot be read.
        """
        from finextract.caption_recovery import budget_for, recover

        assert checkpoint.caption is not None, "inspection gives a caption, which may be empty"
        if checkpoint.caption:
            return Chosen((checkpoint.caption,), {"caption_origin": STATED_CAPTION})
        if not self._config.recover_captions:
            return Chosen(("",), {"caption_origin": "none"})
        budget = budget_for(settings, pair, images)
        found = recover(pair, subjects_of(checkpoint), budget, self._ranker, settings.batch_size)
        LOGGER.info("nothing states the caption: %s", found.sentence)
        facts = {
            "caption": found.caption.text,
            "caption_origin": found.caption.origin.value,
            "caption_score": found.caption.score,
            "caption_evaluations": found.evaluations,
        }
        return Chosen(found.captions, facts)


def subjects_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What the names and tags in a hub's entry may say the pictures show; all of it is untrusted."""
    try:
        entry = json.loads(checkpoint.raw)
    except (ValueError, RecursionError):
        entry = {}
    parts = list(_parts(entry))
    names = [checkpoint.repo, PurePosixPath(checkpoint.file).stem]
    names += [part["name"] for part in parts if isinstance(part.get("name"), str)]
    lists = [part["tags"] for part in parts if isinstance(part.get("tags"), list)]
    return own_subjects(names, [tag for tags in lists for tag in tags[:100] if isinstance(tag, str)])


def _parts(entry: object) -> Iterator[dict[str, Any]]:
    """An entry, and its parts with a name or tags: HuggingFace's card, Civitai's model and version."""
    if isinstance(entry, dict):
        yield entry
        yield from (entry[k] for k in ("cardData", "model", "version") if isinstance(entry.get(k), dict))
