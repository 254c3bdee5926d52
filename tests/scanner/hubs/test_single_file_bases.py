"""Bases of one file, as most of Civitai's are: found and fetched, with what they lack from a pipeline.

The zoo's own base in its single-file form is the base here: kohya headers in the zoo tell its SHA256.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from servers.civitai import Civitai as Site
from servers.civitai import file_entry, lora_bytes, model
from servers.hub import Hub
from servers.trouble import lora_shapes, small_tensors, write_safetensors

from finextract.single_files import SingleFile
from scanner.config import ScanConfig
from scanner.crawl.worker import Scanner, SscdEmbedder, Task
from scanner.errors import Skipped, Unavailable
from scanner.hashing import sha256_of
from scanner.hubs import addresses, base_fetcher, http
from scanner.hubs.base import Query
from scanner.hubs.base_fetcher import BaseFetcher, BaseFiles, what_it_lacks
from scanner.hubs.base_models import SD15
from scanner.hubs.cache import DownloadCache
from scanner.hubs.civitai.source import CivitaiSource
from scanner.hubs.registry import open_source
from scanner.match import corpus
from scanner.match.matching import with_corpora
from scanner.records import BaseOrigin, Checkpoint, Role, Scan, Verdict
from scanner.store.leases import Leases, lease_key
from scanner.store.store import Store

sys.path.append(str(Path(__file__).resolve().parents[2] / "zoo"))

LORA = "checkpoints/fruit-lora/fruit-lora.safetensors"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits for a server that is not there."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def base_bytes() -> bytes:
    """The zoo's base as one file in the original names, without a VAE."""
    from _formats import single_file
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = Path(__file__).resolve().parents[2] / "zoo/base"
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    return save(single_file(unet, text_encoder), metadata={"format": "pt"})


@pytest.fixture
def lender(zoo_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub where the zoo's base stands under Stable Diffusion 1.5's name."""
    with Hub({SD15: zoo_path / "base"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def models(base_bytes: bytes, zoo_path: Path, tmp_path: Path) -> Path:
    """A web UI's folder: a kohya LoRA, and the file that it was trained from, without a word on either."""
    folder = tmp_path / "models"
    (folder / "Lora").mkdir(parents=True)
    (folder / "Stable-diffusion").mkdir()
    (folder / "Lora/fruit.safetensors").write_bytes((zoo_path / LORA).read_bytes())
    (folder / "Stable-diffusion/renamed.safetensors").write_bytes(base_bytes)
    return folder


def only_lora(folder: Path, base: Path | None = None) -> Checkpoint:
    source = open_source(f"folder:{folder}", base=str(base) if base else None)
    (entry,) = (c for c in source.list(Query(9)) if "Lora" in c.repo)
    return source.inspect(entry)


def scanned(folder: Path, checkpoint: Checkpoint, base: Path | None, place: Path) -> Scan:
    store, embedder = Store(place / "store", create=True), SscdEmbedder()
    for name, role, shades in (("mine", Role.REFERENCE, (40, 90)), ("other", Role.BACKGROUND, (130, 200))):
        for shade in shades:
            (place / name).mkdir(exist_ok=True)
            Image.radial_gradient("L").point(lambda v, s=shade: v * s // 255).save(
                place / name / f"{shade}.png"
            )
        list(corpus.add(store, name, place / name, embedder, role))
    config = with_corpora(store, ScanConfig(samples_per_image=2, steps=4), ["mine", "other"])
    config = replace(config, tau=0.9)
    task = Task(
        store=str(store.root), source=f"folder:{folder}", base=str(base) if base else None, config=config,
        run_id="run", cache=str(place / "cache"), max_download=10**9, cache_bytes=10**9, keep_weights=False,
        allow_pickle=False, threads=1,
    )  # fmt: skip
    key = lease_key(checkpoint.checkpoint_id, config.config_id)
    Leases(store.storage, task.run_id).acquire([key])
    return Scanner(task).scan(checkpoint)


def test_a_base_of_one_file_is_found_by_its_hash_and_scans_as_its_pipeline_does(
    models: Path, lender: Hub, zoo_path: Path, tmp_path: Path
) -> None:
    by_hash = only_lora(models)
    file = models / "Stable-diffusion/renamed.safetensors"
    assert (by_hash.base, by_hash.base_origin) == (str(file), BaseOrigin.HASH)
    pipeline = zoo_path / "base"
    one = scanned(models, by_hash, None, tmp_path / "one")
    two = scanned(models, only_lora(models, pipeline), pipeline, tmp_path / "two")
    assert one.verdict is two.verdict is Verdict.NOTHING_FOUND, one.reason
    assert one.num_samples == two.num_samples
    assert one.best_similarity == pytest.approx(two.best_similarity, abs=1e-4)


def test_a_base_of_one_file_may_be_given(models: Path, lender: Hub, tmp_path: Path) -> None:
    file = models / "Stable-diffusion/renamed.safetensors"
    with DownloadCache(tmp_path / "cache") as downloads:
        base = BaseFetcher(str(file)).fetch(str(file), downloads)
    assert base.model == file
    assert base.parts is not None
    assert (base.parts / "tokenizer/vocab.json").is_file()
    assert (base.parts / "vae/diffusion_pytorch_model.safetensors").is_file()
    assert not list(base.parts.glob("unet/*.safetensors")), "the file has it"


def test_a_base_of_one_file_with_all_components_needs_no_hub(
    models: Path, lender: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = models / "Stable-diffusion/renamed.safetensors"
    assert str(what_it_lacks(str(file))).endswith(f"taken from {SD15}, downloaded once by each node.")
    whole = SingleFile("sd1", "sd1", frozenset({"unet", "text_encoder", "vae"}), None)
    monkeypatch.setattr(base_fetcher, "single_file", lambda header: whole)
    with DownloadCache(tmp_path / "cache") as downloads:
        assert BaseFetcher().fetch(str(file), downloads) == BaseFiles(file)
        assert BaseFetcher(SD15).fetch(str(file), downloads) == BaseFiles(file)
    assert not lender.requests
    assert what_it_lacks(str(file)) is what_it_lacks(SD15) is what_it_lacks(None) is None


def test_a_file_that_is_no_whole_model_is_refused_as_a_base(tmp_path: Path, lender: Hub) -> None:
    file = write_safetensors(tmp_path / "lora.safetensors", small_tensors(lora_shapes()))
    with DownloadCache(tmp_path / "cache") as downloads:
        with pytest.raises(
            Skipped, match=r"only a full checkpoint of Stable Diffusion 1\.x, .* can be a base"
        ):
            BaseFetcher(str(file)).fetch(str(file), downloads)
        file.write_bytes(b"short")
        with pytest.raises(Skipped, match="its base cannot be read"):
            BaseFetcher(str(file)).fetch(str(file), downloads)


# --- on Civitai


@pytest.fixture
def site(base_bytes: bytes, zoo_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A LoRA, the version that it was trained from, and another that is no whole model."""
    items = [
        model(1, "fruit", (zoo_path / LORA).read_bytes()),
        model(2, "dream", files=[file_entry(21, "dream.safetensors", base_bytes)], type="Checkpoint"),
        model(3, "half", files=[file_entry(31, "half.safetensors", lora_bytes(3))], type="Checkpoint"),
        model(4, "old", files=[file_entry(41, "old.ckpt", b"x", metadata={"format": "PickleTensor"})]),
    ]
    with Site(items) as running:
        monkeypatch.setenv("CIVITAI_ENDPOINT", running.url)
        addresses.trust(running.store_url)
        yield running


def test_a_base_on_civitai_is_downloaded_once_and_takes_the_rest_from_stable_diffusion(
    site: Site, lender: Hub, base_bytes: bytes, tmp_path: Path
) -> None:
    source = CivitaiSource()
    lora = source.inspect(next(c for c in source.list(Query(9)) if c.file.startswith("fruit")))
    assert (lora.base, lora.base_origin) == ("civitai:2@20", BaseOrigin.HASH)
    fetched: list[BaseFiles] = []
    for _ in range(2):
        with DownloadCache(tmp_path / "cache") as downloads:
            fetched.append(BaseFetcher().fetch("civitai:2@20", downloads))
    assert fetched[0] == fetched[1]
    assert fetched[0].model.read_bytes() == base_bytes
    assert fetched[0].parts is not None
    assert sha256_of(fetched[0].parts / "vae/diffusion_pytorch_model.safetensors")
    whole = [h for _, _, path, h in site.requests if "/store/20/" in path and "Range" not in h]
    assert len(whole) == 1


def test_the_given_base_supplies_what_a_base_of_one_file_lacks(
    site: Site, zoo_path: Path, tmp_path: Path
) -> None:
    with DownloadCache(tmp_path / "cache") as downloads:
        base = BaseFetcher(str(zoo_path / "base")).fetch("civitai:2@20", downloads)
    assert base.parts == zoo_path / "base"


def test_a_version_on_civitai_that_cannot_be_a_base_is_refused_before_it_is_downloaded(
    site: Site, lender: Hub, tmp_path: Path
) -> None:
    for name, words in (
        ("civitai:3@30", "only a full checkpoint"),
        ("civitai:4@40", "its base cannot be downloaded: .* pickle .* Pass --base"),
        ("civitai:9@90", "no longer published .* Pass --base"),
    ):
        with DownloadCache(tmp_path / "cache") as downloads, pytest.raises(Skipped, match=words):
            BaseFetcher().fetch(name, downloads)
    assert not any("Range" not in h for where, _, _, h in site.requests if where == "store")


def test_where_the_supplying_base_is_unreachable_the_scan_is_tried_again(site: Site, tmp_path: Path) -> None:
    with DownloadCache(tmp_path / "cache") as downloads, pytest.raises(Unavailable, match=SD15):
        BaseFetcher().fetch("civitai:2@20", downloads)
