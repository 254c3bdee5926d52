"""Every checkpoint that cannot be scanned leaves its source with a reason code, the same from any source."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers.hub import Hub
from servers.trouble import (
    lora_shapes,
    sdxl_lora_shapes,
    small_tensors,
    write_card,
    write_pickle,
    write_safetensors,
)

from finextract.reasons import ReasonCode
from scanner.errors import EntryError, Skipped, Unavailable
from scanner.hubs import http
from scanner.hubs.addresses import AddressRefused
from scanner.hubs.base import Query, Source
from scanner.hubs.cache import DownloadCache
from scanner.hubs.registry import open_source
from scanner.records import InspectionStatus

WEIGHTS = "pytorch_lora_weights.safetensors"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
Shapes = dict[str, tuple[int, ...]]


def weights(shapes: Shapes, metadata: dict[str, str] | None = None, **card: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        stated = {"base_model": "lab/base", "instance_prompt": "a sks", "tags": ["lora", "text-to-image"]}
        write_card(folder, **{k: v for k, v in {**stated, **card}.items() if v is not None})
        write_safetensors(folder / WEIGHTS, small_tensors(shapes), metadata)

    return build


def damaged(folder: Path) -> None:
    weights(lora_shapes())(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def pickled(name: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        write_card(folder, base_model="lab/base", instance_prompt="a sks", tags=["lora", "text-to-image"])
        write_pickle(folder / name)

    return build


ODD: dict[str, tuple[Callable[[Path], None], ReasonCode]] = {
    "pickle": (pickled("a.ckpt"), ReasonCode.PICKLE),
    "pickle-named-safetensors": (pickled("a.safetensors"), ReasonCode.PICKLE),
    "damaged": (damaged, ReasonCode.DAMAGED),
    "vae": (
        weights({"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}),
        ReasonCode.UNSUPPORTED_KIND,
    ),
    "kolors": (
        weights(sdxl_lora_shapes(), {"ss_base_model_version": "kolors"}, base_model="Kwai-Kolors/Kolors"),
        ReasonCode.UNSUPPORTED_FAMILY,
    ),
    "unknown-family": (
        weights({"x.lora_down.weight": (4, 4), "x.lora_up.weight": (4, 4)}),
        ReasonCode.UNKNOWN_FAMILY,
    ),
    "no-base": (weights(lora_shapes(), base_model=None), ReasonCode.BASE_UNKNOWN),
    "base-without-owner": (weights(lora_shapes(), base_model="mine"), ReasonCode.BASE_UNKNOWN),
    "base-of-another-family": (weights(lora_shapes(), base_model=SDXL), ReasonCode.BASE_MISMATCH),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def start(build: Callable[[Path], None], **options: Any) -> Hub:
        build(tmp_path / "tree" / "entry")
        running = Hub({"o/entry": tmp_path / "tree" / "entry"}, **options)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        return running

    return start


def code_of(source: Source) -> ReasonCode | None:
    """The code of a source's single entry, from its listing or its inspection."""
    (checkpoint,) = source.list(Query(9))
    if checkpoint.inspection_status is InspectionStatus.SKIPPED:
        assert checkpoint.reason
        with pytest.raises(Skipped) as again:
            source.inspect(checkpoint)
        assert again.value.reason_code is checkpoint.reason_code
        return checkpoint.reason_code
    with pytest.raises(EntryError) as raised:
        source.inspect(checkpoint)
    return raised.value.reason_code


@pytest.mark.parametrize("name", ODD)
def test_an_entry_that_cannot_be_scanned_has_one_code_on_a_hub_and_in_a_folder(
    name: str, hub: Callable[..., Hub], tmp_path: Path
) -> None:
    build, code = ODD[name]
    with hub(build):
        assert code_of(open_source("hf")) is code
    assert code_of(open_source(f"folder:{tmp_path / 'tree'}")) is code


def test_what_the_hub_withholds_has_a_code(
    hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hub(weights(lora_shapes()), gated=["o/entry"]) as running:
        source = open_source("hf")
        (gated,) = source.list(Query(9))
        assert code_of(source) is ReasonCode.GATED
        running.repositories.clear()
        with pytest.raises(Skipped) as removed:
            source.inspect(gated)
        assert removed.value.reason_code is ReasonCode.REMOVED
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable) as unreachable:
        open_source("hf").inspect(gated)
    assert unreachable.value.reason_code is ReasonCode.HUB_UNREACHABLE


def test_an_entry_without_weights_has_a_code(hub: Callable[..., Hub]) -> None:
    with hub(lambda folder: write_card(folder, tags=["lora", "text-to-image"])):
        assert code_of(open_source("hf")) is ReasonCode.NO_WEIGHTS


def test_what_cannot_be_fetched_has_a_code(tmp_path: Path) -> None:
    weights(lora_shapes())(tmp_path / "tree")
    source = open_source(f"folder:{tmp_path / 'tree'}")
    (checkpoint,) = source.list(Query(9))
    codes = []
    for small, content in ((True, None), (False, b"changed"), (False, None)):
        if content is not None:
            (tmp_path / "tree" / WEIGHTS).write_bytes(content)
        elif not small:
            (tmp_path / "tree" / WEIGHTS).unlink()
        downloads = DownloadCache(tmp_path / "cache", max_bytes=1 if small else 10**9)
        with pytest.raises(EntryError) as raised:
            source.fetch(dataclasses.replace(checkpoint), tmp_path / "into", downloads)
        codes.append(raised.value.reason_code)
    assert codes == [ReasonCode.TOO_LARGE, ReasonCode.CHANGED, ReasonCode.UNREADABLE]


def test_an_error_keeps_its_code_between_processes() -> None:
    for error in (
        Skipped("a is damaged", ReasonCode.DAMAGED),
        Unavailable("a is not there", ReasonCode.HUB_UNREACHABLE),
        AddressRefused("an address"),
    ):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
        assert (type(copy), str(copy), copy.reason_code) == (type(error), str(error), error.reason_code)


def test_the_documentation_says_what_to_do_about_every_code() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "sources.md").read_text()
    assert [code for code in ReasonCode if f"`{code}`" not in page] == []
