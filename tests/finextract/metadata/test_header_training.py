"""What a header shows of a training beyond the metadata of kohya: OneTrainer's configuration, and shapes."""

from __future__ import annotations

import json

import pytest
from servers.trouble import lora_shapes

from finextract.metadata.header_training import header_training
from finextract.weights.formats import Header, TensorInfo

# The fields of OneTrainer's TrainConfig that describe a run, as it saves them with a LoRA.
OT_CONFIG = {
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "concepts": [
        {"name": "sks dog", "path": "/home/a/dog", "enabled": True, "text": {"prompt_source": "sample"}},
        {"name": "unused", "enabled": False},
        {"name": 3},
    ],
    "learning_rate": 0.0003,
    "epochs": 40,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "resolution": "512",
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.01},
}


def header(shapes: dict[str, tuple[int, ...]], **metadata: str) -> Header:
    return Header(metadata, {name: TensorInfo("F16", shape) for name, shape in shapes.items()}, 0)


def test_the_configuration_that_onetrainer_saves_is_read() -> None:
    training = header_training(header({}, ot_config=json.dumps(OT_CONFIG)))
    assert training.base_name == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (training.network_dim, training.network_alpha) == (16, 1.0)
    assert (training.epochs, training.batch_size, training.resolution) == (40, 8, (512, 512))
    assert (training.learning_rate, training.trainer) == (0.0003, "OneTrainer")
    assert training.concepts == ("sks dog",)
    assert training.caption is None


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("C:\\\\models\\\\v1-5-pruned.safetensors", "v1-5-pruned.safetensors"),
        ("/home/a/models/base.ckpt", "base.ckpt"),
        ("lab/base", "lab/base"),
    ],
)
def test_a_base_that_is_a_file_of_the_author_is_named_without_the_folders(stated: str, name: str) -> None:
    config = json.dumps({"base_model_name": stated})
    assert header_training(header({}, ot_config=config)).base_name == name


@pytest.mark.parametrize("stated", ["", "{", "[]", '{"concepts": 3}', '{"concepts": [[]]}', "[" * 9_000])
def test_a_broken_configuration_counts_as_a_missing_one(stated: str) -> None:
    training = header_training(header({}, ot_config=stated))
    assert (training.base_name, training.concepts) == (None, ())


def test_the_rank_is_read_from_the_shapes_where_no_metadata_state_it() -> None:
    shapes = lora_shapes()
    (rank,) = {shape[0] for name, shape in shapes.items() if "lora_A" in name}
    assert header_training(header(shapes)).network_dim == rank
    assert header_training(header(shapes, ss_network_dim="99")).network_dim == 99


@pytest.mark.parametrize(
    "layer",
    [
        "lora_unet_x.lora_down.weight",
        "base_model.model.x.lora_A.weight",
        "unet.x.lora.down.weight",
        "unet.x.processor.to_q_lora.down.weight",
    ],
)
def test_the_rank_of_every_tools_lora_is_read(layer: str) -> None:
    assert header_training(header({layer: (24, 320)})).network_dim == 24


def test_weights_that_are_no_lora_have_no_rank() -> None:
    assert header_training(header({"conv_in.weight": (320, 4, 3, 3)})).network_dim is None
