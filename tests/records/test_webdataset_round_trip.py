"""Export to WebDataset: the webdataset library reads it, and importing it again changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from made_images import encoded, jpeg, noise

from foveate.core.errors import UserError
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.exporters.webdataset import export_webdataset
from foveate.records.importers.webdataset import import_webdataset
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter
from naming import raises_naming

webdataset = pytest.importorskip("webdataset")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    with CollectionWriter(tmp_path / "c", source="tests", images_per_shard=7) as writer:
        for number in range(16):
            data = jpeg(number) if number % 3 else encoded(noise(number), "PNG")
            writer.add(
                ["plain", "dots.v1.2", "50% off", "猫/a.b"][number % 4] + f"-{number}",
                data,
                captions=[
                    Caption(f"title {number}", "title", "shop"),
                    Caption(f"alt {number}\n二", "alt"),
                    Caption(f"title {number}", "alt"),
                ][: number % 4],
                regions=[
                    Region(Box(0.1, 1 / 3, 0.7, 0.9 + number / 1000), f"part {number}", 0.3, "part", "seen", "model"),
                    Region(Box(0, 0, 1, 1), "all"),
                ][: number % 3],
                labels={"kind": "a", "n": str(number)} if number % 2 else {},
                group=f"g{number // 3}",
                split="test" if number % 5 == 0 else "train",
            )
    return Collection.open(tmp_path / "c")


def test_the_webdataset_library_reads_an_export(collection: Collection, tmp_path: Path) -> None:
    paths = export_webdataset(collection, tmp_path / "out", images_per_shard=6)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar", "00002.tar"]
    samples = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False))
    assert len(samples) == len(collection)
    for row, sample in enumerate(samples):
        record = collection.record(row)
        fields = json.loads(sample["json"])
        assert fields["key"] == record.key
        assert sample.get("jpg", sample.get("png")) == collection.image_bytes(row)
        assert sample.get("txt", b"").decode() == (record.captions[0].text if record.captions else "")


def test_the_webdataset_library_streams_the_shards_of_a_collection(collection: Collection) -> None:
    tars = [str(path) for path in sorted((collection.path / "images").iterdir())]
    images = [sample.get("jpg", sample.get("png")) for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    assert images == [collection.image_bytes(row) for row in range(len(collection))]


def test_import_of_an_export_is_the_identity(collection: Collection, tmp_path: Path) -> None:
    export_webdataset(collection, tmp_path / "out", images_per_shard=5)
    summary = import_webdataset(tmp_path / "out", tmp_path / "d")
    assert not summary.quarantined
    again = Collection.open(tmp_path / "d")
    assert [again.image_bytes(row) for row in range(16)] == [collection.image_bytes(row) for row in range(16)]
    for row in range(16):
        assert _with_source(again, row) == _with_source(collection, row)
    export_webdataset(again, tmp_path / "out2", images_per_shard=5)
    assert [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())] != []
    twice = import_webdataset(tmp_path / "out2", tmp_path / "d")
    assert (twice.imported, twice.existing) == (0, 16)


def _with_source(collection: Collection, row: int) -> object:
    """A record whose rows without a source of their own have the same one in both collections."""
    record = collection.record(row)
    captions = tuple(
        dataclasses.replace(caption, source=caption.source.replace("out", "tests")) for caption in record.captions
    )
    return dataclasses.replace(record, captions=captions)


def test_chosen_rows_are_exported(collection: Collection, tmp_path: Path) -> None:
    rows = collection.rows("test")
    export_webdataset(collection, tmp_path / "out", rows=rows)
    import_webdataset(tmp_path / "out", tmp_path / "d")
    assert Collection.open(tmp_path / "d").keys == [collection.keys[row] for row in rows]


def test_an_export_does_not_overwrite_and_wants_something_to_export(collection: Collection, tmp_path: Path) -> None:
    export_webdataset(collection, tmp_path / "out")
    with raises_naming(UserError, tmp_path):
        export_webdataset(collection, tmp_path / "out")
    with raises_naming(UserError, "nothing to export"):
        export_webdataset(collection, tmp_path / "other", rows=[])
    with raises_naming(UserError, "images_per_shard"):
        export_webdataset(collection, tmp_path / "other", images_per_shard=0)
