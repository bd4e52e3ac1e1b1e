"""Referenced images: they are read where they are, and never silently replaced by something else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.exporters.webdataset import export_webdataset
from foveate.records.images import BadImage
from foveate.records.importers.webdataset import import_webdataset
from foveate.records.writer import CollectionWriter
from naming import raises_naming

OLD = 1_600_000_000_000_000_000


def _file(path: Path, seed: int, *, mtime_ns: int | None = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(seed))
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def _mixed(folder: Path) -> Path:
    """p0, p2 packed; p1 outside and p3 inside the collection referenced."""
    collection = folder / "c"
    with CollectionWriter(collection, images_per_shard=3) as writer:
        places = {1: _file(folder / "mine" / "p1.jpg", 1)}
        for number in range(4):
            if number == 3:
                places[3] = _file(collection / "files" / "p3.jpg", 3)
            assert writer.add(f"p{number}", jpeg(number), location=places.get(number))
    return collection


def test_packed_and_referenced_images_are_read_alike(tmp_path: Path) -> None:
    collection = Collection.open(_mixed(tmp_path))
    assert [collection.image_bytes(row, verify=True) for row in range(4)] == [jpeg(row) for row in range(4)]
    assert collection.index["path"].tolist() == ["", str(tmp_path / "mine" / "p1.jpg"), "", "files/p3.jpg"]
    assert collection.index["mtime_ns"].tolist() == [0, OLD, 0, OLD]
    assert (collection.index["offset"] == -1).tolist() == [False, True, False, True]
    assert not (collection.path / "images" / "00001.tar").exists()
    sizes = zip(collection.index["width"], collection.index["height"], collection.index["length"], strict=True)
    assert list(sizes) == [(48, 32, len(jpeg(row))) for row in range(4)]


def test_the_next_writer_leaves_all_of_it(tmp_path: Path) -> None:
    path = _mixed(tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with CollectionWriter(path) as writer:
        assert not writer.add("p1", jpeg(1), location=tmp_path / "mine" / "p1.jpg")
        assert writer.summary.existing == 1
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.posix
def test_a_vanished_or_changed_file_is_a_bad_image(tmp_path: Path) -> None:
    path = _mixed(tmp_path)
    file = tmp_path / "mine" / "p1.jpg"
    collection = Collection.open(path)

    def reason(*, verify: bool = False) -> str:
        with raises_naming(BadImage, "mine/p1.jpg") as caught:
            collection.image_bytes(1, verify=verify)
        return caught.value.reason

    file.write_bytes(jpeg(1) + b"x")
    assert reason() == "changed file"
    other = bytearray(jpeg(1))
    other[-10] ^= 1
    file.write_bytes(bytes(other))
    assert reason() == "changed file"
    os.utime(file, ns=(OLD, OLD))
    assert collection.image_bytes(1) == bytes(other)  # same length and time: only the hash can tell
    assert reason(verify=True) == "changed file"
    file.write_bytes(jpeg(1))
    assert collection.image_bytes(1) == jpeg(1)  # a touched file
    file.unlink()
    assert reason() == "missing file"
    os.mkfifo(file)
    assert reason() == "changed file"
    file.unlink()
    file.mkdir()
    assert reason() == "changed file"
    shutil.rmtree(tmp_path / "mine")
    (tmp_path / "mine").write_text("a file where the folder was")
    assert reason() == "missing file"


def test_a_file_that_was_young_is_always_compared(tmp_path: Path) -> None:
    file = _file(tmp_path / "young.jpg", 1, mtime_ns=None)
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", jpeg(1), location=file)
    collection = Collection.open(tmp_path / "c")
    assert collection.index["mtime_ns"].tolist() == [0]
    assert collection.image_bytes(0) == jpeg(1)
    stamp = file.stat().st_mtime_ns
    other = bytearray(jpeg(1))
    other[-10] ^= 1
    file.write_bytes(bytes(other))
    os.utime(file, ns=(stamp, stamp))
    with raises_naming(BadImage, "changed"):
        collection.image_bytes(0)


def test_a_moved_collection_takes_its_own_files_and_nothing_else(tmp_path: Path) -> None:
    path = _mixed(tmp_path)
    moved = tmp_path / "elsewhere" / "c"
    shutil.copytree(path, moved)  # copies: all times are new
    collection = Collection.open(moved)
    assert [collection.image_bytes(row) for row in range(4)] == [jpeg(row) for row in range(4)]
    _file(moved / "files" / "p3.jpg", 1, mtime_ns=OLD + 1).write_bytes(jpeg(3)[:-2] + b"\xff\xd8")
    with raises_naming(BadImage, "changed"):
        collection.image_bytes(3)


def test_a_repeated_import_follows_files_that_moved(tmp_path: Path) -> None:
    path = _mixed(tmp_path)
    (tmp_path / "mine").rename(tmp_path / "photos")
    with raises_naming(BadImage, "moved"):
        Collection.open(path).image_bytes(1)
    with CollectionWriter(path) as writer:
        assert not writer.add("p1", jpeg(1), location=tmp_path / "photos" / "p1.jpg")
        assert not writer.add("p0", jpeg(0), location=_file(tmp_path / "photos" / "p0.jpg", 0))
        assert not writer.add("p3", jpeg(4), location=_file(tmp_path / "photos" / "p3.jpg", 4))
    assert writer.summary.further == {"referenced files found at another place": 1}
    collection = Collection.open(path)
    assert [collection.image_bytes(row) for row in range(4)] == [jpeg(row) for row in range(4)]
    assert collection.index["path"].tolist() == ["", str(tmp_path / "photos" / "p1.jpg"), "", "files/p3.jpg"]


def test_a_file_that_changes_while_it_is_taken_in_is_quarantined(tmp_path: Path) -> None:
    file = _file(tmp_path / "p.jpg", 1)
    with CollectionWriter(tmp_path / "c") as writer:
        assert not writer.add("a", jpeg(1) + b"more", location=file)
        assert not writer.add("b", jpeg(2), location=tmp_path / "nowhere.jpg")
        assert writer.add("c", jpeg(1), location=file)
    assert writer.summary.quarantined == {"image: changed file": 1, "image: missing file": 1}


def test_a_path_that_is_no_unicode_is_said(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    file = _file(folder / "p.jpg", 1)
    with CollectionWriter(tmp_path / "c") as writer, raises_naming(UserError, "Unicode", "--reference"):
        writer.add("p", jpeg(1), location=file)


def test_both_sorts_are_exported(tmp_path: Path) -> None:
    export_webdataset(Collection.open(_mixed(tmp_path)), tmp_path / "out")
    import_webdataset(tmp_path / "out", tmp_path / "again")
    again = Collection.open(tmp_path / "again")
    assert again.keys == [f"p{number}" for number in range(4)]
    assert [again.image_bytes(row) for row in range(4)] == [jpeg(row) for row in range(4)]
