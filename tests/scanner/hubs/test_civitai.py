"""Civitai as a source: the real client against a site and a store on loopback that can misbehave."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers.civitai import (
    Civitai as Site,
)
from servers.civitai import (
    SiteHandler,
    TroubledSite,
    TroubledStore,
    file_entry,
    from_folder,
    generated,
    lora_bytes,
    model,
)
from servers.misbehaviour import ALL, ANSWERS, LIMITS, Script, Seeded

from finextract.reasons import ReasonCode
from scanner.errors import ConfigError, EntryError, Skipped, SourceError, Unavailable
from scanner.hashing import identify
from scanner.hubs import addresses, http
from scanner.hubs.base import Query
from scanner.hubs.base_fetcher import BaseFetcher, BaseFiles
from scanner.hubs.cache import DownloadCache
from scanner.hubs.civitai.client import CivitaiClient
from scanner.hubs.civitai.entries import family_of, make_checkpoints
from scanner.hubs.civitai.source import CivitaiSource
from scanner.hubs.fields import placeholder_id
from scanner.records import BaseOrigin, Checkpoint, InspectionStatus

SD1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOLD = {"ss_sd_model_name": SD1}  # a header that names its base
BASE_HASH = "ab" * 32

Serve = Callable[..., Site]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, no login, and nothing remembered of the last test's limits."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(http, "_limited_until", {})
    for name in ("CIVITAI_TOKEN", "CIVITAI_API_TOKEN", "CIVITAI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Serve:
    """Starts a site, names it in CIVITAI_ENDPOINT, and admits its store."""

    def start(items: list[dict[str, Any]], **options: Any) -> Site:
        site = Site(items, **options)
        site.__enter__()
        request.addfinalizer(lambda: site.__exit__())
        monkeypatch.setenv("CIVITAI_ENDPOINT", site.url)
        addresses.trust(site.store_url)
        return site

    return start


def lora(number: int = 1, metadata: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A listed LoRA that can be scanned."""
    content = lora_bytes(number, TOLD if metadata is None else metadata)
    return model(number, changes.pop("name", f"thing {number}"), content, **changes)


def only(limit: int = 100) -> Checkpoint:
    (checkpoint,) = CivitaiSource().list(Query(limit))
    return checkpoint


def inspected(**options: Any) -> Checkpoint:
    return CivitaiSource(**options).inspect(only())


def revisions(source: CivitaiSource, query: Query | None = None) -> list[int]:
    return [int(c.revision) for c in source.list(query or Query(10_000))]


# --- listing


def test_a_version_with_a_known_hash_is_one_checkpoint_on_every_hub(serve: Serve) -> None:
    site = serve([lora(7)])
    checkpoint = only()
    digest = next(iter(site.items))["modelVersions"][0]["files"][0]["hashes"]["SHA256"]
    assert checkpoint.checkpoint_id == checkpoint.sha256 == identify([("x", digest.lower())])
    assert (checkpoint.repo, checkpoint.revision) == ("maker7/thing 7", "70")
    assert checkpoint.file == "thing_7_v10.safetensors"
    assert checkpoint.url == f"{site.url}/models/7?modelVersionId=70"
    assert (checkpoint.kind, checkpoint.family, checkpoint.caption) == ("lora", "sd1", "sks7")
    assert checkpoint.inspection_status is InspectionStatus.UNKNOWN
    assert checkpoint.license == "Civitai permissions: commercial use Image, RentCivit"


def test_a_renamed_model_keeps_its_identity_even_without_a_hash(serve: Serve) -> None:
    content = lora_bytes(1)

    def named(name: str) -> str:
        files = [file_entry(11, f"{name}.safetensors", content, hashes={})]
        serve([model(1, name, files=files, creator={"username": name})])
        return only().checkpoint_id

    assert named("before") == named("after")


def test_the_listing_requests_trained_checkpoints_and_all_loras_newest_first(serve: Serve) -> None:
    site = serve([lora(1), lora(2, type="Checkpoint"), lora(3, type="VAE"), lora(4, nsfw=True)])
    assert revisions(CivitaiSource()) == [40, 20, 10]
    _, _, path, headers = site.requests[0]
    assert "types=Checkpoint&types=LORA&types=LoCon&types=DoRA&checkpointType=Trained" in path
    assert "sort=Newest" in path
    assert "nsfw=true" in path
    assert headers["User-Agent"].startswith("finextract-scanner/")


@pytest.mark.parametrize(("loses", "repeats"), [(0, 0), (5, 0), (0, 5), (40, 0), (0, 60)])
def test_every_model_is_listed_once_although_cursors_omit_or_repeat_some(
    serve: Serve, loses: int, repeats: int
) -> None:
    serve([lora(n) for n in range(1, 731)], loses=loses, repeats=repeats, every=1, states_total=True)
    source = CivitaiSource()
    listed = revisions(source)
    assert sorted(listed) == [n * 10 for n in range(1, 731)]
    assert (source.listed, source.total_items) == (730, 730)


def test_a_cursor_that_repeats_itself_ends_the_listing_with_a_message(serve: Serve) -> None:
    site = serve([lora(n) for n in range(1, 401)], loops=True)
    listing, listed = CivitaiSource().list(Query(10_000)), []
    with pytest.raises(SourceError, match="names a page as the next one that was listed before"):
        listed.extend(c.revision for c in listing)
    assert len(listed) > 100, "what came before it was listed"
    assert len(site.requests) < 8


def test_links_to_another_host_are_never_followed(serve: Serve) -> None:
    site = serve([lora(n) for n in range(1, 251)])
    assert len(revisions(CivitaiSource())) == 250
    assert all(path.startswith("/api/v1/models?") for _, _, path, _ in site.requests)


def test_limit_counts_checkpoints_and_requests_no_further_page(serve: Serve) -> None:
    site = serve([lora(n) for n in range(1, 401)])
    assert revisions(CivitaiSource(), Query(3)) == [4000, 3990, 3980]
    assert revisions(CivitaiSource(), Query(0)) == []
    assert len(site.requests) == 1


def test_since_gives_what_was_published_later_and_stops_there(serve: Serve) -> None:
    site = serve([lora(n) for n in range(1, 1001)])
    since = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=951)
    assert revisions(CivitaiSource(), Query(10_000, since=since)) == [n * 10 for n in range(1000, 950, -1)]
    assert len(site.requests) <= 4


def test_filters_are_tags(serve: Serve) -> None:
    serve([lora(1, tags=["style", "anime"]), lora(2, tags=["style"]), lora(3, tags=["anime"])])
    assert revisions(CivitaiSource(), Query(9, filters=("style", "Anime"))) == [10]


def test_an_interrupted_listing_resumes_at_its_position(serve: Serve) -> None:
    site = serve([lora(n) for n in range(1, 1001)])
    first = CivitaiSource()
    entries = first.list(Query(10_000))
    taken = [next(entries).revision for _ in range(730)]
    second = CivitaiSource()
    second.position.update(first.position)
    before = len(site.requests)
    rest = [c.revision for c in second.list(Query(10_000))]
    assert {*taken, *rest} == {str(n * 10) for n in range(1, 1001)}
    assert len(site.requests) - before < before


def test_each_version_is_an_entry_and_each_has_its_own_file(serve: Serve) -> None:
    versions = [
        model(n, "v", lora_bytes(n))["modelVersions"][0] | {"name": f"v{n}", "baseModel": base}
        for n, base in ((1, "SD 1.5"), (2, "Pony"), (3, "Wan Video 14B t2v"))
    ]
    serve([lora(9, modelVersions=versions)])
    listed = list(CivitaiSource().list(Query(9)))
    assert [(c.revision, c.family) for c in listed] == [("10", "sd1"), ("20", "sdxl"), ("30", "unknown")]


def test_safetensors_come_before_pickles_pruned_before_full_and_then_the_first(serve: Serve) -> None:
    def file(n: int, format: str, size: str | None, **more: Any) -> dict[str, Any]:
        suffix = "ckpt" if format == "PickleTensor" else "safetensors"
        told = {"format": format, "size": size}
        return file_entry(n, f"f{n}.{suffix}", lora_bytes(n), metadata=told, primary=None, **more)

    pickle = file(1, "PickleTensor", "pruned")
    full, pruned = file(2, "SafeTensor", "full"), file(3, "SafeTensor", "pruned")
    vae, second = (
        file(4, "SafeTensor", "pruned", type="VAE"),
        file(5, "SafeTensor", "full") | {"primary": True},
    )
    for files, chosen in (
        ([pickle, full, pruned], "f3.safetensors"),
        ([vae, pickle, full], "f2.safetensors"),
        ([full, second], "f5.safetensors"),
    ):
        serve([model(1, "x", files=files)])
        assert only().file == chosen


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"poi": True}, ReasonCode.REAL_PERSON, "showing a real person"),
        (
            {"mode": "Archived", "files": [], "version": {"files": []}},
            ReasonCode.REMOVED,
            "archived by its author",
        ),
        ({"mode": "TakenDown"}, ReasonCode.REMOVED, "taken down by Civitai"),
        (
            {"version": {"availability": "EarlyAccess"}},
            ReasonCode.EARLY_ACCESS,
            "in early access: only those who paid",
        ),
        (
            {"version": {"earlyAccessEndsAt": "2999-12-31T00:00:00"}},
            ReasonCode.EARLY_ACCESS,
            "early access until 2999-12-31",
        ),
        ({"version": {"paidAccess": {"permanent": True}}}, ReasonCode.EARLY_ACCESS, "paid: only those who"),
        (
            {"version": {"availability": "Public", "paidAccess": {"permanent": False, "endsAt": None}}},
            ReasonCode.EARLY_ACCESS,
            "paid: only those who",
        ),
        (
            {"version": {"paidAccess": {"permanent": False, "endsAt": "2999-12-31T00:00:00.000Z"}}},
            ReasonCode.EARLY_ACCESS,
            "paid: only those who",
        ),
        ({"version": {"usageControl": "Generation"}}, ReasonCode.NOT_OFFERED, "on the site only"),
        (
            {"type": "TextualInversion"},
            ReasonCode.UNSUPPORTED_KIND,
            "of the type TextualInversion: only Checkpoint, LORA",
        ),
        ({"modelVersions": []}, ReasonCode.REMOVED, "no published version"),
        ({"version": {"files": []}}, ReasonCode.NO_WEIGHTS, "no weights: no safetensors"),
        (
            {"files": [file_entry(1, "a.ckpt", b"x")]},
            ReasonCode.PICKLE,
            r"a pickle \(a\.ckpt\).*Ask its author for safetensors",
        ),
        (
            {"files": [file_entry(1, "a.safetensors", b"x", virusScanResult="Danger")]},
            ReasonCode.HUB_WARNING,
            "virus scan calls its file",
        ),
        (
            {"files": [file_entry(1, "a.safetensors", b"x", pickleScanResult="Danger")]},
            ReasonCode.HUB_WARNING,
            "pickle scan calls",
        ),
    ],
)
def test_an_entry_that_the_site_rules_out_has_a_reason_and_its_code(
    changes: dict[str, Any], code: ReasonCode, words: str
) -> None:
    (checkpoint,) = make_checkpoints(lora(1, **changes), "civitai", "https://civitai.com")
    assert checkpoint.inspection_status is InspectionStatus.SKIPPED
    assert checkpoint.reason.startswith("maker1/thing 1")
    assert re.search(words, checkpoint.reason)
    assert checkpoint.reason_code is code
    if checkpoint.revision:
        with pytest.raises(Skipped) as skipped:
            CivitaiSource(endpoint="http://127.0.0.1:9").inspect(dataclasses.replace(checkpoint, file=""))
        assert skipped.value.reason_code is code


@pytest.mark.parametrize(
    "version",
    [
        {"earlyAccessEndsAt": "2026-01-01T00:00:00Z"},
        {"paidAccess": None},
        {"paidAccess": {}},
        {"paidAccess": "permanent"},
        {"paidAccess": {"permanent": False, "endsAt": "2026-01-01T00:00:00Z"}},
    ],
)
def test_an_entry_whose_early_or_paid_access_is_over_is_not_skipped(version: dict[str, Any]) -> None:
    (checkpoint,) = make_checkpoints(lora(1, version=version), "civitai", "")
    assert checkpoint.inspection_status is InspectionStatus.UNKNOWN


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (("SD 1.4", "SD 1.5", "SD 1.5 LCM", "SD 1.5 Hyper"), "sd1"),
        (("SD 2.0", "SD 2.0 768", "SD 2.1", "SD 2.1 Unclip"), "sd2"),
        (("SDXL 0.9", "SDXL 1.0", "SDXL Lightning", "SDXL Turbo", "Pony", "Illustrious", "NoobAI"), "sdxl"),
        (("SD 3", "SD 3.5", "SD 3.5 Large Turbo", "SD 3.5 Medium"), "sd3"),
        (("Chroma",), "chroma"),
        (("ZImageTurbo", "ZImageBase"), "z_image"),
        (("Flux.1 S", "Flux.1 D", "Flux.1 Krea", "Flux.1 Kontext"), "flux"),
        (
            ("Flux.2 D", "Pony V7", "SVD", "Stable Cascade", "Other", "", None, ["SD 1.5"]),
            "unknown",
        ),
    ],
)
def test_a_base_model_names_a_family(names: tuple[object, ...], family: str) -> None:
    assert {family_of(name) for name in names} == {family}


def test_responses_of_varying_types_are_still_read(serve: Serve) -> None:
    digest = "7C819B6D13663ED720C2254F4FE18373107DFEF2448D337913C8FC545640881E"
    old = lora(1, allowCommercialUse=["Image"], allowDerivatives=False, creator=None, poi=None, mode=None)
    old["modelVersions"][0] |= {
        "publishedAt": "2023-10-05T13:31:16.745",
        "trainedWords": "sks, a cat",
        "stats": None,
    }
    old["modelVersions"][0]["files"][0] |= {
        "hashes": {"SHA256": digest, "AutoV1": None},
        "sizeKB": 2082642.474609375,
    }
    del old["modelVersions"][0]["availability"]
    (checkpoint,) = make_checkpoints(old, "civitai", "")
    assert checkpoint.created_at == datetime(2023, 10, 5, 13, 31, 16, 745000, UTC)
    assert (checkpoint.repo, checkpoint.caption) == ("civitai/thing 1", "sks, a cat")
    assert (checkpoint.sha256, checkpoint.size_bytes) == (digest.lower(), 2132625894)
    assert checkpoint.license == "Civitai permissions: commercial use Image; no derivatives"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(data=st.data())
def test_an_entry_of_any_shape_is_one_record_a_version_and_never_an_error(data: st.DataObject) -> None:
    item = lora(1, version={"trainingDetails": {"params": {"a": 1}, "samplePrompts": []}})
    for place in (
        item, item["modelVersions"][0], item["modelVersions"][0]["files"][0],
        item["modelVersions"][0]["trainingDetails"],
    ):  # fmt: skip
        for name in data.draw(st.lists(st.sampled_from(sorted(place)), max_size=4, unique=True)):
            place[name] = data.draw(json_values)
    for checkpoint in make_checkpoints(item, "civitai", "https://civitai.com"):
        assert checkpoint.repo.isprintable()
        assert "/" not in checkpoint.file
        assert len(checkpoint.checkpoint_id) == 64
        assert 0 <= checkpoint.size_bytes <= 1 << 50
        json.loads(checkpoint.raw)
        assert checkpoint.reason or checkpoint.file


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "\x1b[31m[bold]red\ud800\n", "creator": {"username": "../../etc"}},
        {"id": "no number", "modelVersions": None},
        {"id": -5, "modelVersions": [3, {"id": 10**30, "files": [None, 7]}]},
        {"files": [file_entry(1, "../../out.safetensors", b"x")]},
        {"files": [file_entry(1, ".lock.safetensors", b"x", sizeKB=10**400)]},
        {"files": [file_entry(1, "a.safetensors", b"x", hashes={"SHA256": "zz"}, sizeKB=float("inf"))]},
        {"description": "x" * 5_000_000, "tags": ["y" * 100] * 100_000},
        {"version": {"trainingDetails": {"baseModel": "civitai:0@0", "params": {"x": "y" * 50_000}}}},
    ],
)
def test_a_hostile_entry_costs_its_own_row_and_nothing_else(
    serve: Serve, store: Any, changes: dict[str, Any]
) -> None:
    serve([lora(2), lora(1, **changes)])
    listed = list(CivitaiSource().list(Query(10)))
    store.append(listed)
    assert len(listed) >= 2
    assert all(c.repo.isprintable() and "/" not in c.file and len(c.raw) < 300_000 for c in listed)
    assert (
        CivitaiSource().inspect(next(c for c in listed if c.revision == "20")).inspection_status
        is InspectionStatus.READY
    )


# --- inspection


def test_inspecting_reads_the_header_from_the_store_and_no_weights(serve: Serve) -> None:
    site = serve([lora()])
    checkpoint = inspected()
    assert (checkpoint.base, checkpoint.caption) == (SD1, "sks1")
    assert (checkpoint.kind, checkpoint.family, checkpoint.inspection_status) == (
        "lora",
        "sd1",
        InspectionStatus.READY,
    )
    assert checkpoint.size_bytes == len(lora_bytes(1, TOLD))
    ranges = [h.get("Range") for where, _, _, h in site.requests if where == "store"]
    assert ranges == ["bytes=0-100000"]


def test_a_long_header_takes_a_second_read(serve: Serve) -> None:
    site = serve([lora(metadata=TOLD | {"ss_comment": "x" * 300_000})])
    assert inspected().inspection_status is InspectionStatus.READY
    assert len([1 for where, *_ in site.requests if where == "store"]) == 2


def test_the_chosen_file_is_requested_and_no_other_of_its_version(serve: Serve) -> None:
    full = file_entry(
        1, "f.safetensors", lora_bytes(1, {}), metadata={"format": "SafeTensor", "size": "full"}
    )
    pruned = full | file_entry(2, "p.safetensors", lora_bytes(2, TOLD)) | {
        "primary": None, "metadata": {"format": "SafeTensor", "size": "pruned", "fp": "fp16"},
    }  # fmt: skip
    serve([model(1, "x", files=[full, pruned])])
    checkpoint = inspected()
    assert checkpoint.size_bytes == len(lora_bytes(2, TOLD))


def test_trigger_words_that_are_alternatives_are_kept_beside_the_caption(
    serve: Serve,
) -> None:
    words = ["<lora:thing:1>", "sks in armour, (full body:1.2)", "sks in a dress, smiling"]
    serve([lora(version={"trainedWords": words})])
    checkpoint = inspected()
    assert checkpoint.caption == "sks in armour, full body"
    assert json.loads(checkpoint.training)["alternatives"] == ["sks in a dress, smiling"]


def test_counted_tags_come_before_the_trigger_words_where_both_agree(serve: Serve) -> None:
    tags = {"10_x": {"sks_1 dog": 9, "grass": 9, "sky": 2}}
    counted = TOLD | {
        "ss_tag_frequency": json.dumps(tags),
        "ss_dataset_dirs": json.dumps({"10_x": {"n_repeats": 10, "img_count": 9}}),
    }
    for words, caption in (
        (["SKS 1 dog"], "sks_1 dog, grass"),
        ([], "sks_1 dog, grass"),
        (["another word", "1girl"], "another word, 1girl"),
    ):
        serve([lora(metadata=counted, version={"trainedWords": words})])
        checkpoint = inspected()
        assert (checkpoint.caption, checkpoint.num_train_images) == (caption, 9)


def test_the_exact_base_is_found_by_its_hash_and_kept_apart_from_the_family(serve: Serve) -> None:
    metadata = {"ss_new_sd_model_hash": BASE_HASH, "ss_sd_model_name": SD1}
    other = file_entry(1, "dream.safetensors", b"x", hashes={"SHA256": BASE_HASH.upper()})
    base = model(4384, "DreamShaper", files=[other], type="VAE", version={"id": 128713, "name": "8"})
    site = serve([lora(1, metadata), base])
    source = CivitaiSource()
    checkpoint = source.inspect(next(c for c in source.list(Query(9)) if c.revision == "10"))
    assert checkpoint.base == "civitai:4384@128713"
    assert checkpoint.base_origin is BaseOrigin.HASH
    assert json.loads(checkpoint.training)["civitai_base"] == "DreamShaper 8"
    source.inspect(checkpoint)
    assert sum("by-hash" in path for _, _, path, _ in site.requests) == 1  # each process asks once
    given = CivitaiSource(base="lab/dream").inspect(checkpoint)
    assert given.base == checkpoint.base  # --base is for those that tell none


def test_a_base_that_is_known_by_its_hash_is_not_requested(serve: Serve) -> None:
    known = "6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa"
    site = serve([lora(metadata={"ss_new_sd_model_hash": known})])
    checkpoint = inspected()
    assert (checkpoint.base, checkpoint.base_origin) == (SD1, BaseOrigin.HASH)
    assert not any("by-hash" in path for _, _, path, _ in site.requests)


def test_where_no_file_has_the_stated_hash_the_other_statements_count(serve: Serve) -> None:
    serve([lora(metadata={"ss_new_sd_model_hash": BASE_HASH, "ss_sd_model_name": SD1})])
    assert inspected().base == SD1


@pytest.mark.parametrize(
    ("told", "base"),
    [
        ("sd_1_5", SD1),
        ("civitai:127227@139180", SD1),
        ("urn:air:sd1:checkpoint:civitai:84586@89927", "civitai:84586@89927"),
        ("realistic", "civitai:81458@132760"),
    ],
)
def test_a_training_on_the_site_states_its_base_its_settings_and_its_images(
    serve: Serve, told: str, base: str
) -> None:
    details = {
        "baseModel": told,
        "type": "Character",
        "params": {"engine": "kohya", "maxTrainEpochs": 10, "numRepeats": 5, "networkDim": 16, "x": {"y": 1}},
        "samplePrompts": ["photo of sks person", ""],
    }
    weights = file_entry(11, "a.safetensors", lora_bytes(1, {}))
    data = file_entry(
        12, "data.zip", b"PK", type="Training Data", primary=None,
        metadata={"format": "Other", "numImages": 24, "numCaptions": 24, "shareDataset": True},
    )  # fmt: skip
    site = serve(
        [
            model(
                1,
                "x",
                files=[weights, data],
                version={"trainedWords": []},
                detail={"trainingDetails": details},
            )
        ]
    )
    checkpoint = inspected()
    assert (checkpoint.base, checkpoint.base_origin) == (base, BaseOrigin.CARD)
    assert (checkpoint.num_train_images, checkpoint.public_images) == (24, 24)
    assert checkpoint.caption == "photo of sks person"
    training = json.loads(checkpoint.training)["civitai"]
    assert (training["engine"], training["maxTrainEpochs"], training["type"]) == ("kohya", 10, "Character")
    assert not any("12?" in path or "Training" in path for _, _, path, _ in site.requests)


def test_training_images_that_are_not_shared_are_not_public(serve: Serve) -> None:
    data = file_entry(
        12, "d.zip", b"PK", type="Training Data", metadata={"numImages": 9, "shareDataset": False}
    )
    serve([model(1, "x", files=[file_entry(11, "a.safetensors", lora_bytes(1, TOLD)), data])])
    checkpoint = inspected()
    assert (checkpoint.num_train_images, checkpoint.public_images) == (9, 0)


def test_a_version_that_its_own_entry_rules_out_is_skipped_before_any_download(serve: Serve) -> None:
    for detail, words in (
        ({"usageControl": "InternalGeneration"}, "on the site only"),
        ({"status": "Draft"}, "not published"),
        ({"model": {"type": "LORA", "poi": True}}, "real person"),
        ({"model": {"mode": "TakenDown"}}, "taken down"),
        ({"earlyAccessEndsAt": "2999-01-01T00:00:00.000Z"}, "early access until 2999-01-01"),
    ):
        site = serve([lora(detail=detail)])
        with pytest.raises(Skipped, match=words):
            inspected()
        assert not any("download" in path for _, _, path, _ in site.requests)


def test_a_hash_that_comes_later_gives_the_record_its_true_identity(serve: Serve) -> None:
    content = lora_bytes(1, TOLD)
    true = file_entry(11, "a.safetensors", content)
    site = serve([model(1, "x", files=[true | {"hashes": {"AutoV2": "0011223344"}}])])
    listed = only()
    assert listed.checkpoint_id == placeholder_id("civitai", "", "10", "11")
    with pytest.raises(Unavailable, match="no SHA256 yet"):
        CivitaiSource().inspect(listed)
    site.versions[10][1]["files"] = [true]
    checkpoint = CivitaiSource().inspect(listed)
    assert checkpoint.checkpoint_id == checkpoint.sha256 == true["hashes"]["SHA256"].lower()
    assert (checkpoint.repo, checkpoint.revision, checkpoint.file) == (
        listed.repo,
        listed.revision,
        listed.file,
    )


def test_a_removed_version_is_skipped(serve: Serve) -> None:
    site = serve([lora()])
    listed = only()
    site.versions.clear()
    with pytest.raises(Skipped, match=r"is no longer published on"):
        CivitaiSource().inspect(listed)


# --- what a download is answered with


@pytest.mark.parametrize(
    ("status", "value", "error", "code", "words"),
    [
        (
            401,
            {"error": "Unauthorized"},
            Skipped,
            ReasonCode.LOGIN_REQUIRED,
            "Set CIVITAI_TOKEN to an API key",
        ),
        (
            307,
            {"location": "/login?returnUrl=/models/1"},
            Skipped,
            ReasonCode.LOGIN_REQUIRED,
            "Set CIVITAI_TOKEN",
        ),
        (
            403,
            {"error": "Early Access", "deadline": "2027-01-31T00:00:00Z"},
            Skipped,
            ReasonCode.EARLY_ACCESS,
            "until 2027-01-31",
        ),
        (403, {"error": "Forbidden"}, Unavailable, ReasonCode.HUB_UNREACHABLE, "answered 403"),
        (
            404,
            {"error": "File not found"},
            Unavailable,
            ReasonCode.NOT_READY,
            "was not found on .* The next crawl tries again",
        ),
        (410, {"error": "Archived"}, Skipped, ReasonCode.REMOVED, "archived by its author"),
        (
            418,
            {"error": "x\x1b[31m", "message": "tea"},
            Unavailable,
            ReasonCode.HUB_UNREACHABLE,
            r"answered 418 \(x\[31m, tea\)",
        ),
        (500, {"error": "x"}, Unavailable, ReasonCode.HUB_UNREACHABLE, "answered 500"),
        (
            200,
            {"error": "unusual"},
            Unavailable,
            ReasonCode.HUB_UNREACHABLE,
            "sent a web page instead of weights",
        ),
        (
            307,
            {"location": "http://169.254.169.254/latest"},
            Unavailable,
            ReasonCode.HUB_UNREACHABLE,
            "without https is not requested",
        ),
        (
            307,
            {"location": "https://elsewhere.invalid/x"},
            Unavailable,
            ReasonCode.HUB_UNREACHABLE,
            "on another host is not requested",
        ),
        (
            307,
            {"location": "file:///etc/passwd"},
            Unavailable,
            ReasonCode.HUB_UNREACHABLE,
            "could not be fetched",
        ),
    ],
)
def test_each_answer_to_a_download_has_its_own_outcome(
    serve: Serve, status: int, value: dict[str, str], error: type[EntryError], code: ReasonCode, words: str
) -> None:
    serve([lora()], answers={10: (status, value)})
    with pytest.raises(error, match=words) as raised:
        inspected()
    assert raised.value.reason_code is code


def test_a_persistent_rate_limit_makes_an_entry_unavailable_and_names_the_host(
    serve: Serve,
) -> None:
    site = serve([lora()], answers={10: (429, {"error": "unusual amount of downloading"})})
    client = CivitaiClient(site.url, http.Policies(small=http.RetryPolicy(rate_limit_wait_s=0.05)))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 limits requests") as raised:
        client.read_start(10, {}, 10, "maker1/thing 1")
    assert raised.value.reason_code is ReasonCode.RATE_LIMITED


def test_a_token_is_sent_where_a_login_is_required_and_to_no_other_host(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = serve([lora()], private=[10], token="t0p-secret")
    with pytest.raises(Skipped, match="Set CIVITAI_TOKEN"):
        inspected()
    monkeypatch.setenv("CIVITAI_API_TOKEN", " t0p-secret\n")
    checkpoint = inspected()
    with DownloadCache(tmp_path / "cache") as downloads:
        CivitaiSource().fetch(checkpoint, tmp_path / "into", downloads)
    asked = [r for r in site.requests if "Authorization" in r[3]]
    assert {(where, path.split("?")[0]) for where, _, path, _ in asked} == {
        ("site", "/api/download/models/10")
    }
    assert all("t0p-secret" not in path for _, _, path, _ in site.requests)
    assert "t0p-secret" not in repr(checkpoint)
    monkeypatch.setenv("CIVITAI_TOKEN", "wrong-one")
    with pytest.raises(Skipped, match="cannot be downloaded with this CIVITAI_TOKEN") as told:
        inspected()
    assert "wrong-one" not in str(told.value)


def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", "abc\r\nX-Other: 1")
    with pytest.raises(ConfigError, match="CIVITAI_TOKEN holds characters") as told:
        CivitaiSource()
    assert "abc" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(50), "pickle"),
        (b"\xff" * 100, "not a safetensors file"),
        (b"", "is empty"),
        (b"\x01", "too few"),
        (lora_bytes(1, TOLD)[:-7], "damaged"),
    ],
)
def test_what_is_no_safetensors_file_is_skipped(serve: Serve, content: bytes, words: str) -> None:
    serve([model(1, "x", files=[file_entry(11, "a.safetensors", content)])])
    with pytest.raises(Skipped, match=words):
        inspected()


# --- downloads


def fetched(checkpoint: Checkpoint, folder: Path, **options: Any) -> bytes:
    with DownloadCache(folder / "cache", **options) as downloads:
        return CivitaiSource().fetch(checkpoint, folder / "into", downloads).read_bytes()


def test_a_fetched_file_is_the_listed_one(serve: Serve, tmp_path: Path) -> None:
    serve([lora()])
    assert fetched(inspected(), tmp_path) == lora_bytes(1, TOLD)


def test_more_than_max_download_is_never_requested(serve: Serve, tmp_path: Path) -> None:
    site = serve([lora()])
    checkpoint = inspected()
    before = len(site.requests)
    with pytest.raises(Skipped, match="Pass a larger --max-download"):
        fetched(checkpoint, tmp_path, max_bytes=100)
    assert len(site.requests) == before


@pytest.mark.parametrize("fault", ["truncate", "drop", "500", "429-seconds", "html", "slow", "off-host"])
def test_a_broken_download_is_resumed_where_it_stopped(serve: Serve, tmp_path: Path, fault: str) -> None:
    class Store(TroubledStore):
        plan = Script([None, fault, fault])  # the header is read undisturbed

    site = serve([lora()], store_handler=Store)
    assert fetched(inspected(), tmp_path) == lora_bytes(1, TOLD)
    ranges = [h.get("Range") for where, _, _, h in site.requests if where == "store"][1:]
    half = len(lora_bytes(1, TOLD)) // 2
    if fault == "truncate":
        assert ranges[:2] == [None, f"bytes={half}-"]


def test_a_partial_file_of_an_earlier_process_is_resumed(serve: Serve, tmp_path: Path) -> None:
    site = serve([lora()])
    checkpoint = inspected()
    part = tmp_path / "cache" / "weights" / checkpoint.checkpoint_id[:2] / f"{checkpoint.checkpoint_id}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(lora_bytes(1, TOLD)[:100])
    assert fetched(checkpoint, tmp_path) == lora_bytes(1, TOLD)
    assert site.requests[-1][3]["Range"] == "bytes=100-"


def test_a_server_that_restarts_at_the_first_byte_is_followed(serve: Serve, tmp_path: Path) -> None:
    class Stubborn(TroubledStore):
        plan = Script([None, "truncate"])

        def store(self, key: str) -> None:
            del self.headers["Range"]
            super().store(key)

    serve([lora()], store_handler=Stubborn)
    assert fetched(inspected(), tmp_path) == lora_bytes(1, TOLD)


def test_bytes_with_another_hash_are_not_kept(serve: Serve, tmp_path: Path) -> None:
    class Store(TroubledStore):
        plan = Script([None, "wrong"])

    serve([lora()], store_handler=Store)
    checkpoint = inspected()
    with pytest.raises(Unavailable, match="is not what was listed: its SHA256"):
        fetched(checkpoint, tmp_path)
    assert not [p for p in (tmp_path / "cache" / "weights").rglob("*") if p.is_file() and p.stat().st_size]
    assert fetched(checkpoint, tmp_path) == lora_bytes(1, TOLD)


def test_a_file_that_has_another_size_now_is_not_fetched(serve: Serve, tmp_path: Path) -> None:
    site = serve([lora()])
    checkpoint = inspected()
    site.contents["10/11"] += b"more"
    with pytest.raises(Unavailable, match=r"were listed\. It was not fetched"):
        fetched(checkpoint, tmp_path)


def test_an_expired_signed_address_is_requested_again(serve: Serve, tmp_path: Path) -> None:
    class Expired(TroubledStore):
        expired = 2

        def store(self, key: str) -> None:
            type(self).expired -= 1
            if self.expired >= 0:
                self.send_bytes(403, b"<Error>Request has expired</Error>", {"Content-Type": "text/xml"})
            else:
                super().store(key)

    serve([lora()], store_handler=Expired)
    assert fetched(inspected(), tmp_path) == lora_bytes(1, TOLD)


def test_a_base_that_is_a_local_folder_is_used_in_place(tmp_path: Path) -> None:
    with DownloadCache(tmp_path) as downloads:
        assert BaseFetcher().fetch(str(tmp_path), downloads) == BaseFiles(tmp_path)


# --- misbehaviour


@pytest.mark.parametrize("fault", [f for f in ALL if f != "wrong"])
def test_a_listing_survives_each_misbehaviour_once(serve: Serve, fault: str) -> None:
    class Troubled(TroubledSite):
        plan = Script([None, fault], part="/api/v1/models?")

    site = serve([lora(n) for n in range(1, 231)], handler=Troubled)
    assert len(revisions(CivitaiSource())) == 230
    assert site.requests


@pytest.mark.parametrize("fault", ["html", "500", "cut", "off-host"])
def test_a_site_that_always_misbehaves_cannot_be_listed_and_is_named(serve: Serve, fault: str) -> None:
    class Troubled(TroubledSite):
        plan = Seeded([fault], share=1.0, times=99)

    site = serve([lora()], handler=Troubled)
    with pytest.raises(
        SourceError, match=f"{site.url} could not be listed: .*\nCheck the network, or CIVITAI_E"
    ):
        revisions(CivitaiSource())


def test_a_site_that_is_another_one_is_a_source_error(serve: Serve) -> None:
    class Other(SiteHandler):
        def models(self) -> None:
            self.send_json(["not", "Civitai"])

    serve([lora()], handler=Other)
    with pytest.raises(SourceError, match="does not answer like Civitai"):
        revisions(CivitaiSource())
    with pytest.raises(SourceError, match="could not be listed"):
        revisions(CivitaiSource(endpoint="http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="not an address"):
        CivitaiSource(endpoint="civitai.com")


def test_a_wait_that_a_site_requires_is_reported_and_kept(serve: Serve) -> None:
    class Limiting(TroubledSite):
        plan = Script(["429-ratelimit"], part="/api/v1/models?")

    serve([lora()], handler=Limiting)
    told: list[str] = []
    with http.on_rate_limit(lambda waiting: told.append(str(waiting))):
        assert revisions(CivitaiSource()) == [10]
    assert "limits requests (api): waiting until" in told[0]


def test_all_entries_are_accounted_for_with_every_misbehaviour_on(serve: Serve) -> None:
    faults = [f for f in ALL if f not in ("wrong", "429-ratelimit")]  # which asks for a second each time

    class Troubled(TroubledSite):
        plan = Seeded(faults, share=0.4, seed=1)
        met: ClassVar[Counter[str]] = Counter()

    class Store(TroubledStore):
        plan = Seeded(faults, share=0.4, seed=2)

    items = generated(300)
    serve(items, handler=Troubled, store_handler=Store, loses=3, states_total=True)
    source = CivitaiSource()
    listed = list(source.list(Query(10_000)))
    assert sorted(int(c.revision) for c in listed) == sorted(i["modelVersions"][0]["id"] for i in items)
    assert (source.listed, source.total_items) == (300, 300)
    with ThreadPoolExecutor(8) as threads:
        ready = list(
            threads.map(
                source.inspect, (c for c in listed if c.inspection_status is InspectionStatus.UNKNOWN)
            )
        )
    assert {c.base for c in ready} == {SD1}
    assert len(ready) > 200
    assert len(Troubled.met) > len(faults) / 2
    assert set(LIMITS) < set(ANSWERS)


def test_five_thousand_generated_models_are_served_cheaply(serve: Serve) -> None:
    serve(generated(5_000), states_total=True, loses=3)
    source = CivitaiSource()
    assert len({c.checkpoint_id for c in source.list(Query(10_000))}) == source.total_items == 5_000


def test_files_in_a_folder_can_be_served(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cat.safetensors").write_bytes(lora_bytes(1, TOLD))
    serve(from_folder(tmp_path))
    assert inspected().repo == "maker1/cat"


def test_listing_and_inspecting_import_no_torch(serve: Serve) -> None:
    serve([lora()])
    script = (
        "import sys; from scanner.hubs.base import Query\n"
        "from scanner.hubs.civitai.source import CivitaiSource\n"
        "from scanner.hubs import http; source = CivitaiSource()\n"
        "(found,) = source.list(Query(5)); assert not {'torch', 'diffusers', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
