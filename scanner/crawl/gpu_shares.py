"""The share of a GPU that a worker takes, by the model family that it scans."""

from __future__ import annotations

from collections.abc import Iterable

from finextract.gpu_needs import GPU_NEEDS, need_of

# GiB of a GPU by Ray's name of its type. A GPU of another type is taken by one worker alone.
GPU_GIB = {"T4": 16, "V100": 16, "L4": 24, "A10G": 24, "A100": 40, "A100-80G": 80, "L40S": 48, "H100": 80,
           "H200": 141, "B200": 192}  # fmt: skip
MAX_PER_GPU = 4  # workers; more would only wait for each other


def share_of_gpu(family: str | None, gpu_types: Iterable[str]) -> float:
    """The part of a GPU that a worker for a family takes, where GPUs of these types may run it.

    It is told by the smallest of them. A GPU of an unknown type, and one that is too small for two, is taken
    whole.
    """
    need = need_of(family).gib
    least = min((GPU_GIB.get(name, 0) for name in gpu_types), default=0)
    return 1 / max(1, min(MAX_PER_GPU, least // need))


def why_too_small(family: str | None, gpu_bytes: int, gpu: str) -> str | None:
    """Why a GPU with so much memory cannot run the scans of a family; None where it can."""
    if family not in GPU_NEEDS:
        return None
    least = GPU_NEEDS[family].least_gib
    if gpu_bytes >= least * 1024**3 * 0.95:  # a GPU has a little less than its name says
        return None
    return (
        f"a scan of {family} needs {least} GiB of GPU memory, and the {gpu} of this node has "
        f"{gpu_bytes / 1024**3:.0f} GiB. Use a larger GPU, or pass --gpus-per-worker 0 to use CPU cores."
    )
