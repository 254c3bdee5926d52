"""The HuggingFace source and the loopback hub, through the real client over sockets."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from servers.hub import Hub, zoo_repositories
from servers.trouble import lora_shapes, small_tensors, write_card, write_pickle, write_safetensors
from tiny.unet_pipelines import stable_diffusion_xl

from finextract.losses import fingerprint
from finextract.models.loading import load_base
from finextract.reasons import ReasonCode
from finextract.weights.files import component_paths, find_weights
from scanner.errors import ConfigError, Skipped, SourceError, Unavailable
from scanner.hashing import identify, sha256_of
from scanner.hubs.addresses import trust
from scanner.hubs.base import Query
from scanner.hubs.base_fetcher import BaseFetcher
from scanner.hubs.cache import DownloadCache
from scanner.hubs.huggingface.entries import make_checkpoints
from scanner.hubs.huggingface.source import HuggingFaceSource
from scanner.hubs.registry import open_source
from scanner.records import Checkpoint, InspectionStatus
from scanner.store.store import Store

ZOO = Path(__file__).resolve().parents[2] / "zoo"
WEIGHTS = "pytorch_lora_weights.safetensors"
UNET_SHAPES = {
    "conv_in.weight": (32, 4, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (32, 96),
}


def lora(folder: Path, seed: int = 0, file: str = WEIGHTS, **card: object) -> Path:
    told = {"base_model": "lab/base", "instance_prompt": "a photo of sks", "tags": ["lora", "text-to-image"]}
    write_card(folder, **{k: v for k, v in (told | card).items() if v is not None})
    write_safetensors(folder / file, small_tensors(lora_shapes(), seed))
    return folder


def pipeline(folder: Path, seed: int = 0, **card: object) -> Path:
    write_card(folder, **({"tags": ["text-to-image", "dreambooth"], "instance_prompt": "a sks"} | card))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    write_safetensors(folder / "unet/diffusion_pytorch_model.safetensors", small_tensors(UNET_SHAPES, seed))
    for part in ("text_encoder/model", "vae/diffusion_pytorch_model", "safety_checker/model"):
        write_safetensors(folder / f"{part}.safetensors", small_tensors({"weight": (4, 4)}, seed))
    for name in ("unet/config.json", "tokenizer/vocab.json", "scheduler/scheduler_config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    return folder


Serve = Callable[[Mapping[str, Path]], Hub]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., Hub]:
    """Starts a hub over folders and names it in HF_ENDPOINT."""

    def start(repos: Mapping[str, Path], **options: object) -> Hub:
        hub = Hub(repos, **options)  # type: ignore[arg-type]
        hub.__enter__()
        request.addfinalizer(lambda: hub.__exit__())
        monkeypatch.setenv("HF_ENDPOINT", trust(hub.url))
        return hub

    return start


def only(source: HuggingFaceSource, limit: int = 10) -> Checkpoint:
    (checkpoint,) = source.list(Query(limit))
    return checkpoint


def test_the_real_client_reads_the_loopback_hub(serve: Serve, tmp_path: Path) -> None:
    hub = serve(
        {"a/one": lora(tmp_path / "one"), "b/two": pipeline(tmp_path / "two"), "c/x": tmp_path / "x"},
        page_size=2,
    )
    api = HfApi(endpoint=hub.url)
    listed = list(api.list_models(filter="text-to-image", sort="created_at", full=True))
    assert [m.id for m in listed] == ["c/x", "b/two", "a/one"]
    assert "base_model:adapter:lab/base" in (listed[2].tags or [])
    siblings = api.model_info("a/one", files_metadata=True).siblings or []
    weights = next(s for s in siblings if s.rfilename == WEIGHTS)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == sha256_of(tmp_path / "one" / WEIGHTS)
    assert {f.path for f in api.list_repo_tree("b/two")} >= {"unet", "model_index.json"}
    snapshot = Path(api.snapshot_download("b/two", cache_dir=tmp_path / "cache"))
    assert (snapshot / "unet/config.json").read_text() == "{}"
    assert api.parse_safetensors_file_metadata("a/one", WEIGHTS).parameter_count
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("a/none")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("a/one", revision="no-branch")
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download("a/one", "none.bin", cache_dir=tmp_path / "cache")


def test_every_zoo_entry_is_listed_once_with_its_identity(hub: Hub, zoo_path: Path) -> None:
    listed = list(open_source("hf").list(Query(1000)))
    assert len(listed) == len({c.repo for c in listed}) == len(hub.repositories)
    assert len({c.checkpoint_id for c in listed}) == len(listed)
    for checkpoint in listed:
        if checkpoint.file and checkpoint.sha256:
            folder = hub.repositories[checkpoint.repo].folder
            assert checkpoint.checkpoint_id == checkpoint.sha256 == sha256_of(folder / checkpoint.file)
    times = [c.created_at for c in listed if c.created_at]
    assert times == sorted(times, reverse=True)


def test_every_zoo_checkpoint_is_inspected_and_fetched_whole(
    hub: Hub, zoo_path: Path, tmp_path: Path
) -> None:
    zoo = json.loads((zoo_path / "zoo.json").read_text())
    by_repo = {c.repo: c for c in open_source("hf").list(Query(1000))}
    source = open_source("hf")  # a worker opens its own
    for entry in zoo["checkpoints"]:
        checkpoint = source.inspect(by_repo[entry["repo"]])
        assert (checkpoint.base, checkpoint.family) == (zoo["base_repo"], "sd1")
        assert checkpoint.caption == entry["caption"]
        weights = source.fetch(
            checkpoint, tmp_path / checkpoint.checkpoint_id, DownloadCache(tmp_path / "cache")
        )
        original = zoo_path / entry["path"] / checkpoint.file
        for path in [weights] if weights.is_file() else weights.rglob("*.safetensors"):
            twin = original if weights.is_file() else original / path.relative_to(weights)
            assert sha256_of(path) == sha256_of(twin)


def test_troublesome_entries_are_skipped_with_reasons_that_a_person_understands(hub: Hub) -> None:
    source = open_source("hf")
    by_repo = {c.repo: c for c in source.list(Query(1000))}
    for name, words in {
        "pickled-dreambooth": "a pickle",
        "corrupt-lora": "damaged",
        "lora-without-base": "Pass --base OWNER/NAME",
        "kolors-lora": "Kolors LoRA weights: only",
    }.items():
        with pytest.raises(Skipped, match=words):
            source.inspect(by_repo[f"trouble/{name}"])
    assert source.inspect(by_repo["trouble/lora-of-another-size"]).family == "sd1"  # only the base can tell


def test_the_base_itself_is_skipped_and_the_message_says_what_to_do(hub: Hub, zoo_path: Path) -> None:
    base = json.loads((zoo_path / "zoo.json").read_text())["base_repo"]
    checkpoint = next(c for c in open_source("hf").list(Query(1000)) if c.repo == base)
    with pytest.raises(Skipped, match="put base_model in the model card"):
        open_source("hf").inspect(checkpoint)
    with pytest.raises(Skipped, match="its own base"):
        open_source("hf", base=base).inspect(checkpoint)


def test_limit_counts_listed_entries_and_reads_no_further(serve: Serve, tmp_path: Path) -> None:
    repos = {f"o/{n}": lora(tmp_path / str(n), seed=n) for n in range(9)}
    hub = serve(repos, page_size=3)
    assert [c.repo for c in HuggingFaceSource().list(Query(4))] == ["o/8", "o/7", "o/6", "o/5"]
    assert all(path.startswith("/api/models?") for _, path, _ in hub.requests)
    assert list(HuggingFaceSource().list(Query(0))) == []


def test_several_weights_at_the_top_are_several_entries_and_intermediate_ones_none(
    serve: Serve, tmp_path: Path
) -> None:
    folder = lora(tmp_path / "a", seed=1, file="style.safetensors")
    lora(folder, seed=2, file="face.safetensors")
    lora(folder, seed=3, file=f"checkpoint-500/{WEIGHTS}")
    (folder / "optimizer.bin").write_bytes(b"x")
    serve({"o/a": folder})
    assert [c.file for c in HuggingFaceSource().list(Query(10))] == ["face.safetensors", "style.safetensors"]


def test_a_pipeline_is_one_checkpoint_identified_by_the_weights_that_a_scan_reads(
    serve: Serve, tmp_path: Path
) -> None:
    folder = pipeline(tmp_path / "a", base_model="lab/base")
    lora(folder, file="also-in-one-file.safetensors", tags=["dreambooth"])
    serve({"o/a": folder})
    checkpoint = HuggingFaceSource().inspect(only(HuggingFaceSource()))
    used = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    assert checkpoint.file == ""
    assert checkpoint.checkpoint_id == identify((p, sha256_of(folder / p)) for p in used)
    assert checkpoint.size_bytes == sum((folder / p).stat().st_size for p in used)
    fetched = HuggingFaceSource().fetch(checkpoint, tmp_path / "into", DownloadCache(tmp_path / "cache"))
    kept = {p.relative_to(fetched).as_posix() for p in fetched.rglob("*") if p.is_file()}
    assert kept >= {*used, "model_index.json", "tokenizer/merges.txt"}
    assert not any("safety_checker" in p for p in kept)


def test_a_half_precision_pipeline_is_kept_under_plain_names(serve: Serve, tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "a", base_model="lab/base")
    plain = folder / "unet/diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    serve({"o/a": folder})
    source = HuggingFaceSource()
    weights = source.fetch(source.inspect(only(source)), tmp_path / "into", DownloadCache(tmp_path / "cache"))
    assert (weights / "unet/diffusion_pytorch_model.safetensors").is_file()


def test_a_lone_unet_is_a_checkpoint(serve: Serve, tmp_path: Path) -> None:
    write_card(tmp_path / "a", base_model="lab/base", instance_prompt="a sks", tags=["dreambooth"])
    file = "unet/diffusion_pytorch_model.safetensors"
    write_safetensors(tmp_path / "a" / file, small_tensors(UNET_SHAPES))
    serve({"o/a": tmp_path / "a"})
    checkpoint = HuggingFaceSource().inspect(only(HuggingFaceSource()))
    assert (checkpoint.file, checkpoint.kind) == (file, "full")


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "100KB"}], ids=["files", "shards"])
def test_a_base_in_half_precision_alone_is_fetched_with_all_that_loading_it_takes(
    shards: dict[str, str], serve: Serve, tmp_path: Path
) -> None:
    stable_diffusion_xl(False).to(torch.float16).save_pretrained(tmp_path / "a", variant="fp16", **shards)
    serve({"lab/base": tmp_path / "a"})
    base = BaseFetcher().fetch("lab/base", DownloadCache(tmp_path / "cache"))
    loaded, own = (load_base(f, torch.device("cpu"), torch.float32) for f in (base.model, tmp_path / "a"))
    assert fingerprint(loaded) == fingerprint(own)


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
def test_a_lone_denoiser_in_shards_is_one_checkpoint_with_all_of_them(
    denoiser: str, serve: Serve, tmp_path: Path
) -> None:
    write_card(tmp_path / "a", base_model="lab/base", instance_prompt="a sks", tags=["dreambooth"])
    names = [f"{denoiser}/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        write_safetensors(tmp_path / "a" / name, small_tensors(UNET_SHAPES))
    serve({"o/a": tmp_path / "a"})
    source = HuggingFaceSource()
    checkpoint = source.inspect(only(source))
    assert (checkpoint.file, checkpoint.kind) == ("", "full")
    assert checkpoint.size_bytes == sum((tmp_path / "a" / name).stat().st_size for name in names)
    fetched = source.fetch(checkpoint, tmp_path / "into", DownloadCache(tmp_path / "cache"))
    assert find_weights(fetched) == fetched
    assert [p.relative_to(fetched).as_posix() for p in component_paths(fetched, denoiser)] == names
    (here,) = open_source(f"folder:{tmp_path / 'a'}").list(Query(9))
    assert here.checkpoint_id == checkpoint.checkpoint_id


def test_shards_at_the_top_of_a_repository_are_one_entry_that_says_where_they_belong(
    serve: Serve, tmp_path: Path
) -> None:
    write_card(tmp_path / "a", base_model="lab/base", instance_prompt="a sks", tags=["dreambooth"])
    for n in (1, 2, 3):
        file = tmp_path / "a" / f"diffusion_pytorch_model-0000{n}-of-00003.safetensors"
        write_safetensors(file, small_tensors(UNET_SHAPES))
    write_safetensors(tmp_path / "a/model-00001-of-00001.safetensors", small_tensors(UNET_SHAPES))
    serve({"o/a": tmp_path / "a"})
    for source in (HuggingFaceSource(), open_source(f"folder:{tmp_path / 'a'}")):
        found = {c.file: c for c in source.list(Query(9))}
        shard, whole = (
            "diffusion_pytorch_model-00001-of-00003.safetensors",
            "model-00001-of-00001.safetensors",
        )
        assert found.keys() == {shard, whole}
        assert source.inspect(found[whole]).inspection_status is InspectionStatus.READY
        with pytest.raises(Skipped, match=f"{shard} is one of several shards, which are read only") as raised:
            source.inspect(found[shard])
        assert raised.value.reason_code is ReasonCode.UNSUPPORTED_LAYOUT


def test_the_identity_survives_a_new_commit_and_a_copy_under_another_name(
    serve: Serve, tmp_path: Path
) -> None:
    hub = serve({"o/a": lora(tmp_path / "a"), "o/b": lora(tmp_path / "b", license="mit")})
    first, second = map(HuggingFaceSource().inspect, HuggingFaceSource().list(Query(2)))
    assert first.checkpoint_id == second.checkpoint_id
    assert first.revision != second.revision
    assert {r.sha for r in hub.repositories.values()} == {first.revision, second.revision}


def test_a_gated_repository_is_skipped_and_says_what_to_do(serve: Callable[..., Hub], tmp_path: Path) -> None:
    serve({"o/a": lora(tmp_path / "a")}, gated=["o/a"])
    with pytest.raises(Skipped, match=r"accept its terms at http://.*/o/a, then set HF_TOKEN"):
        HuggingFaceSource().inspect(only(HuggingFaceSource()))


def test_a_pickle_is_never_requested(serve: Serve, tmp_path: Path) -> None:
    write_card(tmp_path / "a", tags=["dreambooth"])
    write_pickle(tmp_path / "a" / "model.ckpt")
    hub = serve({"o/a": tmp_path / "a"})
    with pytest.raises(Skipped, match=r"as a pickle \(model\.ckpt\)"):
        HuggingFaceSource().inspect(only(HuggingFaceSource()))
    assert not any("resolve" in path for _, path, _ in hub.requests)


def test_a_pickle_that_calls_itself_safetensors_is_skipped(serve: Serve, tmp_path: Path) -> None:
    write_card(tmp_path / "a", tags=["dreambooth"])
    write_pickle(tmp_path / "a" / "model.safetensors")
    serve({"o/a": tmp_path / "a"})
    with pytest.raises(Skipped, match="is a pickle"):
        HuggingFaceSource().inspect(only(HuggingFaceSource()))


def test_inspecting_reads_the_header_and_no_weights(serve: Serve, tmp_path: Path) -> None:
    folder = lora(tmp_path / "a")
    large = {"unet.big.alpha": ("U8", (2_000_000,), bytes(2_000_000))}
    write_safetensors(folder / WEIGHTS, {**small_tensors(lora_shapes()), **large})
    hub = serve({"o/a": folder})
    HuggingFaceSource().inspect(only(HuggingFaceSource()))
    ranges = [asked for _, path, asked in hub.requests if "resolve" in path]
    assert ranges == ["bytes=0-100000"]


def test_the_caption_is_read_from_the_sentences_of_a_card_where_its_front_matter_states_none(
    serve: Serve, tmp_path: Path
) -> None:
    folder = lora(tmp_path / "a", instance_prompt=None)
    card = (folder / "README.md").read_text()
    sentence = "It can be used by modifying the `instance_prompt`: **a photo of ccorgi dog**\n"
    (folder / "README.md").write_text(card + sentence + "x" * 300_000)
    hub = serve({"o/a": folder})
    checkpoint = HuggingFaceSource().inspect(only(HuggingFaceSource()))
    assert checkpoint.caption == "a photo of ccorgi dog"
    cards = [asked for _, path, asked in hub.requests if path.endswith("README.md")]
    assert cards == ["bytes=0-99999"]


def test_a_card_without_a_caption_anywhere_leaves_the_caption_empty(serve: Serve, tmp_path: Path) -> None:
    serve({"o/a": lora(tmp_path / "a", instance_prompt=None)})
    checkpoint = HuggingFaceSource().inspect(only(HuggingFaceSource()))
    assert (checkpoint.caption, checkpoint.inspection_status) == ("", InspectionStatus.READY)


def test_a_long_header_takes_a_second_read(serve: Serve, tmp_path: Path) -> None:
    folder = lora(tmp_path / "a")
    write_safetensors(folder / WEIGHTS, small_tensors(lora_shapes()), {"ss_tag_frequency": "x" * 300_000})
    serve({"o/a": folder})
    assert HuggingFaceSource().inspect(only(HuggingFaceSource())).kind == "lora"


def test_the_base_is_read_from_the_peft_configuration_where_the_card_states_none(
    serve: Serve, tmp_path: Path
) -> None:
    folder = lora(tmp_path / "a", base_model=None)
    (folder / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "runwayml/stable-diffusion-v1-5"}'
    )
    serve({"o/a": folder})
    checkpoint = HuggingFaceSource(base="lab/other").inspect(only(HuggingFaceSource()))
    assert (
        checkpoint.base == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )  # where the deleted one stands now


def test_the_embeddings_that_were_trained_with_an_adapter_are_fetched_beside_it(
    serve: Serve, tmp_path: Path
) -> None:
    folder = lora(tmp_path / "run", instance_prompt="a photo of <s0><s1>")
    write_safetensors(folder / "run_emb.safetensors", small_tensors({"clip_l": (2, 96)}, 1))
    serve({"someone/run": folder})
    source = open_source("hf")
    by_file = {c.file: c for c in source.list(Query(10))}
    with pytest.raises(Skipped, match="a textual inversion"):
        source.inspect(by_file["run_emb.safetensors"])
    checkpoint = source.inspect(by_file[WEIGHTS])
    assert checkpoint.caption == "a photo of <s0><s1>"
    assert checkpoint.checkpoint_id == sha256_of(folder / WEIGHTS)
    weights = open_source("hf").fetch(checkpoint, tmp_path / "into", DownloadCache(tmp_path / "cache"))
    for name in (WEIGHTS, "run_emb.safetensors"):
        assert sha256_of(weights.with_name(name)) == sha256_of(folder / name)


def test_the_given_base_is_used_only_for_checkpoints_that_state_none(serve: Serve, tmp_path: Path) -> None:
    serve({"o/silent": lora(tmp_path / "a", base_model=None), "o/told": lora(tmp_path / "b", seed=1)})
    source = open_source("hf", base="lab/given")
    assert {c.repo: source.inspect(c).base for c in source.list(Query(9))} == {
        "o/silent": "lab/given",
        "o/told": "lab/base",
    }


def test_a_local_path_in_a_card_is_never_opened_as_a_base(serve: Serve, tmp_path: Path) -> None:
    serve({"o/a": lora(tmp_path / "a", base_model=str(pipeline(tmp_path / "private")))})
    with pytest.raises(Skipped, match="is not OWNER/NAME"):
        HuggingFaceSource().inspect(only(HuggingFaceSource()))


def test_a_base_whose_configuration_is_refused_is_not_downloaded(serve: Serve, tmp_path: Path) -> None:
    shutil.copytree(ZOO / "base", tmp_path / "base")
    config = tmp_path / "base/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 4096}))
    hub = serve({"lab/base": tmp_path / "base"})
    with pytest.raises(Skipped, match=r"its base lab/base cannot be used: .* sample_size 4096") as refused:
        BaseFetcher().fetch("lab/base", DownloadCache(tmp_path / "cache"))
    assert refused.value.reason_code is ReasonCode.BASE_UNAVAILABLE
    assert any("scheduler_config.json" in path for _, path, _ in hub.requests)
    assert not any("safetensors" in path for _, path, _ in hub.requests if "resolve" in path)


def test_a_base_is_downloaded_once_even_by_two_at_once(serve: Serve, tmp_path: Path) -> None:
    hub = serve({"lab/base": pipeline(tmp_path / "base")})
    folders: list[Path] = []

    def ask() -> None:
        folders.append(BaseFetcher().fetch("lab/base", DownloadCache(tmp_path / "cache")).model)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders[0] == folders[1]
    assert (folders[0] / "vae/diffusion_pytorch_model.safetensors").is_file()
    assert sum("resolve" in p and p.endswith("vocab.json") for _, p, _ in hub.requests) == 1


def test_a_process_requests_the_entry_of_a_base_once_for_all_its_scans(serve: Serve, tmp_path: Path) -> None:
    hub = serve({"lab/base": pipeline(tmp_path / "base")})
    bases = BaseFetcher()
    for _ in range(3):
        with DownloadCache(tmp_path / "cache") as downloads:
            bases.fetch("lab/base", downloads)
    assert sum("/api/models/lab/base" in path for _, path, _ in hub.requests) == 1


def test_published_training_images_are_counted_and_fetched_only_when_asked(
    serve: Serve, tmp_path: Path
) -> None:
    folder = lora(tmp_path / "a")
    (folder / "concept_images").mkdir()
    for name in ("0.jpeg", "1.PNG", "notes.txt"):
        (folder / "concept_images" / name).write_bytes(name.encode())
    hub = serve({"o/a": folder, "o/b": lora(tmp_path / "b")})
    counts = {c.repo: c.public_images for c in HuggingFaceSource().list(Query(9))}
    assert counts == {"o/a": 2, "o/b": 0}
    assert not any("concept_images" in path for _, path, _ in hub.requests)
    HuggingFaceSource().fetch_train_images("o/a", tmp_path / "truth", 1_000)
    assert {p.name: p.read_bytes() for p in (tmp_path / "truth").iterdir()} == {
        "0.jpeg": b"0.jpeg",
        "1.PNG": b"1.PNG",
    }
    for repo, most, words in (("o/b", 1_000, "publishes no training images"), ("o/a", 5, "--max-download")):
        with pytest.raises(Skipped, match=words):
            HuggingFaceSource().fetch_train_images(repo, tmp_path / "none", most)


def test_a_removed_base_is_skipped_and_the_message_says_what_to_do(serve: Serve, tmp_path: Path) -> None:
    serve({"lab/pickles": lora(tmp_path / "a")})
    with pytest.raises(Skipped, match="Pass --base"):
        BaseFetcher().fetch("lab/gone", DownloadCache(tmp_path / "cache"))
    with pytest.raises(Skipped, match="not a diffusers pipeline with safetensors"):
        BaseFetcher().fetch("lab/pickles", DownloadCache(tmp_path / "cache"))


def test_more_than_max_download_is_skipped_before_a_byte_is_fetched(serve: Serve, tmp_path: Path) -> None:
    hub = serve({"o/a": lora(tmp_path / "a")})
    checkpoint = HuggingFaceSource().inspect(only(HuggingFaceSource()))
    before = len(hub.requests)
    with pytest.raises(Skipped, match="Pass a larger --max-download"):
        HuggingFaceSource().fetch(
            checkpoint, tmp_path / "into", DownloadCache(tmp_path / "cache", max_bytes=100)
        )
    assert len(hub.requests) == before


def test_weights_that_are_not_what_was_listed_are_not_kept(serve: Serve, tmp_path: Path) -> None:
    folder = lora(tmp_path / "a")
    serve({"o/a": folder})
    checkpoint = HuggingFaceSource().inspect(only(HuggingFaceSource()))
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + b"\xff")
    with pytest.raises(Unavailable, match="not what was listed"):
        HuggingFaceSource().fetch(checkpoint, tmp_path / "into", DownloadCache(tmp_path / "cache"))
    assert not (tmp_path / "into" / WEIGHTS).exists()


def test_an_unreachable_hub_is_a_source_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:9 could not be listed"):
        list(HuggingFaceSource().list(Query(1)))


def test_a_hub_that_stops_answering_makes_an_entry_unavailable(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve({"o/a": lora(tmp_path / "a")})
    checkpoint = only(HuggingFaceSource())
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    with pytest.raises(Unavailable, match=r"o/a could not be fetched from 127\.0\.0\.1:9.*tries again"):
        HuggingFaceSource(endpoint="http://127.0.0.1:9").inspect(checkpoint)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"id": 7, "siblings": "none", "cardData": ["x"], "createdAt": 5, "sha": {}},
        {"id": "../../etc", "sha": "0" * 40, "siblings": [{"rfilename": WEIGHTS}]},
        {"id": "o/\x1b[31mred\ud800", "createdAt": "0001-01-01T00:00:00+14:00"},
        {
            "id": "o/a",
            "sha": "main/../x",
            "siblings": [{"rfilename": "../out.safetensors"}, {"rfilename": None}, 3],
        },
        {
            "id": "o/a",
            "sha": "0" * 40,
            "siblings": [{"rfilename": WEIGHTS, "size": 10**30, "lfs": {"sha256": "zz"}}],
        },
    ],
)
def test_a_hostile_entry_becomes_a_record_that_is_skipped_or_failed(
    entry: dict[str, object], store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint,) = make_checkpoints(entry, "hf", "http://127.0.0.1:9")
    assert checkpoint.repo.isprintable()
    store.append([checkpoint])  # type: ignore[attr-defined]
    monkeypatch.setattr("scanner.hubs.http.FIRST_WAIT_S", 0.01)
    with pytest.raises((Skipped, Unavailable)):
        HuggingFaceSource().inspect(checkpoint)


@pytest.mark.parametrize(
    "name", ["a\x1b[31m.safetensors", "a:b.safetensors", "\u732b" * 90 + ".ckpt", "../a.ckpt"]
)
@pytest.mark.parametrize("others", [[], [WEIGHTS], [WEIGHTS, "b\x07.safetensors"]])
def test_weights_with_a_name_that_cannot_be_used_are_one_row_with_a_reason(
    name: str, others: list[str], store: Store
) -> None:
    siblings = [{"rfilename": path} for path in (name, *others)]
    rows = make_checkpoints({"id": "o/a", "sha": "0" * 40, "siblings": siblings}, "hf", "http://127.0.0.1:9")
    odd = [row for row in rows if "was not opened, because its name" in row.reason]
    assert len(odd) == (0 if name.startswith("..") and others == [WEIGHTS] else 1)
    assert [row.file for row in rows if row not in odd] == others[:1]
    assert all(row.reason_code is ReasonCode.INVALID_ENTRY for row in odd)
    assert all(text.isprintable() for row in rows for text in (row.file, row.reason, row.url))
    store.append(rows)


def test_a_repository_whose_name_only_looks_like_another_is_never_requested() -> None:
    entry = {"id": "o\u200b/a", "sha": "0" * 40, "siblings": [{"rfilename": WEIGHTS}]}
    (row,) = make_checkpoints(entry, "hf", "http://127.0.0.1:9")
    assert (row.repo, row.reason_code) == ("o\\u200b/a", ReasonCode.INVALID_ENTRY)
    assert "has no valid name" in row.reason


def test_an_unknown_source_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Known sources: hf .*folder:PATH"):
        open_source("ftp://example.org")
    with pytest.raises(ConfigError, match=r"nor a \.safetensors file, nor OWNER/NAME"):
        open_source("hf", base="not a name")


def test_the_hub_serves_the_zoo_by_its_own_names(zoo_path: Path) -> None:
    assert set(zoo_repositories(zoo_path)) >= {json.loads((zoo_path / "zoo.json").read_text())["base_repo"]}
