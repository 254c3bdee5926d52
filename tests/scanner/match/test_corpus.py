"""Corpora: reading images safely, embedding them once, and giving them back. SSCD is the real one."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from scanner.cli import cli
from scanner.crawl.worker import SscdEmbedder
from scanner.errors import ConfigError, CorpusError
from scanner.hashing import sha256_of
from scanner.images import open_image
from scanner.match import adding, corpus
from scanner.match.copies import COPY_SIDE, copy_of
from scanner.match.corpus import Added, load_corpora, summaries
from scanner.records import Reference, Role
from scanner.store.store import Store


@pytest.fixture(scope="module")
def embedder() -> SscdEmbedder:
    return SscdEmbedder()


def picture(path: Path, seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Path:
    """A picture of large random patches, unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures in two formats, one below another folder, and a text."""
    root = tmp_path / "pictures"
    picture(root / "a.png", 1)
    picture(root / "b.JPG", 2)
    picture(root / "below/c.webp", 3)
    (root / "notes.txt").write_text("no picture")
    return root


def add(
    store: Store, folder: Path, embedder: SscdEmbedder, name: str = "mine", role: Role = Role.REFERENCE
) -> Added:
    *_, done = corpus.add(store, name, folder, embedder, role)
    return done


def bomb(path: Path, side: int = 30_000) -> Path:
    """A PNG of a few bytes that claims side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_every_image_of_a_folder_becomes_a_reference(
    store: Store, folder: Path, embedder: SscdEmbedder
) -> None:
    done = add(store, folder, embedder)
    assert (done.found, done.added, done.unusable) == (3, 3, [])
    rows = store.select(Reference, "ORDER BY path")
    assert [r.path for r in rows] == [str(folder / n) for n in ("a.png", "b.JPG", "below/c.webp")]
    assert rows[0].reference_id == rows[0].sha256 == sha256_of(folder / "a.png")
    assert (rows[0].width, rows[0].height, rows[0].descriptor) == (48, 40, embedder.descriptor)
    assert np.linalg.norm(rows[0].embedding) == pytest.approx(1, abs=1e-4)


def test_adding_again_embeds_only_what_is_new(store: Store, folder: Path, embedder: SscdEmbedder) -> None:
    add(store, folder, embedder)
    assert (again := add(store, folder, embedder)).added == 0
    assert again.unchanged == 3
    picture(folder / "d.png", 4)
    (folder / "a.png").rename(folder / "renamed.png")
    (folder / "b.JPG").unlink()
    done = add(store, folder, embedder)
    assert (done.added, done.unchanged, done.removed) == (1, 2, 1)
    assert len(store.select(Reference)) == 4  # what left the folder stays in the corpus


def test_a_copy_counts_once(store: Store, folder: Path, embedder: SscdEmbedder) -> None:
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    done = add(store, folder, embedder)
    assert (done.added, done.repeated) == (3, 1)


def test_an_interrupted_add_keeps_what_was_written(
    store: Store, folder: Path, embedder: SscdEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "PART_ROWS", 1)
    monkeypatch.setattr(adding, "BATCH_IMAGES", 1)
    next(corpus.add(store, "mine", folder, embedder))
    assert (done := add(store, folder, embedder)).unchanged == 1
    assert done.added == 2


def test_the_store_keeps_a_copy_of_each_picture(store: Store, folder: Path, embedder: SscdEmbedder) -> None:
    picture(folder / "wide.png", 7, size=(3000, 1500))
    add(store, folder, embedder)
    for row in store.select(Reference):
        assert row.image_sha256 is not None
        copy = Image.open(io.BytesIO(store.image(row.image_sha256)))
        if row.width == 3000:
            assert (copy.format, copy.size) == ("WEBP", (1024, 512))
        else:
            assert (copy.format, copy.size) == ("PNG", (48, 40))
            assert np.array_equal(copy, open_image(Path(row.path)))
        path = store.root / f"images/{row.image_sha256[:2]}/{row.image_sha256}.png"
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_copy_of_a_large_picture_looks_like_it(tmp_path: Path) -> None:
    original = open_image(picture(tmp_path / "a.png", 1, size=(COPY_SIDE, 600)))
    copy = open_image(io.BytesIO(copy_of(original)))
    assert copy.size == original.size
    error = np.abs(np.asarray(copy, np.float32) - np.asarray(original, np.float32))
    assert error.mean() < 3  # of 255


@pytest.mark.parametrize("size", [(40, 30), (900, 700)])
def test_a_copy_keeps_no_metadata_of_the_original_file(tmp_path: Path, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    original = Image.new("RGB", size, "red")
    original.save(tmp_path / "a.jpg", exif=exif, icc_profile=b"a profile with a name", comment=b"a comment")
    copy = copy_of(open_image(tmp_path / "a.jpg"))
    assert b"profile" not in copy
    assert b"taken" not in copy
    assert b"comment" not in copy
    assert not Image.open(io.BytesIO(copy)).getexif()


def test_a_reference_without_a_copy_gets_one_and_is_not_embedded_again(
    store: Store, folder: Path, embedder: SscdEmbedder, tmp_path: Path
) -> None:
    add(store, folder, embedder)
    rows = store.select(Reference)
    older = Store(tmp_path / "older", create=True)
    marked = (1.0, *[0.0] * 511)  # an embedding that no picture has
    before = timedelta(days=1)
    older.append(
        [replace(r, image_sha256=None, embedding=marked, added_at=r.added_at - before) for r in rows]
    )
    (corpus_before,) = load_corpora(older, None, embedder.descriptor)
    picture(folder / "new.png", 8)
    done = add(older, folder, embedder)
    assert (done.found, done.added, done.unchanged) == (4, 1, 3)
    copied = {r.reference_id: r for r in older.select(Reference)}
    assert len(copied) == 4
    for row in rows:
        assert copied[row.reference_id].embedding == marked
        assert copied[row.reference_id].image_sha256 == row.image_sha256
    stored = older.query("SELECT * FROM all_references")
    assert len(stored) == 3 + 4
    assert add(older, folder, embedder).unchanged == 4
    assert len(older.query("SELECT * FROM all_references")) == len(stored), "every reference has its copy"
    (corpus_after,) = load_corpora(older, None, embedder.descriptor)
    assert len(corpus_after.embeddings) == len(corpus_before.embeddings) + 1


def test_unusable_images_are_counted_with_a_reason(
    store: Store, folder: Path, embedder: SscdEmbedder
) -> None:
    (folder / "text.png").write_text("<svg/>")
    (folder / "empty.gif").touch()
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
    picture(folder / "strip.png", 5, size=(2_000, 10))
    bomb(folder / "bomb.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "b.bmp").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    done = add(store, folder, embedder)
    assert done.added == 3
    told = dict(done.unusable)
    assert told.keys() == {"text.png", "empty.gif", "cut.png", "strip.png", "bomb.png", "gone.png", "b.bmp"}
    assert "decompression bomb" in told["bomb.png"]
    assert told["empty.gif"] == "is empty"
    assert told["gone.png"] == "does not exist"
    assert "truncated" in told["cut.png"]


def test_a_folder_without_usable_images_is_an_error(
    store: Store, tmp_path: Path, embedder: SscdEmbedder
) -> None:
    for place, words in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no images")):
        with pytest.raises(CorpusError, match=words):
            add(store, place, embedder)
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(CorpusError, match=r"no usable image: text\.png is not an image"):
        add(store, tmp_path, embedder)


def test_an_image_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    upright = Image.new("RGB", (30, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    upright.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 30)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x8000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = picture(tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}", 1, mode=mode)
    assert open_image(path).mode == "RGB"


def test_a_corpus_has_one_role(store: Store, folder: Path, embedder: SscdEmbedder) -> None:
    add(store, folder, embedder)
    with pytest.raises(CorpusError, match="has the role reference, and cannot also have the role background"):
        add(store, folder, embedder, role=Role.BACKGROUND)


def test_corpora_come_back_with_their_embeddings(store: Store, folder: Path, embedder: SscdEmbedder) -> None:
    add(store, folder, embedder)
    add(store, folder / "below", embedder, "other", Role.BACKGROUND)
    mine, other = load_corpora(store, None, embedder.descriptor)
    assert (mine.name, mine.role, other.name, other.role) == ("mine", "reference", "other", "background")
    assert mine.reference_ids.tolist() == sorted(mine.reference_ids.tolist())
    assert mine.embeddings.shape == (3, 512)
    assert mine.embeddings.dtype == np.float32
    row = mine.reference_ids.tolist().index(other.reference_ids[0])
    assert mine.embeddings[row] @ other.embeddings[0] == pytest.approx(1, abs=1e-4)
    assert [c.name for c in load_corpora(store, ["other"], embedder.descriptor)] == ["other"]


def test_a_changed_corpus_has_another_digest(store: Store, folder: Path, embedder: SscdEmbedder) -> None:
    add(store, folder, embedder)
    (before,) = load_corpora(store, None, embedder.descriptor)
    (same,) = load_corpora(store, ["mine"], embedder.descriptor)
    picture(folder / "d.png", 4)
    add(store, folder, embedder)
    (after,) = load_corpora(store, None, embedder.descriptor)
    assert before.digest == same.digest != after.digest


def test_an_unknown_corpus_and_another_descriptor_are_errors(
    store: Store, folder: Path, embedder: SscdEmbedder
) -> None:
    assert load_corpora(store, None, embedder.descriptor) == []
    with pytest.raises(CorpusError, match="The store has no corpus yet"):
        load_corpora(store, ["mine"], embedder.descriptor)
    add(store, folder, embedder)
    with pytest.raises(CorpusError, match=r"no corpus yours\. Existing corpora: mine"):
        load_corpora(store, ["yours"], embedder.descriptor)
    with pytest.raises(CorpusError, match="embedded with another descriptor"):
        load_corpora(store, None, "another")


def test_the_command_adds_and_lists(folder: Path, tmp_path: Path) -> None:
    (folder / "text.png").write_text("text")
    place = ["--store", str(tmp_path / "new")]
    added = CliRunner().invoke(cli, ["corpus", "add", "bg", str(folder), "--background", *place])
    assert added.exit_code == 0
    assert added.stdout == ""
    assert "bg: 3 added, 0 unchanged, 1 not usable" in added.stderr
    assert "text.png is not an image" in added.stderr
    listed = CliRunner().invoke(cli, ["corpus", "list", "--json", *place])
    (row,) = json.loads(listed.stdout)
    assert (row["name"], row["role"], row["images"]) == ("bg", "background", 3)
    table = CliRunner().invoke(cli, ["corpus", "list", *place])
    assert "background" in table.stdout
    assert summaries(Store(tmp_path / "new"))[0]["name"] == "bg"


def test_the_command_adds_unseen_works_of_the_owner(folder: Path, tmp_path: Path) -> None:
    place = ["--store", str(tmp_path / "new")]
    added = CliRunner().invoke(cli, ["corpus", "add", "drawer", str(folder), "--unseen", *place])
    assert added.exit_code == 0
    assert "drawer: 3 added, 0 unchanged, 0 not usable; unseen works of the owner" in added.stderr
    assert "unseen" in CliRunner().invoke(cli, ["corpus", "list", *place]).stdout
    (row,) = json.loads(CliRunner().invoke(cli, ["corpus", "list", "--json", *place]).stdout)
    assert (row["name"], row["role"], row["images"]) == ("drawer", "unseen", 3)


def test_the_command_tells_which_images_are_references_and_a_part_of_the_null(
    folder: Path, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "new")]
    (alone := tmp_path / "alone").mkdir()
    shutil.copy(sorted(folder.iterdir())[0], alone)
    first = CliRunner().invoke(cli, ["corpus", "add", "bg", str(folder), "--background", *place])
    assert "as well" not in first.stderr
    assert (
        "as well"
        not in CliRunner().invoke(cli, ["corpus", "add", "z", str(alone), "--unseen", *place]).stderr
    )
    added = CliRunner().invoke(cli, ["corpus", "add", "mine", str(alone), *place])
    assert "1 of the images is in bg as well." in added.stderr
    assert "1 of the images is in z as well." in added.stderr


def test_a_corpus_is_not_a_background_and_unseen_at_once(folder: Path, tmp_path: Path) -> None:
    words = ["corpus", "add", "x", str(folder), "--background", "--unseen", "--store", str(tmp_path / "new")]
    error = CliRunner().invoke(cli, words).exception
    assert isinstance(error, ConfigError)
    assert "--background and --unseen exclude each other" in str(error)
    assert not (tmp_path / "new").exists()


def test_a_wrong_folder_creates_no_store(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["corpus", "add", "x", str(tmp_path), "--store", str(tmp_path / "new")])
    assert isinstance(result.exception, CorpusError)
    assert not (tmp_path / "new").exists()


def test_help_imports_no_torch_ray_or_store() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from scanner.cli import cli\n"
        "CliRunner().invoke(cli, ['corpus', 'add', '--help'])\n"
        "print([m for m in ('torch', 'ray', 'pyarrow', 'duckdb', 'diffusers') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
