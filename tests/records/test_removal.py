"""Taking images out: hidden or gone from the folder, never taken in again, and nothing else is touched."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_images import jpeg

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.records import tables
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.exporters.webdataset import export_webdataset
from foveate.records.images import BadImage
from foveate.records.record import Caption, Region
from foveate.records.removal import read_keys, remove_images, select_keys
from foveate.records.splits import assign_splits
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming

COUNT = 10
SEED = 1  # of which the two groups fall into different splits


def _collection(folder: Path) -> Path:
    """Ten images in shards of four; p3 and p6 are referenced; captions of the shards and added ones; splits."""
    path = folder / "c"
    with CollectionWriter(path, images_per_shard=4, source="tests") as writer:
        for number in range(COUNT):
            location = folder / f"p{number}.jpg"
            if number in (3, 6):
                location.write_bytes(jpeg(number))
                os.utime(location, (1e9, 1e9))
            writer.add(
                f"p{number}",
                jpeg(number),
                captions=[Caption(f"words of {number}")],
                regions=[Region(Box(0, 0, 0.5, 0.5), f"thing {number}")],
                labels={"color": "red" if number % 2 else "blue"},
                group=f"g{number // 5}",
                extra={"masks": [{"counts": [number]}]},
                location=location if number in (3, 6) else None,
            )
    with CollectionWriter(path) as writer:
        rows = [{"key": f"p{number}", "text": f"later words of {number}"} for number in range(COUNT)]
        writer.annotate("captions", rows, Provenance("later"))
    assign_splits(path, fractions={"train": 0.5, "test": 0.5}, distance=0, seed=SEED)
    (path / "cache" / "features-abc").mkdir(parents=True)
    (path / "cache" / "features-abc" / "000.npy").write_bytes(b"features")
    return path


def _check_others(path: Path, gone: set[int]) -> None:
    collection = Collection.open(path)
    left = [number for number in range(COUNT) if number not in gone]
    assert collection.keys == [f"p{number}" for number in left]
    assert collection.removed == {f"p{number}" for number in gone}
    for row, number in enumerate(left):
        assert collection.image_bytes(row, verify=True) == jpeg(number)
        assert [caption.text for caption in collection.read_captions(row)] == [
            f"words of {number}",
            f"later words of {number}",
        ]
        assert collection.read_regions(row)[0].phrase == f"thing {number}"
        assert collection.record(row).split in ("train", "test")
    assert read_json(path / "collection.json")["images"] == len(left)


def _traces(path: Path, number: int) -> list[str]:
    """Files that still have the image's bytes, or its key or words in a table (tombstones aside)."""
    found = []
    for file in path.rglob("*"):
        if file.suffix == ".tar" and jpeg(number) in file.read_bytes():
            found.append(file.name)
        if file.suffix == ".parquet" and file.name not in ("removed.parquet", "quarantine.parquet"):
            text = str(pq.read_table(file).to_pylist())
            found += [str(file)] * (f"'p{number}'" in text or f"words of {number}'" in text)
    return found


def test_bytes_and_rows_are_gone_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    assert len(_traces(path, 1)) > 5
    summary = remove_images(path, ["p1", "p3", "p5"], reason="asked for")
    assert summary.removed == ["p1", "p3", "p5"]
    assert summary.purged is not None
    assert (summary.purged.packed, summary.purged.referenced, summary.purged.shards) == (2, 1, 2)
    assert summary.purged.bytes == len(jpeg(1)) + len(jpeg(5))
    assert summary.purged.rows == {"captions": 6, "regions": 3, "labels": 3, "masks": 3, "splits": 3}
    assert [_traces(path, number) for number in (1, 3, 5)] == [[], [], []]
    assert summary.purged.cache_cleared
    assert not list((path / "cache").iterdir())
    assert (tmp_path / "p3.jpg").read_bytes() == jpeg(3)
    _check_others(path, {1, 3, 5})
    for tar in (path / "images").iterdir():
        with tarfile.open(tar) as opened:
            assert {name.split(".")[0] for name in opened.getnames()}.isdisjoint({"p1", "p5"})
    assert tables.read_removed(path / "removed.parquet").to_pylist()[0]["reason"] == "asked for"


def test_a_kept_shard_is_not_touched(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    before = {tar.name: tar.stat().st_ino for tar in (path / "images").iterdir()}
    remove_images(path, ["p1", "p6"])
    after = {tar.name: tar.stat().st_ino for tar in (path / "images").iterdir()}
    assert {"00001.tar", "00002.tar", "00003.tar"} == set(after)
    assert all(after[name] == before[name] for name in ("00001.tar", "00002.tar"))


def test_kept_bytes_are_hidden_and_can_go_later(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    summary = remove_images(path, ["p1"], purge=False)
    assert summary.purged is None
    assert "00000.tar" in _traces(path, 1)
    _check_others(path, {1})
    again = remove_images(path, ["p1"])
    assert (again.removed, again.removed_earlier) == ([], 1)
    assert _traces(path, 1) == []
    _check_others(path, {1})


def test_purging_one_leaves_the_kept_bytes_of_another(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    remove_images(path, ["p1"], purge=False)
    remove_images(path, ["p2"])
    assert [trace for trace in _traces(path, 1) if trace.endswith(".tar")] == ["00003.tar"]
    assert _traces(path, 2) == []
    _check_others(path, {1, 2})


def test_a_whole_shard_can_go(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    remove_images(path, [f"p{number}" for number in range(4)])
    assert sorted(tar.name for tar in (path / "images").iterdir()) == ["00001.tar", "00002.tar"]
    _check_others(path, {0, 1, 2, 3})
    with CollectionWriter(path, source="more") as writer:
        assert writer.add("new", jpeg(77))
    assert Collection.open(path).keys[-1] == "new"
    assert Collection.open(path).image_bytes(6) == jpeg(77)


@pytest.mark.parametrize("purge", [True, False])
def test_it_is_not_taken_in_again_by_key_or_bytes(tmp_path: Path, purge: bool) -> None:
    path = _collection(tmp_path)
    remove_images(path, ["p1"], purge=purge)
    with CollectionWriter(path) as writer:
        assert not writer.accepts("p1", "other bytes")
        assert not writer.add("p1", jpeg(88))
        assert not writer.add("another-name", jpeg(1))
        assert writer.add("p1-new", jpeg(88))
        assert writer.summary.removed_earlier == 2
        with raises_naming(UserError, "captions", "p1"):
            writer.annotate("captions", [{"key": "p1", "text": "x"}], Provenance())
    export_webdataset(Collection.open(path), tmp_path / "out")
    assert all("p1." not in tarfile.open(tar).getnames() for tar in (tmp_path / "out").iterdir())


def test_shards_after_a_purge_get_numbers_of_their_own(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    for number in (0, 4, 8, 1):
        remove_images(path, [f"p{number}"])
        with CollectionWriter(path) as writer:
            writer.add(f"more{number}", jpeg(100 + number))
    collection = Collection.open(path)
    assert len(collection) == 10
    for row, key in enumerate(collection.keys):
        seed = 100 + int(key[4:]) if key.startswith("more") else int(key[1:])
        assert collection.image_bytes(row, verify=True) == jpeg(seed)
    used = set(collection.index["shard"][collection.index["path"] == ""].tolist())
    assert {int(tar.stem) for tar in (path / "images").iterdir()} == used


def test_the_number_of_a_deleted_shard_is_not_given_again(tmp_path: Path) -> None:
    """Else a reader that opened the collection in between would find other images under it."""
    path = _collection(tmp_path)
    remove_images(path, ["p0"])
    between = Collection.open(path)
    assert between.index["shard"][0] == 3
    remove_images(path, ["p1", "p2", "p3"])
    with CollectionWriter(path) as writer:
        for number in range(20, 24):
            writer.add(f"p{number}", jpeg(number), location=None)
    assert "00003.tar" not in {tar.name for tar in (path / "images").iterdir()}
    with raises_naming(BadImage, "00003.tar"):
        between.image_bytes(0)
    reference = tmp_path / "p6.jpg"
    reference.rename(tmp_path / "moved.jpg")
    with CollectionWriter(path) as writer:  # rewrites the part of p6, and keeps the note
        writer.add("p6", jpeg(6), location=tmp_path / "moved.jpg")
    remove_images(path, ["p20", "p21", "p22", "p23"])
    with CollectionWriter(path) as writer:
        writer.add("p30", jpeg(30))
    assert Collection.open(path).index["shard"][-1] == 5


def test_equal_bytes_under_another_key_are_named_or_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with CollectionWriter(path) as writer:
        for key in ("a", "b", "c"):
            writer.add(key, jpeg(1 if key != "c" else 2))
    summary = remove_images(path, ["a"])
    assert summary.copies == ["b"]
    assert any("--copies" in line for line in summary.lines())
    with CollectionWriter(path) as writer:
        assert not writer.add("b", jpeg(1))
        assert (writer.summary.existing, writer.summary.removed_earlier) == (1, 0)
    assert Collection.open(path).keys == ["b", "c"]
    assert remove_images(path, ["a"], copies=True).removed == ["b"]
    assert Collection.open(path).keys == ["c"]


def test_by_condition(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    collection = Collection.open(path)
    assert select_keys(collection, {"color": "red", "group": "g0"}) == ["p1", "p3"]
    assert select_keys(collection, {"source": "tests"}) == collection.keys
    assert select_keys(collection, {"split": "test"}) == [collection.keys[row] for row in collection.rows("test")]
    with raises_naming(UserError, "color"):
        select_keys(collection, {"colr": "red"})
    with raises_naming(UserError, "red"):
        select_keys(collection, {"color": "rde"})
    assert remove_images(path, where={"color": "red"}).removed == ["p1", "p3", "p5", "p7", "p9"]
    with raises_naming(UserError, "--where"):
        remove_images(path, ["p0"], where={"color": "blue"})


def test_an_unknown_key_removes_nothing(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    with raises_naming(UserError, "p11", "c", "p1"):
        remove_images(path, ["p0", "p11"])
    _check_others(path, set())
    with raises_naming(UserError, "--where", "--from"):
        remove_images(path)
    with raises_naming(UserError, "nowhere"):
        remove_images(tmp_path / "nowhere", ["p0"])
    assert not (tmp_path / "nowhere").exists()


def test_a_dry_run_counts_the_same_and_changes_nothing(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    would = remove_images(path, ["p1", "p3"], dry_run=True)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert "would be removed" in would.lines()[0]
    did = remove_images(path, ["p1", "p3"])
    assert {**would.as_dict(), "dry_run": False} == did.as_dict()


def test_a_reader_from_before_never_gets_other_bytes(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    early, warm = Collection.open(path), Collection.open(path)
    warm.image_bytes(0)  # keeps the tar open
    remove_images(path, ["p1"])
    assert warm.image_bytes(2) == jpeg(2)
    with raises_naming(BadImage, "00000.tar"):
        early.image_bytes(2)
    assert early.image_bytes(4) == jpeg(4)
    assert len(early.read_captions(2)) == 2


def test_a_reader_sees_one_moment(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    early = Collection.open(path)
    with CollectionWriter(path) as writer:
        writer.add("new", jpeg(99), captions=[Caption("new words")])
    with CollectionWriter(path) as writer:
        writer.annotate("captions", [{"key": "p0", "text": "much later"}], Provenance("x"))
        writer.annotate("notes", [{"key": "p0", "text": "much later"}], Provenance("x"))
    assign_splits(path, fractions={"all": 1.0}, keep_imported=False)
    assert len(early.read_captions(0)) == 2
    assert set(early.splits.tolist()) == {"train", "test"}
    with raises_naming(UserError, "notes"):
        early.table("notes")
    later = Collection.open(path)
    assert len(later.read_captions(0)) == 3
    assert set(later.splits.tolist()) == {"all"}


def test_a_missing_shard_stops_the_purge_in_words(tmp_path: Path) -> None:
    path = _collection(tmp_path)
    tar = path / "images" / "00000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:3000])
    with raises_naming(UserError, "00000.tar"):
        remove_images(path, ["p0"])
    tar.unlink()
    with raises_naming(UserError, "00000.tar"):
        remove_images(path, ["p0"])
    tar.write_bytes(data)
    remove_images(path, ["p0"])
    _check_others(path, {0})


def test_a_list_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_bytes("a b\r\n\nö/ü\n".encode())
    assert read_keys(file) == ["a b", "ö/ü"]
    file.write_bytes(b"\xff")
    with raises_naming(UserError, "UTF-8"):
        read_keys(file)
    with raises_naming(UserError, "no such file"):
        read_keys(tmp_path / "nothing")
