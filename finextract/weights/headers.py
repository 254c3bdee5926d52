"""Safetensors headers: parsed, checked, never trusted. Reads no tensor and imports no torch.

A safetensors file opens with 8 bytes, little endian, that state the length of a JSON header; the header maps
each tensor's name to its dtype, shape and position (safetensors format specification). Weights from a hub
are untrusted: the length is capped, every position is checked, and nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from finextract.errors import CorruptWeights, PickledWeights
from finextract.regular_files import open_regular

MAX_HEADER_BYTES = 25_000_000  # huggingface_hub's own cap for remote headers
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
_MAX_DIMENSIONS = 16
_MAX_NUMBER = 1 << 50  # elements or bytes; a larger number is refused
_DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a header."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed safetensors header."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    size_bytes: int  # that the whole file must have


def parse_header(start: bytes, where: str) -> Header:
    """Parses the first bytes of a safetensors file (all of its header, at least).

    Raises PickledWeights for a pickle or zip archive, CorruptWeights for anything else that is not a header.
    `where` names the file in messages.
    """
    if _is_pickle(start):
        raise PickledWeights(
            f"{where} is a pickle, which can run code when it is opened; it was not opened. "
            "Ask its author for safetensors."
        )
    if len(start) < 8:
        raise CorruptWeights(
            f"{where} holds {len(start)} bytes: too few for a safetensors file. Fetch it again."
        )
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER_BYTES:
        raise CorruptWeights(
            f"{where} is not a safetensors file: its header would be {length:,} bytes long "
            f"(at most {MAX_HEADER_BYTES:,} are read)."
        )
    if len(start) < 8 + length:
        raise CorruptWeights(
            f"{where} is cut short: its header should be {length:,} bytes, {len(start) - 8:,} are there."
        )
    try:
        entries = json.loads(start[8 : 8 + length].decode("utf-8"))
        metadata = {str(k): str(v) for k, v in (entries.pop("__metadata__", None) or {}).items()}
        tensors, end = _tensors(entries, where)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptWeights(
            f"{where} is not a safetensors file: its header cannot be read ({str(error)[:200]})."
        ) from error
    return Header(metadata, tensors, 8 + length + end)


def _is_pickle(start: bytes) -> bool:
    """Whether a file is a pickle, or a zip archive of one. Header lengths may open with the same bytes, but a
    header's JSON follows them."""
    return start[:4] == b"PK\x03\x04" or (
        start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{"
    )


def _tensors(entries: dict[str, dict[str, object]], where: str) -> tuple[dict[str, TensorInfo], int]:
    """The tensors, and where the last one ends. Together they fill the file: no hole, nothing twice."""
    tensors: dict[str, TensorInfo] = {}
    places: list[tuple[int, int]] = []
    for name, entry in entries.items():
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, *place] if isinstance(shape, list) and isinstance(place, list) else [-1]
        usable = isinstance(dtype, str) and len(numbers) <= _MAX_DIMENSIONS + 2
        if not usable or not all(type(n) is int and 0 <= n <= _MAX_NUMBER for n in numbers):
            raise CorruptWeights(f"{where}: the tensor {name[:80]!r} has no usable shape or place.")
        assert isinstance(dtype, str)
        assert isinstance(shape, list)
        assert isinstance(place, list)
        begin, end = place
        count = 1
        for n in shape:
            count *= n
        known = _DTYPE_BYTES.get(dtype)
        if end < begin or (known is not None and end - begin != count * known):
            raise CorruptWeights(f"{where}: the tensor {name[:80]!r} does not fill the place it claims.")
        tensors[name] = TensorInfo(dtype, tuple(shape))
        places.append((begin, end))
    last = 0
    for begin, end in sorted(places):
        if begin != last:
            raise CorruptWeights(f"{where}: its tensors leave a hole or lie on each other at byte {begin:,}.")
        last = end
    return tensors, last


def read_header(path: Path) -> Header:
    """The header of a local file, checked against the file's size.

    Raises PickledWeights or CorruptWeights, OSError for what is not a regular file.
    """
    with open_regular(path) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if 0 < length <= MAX_HEADER_BYTES:
            start += file.read(length)
    header = parse_header(start, path.name)
    size = path.stat().st_size
    if size != header.size_bytes:
        raise CorruptWeights(
            f"{path.name} is damaged: its header states {header.size_bytes:,} bytes, the file has {size:,}. "
            "Fetch it again."
        )
    return header
