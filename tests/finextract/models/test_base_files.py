"""Base models of one file: the configurations come with the program, weights and VAE from the file."""

from __future__ import annotations

import json
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import tried_formats
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from tiny import full_size, single_files
from tiny.flow_configs import TRANSFORMERS
from tiny.flow_pipelines import sd3_pipeline, t5_tokenizer
from tiny.unet_pipelines import stable_diffusion_2, stable_diffusion_xl, tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from finextract import single_files as shown
from finextract.errors import BaseMismatch, UnsupportedWeights
from finextract.models import component_loaders
from finextract.models.component_loaders import FileLoader
from finextract.models.loading import fill_base, gpu_precision, load_base
from finextract.single_files import published_config, single_file
from finextract.weights.headers import Header, TensorInfo

CPU, META = torch.device("cpu"), torch.device("meta")
MAKERS = {
    "sd2": (lambda: stable_diffusion_2(True), single_files.stable_diffusion_2),
    "sdxl": (lambda: stable_diffusion_xl(False), single_files.stable_diffusion_xl),
    "sd3": (sd3_pipeline, lambda pipe: single_files.stable_diffusion_3(pipe)),
}


def write(file: Path, weights: dict[str, Tensor], **metadata: str) -> Path:
    save_file({key: t.clone().contiguous() for key, t in weights.items()}, file, metadata)
    return file


def without_weights(folder: Path, into: Path) -> Path:
    """The configuration files and vocabularies of a pipeline folder."""
    return Path(shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors")))


def same(one: Any, other: Any) -> bool:
    """Whether two models have the same modules, bit for bit, and the same solver."""
    modules = [name for name in (*one.components, "vae") if getattr(one, name) is not None]
    for name in modules:
        ours, theirs = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        if ours.keys() != theirs.keys() or not all(torch.equal(t, theirs[key]) for key, t in ours.items()):
            return False
    return bool(one.solver == other.solver)


@pytest.mark.parametrize("family", MAKERS)
def test_a_file_with_all_components_is_the_model_of_its_pipeline_folder(family: str, tmp_path: Path) -> None:
    make, names = MAKERS[family]
    pipe = make()  # type: ignore[no-untyped-call]
    pipe.save_pretrained(tmp_path / "whole")
    parts = without_weights(tmp_path / "whole", tmp_path / "parts")
    weights = {**names(pipe), **single_files.vae_names(pipe.vae)}
    stated = {"sd2": "v", "sdxl": "epsilon", "sd3": ""}[family]
    file = write(tmp_path / "base.safetensors", weights, **{"modelspec.prediction_type": stated})
    folder = load_base(tmp_path / "whole", CPU, torch.float32)
    model = load_base(file, CPU, torch.float32, parts)
    assert same(model, folder)
    with torch.inference_mode():
        x = torch.randn(1, *model.latent_shape)
        ours, theirs = (m.predict(x, 500, m.condition("a cat")) for m in (model, folder))
    # The weights are equal bit by bit; some processors add up otherwise where they lie otherwise in memory.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert gpu_precision(file) == gpu_precision(tmp_path / "whole")


def test_what_a_file_lacks_is_that_of_the_folder_of_parts(tmp_path: Path) -> None:
    pipe = stable_diffusion_xl(False)
    pipe.save_pretrained(tmp_path / "whole")
    file = write(tmp_path / "base.safetensors", single_files.unet_names(pipe.unet))
    model = load_base(file, CPU, torch.float32, tmp_path / "whole")
    assert same(model, load_base(tmp_path / "whole", CPU, torch.float32).with_measured_prediction())


def test_stable_diffusion_3_without_t5_or_its_vocabulary_has_no_t5(tmp_path: Path) -> None:
    pipe = sd3_pipeline()
    pipe.save_pretrained(tmp_path / "whole")
    file = write(tmp_path / "base.safetensors", single_files.stable_diffusion_3(pipe))
    parts = without_weights(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(parts / "tokenizer_3")
    assert load_base(file, CPU, torch.float32, parts).text_encoder_3 is None  # type: ignore[attr-defined]


# --- what comes with the program


@cache
def text_names(name: str) -> dict[str, Tensor]:
    """The text encoders of a published pipeline, as a single file holds them, in full size and on meta."""
    family = single_file(header_of(denoiser_names(name))).family
    found: dict[str, Tensor] = {}
    with META:
        for component, prefix in shown.TEXT_ENCODER_PREFIXES[family].items():
            config = published_config(name, f"{component}/config.json")
            if family in ("sd2", "sdxl") and component != ("text_encoder" if family == "sdxl" else ""):
                size = "ViT-H-14" if family == "sd2" else "ViT-bigG-14"
                found |= full_size.open_clip_text(size, prefix)
            elif config["model_type"] == "t5":
                encoder = T5EncoderModel(T5Config(**config))
                found |= {prefix + k: t for k, t in encoder.state_dict().items() if "embed_tokens" not in k}
            else:
                cls = {"CLIPTextModel": CLIPTextModel}.get(
                    config["architectures"][0], CLIPTextModelWithProjection
                )
                found |= single_files.clip_names(cls(CLIPTextConfig(**config)), prefix)
    return found


@cache
def denoiser_names(name: str) -> dict[str, Tensor]:
    if name in TRANSFORMERS:
        shapes = tried_formats.transformer_names(name)
        return {f"model.diffusion_model.{k}": torch.empty(s, device="meta") for k, s in shapes.items()}
    from diffusers import UNet2DConditionModel

    with META:
        unet = UNet2DConditionModel.from_config(published_config(name, "unet/config.json"))
    return single_files.unet_names(unet)


def vae_names(name: str) -> dict[str, Tensor]:
    from diffusers import AutoencoderKL

    with META:
        vae = AutoencoderKL.from_config(published_config(name, "vae/config.json"))
    return single_files.vae_names(vae, "vae." if name.startswith("flux") else "first_stage_model.")


def header_of(weights: dict[str, Tensor], **metadata: str) -> Header:
    shapes = {key: TensorInfo("F16", tuple(tensor.shape)) for key, tensor in weights.items()}
    return Header(metadata, shapes, 0)


STATED = {"sd2": "epsilon", "sd2-v": "v"}


@pytest.mark.parametrize("name", sorted(p.name for p in shown.PUBLISHED.iterdir()))
def test_a_full_size_file_fills_the_published_pipeline_that_it_was_made_from(
    name: str, tmp_path: Path
) -> None:
    weights = {**denoiser_names(name), **text_names(name), **vae_names(name)}
    found = single_file(header_of(weights, **{"modelspec.prediction_type": STATED.get(name, "")}))
    assert found.published == name
    flux = name.startswith("flux")
    assert found.lacking == (("tokenizer_2",) if flux else ()), "all else is in the file, or in the program"
    t5 = {"tokenizer_2"} if flux else {"tokenizer_3"} if name.startswith("sd3") else set()
    assert set(found.wanted) == t5
    for component in t5:
        t5_tokenizer().save_pretrained(tmp_path / component)
    dtype = torch.float16 if name == "sdxl" else torch.bfloat16
    model: Any = fill_base(name, found, weights, tmp_path if t5 else None, META, dtype)
    assert model.vae.dtype == (torch.float32 if name == "sdxl" or found.family in ("sd3", "flux") else dtype)
    assert model.latent_shape[1:] == {"sd1": (64, 64), "sd2": (64, 64), "sd2-v": (96, 96)}.get(
        name, (128, 128)
    )
    assert getattr(model.solver, "predicts_velocity", False) is (name == "sd2-v")
    assert len(model.tokenizer) == 49_408
    if name.startswith("sd3"):
        assert model.text_encoder_3 is not None


def test_a_file_that_states_a_schedule_without_a_signal_at_its_end_gets_it() -> None:
    names = denoiser_names("sdxl")
    for added, expected in (
        ((), ("epsilon", "leading", False)),
        (("v_pred",), ("v_prediction", "leading", False)),
        (("v_pred", "ztsnr"), ("v_prediction", "trailing", True)),
    ):
        found = single_file(header_of({**names, **dict.fromkeys(added, torch.zeros(0))}))
        loader = FileLoader("a", found, None, CPU)
        config = loader.config("scheduler/scheduler_config.json")
        terminal = config.get("rescale_betas_zero_snr", False)
        assert (config["prediction_type"], config["timestep_spacing"], terminal) == expected
        assert (loader.scheduler(DDIMScheduler).alphas_cumprod[-1] < 1e-4) == terminal


def test_a_stable_diffusion_2_that_is_measured_to_predict_the_velocity_makes_larger_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = stable_diffusion_2(False)  # with random weights, whose prediction is nothing like the noise
    for name, side in (("sd2", 8), ("sd2-v", 12)):
        pipe.unet.register_to_config(sample_size=side)
        pipe.save_pretrained(tmp_path / "published" / name)
    count = len(single_files.unet_names(pipe.unet))
    monkeypatch.setattr(shown, "_TENSORS", {("sd2", ""): ("sd2", count)})
    monkeypatch.setattr(shown, "_UNET_WIDTH", 32)
    monkeypatch.setattr(component_loaders, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(component_loaders, "clip_tokenizer", lambda config: tokenizer())
    weights = {**single_files.stable_diffusion_2(pipe), **single_files.vae_names(pipe.vae)}
    file = write(tmp_path / "a.safetensors", weights)
    assert load_base(file, CPU, torch.float32).image_size == (24, 24)
    file = write(tmp_path / "b.safetensors", weights, **{"modelspec.prediction_type": "epsilon"})
    assert load_base(file, CPU, torch.float32).image_size == (16, 16)


# --- what is refused


def test_a_file_that_lacks_something_is_refused_with_what_and_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "flux1-schnell.safetensors"
    fake_file(file, denoiser_names("flux-schnell"))
    with pytest.raises(UnsupportedWeights) as caught:
        load_base(file, CPU, torch.float32)
    assert str(caught.value) == (
        "flux1-schnell.safetensors alone is no base model: it lacks text_encoder/, text_encoder_2/, "
        "tokenizer_2/, vae/. Pass --base-parts with a folder that has them, such as these folders of "
        "black-forest-labs/FLUX.1-schnell."
    )


def fake_file(file: Path, shapes: dict[str, Tensor]) -> None:
    """A safetensors file of float8 zeros, which takes no room on the disk."""
    entries, at = {}, 0
    for key, tensor in shapes.items():
        size = tensor.numel()
        entries[key] = {"dtype": "F8_E4M3", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + at)


def test_a_small_model_without_a_folder_that_has_its_configuration_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "small.safetensors", single_files.stable_diffusion_xl(stable_diffusion_xl(False)))
    with pytest.raises(UnsupportedWeights, match="the layers of no published model"):
        load_base(file, CPU, torch.float32)


def test_the_schedule_of_edm_has_no_solver(tmp_path: Path) -> None:
    weights = single_files.stable_diffusion_xl(stable_diffusion_xl(False))
    file = write(tmp_path / "edm.safetensors", {**weights, "edm_mean": torch.zeros(4)})
    with pytest.raises(UnsupportedWeights, match="EDM"):
        load_base(file, CPU, torch.float32)


def test_a_folder_of_parts_that_states_code_is_refused(tmp_path: Path) -> None:
    weights = {**denoiser_names("sd1"), **text_names("sd1")}
    file = tmp_path / "pruned.safetensors"
    fake_file(file, weights)
    (tmp_path / "parts/vae").mkdir(parents=True)
    (tmp_path / "parts/vae/diffusion_pytorch_model.safetensors").touch()
    (tmp_path / "parts/vae/config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(UnsupportedWeights, match=r"vae/config.json states auto_map"):
        load_base(file, CPU, torch.float32, tmp_path / "parts")


def test_a_file_with_other_layers_is_refused_with_the_layer_and_the_pipeline() -> None:
    weights = {**denoiser_names("flux-dev"), **text_names("flux-dev"), **vae_names("flux-dev")}
    weights["model.diffusion_model.scaled_fp8"] = torch.empty(2, device="meta")
    found = single_file(header_of(weights))
    assert found.published == "flux-dev"
    with pytest.raises(BaseMismatch, match=r"the configuration of black-forest-labs/FLUX.1-dev.*scaled_fp8"):
        fill_base("a", found, weights, Path(tried_formats.__file__).parent, META, torch.bfloat16)
