"""Other libraries open what is ours: webdataset, datasets, open_clip stream tars, pandas and duckdb read tables."""

from __future__ import annotations

import argparse
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_images import encoded, noise
from PIL import Image

from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.exporters.webdataset import export_webdataset
from foveate.records.images import decode
from foveate.records.importers.webdataset import import_webdataset
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter

COUNT = 14
FORMATS = ("JPEG", "PNG", "WEBP")


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    with CollectionWriter(tmp_path / "c", source="tests", images_per_shard=5) as writer:
        for number in range(COUNT):
            writer.add(
                ["plain", "dots.v1.2", "50% off", "猫/a.b"][number % 4] + f"-{number}",
                encoded(noise(number), FORMATS[number % 3]),
                captions=[Caption(f"alt {number} – 二", "alt"), Caption(f"title {number}", "title")],
                regions=[Region(Box(0.1, 0.2, 0.5, 0.5 + number / 100), f"part {number}", 0.5)],
            )
    return Collection.open(tmp_path / "c")


@pytest.fixture
def shards(collection: Collection, tmp_path: Path) -> list[str]:
    return [str(path) for path in export_webdataset(collection, tmp_path / "out", images_per_shard=4)]


def _pixels(collection: Collection) -> list[np.ndarray]:
    return [np.asarray(decode(collection.image_bytes(row)).convert("RGB")) for row in range(len(collection))]


def _equal(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def test_webdataset_decodes_shards_and_exports(collection: Collection, shards: list[str]) -> None:
    webdataset = pytest.importorskip("webdataset")
    own = [str(path) for path in sorted((collection.path / "images").iterdir())]
    for tars in (own, shards):
        stream = webdataset.WebDataset(tars, shardshuffle=False).decode("pil").rename(image="jpg;png;webp")
        assert _equal([np.asarray(sample["image"].convert("RGB")) for sample in stream], _pixels(collection))


def test_datasets_streams_shards_and_exports(tmp_path: Path) -> None:
    """`datasets` takes the columns from the first samples, so all images are of one format and have a caption."""
    datasets = pytest.importorskip("datasets")
    with CollectionWriter(tmp_path / "c", source="tests", images_per_shard=5) as writer:
        for number in range(COUNT):
            captions = [Caption(f"alt {number} – 二")]
            writer.add(f"v1.{number}", encoded(noise(number), "PNG"), captions=captions)
    collection = Collection.open(tmp_path / "c")
    own = [str(path) for path in sorted((collection.path / "images").iterdir())]
    exported = [str(path) for path in export_webdataset(collection, tmp_path / "out", images_per_shard=4)]
    rows: list[dict[str, Any]] = []
    for tars in (own, exported):
        rows = list(datasets.load_dataset("webdataset", data_files={"train": tars}, streaming=True)["train"])
        assert _equal([np.asarray(row["png"].convert("RGB")) for row in rows], _pixels(collection))
    assert [row["txt"] for row in rows] == [f"alt {number} – 二" for number in range(COUNT)]
    assert [row["json"]["key"] for row in rows] == collection.keys
    loaded = datasets.load_dataset("webdataset", data_files=exported, cache_dir=str(tmp_path / "cache"))["train"]
    assert len(loaded) == COUNT


@pytest.mark.parametrize("training", [False, True])
def test_open_clip_streams_an_export(
    collection: Collection, shards: list[str], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    data = pytest.importorskip("open_clip_train.data")
    import torch

    # webdataset 1.0 ends each shard with an empty sample, which open_clip 3.3, made for 0.2, does not know.
    without_marks = functools.partial(data.tar_file_expander, eof_value=None)
    monkeypatch.setattr(data, "tar_file_expander", without_marks)

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image))

    pattern = str(Path(shards[0]).parent / f"{{00000..{len(shards) - 1:05d}}}.tar")
    arguments = argparse.Namespace(
        train_data=pattern,
        val_data=pattern,
        train_num_samples=COUNT,
        val_num_samples=COUNT,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=2,
        workers=0,
        world_size=1,
        seed=0,
    )
    texts: list[str] = []

    def tokenizer(text: str) -> list[int]:
        texts.append(text)
        return [len(texts) - 1]

    loader = data.get_wds_dataset(arguments, pixels, is_train=training, tokenizer=tokenizer).dataloader
    batches = list(loader)
    images = [image.numpy() for batch, _ in batches for image in batch]
    numbers = [int(texts[int(place)].split()[1]) for _, places in batches for place in places]
    assert sorted(numbers) == list(range(COUNT))
    assert training or numbers == list(range(COUNT))
    expected = _pixels(collection)
    assert _equal(images, [expected[number] for number in numbers])


def test_pandas_reads_the_tables(collection: Collection) -> None:
    pandas = pytest.importorskip("pandas")
    index = pandas.read_parquet(collection.path / "index")
    assert index["key"].tolist() == collection.keys
    tar = (collection.path / "images" / "00001.tar").read_bytes()
    for row in index[index["shard"] == 1].itertuples():
        data = tar[row.offset : row.offset + row.length]
        assert Image.open(io.BytesIO(data)).size == (row.width, row.height)
    regions = pandas.read_parquet(collection.path / "annotations" / "regions")
    assert np.array_equal(regions[["x1", "y1", "x2", "y2"]].to_numpy(), collection.region_boxes)
    captions = pandas.read_parquet(collection.path / "annotations" / "captions")
    assert captions.groupby("key").size().eq(2).all()


def test_duckdb_joins_the_tables(collection: Collection) -> None:
    duckdb = pytest.importorskip("duckdb")
    root = collection.path
    rows = duckdb.sql(
        f"""
        select i.key, c.text, r.phrase, r.y2 * i.height
        from read_parquet('{root}/index/*.parquet') i
        join read_parquet('{root}/annotations/captions/*.parquet') c using (key)
        join read_parquet('{root}/annotations/regions/*.parquet') r using (key)
        where c.kind = 'title' order by i.shard, i."offset"
        """
    ).fetchall()
    assert [row[0] for row in rows] == collection.keys
    for number, (_, text, phrase, bottom) in enumerate(rows):
        assert (text, phrase) == (f"title {number}", f"part {number}")
        assert bottom == pytest.approx((0.5 + number / 100) * 32, abs=1e-4)


def test_we_read_what_the_webdataset_library_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as sink:
        for number in range(3):
            fields = {"regions": [{"box": [1, 2, 30, 20], "phrase": "x"}]}
            sink.write(
                {
                    "__key__": f"a/{number:04d}",
                    "jpg": encoded(noise(number)),
                    "txt": f"caption {number}",
                    "json": json.loads(json.dumps(fields)),
                }
            )
    summary = import_webdataset(tmp_path / "s.tar", tmp_path / "d")
    assert (summary.imported, summary.captions_imported, summary.regions_imported) == (3, 3, 3)
    assert Collection.open(tmp_path / "d").keys == ["a/0000", "a/0001", "a/0002"]
