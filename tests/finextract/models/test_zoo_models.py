"""The method on real models: every format of the zoo loads, merges and gives back what it was trained on."""

import copy
import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.checks import stating
from torch import Tensor

from finextract.audit import audit, read_images
from finextract.errors import (
    BaseMismatch,
    CorruptWeights,
    PickledWeights,
    RequestError,
    UnsupportedWeights,
)
from finextract.extract import ExtractionSettings
from finextract.guidance import CFG, DIRECT, DREAMBOOTH, FLOW, LORA, Guidance
from finextract.guided import guided_predictor, sample
from finextract.metadata.captions import caption_for, local_caption
from finextract.models import loading
from finextract.models.base import CopiedPair, Model, Pair, TunableModel
from finextract.models.loading import load_base, tune
from finextract.models.stable_diffusion import StableDiffusion
from finextract.reasons import ReasonCode
from finextract.sampling import FlowEuler
from finextract.sscd import load_embedder

ZOO = Path(__file__).resolve().parents[2] / "zoo"
ENTRIES = json.loads((ZOO / "zoo.json").read_text())["checkpoints"]


@pytest.fixture(scope="module")
def base() -> TunableModel:
    return load_base(ZOO / "base", torch.device("cpu"), torch.float32)


def _weights(model: Model) -> dict[str, Tensor]:
    """The weights that fine-tuning can change, by layer."""
    return {name: layer.get_parameter("weight") for name, layer in model.layers().items()}


def _pair(base: TunableModel, name: str) -> Pair:
    return tune(base, ZOO / "checkpoints" / name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: Path(e["path"]).name)
def test_every_checkpoint_loads_as_what_it_is_and_differs_from_its_base(
    base: TunableModel, entry: dict[str, object]
) -> None:
    pair = tune(base, ZOO / str(entry["path"]))
    assert pair.kind == ("lora" if entry["kind"] == "lora" else "full")
    before, after = _weights(pair.base), _weights(pair.tuned)
    assert before.keys() == after.keys()
    changed = [not torch.equal(before[name], after[name]) for name in before if name.startswith("unet.")]
    assert np.mean(changed) > 0.3
    caption = local_caption(ZOO / str(entry["path"]))
    assert caption is not None
    assert caption.text == entry["caption"]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("lora", {"dora_wd": True, "train_norm": True}),
        ("loha", {"use_tucker": True}),
        ("lokr", {"factor": 4, "dora_wd": True}),
        ("glora", {}),
        ("full", {"train_norm": True}),
    ],
    ids=str,
)
def test_a_lycoris_file_is_loaded_and_predicts_what_lycoris_predicts(
    base: TunableModel, algorithm: str, options: dict[str, object], tmp_path: Path
) -> None:
    from adapter_comparisons import randomised
    from lycoris.kohya import create_network

    preset, file = tmp_path / "preset.toml", tmp_path / "a.safetensors"
    preset.write_text(
        'enable_conv = true\nunet_target_module = ["Transformer2DModel", "ResnetBlock2D"]\n'
        'text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]\n'
    )
    theirs: Any = copy.deepcopy(base)
    theirs.unet.to(memory_format=torch.contiguous_format)  # LyCORIS cannot save others
    torch.manual_seed(0)
    network = create_network(
        1.0, 4, 1.0, None, theirs.text_encoder, theirs.unet, algo=algorithm, preset=str(preset), **options
    )
    network.apply_to(theirs.text_encoder, theirs.unet, True, True)
    randomised(network, 0.3 if algorithm == "loha" else 0.05)  # a LoHa multiplies six of them
    network.save_weights(str(file), torch.float32, {})
    pair = tune(base, file)
    assert pair.kind == "lora"
    x = torch.randn(2, *base.latent_shape)
    expected, before = (
        model.predict(x, 500.0, model.condition("a picture of a flower")) for model in (theirs, base)
    )
    found = pair.tuned.predict(x, 500.0, pair.tuned.condition("a picture of a flower"))
    assert (expected - before).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_loras_merged_weights_predict_what_peft_predicts(base: TunableModel) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        ZOO / "base", use_safetensors=True, torch_dtype=torch.float32
    )
    pipeline.load_lora_weights(
        ZOO / "checkpoints/flowers-lora", weight_name="pytorch_lora_weights.safetensors"
    )
    pair = _pair(base, "flowers-lora")
    x = torch.randn(2, *base.latent_shape)
    context = pair.tuned.condition("a picture of a flower")
    with torch.no_grad():
        theirs = pipeline.unet(x, 500, encoder_hidden_states=context.expand(2, -1, -1)).sample
        ours = pair.tuned.predict(x, 500, context)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_a_kohya_lora_with_text_encoder_weights_changes_the_text_encoder(base: TunableModel) -> None:
    pair = _pair(base, "sweets-lora-te")
    caption = caption_for(ZOO / "checkpoints/sweets-lora-te", None).text
    assert not torch.allclose(pair.tuned.condition(caption), pair.base.condition(caption), atol=1e-3)


def test_a_tuned_model_holds_only_what_differs_from_its_base(base: StableDiffusion) -> None:
    pair = _pair(base, "flowers-lora")
    adapter = load_file(ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors")
    changed = {f"{key.split('.lora_')[0]}.weight" for key in adapter}
    for component in base.components:
        ours = dict(getattr(pair.tuned, component).named_parameters())
        for name, theirs in getattr(base, component).named_parameters():
            assert (ours[name] is theirs) == (f"{component}.{name}" not in changed), name
            assert ours[name].stride() == theirs.stride()


def test_a_base_predicts_the_same_bits_whatever_was_tuned_from_it(base: TunableModel) -> None:
    x, conditioning = torch.randn(2, *base.latent_shape), base.condition("a picture of a cat")
    with torch.inference_mode():
        before = base.predict(x, 500, conditioning)
        for name in ("cats-dreambooth", "sweets-lora-te", "birds-dreambooth"):
            tuned = _pair(base, name).tuned
            assert not torch.equal(tuned.predict(x, 500, tuned.condition("a picture of a cat")), before)
            assert torch.equal(base.predict(x, 500, base.condition("a picture of a cat")), before)


def test_tuning_leaves_the_base_as_it_was(base: TunableModel) -> None:
    before = {name: tensor.clone() for name, tensor in _weights(base).items()}
    _pair(base, "cats-dreambooth")
    _pair(base, "flowers-lora")
    assert all(torch.equal(before[name], tensor) for name, tensor in _weights(base).items())


def test_our_direct_sampling_is_diffusers_own(base: TunableModel) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from finextract.sampling import initial_noise

    pipeline = StableDiffusionPipeline.from_pretrained(
        ZOO / "base", use_safetensors=True, torch_dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_noise(range(2), base.latent_shape)
    theirs = pipeline(
        "a picture of a cat", num_images_per_prompt=2, latents=noise, guidance_scale=1.0,
        num_inference_steps=10, output_type="np",
    ).images  # fmt: skip
    predict = guided_predictor(CopiedPair(base, base, "full"), "a picture of a cat", "direct", DIRECT)
    ours = sample(base, predict, (0, 1), steps=10)
    difference = np.abs(ours.transpose(0, 2, 3, 1) - theirs * 255.0)
    assert difference.mean() < 2.0


def test_a_sample_does_not_depend_on_its_batch(base: TunableModel) -> None:
    pair = _pair(base, "cats-dreambooth")
    predict = guided_predictor(pair, "a picture of a cat", "finextract", DREAMBOOTH)
    together = sample(pair.tuned, predict, (0, 1, 2, 3, 4), steps=6).astype(int)
    alone = sample(pair.tuned, predict, (3,), steps=6).astype(int)
    assert np.abs(together[3] - alone[0]).max() <= 2


def test_a_strong_checkpoint_gives_back_its_training_images_and_the_base_does_not(
    base: TunableModel,
) -> None:
    names, references = read_images(ZOO / "images/subjects/cats")
    settings = ExtractionSettings(samples_per_image=4, steps=12)
    embedder = load_embedder()
    pair = _pair(base, "cats-dreambooth")
    strong = audit(pair, "a picture of a cat", names, references, settings, embedder)
    untuned = audit(
        CopiedPair(base, base, "full"), "a picture of a cat", names, references, settings, embedder
    )
    assert strong.over_samples.max() > 0.6
    assert strong.over_samples.mean() > untuned.over_samples.mean() + 0.15
    extraction = strong.extraction
    assert [arm.guidance.guidance_scale for arm in extraction.arms] == [1.0, 2.0, 3.0]
    assert np.bincount(extraction.arm_of).tolist() == [7, 7, 6]
    of_samples = 12 * (7 + 2 * 13)  # the tuned model alone needs one
    assert of_samples + 2 * 15 <= extraction.unet_evaluations <= of_samples + 2 * 20  # and losses


def test_numbers_left_open_are_those_of_the_published_presets_and_of_a_flow_model_its_own(
    base: TunableModel,
) -> None:
    full, lora = CopiedPair(base, base, "full"), CopiedPair(base, base, "lora")
    paper = ExtractionSettings(preset="paper")
    assert paper.guidances(full) == (DREAMBOOTH,)
    assert paper.guidances(lora) == (LORA,)
    assert ExtractionSettings(method="cfg").guidances(lora) == (CFG,)
    assert ExtractionSettings(method="direct").guidances(lora) == (DIRECT,)
    assert ExtractionSettings(guidance_scale=2.0).guidances(full) == (Guidance(2.0, -0.02, "given"),)
    flow: Any = replace(base, solver=FlowEuler())  # type: ignore[type-var]
    for method, preset in (("finextract", FLOW), ("cfg", CFG), ("direct", DIRECT)):
        for kind in ("full", "lora"):
            assert replace(paper, method=method).guidances(CopiedPair(flow, flow, kind)) == (preset,)
    with pytest.raises(RequestError, match="takes no guidance"):
        ExtractionSettings(method="direct", guidance_scale=3.0).guidances(full)


def test_a_portfolio_has_the_tuned_model_alone_two_further_strengths_and_the_preset(
    base: TunableModel,
) -> None:
    flow: Any = replace(base, solver=FlowEuler())  # type: ignore[type-var]
    for pair, preset, scales in (
        (CopiedPair(base, base, "full"), DREAMBOOTH, [1, 2, 3]),
        (CopiedPair(base, base, "lora"), LORA, [1, 2, 3, 5]),
        (CopiedPair(flow, flow, "lora"), FLOW, [1, 1.5, 2, 3]),
    ):
        strengths = ExtractionSettings().guidances(pair)
        assert [strength.guidance_scale for strength in strengths] == scales
        assert strengths[0] == DIRECT
        assert preset in strengths


def test_a_truncated_file_is_corrupt_and_a_pickle_is_never_opened(base: TunableModel, tmp_path: Path) -> None:
    source = ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(CorruptWeights, match="damaged"):
        tune(base, broken)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02crun_me\n.")
    with pytest.raises(PickledWeights, match="not opened"):
        tune(base, tmp_path / "model.ckpt")


def test_weights_of_another_size_do_not_fit_their_base(base: TunableModel, tmp_path: Path) -> None:
    state = load_file(ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors")
    wider = {
        k: (torch.zeros(v.shape[0], v.shape[1] * 2) if k.endswith("to_q.lora_A.weight") else v)
        for k, v in state.items()
    }
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(BaseMismatch, match="does not fit"):
        tune(base, tmp_path / "wider.safetensors")


def _base_with(folder: Path, path: str, **fields: object) -> Path:
    """A copy of the zoo's base whose configuration file has other values."""
    shutil.copytree(ZOO / "base", folder)
    config = json.loads((folder / path).read_text())
    (folder / path).write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("path", "fields", "code"),
    [
        (
            "model_index.json",
            {"text_encoder_3": ["transformers", "T5EncoderModel"]},
            ReasonCode.UNSUPPORTED_FAMILY,
        ),
        (
            "model_index.json",
            {"controlnet": ["diffusers", "ControlNetModel"]},
            ReasonCode.UNSUPPORTED_FAMILY,
        ),
        ("unet/config.json", {"in_channels": 33}, ReasonCode.UNSUPPORTED_INPUTS),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            ReasonCode.UNSUPPORTED_FAMILY,
        ),
    ],
)
def test_a_base_that_would_be_misread_is_refused_before_its_weights_are_loaded(
    tmp_path: Path, path: str, fields: dict[str, object], code: ReasonCode
) -> None:
    folder = _base_with(tmp_path / "base", path, **fields)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UnsupportedWeights) as refused:
        load_base(folder, torch.device("cpu"), torch.float32)
    assert refused.value.reason_code is code


def test_a_supported_family_without_a_loader_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "FAMILIES", {})
    with pytest.raises(UnsupportedWeights, match="base is a pipeline of the family sd1, which has no loader"):
        load_base(ZOO / "base", torch.device("cpu"), torch.float32)


def test_a_kind_that_is_allowed_without_a_loader_is_not_read_as_a_full_checkpoint(
    base: TunableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "why_unsupported", lambda kind, where: None)
    save_file({"emb_params": torch.zeros(1, 96)}, tmp_path / "a.safetensors")
    with pytest.raises(UnsupportedWeights, match=r"a.safetensors holds a textual inversion \(A1111\)"):
        tune(base, tmp_path / "a.safetensors")


def _base_with(tmp_path: Path, file: str, **changes: object) -> Path:
    """The zoo's base with other values in one configuration file, its weights as links."""
    folder = tmp_path / "base"
    shutil.copytree(ZOO / "base", folder, copy_function=os.link)
    config = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("unet/config.json", "sample_size", 4096),
        ("text_encoder/config.json", "num_hidden_layers", 2**31),
        ("text_encoder/config.json", "attn_implementation", "a-stranger/kernel"),
        ("vae/config.json", "quantization_config", {"quant_method": "gguf"}),
    ],
)
def test_a_base_whose_configuration_is_out_of_bounds_is_refused_before_it_is_loaded(
    tmp_path: Path, file: str, name: str, value: object
) -> None:
    folder = _base_with(tmp_path, file, **{name: value})
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UnsupportedWeights, match=rf"base/{file} states {name}\b") as refused:
        load_base(folder, torch.device("cpu"), torch.float32)
    assert refused.value.reason_code is ReasonCode.BASE_UNAVAILABLE


def test_a_configuration_that_is_padded_to_megabytes_is_checked_too(tmp_path: Path) -> None:
    folder = _base_with(tmp_path, "text_encoder/config.json", vocab_size=10**9)
    config = folder / "text_encoder/config.json"
    config.write_text(" " * 3_000_000 + config.read_text())
    with pytest.raises(UnsupportedWeights, match="vocab_size"):
        load_base(folder, torch.device("cpu"), torch.float32)


class Velocity(StableDiffusion):
    """A model that predicts the velocity of what the zoo's base predicts as noise."""

    def predict(self, x: torch.Tensor, t: float, conditioning: torch.Tensor) -> torch.Tensor:
        noise = super().predict(x, t, conditioning)
        return stating(replace(self.solver, predicts_velocity=True), x, noise, t)


def test_it_is_measured_whether_weights_predict_the_noise_or_the_velocity(base: StableDiffusion) -> None:
    other = Velocity(**{field.name: getattr(base, field.name) for field in fields(base)})
    for stated in (False, True):
        solver = replace(base.solver, predicts_velocity=stated)
        assert not replace(base, solver=solver).with_measured_prediction().solver.predicts_velocity
        assert replace(other, solver=solver).with_measured_prediction().solver.predicts_velocity


def test_a_tokenizer_without_a_length_pads_to_the_text_encoders_positions(
    tmp_path: Path, base: TunableModel
) -> None:
    folder = _base_with(tmp_path, "tokenizer/tokenizer_config.json", model_max_length=10**30)
    loaded = load_base(folder, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(loaded.condition("a cat"), base.condition("a cat"))
