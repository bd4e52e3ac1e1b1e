"""The study of VESL: its design, its labels against the truth, and a tiny run from end to end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.caption.settings import RegionLabelSettings
from foveate.caption.vesl.detection import AnnotationSettings
from foveate.caption.vesl.run import label_regions
from foveate.core.experiment_grid import Cell
from foveate.core.recipes import load
from foveate.pretrain.recipe import PretrainRecipe
from foveate.records.collection import Collection
from foveate.records.region_sources import is_pseudo_label
from foveate_labs.studies import vesl
from foveate_labs.studies.runner import run_study


def test_claims_name_what_is_measured() -> None:
    rows, measures = {row.key for row in vesl.ROWS}, {measure.key for measure in vesl.MEASURES}
    for claim in vesl.CLAIMS:
        assert {claim.better, claim.worse} <= rows
        assert {claim.measure, claim.worse_measure or claim.measure} <= measures
    assert {one.key for one in vesl.LABELINGS} | {"truth", "none"} == set(vesl.VARIANTS)
    named = [row for row in vesl.ROWS if "oracle" in row.key]
    assert all(row.title.startswith("Harness check: scene-oracle") for row in named)
    assert len(named) == 2


def test_variants_differ_in_their_regions_only() -> None:
    sources = {one.key: f"vesl:x@{one.key}" for one in vesl.LABELINGS}
    for variant in vesl.VARIANTS:
        chosen = vesl.overrides(Cell(0, "scenes", variant), vesl.QUICK, sources)
        recipe = load(PretrainRecipe, "tour", chosen)
        expected = {"none": None, "truth": ("scenes",)}.get(variant, (f"vesl:x@{variant}",))
        assert recipe.data.region_sources == expected
        assert recipe.data.captions == {"alt": 1}
    few, more = (vesl.STUDY.cells(replace(vesl.FULL, seeds=count), seed=0, datasets=()) for count in (2, 5))
    assert more[: len(few)] == few
    one, two = (vesl.STUDY.identity(replace(vesl.FULL, seeds=count), datasets=()) for count in (2, 5))
    assert one == two != vesl.STUDY.identity(vesl.QUICK, datasets=())


def test_labels_are_compared_with_the_truth(tiny_collection: Path, tmp_path: Path, monkeypatch) -> None:
    path = Path(shutil.copytree(tiny_collection, tmp_path / "shapes"))
    monkeypatch.setattr(vesl, "TRUTH", "test")
    sources = {}
    for name, shuffle in (("true", False), ("shuffled", True)):
        done = label_regions(
            path,
            RegionLabelSettings(captions=("alt",), shuffle_phrases=shuffle),
            detector="annotations",
            detector_settings=AnnotationSettings(threshold=0.9),
            split="train",
        )
        sources[name] = f"{done.result.source}@{done.result.recipe_hash}"
    found = vesl.quality(path, sources)
    assert found["true"]["label_right"] == 1.0
    assert 0.8 < found["true"]["label_found"] < 1.0, "two images have no text"
    assert found["shuffled"]["label_found"] < 0.5 * found["true"]["label_found"]
    assert found["true"]["label_count"] == pytest.approx(28 / 18, abs=0.2)


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = vesl.VeslScale(
        train_scenes=30,
        test_scenes=12,
        teacher_scenes=30,
        teacher_steps=4,
        captioner_part=0.002,
        steps=4,
        batch_size=8,
        seeds=2,
    )
    # A captioner of a few steps writes nothing that could be labeled.
    kept = ("truth", "oracle", "none")
    monkeypatch.setattr(vesl.STUDY, "variants", kept)
    monkeypatch.setattr(vesl, "MIN_COSINE", 0.0)  # a teacher of four steps is sure of nothing
    result = run_study("vesl", tmp_path / "study", scale=scale, command=["foveate", "study", "vesl"])
    assert {entry["row"] for entry in result["table"]} == set(kept)
    assert result["trainings"] == 6
    labels = vesl.read_labels(tmp_path / "study")
    assert labels["oracle-boxes"]["label_right"] > 0.9
    assert labels["oracle"]["source"] != labels["own"]["source"]
    with Collection.open(tmp_path / "study" / "scenes") as collection:
        test = collection.rows("test").tolist()
        assert not any(is_pseudo_label(one.source) for row in test for one in collection.read_regions(row))
        made = {one["source"] for one in collection.table("regions").to_pylist() if is_pseudo_label(one["source"])}
        assert made == {"vesl:cloc", "vesl:annotations"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "scenes").rglob("*.parquet")}
    again = run_study("vesl", tmp_path / "study", scale=scale, command=["foveate", "study", "vesl"])
    assert again["table"] == result["table"]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "scenes").rglob("*.parquet")}
