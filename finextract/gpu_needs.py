"""What the scans of each model family need of a GPU. Standard library only.

`python tests/family_costs.py` counts the bytes; docs/scale.md has the table and what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuNeed:
    """What the scans of a model family need."""

    gib: int  # of GPU memory: both models, the largest batch, the CUDA context
    least_gib: int  # with which a scan still works, one picture at a time
    batch_size: int  # samples at once, until memory turns out to be too small


# Stable Diffusion 3 is counted as 3.5 large, because a family is all that is known before a file is opened.
GPU_NEEDS = {
    "sd1": GpuNeed(12, 6, 32),
    "sd2": GpuNeed(16, 8, 16),
    "sdxl": GpuNeed(26, 18, 8),
    "sd3": GpuNeed(64, 58, 8),
    "flux": GpuNeed(76, 68, 4),
}
_LARGEST = max(GPU_NEEDS.values(), key=lambda need: need.gib)


def need_of(family: str | None) -> GpuNeed:
    """The need of a family; of one that is not known before its file is converted, the largest."""
    return GPU_NEEDS.get(family or "", _LARGEST)
