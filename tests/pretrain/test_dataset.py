"""What a visit to a picture gives: drawn regions and texts, boxes that move with the view, cached features."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

import tiny
from foveate.pretrain import texts as texts_module
from foveate.pretrain.dataset import PretrainDataset, draw_regions
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.texts import LiveTexts, StoredTexts, text_id
from foveate.pretrain.train import build_dataset, build_model
from foveate.records.appending import AnnotationAppender
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.record import Caption
from foveate.records.tables import Provenance
from foveate.records.writer import CollectionWriter
from foveate.settings.errors import UserError
from foveate.settings.files import write_bytes_atomically
from foveate.training.loader import BadSample
from foveate.vision import features, store
from foveate.vision.localiser.asking import encode_all
from foveate.vision.registry import build_text_encoder
from foveate.vision.views import read

LITE0 = {"kind": "lite0", "image_size": 64, "width": 32}
RANDOM_VIEWS = {"scale": (0.3, 1.0), "flip": 0.5, "cached": 3}


@pytest.fixture
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


def make(collection: Collection, cache: Path, *, cached: bool = False, **changes: Any) -> PretrainDataset:
    """A dataset of the tiny recipe; `cached` = with the frozen Lite0 as image encoder."""
    settings = tiny.recipe(**changes)
    if cached:
        settings = settings.model_copy(update={"image_encoder": LITE0})
    model = build_model(settings)
    return build_dataset(settings, collection, model, device=torch.device("cpu"), cache=cache)


def test_region_draw_is_a_pure_function() -> None:
    for count in (0, 1, 4):
        np.testing.assert_array_equal(draw_regions(count, 4, seed=0, visit=3, key="a"), np.arange(count))
    once = draw_regions(9, 4, seed=0, visit=3, key="a")
    np.testing.assert_array_equal(once, draw_regions(9, 4, seed=0, visit=3, key="a"))
    assert len(once) == 4
    assert (np.diff(once) > 0).all()
    others = [
        draw_regions(9, 4, seed=1, visit=3, key="a"),
        draw_regions(9, 4, seed=0, visit=4, key="a"),
        draw_regions(9, 4, seed=0, visit=3, key="b"),
    ]
    assert any(not np.array_equal(once, other) for other in others)


def test_each_region_is_drawn_equally_often() -> None:
    visits, count, most = 3000, 7, 4
    drawn = Counter(
        int(one) for visit in range(visits) for one in draw_regions(count, most, seed=0, visit=visit, key="k")
    )
    share = np.array([drawn[index] for index in range(count)]) / visits
    sigma = np.sqrt(most / count * (1 - most / count) / visits)
    assert np.abs(share - most / count).max() < 4 * sigma


def test_rows_and_pictures_without_text(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path)
    assert dataset.skipped == tiny.WITHOUT_TEXT
    assert len(dataset.rows) == tiny.SPLITS["train"] - tiny.WITHOUT_TEXT
    assert {collection.record(int(row)).split for row in dataset.rows} == {"train"}
    weights = {"alt": 0.0, "title": 0.0, "poem": 1.0}
    with pytest.raises(UserError, match=r"no picture of split 'train' has a text of the kinds poem .*data\.captions"):
        make(collection, tmp_path, data={"captions": weights})


def test_a_sample_is_a_pure_function(collection: Collection, tmp_path: Path) -> None:
    first = make(collection, tmp_path, data={"views": RANDOM_VIEWS})
    second = make(collection, tmp_path, data={"views": RANDOM_VIEWS})
    for row in first.rows[:4].tolist():
        for visit in (5, 0, 2):
            one, two = first.sample(row, visit, 0), second.sample(row, visit, 0)
            assert one["key"] == two["key"]
            assert torch.equal(one["image"], two["image"])
            assert (one["text"], one["phrases"]) == (two["text"], two["phrases"])
            np.testing.assert_array_equal(one["boxes"], two["boxes"])


def test_texts_follow_the_weights(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, data={"captions": {"alt": 3.0, "title": 1.0}})
    row, drawn = int(dataset.rows[0]), Counter()
    by_text = {caption.text: caption.kind for caption in collection.captions_of(row)}
    for visit in range(200):
        drawn[by_text[dataset.sample(row, visit, 0)["text"]]] += 1
    assert abs(drawn["alt"] / 200 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 200)


def test_a_picture_without_the_drawn_kind_can_be_left_out(collection: Collection, tmp_path: Path) -> None:
    weights = {"alt": 1.0, "title": 0.0, "x": 1.0}
    dataset = make(collection, tmp_path, data={"captions": weights, "missing": "skip"})
    row, sources = int(dataset.rows[0]), ["alt"]
    drawn = [dataset.rule.mixture.draw(sources, seed=0, visit=visit, key="train-00") for visit in range(100)]
    assert 30 < drawn.count(None) < 70
    assert dataset.sample(row, drawn.index("alt"), 0)["text"]
    with pytest.raises(BadSample, match="no text of a wanted kind"):
        dataset.sample(row, drawn.index(None), 0)


def colour_at(image: torch.Tensor, box: np.ndarray) -> torch.Tensor:
    """The colour of the middle of a box in uint8 model input [3, S, S]."""
    size = image.shape[-1]
    x, y = (box[0] + box[2]) / 2 * size, (box[1] + box[3]) / 2 * size
    return image[:, min(int(y), size - 1), min(int(x), size - 1)].float()


def test_boxes_move_with_the_pixels(collection: Collection, tmp_path: Path) -> None:
    """Under crops and mirroring the middle of each box has its phrase's colour (shapes cover their middle)."""
    dataset = make(collection, tmp_path, data={"views": {"scale": (0.6, 1.0), "flip": 0.5}})
    looked = right = 0
    for row in dataset.rows.tolist():
        for visit in range(4):
            sample = dataset.sample(row, visit, 0)
            assert sample["boxes"].dtype == np.float32
            for box, phrase in zip(sample["boxes"], sample["phrases"], strict=True):
                assert (box >= 0).all()
                assert (box <= 1).all()
                near = torch.tensor(tiny.COLOURS[phrase.split()[0]])
                looked += 1
                right += bool((colour_at(sample["image"], box) - near).abs().max() < 70)
    assert looked > 80
    assert right > 0.93 * looked, f"{right} of {looked}"


def test_cached_and_uncached_boxes_agree(collection: Collection, tmp_path: Path) -> None:
    plain = make(collection, tmp_path, data={"views": RANDOM_VIEWS})
    cached = make(collection, tmp_path, cached=True, data={"views": RANDOM_VIEWS})
    encoder = cached.image_encoder
    np.testing.assert_array_equal(plain.rows, cached.rows)
    for row in plain.rows[:6].tolist():
        for visit in range(3):
            one, two = plain.sample(row, visit, 0), cached.sample(row, visit, 0)
            np.testing.assert_array_equal(one["boxes"], two["boxes"])
            assert (one["text"], one["phrases"]) == (two["text"], two["phrases"])
            pixels, _ = read(collection, row, encoder.preprocess, cached._view(row, visit, 0))
            expected = encoder.frozen_features(pixels[None])[0].to(torch.float16)
            torch.testing.assert_close(two["image"], expected, rtol=0.02, atol=0.02)
        later = cached.sample(row, 4, 0)
        torch.testing.assert_close(later["image"], cached.sample(row, 1, 0)["image"], rtol=0, atol=0)


def cache_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("pictures-*/part-*"))}


def parts_written(monkeypatch: pytest.MonkeyPatch, *, stop_at: int | None = None) -> list[str]:
    """Names of the parts that are written from here on; the process is interrupted in number `stop_at`."""
    names: list[str] = []

    def write(path: Path, data: bytes) -> None:
        names.append(path.name)
        if len(names) == stop_at:
            raise KeyboardInterrupt
        write_bytes_atomically(path, data)

    monkeypatch.setattr(store, "write_bytes_atomically", write)
    return names


def test_a_cache_stopped_half_way_goes_on(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 10)
    changes: dict[str, Any] = {"cached": True, "data": {"views": RANDOM_VIEWS}}
    make(collection, tmp_path / "straight", **changes)
    whole = cache_files(tmp_path / "straight")
    assert len(whole) == 5, "5 parts of at most 10 of 48 entries"
    parts_written(monkeypatch, stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        make(collection, tmp_path / "stopped", **changes)
    assert len(cache_files(tmp_path / "stopped")) == 2
    made = parts_written(monkeypatch)
    make(collection, tmp_path / "stopped", **changes)
    assert cache_files(tmp_path / "stopped") == whole
    assert len(made) == 3, "finished parts are not made again"
    made.clear()
    make(collection, tmp_path / "stopped", **changes)
    assert not made


def entries(cache: Path) -> int:
    """Pictures times views in all parts of a cache."""
    with_keys = [load_file(path)["keys"] for path in cache.glob("pictures-*/part-*")]
    return sum(len(keys) for keys in with_keys)


def folders(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("pictures-*")}


def test_nothing_stale_is_ever_read(collection: Collection, tmp_path: Path) -> None:
    """Other views, another seed of random views or other pictures: entries of their own. Another encoder: a folder."""
    variants: list[tuple[bool, dict[str, Any]]] = [
        (True, {"data": {"views": RANDOM_VIEWS}}),
        (True, {"data": {"views": {**RANDOM_VIEWS, "scale": (0.5, 1.0)}}}),
        (False, {"data": {"views": {**RANDOM_VIEWS, "cached": 2}}}),
        (True, {"data": {"views": RANDOM_VIEWS}, "training": {"seed": 1}}),
        (True, {"data": {"views": RANDOM_VIEWS, "split": "validation"}}),
        (True, {}),
        (False, {"training": {"seed": 7}}),
    ]
    expected: set[tuple[int, str]] = set()
    for is_new, changes in variants:
        before, seed = len(expected), changes.get("training", {}).get("seed", 0)
        dataset = make(collection, tmp_path, cached=True, **changes)
        assert dataset._cache is not None
        for row in dataset.rows.tolist():
            expected |= {(row, repr(dataset._view(row, view, seed))) for view in range(dataset._cache.views)}
        assert (len(expected) > before) == is_new
        assert entries(tmp_path) == len(expected), changes
    assert len(folders(tmp_path)) == 1
    settings = tiny.recipe().model_copy(update={"image_encoder": {**LITE0, "image_size": 32}})
    build_dataset(settings, collection, build_model(settings), device=torch.device("cpu"), cache=tmp_path)
    assert len(folders(tmp_path)) == 2


def test_a_new_picture_costs_only_itself(
    tiny_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(tiny_collection, tmp_path / "shapes")
    before = make(Collection.open(path), tmp_path / "cache", cached=True)
    image = tiny.draw([("red disc", PixelBox(8, 8, 40, 40))], size=(64, 64), seed=99)
    with CollectionWriter(path, source="later") as writer:
        writer.add("aaa-new", tiny.picture_bytes(image), captions=[Caption("a red disc", "alt")], split="train")
    made = parts_written(monkeypatch)
    after = make(Collection.open(path), tmp_path / "cache", cached=True)
    assert len(after.rows) == len(before.rows) + 1
    assert entries(tmp_path / "cache") == len(after.rows)
    assert len(made) == 1
    for old in before.rows.tolist():
        key = before.collection.keys[old]
        new = after.collection.row_of(key)
        assert torch.equal(before.sample(old, 0, 0)["image"], after.sample(new, 0, 0)["image"])
    pixels, _ = read(after.collection, after.collection.row_of("aaa-new"), after.image_encoder.preprocess)
    expected = after.image_encoder.frozen_features(pixels[None])[0].to(torch.float16)
    found = after.sample(after.collection.row_of("aaa-new"), 0, 0)["image"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_processes_share_the_work(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes at once: each part is made once; a process that is alone takes over what nobody brings."""
    monkeypatch.setattr(features, "PART", 4)
    monkeypatch.setattr(store, "_POLL_SECONDS", 0.01)
    made = parts_written(monkeypatch)
    settings = tiny.recipe().model_copy(update={"image_encoder": LITE0})

    def one(rank: int) -> PretrainDataset:
        return build_dataset(
            settings, collection, models[rank], device=torch.device("cpu"), cache=tmp_path / "two", share=(rank, 2)
        )

    models = [build_model(settings) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        datasets = list(pool.map(one, range(2)))
    assert len(made) == len(set(made)) == 4
    for row in datasets[0].rows.tolist():
        assert torch.equal(datasets[0].sample(row, 0, 0)["image"], datasets[1].sample(row, 0, 0)["image"])
    made.clear()
    monkeypatch.setattr(features.FeatureStore.fill, "__kwdefaults__", {"share": (0, 1), "patience": 0.05})
    build_dataset(settings, collection, models[1], device=torch.device("cpu"), cache=tmp_path / "one", share=(1, 2))
    assert len(made) == 4


def test_a_damaged_part_is_named(collection: Collection, tmp_path: Path) -> None:
    make(collection, tmp_path, cached=True)
    part = next(tmp_path.glob("pictures-*/part-*"))
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(UserError, match=f"{part.name}: is damaged; remove it"):
        make(collection, tmp_path, cached=True)


def test_a_text_that_forbids_mirroring_gets_its_own_entry(tmp_path: Path) -> None:
    """With the texts the views change, and with them what a cache must hold."""
    path = tiny.make_collection(tmp_path / "shapes")
    settings = {"data": {"views": {"scale": (1.0, 1.0), "flip": 1.0, "cached": 1}}}
    before = make(Collection.open(path), tmp_path / "cache", cached=True, **settings)
    key = before.collection.keys[int(before.rows[0])]
    with CollectionWriter(path, source="later") as writer:
        provenance = Provenance(source="later")
        writer.annotate("captions", [{"key": key, "kind": "alt", "text": "the left one"}], provenance)
    after = make(Collection.open(path), tmp_path / "cache", cached=True, **settings)
    row = int(after.rows[0])
    assert not np.array_equal(before.sample(row, 0, 0)["boxes"], after.sample(row, 0, 0)["boxes"])
    assert not torch.equal(before.sample(row, 0, 0)["image"], after.sample(row, 0, 0)["image"])
    assert entries(tmp_path / "cache") == len(before.rows) + 1


@pytest.mark.parametrize("cached", [False, True])
def test_damaged_pictures_become_bad_samples(cached: bool, tiny_collection: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_collection, tmp_path / "shapes")
    tiny.damage(path, "train-03")
    collection = Collection.open(path)
    dataset = make(collection, tmp_path / "cache", cached=cached)
    with pytest.raises(BadSample, match="train-03: "):
        dataset.sample(collection.row_of("train-03"), 0, 0)
    assert dataset.sample(collection.row_of("train-04"), 0, 0)["key"] == "train-04"


def test_whole_picture_region(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, data={"whole_picture_region": True, "regions_per_picture": 1})
    row = int(dataset.rows[0])
    assert dataset.sample(row, 0, 0)["phrases"][0] != dataset.sample(row, 0, 0)["text"], "it has regions of its own"
    dataset._row = lambda row: type(dataset._read_row(row))(dataset._read_row(row).captions, np.zeros((0, 4)), ())
    sample = dataset.sample(row, 0, 0)
    assert sample["phrases"] == [sample["text"]]
    box = sample["boxes"][0]
    assert max(box[2] - box[0], box[3] - box[1]) == pytest.approx(1.0), "the whole picture, without the padding"


def test_clip_sees_no_regions(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, regions={"method": "none"})
    batch = dataset.collate([dataset.sample(int(row), 0, 0) for row in dataset.rows[:3]])
    assert batch["boxes_R4"].shape == (0, 4)
    assert batch["counts_B"].tolist() == [0, 0, 0]


def test_collate_is_ragged(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path)
    samples = [dataset.sample(int(row), 0, 0) for row in dataset.rows[:8]]
    batch = dataset.collate(samples)
    counts = [len(sample["phrases"]) for sample in samples]
    assert batch["counts_B"].tolist() == counts
    assert len(set(counts)) > 1
    assert batch["image_index_R"].tolist() == [place for place, count in enumerate(counts) for _ in range(count)]
    assert batch["image"].shape == (8, 3, 64, 64)
    assert batch["image"].dtype == torch.uint8
    phrases = [phrase for sample in samples for phrase in sample["phrases"]]
    assert batch["phrase_ids_R"].tolist() == [text_id(phrase) for phrase in phrases]
    assert torch.equal(batch["region_text"], dataset._texts[phrases])


def test_text_ids_are_stable() -> None:
    assert text_id("a red disc") == 3_465_325_781_351_782_946
    assert 0 <= text_id("") < 2**63


def test_text_features_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_text_encoder({"kind": "minilm", "embed_dim": 8})
    texts = ["one", "two", "a longer text about three", "two"]
    made = parts_written(monkeypatch)
    first = StoredTexts(encoder, pa.array(texts), cache=tmp_path)
    assert len(made) == 1
    again = StoredTexts(encoder, pa.array(texts[::-1]), cache=tmp_path)
    assert len(made) == 1
    assert torch.equal(first[texts], again[texts])
    torch.testing.assert_close(first[["two"]], encode_all(encoder, ["two"]), rtol=1e-4, atol=1e-5)
    assert first[[]].shape == (0, *encoder.feature_shape)
    monkeypatch.setattr(texts_module, "_SMALL_BYTES", 0)
    more = StoredTexts(encoder, pa.array([*texts, "four"]), cache=tmp_path)
    assert len(made) == 2
    assert torch.equal(more[texts], first[texts]), "read from the disk, not from memory"
    parts = [load_file(path)["keys"] for path in tmp_path.glob("texts-*/part-*")]
    assert sorted(map(len, parts)) == [1, 3], "one new text is made alone"
    with pytest.raises(AssertionError, match="not named before"):
        first[["four"]]


def test_a_trained_tower_keeps_no_texts(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path)
    assert isinstance(dataset._texts, LiveTexts)
    assert not list(tmp_path.iterdir())
    texts = ["a red disc", "a blue square", "a red disc"]
    expected = dataset._texts.encoder.frozen_features(texts)
    assert torch.equal(dataset._texts[texts], expected)
    assert torch.equal(dataset._texts[texts], expected), "from memory"
    assert dataset._texts[[]].shape == (0, *expected.shape[1:])


def test_lost_regions_are_counted(collection: Collection, tmp_path: Path) -> None:
    dataset = make(collection, tmp_path, data={"views": {"scale": (0.1, 0.3), "flip": 0.0}})
    lost = kept = 0
    for row in dataset.rows.tolist():
        sample = dataset.sample(row, 0, 0)
        assert sample["lost"] + len(sample["phrases"]) == len(collection.regions_of(row))
        lost, kept = lost + sample["lost"], kept + len(sample["phrases"])
    batch = dataset.collate([dataset.sample(row, 0, 0) for row in dataset.rows.tolist()])
    assert int(batch["lost_B"].sum()) == lost > 0
    assert kept > 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection() -> None:
    """200,000 pictures with a caption and three phrases each: some 65 MB of texts alone, as Python strings."""
    script = Path(__file__).resolve().parent / "dataset_memory.py"
    said = subprocess.run([sys.executable, script, "200000"], capture_output=True, text=True, check=True).stdout
    opened, read_too = map(float, said.split())
    assert opened < 25
    assert read_too < 50


def labelled(path: Path) -> Path:
    """A copy of a collection whose first picture has a region that a detector made."""
    with AnnotationAppender(path, purpose="labelling") as appender:
        row = {"key": "train-00", "x1": 0.1, "y1": 0.1, "x2": 0.4, "y2": 0.5, "phrase": "a zebra", "score": 0.5}
        appender.append("regions", [row], Provenance("vesl:test", "m", "abc"))
    return path


def test_regions_are_drawn_from_the_chosen_sources(tiny_collection: Path, tmp_path: Path) -> None:
    path = labelled(Path(shutil.copytree(tiny_collection, tmp_path / "shapes")))
    drawn: dict[str, set[str]] = {}
    for name, sources in (("all", None), ("truth", ["test"]), ("made", ["vesl:test@abc"])):
        recipe = tiny.recipe(data={"region_sources": sources})
        dataset = build_dataset(
            recipe, Collection.open(path), build_model(recipe), device=torch.device("cpu"), cache=tmp_path / "cache"
        )
        samples = [dataset.sample(int(row), 0, 0) for row in dataset.rows]
        drawn[name] = {phrase for sample in samples for phrase in sample["phrases"]}
    assert drawn["made"] == {"a zebra"}
    assert drawn["all"] == drawn["truth"] | drawn["made"]
    assert "a zebra" not in drawn["truth"]
    recipe = tiny.recipe(data={"region_sources": ["vesl:tast"]})
    with pytest.raises(UserError, match="field data.region_sources: no region has the source 'vesl:tast'"):
        build_dataset(
            recipe, Collection.open(path), build_model(recipe), device=torch.device("cpu"), cache=tmp_path / "cache"
        )


def test_an_evaluation_takes_no_label_of_a_detector_for_the_truth(tiny_collection: Path, tmp_path: Path) -> None:
    path = labelled(Path(shutil.copytree(tiny_collection, tmp_path / "shapes")))
    model = build_model(tiny.recipe()).eval()
    found = []
    for one in (tiny_collection, path):
        collection = Collection.open(one)
        embedded = embed_collection(model, collection, collection.rows("train"), rules=())
        found.append([region.phrase for region in embedded.regions])
    assert found[0] == found[1]
    assert found[0]
