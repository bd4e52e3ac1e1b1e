"""Collections on disk: what is written is read again; one writer; commits, removals, quarantine."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_images import encoded, jpeg, noise

from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.record import Caption, Context, Region
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from naming import raises_naming


def _fill(path: Path, count: int = 10, **options: object) -> CollectionWriter:
    settings = {"name": "images", "license": "CC0-1.0", "source": "tests", "images_per_shard": 4, **options}
    with CollectionWriter(path, **settings) as writer:
        for number in range(count):
            writer.add(
                f"set/p{number}",
                jpeg(number),
                captions=[Caption(f"caption {number}"), Caption("a title", "title", "someone")],
                regions=[Region(Box(0.1, 0.2, 0.5, 0.75), f"thing {number}", 0.5, "thing", "seen")] * (number % 3),
                labels={"color": "red" if number % 2 else "blue"},
                group=f"g{number // 2}",
                split="test" if number == 3 else None,
            )
    return writer


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    writer = _fill(tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert (collection.name, collection.license, len(collection)) == ("images", "CC0-1.0", 10)
    assert collection.shards == [0, 1, 2]
    assert collection.keys == [f"set/p{number}" for number in range(10)]
    for row in range(10):
        assert collection.image_bytes(row) == jpeg(row)
        record = collection.record(row)
        assert (record.key, record.width, record.height) == (f"set/p{row}", 48, 32)
        assert record.captions == (
            Caption(f"caption {row}", "alt", "tests"),
            Caption("a title", "title", "someone"),
        )
        assert len(record.regions) == row % 3
        for region in record.regions:
            assert (region.phrase, region.score, region.label, region.slice) == (f"thing {row}", 0.5, "thing", "seen")
            assert np.allclose(region.box.to_array(), [0.1, 0.2, 0.5, 0.75], atol=1e-7)
        assert record.labels == {"color": "red" if row % 2 else "blue"}
        assert (record.group, record.split) == (f"g{row // 2}", "test" if row == 3 else "")
    assert writer.summary.imported == 10
    assert writer.summary.regions_imported == 9
    assert writer.summary.captions_imported == 20


def test_the_shards_are_tars_that_hold_the_images_where_the_index_says(tmp_path: Path) -> None:
    _fill(tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    for row, (shard, offset, length) in enumerate(
        zip(*(collection.index[name] for name in ("shard", "offset", "length")), strict=True)
    ):
        with tarfile.open(tmp_path / "c" / "images" / f"{shard:05d}.tar") as tar:
            member = tar.getmember(f"set/p{row}.jpg")
            assert (member.offset_data, member.size) == (offset, length)


def test_the_description_counts(tmp_path: Path) -> None:
    _fill(tmp_path / "c")
    description = read_json(tmp_path / "c" / "collection.json")
    assert (description["images"], description["shards"]) == (10, 3)
    assert description["sources"] == [{"source": "tests", "license": "CC0-1.0"}]


def test_adding_again_takes_nothing_twice_and_changes_no_file(tmp_path: Path) -> None:
    _fill(tmp_path / "c")
    before = _contents(tmp_path / "c")
    writer = _fill(tmp_path / "c")
    assert (writer.summary.imported, writer.summary.existing) == (0, 10)
    assert _contents(tmp_path / "c") == before


def test_new_images_go_into_new_shards(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 10)
    tars = {path.name: path.read_bytes() for path in (tmp_path / "c" / "images").iterdir()}
    writer = _fill(tmp_path / "c", 13)
    assert writer.summary.imported == 3
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == [f"set/p{number}" for number in range(13)]
    assert collection.shards == [0, 1, 2, 3]
    assert all((tmp_path / "c" / "images" / name).read_bytes() == data for name, data in tars.items())


def test_a_shard_also_ends_at_its_number_of_bytes(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 6, images_per_shard=100, bytes_per_shard=1)
    assert Collection.open(tmp_path / "c").shards == list(range(6))


def _stopped_writer(path: Path) -> None:
    with CollectionWriter(path, images_per_shard=4) as writer:
        for number in range(7):
            writer.add(f"p{number}", jpeg(number))
        raise RuntimeError("stop")


def test_an_exception_leaves_only_whole_shards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        _stopped_writer(tmp_path / "c")
    assert Collection.open(tmp_path / "c").keys == ["p0", "p1", "p2", "p3"]
    assert not list((tmp_path / "c").rglob("*.tmp"))


def test_readers_see_committed_shards_only_and_never_wait(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c", images_per_shard=2) as writer:
        assert len(Collection.open(tmp_path / "c")) == 0
        for number in range(5):
            writer.add(f"p{number}", jpeg(number))
            assert len(Collection.open(tmp_path / "c")) == (number + 1) // 2 * 2
        early = Collection.open(tmp_path / "c")
    assert len(early) == 4
    assert early.image_bytes(3) == jpeg(3)
    assert len(Collection.open(tmp_path / "c")) == 5


def test_what_a_killed_writer_left_is_invisible_and_cleared(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 4)
    folder = tmp_path / "c"
    (folder / "images" / "00001.tar").write_bytes(b"half a tar")
    (folder / "images" / ".00002.tar.tmp").write_bytes(b"half a tar")
    (folder / "annotations" / "labels" / "00001.parquet").write_bytes(b"half a table")
    assert len(Collection.open(folder)) == 4
    assert Collection.open(folder).table("labels").num_rows == 4
    with CollectionWriter(folder):
        pass
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["00000.tar"]
    assert sorted(path.name for path in (folder / "annotations" / "labels").iterdir()) == ["00000.parquet"]


def test_a_second_writer_gets_one_sentence_that_names_the_first(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c", source="holidays"):
        with raises_naming(UserError, os.getpid()):
            CollectionWriter(tmp_path / "c").__enter__()
    with CollectionWriter(tmp_path / "c") as writer:
        assert writer.add("p", jpeg(1))


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _fill(tmp_path / name, created="2026-01-01T00:00:00+00:00")
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


def test_a_duplicate_key_is_quarantined_once(tmp_path: Path) -> None:
    for taken in (1, 0):
        with CollectionWriter(tmp_path / "c") as writer:
            writer.add("p", jpeg(1))
            assert not writer.add("p", jpeg(2), source="second")
        assert writer.summary.imported == taken
        assert writer.summary.quarantined == {"image: duplicate key": 1}
    collection = Collection.open(tmp_path / "c")
    assert len(collection) == 1
    assert collection.image_bytes(0) == jpeg(1)
    assert collection.quarantine()["reason"].to_pylist() == ["duplicate key"]


def test_a_different_image_under_a_known_key_is_a_duplicate(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", jpeg(1))
    with CollectionWriter(tmp_path / "c") as writer:
        assert not writer.add("p", jpeg(2))
    (finding,) = Collection.open(tmp_path / "c").quarantine().to_pylist()
    assert (finding["key"], finding["reason"]) == ("p", "duplicate key")


def test_a_bad_image_is_quarantined_with_its_reason(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c", source="tests") as writer:
        assert not writer.add("cut", jpeg(1)[:200])
        assert not writer.add("empty", b"")
    table = Collection.open(tmp_path / "c").quarantine()
    assert table["key"].to_pylist() == ["cut", "empty"]
    assert table["reason"].to_pylist() == ["truncated", "empty file"]
    assert table["source"].to_pylist() == ["tests", "tests"]


def test_a_removed_image_stays_out(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 6)
    with CollectionWriter(tmp_path / "c") as writer:
        assert writer.remove(["set/p2"], reason="asked for") == 1
        assert writer.remove(["set/p2"], reason="asked for") == 0
        with raises_naming(UserError, "set/p9"):
            writer.remove(["set/p9"], reason="x")
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == [f"set/p{number}" for number in (0, 1, 3, 4, 5)]
    assert collection.read_captions(2)[0].text == "caption 3"
    assert collection.image_bytes(2) == jpeg(3)
    assert "set/p2" not in collection.table("captions")["key"].to_pylist()
    writer = _fill(tmp_path / "c", 6)
    assert (writer.summary.imported, writer.summary.removed_earlier) == (0, 1)
    with CollectionWriter(tmp_path / "c") as writer:
        assert not writer.add("other-name", jpeg(2))
    assert read_json(tmp_path / "c" / "collection.json")["images"] == 5


def test_annotations_added_later_come_after_and_once(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 6)
    rows = [{"key": "set/p4", "kind": "synthetic", "text": "a new caption"}, {"key": "set/p0", "text": "other"}]
    for expected in (2, 0):
        with CollectionWriter(tmp_path / "c") as writer:
            assert writer.annotate("captions", rows, Provenance("captioner", "model-1", "abc")) == expected
    collection = Collection.open(tmp_path / "c")
    assert collection.read_captions(4)[-1] == Caption("a new caption", "synthetic", "captioner")
    assert len(collection.read_captions(4)) == 3
    assert len(collection.read_captions(1)) == 2
    assert collection.table("captions")["model"].to_pylist()[-2:] == ["model-1", "model-1"]
    with CollectionWriter(tmp_path / "c") as writer, raises_naming(UserError, "nowhere"):
        writer.annotate("captions", [{"key": "nowhere", "text": "x"}], Provenance())
    with CollectionWriter(tmp_path / "c") as writer, raises_naming(UserError, "txet"):
        writer.annotate("captions", [{"key": "set/p0", "txet": "x"}], Provenance())
    row = {"key": "set/p0", "x1": 0.5, "y1": 0.0, "x2": 0.4, "y2": 1.0, "phrase": "x"}
    with CollectionWriter(tmp_path / "c") as writer, raises_naming(UserError, "box"):
        writer.annotate("regions", [row], Provenance())


def test_contexts_and_further_tables(tmp_path: Path) -> None:
    context = Context(48.1, 11.5, "2020-05-01T10:00:00", "Munich")
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("plain", jpeg(0))
        writer.add("full", jpeg(1), context=context, extra={"masks": [{"counts": [3, 4], "size": 7}]})
    collection = Collection.open(tmp_path / "c")
    assert collection.record(1).context == context
    assert collection.record(0).context is None
    assert collection.table("masks").to_pylist()[0]["counts"] == [3, 4]
    with raises_naming(UserError, "masks"):
        collection.table("mask")


def test_equal_regions_of_one_image_are_all_kept_with_ids_of_their_own(tmp_path: Path) -> None:
    region = Region(Box(0.1, 0.1, 0.2, 0.2), "twin")
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", jpeg(1), regions=[region, region])
    table = Collection.open(tmp_path / "c").table("regions")
    assert len(set(table["region_id"].to_pylist())) == 2


def test_rows_by_split_and_label(tmp_path: Path) -> None:
    _fill(tmp_path / "c")
    collection = Collection.open(tmp_path / "c")
    assert collection.rows("test").tolist() == [3]
    assert collection.rows(where={"color": "blue"}).tolist() == [0, 2, 4, 6, 8]
    assert collection.rows("test", {"color": "blue"}).tolist() == []
    assert len(collection.rows(where={"color": ["blue", "red"]})) == 10
    assert collection.find_row("set/p7") == 7
    with raises_naming(UserError, "test"):
        collection.rows("tset")
    with raises_naming(UserError, "color"):
        collection.rows(where={"colr": "red"})
    with raises_naming(UserError, "set/p7"):
        collection.find_row("set/p77")


def test_images_are_read_from_many_threads_at_once(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 12)
    collection = Collection.open(tmp_path / "c")
    start = threading.Barrier(8)

    def read(seed: int) -> bool:
        start.wait()
        rows = np.random.default_rng(seed).integers(0, 12, 100)
        return all(collection.image_bytes(row) == jpeg(int(row)) for row in rows)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    collection.close()
    assert collection.image_bytes(0) == jpeg(0)


def test_a_cut_or_missing_shard_is_said(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 4)
    tar = tmp_path / "c" / "images" / "00000.tar"
    collection = Collection.open(tmp_path / "c")
    tar.write_bytes(tar.read_bytes()[:3000])
    with raises_naming(BadImage, "set/p3", "00000.tar"):
        collection.image_bytes(3)
    tar.unlink()
    with raises_naming(BadImage, "missing"):
        Collection.open(tmp_path / "c").image_bytes(0)


def test_opening_what_is_no_collection_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path / "birds", 1)
    with raises_naming(UserError, "birds"):
        Collection.open(tmp_path / "brids")
    (tmp_path / "folder").mkdir()
    with raises_naming(UserError, "collection.json"):
        Collection.open(tmp_path / "folder")
    place = tmp_path / "birds" / "collection.json"
    for text, match in (
        ("{", "not a JSON file"),
        ("{}", "'format'"),
    ):
        place.write_text(text)
        with pytest.raises(UserError, match=match):
            Collection.open(tmp_path / "birds")


@pytest.mark.parametrize(("version", "remedy"), [(1, "collect"), (2, "collect"), (9, "update"), (None, "update")])
def test_a_collection_of_another_version_is_refused(tmp_path: Path, version: int | None, remedy: str) -> None:
    _fill(tmp_path / "c", 1)
    description = tmp_path / "c" / "collection.json"
    write_json_atomically(description, {**read_json(description), "version": version})
    for use in (Collection.open, lambda path: CollectionWriter(path).__enter__()):
        with raises_naming(UserError, description, "'version'", "must be 3", f"got {version}", remedy):
            use(tmp_path / "c")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 1)
    (tmp_path / "c" / "annotations" / "labels" / "00000.parquet").write_bytes(b"nothing")
    with raises_naming(UserError, "labels/00000.parquet"):
        Collection.open(tmp_path / "c").table("labels")


def test_a_writer_does_not_fill_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with raises_naming(UserError, "notes.txt"):
        CollectionWriter(tmp_path).__enter__()
    with raises_naming(UserError, "is a file"):
        CollectionWriter(tmp_path / "notes.txt").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_name_for_a_collection_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 1)
    with raises_naming(UserError, "name", "images", "other"):
        CollectionWriter(tmp_path / "c", name="other").__enter__()
    with CollectionWriter(tmp_path / "c", name="images"):
        pass


@pytest.mark.parametrize("key", ["", "/abs", "a//b", "../up", "a/../b", "a/.", "tab\t", "nul\0", "a\\b", "x" * 513])
def test_unusable_keys_are_refused(tmp_path: Path, key: str) -> None:
    with CollectionWriter(tmp_path / "c") as writer, raises_naming(UserError, "image key"):
        writer.add(key, jpeg(1))


@pytest.mark.parametrize("key", ["a.b.c", "100%", "日本/猫", "x" * 200, "a%2Eb", "with space"])
def test_unusual_keys_are_kept(tmp_path: Path, key: str) -> None:
    with CollectionWriter(tmp_path / "c") as writer:
        assert writer.add(key, jpeg(1))
        assert writer.add(f"{key}2", jpeg(2))
    collection = Collection.open(tmp_path / "c")
    assert collection.keys == [key, f"{key}2"]
    assert [collection.image_bytes(row) for row in (0, 1)] == [jpeg(1), jpeg(2)]


def test_texts_are_kept_as_they_are_but_for_control_characters(tmp_path: Path) -> None:
    long = " ".join(f"word{number}" for number in range(10_000))
    texts = [long, "猫と犬", "قطة", "नमस्ते", "👩‍👩‍👧", "e\u0301", "two\nlines\tand a tab"]
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", jpeg(1), captions=[*map(Caption, texts), Caption("nul\0 and \x1b escape"), Caption("  ")])
        with raises_naming(UserError, "surrogate"):
            writer.add("q", jpeg(2), captions=[Caption("\ud83d")])
    read = [caption.text for caption in Collection.open(tmp_path / "c").read_captions(0)]
    assert read == [*texts, "nul and  escape"]


def test_an_animated_image_is_counted(tmp_path: Path) -> None:
    frames = [noise(1), noise(2)]
    with CollectionWriter(tmp_path / "c") as writer:
        writer.add("p", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert writer.summary.animated == 1
    assert "1 animated" in "\n".join(writer.summary.lines())
    assert decode(Collection.open(tmp_path / "c").image_bytes(0)).size == (48, 32)


def test_an_empty_collection_can_be_read(tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "c"):
        pass
    collection = Collection.open(tmp_path / "c")
    assert len(collection) == 0
    assert collection.rows().tolist() == []
    assert list(collection) == []
    assert collection.table("regions").num_rows == 0
    assert collection.region_boxes.shape == (0, 4)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tar_of_a_collection_is_a_plain_tar(tmp_path: Path) -> None:
    _fill(tmp_path / "c", 2)
    data = (tmp_path / "c" / "images" / "00000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["set/p0.jpg", "set/p1.jpg"]
