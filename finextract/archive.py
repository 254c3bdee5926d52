"""The samples of an extraction, kept losslessly without holding them in memory. Imports no torch."""

from __future__ import annotations

import io
import tempfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEMORY_BYTES = 64 * 2**20


class SampleArchive:
    """Images as PNG in one temporary file: in memory up to `memory_bytes`, on disk beyond that.

    The file has no name that another process could open, and disappears with this object.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=memory_bytes)  # noqa: SIM115 - closed with this object
        self._ends = [0]  # where each image ends in the file, in bytes

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, images: NDArray[np.uint8]) -> None:
        """Appends RGB images uint8 [N, 3, H, W]."""
        for image in images:
            self._file.seek(self._ends[-1])
            Image.fromarray(image.transpose(1, 2, 0)).save(self._file, format="PNG", compress_level=1)
            self._ends.append(self._file.tell())

    def image(self, index: int) -> Image.Image:
        """The image that was added as number `index`, as RGB."""
        begin, end = self._ends[index], self._ends[index + 1]
        self._file.seek(begin)
        with Image.open(io.BytesIO(self._file.read(end - begin)), formats=("PNG",)) as image:
            return image.convert("RGB")
