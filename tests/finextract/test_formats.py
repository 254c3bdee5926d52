"""Headers of real files, of hostile ones, and what their keys say."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers.trouble import (
    lora_shapes,
    sdxl_lora_shapes,
    small_tensors,
    write_pickle,
    write_safetensors,
)

from finextract.errors import CheckpointError, CorruptWeights, PickledWeights
from finextract.formats import MAX_HEADER_BYTES, Header, TensorInfo, classify, parse_header, read_header

LDM_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def header_of(shapes: dict[str, tuple[int, ...]], **metadata: str) -> Header:
    return Header(metadata, {name: TensorInfo("F16", shape) for name, shape in shapes.items()}, 0)


def encoded(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def test_a_whole_file_has_the_size_that_its_header_tells(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", small_tensors(lora_shapes()), {"ss_epoch": "3"})
    header = read_header(path)
    assert header.size_bytes == path.stat().st_size
    assert header.metadata == {"ss_epoch": "3"}
    assert {name: t.shape for name, t in header.tensors.items()} == lora_shapes()


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1])
def test_a_file_cut_anywhere_is_corrupt(tmp_path: Path, kept: int) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", small_tensors(lora_shapes()))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CorruptWeights):
        read_header(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_told_from_damage(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps({"weight": list(range(500))}, protocol=protocol))
    with pytest.raises(PickledWeights, match="was not opened"):
        read_header(path)


def test_a_zip_archive_of_a_pickle_is_a_pickle(tmp_path: Path) -> None:
    write_pickle(tmp_path / "a.safetensors")
    with pytest.raises(PickledWeights):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_a_header_whose_length_looks_like_a_pickle_is_read(length: int) -> None:
    empty = json.dumps({"__metadata__": {"a": ""}})
    text = json.dumps({"__metadata__": {"a": "x" * (length - len(empty))}}).encode()
    assert len(text) == length
    assert parse_header(struct.pack("<Q", length) + text, "a").tensors == {}


@pytest.mark.parametrize(
    "entries",
    [
        [],
        "text",
        {"a": 1},
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": [True], "data_offsets": [0, 2]}},
        {"a": {"dtype": "F16", "shape": ["2"], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 400]}},
        {"__metadata__": ["x"], "a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}},
    ],
)
def test_a_header_of_another_shape_is_corrupt(entries: object) -> None:
    with pytest.raises(CorruptWeights):
        parse_header(encoded(entries), "a.safetensors")


def test_a_header_of_absurd_length_is_not_read() -> None:
    with pytest.raises(CorruptWeights, match="at most"):
        parse_header(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{", "a.safetensors")


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_refused(start: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        parse_header(start, "a")


@pytest.mark.parametrize(
    ("shapes", "kind", "family", "style"),
    [
        (lora_shapes(), "lora", "sd1", "diffusers"),
        (lora_shapes(width=320, context=768), "lora", "sd1", "diffusers"),
        (lora_shapes(width=320, context=1024), "lora", "sd2", "diffusers"),
        (sdxl_lora_shapes(), "lora", "sdxl", "kohya"),
        ({LDM_KEY: (320, 768), "cond_stage_model.transformer.x": (1,)}, "full", "sd1", "ldm"),
        ({LDM_KEY: (320, 1024), "cond_stage_model.model.x": (1,)}, "full", "sd2", "ldm"),
        ({LDM_KEY: (640, 2048), "conditioner.embedders.0.x": (1,)}, "full", "sdxl", "ldm"),
        (
            {
                "conv_in.weight": (32, 4, 3, 3),
                "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (32, 96),
            },
            "unet",
            "sd1",
            "diffusers",
        ),
        ({"lora_unet_x.hada_w1_a": (4, 4), "lora_unet_x.hada_w1_b": (4, 4)}, "lycoris", "unknown", "kohya"),
        (
            {"lora_unet_x.lora_down.weight": (4, 4), "lora_unet_x.dora_scale": (4,)},
            "dora",
            "unknown",
            "kohya",
        ),
        ({"double_blocks.0.img_attn.qkv.weight": (9, 3)}, "full", "flux", "ldm"),
        ({"emb_params": (2, 768)}, "textual_inversion", "unknown", "unknown"),
        ({"encoder.conv_in.weight": (1,), "decoder.conv_out.weight": (1,)}, "vae", "unknown", "unknown"),
        ({"something.else": (1,)}, "unknown", "unknown", "unknown"),
    ],
)
def test_keys_and_shapes_tell_kind_family_and_style(
    shapes: dict[str, tuple[int, ...]], kind: str, family: str, style: str
) -> None:
    found = classify(header_of(shapes))
    assert (found.kind, found.family, found.style) == (kind, family, style)


def test_a_lora_without_cross_attention_is_told_by_its_metadata() -> None:
    shapes = {"lora_unet_conv.lora_down.weight": (4, 32), "lora_unet_conv.lora_up.weight": (32, 4)}
    assert classify(header_of(shapes)).family == "unknown"
    assert classify(header_of(shapes, ss_base_model_version="sd_v1")).family == "sd1"


def test_every_zoo_file_is_known(zoo_path: Path) -> None:
    for path in zoo_path.glob("checkpoints/*/*.safetensors"):
        found = classify(read_header(path))
        assert (found.kind in ("full", "lora"), found.family) == (True, "sd1"), path
    for path in zoo_path.glob("checkpoints/*/unet/*.safetensors"):
        assert classify(read_header(path)).kind == "unet"
