"""The method on real models: every format of the zoo loads, merges and gives back what it was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from finextract.audit import audit, read_images
from finextract.cli import cli
from finextract.errors import BaseMismatch, CorruptWeights, PickledWeights, RequestError
from finextract.extract import DREAMBOOTH, LORA, ExtractionSettings, extract, sample
from finextract.metadata.captions import caption_for, local_caption
from finextract.models.loading import Pair, tune
from finextract.models.stable_diffusion import StableDiffusion, load_pipeline
from finextract.sscd import load_embedder

ZOO = Path(__file__).resolve().parents[2] / "zoo"
ENTRIES = json.loads((ZOO / "zoo.json").read_text())["checkpoints"]


@pytest.fixture(scope="module")
def base() -> StableDiffusion:
    return load_pipeline(ZOO / "base", torch.device("cpu"), torch.float32)


def _pair(base: StableDiffusion, name: str) -> Pair:
    return tune(base, ZOO / "checkpoints" / name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: Path(e["path"]).name)
def test_every_checkpoint_loads_as_what_it_is_and_differs_from_its_base(
    base: StableDiffusion, entry: dict[str, object]
) -> None:
    pair = tune(base, ZOO / str(entry["path"]))
    assert pair.kind == ("lora" if entry["kind"] == "lora" else "full")
    changed = [
        not torch.equal(a, b)
        for a, b in zip(pair.base.unet.parameters(), pair.tuned.unet.parameters(), strict=True)
    ]
    assert np.mean(changed) > 0.3
    caption = local_caption(ZOO / str(entry["path"]))
    assert caption is not None
    assert caption.text == entry["caption"]


def test_a_loras_merged_weights_predict_what_peft_predicts(base: StableDiffusion) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        ZOO / "base", use_safetensors=True, torch_dtype=torch.float32
    )
    pipeline.load_lora_weights(
        ZOO / "checkpoints/flowers-lora", weight_name="pytorch_lora_weights.safetensors"
    )
    pair = _pair(base, "flowers-lora")
    x = torch.randn(2, *base.latent_shape)
    context = pair.tuned.embed_prompt("a picture of a flower")
    with torch.no_grad():
        theirs = pipeline.unet(x, 500, encoder_hidden_states=context.expand(2, -1, -1)).sample
        ours = pair.tuned.predict_noise(x, 500, context)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_a_kohya_lora_with_text_encoder_weights_changes_the_text_encoder(base: StableDiffusion) -> None:
    pair = _pair(base, "sweets-lora-te")
    caption = caption_for(ZOO / "checkpoints/sweets-lora-te", None).text
    assert not torch.allclose(pair.tuned.embed_prompt(caption), pair.base.embed_prompt(caption), atol=1e-3)


def test_tuning_leaves_the_base_as_it_was(base: StableDiffusion) -> None:
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    _pair(base, "cats-dreambooth")
    _pair(base, "flowers-lora")
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())


def test_our_direct_sampling_is_diffusers_own(base: StableDiffusion) -> None:
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
    settings = ExtractionSettings(method="direct", steps=10).resolved("full")
    ours = sample(Pair(base, base, "full"), "a picture of a cat", range(2), settings)
    difference = np.abs(ours.transpose(0, 2, 3, 1) - theirs * 255.0)
    assert difference.mean() < 2.0


def test_a_sample_does_not_depend_on_its_batch(base: StableDiffusion) -> None:
    pair, settings = _pair(base, "cats-dreambooth"), ExtractionSettings(steps=6).resolved("full")
    together = sample(pair, "a picture of a cat", range(5), settings).astype(int)
    alone = sample(pair, "a picture of a cat", range(3, 4), settings).astype(int)
    assert np.abs(together[3] - alone[0]).max() <= 2


def test_a_strong_checkpoint_gives_back_its_training_images_and_the_base_does_not(
    base: StableDiffusion,
) -> None:
    names, references = read_images(ZOO / "images/subjects/cats")
    settings = ExtractionSettings(samples_per_image=8, steps=20)
    embedder = load_embedder()
    pair = _pair(base, "cats-dreambooth")
    strong = audit(pair, "a picture of a cat", names, references, settings, embedder)
    untuned = audit(Pair(base, base, "full"), "a picture of a cat", names, references, settings, embedder)
    assert strong.over_samples.max() > 0.6
    assert strong.over_samples.mean() > untuned.over_samples.mean() + 0.15
    assert strong.extraction.unet_evaluations == 40 * 20 * 2


def test_settings_left_open_take_the_published_presets() -> None:
    assert ExtractionSettings().resolved("full").guidance_scale == DREAMBOOTH.guidance_scale
    assert ExtractionSettings().resolved("lora").guidance_scale == LORA.guidance_scale
    assert ExtractionSettings(method="cfg").resolved("lora").guidance_scale == 3.0
    with pytest.raises(RequestError, match="takes no guidance"):
        ExtractionSettings(method="direct", guidance_scale=3.0).resolved("full")


def test_a_truncated_file_is_corrupt_and_a_pickle_is_never_opened(
    base: StableDiffusion, tmp_path: Path
) -> None:
    source = ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(CorruptWeights, match="damaged"):
        tune(base, broken)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02crun_me\n.")
    with pytest.raises(PickledWeights, match="not opened"):
        tune(base, tmp_path / "model.ckpt")


def test_weights_of_another_size_do_not_fit_their_base(base: StableDiffusion, tmp_path: Path) -> None:
    state = load_file(ZOO / "checkpoints/flowers-lora/pytorch_lora_weights.safetensors")
    wider = {
        k: (torch.zeros(v.shape[0], v.shape[1] * 2) if k.endswith("to_q.lora_A.weight") else v)
        for k, v in state.items()
    }
    save_file(wider, tmp_path / "wider.safetensors")
    with pytest.raises(BaseMismatch, match="does not fit"):
        tune(base, tmp_path / "wider.safetensors")


def test_audit_prints_as_and_a_esr_and_writes_a_private_contact_sheet(tmp_path: Path) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(
        cli,
        [
            "audit", str(ZOO / "checkpoints/flowers-lora"), "--base", str(ZOO / "base"),
            "--train-images", str(ZOO / "images/subjects/flowers"), "--samples-per-image", "2",
            "--steps", "4", "--out", str(tmp_path), "--json",
        ],
        catch_exceptions=False,
    )  # fmt: skip
    summary = json.loads(result.stdout)
    assert 0 <= summary["average_similarity"] <= 1
    assert set(summary["extraction_success_rate"]) == {"0.7", "0.6"}
    assert summary["guidance_scale"] == 5.0
    assert summary["unet_evaluations"] == 10 * 4 * 2
    assert Path(summary["contact_sheet"]).stat().st_mode & 0o777 == 0o600


def test_where_the_memory_does_not_do_the_batch_is_halved_and_the_samples_are_the_same(
    base: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, embedder = _pair(base, "flowers-lora"), load_embedder(threads=1)
    settings = ExtractionSettings(samples_per_image=3, steps=2, batch_size=6)
    plenty = extract(pair, "a flower", 2, settings, embedder)
    asked: list[int] = []

    def short_of_memory(
        pair: Pair, caption: str, seeds: range, settings: ExtractionSettings
    ) -> NDArray[np.uint8]:
        asked.append(len(seeds))
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(pair, caption, seeds, settings)

    monkeypatch.setattr("finextract.extract.sample", short_of_memory)
    little = extract(pair, "a flower", 2, settings, embedder)
    assert asked == [6, 3, 1, 1, 1, 1, 1, 1]
    assert little.settings.batch_size == 1
    assert np.abs(little.images.astype(int) - plenty.images).max() <= 1
    monkeypatch.setattr(
        "finextract.extract.sample", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(torch.OutOfMemoryError):
        extract(pair, "a flower", 2, settings, embedder)
