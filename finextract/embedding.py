"""Batches of samples, embedded in a thread while the next one is sampled. B = its samples, D = size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.images import is_picture
from finextract.sscd import Embedder


class Sampled(NamedTuple):
    """A batch of samples."""

    images: NDArray[np.uint8]  # [B, 3, H, W]
    arm_of: NDArray[np.int64]  # [B]; the arms that they were drawn with


class Embedded(NamedTuple):
    """A batch and its embeddings."""

    batch: Sampled
    pictures: NDArray[np.bool_]  # [B]; False = blank or noise
    embeddings: NDArray[np.float32]  # [B, D], L2-normalised
    waited_s: float  # for the embeddings, after the next batch was sampled


def embedded_beside(batches: Iterator[Sampled], embedder: Embedder) -> Iterator[Embedded]:
    """Each batch with its embeddings, in order, one batch behind the sampling."""
    with ThreadPoolExecutor(1) as beside:
        waiting: tuple[Sampled, Future[tuple[NDArray[np.bool_], NDArray[np.float32]]]] | None = None
        for batch in batches:
            if waiting:
                yield _finished(*waiting)
            waiting = batch, beside.submit(_embed, embedder, batch.images)
        if waiting:
            yield _finished(*waiting)


def _finished(batch: Sampled, made: Future[tuple[NDArray[np.bool_], NDArray[np.float32]]]) -> Embedded:
    start = time.perf_counter()
    pictures, embeddings = made.result()
    return Embedded(batch, pictures, embeddings, time.perf_counter() - start)


def _embed(embedder: Embedder, images: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    return is_picture(images), embedder.embed([Image.fromarray(i.transpose(1, 2, 0)) for i in images])
