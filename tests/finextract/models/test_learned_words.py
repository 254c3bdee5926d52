"""Words that were trained together with an adapter, against what diffusers loads from the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import save_file
from tiny.flow_pipelines import flux_pipeline, sd3_pipeline
from tiny.unet_pipelines import stable_diffusion_2, stable_diffusion_xl
from torch import Tensor

from finextract.errors import BaseMismatch, CheckpointError, CorruptWeights, UnsupportedWeights
from finextract.models import loading
from finextract.models.learned_words import MAX_VECTORS, parse_words
from finextract.models.loading import load_base, tune
from finextract.models.parts import TextStates
from finextract.weights.embedding_keys import embeddings_beside, parse_embedding_key

CPU = torch.device("cpu")
Folders = Callable[[str], tuple[Any, Path]]
# Family -> its tiny pipeline; name of a text encoder in files -> its width and component.
FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, tuple[int, str]]]] = {
    "sd2": (lambda: stable_diffusion_2(False), {"clip_l": (1024, "text_encoder")}),
    "sdxl": (
        lambda: stable_diffusion_xl(False),
        {"clip_l": (24, "text_encoder"), "clip_g": (40, "text_encoder_2")},
    ),
    "sd3": (
        sd3_pipeline,
        {"clip_l": (16, "text_encoder"), "clip_g": (24, "text_encoder_2"), "t5": (48, "text_encoder_3")},
    ),
    "flux": (flux_pipeline, {"clip_l": (16, "text_encoder"), "t5": (48, "text_encoder_2")}),
}
# A layer of each family's denoiser, in the names of its adapters, with its output and input width.
LAYERS = {
    "sd2": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 64, 1024),
    "sdxl": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 64, 64),
    "sd3": ("transformer.transformer_blocks.0.attn.to_q", 32, 32),
    "flux": ("transformer.transformer_blocks.0.attn.to_q", 32, 32),
}
NAMED = {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3", "flux": "flux1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The pipeline of a family as diffusers has it, and the folder that it saved; each made once."""
    found: dict[str, tuple[Any, Path]] = {}

    def get(family: str) -> tuple[Any, Path]:
        if family not in found:
            folder = tmp_path_factory.mktemp(family) / "base"
            pipeline = FAMILIES[family][0]()
            pipeline.save_pretrained(folder)
            found[family] = pipeline, folder
        pipeline, folder = found[family]
        fresh = type(pipeline).from_pretrained(folder)
        if family == "sd3":  # whose pipeline has no such loader: it gets that of the others
            fresh.__class__ = type("WithWords", (type(fresh), TextualInversionLoaderMixin), {})
        return fresh, folder

    return get


@pytest.fixture(scope="module")
def base(made: Folders) -> Callable[[str], Any]:
    """The base of a family; no test changes it."""
    return cache(lambda family: load_base(made(family)[1], CPU, torch.float32))


def vectors(family: str, count: int) -> dict[str, Tensor]:
    """Vectors for each text encoder of a family."""
    torch.manual_seed(7)
    return {encoder: torch.randn(count, width) for encoder, (width, _) in FAMILIES[family][1].items()}


def adapter(family: str) -> dict[str, Tensor]:
    layer, out, into = LAYERS[family]
    return {
        f"{layer}.lora_A.weight": torch.ones(1, into),
        f"{layer}.lora_B.weight": 0.01 * torch.ones(out, 1),
    }


def saved(folder: Path, family: str, state: dict[str, Tensor], name: str = "style.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file({**adapter(family), **state}, folder / name, {"ss_base_model_version": NAMED[family]})
    return folder / name


def theirs_encoded(pipeline: Any, family: str, prompt: str) -> tuple[Tensor, ...]:
    """The prompt's states by diffusers' own pipeline."""
    with torch.inference_mode():
        if family == "sd2":
            return (pipeline.encode_prompt(prompt, "cpu", 1, False)[0],)
        if family == "flux":
            return tuple(pipeline.encode_prompt(prompt, prompt)[:2])
        if family == "sd3":
            prompt = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
            found = pipeline.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False)
        else:
            found = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        return found[0], found[2]


def states(conditioning: Tensor | TextStates) -> tuple[Tensor, ...]:
    if isinstance(conditioning, TextStates):
        return conditioning.sequence, conditioning.pooled
    return (conditioning,)


def assert_encoded_alike(model: Any, pipeline: Any, family: str, prompt: str) -> None:
    ours, theirs = states(model.condition(prompt)), theirs_encoded(pipeline, family, prompt)
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbered_words_in_a_file_beside_an_adapter_are_those_that_diffusers_loads(
    made: Folders, base: Callable[[str], Any], family: str, tmp_path: Path
) -> None:
    """The advanced training scripts of diffusers write this file, and their cards load it so."""
    pipeline, _ = made(family)
    rows = vectors(family, 2)
    path = saved(tmp_path / "run", family, {}, "pytorch_lora_weights.safetensors")
    save_file(rows, path.with_name("run_emb.safetensors"))
    for encoder, (_, component) in FAMILIES[family][1].items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        pipeline.load_textual_inversion(
            rows[encoder], token=["<s0>", "<s1>"], text_encoder=getattr(pipeline, component),
            tokenizer=getattr(pipeline, tokenizer),
        )  # fmt: skip
    pair = tune(base(family), path.parent)
    for prompt in ("a photo of <s0><s1> dog", "<s1> in the sea", "a dog"):
        assert_encoded_alike(pair.tuned, pipeline, family, prompt)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 3])
def test_bundled_words_are_encoded_as_diffusers_encodes_several_vectors(
    made: Folders, base: Callable[[str], Any], family: str, count: int, tmp_path: Path
) -> None:
    """diffusers names them name, name_1, name_2, and puts all of them where a prompt has the name."""
    pipeline, _ = made(family)
    rows = vectors(family, count)
    path = saved(tmp_path, family, {f"bundle_emb.<my-cat>.{encoder}": v for encoder, v in rows.items()})
    for encoder, (_, component) in FAMILIES[family][1].items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        pipeline.load_textual_inversion(
            {"<my-cat>": rows[encoder]}, text_encoder=getattr(pipeline, component),
            tokenizer=getattr(pipeline, tokenizer),
        )  # fmt: skip
    tuned = tune(base(family), path).tuned
    for prompt in ("a photo of <my-cat>, outside", "<my-cat>"):
        assert_encoded_alike(tuned, pipeline, family, prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_that_is_offloaded_takes_words_and_an_adapter_as_any_other(
    family: str,
    made: Folders,
    base: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundled = {f"bundle_emb.moss.{encoder}": v for encoder, v in vectors(family, 2).items()}
    file = saved(tmp_path / "style", family, bundled)
    kept = tune(base(family), file)
    monkeypatch.setattr(loading, "offloading_for", lambda *_: "denoiser")
    pair = tune(load_base(made(family)[1], CPU, torch.float32), file)
    words = [states(model.condition("a moss house")) for model in (pair.tuned, kept.tuned, pair.base)]
    assert all(map(torch.equal, words[0], words[1]))
    assert not all(map(torch.equal, words[0], words[2]))
    x = torch.randn(1, *kept.base.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for ours, theirs in ((pair.tuned, kept.tuned), (pair.base, kept.base)):
            predicted = [m.predict(x, 500.0, m.condition("a house")) for m in (ours, theirs)]
            assert torch.equal(*predicted)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_keeps_its_tensors_and_its_tokens(
    base: Callable[[str], Any], family: str, tmp_path: Path
) -> None:
    plain_base = base(family)

    def tensors() -> dict[str, Tensor]:
        return {
            f"{component}.{name}": tensor
            for component in plain_base.components
            for name, tensor in getattr(plain_base, component).state_dict(keep_vars=True).items()
        }

    before = {name: (id(tensor), tensor.clone()) for name, tensor in tensors().items()}
    plain = states(plain_base.condition("a <s0> dog"))
    tuned: Any = tune(plain_base, saved(tmp_path, family, vectors(family, 2))).tuned
    after = tensors()
    assert after.keys() == before.keys()
    for name, (number, tensor) in before.items():
        assert id(after[name]) == number
        assert torch.equal(after[name], tensor)
    assert all(map(torch.equal, plain, states(plain_base.condition("a <s0> dog"))))
    assert not torch.equal(plain[0], states(tuned.condition("a <s0> dog"))[0])
    assert all(map(torch.equal, states(plain_base.condition("a dog")), states(tuned.condition("a dog"))))
    for component in FAMILIES[family][1].values():  # all but the table of tokens is shared
        own = getattr(tuned, component[1]).state_dict(keep_vars=True)
        shared = getattr(plain_base, component[1]).state_dict(keep_vars=True)
        assert {n for n in own if own[n] is not shared[n]} <= {
            n for n in own if n.endswith(("token_embedding.weight", "shared.weight", "embed_tokens.weight"))
        }


@pytest.mark.parametrize(
    "key",
    ["emb_params", "string_to_param.*", "<style>", "bundle_emb.style.string_to_param.*",
     "bundle_emb.style.emb_params", "bundle_emb.style.<other>", "bundle_emb.style.clip_l"],
)  # fmt: skip
def test_each_way_to_store_one_word_gives_the_same_states(
    base: Callable[[str], Any], key: str, tmp_path: Path
) -> None:
    plain_base = base("sd2")
    rows = vectors("sd2", 2)["clip_l"]
    word = "<style>" if key == "<style>" else "style"
    expected = tune(
        plain_base, saved(tmp_path, "sd2", {"bundle_emb.sks.clip_l": rows}, "a.safetensors")
    ).tuned
    tuned = tune(plain_base, saved(tmp_path, "sd2", {key: rows.half()})).tuned
    torch.testing.assert_close(
        tuned.condition(f"a cat, {word}"), expected.condition("a cat, sks"), rtol=1e-3, atol=1e-3
    )


def test_a_word_is_found_in_any_case_and_never_inside_a_longer_one(
    base: Callable[[str], Any], tmp_path: Path
) -> None:
    plain_base = base("sd2")
    rows = vectors("sd2", 2)["clip_l"]
    tuned = tune(plain_base, saved(tmp_path, "sd2", {"bundle_emb.art.clip_l": rows})).tuned
    assert torch.equal(tuned.condition("a party, arts"), plain_base.condition("a party, arts"))
    assert torch.equal(tuned.condition("(ART)"), tuned.condition("(art)"))
    assert not torch.equal(tuned.condition("(art)"), plain_base.condition("(art)"))


@pytest.mark.parametrize(
    ("family", "state", "error", "sentence"),
    [
        ("sdxl", {"clip_l": (2, 25)}, BaseMismatch, r"'clip_l' holds vectors of 25 .*text_encoder takes 24"),
        ("sdxl", {"emb_params": (2, 41)}, BaseMismatch, r"'emb_params' .* 41 .*\(text_encoder 24, text"),
        ("sdxl", {"clip_l": (2, 24), "clip_g": (3, 40)}, CorruptWeights, "'clip_g' 3"),
        ("sdxl", {f"bundle_emb.a.{e}": (n, w) for e, n, w in (("clip_l", 2, 24), ("clip_g", 1, 40))},
         CorruptWeights, r"'bundle_emb\.a\.clip_l' 2"),
        ("sdxl", {"bundle_emb.a.clip_l_out": (2, 24)}, UnsupportedWeights, r"bundle_emb\.a\.clip_l_out"),
        ("sdxl", {"t5": (2, 24)}, UnsupportedWeights, "'t5'"),
        ("sd2", {"clip_g": (2, 1024)}, UnsupportedWeights, "'clip_g'"),
        ("sd2", {"clip_l": (2, 2, 1024)}, CorruptWeights, r"\[2, 2, 1024\]"),
        ("sd2", {"clip_l": (0, 1024)}, CorruptWeights, r"\[0, 1024\]"),
        ("sd2", {"clip_l": (MAX_VECTORS + 1, 1)}, CorruptWeights, r"\[1001, 1\]"),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_fit_are_named_with_their_shape(
    base: Callable[[str], Any], family: str, state: dict[str, tuple[int, ...]], error: type[CheckpointError],
    sentence: str, tmp_path: Path,
) -> None:  # fmt: skip
    path = saved(tmp_path, family, {key: torch.ones(shape) for key, shape in state.items()})
    with pytest.raises(error, match=sentence):
        tune(base(family), path)


def test_vectors_that_are_not_finite_numbers_are_refused() -> None:
    for tensor in (torch.full((1, 4), torch.nan), torch.ones(1, 4, dtype=torch.int64)):
        with pytest.raises(CorruptWeights, match="clip_l"):
            parse_words({"clip_l": tensor}, "a.safetensors")


def test_words_for_a_t5_that_the_base_lacks_are_left_out(tmp_path: Path) -> None:
    sd3_pipeline(with_t5=False).save_pretrained(tmp_path / "base")
    base = load_base(tmp_path / "base", CPU, torch.float32)
    tuned = tune(base, saved(tmp_path, "sd3", vectors("sd3", 2))).tuned
    assert not torch.equal(tuned.condition("<s0>").pooled, base.condition("<s0>").pooled)


def test_a_file_beside_an_adapter_that_holds_something_else_is_an_error(
    base: Callable[[str], Any], tmp_path: Path
) -> None:
    path = saved(tmp_path, "sdxl", {})
    saved(tmp_path, "sdxl", {}, "style_emb.safetensors")
    with pytest.raises(UnsupportedWeights, match=r"style_emb\.safetensors beside style\.safetensors"):
        tune(base("sdxl"), path)


def test_rows_of_a_table_that_is_longer_than_its_vocabulary_are_used_first(
    base: Callable[[str], Any],
) -> None:
    """T5's table has more rows than its tokenizer has tokens: those are used first."""
    model: Any = base("flux").copy_for_tuning()
    model.text_encoder_2.resize_token_embeddings(len(model.tokenizer_2) + 5)
    rows = len(model.text_encoder_2.get_input_embeddings().weight)
    longer = model.with_words(parse_words({"t5": torch.ones(3, 48)}, "a.safetensors"))
    table = longer.text_encoder_2.get_input_embeddings().weight
    assert len(table) == rows
    assert torch.equal(table[len(model.tokenizer_2) :][:3], torch.ones(3, 48))


@pytest.mark.parametrize(
    ("adapter_name", "beside", "found"),
    [
        ("style.safetensors", ["style_emb.safetensors", "other_emb.safetensors"], "style_emb.safetensors"),
        ("style.safetensors", ["other_emb.safetensors"], None),
        ("pytorch_lora_weights.safetensors", ["run_emb.safetensors", "a.txt"], "run_emb.safetensors"),
        ("pytorch_lora_weights.safetensors", ["a_emb.safetensors", "b_emb.safetensors"], None),
        ("lora.safetensors", ["embeddings.pti", "special_params.json"], "embeddings.pti"),
        ("lora.safetensors", [], None),
    ],
)  # fmt: skip
def test_the_file_of_embeddings_is_the_one_that_the_scripts_write_beside_the_adapter(
    adapter_name: str, beside: list[str], found: str | None
) -> None:
    assert embeddings_beside(adapter_name, [adapter_name, *beside]) == found


@pytest.mark.parametrize(
    ("key", "word", "encoder"),
    [
        ("bundle_emb.v1.0.clip_l", "v1.0", "clip_l"),
        ("bundle_emb.v1.0.string_to_param.*", "v1.0", ""),
        ("bundle_emb.<embedding>.t5xxl", "<embedding>", "t5"),
        ("text_encoders_1", "", "text_encoders_1"),
        ("<cat-toy>", "<cat-toy>", ""),
    ],
)
def test_a_key_of_embeddings_names_word_and_text_encoder(key: str, word: str, encoder: str) -> None:
    parsed = parse_embedding_key(key)
    assert parsed is not None
    assert (parsed.word, parsed.encoder) == (word, encoder)
