"""Which samples are pictures at all. Blank and noisy ones resemble each other and would found false cliques:
two independent images of white noise have an SSCD similarity of 0.75."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_CONTRAST = 4.0  # standard deviation of the grey values, of 255
MIN_SMOOTHNESS = 0.4  # correlation of neighbouring grey values; white noise has 0, photographs over 0.9


def is_picture(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """images uint8 [N, 3, H, W] -> bool [N]; False for a blank image and for noise."""
    grey: NDArray[np.float32] = images.mean(axis=1, dtype=np.float32)  # [N, H, W]
    contrast: NDArray[np.float32] = grey.std(axis=(1, 2))
    across = _correlation(grey[:, :, 1:], grey[:, :, :-1])
    down = _correlation(grey[:, 1:], grey[:, :-1])
    result: NDArray[np.bool_] = (contrast >= MIN_CONTRAST) & (np.minimum(across, down) >= MIN_SMOOTHNESS)
    return result


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson's correlation over the last two axes, [N]; 0 where an image is blank."""
    a, b = _centred(a), _centred(b)
    scale = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    result: NDArray[np.float32] = ((a * b).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)).astype(np.float32)
    return result


def _centred(a: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = a - a.mean(axis=(1, 2), keepdims=True)
    return result
