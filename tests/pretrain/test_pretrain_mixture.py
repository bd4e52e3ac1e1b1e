"""Training on several collections, and evaluations during training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from foveate.core.errors import UserError
from foveate.pretrain.evaluate import Validation
from foveate.pretrain.train import PretrainRun, pretrain
from foveate.records.collection import Collection
from foveate.training import loop
from foveate.vision.localizer.folder import load_model
from naming import raises_naming

EVALUATED = {"image_to_text_r1", "text_to_image_r1", "region_to_text_r1", "grounding_iou"}


@pytest.fixture(scope="module")
def collection(tiny_collection: Path) -> Collection:
    return Collection.open(tiny_collection)


@pytest.fixture(scope="module")
def other(tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second collection of another name."""
    path = Path(shutil.copytree(tiny_collection, tmp_path_factory.mktemp("other") / "other"))
    description = json.loads((path / "collection.json").read_text(encoding="utf-8"))
    (path / "collection.json").write_text(json.dumps({**description, "name": "other"}), encoding="utf-8")
    return path


def weights(done: PretrainRun) -> dict[str, torch.Tensor]:
    assert done.model_folder is not None
    return load_file(done.model_folder / "model.safetensors")


def run(recipe: Any, collection: Collection, path: Path) -> PretrainRun:
    return pretrain(recipe, collection, path, device="cpu", evaluate_split=None)


def test_collections_are_mixed_by_weight(collection: Collection, other: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(data={"collections": {str(other): 1 / 3}})
    done = run(recipe, collection, tmp_path / "run")
    assert done.status == "finished"
    assert done.result.collection == "shapes + other"
    assert (done.result.images, done.result.images_without_text) == (32, 2 * tiny.WITHOUT_TEXT)
    # 48 samples: 36 of the 16 images of the first, whose first pass counts, and 12 of the other.
    assert done.result.texts.images == 16 + 12
    assert not torch.equal(
        weights(done)["prompter.proj.weight"],
        weights(run(tiny.recipe(), collection, tmp_path / "alone"))["prompter.proj.weight"],
    )
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "shapes + other" in card


def test_a_stopped_mixture_resumes_exactly(
    collection: Collection, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(data={"collections": {str(other): 2.0}}, training={"evaluate_every": 2})
    straight = run(recipe, collection, tmp_path / "straight")
    steps: list[int] = []

    class StopAfter(loop.StopRequest):
        @property
        def signal_name(self) -> str | None:
            steps.append(1)
            return "SIGTERM" if len(steps) == 3 else None

        @signal_name.setter
        def signal_name(self, value: str | None) -> None:
            assert value is None

    with monkeypatch.context() as patched:
        patched.setattr(loop, "StopRequest", StopAfter)
        assert run(recipe, collection, tmp_path / "run").status == "stopped"
    resumed = weights(run(recipe, collection, tmp_path / "run"))
    assert not [name for name, value in weights(straight).items() if not torch.equal(resumed[name], value)]


def test_texts_of_a_frozen_tower_are_those_of_all_collections(other: Path, tmp_path: Path) -> None:
    """The texts differ: what only the second collection has must be encoded for the first one's batches, too."""
    first = tiny.make_collection(tmp_path / "first")
    with tiny.CollectionWriter(tmp_path / "words", name="words", license="CC0-1.0", source="test") as writer:
        for number in range(4):
            image = tiny.image_bytes(tiny.draw([], size=(64, 64), seed=number))
            writer.add(f"word-{number}", image, captions=[tiny.Caption(f"word {number}", "alt")], split="train")
    recipe = tiny.recipe(
        data={"collections": {str(tmp_path / "words"): 1.0}}, training={"steps": 1}, regions={"method": "none"}
    )
    encoders = {
        "image_encoder": {"kind": "lite0", "image_size": 64, "width": 32, "layers": 1},
        "text_encoder": {"kind": "minilm", "projection": "mlp"},
    }
    done = run(recipe.model_copy(update=encoders), Collection.open(first), tmp_path / "run")
    assert done.status == "finished"
    assert done.result.images == 16 + 4


def test_wrong_mixtures_are_refused(collection: Collection, tiny_collection: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, "data.collections", "shapes"):
        run(tiny.recipe(data={"collections": {str(tiny_collection): 1.0}}), collection, tmp_path / "twice")
    with raises_naming(UserError, "data.collections"):
        tiny.recipe(data={"collections": {str(tiny_collection): 0.0}})
    with raises_naming(UserError, tmp_path / "missing"):
        run(tiny.recipe(data={"collections": {str(tmp_path / "missing"): 1.0}}), collection, tmp_path / "none")


def test_evaluations_measure_the_validation_split_and_change_no_weight(collection: Collection, tmp_path: Path) -> None:
    plain = run(tiny.recipe(), collection, tmp_path / "plain")
    done = run(tiny.recipe(training={"evaluate_every": 4}), collection, tmp_path / "run")
    evaluated = {row["step"]: row for row in done.run.read_metrics() if "eval_image_to_text_r1" in row}
    assert list(evaluated) == [4, 6]
    same = weights(done)
    assert not [name for name, value in weights(plain).items() if not torch.equal(same[name], value)]
    assert done.model_folder is not None
    validation = Validation.of(collection, split="validation", max_images=1000, seed=0, cache=tmp_path / "cache")
    metrics = validation.metrics(load_model(done.model_folder, device="cpu"))
    assert set(metrics) == EVALUATED
    for name, value in metrics.items():
        assert evaluated[6][f"eval_{name}"] == pytest.approx(value, abs=1e-6), name


def test_the_best_step_is_restored(collection: Collection, tmp_path: Path) -> None:
    monitored = {"evaluate_every": 1, "monitor": "grounding_iou", "monitor_mode": "max", "restore_best": True}
    done = run(tiny.recipe(training=monitored), collection, tmp_path / "run")
    values = {row["step"]: row["eval_grounding_iou"] for row in done.run.read_metrics()}
    assert done.model_folder is not None
    validation = Validation.of(collection, split="validation", max_images=1000, seed=0, cache=tmp_path / "cache")
    best = validation.metrics(load_model(done.model_folder, device="cpu"))["grounding_iou"]
    assert best == pytest.approx(max(values.values()), abs=1e-6)


def test_validation_images_are_drawn_by_the_seed_and_a_missing_split_is_named(collection: Collection) -> None:
    options: dict[str, Any] = {"split": "test", "max_images": 5, "cache": Path("unused")}
    first, again, different = (Validation.of(collection, seed=seed, **options).rows.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != different
    assert len(first) == 5
    with raises_naming(UserError, "vaildation", "validation"):
        Validation.of(collection, split="vaildation", max_images=5, seed=0, cache=Path("unused"))
