"""Embeddings of a collection as tables: read back by other libraries, resumed, and equal to the model's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from exported import opened, saved

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.export import Job, export
from foveate.pretrain.exporters import embeddings
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance
from foveate.vision.preprocess import move_boxes, read_image
from naming import raises_naming


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("embeddings") / "model")


@pytest.fixture(scope="module")
def tables(model: Path, tiny_collection: Path) -> Path:
    return export(model, to="embeddings", collection=tiny_collection, device="cpu")[0]


@torch.inference_mode()
def test_pandas_reads_what_the_model_gives(model: Path, tables: Path, tiny_collection: Path) -> None:
    import pandas

    ours, collection = opened(model), Collection.open(tiny_collection)
    images = pandas.read_parquet(tables / "images")
    assert images["key"].tolist() == list(collection.keys)
    assert set(images["kind"]) == {"image"}
    assert images["box"].isna().all()
    regions = pandas.read_parquet(tables / "regions")
    place = 0
    for row in range(len(collection)):
        pixels, placement = read_image(collection, row, ours.image_encoder.preprocess)
        tokens = ours.encode_image_tokens(pixels[None])
        said = torch.from_numpy(np.stack(images["embedding"][row : row + 1]))
        torch.testing.assert_close(said, ours.encode_image(tokens), atol=2e-6, rtol=0)
        raw = said * images["norm"][row]
        torch.testing.assert_close(raw, tokens.pooled, atol=2e-5, rtol=0)
        mine = collection.read_regions(row)
        boxes_R4, kept = move_boxes(placement, np.stack([one.box.to_array() for one in mine]), min_visible=0)
        assert kept.all()
        z_RE = ours.encode_regions(tokens, torch.from_numpy(boxes_R4), torch.zeros(len(mine), dtype=torch.int64))
        part = regions[place : place + len(mine)]
        assert part["key"].tolist() == [collection.keys[row]] * len(mine)
        assert part["phrase"].tolist() == [one.phrase for one in mine]
        np.testing.assert_allclose(np.stack(part["box"]), [one.box.to_array() for one in mine], atol=1e-6)
        found = torch.from_numpy(np.stack(part["embedding"]))
        torch.testing.assert_close(found, F.normalize(z_RE, dim=-1), atol=5e-6, rtol=0)
        place += len(mine)
    assert place == len(regions)
    texts = pandas.read_parquet(tables / "texts")
    assert set(texts["kind"]) == {"phrase", "alt", "title"}
    assert not texts.duplicated(["kind", "phrase"]).any()
    expected = ours.encode_text(texts["phrase"].tolist())
    torch.testing.assert_close(torch.from_numpy(np.stack(texts["embedding"])), expected, atol=2e-6, rtol=0)


def test_arrow_and_duckdb_read_them(tables: Path) -> None:
    import duckdb

    schema = pq.read_schema(tables / "regions" / "00000.parquet")
    assert str(schema.field("embedding").type).startswith("fixed_size_list<")
    assert schema.field("embedding").type.list_size == 32
    assert str(schema.field("embedding").type.value_type) == "float"
    assert schema.field("box").type.list_size == 4
    counted = duckdb.sql(f"SELECT kind, count(*), count(box) FROM '{tables}/*/*.parquet' GROUP BY kind").fetchall()
    assert {kind: counts for kind, *counts in counted}["image"] == [32, 0]
    query = (tables / "README.md").read_text().split("```sql\n")[1].split("```")[0].replace("a red boat", "red disc")
    best = duckdb.sql(query.replace("'images/", f"'{tables}/images/").replace("'texts/", f"'{tables}/texts/"))
    assert len(best.fetchall()) == 10


def test_npz_holds_the_same_without_pickle(model: Path, tables: Path, tiny_collection: Path, tmp_path: Path) -> None:
    import pandas

    out = tmp_path / "npz"
    export(model, to="embeddings", collection=tiny_collection, format="npz", out=out, device="cpu")
    for name in ("images", "regions", "texts"):
        table = pandas.read_parquet(tables / name)
        with np.load(out / name / "00000.npz", allow_pickle=False) as arrays:
            assert set(arrays) == {"key", "kind", "box", "phrase", "norm", "embedding"}
            assert arrays["key"].tolist() == table["key"].tolist()
            assert arrays["phrase"].tolist() == table["phrase"].tolist()
            assert arrays["embedding"].dtype == np.float32
            np.testing.assert_array_equal(arrays["embedding"], np.stack(table["embedding"]))
            assert np.isnan(arrays["box"]).any(axis=1).tolist() == table["box"].isna().tolist()


def test_a_split_and_an_unreadable_image(model: Path, tmp_path: Path) -> None:
    import pandas

    collection = tiny.make_collection(tmp_path / "shapes")
    tiny.damage(collection, "test-03")
    target, result, _ = export(
        model, to="embeddings", collection=collection, split="test", out=tmp_path / "out", device="cpu"
    )
    assert result.counts["images"] == tiny.SPLITS["test"] - 1
    assert result.counts["unreadable images"] == 1
    assert "test-03" in (target / "unreadable.json").read_text()
    assert "test-03" not in pandas.read_parquet(target / "regions")["key"].tolist()
    assert "| unreadable images | 1 |" in (target / "README.md").read_text()


def test_a_stopped_export_of_other_texts_regions_or_images_is_not_resumed(
    model: Path, tiny_collection: Path, tmp_path: Path
) -> None:
    def identity(name: str, table: str, **row: object) -> str:
        path = Path(shutil.copytree(tiny_collection, tmp_path / name))
        with AnnotationAppender(path, purpose="test") as appender:
            appender.append(table, [row], Provenance("test"))
        collection = Collection.open(path)
        if name == "bytes":
            collection.index["sha256"][0] = "0" * 64
        return embeddings.identity(Job(model, opened(model), {}, {}, tmp_path, collection))

    caption = {"key": "train-00", "text": "a boat"}
    box = {"x1": 0.1, "y1": 0.1, "x2": 0.4, "y2": 0.5, "phrase": "a boat", "score": 0.5}
    hashes = {
        identity("alt", "captions", **caption, kind="alt"),
        identity("bytes", "captions", **caption, kind="alt"),
        identity("title", "captions", **caption, kind="title"),
        identity("last", "regions", **box, key="test-08"),
        identity("owner", "regions", **box, key="test-09"),
    }
    assert len(hashes) == 5


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("after", [1, 4, 6, 8])
def test_a_stopped_export_goes_on(
    after: int, model: Path, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after that many files, it makes only what is missing, and ends with the same bytes."""
    monkeypatch.setattr(embeddings, "BATCH", 8)
    monkeypatch.setattr(embeddings, "IMAGES_PER_PART", 8)
    monkeypatch.setattr(embeddings, "TEXTS_PER_PART", 40)
    straight = export(model, to="embeddings", collection=tiny_collection, out=tmp_path / "a", device="cpu")[0]
    assert len(contents(straight)) == 2 * 4 + 2 + 2
    write, written = embeddings._write, []

    def stopping(job: object, name: str, part: int, rows: object) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append((name, part))
        write(job, name, part, rows)  # type: ignore[arg-type]

    def export_again() -> Path:
        return export(model, to="embeddings", collection=tiny_collection, out=tmp_path / "b", device="cpu")[0]

    monkeypatch.setattr(embeddings, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        export_again()
    assert not (tmp_path / "b").exists()
    before, after = len(written), -1
    assert contents(export_again()) == contents(straight)
    assert len(written) - before <= 10 - before + 1, "at most the part that was being written is made twice"
    assert not list(tmp_path.glob(".b*"))


def test_what_a_stopped_export_of_something_else_left_is_not_used(
    model: Path, tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "_texts", stop)
        with pytest.raises(KeyboardInterrupt):
            export(model, to="embeddings", collection=tiny_collection, out=tmp_path / "out", device="cpu")
    other = saved(tmp_path / "other", training={"seed": 7})
    target = export(other, to="embeddings", collection=tiny_collection, out=tmp_path / "out", device="cpu")[0]
    straight = export(other, to="embeddings", collection=tiny_collection, out=tmp_path / "straight", device="cpu")[0]
    assert contents(target) == contents(straight)


def test_mistakes(model: Path, tiny_collection: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "--collection"):
        export(model, to="embeddings", device="cpu", out=tmp_path / "x")
    with pytest.raises(UserError, match="split"):
        export(model, to="embeddings", collection=tiny_collection, split="tset", device="cpu", out=tmp_path / "x")
    with raises_naming(UserError, "csv", "format", "parquet"):
        export(model, to="embeddings", collection=tiny_collection, format="csv", device="cpu", out=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
