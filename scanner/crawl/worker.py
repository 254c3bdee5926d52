"""The scan of one checkpoint after another in a process that holds a model. The pool runs it as a Ray actor.

The only module of the service that uses the part of the method that needs torch; it imports that part inside
its functions.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.errors import CheckpointError, NotFinite
from finextract.gpu_needs import need_of
from finextract.reasons import ReasonCode
from scanner.config import DESCRIPTOR, ScanConfig, default_cache
from scanner.crawl.attempt import Attempt, reason_code_of, sentence_of, versions
from scanner.crawl.captioning import Captions
from scanner.crawl.gpu_shares import why_too_small
from scanner.crawl.logs import LOGGER, logged
from scanner.crawl.samples import earlier_candidates, rows_of
from scanner.crawl.screening import Screen
from scanner.crawl.threads import share_of_cores, thread_settings
from scanner.crawl.verdicts import examination, grounds_of
from scanner.errors import EntryError, Skipped, Unavailable
from scanner.hashing import weights_id
from scanner.hubs.base_fetcher import BaseFetcher, BaseFiles
from scanner.hubs.cache import DownloadCache
from scanner.hubs.fetching import fetched
from scanner.hubs.registry import open_source
from scanner.match.corpus import corpora_of
from scanner.match.matching import Candidates, Corpora, compare, split, thresholds_of
from scanner.records import Candidate, Checkpoint, Scan, Verdict
from scanner.store.leases import LeaseLost, Leases, lease_key
from scanner.store.patience import CRAWL_S, Patience
from scanner.store.store import Store

CUDA_EXIT_CODE = 70  # of a process whose CUDA context cannot be used any more


class SscdEmbedder:
    """The SSCD network in this process, as scanner.match.corpus.ImageEmbedder describes it."""

    def __init__(self, descriptor: str = DESCRIPTOR, threads: int = 0) -> None:
        from finextract.sscd import load_embedder

        self._embedder = load_embedder(descriptor, threads=threads)
        self.descriptor: str = self._embedder.descriptor

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Embeds pictures of any mode and size; float32 [N, D], L2-normalised."""
        return self._embedder.embed(images)


# The settings of finextract.extract that a configuration has under the same names.
_SAMPLING = (
    "preset", "guidance_scale", "correction", "samples_per_image", "samples_per_round",
    "candidates_per_image", "steps", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """What all scans of a crawl have in common. It is sent to each worker once."""

    store: str
    source: str  # its specification, such as "hf" or "folder:PATH"
    base: str | None  # OWNER/NAME or a local path, as the user gave it with --base
    config: ScanConfig
    run_id: str
    cache: str | None  # the folder of downloads; None on a cluster, where each node has its own
    max_download: int  # bytes of a checkpoint
    cache_bytes: int  # of the whole cache
    keep_weights: bool
    allow_pickle: bool
    threads: int  # CPU threads of a worker; 0 = its share of its node's cores
    caption_model: str | None = None  # the folder of a CLIP model, on every node
    gpus: float = 0.0  # that a worker takes; the pool sets it

    @property
    def cache_folder(self) -> Path:
        """The folder of downloads on the node where this is asked."""
        return default_cache() if self.cache is None else Path(self.cache)


class Stage(NamedTuple):
    """The stage of the scan that is running."""

    checkpoint_id: str
    name: str  # fetch, load, screen, sample, embed, cliques, match
    seconds: float  # since it began


class Scanner:
    """Scans inspected checkpoints one at a time; holds the embedder, the corpora and the last base model."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._store = Store(task.store, patience=Patience(CRAWL_S, LOGGER.warning))
        self._cache = task.cache_folder
        self._leases = Leases(self._store.storage, task.run_id)
        self._source = open_source(task.source, base=task.base, allow_pickle=task.allow_pickle)
        self._bases = BaseFetcher(task.base)
        self._embedder: SscdEmbedder | None = None
        self._threads = task.threads
        self._base: tuple[BaseFiles, tuple[Any, str]] | None = None
        self._batch_sizes: dict[str, int] = {}  # by family, where the memory was too small for the usual
        self._attempt: Attempt | None = None

    @cached_property
    def _corpora(self) -> Corpora:
        """The references and the background. Read at the first scan, so a fetcher never reads them."""
        return split(corpora_of(self._store, self._task.config, self._cache))

    @cached_property
    def _captions(self) -> Captions:
        return Captions(self._task.config, self._task.caption_model)

    @cached_property
    def _screen(self) -> Screen:
        return Screen(self._store, self._task.config, self._corpora)

    def ready(self) -> None:
        """Loads what every scan needs, so that a failure is not attributed to a checkpoint.

        Fixes the number of threads of this process, in which nothing has imported torch yet.
        """
        self._threads = self._task.threads or share_of_cores(self._task.gpus)
        os.environ.update(thread_settings(self._threads))
        self._embedder = SscdEmbedder(self._task.config.descriptor, self._threads)

    def stage(self) -> Stage | None:
        """The running stage, None while no scan runs. May be called from another thread."""
        attempt = self._attempt
        if attempt is None:
            return None
        return Stage(attempt.checkpoint_id, attempt.stage, time.perf_counter() - attempt.entered)

    def fetch_ahead(self, checkpoint: Checkpoint) -> bool:
        """Downloads a checkpoint and its base into the cache; returns whether that succeeded."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                with self._downloads(keep=True) as downloads:
                    assert checkpoint.base is not None, "only an inspected checkpoint is fetched"
                    self._bases.fetch(checkpoint.base, downloads)
                    self._source.fetch(checkpoint, Path(folder), downloads)
            except (EntryError, OSError):  # its scan raises the same error and records it
                return False
        return True

    def _downloads(self, *, keep: bool) -> DownloadCache:
        task = self._task
        return DownloadCache(
            self._cache, max_bytes=task.max_download, cache_bytes=task.cache_bytes,
            keep=keep or task.keep_weights,
        )  # fmt: skip

    def scan(self, checkpoint: Checkpoint) -> Scan:
        """Scans a checkpoint and writes its rows. The scan's own row is written after its evidence.

        An error of the checkpoint or of its surroundings ends in a row that is `skipped` or `failed`, with
        its reason and reason code. A failed row is returned and not written, because the attempt may be
        repeated. Raises LeaseLost, and writes nothing more, where another crawl holds the checkpoint's lease.
        """
        attempt = self._attempt = Attempt(checkpoint, self._task.config, self._task.run_id)
        with logged(self._store, self._cache, attempt.scan_id) as log:
            log.info("%s %s of %s: %s", checkpoint.kind, checkpoint.checkpoint_id, checkpoint.source,
                     checkpoint.repo)  # fmt: skip
            try:
                scan = self._scan(checkpoint, attempt)
            except (Skipped, CheckpointError) as error:
                scan = attempt.end(Verdict.SKIPPED, str(error), error.reason_code)
            except (Unavailable, NotFinite) as error:
                scan = attempt.end(Verdict.FAILED, str(error), error.reason_code)
            except LeaseLost:
                raise
            except Exception as error:  # of the surroundings or of the program: the crawl continues
                log.exception("in %s", attempt.stage)
                if "CUDA error" in str(error):  # a new process can use the GPU, this one cannot
                    os._exit(CUDA_EXIT_CODE)
                reason = sentence_of(error, attempt.stage)
                scan = attempt.end(Verdict.FAILED, reason, reason_code_of(error))
            finally:
                self._attempt = None
            log.info("%s %s %s", scan.verdict, scan.reason, scan.seconds)
            if scan.verdict is not Verdict.FAILED:
                self._confirm_lease(checkpoint)
                self._store.append([scan])
        return scan

    def _confirm_lease(self, checkpoint: Checkpoint) -> None:
        if not self._leases.confirm(lease_key(checkpoint.checkpoint_id, self._task.config.config_id)):
            raise LeaseLost(f"another crawl has taken over {checkpoint.repo}")

    def _scan(self, checkpoint: Checkpoint, attempt: Attempt) -> Scan:
        from finextract.models.loading import tune

        config = self._task.config
        attempt.facts.update(caption=checkpoint.caption, base=checkpoint.base)
        if (why := _why_no_gpu(checkpoint.family)) is not None:
            raise Unavailable(why, ReasonCode.OUT_OF_MEMORY)
        corpora = self._corpora  # references that cannot be read are an error now, not after the sampling
        with attempt.enter("fetch"):
            files = fetched(self._source, self._bases, checkpoint, self._downloads(keep=False))
            with files as local, attempt.enter("load"):
                base, base_sha256 = self._load_base(local.base)
                pair = tune(base, local.weights)
        attempt.facts.update(
            base_sha256=base_sha256,
            device=_device_name(),
            precision=str(pair.tuned.dtype).removeprefix("torch."),
            versions=versions(),
            num_references=corpora.num_references,
            num_background=corpora.num_background,
        )
        screened = None
        if config.is_screened:
            with attempt.enter("screen"):
                screened = self._screen.run(pair, checkpoint, attempt.scan_id)
            attempt.facts.update(screened.facts)
        sampled = config.is_sampled(named=screened is None or screened.named)
        candidates: list[Candidate] = []
        evidence = None
        if sampled:
            candidates, facts = earlier_candidates(self._store, config, checkpoint, attempt.scan_id)
            attempt.facts.update(facts)
            result = None if candidates else self._sample(pair, checkpoint, attempt)
            with attempt.enter("match"):
                candidates = candidates or rows_of(result, attempt.scan_id, config.descriptor, self._store)
                embeddings = np.array([c.embedding for c in candidates], np.float32)
                own = Candidates(attempt.scan_id, [c.candidate_id for c in candidates], embeddings)
                (evidence,) = compare([own], corpora, thresholds_of(config), config.alpha)
            attempt.facts.update(best_similarity=evidence.best_similarity, q_value=evidence.q_value)
        self._confirm_lease(checkpoint)
        self._store.append(candidates)
        self._store.append(evidence.matches if evidence else [])
        self._store.append(screened.rows if screened else [])
        grounds = grounds_of(screened.rows if screened else (), evidence)
        attempt.facts.update(grounds="+".join(grounds), examined=examination(screened is not None, sampled))
        return attempt.end(Verdict.FLAGGED if grounds else Verdict.NOTHING_FOUND, "")

    def _sample(self, pair: Any, checkpoint: Checkpoint, attempt: Attempt) -> Any:
        """A finextract.extract.Extraction of a pair. The attempt gets its facts and seconds."""
        from finextract.extract import ExtractionSettings, extract_all

        config = self._task.config
        usual = need_of(checkpoint.family).batch_size
        chosen: dict[str, Any] = {name: getattr(config, name) for name in _SAMPLING}
        settings = ExtractionSettings(
            **chosen, batch_size=self._batch_sizes.get(checkpoint.family, usual)
        )  # fmt: skip
        strengths = settings.guidances(pair)
        scales = ", ".join(f"{strength.guidance_scale:g}" for strength in strengths)
        if len(strengths) == 1:
            (only,) = strengths
            attempt.facts.update(guidance_scale=only.guidance_scale, correction=only.correction)
        with attempt.enter("sample"):
            self._embedder = self._embedder or SscdEmbedder(config.descriptor, self._threads)
            images = config.num_samples_images(checkpoint.num_train_images)
            captions, facts = self._captions.of(pair, checkpoint, settings, images)
            attempt.facts.update(facts)
            LOGGER.info("captions %s, base %s, w' %s", captions, checkpoint.base, scales)
            result = extract_all(pair, captions, images, settings, self._embedder)
        batch_size = self._batch_sizes[checkpoint.family] = result.settings.batch_size
        for stage in ("embed", "cliques"):
            attempt.seconds[stage] = result.seconds[stage]
            attempt.seconds["sample"] -= result.seconds[stage]
        attempt.facts.update(
            num_samples=result.num_samples,
            sampled_for=result.num_train_images,
            sampled_for_stated=checkpoint.num_train_images == result.num_train_images,
            rounds=result.rounds,
            num_candidates=len(result.candidates),
            sample_evaluations=result.unet_evaluations,
        )
        counts = result.num_samples, result.rounds, len(result.candidates), batch_size
        LOGGER.info("%d samples in %d rounds, %d candidates, batches of %d", *counts)
        return result

    def _load_base(self, base: BaseFiles) -> tuple[Any, str]:
        """The base model, and the id of its weights; the last one stays loaded for those that share it."""
        import torch

        from finextract.models.loading import gpu_precision, load_base

        if self._base is None or self._base[0] != base:
            self._base = None  # released before the next is loaded
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            dtype = gpu_precision(base.model) if device.type == "cuda" else torch.float32
            model = load_base(base.model, device, dtype, base.parts)
            self._base = base, (model, weights_id(base.model))
        return self._base[1]


def sscd_weights() -> tuple[str, Path]:
    """The name of the default descriptor, and the file of its weights."""
    from finextract.sscd import DEFAULT, default_weights

    return DEFAULT, default_weights()


def devices() -> list[tuple[str, int]]:
    """The GPUs that torch can use, each with its memory in bytes; empty where there is only a CPU."""
    import torch

    found = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return [(torch.cuda.get_device_name(n), torch.cuda.get_device_properties(n).total_memory) for n in found]


def _why_no_gpu(family: str) -> str | None:
    """Why the GPU of this process is too small for a family; None where it is not, or there is none."""
    found = devices()
    return why_too_small(family, found[0][1], found[0][0]) if found else None


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
