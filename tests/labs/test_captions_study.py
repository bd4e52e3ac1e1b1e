"""The study `captions`: its measures, its splits, its control, what judges the built-in images; and a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.core.experiment_grid import Cell
from foveate.metrics.captions import CONTRADICTED, SUPPORTED, UNVERIFIABLE
from foveate.records.appender import AnnotationAppender
from foveate.records.collection import Collection
from foveate.records.tables import Provenance
from foveate.report import render
from foveate_labs.studies import captions
from foveate_labs.studies.captions_data import classes_of, judge_named, open_shuffled, split_of
from foveate_labs.studies.captions_measures import probe, retrieval, right_name
from foveate_labs.studies.published import write_published
from foveate_labs.studies.runner import run_study
from foveate_labs.studies.study import row_values
from foveate_labs.worlds.scenes import build_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study-captions") / "scenes"
    build_scenes(path, train=30, test=6, seed=3, size=96)
    keys = Collection.open(path).keys
    rows = [{"key": key, "kind": "ssc", "text": f"about {key}", "request": f"r {key}"} for key in keys]
    with AnnotationAppender(path, purpose="test") as appender:
        appender.append("captions", rows, Provenance("captioner", "m"))
    return path


def test_retrieval_counts_equal_texts_as_right() -> None:
    image = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    text = np.eye(3, dtype=np.float32)[:2]
    assert retrieval(image, text, ["a", "a", "b"], ["a", "b"], best=1) == 1.0
    assert retrieval(image, text[::-1], ["a", "a", "b"], ["a", "b"], best=1) == 0.0
    # An image without a text asks nothing, and is a wrong answer.
    assert retrieval(image, text, ["", "a", "b"], ["a", "b"], best=1) == pytest.approx((1 + 0.5) / 2)


def test_right_name_and_probe() -> None:
    names = np.eye(4, dtype=np.float32)
    assert right_name(names, names, list("abcd"), list("abcd"), best=1) == 1.0
    assert right_name(names[::-1].copy(), names, list("abcd"), list("abcd"), best=1) == 0.0
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    x = (rng.normal(size=(200, 4)) + 4 * label[:, None]).astype(np.float32)
    kinds = [str(one) for one in label]
    assert probe(x[:100], kinds[:100], x[100:], kinds[100:]) > 0.95
    assert probe(x[:100], kinds[:100], x[100:], kinds[:100]) < 0.75


def test_splits_are_functions_of_the_name() -> None:
    found = [split_of(f"image {n}", 0) for n in range(3000)]
    assert found == [split_of(f"image {n}", 0) for n in range(3000)]
    for split, share in (("captioner", 0.34), ("test", 0.16), ("train", 0.5)):
        assert found.count(split) / 3000 == pytest.approx(share, abs=0.04)


def test_names_judge_the_built_in_images() -> None:
    said = [
        "A drawing of a teapot",
        "A drawing of a penguin",
        "The teapot is in the middle of the picture",
        "It shines",
    ]
    assert judge_named(said, {"concept": "teapot"}) == [SUPPORTED, CONTRADICTED, SUPPORTED, UNVERIFIABLE]
    assert judge_named(said, {}) == [UNVERIFIABLE] * 4


def test_captions_are_shuffled_within_the_training_images(scenes: Path) -> None:
    plain, shuffled = Collection.open(scenes), open_shuffled(scenes, seed=1)

    def texts(collection: Collection, row: int, kind: str) -> list[str]:
        return [caption.text for caption in collection.read_captions(row) if caption.kind == kind]

    training = plain.rows("train").tolist()
    own = [texts(plain, row, "ssc") for row in training]
    other = [texts(shuffled, row, "ssc") for row in training]
    assert own != other
    assert sorted(own) == sorted(other)
    for row in plain.rows("test").tolist():
        assert texts(plain, row, "ssc") == texts(shuffled, row, "ssc")
    assert all(texts(plain, row, "alt") == texts(shuffled, row, "alt") for row in training)


def test_classes_of_scenes(scenes: Path) -> None:
    collection = Collection.open(scenes)
    names, categories = classes_of(collection, range(len(collection)))
    assert all(names)
    assert all(categories)


def test_every_variant_changes_a_recipe_that_loads() -> None:
    from foveate.core.recipes import load
    from foveate.pretrain.recipe import PretrainRecipe

    for variant in captions.VARIANTS:
        recipe = load(PretrainRecipe, captions.RECIPE, captions.overrides(Cell(0, "scenes", variant), captions.FULL))
        assert recipe.training.steps == captions.FULL.steps
    assert {row.trained_as for row in captions.ROWS} == set(captions.VARIANTS)
    cells = captions.STUDY.cells(captions.FULL, seed=0, datasets=())
    assert len(cells) == 2 * len(captions.VARIANTS) * captions.FULL.seeds
    assert captions.FULL.seeds >= 5


def test_claims_name_rows_and_measures() -> None:
    rows, measures = {row.key for row in captions.ROWS}, {one.key for one in captions.MEASURES}
    for claim in captions.DESIGN.claims:
        assert {claim.better, claim.worse} <= rows
        assert claim.measure in measures


def test_values_of_cells_become_rows() -> None:
    values = row_values(captions.ROWS, [(Cell(3, "scenes", "alt"), {"short": 0.5})])
    assert values == {("scenes", "alt"): {3: {"short": 0.5}}}


@pytest.mark.slow
def test_a_very_small_study(tmp_path: Path) -> None:
    scale = captions.CaptionScale(
        train_scenes=60, test_scenes=24, images=240, captioner_part=0.002, steps=6, batch_size=16, seeds=2
    )
    result = run_study("captions", tmp_path / "study", scale=scale, command=["foveate", "study", "captions"])
    assert result["trainings"] == 4 * len(captions.VARIANTS)
    assert result["further_tables"][0]["columns"] == ["", "AltText", "SSC", "DSC", "DSC+", "AFC"]
    page = render(tmp_path / "study").read_text()
    assert "Audit of these captions" in page
    assert "Harness check" in page
    (table,) = write_published(result, tmp_path / "data").run.tables
    assert "Assertions per caption (ANA by rules)" in (tmp_path / "data" / table.file).read_text()
