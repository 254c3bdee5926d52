"""The gates before a pickle, each with a pickle that it stops, and one that passes them all."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from servers.civitai import Civitai as Site
from servers.civitai import file_entry, model
from servers.hub import Hub
from servers.trouble import lora_shapes, write_card

from finextract.weights.formats import read_header
from scanner.errors import Skipped
from scanner.hashing import sha256_of
from scanner.hubs import addresses
from scanner.hubs.base import Query
from scanner.hubs.cache import DownloadCache
from scanner.hubs.civitai.source import CivitaiSource
from scanner.hubs.huggingface.source import HuggingFaceSource
from scanner.hubs.pickles import check_archive, check_globals, convert, isolation_error, scannable
from scanner.records import InspectionStatus

isolating = pytest.mark.skipif(isolation_error() is not None, reason="no process can be isolated here")


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def archive(path: Path, content: bytes, *, compression: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        for name, member in more.items():
            file.writestr(f"archive/{name}", member)
    return path


@isolating
def test_a_plain_torch_checkpoint_comes_out_as_the_same_tensors(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    tensors |= {"transposed": tensors["a.weight"].T, "shared": tensors["a.weight"][1], "": torch.zeros(0, 3)}
    tensors |= {
        "scalar": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "\u00e9\n": torch.ones(1).double(),
    }
    tensors |= {
        "small": torch.tensor([-1.5], dtype=torch.bfloat16),
        "bytes": torch.tensor([7], dtype=torch.uint8),
    }
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "model.ckpt")
    convert(tmp_path / "model.ckpt", tmp_path / "model.safetensors", "o/a/model.ckpt")
    with safe_open(tmp_path / "model.safetensors", "pt") as made:
        found = {name: made.get_tensor(name) for name in made.keys()}  # noqa: SIM118
    assert {k: (v.dtype, v.shape, v.tolist()) for k, v in found.items()} == {
        k: (v.dtype, v.shape, v.tolist()) for k, v in tensors.items()
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ckpt", "model.safetensors"]


@isolating
def test_a_checkpoint_without_tensors_is_skipped(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "model.ckpt")
    with pytest.raises(Skipped, match="no tensors by name"):
        convert(tmp_path / "model.ckpt", tmp_path / "out.safetensors", "o/a")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {mark}",), "system"),
        (eval, ("open('{mark}', 'w')",), "eval"),
        (exec, ("open('{mark}', 'w')",), "exec"),
        (open, ("{mark}", "w"), "open"),
        (getattr, (os, "system"), "getattr"),
        (torch.load, ("{mark}",), "load"),
    ],
)
def test_a_pickle_that_would_call_something_is_named_and_never_opened(
    function: Any, arguments: tuple[Any, ...], named: str, tmp_path: Path
) -> None:
    mark = tmp_path / "was-run"
    given = [a.format(mark=mark) if isinstance(a, str) else "os" for a in arguments]
    path = archive(tmp_path / "evil.ckpt", pickle.dumps(Calls(function, *given), protocol=2))
    with pytest.raises(Skipped, match=named):
        convert(path, tmp_path / "out.safetensors", "o/a")
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_no_torch_archive_is_skipped(tmp_path: Path) -> None:
    numbers = pickle.dumps({"w": [0.0]}, protocol=2)
    (tmp_path / "bare.pt").write_bytes(numbers)
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    packed = archive(tmp_path / "packed.pt", numbers * 999, compression=zipfile.ZIP_DEFLATED)
    double = archive(tmp_path / "double.pt", numbers, **{"sub/data.pkl": numbers})
    for path, why in (
        (tmp_path / "bare.pt", "outside a torch archive"),
        (tmp_path / "text.pt", "outside a torch archive"),
        (packed, "compressed"),
        (double, "exactly one data.pkl"),
    ):
        with pytest.raises(Skipped, match=why):
            check_archive(path, "o/a")


def test_an_archive_that_claims_more_than_its_size_is_skipped(tmp_path: Path) -> None:
    path = archive(tmp_path / "bomb.pt", b"x" * 100)
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 24 : start + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(Skipped, match="more than its own size"):
        check_archive(path, "o/a")


def test_a_pickle_that_cannot_be_parsed_is_not_taken_for_harmless(tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="cannot read"):
        check_globals(archive(tmp_path / "odd.pt", b"\xffno pickle at all"), "o/a")


@isolating
def test_a_pickled_lora_is_scanned_where_that_is_allowed(tmp_path: Path) -> None:
    """From a hub: its id is the pickle's own SHA256, what is fetched is safetensors of the same tensors."""
    shapes = lora_shapes()
    write_card(tmp_path / "a", base_model="lab/base", instance_prompt="a sks", tags=["lora", "text-to-image"])
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "a" / "lora.bin")
    with Hub({"o/a": tmp_path / "a"}) as hub:
        (refused,) = HuggingFaceSource(endpoint=hub.url).list(Query(9))
        assert refused.inspection_status is InspectionStatus.SKIPPED
        assert "--allow-pickle" in refused.reason
        source = HuggingFaceSource(endpoint=hub.url, allow_pickle=True)
        (listed,) = source.list(Query(9))
        checkpoint = source.inspect(listed)
        assert (checkpoint.inspection_status, checkpoint.caption) == (InspectionStatus.READY, "a sks")
        assert checkpoint.checkpoint_id == sha256_of(tmp_path / "a" / "lora.bin")
        with DownloadCache(tmp_path / "cache") as downloads:
            weights = source.fetch(checkpoint, tmp_path / "into", downloads)
            assert {n: t.shape for n, t in read_header(weights).tensors.items()} == shapes


@isolating
def test_a_pickled_lora_on_civitai_is_scanned_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = lora_shapes()
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "lora.pt")
    content = (tmp_path / "lora.pt").read_bytes()
    pickled = {"metadata": {"format": "PickleTensor"}}
    evil = archive(tmp_path / "evil.ckpt", pickle.dumps(Calls(os.system, "true"), protocol=2)).read_bytes()
    items = [
        model(1, "plain", files=[file_entry(11, "lora.pt", content, **pickled)]),
        model(2, "evil", files=[file_entry(21, "../evil.ckpt", evil, **pickled)]),
    ]
    with Site(items) as site:
        addresses.trust(site.store_url)
        refused = list(CivitaiSource(endpoint=site.url).list(Query(9)))
        assert all("--allow-pickle" in c.reason for c in refused)
        source = CivitaiSource("lab/base", site.url, allow_pickle=True)
        bad, good = map(source.inspect, source.list(Query(9)))
        assert (good.inspection_status, good.base, good.file) == (
            InspectionStatus.READY,
            "lab/base",
            "lora.pt",
        )
        assert good.size_bytes == len(content)
        with DownloadCache(tmp_path / "cache") as downloads:
            weights = source.fetch(good, tmp_path / "into", downloads)
            assert {n: t.shape for n, t in read_header(weights).tensors.items()} == shapes
            with pytest.raises(Skipped, match=r"would call .*system"):
                source.fetch(bad, tmp_path / "into", downloads)


@isolating
def test_a_pickle_of_another_kind_is_skipped_after_it_was_converted(tmp_path: Path) -> None:
    torch.save({"encoder.conv_in.weight": torch.ones(2), "decoder.w": torch.ones(2)}, tmp_path / "vae.pt")
    with pytest.raises(Skipped, match=r"holds a VAE|not known"):
        scannable(tmp_path / "vae.pt", tmp_path / "into", "vae.pt", "o/a/vae.pt")
