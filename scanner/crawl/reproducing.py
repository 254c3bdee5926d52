"""One candidate drawn again from its row, and compared with what the store holds of it.

Like the worker it needs torch, and imports the part of the method that does inside its functions.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from finextract.metadata.captions import CaptionOrigin
from scanner.config import ScanConfig, default_cache, scan_config_of
from scanner.crawl.worker import SscdEmbedder
from scanner.errors import ConfigError
from scanner.hubs.base_fetcher import BaseFetcher
from scanner.hubs.cache import DownloadCache
from scanner.hubs.fetching import fetched
from scanner.hubs.registry import open_source
from scanner.images import open_image
from scanner.records import Candidate, Checkpoint, ConfigRow, Match, Reference, Scan
from scanner.store.report_queries import Target
from scanner.store.store import Store

# A sample that is computed by other kernels, or in another batch, differs by rounding. Measured on the zoo in
# float32 (docs/method.md): at most 1 of 255 in any pixel, at a similarity of 0.999 or more.
ROUNDING = 4  # of 255: the largest difference of any pixel that is called rounding
SAME_PICTURE = 0.95  # a similarity that is called the same picture: other devices and precisions differ more


@dataclass(frozen=True, slots=True)
class Drawn:
    """A candidate that was drawn again, beside the one in the store."""

    match: Match
    candidate: Candidate
    scan: Scan
    checkpoint: Checkpoint
    caption: str
    guidance_scale: float
    correction: float
    steps: int
    device: str
    precision: str
    image: Image.Image  # drawn now
    largest: int  # difference of any pixel to the stored image, of 255
    mean: float  # difference of the pixels
    similarity: float  # of the two images
    to_reference: float  # of the new image to the reference of the match

    @property
    def is_exact(self) -> bool:
        """Whether every pixel is the same."""
        return self.largest == 0

    @property
    def is_within_rounding(self) -> bool:
        """Whether the images differ by no more than rounding does."""
        return self.largest <= ROUNDING

    @property
    def is_reproduced(self) -> bool:
        """Whether it is the same picture."""
        return self.is_within_rounding or self.similarity >= SAME_PICTURE


def reproduce(
    store: Store, target: Target, begin: Callable[[], None], *, base: str | None = None,
    allow_pickle: bool = False,
) -> Drawn:  # fmt: skip
    """Fetches the models of a match's scan, and draws its candidate again. Calls `begin` before it fetches.

    `base` is what a base in one file takes its missing parts from, as for a crawl. Raises ConfigError where
    the store does not hold what is needed, EntryError and CheckpointError where the models cannot be had.
    """
    import torch

    from finextract.models.loading import gpu_precision, load_base, quieten_libraries, tune

    quieten_libraries()
    match, candidate, scan, checkpoint, config = _rows(store, target)
    stored = _stored(store, candidate)
    begin()
    checkpoint = replace(checkpoint, base=scan.base or checkpoint.base)
    source = open_source(checkpoint.source, base=base, allow_pickle=allow_pickle)
    downloads = DownloadCache(default_cache(), max_bytes=2**63, keep=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with fetched(source, BaseFetcher(base), checkpoint, downloads) as files:
        dtype = gpu_precision(files.base.model) if device.type == "cuda" else torch.float32
        pair = tune(load_base(files.base.model, device, dtype, files.base.parts), files.weights)
        drawn = [_draw(pair, caption, candidate, scan, config) for caption in _captions(scan)]
    embedder = SscdEmbedder(config.descriptor)
    (first, *embeddings) = embedder.embed([stored, *(image for image, *_ in drawn)])
    best = int(np.argmax([float(first @ embedding) for embedding in embeddings]))
    image, caption, guidance, steps = drawn[best]
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(stored, np.int16))
    return Drawn(
        match, candidate, scan, checkpoint, caption, guidance.guidance_scale, guidance.correction, steps,
        device.type, str(pair.tuned.dtype).removeprefix("torch."), image, int(difference.max()),
        float(difference.mean()), float(first @ embeddings[best]),
        float(embeddings[best] @ _reference(store, match, config.descriptor)),
    )  # fmt: skip


def _rows(store: Store, target: Target) -> tuple[Match, Candidate, Scan, Checkpoint, ScanConfig]:
    """What the store holds of a match. Raises ConfigError for what is no match, or was removed."""
    matches = store.select(Match, "WHERE match_id = ?", [target.subject_id or ""])
    if not matches and target.subject_id:
        raise ConfigError(
            f"{target.subject_id} is no match: nothing was drawn for it. `scanner show` lists the matches of "
            "a checkpoint with their similarity."
        )
    if not matches:  # a checkpoint: its strongest match
        strongest = "WHERE scan_id = ? AND flagged ORDER BY similarity DESC LIMIT 1"
        matches = store.select(Match, strongest, [target.scan_id or ""])
    if not matches:
        raise ConfigError(f"{target.repo} has no flagged match. Name one: `scanner show` lists them.")
    match = matches[0]
    candidates = store.select(Candidate, "WHERE candidate_id = ?", [match.candidate_id])
    (scan,) = store.scans_with_ids([match.scan_id])[-1:]
    checkpoints = store.select(Checkpoint, "WHERE checkpoint_id = ?", [scan.checkpoint_id])
    configs = store.select(ConfigRow, "WHERE config_id = ?", [scan.config_id])
    for found, what in ((candidates, "candidate"), (checkpoints, "checkpoint"), (configs, "configuration")):
        if not found:
            raise ConfigError(f"the store has no {what} of the match {match.match_id} any more.")
    return match, candidates[0], scan, checkpoints[0], scan_config_of(configs[0].toml)


def _stored(store: Store, candidate: Candidate) -> Image.Image:
    try:
        return open_image(io.BytesIO(store.image(candidate.image_sha256)))
    except FileNotFoundError:
        raise ConfigError(f"the store has no image of {candidate.candidate_id} any more.") from None


def _captions(scan: Scan) -> list[str]:
    """The captions that may have been used: a recovered one shared the samples with the empty prompt."""
    own = scan.caption or ""
    return [own, ""] if own and scan.caption_origin == CaptionOrigin.RECOVERED else [own]


def _draw(pair: Any, caption: str, candidate: Candidate, scan: Scan, config: ScanConfig) -> tuple[Any, ...]:
    from finextract.extract import ExtractionSettings
    from finextract.guidance import Guidance
    from finextract.guided import guided_predictor, sample
    from finextract.sampling import as_published

    settings = ExtractionSettings(preset=config.preset, steps=config.steps)  # type: ignore[arg-type]
    scale = candidate.guidance_scale if candidate.guidance_scale is not None else scan.guidance_scale
    correction = candidate.correction if candidate.correction is not None else scan.correction
    guidance = Guidance(scale if scale is not None else 1.0, correction or 0.0, "stored")
    solver = as_published(pair.tuned.solver) if config.preset == "paper" else pair.tuned.solver
    steps = settings.steps_for(pair.tuned.solver)
    predict = guided_predictor(pair, caption, settings.method, guidance)
    (pixels,) = sample(pair.tuned, predict, (candidate.seed,), steps, solver)
    return Image.fromarray(pixels.transpose(1, 2, 0)), caption, guidance, steps


def _reference(store: Store, match: Match, descriptor: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = store.select(
        Reference, "WHERE corpus = ? AND reference_id = ?", [match.corpus, match.reference_id]
    )
    of = [row.embedding for row in rows if row.descriptor == descriptor]
    if not of:
        raise ConfigError(f"the store has no reference {match.reference_id} of {match.corpus} any more.")
    return np.array(of[0], np.float32)
