"""What the losses of a pair say of its own samples: which are near to a training image. Knows no reference.

N = samples. A sample that looks like a training image has a higher log-ratio of losses (finextract.losses)
than one that does not. That tells which strength of guidance comes near, and which samples represent their
cliques: the one in the middle is not always the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.candidates import SHORTLIST, choose_candidates, examined_members, ranked_by_log_ratio
from finextract.cliques import Clique
from finextract.images import Picture
from finextract.losses import BaseCache, Losses, Query
from finextract.models.base import Pair

NOISE_SEED = 0


class SampleLosses:
    """The log-ratios of the samples of one extraction; each sample is evaluated once.

    Both models have the empty prompt, and the noise and the time are the same for all samples: the last of
    the times at which membership is asked.
    """

    def __init__(self, pair: Pair, image: Callable[[int], Image.Image], batch_size: int) -> None:
        self._pair, self._image, self._batch_size = pair, image, batch_size
        self._losses = Losses(pair, NOISE_SEED, "", batch_size, BaseCache())
        self.known: dict[int, float] = {}  # sample -> log-ratio

    @property
    def evaluations(self) -> int:
        """Evaluations of either denoiser so far: one of each for a sample."""
        return 2 * len(self.known)

    def log_ratios(self, samples: Sequence[int]) -> NDArray[np.float32]:
        """log of the base's loss over the tuned model's, [len(samples)].

        Raises NotFinite, and torch.OutOfMemoryError where not even a single sample fits into memory.
        """
        new = [sample for sample in samples if sample not in self.known]
        time = self._pair.base.solver.membership_times[-1]
        queries = [Query(Picture(str(sample), partial(self._image, sample)), t=time) for sample in new]
        self.known.update(zip(new, self._losses.log_ratios(queries).tolist(), strict=True))
        return np.array([self.known[sample] for sample in samples], np.float32)

    def copy(self) -> Self:
        """The same, of which neither learns what the other is asked from here on."""
        other = type(self)(self._pair, self._image, self._batch_size)
        other.known = dict(self.known)
        return other


def rank_candidates(
    losses: SampleLosses, embeddings: NDArray[np.float32], pictures: NDArray[np.bool_], count: int
) -> tuple[Clique, ...]:
    """The `count` best candidates among the samples, from embeddings [N, D], the best first.

    `pictures` [N] are neither blank nor noise. The largest cliques are examined, half as many again as are
    kept. Raises what `SampleLosses.log_ratios` raises.
    """
    cliques = choose_candidates(embeddings, pictures, round(SHORTLIST * count))
    examined = [examined_members(embeddings, clique) for clique in cliques]
    losses.log_ratios([member for some in examined for member in some])
    return ranked_by_log_ratio(cliques, examined, losses.known, count)
