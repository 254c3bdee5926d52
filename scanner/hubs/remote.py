"""The start of a remote file, and the safetensors header in it. A source supplies the range request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from finextract.errors import CheckpointError
from finextract.reasons import ReasonCode
from finextract.weights.formats import MAX_HEADER_BYTES, Header, parse_header
from scanner.errors import Skipped

FIRST_READ = 100_001  # bytes; most headers are shorter


@dataclass(frozen=True, slots=True)
class Start:
    """The start of a file, and what its server states about the whole file."""

    content: bytes
    size: int | None = None  # bytes, of the whole file
    sha256: str | None = None  # 64 hex digits

    def is_sound(self, requested: int) -> bool:
        """Whether as many bytes came as were requested, and the right ones where a SHA256 covers them."""
        if self.size is not None and len(self.content) < min(requested, self.size):
            return False
        if self.sha256 is None or self.size != len(self.content):
            return True
        return hashlib.sha256(self.content).hexdigest() == self.sha256


def read_header(read: Callable[[int], Start], where: str, listed_size: int | None) -> tuple[Header, Start]:
    """A weight file's header by one range read of its first bytes, or two where it is long.

    `listed_size` is used where the response states no size. Raises Skipped where the file is not a
    safetensors file, or its header states another size.
    """
    start = read(FIRST_READ)
    length = 8 + int.from_bytes(start.content[:8], "little")
    if len(start.content) >= 8 and len(start.content) < length <= MAX_HEADER_BYTES + 8:
        start = read(length)
    try:
        header = parse_header(start.content, where)
    except CheckpointError as error:
        raise Skipped(str(error), error.reason_code) from error
    size = start.size if start.size is not None else listed_size
    if size is not None and header.size_bytes != size:
        raise Skipped(
            f"{where} is damaged: its header states {header.size_bytes:,} bytes, the hub lists {size:,}. "
            "Ask its author to upload it again.",
            ReasonCode.DAMAGED,
        )
    return header, start
