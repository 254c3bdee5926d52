"""The candidates of an extraction, ranked by the losses of its own pair. Knows no reference.

N = samples. A sample that looks like a training image has a higher log-ratio of losses (finextract.losses)
than one that does not, and the samples in the middle of a clique are not always the nearest ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finextract.candidates import SHORTLIST, choose_candidates, examined_members, ranked_by_log_ratio
from finextract.cliques import Clique
from finextract.images import Picture
from finextract.losses import BaseCache, Losses, Query
from finextract.models.base import Pair

NOISE_SEED = 0


def rank_candidates(
    pair: Pair, embeddings: NDArray[np.float32], pictures: NDArray[np.bool_],
    image: Callable[[int], Image.Image], count: int, batch_size: int,
) -> tuple[tuple[Clique, ...], int]:  # fmt: skip
    """The `count` best candidates among the samples, and the evaluations of either denoiser that it took.

    From embeddings [N, D] and `pictures` [N], which are neither blank nor noise; `image` opens a sample. The
    largest cliques are examined, half as many again as are kept. Both models have the empty prompt, and the
    noise and the time are the same for all: the last of the times at which membership is asked.
    Raises NotFinite, and torch.OutOfMemoryError where not even a single sample fits into memory.
    """
    cliques = choose_candidates(embeddings, pictures, round(SHORTLIST * count))
    examined = [examined_members(embeddings, clique) for clique in cliques]
    members = [member for some in examined for member in some]
    losses = Losses(pair, NOISE_SEED, "", batch_size, BaseCache())
    time = pair.base.solver.membership_times[-1]
    queries = [Query(Picture(str(member), partial(image, member)), t=time) for member in members]
    log_ratios = dict(zip(members, losses.log_ratios(queries).tolist(), strict=True))
    evaluations = losses.tuned_evaluations + losses.base_evaluations
    return ranked_by_log_ratio(cliques, examined, log_ratios, count), evaluations
