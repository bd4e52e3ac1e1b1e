"""The index: what is embedded, going on after a kill, new, changed and removed images, and refusals."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageFont

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.train import build_model
from foveate.records import layout, ocr, tables
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate.search import index as module
from foveate.search import index_folder
from foveate.search.index import build_index
from foveate.search.index_folder import Description, read_rows
from foveate.search.search import Index
from foveate.vision.localizer.folder import load_model, save_model
from foveate.vision.localizer.inference import coarse_boxes
from foveate.vision.localizer.sources import ModelSource
from foveate.vision.localizer.sources import fingerprint_folder as fingerprint
from naming import raises_naming


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(build_model(tiny.recipe()).eval(), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def shapes(tiny_collection: Path, tmp_path: Path) -> Path:
    """A copy of the tiny collection that a test may change."""
    return Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))


def remove(collection: Path, *keys: str) -> None:
    rows = [{"key": key, "sha256": "", "reason": "wish", "created": ""} for key in keys]
    tables.write_table(collection / layout.REMOVED_FILE, tables.pa.Table.from_pylist(rows, schema=tables.REMOVED))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys_of(out: Path, kind: str) -> list[str]:
    described = Description.read(out)
    paths = [segment.rows_path(out) for segment in described.segments if segment.kind == kind]
    return read_rows(paths)["key"].to_pylist()


def test_what_is_embedded_is_what_the_model_says(model: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    described, plan = build_index(model, shapes, out)
    collection = Collection.open(shapes)
    seen = embed_collection(load_model(model), collection, np.arange(len(collection)))
    assert described.counts == {"images": len(collection), "regions": len(seen.regions), "unreadable": 0}
    assert described.finished
    assert len(plan.todo) == len(collection)
    for kind, expected in (("image", seen.image_NE), ("region", seen.z_RE)):
        segment = next(one for one in described.segments if one.kind == kind)
        vectors = segment.embeddings(out)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    rows = pq.read_table(next(one for one in described.segments if one.kind == "region").rows_path(out)).to_pylist()
    assert [row["phrase"] for row in rows] == [region.phrase for region in seen.regions]
    np.testing.assert_allclose([[row[n] for n in ("x1", "y1", "x2", "y2")] for row in rows], seen.boxes_R4, atol=1e-6)
    assert {row["source"] for row in rows} == {"collection"}


@pytest.mark.parametrize(("rule", "own", "grid"), [("boxes", 1, 0), ("grid", 0, 1), ("both", 1, 1), ("none", 0, 0)])
def test_rules_for_regions(rule: str, own: int, grid: int, model: Path, shapes: Path, tmp_path: Path) -> None:
    collection = Collection.open(shapes)
    boxes = sum(len(collection.read_regions(row)) for row in range(len(collection)))
    counts = build_index(model, shapes, tmp_path / "index", regions=rule)[0].counts
    assert counts["regions"] == own * boxes + grid * len(collection) * len(coarse_boxes())


def test_an_image_without_boxes_gets_the_grid(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain"
    image = tiny.image_bytes(tiny.draw([], size=(80, 20), seed=0))
    with CollectionWriter(path, name="plain", license="CC0-1.0", source="test") as writer:
        writer.add("flat", image, captions=[Caption("noise")])
    out = tmp_path / "index"
    assert build_index(model, path, out)[0].counts["regions"] == len(coarse_boxes())
    rows = read_rows([one.rows_path(out) for one in Description.read(out).segments if one.kind == "region"])
    corners = np.stack([rows[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    np.testing.assert_allclose(corners, coarse_boxes(), atol=1e-5)  # of the image, not of the padded square


@pytest.mark.parametrize("method", ["none", "roi"])
def test_other_methods(method: str, shapes: Path, tmp_path: Path) -> None:
    other = save_model(build_model(tiny.recipe(regions={"method": method})).eval(), tmp_path / "model")
    described, _ = build_index(other, shapes, tmp_path / "index")
    assert described.method == method
    assert described.counts["regions"] > 50


def test_float16_is_the_rounded_float32(model: Path, shapes: Path, tmp_path: Path) -> None:
    for precision in ("float32", "float16"):
        build_index(model, shapes, tmp_path / precision, precision=precision)
    for segment in Description.read(tmp_path / "float16").segments:
        half, full = (segment.embeddings(tmp_path / name) for name in ("float16", "float32"))
        assert half.dtype == np.float16
        np.testing.assert_allclose(half, full, atol=2**-11)


def test_repeated_it_does_nothing(model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "index"
    build_index(model, shapes, out)
    before = contents(out)
    monkeypatch.setattr(ModelSource, "load", lambda *_, **__: pytest.fail("the model is not needed"))
    _, plan = build_index(model, shapes, out)
    assert not len(plan.todo)
    assert contents(out) == before


def test_new_images_are_added_and_only_these(model: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    build_index(model, shapes, out)
    image = tiny.image_bytes(tiny.draw([], size=(50, 60), seed=9))
    with CollectionWriter(shapes, name="shapes", license="CC0-1.0", source="test") as writer:
        writer.add("late", image, captions=[Caption("late")])
    described, plan = build_index(model, shapes, out, regions="auto")
    assert len(plan.todo) == 1
    assert plan.new_regions == len(coarse_boxes())
    assert keys_of(out, "image") == Collection.open(shapes).keys
    assert described.counts["regions"] == len(keys_of(out, "region"))
    build_index(model, shapes, tmp_path / "anew")
    for segment in described.segments:
        anew = next(one for one in Description.read(tmp_path / "anew").segments if one.kind == segment.kind)
        np.testing.assert_allclose(segment.embeddings(out), anew.embeddings(tmp_path / "anew"), atol=1e-5)


def test_removed_images_vanish_at_once_and_then_from_the_files(model: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    before, _ = build_index(model, shapes, out)
    vector = next(one for one in before.segments if one.kind == "image").embeddings(out)[0]
    first = Index.open(out).nearest(vector, count=1, kind="images")[0]
    remove(shapes, first.key)
    for kind in ("images", "regions", "both"):
        answers = Index.open(out).nearest(vector, count=1000, kind=kind, per_image=1000)
        assert first.key not in {hit.key for hit in answers}
    assert first.key in keys_of(out, "image")
    after, plan = build_index(model, shapes, out)
    assert (len(plan.todo), plan.dropped) == (0, 1)
    assert first.key not in {*keys_of(out, "image"), *keys_of(out, "region")}
    assert after.counts["images"] == before.counts["images"] - 1
    assert {path.stem for path in (out / "rows").iterdir()} == {one.name for one in after.segments}


def test_unreadable_images_are_named_once_and_tried_again_on_request(model: Path, shapes: Path, tmp_path: Path) -> None:
    out, tar = tmp_path / "index", next((shapes / "images").glob("00000.tar"))
    whole = tar.read_bytes()
    tiny.damage(shapes, "train-03")
    described, _ = build_index(model, shapes, out)
    assert described.counts["unreadable"] == 1
    row = pq.read_table(out / "quarantine.parquet").to_pylist()[0]
    assert row["key"] == "train-03"
    assert row["reason"]
    assert not len(build_index(model, shapes, out)[1].todo)
    assert build_index(model, shapes, out, retry=True)[0].counts["unreadable"] == 1
    tar.write_bytes(whole)
    described, _ = build_index(model, shapes, out, retry=True)
    assert described.counts["unreadable"] == 0
    assert not (out / "quarantine.parquet").exists()
    assert sorted(keys_of(out, "image")) == sorted(Collection.open(shapes).keys)


def test_segments_are_filled_and_split(
    model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_folder, "SEGMENT_ROWS", 10)
    monkeypatch.setattr(module, "PART", 7)
    out = tmp_path / "index"
    described, _ = build_index(model, shapes, out)
    assert [one.rows for one in described.segments if one.kind == "image"] == [10, 10, 10, 2]
    assert keys_of(out, "image") == Collection.open(shapes).keys
    remove(shapes, keys_of(out, "image")[12])
    after, _ = build_index(model, shapes, out)
    assert [one.rows for one in after.segments if one.kind == "image"] == [10, 10, 10, 1]
    assert after.segments[0] == described.segments[0], "a segment that loses nothing stays"
    assert keys_of(out, "image") == Collection.open(shapes).keys


def test_more_parts_than_a_process_may_have_files_open(
    model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 30, before[1]))
    try:
        described, _ = build_index(model, shapes, tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert described.counts["images"] == 32


def test_dry_run_writes_nothing(model: Path, shapes: Path, tmp_path: Path) -> None:
    _, plan = build_index(model, shapes, tmp_path / "index", dry_run=True)
    assert plan.new_bytes == (len(plan.todo) + plan.new_regions) * 32 * 4
    assert not (tmp_path / "index").exists()


def test_refusals(model: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "index"
    build_index(model, shapes, out)
    other = save_model(build_model(tiny.recipe(training={"seed": 5})).eval(), tmp_path / "other")
    assert fingerprint(other) != fingerprint(model)
    for names, arguments, options in (
        ((out, model), (other, shapes, out), {}),
        (("--regions auto",), (model, shapes, out), {"regions": "grid"}),
        (("--precision float32",), (model, shapes, out), {"precision": "float16"}),
        ((shapes, "--out"), (model, shapes, shapes), {}),
        (("regions", "boxs", "boxes"), (model, shapes, tmp_path / "a"), {"regions": "boxs"}),
        ((tmp_path, "config.json"), (tmp_path, shapes, tmp_path / "a"), {}),
        ((tmp_path / "none",), (model, tmp_path / "none", tmp_path / "a"), {}),
    ):  # fmt: skip
        with raises_naming(UserError, *names):
            build_index(*arguments, **options)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with raises_naming(UserError, "GB", "float16"):
        build_index(model, shapes, tmp_path / "full")


def test_a_first_run_killed_before_it_wrote_anything_is_resumed(model: Path, shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    out.mkdir()
    (out / "writer.lock").touch()
    (out / ".index.json.0123.tmp").write_text('{"kind": "ind')
    build_index(model, shapes, out, regions="none")
    assert not list(out.glob(".*.tmp"))
    (out / "index.json").unlink()
    with raises_naming(UserError, "--out"):
        build_index(model, shapes, out)


def test_the_fingerprint_is_of_what_embeds(model: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    config = json.loads((copy / "config.json").read_text())
    config["locate_rule"] = "candidates"
    (copy / "config.json").write_text(json.dumps(config))
    assert fingerprint(copy) == fingerprint(model)
    config["recipe"]["regions"]["prompter"]["temperature"] = 9.0
    (copy / "config.json").write_text(json.dumps(config))
    assert fingerprint(copy) != fingerprint(model)


def test_words_in_images_find_them_where_asked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CollectionWriter(tmp_path / "signs", name="signs", license="CC0-1.0", source="test") as writer:
        for key, word in (("a", "HARBOR 1908"), ("b", ""), ("c", "BAKERY")):
            image = Image.new("RGB", (320, 120), "white")
            ImageDraw.Draw(image).text((20, 30), word, font=ImageFont.load_default(size=44), fill="black")
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            writer.add(key, buffer.getvalue())
    signs, out = tmp_path / "signs", tmp_path / "index"
    build_index(model, signs, out)

    def found_by(text: str) -> list[str]:
        texts, keys = Index.open(out)._texts, keys_of(out, "image")
        assert texts is not None
        return [keys[row] for row in np.flatnonzero(texts.score(text))]

    assert found_by("bakery") == []
    build_index(model, signs, out, ocr=True)
    assert Description.read(out).ocr
    # A later run keeps to it, and reads no image again.
    monkeypatch.setattr(ocr, "_recognize", lambda *_: pytest.fail("read again"))
    build_index(model, signs, out)
    assert found_by("bakery") == ["c"]
    assert found_by("1908 harbor") == ["a"]
    monkeypatch.setattr(module, "has_ocr", lambda: False)
    with raises_naming(UserError, "foveate[ocr]"):
        build_index(model, signs, tmp_path / "other", ocr=True)
    assert not (tmp_path / "other").exists()
