"""What a safetensors header says: kind, family and key style. Reads no tensor and imports no torch.

A safetensors file opens with 8 bytes, little endian, that tell the length of a JSON header; the header maps
each tensor's name to its dtype, shape and place (safetensors format specification). Weights from a hub are
hostile: the length is capped, every place is checked, and nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finextract.errors import CorruptWeights, PickledWeights

MAX_HEADER_BYTES = 25_000_000  # huggingface_hub's own cap for remote headers
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
_DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip

Kind = Literal[
    "full", "unet", "lora", "lycoris", "dora", "textual_inversion", "vae", "text_encoder", "unknown"
]
Family = Literal["sd1", "sd2", "sdxl", "sd3", "flux", "unknown"]
Style = Literal["ldm", "diffusers", "kohya", "peft", "unknown"]


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


@dataclass(frozen=True, slots=True)
class WeightsKind:
    """What the keys and shapes say. `unknown` where they say nothing: never a guess."""

    kind: Kind
    family: Family
    style: Style
    has_text_encoder: bool


def parse_header(start: bytes, where: str) -> Header:
    """Parses the first bytes of a safetensors file (all of its header, at least).

    Raises PickledWeights for a pickle or zip archive, CorruptWeights for anything else that is no header.
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
            f"{where} is no safetensors file: its header would be {length:,} bytes long "
            f"(at most {MAX_HEADER_BYTES:,} are read)."
        )
    if len(start) < 8 + length:
        raise CorruptWeights(
            f"{where} is cut short: its header should be {length:,} bytes, {len(start) - 8:,} are there."
        )
    try:
        entries = json.loads(start[8 : 8 + length])
        metadata = {str(k): str(v) for k, v in (entries.pop("__metadata__", None) or {}).items()}
        tensors, end = _tensors(entries, where)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptWeights(
            f"{where} is no safetensors file: its header cannot be read ({error})."
        ) from error
    return Header(metadata, tensors, 8 + length + end)


def _is_pickle(start: bytes) -> bool:
    """Whether a file is a pickle, or a zip archive of one. Header lengths may open with the same bytes, but a
    header's JSON follows them."""
    return start[:4] == b"PK\x03\x04" or (
        start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{"
    )


def _tensors(entries: dict[str, dict[str, object]], where: str) -> tuple[dict[str, TensorInfo], int]:
    tensors: dict[str, TensorInfo] = {}
    last = 0
    for name, entry in entries.items():
        dtype, shape, place = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
            raise CorruptWeights(f"{where}: the tensor {name[:80]!r} has no usable shape or place.")
        begin, end = place
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise CorruptWeights(f"{where}: the tensor {name[:80]!r} has no usable shape or place.")
        count = 1
        for n in shape:
            count *= n
        if dtype in _DTYPE_BYTES and end - begin != count * _DTYPE_BYTES[dtype]:
            raise CorruptWeights(f"{where}: the tensor {name[:80]!r} does not fill the place it claims.")
        tensors[name] = TensorInfo(dtype, tuple(shape))
        last = max(last, end)
    return tensors, last


def read_header(path: Path) -> Header:
    """The header of a local file, checked against the file's size.

    Raises PickledWeights or CorruptWeights.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if 0 < length <= MAX_HEADER_BYTES:
            start += file.read(length)
    header = parse_header(start, path.name)
    size = path.stat().st_size
    if size != header.size_bytes:
        raise CorruptWeights(
            f"{path.name} is damaged: its header tells {header.size_bytes:,} bytes, the file has {size:,}. "
            "Fetch it again."
        )
    return header


def _has(keys: Iterable[str], *parts: str) -> bool:
    return any(part in key for key in keys for part in parts)


def classify(header: Header) -> WeightsKind:
    """Kind, family and key style of weights, from their keys and shapes alone."""
    keys = list(header.tensors)
    if _has(keys, ".hada_w1_", ".lokr_w1", ".lokr_w2", ".oft_blocks", ".oft_diag", ".on_input", ".lora_mid"):
        return WeightsKind("lycoris", _adapter_family(header), _adapter_style(keys), _adapter_text(keys))
    if _has(keys, ".dora_scale", ".lora_magnitude_vector"):
        return WeightsKind("dora", _adapter_family(header), _adapter_style(keys), _adapter_text(keys))
    if _has(keys, ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", "_lora.down.", "_lora.up."):
        return WeightsKind("lora", _adapter_family(header), _adapter_style(keys), _adapter_text(keys))
    if any(key.startswith("model.diffusion_model.") for key in keys):
        return WeightsKind(
            "full", _ldm_family(header), "ldm", _has(keys, "cond_stage_model.", "conditioner.")
        )
    if any(key.startswith("down_blocks.") for key in keys) and any(k.startswith("conv_in.") for k in keys):
        return WeightsKind("unet", _unet_family(header), "diffusers", False)
    if any("double_blocks." in key for key in keys):
        return WeightsKind("full", "flux", "ldm", False)
    if any("joint_blocks." in key for key in keys):
        return WeightsKind("full", "sd3", "ldm", False)
    if any(key.startswith("transformer_blocks.") for key in keys):
        family: Family = "flux" if any(k.startswith("single_transformer_blocks.") for k in keys) else "sd3"
        return WeightsKind("unet", family, "diffusers", False)
    if len(keys) <= 2 and (set(keys) & {"emb_params", "clip_l", "clip_g"} or _is_token(header)):
        return WeightsKind("textual_inversion", "unknown", "unknown", True)
    if any(key.startswith(("first_stage_model.", "encoder.", "decoder.")) for key in keys):
        return WeightsKind("vae", "unknown", "unknown", False)
    if any("text_model.encoder.layers." in key or key.startswith("encoder.layers.") for key in keys):
        return WeightsKind("text_encoder", "unknown", "unknown", True)
    return WeightsKind("unknown", "unknown", "unknown", False)


def _is_token(header: Header) -> bool:
    return all(
        name.startswith("<") and len(t.shape) in (1, 2) for name, t in header.tensors.items()
    ) and bool(header.tensors)


def _context_width(header: Header) -> int | None:
    """The text encoder's width, as the first cross-attention key projection tells it."""
    for name, tensor in header.tensors.items():
        down = not _has([name], "lora_up", "lora_B", "_lora.up")
        if (
            down
            and len(tensor.shape) >= 2
            and _has([name], "attn2.to_k", "attn2_to_k", "attn2.processor.to_k")
        ):
            return tensor.shape[1]
    return None


def _by_context(width: int | None) -> Family:
    # A pipeline of SD1's shape with another text encoder width (a smaller model) is of SD1's family.
    return "unknown" if width is None else {1024: "sd2", 2048: "sdxl", 1280: "sdxl"}.get(width, "sd1")  # type: ignore[return-value]


def _ldm_family(header: Header) -> Family:
    keys = header.tensors
    if _has(keys, "joint_blocks."):
        return "sd3"
    if _has(keys, "double_blocks."):
        return "flux"
    if _has(keys, "conditioner.embedders.", "model.diffusion_model.label_emb."):
        return "sdxl"
    if _has(keys, "cond_stage_model.model."):
        return "sd2"
    return _by_context(_context_width(header))


def _unet_family(header: Header) -> Family:
    return "sdxl" if _has(header.tensors, "add_embedding.") else _by_context(_context_width(header))


def _adapter_style(keys: list[str]) -> Style:
    if any(key.startswith("base_model.model.") for key in keys):
        return "peft"
    if any(key.startswith(("lora_unet_", "lora_te", "lycoris_")) for key in keys):
        return "kohya"
    if any(key.startswith(("unet.", "text_encoder", "transformer.", "diffusion_model.")) for key in keys):
        return "diffusers"
    return "unknown"


def _adapter_text(keys: list[str]) -> bool:
    return any(key.startswith(("lora_te", "text_encoder")) for key in keys)


def _adapter_family(header: Header) -> Family:
    keys = header.tensors
    if _has(keys, "double_blocks", "single_transformer_blocks"):
        return "flux"
    if _has(keys, "joint_blocks"):
        return "sd3"
    if any(key.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for key in keys):
        return "sdxl"
    width = _context_width(header)
    if width is not None:
        return _by_context(width)
    told = header.metadata.get("ss_base_model_version", "") or header.metadata.get(
        "modelspec.architecture", ""
    )
    for start, family in (("sd_v1", "sd1"), ("stable-diffusion-v1", "sd1"), ("sd_v2", "sd2"),
                          ("stable-diffusion-v2", "sd2"), ("sdxl", "sdxl"), ("stable-diffusion-xl", "sdxl"),
                          ("flux", "flux"), ("sd3", "sd3")):  # fmt: skip
        if told.startswith(start):
            return family  # type: ignore[return-value]
    return "unknown"
