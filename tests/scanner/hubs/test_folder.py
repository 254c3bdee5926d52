"""A local tree as a source: what is an entry, what is read, and that nothing is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from servers.hub import Hub
from servers.trouble import lora_shapes, small_tensors, write_card, write_pickle, write_safetensors

from finextract.reasons import ReasonCode
from scanner.errors import ConfigError, Skipped, SourceError, Unavailable
from scanner.hashing import sha256_of
from scanner.hubs.base import Query
from scanner.hubs.base_fetcher import BaseFetcher, BaseFiles
from scanner.hubs.cache import DownloadCache
from scanner.hubs.registry import open_source
from scanner.records import Checkpoint, InspectionStatus
from scanner.store.store import Store

UNET = "unet/diffusion_pytorch_model.safetensors"
UNET_SHAPES = {
    "conv_in.weight": (32, 4, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (32, 96),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A diffusers folder, a LoRA with intermediate weights, a loose file, a pickle, and other things."""
    root = tmp_path / "tree"
    told = {"base_model": "lab/base", "instance_prompt": "a photo of sks"}
    write_card(root / "dog", **told)
    (root / "dog/model_index.json").write_text("{}")
    write_safetensors(root / "dog" / UNET, small_tensors(UNET_SHAPES))
    write_safetensors(root / "dog/text_encoder/model.safetensors", small_tensors({"weight": (4, 4)}))
    write_card(root / "nested/cat", **told)
    write_safetensors(root / "nested/cat/cat.safetensors", small_tensors(lora_shapes(), seed=1))
    write_safetensors(
        root / "nested/cat/checkpoint-500/cat.safetensors", small_tensors(lora_shapes(), seed=2)
    )
    write_safetensors(root / "loose.safetensors", small_tensors(lora_shapes(), seed=3))
    write_pickle(root / "old.ckpt")
    write_safetensors(root / ".cache/copy.safetensors", small_tensors(lora_shapes(), seed=4))
    (root / "nested/cat/optimizer.bin").write_bytes(b"x")
    (root / "notes.txt").write_text("nothing")
    return root


def listed(tree: Path, base: str | None = None) -> dict[str, Checkpoint]:
    return {f"{c.repo}/{c.file}": c for c in open_source(f"folder:{tree}", base=base).list(Query(100))}


def test_every_entry_of_a_tree_is_listed_once(tree: Path) -> None:
    assert set(listed(tree)) == {"dog/", "nested/cat/cat.safetensors", "./loose.safetensors", "./old.ckpt"}
    assert len(list(open_source(f"folder:{tree}").list(Query(2)))) == 2


def test_a_file_is_identified_by_its_sha256_wherever_it_is(tree: Path) -> None:
    loose = listed(tree)["./loose.safetensors"]
    assert loose.checkpoint_id == loose.sha256 == sha256_of(tree / "loose.safetensors")
    (tree / "loose.safetensors").rename(tree / "dog-lora.safetensors")
    assert listed(tree)["./dog-lora.safetensors"].checkpoint_id == loose.checkpoint_id


def test_a_checkpoint_has_one_identity_on_the_hub_and_in_a_folder(hub: Hub, zoo_path: Path) -> None:
    zoo = json.loads((zoo_path / "zoo.json").read_text())
    hf = open_source("hf")
    names = {entry["repo"] for entry in zoo["checkpoints"]}
    listed_there = [c for c in hf.list(Query(1000)) if c.repo in names]
    at_hub = {c.repo: c.checkpoint_id for c in map(hf.inspect, listed_there)}
    here = {c.repo: c.checkpoint_id for c in open_source(f"folder:{zoo_path}").list(Query(1000))}
    assert zoo["checkpoints"]
    for entry in zoo["checkpoints"]:
        assert here[entry["path"]] == at_hub[entry["repo"]]


def test_card_and_header_state_what_a_scan_needs(tree: Path) -> None:
    source = open_source(f"folder:{tree}")
    entries = listed(tree)
    dog, cat = source.inspect(entries["dog/"]), source.inspect(entries["nested/cat/cat.safetensors"])
    assert (dog.kind, dog.family, dog.base, dog.caption) == ("full", "sd1", "lab/base", "a photo of sks")
    assert (cat.kind, cat.base) == ("lora", "lab/base")
    assert cat.url == (tree / "nested/cat/cat.safetensors").as_uri()


def test_a_local_base_overrules_every_card(tree: Path, zoo_path: Path, tmp_path: Path) -> None:
    base = str(zoo_path / "base")
    source = open_source(f"folder:{tree}", base=base)
    assert source.inspect(listed(tree)["dog/"]).base == base
    assert BaseFetcher(base).fetch(base, DownloadCache(tmp_path / "cache")) == BaseFiles(Path(base))


def test_a_base_on_the_hub_serves_a_local_checkpoint(hub: Hub, zoo_path: Path, tmp_path: Path) -> None:
    base = json.loads((zoo_path / "zoo.json").read_text())["base_repo"]
    fetched = BaseFetcher().fetch(base, DownloadCache(tmp_path / "cache"))
    assert sha256_of(fetched.model / UNET) == sha256_of(zoo_path / "base" / UNET)


def test_a_pickled_checkpoint_is_skipped_with_a_reason(tree: Path) -> None:
    with pytest.raises(Skipped, match="is a pickle, which can run code"):
        open_source(f"folder:{tree}").inspect(listed(tree)["./old.ckpt"])


def test_a_truncated_file_is_skipped_with_a_reason(tree: Path) -> None:
    path = tree / "loose.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(Skipped, match="is damaged"):
        open_source(f"folder:{tree}").inspect(listed(tree)["./loose.safetensors"])


def test_fetching_copies_nothing_and_notices_a_change(tree: Path, tmp_path: Path) -> None:
    source = open_source(f"folder:{tree}", base="lab/base")
    entries = listed(tree)
    into = tmp_path / "into"
    assert source.fetch(entries["dog/"], into, DownloadCache(tmp_path / "cache")) == tree / "dog"
    assert (
        source.fetch(entries["./loose.safetensors"], into, DownloadCache(tmp_path / "cache"))
        == tree / "loose.safetensors"
    )
    assert not into.exists()
    with pytest.raises(Skipped, match="--max-download"):
        source.fetch(entries["dog/"], into, DownloadCache(tmp_path / "cache", max_bytes=10))
    write_safetensors(tree / "loose.safetensors", small_tensors(lora_shapes(), seed=9))
    with pytest.raises(Unavailable, match="not what was listed"):
        source.fetch(entries["./loose.safetensors"], into, DownloadCache(tmp_path / "cache"))
    (tree / "loose.safetensors").unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        source.fetch(entries["./loose.safetensors"], into, DownloadCache(tmp_path / "cache"))


def test_a_pipeline_of_pickles_is_one_entry_that_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "old/unet").mkdir(parents=True)
    (tmp_path / "old/vae").mkdir()
    (tmp_path / "old/model_index.json").write_text("{}")
    write_pickle(tmp_path / "old/unet/diffusion_pytorch_model.bin")
    write_pickle(tmp_path / "old/vae/diffusion_pytorch_model.bin")
    source = open_source(f"folder:{tmp_path}")
    (entry,) = source.list(Query(10))
    with pytest.raises(Skipped, match="is a pickle"):
        source.inspect(entry)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_unavailable(tree: Path) -> None:
    (tree / "loose.safetensors").chmod(0)
    with pytest.raises(Unavailable):
        open_source(f"folder:{tree}").inspect(listed(tree)["./loose.safetensors"])


def test_a_file_that_vanishes_during_the_listing_costs_only_its_own_entry(tree: Path) -> None:
    (tree / "gone.safetensors").symlink_to(tree / "nowhere")
    entry = listed(tree)["./gone.safetensors"]
    with pytest.raises(Unavailable, match="cannot be read"):
        open_source(f"folder:{tree}").inspect(entry)


def test_a_missing_folder_and_an_unusable_base_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        open_source(f"folder:{tmp_path}/none")
    with pytest.raises(ConfigError, match="not a diffusers pipeline folder"):
        open_source(f"folder:{tmp_path}", base=str(tmp_path))


def test_names_that_are_no_text_do_not_stop_the_listing(tree: Path, store: object) -> None:
    place = os.fsencode(tree) + b"/bad\xff"
    os.mkdir(place)
    write_safetensors(Path(os.fsdecode(place)) / "a.safetensors", small_tensors(lora_shapes(), seed=7))
    entries = list(open_source(f"folder:{tree}").list(Query(100)))
    store.append(entries)  # type: ignore[attr-defined]
    assert any(c.repo.startswith("bad\\udc") for c in entries)


def test_captions_are_read_from_the_sidecar_files_of_a_webui_folder(tmp_path: Path) -> None:
    """A1111 keeps NAME.json, download tools keep NAME.civitai.info, beside NAME.safetensors."""
    for seed, name in enumerate(("activated", "downloaded", "bare")):
        write_safetensors(tmp_path / f"{name}.safetensors", small_tensors(lora_shapes(), seed=seed))
    (tmp_path / "activated.json").write_text(
        json.dumps({"description": "", "sd version": "SD1", "activation text": "sks cat", "notes": ""})
    )
    info = {"modelId": 7, "trainedWords": ["ohwx", "ohwx", "dog ,", 3], "baseModel": "SD 1.5"}
    (tmp_path / "downloaded.civitai.info").write_text(json.dumps(info))
    (tmp_path / "activated.preview.png").write_bytes(b"no checkpoint")
    entries = listed(tmp_path, base="lab/base")
    assert sorted(entries) == ["./activated.safetensors", "./bare.safetensors", "./downloaded.safetensors"]
    source = open_source(f"folder:{tmp_path}", base="lab/base")
    captions = {name: source.inspect(c).caption for name, c in entries.items() if "bare" not in name}
    assert captions == {"./activated.safetensors": "sks cat", "./downloaded.safetensors": "ohwx, dog"}
    assert source.inspect(entries["./bare.safetensors"]).caption == ""


@pytest.mark.parametrize(
    "text", ["[]", "7", '{"activation text": 7}', '{"trainedWords": {}}', "{" * 9999, "\x00"]
)
def test_an_invalid_sidecar_file_counts_as_missing(text: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", small_tensors(lora_shapes()))
    for ending in ("json", "civitai.info"):
        (tmp_path / f"a.{ending}").write_text(text)
    (entry,) = listed(tmp_path).values()
    assert entry.caption is None


def test_a_base_in_the_same_tree_is_found_by_its_hash(tmp_path: Path) -> None:
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
    }
    base = write_safetensors(tmp_path / "base" / "anything.safetensors", small_tensors(shapes))
    told = {"ss_new_sd_model_hash": sha256_of(base), "ss_tag_frequency": json.dumps({"1_a": {"sks": 1}})}
    write_safetensors(tmp_path / "lora.safetensors", small_tensors(lora_shapes(context=768)), told)
    source = open_source(f"folder:{tmp_path}")
    entries = {f"{c.repo}/{c.file}": c for c in source.list(Query(9))}
    assert next(iter(entries)) == "base/anything.safetensors"  # large ones first, so that it is known
    assert source.inspect(entries["./lora.safetensors"]).base == str(base)


# --- files that are none, too large, or oddly named


def special(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "link to a named pipe":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(path.parent):
            opened.bind(path.name)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["named pipe", "link to a named pipe", "socket", "device"])
@pytest.mark.parametrize("name", ["a.safetensors", "b.ckpt", "c/" + UNET, "c/vae/config.json"])
def test_what_is_no_regular_file_is_a_row_with_a_reason_and_is_not_opened(
    tree: Path, kind: str, name: str
) -> None:
    """Opening a pipe without a writer does not return, and /dev/zero has no end."""
    if name.startswith("c/"):
        shutil.copytree(tree / "dog", tree / "c")
        (tree / name).unlink(missing_ok=True)
    special(tree / name, kind)
    source = open_source(f"folder:{tree}", allow_pickle=True)
    found = {f"{c.repo}/{c.file}": c for c in source.list(Query(100))}
    row = found["c/" if name.startswith("c/") else f"./{name}"]
    assert (row.inspection_status, row.reason_code) == (InspectionStatus.SKIPPED, ReasonCode.INVALID_ENTRY)
    assert f"is a {kind.removeprefix('link to a ')} instead of a file, and was not opened" in row.reason
    assert len(found) == 5, "the others are listed"
    with pytest.raises(Skipped, match="instead of a file"):
        source.inspect(row)


@pytest.mark.parametrize("name", ["README.md", "cat.json", "adapter_config.json", "hparams.yml"])
def test_a_pipe_among_the_small_files_counts_as_missing(tree: Path, name: str) -> None:
    (tree / "nested/cat" / name).unlink(missing_ok=True)
    os.mkfifo(tree / "nested/cat" / name)
    source = open_source(f"folder:{tree}", base="lab/base")
    (row,) = (c for c in source.list(Query(9)) if c.file == "cat.safetensors")
    assert source.inspect(row).caption == ("" if name == "README.md" else "a photo of sks")


def test_a_file_that_became_a_pipe_after_it_was_listed_is_not_opened(tree: Path, tmp_path: Path) -> None:
    source = open_source(f"folder:{tree}")
    (row,) = (c for c in source.list(Query(9)) if c.file == "loose.safetensors")
    (tree / "loose.safetensors").unlink()
    os.mkfifo(tree / "loose.safetensors")
    with pytest.raises(Unavailable, match="cannot be read: it is a named pipe"):
        source.inspect(row)
    with pytest.raises(Skipped, match="is a named pipe instead of a file"):
        source.fetch(row, tmp_path / "into", DownloadCache(tmp_path / "cache"))


def test_a_sparse_terabyte_is_not_read_for_its_sha256(tree: Path) -> None:
    with (tree / "vast.safetensors").open("wb") as file:
        file.truncate(10**12)
    vast = listed(tree)["./vast.safetensors"]
    assert (vast.inspection_status, vast.reason_code) == (InspectionStatus.SKIPPED, ReasonCode.TOO_LARGE)
    assert vast.reason == ".: it is 1.0 TB, and at most 10.0 GB are read. Pass a larger --max-download."
    assert (vast.sha256, vast.size_bytes) == (None, 10**12)
    small = {c.file: c for c in open_source(f"folder:{tree}").list(Query(9, max_bytes=100))}
    assert small["loose.safetensors"].reason_code is ReasonCode.TOO_LARGE


@pytest.mark.parametrize(
    ("name", "shown", "words"),
    [
        (b"a\x1b[31mred\n.safetensors", "a\\x1b[31mred\\n.safetensors", "characters that cannot be printed"),
        (b"a\xff.safetensors", "a\\udcff.safetensors", "characters that cannot be printed"),
        ("a\u202egpj.ckpt".encode(), "a\\u202egpj.ckpt", "characters that cannot be printed"),
        (b"style:v2.safetensors", "style:v2.safetensors", "a backslash or a colon"),
        (b"a\\b.safetensors", "a\\\\b.safetensors", "a backslash or a colon"),
        ("\u732b".encode() * 80 + b".safetensors", "\u732b" * 80 + ".safetensors", "longer than 200 bytes"),
        (b"a" * 230 + b".safetensors", "a" * 188 + "...", "longer than 200 bytes"),
    ],
    ids=["controls", "no UTF-8", "direction", "colon", "backslash", "80 characters", "230 characters"],
)
def test_a_name_that_cannot_be_used_is_a_row_that_can_be_shown(
    tree: Path, store: Store, name: bytes, shown: str, words: str
) -> None:
    shutil.copy(tree / "loose.safetensors", os.path.join(os.fsencode(tree), name))
    before = len(listed(tree)) - 1
    (row,) = (c for c in listed(tree).values() if c.file.startswith(shown))
    assert (row.inspection_status, row.reason_code) == (InspectionStatus.SKIPPED, ReasonCode.INVALID_ENTRY)
    assert words in row.reason
    assert all(text.isprintable() for text in (row.file, row.reason, row.url))
    assert len(row.file) <= 200
    assert before == 4, "the others are listed"
    store.append([row])


def test_two_names_that_look_the_same_are_two_rows(tmp_path: Path) -> None:
    for n, folder in enumerate((b"x", b"x\x00"[:1] + b"\x01", b"x\x02")):
        place = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), folder)))
        write_safetensors(place / "a.safetensors", small_tensors(lora_shapes(), seed=n))
        write_safetensors(place / os.fsdecode(b"b\x01.safetensors"), small_tensors(lora_shapes(), seed=9 + n))
        write_safetensors(
            place / os.fsdecode(b"b\x02.safetensors"), small_tensors(lora_shapes(), seed=20 + n)
        )
    rows = list(open_source(f"folder:{tmp_path}").list(Query(100)))
    assert len({(c.repo, c.file) for c in rows}) == len({c.checkpoint_id for c in rows}) == len(rows) == 9
