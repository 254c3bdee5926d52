"""What people have: pictures, lists, tables, shards and addresses become a corpus. SSCD is the real one."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import scanner
from PIL import Image
from servers.pictures import Answer, PictureServer

from scanner.crawl.worker import SscdEmbedder
from scanner.errors import CorpusError
from scanner.hashing import sha256_of
from scanner.hubs.pictures import PictureDownloads
from scanner.images import open_image
from scanner.match import adding
from scanner.match.adding import Added, add
from scanner.match.sources import demo, pictures_of_sources
from scanner.match.sources.base import address_of
from scanner.records import Reference, Role
from scanner.store.store import Store

ZOO = Path(__file__).resolve().parents[2] / "zoo/images/background"


@pytest.fixture(scope="module")
def embedder() -> SscdEmbedder:
    return SscdEmbedder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, of which two lie in a folder below."""
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    for name, found in zip(("a.webp", "below/b c.webp", "below/ü.webp"), sorted(ZOO.iterdir()), strict=False):
        shutil.copy(found, root / name)
    return root


@pytest.fixture
def server(folder: Path) -> Iterator[PictureServer]:
    """Serves the three pictures as /0.webp to /2.webp."""
    with PictureServer() as running:
        for n, path in enumerate(sorted(folder.rglob("*.webp"))):
            running.answers[f"/{n}.webp"] = Answer(path.read_bytes())
        yield running


def added(
    store: Store, embedder: SscdEmbedder, *sources: object, again: bool = False, **options: str
) -> Added:
    with PictureDownloads(allow_private=True) as download:
        pictures = pictures_of_sources([str(s) for s in sources], download=download, **options)
        *_, done = add(store, "mine", pictures, embedder, again=again)
    return done


def places(store: Store) -> set[str]:
    return {row.path for row in store.select(Reference)}


def shard(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def test_a_single_picture_is_added_and_the_rest_of_the_corpus_is_not_missed(
    store: Store, folder: Path, embedder: SscdEmbedder
) -> None:
    added(store, embedder, folder)
    done = added(store, embedder, folder / "a.webp")
    assert (done.found, done.unchanged, done.removed) == (1, 1, 0)


def test_a_picture_without_a_suffix_is_one_by_its_content(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path
) -> None:
    (folder / "a.webp").rename(tmp_path / "scan")
    assert added(store, embedder, tmp_path / "scan").added == 1
    (tmp_path / "notes.md").write_text("# no picture")
    with pytest.raises(CorpusError, match=r"notes\.md is not an image .* Pass a folder, a picture, a list"):
        pictures_of_sources([tmp_path / "notes.md"])
    with pytest.raises(CorpusError, match=r"nowhere does not exist\. Pass a folder"):
        pictures_of_sources([tmp_path / "nowhere"])


def test_a_list_names_pictures_relative_to_its_own_folder(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path
) -> None:
    lines = ["pictures/a.webp", "", "pictures/below/b c.webp", str(folder / "below/ü.webp"), "gone.png"]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(lines))
    done = added(store, embedder, tmp_path / "list.txt")
    assert (done.found, done.added) == (4, 3)
    assert done.unusable == [("gone.png", "does not exist")]
    assert places(store) == {str(p) for p in folder.rglob("*.webp")}


def test_a_list_comes_through_standard_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a.webp\nbelow/b c.webp\n"))
    done = scanner("corpus", "add", "mine", "-", "--store", tmp_path / "new")
    assert "mine: 2 added" in done.stderr
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n\n"))
    assert "standard input names no pictures" in scanner("corpus", "add", "x", "-").stderr


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_a_table_has_a_column_of_paths(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path, suffix: str, delimiter: str
) -> None:
    with (tmp_path / f"table{suffix}").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerows(
            [["title", "File_Name"], ["one; two, three", "pictures/a.webp"], ["no", ""], ["short"]]
        )
    done = added(store, embedder, tmp_path / f"table{suffix}")
    assert (done.found, done.added) == (3, 1)
    assert [reason for _, reason in done.unusable] == ["names no path and no address"] * 2


def test_json_lines_have_a_field_of_paths(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path
) -> None:
    rows = [{"image": "pictures/a.webp", "n": 1}, {"n": 2}, {"image": ["pictures/b"]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = added(store, embedder, tmp_path / "rows.jsonl")
    assert (done.found, done.added, len(done.unusable)) == (3, 1, 2)
    (tmp_path / "bad.jsonl").write_text('{"image": "a.png"}\n{"image": ')
    with pytest.raises(CorpusError, match=r"bad\.jsonl has no JSON on line 2"):
        pictures_of_sources([tmp_path / "bad.jsonl"])


def test_a_parquet_file_names_or_holds_the_pictures(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path
) -> None:
    paths = sorted(folder.rglob("*.webp"))
    named = pa.table({"file": [f"pictures/{p.relative_to(folder)}" for p in paths]})
    pq.write_table(named, tmp_path / "named.parquet")
    assert added(store, embedder, tmp_path / "named.parquet").added == 3
    other = Store(tmp_path / "other", create=True)
    records = [{"bytes": p.read_bytes(), "path": p.name} for p in paths] * 20
    records[1] = {"bytes": None, "path": "b"}
    pq.write_table(
        pa.table({"image": records, "label": [0] * 60}), tmp_path / "held.parquet", row_group_size=7
    )
    done = added(other, embedder, tmp_path / "held.parquet")
    assert (done.found, done.added, done.repeated) == (60, 3, 56)
    assert done.unusable == [("row 2 of held.parquet", "has no picture")]
    assert places(other) == {f"{tmp_path}/held.parquet#{row}" for row in (0, 2, 4)}
    assert {row.reference_id for row in other.select(Reference)} == {sha256_of(p) for p in paths}


def test_a_column_is_asked_for_where_none_or_several_fit(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("title,where\na,b\n")
    with pytest.raises(CorpusError, match=r"(?s)It has: title, where.*--column"):
        pictures_of_sources([tmp_path / "none.csv"])
    (tmp_path / "two.csv").write_text("url,path\nhttps://a/b,c.png\n")
    with pytest.raises(CorpusError, match=r"(?s)several columns .*: url, path\..*--column"):
        pictures_of_sources([tmp_path / "two.csv"])
    (found,) = pictures_of_sources([tmp_path / "none.csv"], column="where").items
    assert found.place == str(tmp_path / "b")
    with pytest.raises(CorpusError, match=r"has no column place\. It has: title, where"):
        pictures_of_sources([tmp_path / "none.csv"], column="place")
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(CorpusError, match=r"the column image .* holds int64, which is neither"):
        pictures_of_sources([tmp_path / "numbers.parquet"])
    for name in ("x.parquet", "x.tar"):
        (tmp_path / name).write_bytes(b"neither")
        with pytest.raises(CorpusError, match=r"cannot be read as"):
            pictures_of_sources([tmp_path / name])


def test_a_shard_is_read_where_it_lies(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {f"{n:03}.webp": p.read_bytes() for n, p in enumerate(sorted(folder.rglob("*.webp")))}
    path = shard(tmp_path / "shard-0.tar", {"000.txt": b"caption", **content, "deep/003.png": b"no picture"})
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    pictures = pictures_of_sources(["shard-0.tar"])
    assert set(tmp_path.rglob("*")) == before
    *_, done = add(store, "mine", pictures, embedder)
    assert (done.found, done.added) == (4, 3)
    assert done.unusable == [("shard-0.tar#deep/003.png", "is not an image in a supported format")]
    assert places(store) == {f"{path}#{name}" for name in content}
    assert added(store, embedder, path).unchanged == 3
    del content["000.webp"]
    shard(path, content)
    assert added(store, embedder, path).removed == 1


def test_a_hostile_shard_reaches_no_file_and_no_memory(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as opened:
        for name, kind, link in (
            ("link.png", tarfile.SYMTYPE, str(folder / "a.webp")),
            ("hard.png", tarfile.LNKTYPE, "/etc/passwd"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            opened.addfile(member)
        escaping = tarfile.TarInfo("../../../../tmp/escaped.png")
        opened.addfile(escaping)
    (item,) = pictures_of_sources([path]).items
    assert item.label == "hostile.tar#../../../../tmp/escaped.png"
    assert callable(item.content)
    assert item.content() == b""
    huge = tarfile.TarInfo("a")
    huge.type, huge.size = tarfile.XHDTYPE, 2**32  # an extended header of 4 GB, which tarfile reads whole
    with path.open("wb") as file:
        file.write(huge.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(2**32 + 2048)
    with pytest.raises(CorpusError, match="one of its headers is too large"):
        pictures_of_sources([path])
    large = tarfile.TarInfo("b.png")
    large.size = 2**32
    with path.open("wb") as file:
        file.write(large.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(2**32 + 2048)
    (item,) = pictures_of_sources([path]).items
    assert callable(item.content)
    with pytest.raises(CorpusError, match="is too large"):
        item.content()


def test_addresses_are_downloaded_once(
    store: Store, server: PictureServer, embedder: SscdEmbedder, tmp_path: Path
) -> None:
    names = [f"{server.url}/{n}.webp?size=full&X-Amz-Signature=secret" for n in range(3)]
    (tmp_path / "list.txt").write_text("\n".join([*names, names[0], f"{server.url}/later.webp"]))
    done = added(store, embedder, tmp_path / "list.txt")
    assert (done.found, done.added, done.repeated, done.not_downloaded) == (5, 3, 1, 1)
    assert "answered 404" in done.unusable[0][1]
    assert places(store) == {f"{server.url}/{n}.webp?size=full" for n in range(3)}
    server.answers["/later.webp"] = server.answers.pop("/0.webp")
    done = added(store, embedder, tmp_path / "list.txt")
    assert (done.added, done.unchanged, done.repeated) == (0, 3, 2), "the late one is a copy of the first"
    assert server.asked == {"/0.webp": 1, "/1.webp": 1, "/2.webp": 1, "/later.webp": 2}
    added(store, embedder, tmp_path / "list.txt", again=True)
    assert server.asked["/1.webp"] == 2


def test_the_command_refuses_private_addresses_unless_they_are_allowed(
    server: PictureServer, tmp_path: Path
) -> None:
    words = ("corpus", "add", "mine", f"{server.url}/0.webp", "--store", tmp_path / "new")
    refused = scanner(*words)
    assert refused.returncode == 2
    assert "--allow-private-addresses permits it" in refused.stderr
    assert not server.asked
    assert "mine: 1 added" in scanner(*words, "--allow-private-addresses").stderr


def test_several_sources_make_one_corpus(
    folder: Path, server: PictureServer, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "list.csv").write_text(f"url\n{server.url}/2.webp\n{server.url}/gone.webp\n")
    sources = (folder / "a.webp", tmp_path / "list.csv", "--allow-private-addresses")
    done = scanner("corpus", "add", "mine", *sources, "--store", tmp_path / "new")
    assert "mine: 2 added, 0 unchanged, 1 not usable" in done.stderr
    assert "1 was not downloaded. The same command tries again." in done.stderr


def test_what_has_to_be_fetched_or_unpacked_first_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"shard\.tar is not the address of a picture\. Download that file"):
        pictures_of_sources(["https://example.com/shard.tar?token=secret"])
    (broken,) = pictures_of_sources(["http://[/a.png"], download=lambda url: b"").items
    assert broken.place == "http://[/a.png"
    (tmp_path / "all.ZIP").write_bytes(b"PK")
    with pytest.raises(CorpusError, match=r"all\.ZIP is a compressed archive\. Unpack it"):
        pictures_of_sources([tmp_path / "all.ZIP"])


def test_secrets_of_an_address_are_not_stored() -> None:
    assert address_of("HTTPS://me:password@a.b:8/c.png?id=1&token=x&X-Goog-Signature=y#z") == (
        "https://a.b:8/c.png?id=1"
    )


def test_a_folder_tells_what_it_does_not_read(folder: Path, tmp_path: Path) -> None:
    (folder / "photo.HEIC").write_bytes(b"x")
    done = scanner("corpus", "add", "mine", folder, "--store", tmp_path / "new")
    assert "1 files are of kinds that are not read (photo.HEIC)" in done.stderr
    (only := tmp_path / "only").mkdir()
    (only / "shard.tar").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"1 files with the endings \.tar\. Name such files themselves"):
        pictures_of_sources([only])


def test_names_that_are_no_utf_8_and_links_that_lead_in_circles_do_not_stop_adding(
    store: Store, folder: Path, embedder: SscdEmbedder
) -> None:
    (folder / "a.webp").rename(folder / os.fsdecode(b"caf\xe9.webp"))
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "below/up").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    done = added(store, embedder, folder)
    assert (done.found, done.added) == (5, 3)
    assert {label for label, _ in done.unusable} == {"circle.png", "pipe.png"}
    assert f"{folder}/caf\\xe9.webp" in places(store)


def test_an_interrupted_add_stores_what_it_embedded(
    store: Store, folder: Path, embedder: SscdEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "BATCH_IMAGES", 1)
    running = add(store, "mine", folder, embedder)
    next(running)
    with pytest.raises(KeyboardInterrupt):
        running.throw(KeyboardInterrupt)
    assert len(store.select(Reference)) == 1


KILLED = """
from scanner.cli import main
from scanner.crawl import worker
from scanner.match import adding
adding.PART_ROWS = adding.BATCH_IMAGES = 4
embed = worker.SscdEmbedder.embed
def logged(self, images):
    found = embed(self, images)
    with open({log!r}, "a") as file:
        file.write("x" * len(images))
    return found
worker.SscdEmbedder.embed = logged
main()
"""


def test_a_killed_process_loses_at_most_what_it_had_not_written(tmp_path: Path, store: Store) -> None:
    log, many = tmp_path / "embedded", tmp_path / "many"
    many.mkdir()
    for path in sorted(ZOO.iterdir())[:100]:
        (many / path.name).symlink_to(path)
    words = ["corpus", "add", "bg", str(many), "--background", "--store", str(store.root)]
    with subprocess.Popen([sys.executable, "-c", KILLED.format(log=str(log)), *words]) as process:
        ends = time.monotonic() + 60
        while len(store.select(Reference)) < 20:
            assert time.monotonic() < ends
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    stored, embedded = len(store.select(Reference)), log.stat().st_size
    assert embedded - stored <= 8
    *_, done = add(store, "bg", many, SscdEmbedder(), Role.BACKGROUND)
    assert (done.unchanged, done.added) == (stored, done.found - stored)
    assert len(store.query("SELECT * FROM all_references")) == done.found


def test_the_background_of_the_demo_comes_with_the_package(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = demo.demo_background().items
    assert len(items) == 400
    for item in items:
        assert callable(item.content)
        assert open_image(io.BytesIO(item.content())).size == (64, 64)
    with tarfile.open(demo.SHARD) as opened:
        assert {"NOTICE.md", "LICENSES.md"} <= set(opened.getnames())
    few = {path.name: path.read_bytes() for path in folder.rglob("*.webp")}
    monkeypatch.setattr(demo, "SHARD", shard(tmp_path / "few.tar", few))  # 400 take some seconds
    place = ("--store", tmp_path / "new")
    done = scanner("corpus", "add", "bg", "--from-demo", *place)
    assert "bg: 3 added, 0 unchanged, 0 not usable; a background" in done.stderr
    assert "a flag of such images that rests on them is no evidence" in done.stderr
    for words in (["--unseen"], [str(ZOO)], ["--column", "x"]):
        refused = scanner("corpus", "add", "b", "--from-demo", *words)
        assert "--from-demo is a background of its own" in refused.stderr
    nothing = scanner("corpus", "add", "x", *place)
    assert (nothing.returncode, "Pass what to add: a folder" in nothing.stderr) == (2, True)


def test_pictures_of_a_damaged_download_are_not_kept_half(
    store: Store, server: PictureServer, embedder: SscdEmbedder
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    server.answers["/cut.png"] = Answer(stream.getvalue()[:100])
    done = added(store, embedder, f"{server.url}/cut.png", f"{server.url}/0.webp")
    assert done.added == 1
    assert "truncated" in done.unusable[0][1]
