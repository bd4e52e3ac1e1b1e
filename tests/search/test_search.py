"""Search: words, an image, a box, sums of them; one answer an image; refusals; and the verbs of the package."""

from __future__ import annotations

import ast
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
import tiny
from foveate import Box, Hit, PixelBox, UserError
from foveate.pretrain.train import build_model
from foveate.records.bm25 import TextIndex
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.search import nearest
from foveate.search.api import Location, Model
from foveate.search.index import build_index
from foveate.search.index_folder import RANDOM_TEXTS, Description
from foveate.search.query import Query, embed_query
from foveate.search.search import Index, search
from foveate.vision.localizer.folder import save_model
from foveate_labs.worlds.scenes.clips import write_frames
from naming import raises_naming

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def folder(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, collection and index side by side."""
    return tiny.make_index(tmp_path_factory.mktemp("search"), tiny_collection)


@pytest.fixture(scope="module")
def index(folder: Path) -> foveate.SearchIndex:
    return foveate.open_index(folder / "my-index")


def image_of(folder: Path, key: str) -> bytes:
    collection = Collection.open(folder / "my-images")
    return collection.image_bytes(collection.find_row(key))


def test_an_image_finds_itself(folder: Path, index: foveate.SearchIndex) -> None:
    for key in ("train-00", "test-05"):
        best = index.search(image=image_of(folder, key), kind="images", count=3)[0]
        assert (best.key, best.kind, best.box) == (key, "images", None)
        assert best.score == pytest.approx(1, abs=1e-5)
        assert best.caption


def test_a_box_finds_itself(folder: Path, index: foveate.SearchIndex) -> None:
    collection = Collection.open(folder / "my-images")
    row = collection.find_row("test-02")
    region = collection.read_regions(row)[0]
    width, height = (int(collection.index[name][row]) for name in ("width", "height"))
    for box in (region.box, region.box.to_pixels(width, height)):
        best = index.search(image=collection.image_bytes(row), box=box, kind="regions", count=1)[0]
        assert (best.key, best.phrase, best.kind) == ("test-02", region.phrase, "regions")
        assert best.score == pytest.approx(1, abs=1e-4)
        assert best.box is not None
        np.testing.assert_allclose(best.box.to_array(), region.box.to_array(), atol=1e-6)


def test_hits_are_ordered_by_their_cosines(index: foveate.SearchIndex) -> None:
    vector = index.model.encode_text(["a red disc"])[0].astype(np.float64)
    hits = index.search("a red disc", count=1000, kind="regions", per_image=1000, text_weight=0)
    assert len(hits) == index.index.description.counts["regions"]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    segment = next(segment for segment in index.index.description.segments if segment.kind == "region")
    vectors = segment.embeddings(index.index.folder).astype(np.float64)
    assert scores[0] == pytest.approx((vectors @ vector).max() / np.linalg.norm(vector), abs=1e-6)


def test_kinds_are_calibrated_against_random_words(index: foveate.SearchIndex) -> None:
    random = np.load(index.index.folder / RANDOM_TEXTS).astype(np.float64)
    opened = index.index
    for part, kind in (("image", "images"), ("region", "regions")):
        rows = opened.rows_of(part)
        keys = np.array(rows.rows["key"].to_pylist())
        cosines = random @ np.concatenate(rows.vectors).astype(np.float64).T
        best = np.stack([cosines[:, keys == key].max(axis=1) for key in np.unique(keys)])
        assert opened.description.spreads["text"][part] == pytest.approx((best.mean(), best.std()), abs=2e-6)
        for hit in index.search("a red disc", kind=kind, count=5, text_weight=0):
            assert hit.z == pytest.approx((hit.score - best.mean()) / best.std(), abs=1e-3)
    both = index.search("a red disc", count=32, text_weight=0)
    assert [hit.z for hit in both] == sorted((hit.z for hit in both), reverse=True)  # type: ignore[type-var]
    assert all(hit.z is None for hit in opened.nearest(random[0]))


def test_words_of_captions_and_keys_lift_their_images(index: foveate.SearchIndex) -> None:
    collection = index.index.collection
    text = "zebra train-07"
    assert index.search(text, text_weight=0) != index.search(text)
    best = index.search(text, kind="images", text_weight=100)[0]
    # "train" is in many keys; the number is in few.
    assert "07" in best.key
    # Both of the words that the index knows.
    assert best.text == 1
    hits = index.search("a red disc", count=32, kind="images", text_weight=2.5)
    scores = {hit.key: hit.z + 2.5 * hit.text for hit in hits if hit.z is not None}
    assert list(scores) == sorted(scores, key=lambda key: -scores[key])
    documents = [
        [key, *(c.text for c in collection[key].captions)]
        for key in index.index.rows_of("image").rows["key"].to_pylist()
    ]
    expected = TextIndex.build(documents).score("a red disc")
    keys = index.index.rows_of("image").rows["key"].to_pylist()
    assert {hit.key: hit.text for hit in hits} == pytest.approx(dict(zip(keys, expected.tolist(), strict=True)))


def test_an_index_of_an_old_release_is_searched_by_cosines_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    described = replace(Description.read(copy / "my-index"), spreads={}, texts="")
    described.write(copy / "my-index")
    hits = foveate.open_index(copy / "my-index").search("a red disc")
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {hit.z for hit in hits} == {None}
    assert "repeat `foveate index`" in capsys.readouterr().err
    build_index(copy / "model", copy / "my-images", copy / "my-index")
    capsys.readouterr()
    assert foveate.open_index(copy / "my-index").search("a red disc") == foveate.open_index(folder / "my-index").search(
        "a red disc"
    )
    assert "earlier release" not in capsys.readouterr().err


def test_max_hits_per_image(index: foveate.SearchIndex) -> None:
    for kind in ("both", "regions"):
        for per_image in (1, 2):
            keys = [hit.key for hit in index.search("red", count=1000, kind=kind, per_image=per_image)]
            assert max(map(keys.count, keys)) == per_image
            assert len(set(keys)) == 32
    assert len(index.search("red", count=5)) == 5
    few, many = (index.search("red", count=count) for count in (4, 20))
    assert few == many[:4]


def test_the_sum_is_the_weighted_sum_of_unit_vectors(folder: Path, index: foveate.SearchIndex) -> None:
    network, data = index.model.network, image_of(folder, "train-01")
    text, negative = index.model.encode_text(["a red disc", "blue"]).astype(np.float64)
    image = index.model.encode_images([data])[0].astype(np.float64)
    query = Query(text="a red disc", image=data, negative="blue", weights={"text": 2, "negative": 0.5})
    expected = 2 * text + image - 0.5 * negative
    vector, box, terms = embed_query(network, query)
    assert box is None
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    assert query.parts == ["text", "image", "negative"]
    np.testing.assert_allclose(
        [terms[part] for part in query.parts], np.array([2, 1, -0.5]) / np.linalg.norm(expected), atol=1e-6
    )
    box_query = Query(image=data, box=Box(0.1, 0.1, 0.6, 0.9))
    assert box_query.parts == ["box"]
    z = index.model.encode_regions(data, [Box(0.1, 0.1, 0.6, 0.9)])[0]
    np.testing.assert_allclose(embed_query(network, box_query)[0], z, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("query",)),
        ({"negative": "red"}, ("query",)),
        ({"text": "  "}, ("query", "text")),
        ({"text": "red", "negative": ""}, ("query", "negative")),
        ({"text": "red", "negative": "red"}, ("cancel out",)),
        ({"text": "red", "box": Box.whole()}, ("box", "image")),
        ({"text": "red", "weights": {"texts": 1}}, ("'texts'", "'text'")),
        ({"text": "red", "weights": {"text": 0}}, ("'text'", "got 0")),
        ({"text": "red", "weights": {"text": float("nan")}}, ("'text'", "got nan")),
        ({"text": "red", "weights": {"image": 2}}, ("'image'", "text")),
        ({"text": "red", "kind": "image"}, ("'image'", "'images'")),
        ({"text": "red", "backend": "fais"}, ("'fais'", "'faiss'")),
        ({"text": "red", "count": 0}, ("count", "0")),
        ({"image": b"no image"}, ("image",)),
        ({"image": "missing.jpg"}, ("missing.jpg",)),
        ({"image": 7}, ("int",)),
        ({"image": tiny.image_bytes(Image.new("RGB", (40, 30))), "box": PixelBox(10, 0, 50, 20)}, ("[0, 1]",)),
        ({"image": tiny.image_bytes(Image.new("RGB", (40, 30))), "box": (0, 0, 1, 1)}, ("(0, 0, 1, 1)", "PixelBox")),
    ],
)
def test_impossible_queries_are_refused(
    options: dict[str, Any], names: tuple[str, ...], index: foveate.SearchIndex
) -> None:
    with raises_naming(UserError, *names):
        index.search(**options)


def test_vectors_of_ones_own(index: foveate.SearchIndex) -> None:
    for vector in (np.zeros(32), np.ones(31), np.full(32, np.nan)):
        with raises_naming(UserError, "32"):
            index.index.nearest(vector)


def test_damaged_and_moved_folders(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "moved"))
    moved = foveate.open_index(copy / "my-index")
    assert len(moved) == len(foveate.open_index(folder / "my-index"))
    with raises_naming(UserError, tmp_path, "index.json"):
        foveate.open_index(tmp_path)
    other = save_model(build_model(tiny.recipe(training={"seed": 5})).eval(), tmp_path / "other")
    with raises_naming(UserError, other):
        foveate.open_index(copy / "my-index", model=other)
    with raises_naming(UserError, tmp_path, "--collection"):
        foveate.open_index(copy / "my-index", collection=tmp_path)
    lonely = Path(shutil.copytree(folder / "my-index", tmp_path / "elsewhere" / "far" / "my-index"))
    text = (lonely / "index.json").read_text(encoding="utf-8").replace(str(folder), str(tmp_path / "gone"))
    (lonely / "index.json").write_text(text, encoding="utf-8")
    with raises_naming(UserError, "--collection"):
        foveate.open_index(lonely)
    with raises_naming(UserError, "--model"):
        foveate.open_index(lonely, collection=folder / "my-images")
    assert foveate.open_index(lonely, collection=folder / "my-images", model=folder / "model").search("red")
    segment = Description.read(copy / "my-index").segments[0].embeddings_path(copy / "my-index")
    segment.write_bytes(segment.read_bytes()[:-100])
    with raises_naming(UserError, ".npy"):
        foveate.open_index(copy / "my-index").search("red")
    (copy / "my-index" / "index.json").write_text('{"kind": "index", "format": 1}')
    with raises_naming(UserError, "index.json"):
        foveate.open_index(copy / "my-index")


def test_an_empty_index_and_an_emptied_one(folder: Path, tmp_path: Path) -> None:
    with CollectionWriter(tmp_path / "empty", name="empty", license="CC0-1.0", source="test"):
        pass
    build_index(folder / "model", tmp_path / "empty", tmp_path / "index")
    with raises_naming(UserError, tmp_path / "index", "empty"):
        Index.open(tmp_path / "index")
    build_index(folder / "model", folder / "my-images", tmp_path / "images", regions="none")
    opened = foveate.open_index(tmp_path / "images")
    with raises_naming(UserError, "regions"):
        opened.search("red", kind="regions")


@pytest.mark.parametrize("lists_from", [10**9, 10])
def test_faiss_finds_the_same(lists_from: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "LISTS_FROM", lists_from)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    opened = foveate.open_index(copy / "my-index")
    for kind in ("images", "regions", "both"):
        exact = opened.search("a red disc", count=7, kind=kind)
        assert opened.search("a red disc", count=7, kind=kind, backend="faiss") == exact
    kept = sorted(path.name.partition("-")[0] for path in (copy / "my-index").glob("faiss/*"))
    assert kept == (["image", "region"] if lists_from == 10 else []), "one kind's lists must not push out the other's"


@pytest.mark.parametrize("factory", ["IVF2,Flat", "IVF2,SQ8", "HNSW8", "IVF2,PQ4x4", "PCA8,SQ8"])
def test_any_index_of_faiss_gives_scores_of_the_vectors(factory: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    opened = foveate.open_index(copy / "my-index")
    exact = {(hit.key, hit.box): hit for hit in opened.search("a red disc", count=50, kind="regions", per_image=50)}
    for _ in range(2):  # built, then read from its file
        hits = opened.search("a red disc", count=5, kind="regions", per_image=50, backend=f"faiss:{factory}")
        assert len(hits) == 5
        assert all(hit == exact[hit.key, hit.box] for hit in hits)
        opened = foveate.open_index(copy / "my-index")
    (stored,) = (copy / "my-index" / "faiss").iterdir()
    opened.search("a red disc", kind="regions", backend="faiss:HNSW4")
    assert stored not in (copy / "my-index" / "faiss").iterdir(), "an index of another factory takes its place"


def test_the_effort_of_an_approximate_index_is_chosen_by_its_recall(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    # Without clusters a neighbor may be in any list, so that nearly all must be searched.
    vectors = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = nearest.build_faiss([vectors[:1000], vectors[1000:]], "IVF64,Flat")
    assert index.nprobe > 8
    queries = np.random.default_rng(1).normal(size=(50, 16))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, exact_QK = nearest.nearest([vectors], queries, count=20)
    excluded = np.zeros(0, np.int64)
    found = [nearest.nearest_among([vectors], query, count=20, excluded=excluded, index=index)[1] for query in queries]
    recall = np.mean([len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, exact_QK, strict=True)]) / 20
    assert recall > 0.97
    assert "nprobe" in capsys.readouterr().err


@pytest.mark.parametrize("factory", ["IVF", "nonsense", "IVF99999,Flat", "PQ7", "Flat,,,", "PQ99999999999x8"])
def test_what_faiss_cannot_make_is_refused(factory: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with raises_naming(UserError, factory, "IVF256,Flat"):
        foveate.open_index(copy / "my-index").search("red", backend=f"faiss:{factory}")
    assert not list((copy / "my-index").glob("faiss/*.faiss"))


def test_without_faiss_it_says_what_to_install(index: foveate.SearchIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with raises_naming(UserError, "foveate[faiss]"):
        index.search("red", backend="faiss")


def test_images_may_be_paths_bytes_or_images(folder: Path, tmp_path: Path) -> None:
    model = foveate.open_model(folder / "model")
    data = image_of(folder, "train-02")
    (tmp_path / "a.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    three = model.encode_images([tmp_path / "a.png", data, image])
    assert three.shape == (3, model.embed_dim)
    assert three.dtype == np.float32
    np.testing.assert_allclose(three, three[:1].repeat(3, 0), atol=1e-6)
    for mode in ("L", "1", "P", "CMYK", "RGBA", "LA", "I", "F", "HSV"):
        assert np.isfinite(model.encode_images([Image.new(mode, (30, 20))])).all(), mode
    turned = Image.new("RGB", (64, 32), "red")
    turned.paste("blue", (0, 0, 10, 32))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    by_path, by_image = model.encode_images([tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")])
    np.testing.assert_allclose(by_path, by_image, atol=2e-2)
    assert model.encode_images([]).shape == (0, 32)
    assert model.encode_regions(data, []).shape == (0, 32)


def test_many_images_are_the_same_as_few(folder: Path) -> None:
    model = foveate.open_model(folder / "model")
    images = [image_of(folder, f"test-{number:02d}") for number in range(10)] * 4
    many = model.encode_images(iter(images))
    np.testing.assert_allclose(many[:10], model.encode_images(images[:10]), atol=1e-5)


def test_bare_numbers_are_refused(folder: Path) -> None:
    model, data = foveate.open_model(folder / "model"), image_of(folder, "train-02")
    for boxes in ([(0.1, 0.1, 0.5, 0.5)], [[1, 2, 3, 4]], np.array([[0.1, 0.1, 0.5, 0.5]])):
        with raises_naming(UserError, "Box(x1", "y1", "x2", "y2"):
            model.encode_regions(data, boxes)  # type: ignore[arg-type]
    for call in (
        lambda: model.encode_regions(data, Box.whole()),  # type: ignore[arg-type]
        lambda: model.encode_images("a.png"),  # type: ignore[arg-type]
        lambda: model.encode_text("red"),
    ):
        with raises_naming(UserError, "["):
            call()
    with raises_naming(UserError, "b.png"):
        model.encode_images(["b.png"])
    with raises_naming(UserError, "1"):
        model.encode_images([data, b"x"])


def test_locate_gives_typed_boxes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model, data = foveate.open_model(folder / "model"), image_of(folder, "train-02")
    found = model.locate(data, "a red disc")
    assert isinstance(model, Model)
    assert isinstance(found, Location)
    assert isinstance(found.boxes["candidates"], Box)
    assert found.box == found.boxes[found.rule]
    assert set(found.boxes) == {"head", "candidates", "center", "random"}
    monkeypatch.setattr(model.network, "ground", lambda *_: torch.zeros(1, 4))
    nowhere = model.locate(data, "a red disc", rule="head")
    assert (nowhere.box, nowhere.score) == (None, None)


def test_search_is_one_question(folder: Path, index: foveate.SearchIndex) -> None:
    hits = foveate.search(folder / "my-index", "a red disc", count=3)
    assert hits == index.search("a red disc", count=3)
    assert all(isinstance(hit, Hit) for hit in hits)
    query = Query(text="a red disc")
    assert search(index.index, query, index.model.network, count=3)[0] == hits


def test_names_are_there_without_torch() -> None:
    code = (
        "import foveate, sys; assert {'open_model', 'open_index', 'search'} <= set(dir(foveate)); "
        "foveate.Box, foveate.PixelBox; assert 'torch' not in sys.modules; "
        "foveate.open_model; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_example_of_the_docs_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/python.md, word for word, beside a model, an index and an image of the names that it uses."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    # Run by tests of adapt, calibrate and pretrain, or a training of minutes.
    blocks = [block for block in blocks if not re.search(r"Calibrator|open_adapter|pretrain\(", block)]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "runs" / "study-tour" / "cloc-seed0").mkdir(parents=True)
    (copy / "model").rename(copy / "runs" / "study-tour" / "cloc-seed0" / "model")
    Image.open(io.BytesIO(image_of(folder, "train-01"))).convert("RGB").save(copy / "holiday.jpg")
    # The example reads from 1:20 to 2:00.
    frames = (np.full((48, 64, 3), 4 * number, np.uint8) for number in range(60))
    write_frames(frames, copy / "street.mp4", frame_rate=0.5)
    monkeypatch.chdir(copy)
    names: dict[str, Any] = {"pixels": torch.zeros(2, 3, 224, 224)}  # of the example of adapters
    for block in blocks:
        ast.parse(block)
        exec(compile(block, "python.md", "exec"), names)
    assert names["images"].shape == (1, 32)
    assert names["regions"].shape == (2, 32)
    assert all(isinstance(hit, Hit) for hit in names["hits"])
    assert names["positions"].shape == (197, 2)
