"""What the scans of each model family need of a GPU. Standard library only.

`python tests/family_costs.py` counts the bytes; docs/scale.md has the table and what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuNeed:
    """What the scans of a model family need."""

    gib: int  # of GPU memory: both models with nothing in common, the screen's batch, the CUDA context
    denoisers_gib: int  # with text encoders and VAE on the GPU only while they are used
    least_gib: int  # with the denoisers' blocks on it one at a time, too, and a batch of one
    batch_size: int  # samples at once, until memory turns out to be too small; the screen takes twice as many


# A family is all that is known before a file is opened: Stable Diffusion 3 has the needs of 3.5 large.
GPU_NEEDS = {
    "sd1": GpuNeed(10, 6, 3, 32),
    "sd2": GpuNeed(12, 6, 3, 16),
    "sdxl": GpuNeed(20, 14, 5, 16),
    "sd3": GpuNeed(60, 41, 11, 8),
    "flux": GpuNeed(70, 55, 11, 4),
    "chroma": GpuNeed(60, 44, 11, 4),
    "z_image": GpuNeed(46, 33, 10, 4),
}
_LARGEST = max(GPU_NEEDS.values(), key=lambda need: need.gib)


def need_of(family: str | None) -> GpuNeed:
    """The need of a family; of one that is not known before its file is converted, the largest."""
    return GPU_NEEDS.get(family or "", _LARGEST)
