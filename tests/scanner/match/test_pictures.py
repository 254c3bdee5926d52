"""The pictures of corpora: from the store's copies on every machine, and lazily. SSCD is the real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers.objects import Objects

from scanner.crawl.worker import SscdEmbedder
from scanner.errors import CorpusError
from scanner.hashing import sha256_of
from scanner.match import corpus
from scanner.match.corpus import Corpus, load_corpora
from scanner.match.pictures import StoredPicture, pictures_of
from scanner.records import Reference, Role, now
from scanner.store.store import Store


@pytest.fixture(scope="module")
def embedder() -> SscdEmbedder:
    return SscdEmbedder()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with Objects() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield Store(f"s3://{running.bucket}/some/store", create=True)


def drawn(path: Path, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A picture of large random patches, unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def added(store: Store, folder: Path, embedder: SscdEmbedder, name: str, role: Role) -> Corpus:
    for _ in corpus.add(store, name, folder, embedder, role):
        pass
    (found,) = load_corpora(store, [name], embedder.descriptor)
    return found


def older(store: Store, tmp_path: Path) -> Store:
    """A store with the references of `store` as they were written before there were copies."""
    made = Store(tmp_path / "older", create=True)
    made.append([replace(row, image_sha256=None) for row in store.select(Reference)])
    return made


def test_pictures_have_the_order_of_the_embeddings_of_their_corpora(
    store: Store, tmp_path: Path, embedder: SscdEmbedder
) -> None:
    for n in range(7):
        drawn(tmp_path / f"mine/{n}.png", n)
        drawn(tmp_path / f"other/{n}.png", n + 4)  # three of them are in both corpora
    mine = added(store, tmp_path / "mine", embedder, "mine", Role.REFERENCE)
    other = added(store, tmp_path / "other", embedder, "other", Role.UNSEEN)
    pictures = pictures_of(store, [other, mine])
    assert [p.corpus for p in pictures] == ["other"] * 7 + ["mine"] * 7
    ids = [*other.reference_ids.tolist(), *mine.reference_ids.tolist()]
    assert [p.reference_id for p in pictures] == [i.decode() for i in ids]
    again = embedder.embed([p.open() for p in pictures])
    stored = np.concatenate([other.embeddings, mine.embeddings])
    assert (again * stored).sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert pictures_of(store, []) == []


@pytest.mark.parametrize("size", [(48, 40), (700, 500), (2000, 300)])
def test_a_picture_is_the_same_without_its_file_and_without_its_copy(
    store: Store, tmp_path: Path, embedder: SscdEmbedder, size: tuple[int, int]
) -> None:
    path = drawn(tmp_path / "mine/a.png", 1, size)
    mine = added(store, path.parent, embedder, "mine", Role.REFERENCE)
    (from_file,) = pictures_of(older(store, tmp_path), [mine])
    assert (from_file.image_sha256, from_file.path) == (None, str(path))
    expected = from_file.open()
    path.unlink()
    (from_store,) = pictures_of(store, [mine])
    found = from_store.open()
    assert found.mode == "RGB"
    assert max(found.size) == min(1024, max(size))
    assert np.array_equal(found, expected)


def test_a_copy_is_used_though_the_newest_row_has_none(
    store: Store, tmp_path: Path, embedder: SscdEmbedder
) -> None:
    path = drawn(tmp_path / "mine/a.png", 1)
    mine = added(store, path.parent, embedder, "mine", Role.REFERENCE)
    (row,) = store.select(Reference)
    store.append([replace(row, image_sha256=None, descriptor="another", path="/moved.png", added_at=now())])
    (picture,) = pictures_of(store, [mine])
    assert (picture.image_sha256, picture.path) == (row.image_sha256, "/moved.png")


def test_a_picture_that_is_neither_in_the_store_nor_on_this_machine_says_what_to_do(
    store: Store, tmp_path: Path, embedder: SscdEmbedder
) -> None:
    path = drawn(tmp_path / "mine/a.png", 1)
    mine = added(store, path.parent, embedder, "mine", Role.REFERENCE)
    (copied,) = pictures_of(store, [mine])
    (uncopied,) = pictures_of(older(store, tmp_path), [mine])
    copy = store.root / f"images/{copied.image_sha256[:2]}/{copied.image_sha256}.png"
    for content in (b"", b"damaged"):
        copy.write_bytes(content)
        assert copied.open().size == (48, 40), "from the file"
    copy.unlink()
    assert copied.open().size == (48, 40)
    drawn(path, 2)  # another picture under the same name
    with pytest.raises(
        CorpusError, match=r"copy of .*a\.png \(corpus mine\) is lost or damaged, and the file"
    ):
        copied.open()
    path.unlink()
    with pytest.raises(CorpusError, match="Run `scanner corpus add mine DIR` again on the machine"):
        uncopied.open()


def test_a_reference_that_left_the_store_is_an_error(
    store: Store, tmp_path: Path, embedder: SscdEmbedder
) -> None:
    mine = added(store, drawn(tmp_path / "mine/a.png", 1).parent, embedder, "mine", Role.REFERENCE)
    empty = Store(tmp_path / "empty", create=True)
    with pytest.raises(CorpusError, match="no longer has all references of the corpus mine"):
        pictures_of(empty, [mine])


def test_a_worker_on_another_machine_reads_the_pictures_from_a_bucket(
    bucket: Store, tmp_path: Path, embedder: SscdEmbedder
) -> None:
    folder = tmp_path / "mine"
    paths = {sha256_of(path): path for path in (drawn(folder / f"{n}.png", n) for n in range(20))}
    mine = added(bucket, folder, embedder, "mine", Role.BACKGROUND)
    expected = {sha256: np.asarray(Image.open(path)) for sha256, path in paths.items()}
    for path in paths.values():
        path.unlink()
    pictures = pictures_of(Store(bucket.uri), [mine])
    assert len(pictures) == 20
    for picture in pictures:
        assert np.array_equal(picture.open(), expected[picture.reference_id])


def test_the_pictures_of_a_large_corpus_are_named_without_opening_one(store: Store) -> None:
    count = 20_000
    ids = [f"{n:064x}" for n in range(count)]
    at = now()
    store.append([
        Reference(i, "mine", Role.REFERENCE, f"/{i}.png", i, 1, 1, "d", (0.5,), at, i) for i in ids
    ])  # fmt: skip
    large = Corpus("mine", Role.REFERENCE, np.array(ids, "S64"), np.zeros((count, 1), np.float32), "")
    pictures = pictures_of(store, [large])
    assert [p.reference_id for p in pictures] == ids
    assert pictures[5] == StoredPicture(ids[5], "mine", f"/{ids[5]}.png", ids[5], store)


def test_pictures_import_no_torch() -> None:
    code = "import sys, scanner.match.pictures; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
