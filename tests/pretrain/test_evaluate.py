"""The numbers of an evaluation on answers that are known, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from foveate.core.errors import UserError
from foveate.metrics.grounding import baseline_boxes
from foveate.metrics.intervals import Interval
from foveate.pretrain import evaluate as module
from foveate.pretrain.embed import CollectionEmbeddings, embed_collection, embed_images
from foveate.pretrain.evaluate import Validation, choose_locate_rule, class_embeddings, evaluate
from foveate.pretrain.results import MetricsTable, SplitEvaluation, describe_columns, merge_tables
from foveate.pretrain.settings import EvaluateSettings
from foveate.pretrain.train import build_model
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.record import Region
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from naming import raises_naming


@pytest.fixture(scope="module")
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


@pytest.fixture(scope="module")
def model() -> LocalizingModel:
    return build_model(tiny.recipe()).eval().requires_grad_(False)


def vectors(phrases: list[str]) -> np.ndarray:
    """A one-hot vector for each distinct phrase."""
    distinct = sorted(set(phrases))
    return np.eye(64, dtype=np.float32)[[distinct.index(phrase) for phrase in phrases]]


def perfect(collection: Collection, rows: np.ndarray) -> CollectionEmbeddings:
    """Everything right: a region's embedding is its phrase's, the head's box the truth, candidates' boxes wrong."""
    per_row = [collection.read_regions(int(row)) for row in rows]
    regions = [region for regions in per_row for region in regions]
    boxes_R4 = np.array([region.box.to_array() for region in regions])
    phrase_RE = vectors([region.phrase for region in regions])
    return CollectionEmbeddings(
        rows=rows,
        bad={},
        image_NE=np.eye(64, dtype=np.float32)[: len(rows)],
        regions=regions,
        image_R=np.repeat(np.arange(len(rows)), [len(one) for one in per_row]),
        boxes_R4=boxes_R4,
        z_RE=phrase_RE * 3,
        shuffled_RE=np.roll(phrase_RE, 1, axis=0),
        phrase_RE=phrase_RE,
        located={"head": boxes_R4.copy(), "candidates": np.tile([0.0, 0.0, 0.01, 0.01], (len(regions), 1))},
    )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`evaluate` on `perfect` answers; `known.change` may spoil them."""
    state = SimpleNamespace(change=lambda seen: None)

    def embed(
        model: object, collection: Collection, rows: np.ndarray, *, crops: bool = False, rules: object, cache: object
    ) -> CollectionEmbeddings:
        seen = perfect(collection, rows)
        state.change(seen)
        return seen

    monkeypatch.setattr(module, "embed_collection", embed)
    monkeypatch.setattr(module, "embed_phrases", lambda model, texts: torch.eye(64)[: len(texts)])
    return state


def values(result: SplitEvaluation, question: str, data: str) -> dict[str, float]:
    (row,) = (row for row in result.to_json()["table"] if (row["question"], row["data"]) == (question, data))
    return {column: value["value"] for column, value in row["values"].items()}


QUESTIONS = (
    "which phrase names this box: R@10",
    "which box does this phrase name: R@10",
    "what is in this box, of all names: mAcc",
    "which of the image's boxes: accuracy",
)


def test_perfect_answers(known: SimpleNamespace, collection: Collection, tmp_path: Path) -> None:
    result, seen = evaluate(None, collection, name="m", samples_to=tmp_path)  # type: ignore[arg-type]
    assert result.images == tiny.SPLITS["test"]
    assert result.regions == len(seen.regions)
    for question in QUESTIONS:
        found = values(result, question, "seen")
        assert found["m"] == pytest.approx(1), question
        assert found["m_shuffled"] < 1, question
    where = values(result, "where is it: IoU at least .5", "seen")
    assert (where["m_head"], where["m_candidates"]) == (1, 0)
    assert set(where) == {"m_head", "m_candidates", "center", "random"}
    assert values(result, "where is it: pointing", "unseen")["m_head"] == 1
    for k in (1, 10):
        for question in ("which text belongs to this image", "which image belongs to this text"):
            assert values(result, f"{question}: R@{k}", "shapes images") == {"m": 1.0}
    samples = pq.read_table(tmp_path / "regions.parquet").to_pydict()
    assert len(samples["key"]) == len(seen.regions)
    asked = [value for value in samples["iou_m_head"] if value == value]
    assert asked
    assert set(asked) == {1.0}
    assert set(samples["better_r2t_m"]) == {0}
    np.testing.assert_allclose(samples["x2_m_head"], samples["x2_true"])
    retrieved = pq.read_table(tmp_path / "retrieval.parquet").to_pylist()
    assert len(retrieved) == tiny.SPLITS["test"]
    assert all(row["which text belongs to this image: better"] == 0 for row in retrieved)


def test_tables_of_an_earlier_evaluation_are_removed(
    known: SimpleNamespace, collection: Collection, tmp_path: Path
) -> None:
    for name in ("classification.parquet", "regions.parquet", "notes.txt"):
        (tmp_path / name).write_text("earlier")
    evaluate(None, collection, samples_to=tmp_path)  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {"regions.parquet", "retrieval.parquet", "notes.txt"}
    assert pq.read_table(tmp_path / "regions.parquet").num_rows


def test_equal_phrases_share_their_rank(known: SimpleNamespace, collection: Collection) -> None:
    """R@1 of perfect answers with repeated phrases: the expected value under ties, 1 / (times the phrase occurs)."""
    result, seen = evaluate(None, collection, name="m")  # type: ignore[arg-type]
    phrases = [region.phrase for region in seen.regions if region.slice == "seen"]
    assert len(set(phrases)) < len(phrases)
    expected = np.mean([1 / phrases.count(phrase) for phrase in phrases])
    assert values(result, "which phrase names this box: R@1", "seen")["m"] == pytest.approx(expected)


def test_every_row_has_its_slice_number_and_chance(known: SimpleNamespace, collection: Collection) -> None:
    result, seen = evaluate(None, collection, name="m")  # type: ignore[arg-type]
    counts = {part: sum(region.slice == part for region in seen.regions) for part in ("seen", "unseen")}
    for row in result.to_json()["table"]:
        assert row["n"] > 0
        for value in row["values"].values():
            assert 0 <= value["value"] <= 1
            assert value["low"] is None or value["low"] <= value["value"] <= value["high"]
        if row["question"] == "which phrase names this box: R@1":
            part, *size = row["data"].split(", ")
            if size:
                assert row["n"] <= counts[part]
                continue
            assert row["n"] == counts[part]
            assert row["chance"] == pytest.approx(1 / counts[row["data"]])
    parts = {row["data"] for row in result.to_json()["table"]}
    assert parts <= {f"{part}{size}" for part in counts for size in ("", ", small", ", medium", ", large")} | {
        "shapes images"
    }


def test_a_model_that_ignores_the_box_is_unmasked(known: SimpleNamespace, collection: Collection) -> None:
    """One embedding per image, whatever the box: the shuffled control and the choice among its boxes show it."""

    def ignore(seen: CollectionEmbeddings) -> None:
        for image in range(len(seen.rows)):
            own = seen.image_R == image
            seen.z_RE[own] = seen.phrase_RE[own].mean(0)
        seen.shuffled_RE = seen.z_RE.copy()

    known.change = ignore
    result, _ = evaluate(None, collection, name="m")  # type: ignore[arg-type]
    choice = "which of the image's boxes: accuracy"
    (row,) = (row for row in result.to_json()["table"] if (row["question"], row["data"]) == (choice, "seen"))
    assert row["values"]["m"]["value"] <= 0.7
    assert row["chance"] == pytest.approx(0.5)
    for question in QUESTIONS[:3]:
        found = values(result, question, "seen")
        assert found["m_shuffled"] == pytest.approx(found["m"]), "it must not fall for a model that reads no box"


def test_empty_and_unknown_splits(collection: Collection) -> None:
    with raises_naming(UserError, "split"):
        evaluate(None, collection, EvaluateSettings(split="tset"))  # type: ignore[arg-type]


def test_validation_grounds_phrases_that_occur_once(
    known: SimpleNamespace, collection: Collection, tmp_path: Path
) -> None:
    def repeat_phrases(seen: CollectionEmbeddings) -> None:
        repeated_R = np.bincount(seen.image_R)[seen.image_R] > 1
        assert set(repeated_R.tolist()) == {False, True}
        seen.located["head"][repeated_R] = 0
        seen.regions[:] = [
            replace(region, phrase="a thing") if repeated else region
            for region, repeated in zip(seen.regions, repeated_R, strict=True)
        ]

    def repeat_all(seen: CollectionEmbeddings) -> None:
        seen.image_R[:] = 0
        seen.regions[:] = [replace(region, phrase="a thing") for region in seen.regions]

    validation = Validation(collection, collection.rows("test"), tmp_path)
    known.change = repeat_phrases
    assert validation.metrics(None)["grounding_iou"] == 1  # type: ignore[arg-type]
    known.change = repeat_all
    assert "grounding_iou" not in validation.metrics(None)  # type: ignore[arg-type]


def test_limit_is_drawn_by_the_seed(known: SimpleNamespace, collection: Collection) -> None:
    picked = [evaluate(None, collection, EvaluateSettings(limit=4), seed=seed)[1].rows.tolist() for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert picked[0] == picked[1] != picked[2]
    assert len(set(picked[0])) == 4


def test_zero_shot(known: SimpleNamespace, collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    categories = sorted(tiny.SHAPES)

    def by_category(seen: CollectionEmbeddings) -> None:
        labels = collection.label_values("category")[seen.rows]
        seen.image_NE = np.eye(64, dtype=np.float32)[[categories.index(label) for label in labels]]

    known.change = by_category
    present = sorted(set(collection.label_values("category")[collection.rows("test")]))
    assert present == categories
    result, _ = evaluate(None, collection, EvaluateSettings(classes="category"), name="m")  # type: ignore[arg-type]
    assert values(result, "zero-shot category, 3 names: accuracy", "shapes images") == {"m": 1.0}


def test_class_embeddings_are_means_over_templates(model: LocalizingModel) -> None:
    found = class_embeddings(model, ["disc", "square"], ["a {}", "the {} here"])
    raw = embed_phrases(model, ["a square", "the square here"]).numpy()
    mean = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found[1], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_baseline_boxes() -> None:
    found = baseline_boxes(50, seed=3)
    assert (found["center"] == [0.25, 0.25, 0.75, 0.75]).all()
    random = found["random"]
    assert (random[:, :2] <= random[:, 2:]).all()
    assert ((random >= 0) & (random <= 1)).all()
    np.testing.assert_array_equal(random, baseline_boxes(50, seed=3)["random"])
    assert not np.array_equal(random, baseline_boxes(50, seed=4)["random"])


def embedded(found: dict[str, list[list[float]]], phrases: list[str]) -> CollectionEmbeddings:
    truth = [0.0, 0.0, 0.5, 0.5]
    return CollectionEmbeddings(
        rows=np.arange(1),
        bad={},
        image_NE=np.zeros((1, 1), np.float32),
        regions=[Region(Box(*truth), phrase) for phrase in phrases],
        image_R=np.zeros(len(phrases), np.int64),
        boxes_R4=np.tile(truth, (len(phrases), 1)),
        located={rule: np.array(boxes) for rule, boxes in found.items()},
    )


def test_choose_locate_rule() -> None:
    hit, miss = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]
    assert choose_locate_rule(embedded({"head": [hit, miss], "candidates": [hit, hit]}, ["a", "b"])) == "candidates"
    assert choose_locate_rule(embedded({"head": [hit, hit], "candidates": [hit, miss]}, ["a", "b"])) == "head"
    assert choose_locate_rule(embedded({"head": [hit, hit], "candidates": [hit, hit]}, ["a", "b"])) == "head", "a tie"
    assert choose_locate_rule(embedded({"candidates": [hit]}, ["a"])) == "candidates", "the only one"
    twice = embedded({"head": [miss, miss], "candidates": [hit, hit]}, ["a", "a"])
    assert choose_locate_rule(twice) == "head", "phrases that occur twice are no question"


def test_merge_tables() -> None:
    one, two = MetricsTable(seed=0), MetricsTable(seed=0)
    one.add("q", "seen", "clip", np.array([0.0, 1.0]))
    one.add("q", "unseen", "clip", np.array([1.0]))
    two.add("q", "seen", "cloc", Interval(0.5, None, None, 2, 0.95))
    two.add("r", "seen", "cloc", np.array([1.0]))
    merged = merge_tables([one.as_list(), two.as_list()])
    assert [(row["question"], row["data"], sorted(row["values"])) for row in merged] == [
        ("q", "seen", ["clip", "cloc"]),
        ("q", "unseen", ["clip"]),
        ("r", "seen", ["cloc"]),
    ]
    assert sorted(one.as_list()[0]["values"]) == ["clip"], "the merged tables are left as they were"


def test_columns_are_explained() -> None:
    table = [{"values": dict.fromkeys(["cloc", "cloc_shuffled", "cloc_head", "center"])}, {"values": {"random": 0}}]
    found = describe_columns("cloc", table)
    assert [column["key"] for column in found] == ["cloc", "cloc_shuffled", "cloc_head", "center", "random"]
    assert [column["role"] for column in found] == ["ours", "control", "ours", "control", "control"]


def test_one_image_forward_serves_everything(model: LocalizingModel, collection: Collection) -> None:
    seen: list[int] = []
    hook = model.image_encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    found = embed_collection(model, collection, collection.rows("test"))
    hook.remove()
    assert sum(seen) == tiny.SPLITS["test"]
    assert set(found.located) == {"head", "candidates"}
    boxes = found.located["candidates"]
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all(), "candidates lie on the image, not on its padding"
    np.testing.assert_allclose(np.linalg.norm(found.image_NE, axis=1), 1, atol=1e-5)
    alone = embed_images(model, collection, collection.rows("test"))
    np.testing.assert_allclose(alone.image_NE, found.image_NE, atol=1e-6)
    assert alone.regions == []


def test_equal_phrases_have_equal_embeddings(model: LocalizingModel, collection: Collection) -> None:
    found = embed_collection(model, collection, collection.rows("test"), crops=True)
    assert found.crop_RE is not None
    assert found.crop_RE.shape == found.phrase_RE.shape
    by_phrase: dict[str, np.ndarray] = {}
    for region, vector in zip(found.regions, found.phrase_RE, strict=True):
        np.testing.assert_array_equal(vector, by_phrase.setdefault(region.phrase, vector))
    assert embed_phrases(model, []).shape == (0, 32)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_kept_features_give_the_same_answers(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite0 = {"kind": "lite0", "image_size": 64, "width": 32}
    recipe = tiny.recipe().model_copy(update={"image_encoder": lite0})
    model = build_model(recipe).eval().requires_grad_(False)
    rows = collection.rows("test")
    live = embed_collection(model, collection, rows)
    first = embed_collection(model, collection, rows, cache=tmp_path)
    monkeypatch.setattr(type(model.image_encoder), "frozen_features", None)  # a second pass needs no pixels
    second = embed_collection(model, collection, rows, cache=tmp_path)
    for found in (first, second):
        np.testing.assert_array_equal(found.rows, live.rows)
        np.testing.assert_allclose(found.z_RE, live.z_RE, atol=1e-4)
        np.testing.assert_allclose(found.located["head"], live.located["head"], atol=1e-4)
    np.testing.assert_array_equal(first.z_RE, second.z_RE)
    assert list(tmp_path.iterdir())


def test_an_empty_pass(model: LocalizingModel, collection: Collection) -> None:
    found = embed_collection(model, collection, np.zeros(0, np.int64))
    assert len(found.rows) == len(found.regions) == 0
    assert found.located["head"].shape == (0, 4)
