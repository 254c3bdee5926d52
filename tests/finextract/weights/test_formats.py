"""Headers of real and of hostile files: parsing, and the kind and family that the keys show."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tried_formats
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.trouble import (
    encoded_header,
    lora_shapes,
    sdxl_lora_shapes,
    small_tensors,
    write_pickle,
    write_safetensors,
)
from yardstick import cost

from finextract.errors import CheckpointError, CorruptWeights, PickledWeights
from finextract.support import why_unsupported
from finextract.weights.formats import (
    MAX_HEADER_BYTES,
    Header,
    TensorInfo,
    classify,
    parse_header,
    read_header,
    settled,
)

ROOT = Path(__file__).resolve().parents[3]

LDM_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def header_of(shapes: dict[str, tuple[int, ...]], **metadata: str) -> Header:
    return Header(metadata, {name: TensorInfo("F16", shape) for name, shape in shapes.items()}, 0)


def test_a_whole_file_has_the_size_that_its_header_states(tmp_path: Path) -> None:
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
def test_a_pickle_is_distinguished_from_a_damaged_file(tmp_path: Path, protocol: int) -> None:
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


def tensor(shape: object = (2,), offsets: object = (0, 4), dtype: object = "F16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def as_json(entries: object) -> bytes:
    return json.dumps(entries).encode()


HOSTILE_HEADERS = {
    "a list instead of an object": as_json([]),
    "a text instead of an object": as_json("text"),
    "a number as a tensor": as_json({"a": 1}),
    "a tensor without a dtype": as_json({"a": {"shape": [2], "data_offsets": [0, 4]}}),
    "a list as dtype": as_json({"a": tensor(dtype=["F16"])}),
    "half a place": as_json({"a": tensor(offsets=[0])}),
    "a place that runs backwards": as_json({"a": tensor(offsets=[4, 0], dtype="X9")}),
    "a negative shape": as_json({"a": tensor(shape=[-2])}),
    "a truth value as shape": as_json({"a": tensor(shape=[True], offsets=[0, 2])}),
    "a text as shape": as_json({"a": tensor(shape=["2"])}),
    "a shape of fractions": as_json({"a": tensor(shape=[2.0])}),
    "a shape of a thousand axes": as_json({"a": tensor(shape=[1] * 1000, offsets=[0, 2])}),
    "a shape of huge numbers": as_json({"a": tensor(shape=[10**300, 10**300])}),
    "a shape that overflows 64 bits": as_json({"a": tensor(shape=[2**40, 2**40])}),
    "a place larger than the tensor": as_json({"a": tensor(offsets=[0, 400])}),
    "a number of 5,000 digits": b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
    "two tensors in one place": as_json({"a": tensor(), "b": tensor()}),
    "a hole between tensors": as_json({"a": tensor(), "b": tensor(offsets=[8, 12])}),
    "a hole before the first tensor": as_json({"a": tensor(offsets=[4, 8])}),
    "metadata that are a list": as_json({"__metadata__": ["x"], "a": tensor()}),
    "metadata that are a number": as_json({"__metadata__": 7}),
    "brackets nested 100,000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "JSON cut in the middle": as_json({"a": tensor()})[:-9],
    "bytes that are no UTF-8": b'{"a\xff": 1}',
    "JSON in UTF-16": json.dumps({"a": tensor()}).encode("utf-16"),
    "numbers that are not finite": b'{"a": NaN}',
    "nothing at all": b"",
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_found_corrupt_within_seconds(name: str) -> None:
    text = HOSTILE_HEADERS[name]

    def read() -> None:
        with pytest.raises(CorruptWeights) as refused:
            parse_header(struct.pack("<Q", len(text)) + text, "a.safetensors")
        assert len(str(refused.value)) < 500

    assert cost(read) < 60


def test_a_tensor_of_an_unknown_dtype_may_have_any_size() -> None:
    header = parse_header(encoded_header({"a": tensor(dtype="F4", offsets=[0, 1])}), "a.safetensors")
    assert header.tensors["a"].dtype == "F4"


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
        (
            {LDM_KEY: (640, 2048), "model.diffusion_model.label_emb.0.0.weight": (1280, 2816)},
            "full",
            "sdxl",
            "ldm",
        ),
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
        ({"double_blocks.0.img_attn.qkv.weight": (9, 3)}, "full", "unknown", "ldm"),
        ({"emb_params": (2, 768)}, "textual_inversion", "unknown", "unknown"),
        ({"encoder.conv_in.weight": (1,), "decoder.conv_out.weight": (1,)}, "vae", "unknown", "unknown"),
        ({"something.else": (1,)}, "unknown", "unknown", "unknown"),
    ],
)
def test_kind_family_and_style_follow_from_keys_and_shapes(
    shapes: dict[str, tuple[int, ...]], kind: str, family: str, style: str
) -> None:
    found = classify(header_of(shapes))
    assert (found.kind, found.family, found.style) == (kind, family, style)


def test_the_family_of_a_lora_without_cross_attention_is_taken_from_its_metadata() -> None:
    shapes = {"lora_unet_conv.lora_down.weight": (4, 32), "lora_unet_conv.lora_up.weight": (32, 4)}
    assert classify(header_of(shapes)).family == "unknown"
    assert classify(header_of(shapes, ss_base_model_version="sd_v1")).family == "sd1"


@pytest.mark.parametrize("name", tried_formats.MAKERS)
def test_every_tried_file_is_classified_as_the_table_says(name: str) -> None:
    row = tried_formats.read(name)
    if "start" in row:
        with pytest.raises(PickledWeights):
            parse_header(bytes.fromhex(row["start"]), name)
        return
    header = header_of({key: tuple(shape) for key, shape in row["tensors"].items()}, **row["metadata"])
    found = classify(header)
    assert [found.kind, found.family, found.style, found.model or found.detail] == row["says"]


@pytest.mark.parametrize(
    ("name", "algorithms"),
    [
        ("lora-sd1-kohya", ("LoRA",)),
        ("locon-sd1-lycoris", ("LoRA",)),
        ("lora-flux-xlabs", ("LoRA",)),
        ("dora-sd1-peft", ("DoRA", "LoRA")),
        ("loha-sd1-lycoris", ("LoHa",)),
        ("loha-dora-sd1-lycoris", ("DoRA", "LoHa")),
        ("oft-flux-kohya", ("OFT",)),
        ("oft-sd1-onetrainer", ("OFT of OneTrainer",)),
        ("locon-tucker-sd1-lycoris", ("LoRA", "Tucker decomposition")),
        ("locon-norms-sd1-lycoris", ("LoRA", "norm layers")),
        ("unet-sdxl-refiner", ()),
        ("lora-sdxl-pivotal-tuning", ("LoRA",)),
        ("textual-inversion-a1111", ()),
    ],
)
def test_an_adapter_states_its_algorithms_and_nothing_else_does(
    name: str, algorithms: tuple[str, ...]
) -> None:
    row = tried_formats.read(name)
    found = classify(header_of({key: tuple(s) for key, s in row["tensors"].items()}, **row["metadata"]))
    assert found.algorithms == algorithms
    assert found.is_adapter == bool(algorithms)
    assert found.tuning == ("lora" if algorithms else "full")


@pytest.mark.parametrize(
    ("ending", "shape", "family"),
    [
        ("oft_R.weight", (24, 496), "sd1"),  # 24 blocks of 32 inputs
        ("oft_R.weight", (32, 496), "sd2"),
        ("oft_R.weight", (64, 496), "sdxl"),
        ("oft_R.weight", (1, 496), "unknown"),  # all blocks share it: their number is not shown
        ("boft_R", (1, 96, 8, 8), "sd1"),
        ("boft_R", (2, 256, 8, 8), "sdxl"),
    ],
)
def test_rotations_of_the_inputs_of_a_cross_attention_show_the_family(
    ending: str, shape: tuple[int, ...], family: str
) -> None:
    layer = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    assert classify(header_of({f"{layer}.{ending}": shape})).family == family


def test_the_table_of_formats_says_what_support_decides() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    scanned = {row[0]: row[4] for row in rows if len(row) == 5}
    for name in tried_formats.MAKERS:
        row = tried_formats.read(name)
        if "start" not in row:
            shapes = {key: tuple(shape) for key, shape in row["tensors"].items()}
            why = why_unsupported(classify(header_of(shapes, **row["metadata"])), name)
            assert (why is None) == (scanned[name] == "yes"), name


def test_the_table_of_formats_is_that_of_the_tried_files() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text.partition("\n## Files that were tried\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert rows[1:] == [tried_formats.table_row(name) for name in tried_formats.MAKERS]
    assert {p.stem for p in tried_formats.HEADERS.glob("*.json")} == set(tried_formats.MAKERS)


@pytest.mark.parametrize(
    ("name", "first"),
    [("full-flux-dev", "img_in.weight"), ("transformer-flux-schnell", "x_embedder.weight")],
)
@pytest.mark.parametrize(
    ("channels", "detail"), [(384, "fill"), (128, "canny or depth"), (96, "further input channels")]
)
def test_a_variant_of_flux_that_takes_further_images_is_named_and_refused(
    name: str, first: str, channels: int, detail: str
) -> None:
    row = tried_formats.read(name)
    shapes = {key: tuple(shape) for key, shape in row["tensors"].items()} | {first: (3072, channels)}
    found = classify(header_of(shapes))
    assert (found.family, found.detail) == ("flux", detail)
    assert why_unsupported(found, name) is not None


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3", "F16"])
def test_weights_that_are_quantised_to_integers_are_known_by_their_header(dtype: str) -> None:
    row = tried_formats.read("full-flux-dev")
    shapes = {key: TensorInfo("F16", tuple(shape)) for key, shape in row["tensors"].items()}
    quantised = "double_blocks.0.img_attn.qkv.weight"
    shapes[quantised] = TensorInfo(dtype, shapes[quantised].shape)
    found = classify(Header({}, shapes, 0))
    assert (found.family, found.integers) == ("flux", dtype if dtype in ("I8", "U8") else "")


BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("shapes", "kind", "family"),
    [
        ({"x.a1.weight": (4, 4), "x.b1.weight": (4, 4)}, "unknown", "unknown"),
        ({"lora_down.weight": (4, 4), "lora_up.weight": (4, 4)}, "unknown", "unknown"),
        ({"x.my_lora_down.weight.backup": (4, 4)}, "unknown", "unknown"),
        ({"x.alpha": ()}, "unknown", "unknown"),
        ({"x.scalar": ()}, "unknown", "unknown"),
        ({"x.lora_down.weight": (4, 4), "x.lora_up.weight": (4, 4), "x.scalar": ()}, "lycoris", "unknown"),
        ({"x.weight": (4,), "y.on_input": ()}, "unknown", "unknown"),
        ({"x.lora_A.weight": (4, 4), "x.lora_B.weight": (4, 4), "x.bias": (4,)}, "unknown", "unknown"),
        ({"encoder.x": (1,), "decoder.x": (1,)}, "unknown", "unknown"),
        ({"encoder.layers.0.weight": (1, 1)}, "unknown", "unknown"),
        ({"joint_transformer_blocks.0.x": (1,)}, "unknown", "unknown"),
        ({"my_double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "unknown", "unknown"),
        (
            {"down_blocks.0.x": (1,), "conv_in.weight": (1,), "controlnet_mid_block.weight": (1,)},
            "controlnet",
            "unknown",
        ),
        ({"down_blocks.0.x": (1,), "conv_in.weight": (1,)}, "unet", "unknown"),
        ({"<": (1, 768)}, "unknown", "unknown"),
        ({"sks": (1, 768)}, "unknown", "unknown"),
        ({"model.diffusion_model.layers.0.x": (1,)}, "full", "unknown"),
        ({f"{BLOCK}.lora_down.weight": (4, 4096)}, "lora", "unknown"),
        ({f"{BLOCK}.lora_down.weight": (4,)}, "lora", "unknown"),
        ({f"{BLOCK}.lora_down.weight": ()}, "lora", "unknown"),
    ],
)
def test_weights_that_only_resemble_a_kind_are_unknown(
    shapes: dict[str, tuple[int, ...]], kind: str, family: str
) -> None:
    found = classify(header_of(shapes))
    assert (found.kind, found.family) == (kind, family)


FLUX_ATTENTION = {
    f"lora_unet_{block}.lora_down.weight": (4, 3072)
    for block in ("double_blocks_18_img_attn_qkv", "single_blocks_37_linear1")
}


@pytest.mark.parametrize(
    ("stated", "family", "model"),
    [
        ("flux1", "flux", ""),
        ("flux-1-dev/lora", "flux", ""),
        ("flux.1", "flux", ""),
        ("flux.1_kontext", "flux", ""),
        ("Flux.1-dev/lora", "flux", ""),
        ("Flux.1-fill-dev/lora", "flux", ""),
        ("chroma", "chroma", ""),
        ("Chroma1/lora", "chroma", ""),
        ("Flux.2/lora", "unknown", "FLUX.2"),
        ("hunyuan_video", "unknown", "Hunyuan"),
        ("zimage", "unknown", ""),
        ("krea2", "unknown", "Krea 2"),
        ("lumina2", "unknown", "Lumina"),
        ("wan2.1", "unknown", "Wan"),
        ("a new model", "unknown", ""),
        ("sd_v1", "unknown", ""),
        ("", "unknown", "FLUX.1 or Chroma"),
    ],
)
def test_transformers_that_share_keys_and_shapes_are_told_apart_by_their_metadata_or_not_at_all(
    stated: str, family: str, model: str
) -> None:
    found = classify(header_of(FLUX_ATTENTION, ss_base_model_version=stated))
    assert (found.family, found.model) == (family, model)


@pytest.mark.parametrize(
    ("field", "stated", "family"),
    [
        ("ss_base_model_version", "sd_1.5", "sd1"),
        ("ss_base_model_version", "sd_2.1", "sd2"),
        ("ss_base_model_version", "sd_3", "sd3"),
        ("ss_base_model_version", "sdxl_1.0", "sdxl"),
        ("modelspec.architecture", "stable-diffusion-v1/lora", "sd1"),
        ("modelspec.architecture", "stable-diffusion-v3-medium/lora", "sd3"),
        ("modelspec.architecture", "stable-diffusion-v3.5/lora", "sd3"),
        ("modelspec.architecture", "Flux.1-dev/lora", "flux"),
    ],
)
def test_the_words_that_ai_toolkit_and_onetrainer_have_for_a_family_are_known(
    field: str, stated: str, family: str
) -> None:
    shapes = {"lora_unet_conv.lora_down.weight": (4, 32), "lora_unet_conv.lora_up.weight": (32, 4)}
    assert classify(header_of(shapes, **{field: stated})).family == family


@pytest.mark.parametrize(
    ("layer", "wide", "out", "stated", "family"),
    [
        ("transformer.transformer_blocks.0.attn.to_q", 128, 128, "sd3", "sd3"),
        ("transformer.transformer_blocks.0.attn.to_q", 128, 128, "flux", "flux"),
        ("transformer.transformer_blocks.0.attn.to_q", 128, 128, "sd1", "unknown"),
        ("transformer.transformer_blocks.0.attn.to_q", 4096, 4096, "sd3", "unknown"),
        ("transformer.transformer_blocks.0.attn1.to_q", 128, 128, "sd3", "unknown"),
        ("transformer.single_transformer_blocks.0.attn.to_q", 128, 128, "sd3", "unknown"),
        ("transformer.single_transformer_blocks.0.attn.to_q", 128, 128, "chroma", "chroma"),
        ("diffusion_model.joint_blocks.0.x_block.attn.qkv", 128, 384, "flux", "sd3"),
    ],
)
def test_an_adapter_of_a_small_transformer_is_of_the_stated_bases_family_where_its_layers_fit(
    layer: str, wide: int, out: int, stated: str, family: str
) -> None:
    shapes = {f"{layer}.lora_A.weight": (4, wide), f"{layer}.lora_B.weight": (out, 4)}
    assert settled(classify(header_of(shapes)), [stated]).family == family


@pytest.mark.parametrize("width", [3072, 4096, 6144])
@pytest.mark.parametrize(
    ("layer", "wide", "out"),
    [
        ("double_blocks.0.img_mlp.0", 1, 6),
        ("single_blocks.0.linear1", 1, 9),
        ("single_blocks.0.linear2", 4, 1),
    ],
)
def test_an_adapter_of_any_flux2_is_named_by_the_widths_of_its_layers(
    width: int, layer: str, wide: int, out: int
) -> None:
    found = classify(
        header_of(
            {
                f"diffusion_model.{layer}.lora_A.weight": (4, wide * width),
                f"diffusion_model.{layer}.lora_B.weight": (out * width, 4),
            }
        )
    )
    assert (found.kind, found.family, found.model) == ("lora", "unknown", "FLUX.2")


@pytest.mark.parametrize(
    ("layer", "wide", "out", "model"),
    [
        ("transformer.layers.0.attn.to_q", 2304, 2304, ""),  # Lumina
        ("transformer.transformer_blocks.0.img_mod.1", 3072, 18432, "Qwen-Image"),
        ("lora_unet_transformer_blocks_59_txt_mlp_net_2", 12288, 3072, "Qwen-Image"),
    ],
)
def test_an_adapter_of_a_model_with_layers_of_its_own_is_named(
    layer: str, wide: int, out: int, model: str
) -> None:
    shapes = {f"{layer}.lora_A.weight": (4, wide), f"{layer}.lora_B.weight": (out, 4)}
    found = classify(header_of(shapes))
    assert (found.kind, found.family, found.model) == ("lora", "unknown", model)


@pytest.mark.parametrize(
    ("layer", "wide", "out"),
    [
        ("diffusion_model.layers.0.attention.to_q", 3840, 3840),
        ("lora_unet_layers_29_attention_to_v", 3840, 3840),
        ("lora_unet_layers_0_attention_qkv", 3840, 11520),
        ("lora_transformer_context_refiner_1_feed_forward_w2", 10240, 3840),
        ("base_model.model.noise_refiner.0.adaLN_modulation.0", 256, 15360),
    ],
)
def test_an_adapter_of_z_image_is_known_by_a_layer_and_its_widths(layer: str, wide: int, out: int) -> None:
    shapes = {f"{layer}.lora_A.weight": (4, wide), f"{layer}.lora_B.weight": (out, 4)}
    assert classify(header_of(shapes)).family == "z_image"
    assert classify(header_of(shapes, ss_base_model_version="zimage")).family == "z_image"
    assert classify(header_of(shapes, ss_base_model_version="lumina2")).family == "unknown"


@pytest.mark.parametrize(
    "shapes",
    [
        {"x.layers.0.attention.to_q.lokr_w1": (16, 16), "x.layers.0.attention.to_q.lokr_w2": (8, 8)},
        {
            "x.layers.0.attention.qkv.lora_A.weight": (4, 64),
            "x.layers.0.attention.qkv.lora_B.weight": (192, 4),
        },
    ],
)
def test_an_adapter_with_the_names_of_z_image_and_no_telling_shape_is_settled_by_its_base(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    found = classify(header_of({k.replace("x.", "diffusion_model."): v for k, v in shapes.items()}))
    assert (found.family, found.fits) == ("unknown", ("z_image",))
    assert settled(found, ["z_image"]).family == "z_image"
    assert settled(found, ["sdxl", None]).family == "unknown"


def test_a_file_of_lumina_with_the_names_of_z_image_is_not_one_of_z_image() -> None:
    keys = {"noise_refiner.0.attention.qkv.weight": (3840, 2304), "cap_embedder.1.weight": (2304, 2304)}
    assert classify(header_of(keys)).family == "unknown"
    assert classify(header_of({**keys, "cap_pad_token": (1, 3840)})).family == "z_image"


QKV = {"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}


@pytest.mark.parametrize(
    ("shapes", "kind", "model"),
    [
        ({**QKV, "double_stream_modulation_img.lin.weight": (18432, 3072)}, "full", "FLUX.2"),
        ({**QKV, "txt_in.weight": (3072, 3584)}, "full", ""),  # LongCat
        ({**QKV, "controlnet_blocks.0.weight": (3072, 3072)}, "controlnet", ""),  # XLabs
        ({**QKV, "input_hint_block.0.weight": (16, 3, 3, 3)}, "controlnet", ""),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "controlnet", ""),  # lllyasviel
    ],
)
def test_files_with_the_keys_of_flux_and_a_layer_of_another_model_are_not_flux(
    shapes: dict[str, tuple[int, ...]], kind: str, model: str
) -> None:
    found = classify(header_of(shapes))
    assert (found.kind, found.family, found.model) == (kind, "unknown", model)


def test_a_file_with_the_keys_of_flux_and_the_guidance_layer_of_chroma_is_one_of_chroma() -> None:
    found = classify(header_of({**QKV, "distilled_guidance_layer.in_proj.weight": (5120, 64)}))
    assert (found.kind, found.family, found.style) == ("full", "chroma", "ldm")


def test_an_adapter_of_kolors_is_not_one_of_sdxl_where_its_metadata_name_it() -> None:
    found = classify(header_of(sdxl_lora_shapes(), **{"ss_base_model_version": "kolors"}))
    assert (found.family, found.model) == ("unknown", "Kolors")


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("lora-flux2-klein-diffusers", "unsupported_family", "holds FLUX.2 LoRA weights: only"),
        ("lora-chroma-diffusers", "unknown_family", "holds FLUX.1 or Chroma LoRA weights: its layers may be"),
        ("transformer-mochi", "unsupported_family", "holds Mochi transformer weights: only"),
        ("unet-kolors", "unsupported_family", "holds Kolors UNet weights: only"),
        ("controlnet", "unsupported_kind", "holds a ControlNet: only"),
        (
            "unet-sd1-lcm",
            "unsupported_inputs",
            "Stable Diffusion 1.x UNet weights (latent consistency): only",
        ),
        ("full-sd1-controlnet", "unsupported_inputs", "1.x weights (with a ControlNet): only"),
        ("lora-ltx-video-diffusers", "unknown_family", "match no known model family"),
    ],
)
def test_weights_that_resemble_a_family_are_refused_under_their_own_name(
    name: str, code: str, words: str
) -> None:
    row = tried_formats.read(name)
    shapes = {key: tuple(shape) for key, shape in row["tensors"].items()}
    why = why_unsupported(classify(header_of(shapes, **row["metadata"])), name)
    assert why is not None
    assert why.reason_code == code
    assert words in why.sentence


NAMES = st.sampled_from(
    [key for name in tried_formats.MAKERS for key in tried_formats.read(name).get("tensors", ())]
)
PIECES = st.sampled_from(
    [
        ".lora_down.weight",
        ".lokr_w1",
        ".lokr_w2_b",
        "attn2.to_k",
        "down_blocks.0.",
        "<x>",
        "emb_params",
        ".a1.weight",
    ]
)


@settings(max_examples=300)
@given(
    st.dictionaries(
        NAMES | st.text(max_size=30) | st.lists(PIECES, max_size=4).map("".join),
        st.lists(st.integers(0, 2**50), max_size=5).map(tuple),
        max_size=12,
    ),
    st.dictionaries(
        st.sampled_from(["ss_base_model_version", "modelspec.architecture", "x"]), st.text(max_size=20)
    ),
)
def test_any_header_is_classified(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> None:
    found = classify(header_of(shapes, **metadata))
    assert found.detail.isprintable()
    assert bool(found.algorithms) == found.is_adapter


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    st.dictionaries(
        st.text(max_size=10) | st.just("__metadata__"),
        JSON | st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}),
        max_size=5,
    )
    | JSON
)
def test_any_json_header_parses_or_is_refused(entries: object) -> None:
    with contextlib.suppress(CorruptWeights, PickledWeights):
        classify(parse_header(encoded_header(entries), "a"))


def test_the_longest_header_that_is_read_takes_seconds_and_a_usual_one_milliseconds() -> None:
    usual = header_of(
        {
            f"lora_unet_down_blocks_{i}_attn2_to_k.{e}.weight": (4, 4)
            for i in range(264)
            for e in ("lora_down", "lora_up")
        }
    )
    assert classify(usual).kind == "lora"
    assert cost(lambda: classify(usual)) < 3
    bomb = encoded_header(
        {f"{i}.lora_down.weight": tensor(shape=[], offsets=[2 * i, 2 * i + 2]) for i in range(100_000)}
    )
    kinds: list[str | None] = []
    assert cost(lambda: kinds.append(classify(parse_header(bomb, "a")).kind)) < 300
    assert kinds == ["lora"]


def test_inspection_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, finextract.weights.formats, finextract.metadata.cards, scanner.hubs.inspection; "
        "assert not {'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_model_is_recognised_by_its_first_shard() -> None:
    for name, late in (
        ("unet-sdxl", ("mid_block.", "up_blocks.", "conv_norm_out.", "conv_out.")),
        ("transformer-flux-dev", ("single_transformer_blocks.", "norm_out.", "proj_out.")),
    ):
        row = tried_formats.read(name)
        shard = {k: tuple(s) for k, s in row["tensors"].items() if not k.startswith(late)}
        assert len(shard) < len(row["tensors"])
        found = classify(header_of(shard))
        assert [found.kind, found.family, found.style, found.detail] == row["says"]


def test_every_zoo_file_is_known(zoo_path: Path) -> None:
    for path in zoo_path.glob("checkpoints/*/*.safetensors"):
        found = classify(read_header(path))
        assert (found.kind in ("full", "lora"), found.family) == (True, "sd1"), path
    for path in zoo_path.glob("checkpoints/*/unet/*.safetensors"):
        assert classify(read_header(path)).kind == "unet"
