"""Classification of labeled images: settings in epochs, drawn shots, one task, evaluation after epochs, prediction."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveate.adapt.recipe import AdaptTraining
from foveate.calibrate.settings import FineTuneSettings
from foveate.core.errors import UserError
from foveate.core.runs import RunFolder
from foveate.records.geometry import View
from foveate.records.images import BadImage
from foveate.training import loop
from foveate.training.classification import (
    ClassificationDataset,
    ClassificationTask,
    LabeledImages,
    array_images,
    load_cached,
    predict,
)
from foveate.training.distributed import start
from foveate.training.epochs import ClassificationSettings
from foveate.training.loader import BadSample, Loader
from foveate.training.settings import TrainingSettings
from naming import raises_naming


def blobs(count: int = 60) -> LabeledImages:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    return array_images(4 * np.eye(3)[labels] + random.standard_normal((count, 3)), labels, name="blobs")


def test_settings_declare_the_loops_fields_once() -> None:
    for settings in (ClassificationSettings, AdaptTraining, FineTuneSettings):
        for name, field in TrainingSettings.model_fields.items():
            if name not in ("steps", "schedule"):
                assert settings.model_fields[name].description == field.description, name
                assert settings.model_fields[name].metadata == field.metadata, name
    with pytest.raises(ValueError, match="batch_size"):
        ClassificationSettings(batch_size=0)


def test_epochs_become_steps() -> None:
    assert ClassificationSettings(epochs=3, batch_size=8).resolve(20).steps == 7
    assert FineTuneSettings(epochs=3, batch_size=8).resolve(20).steps == 6, "whole batches alone count"
    assert ClassificationSettings(epochs=3, batch_size=64).resolve(20).batch_size == 20
    assert ClassificationSettings(steps=5, batch_size=8).resolve(20).steps == 5
    warm = ClassificationSettings(epochs=10, batch_size=10, warmup=0.25).resolve(20)
    assert (warm.steps, warm.warmup_steps) == (20, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fields that the optimizer or schedule does not read are not handed on
        for optimizer in ("adamw", "sgd"):
            for schedule in ("cosine", "wsd", "constant"):
                ClassificationSettings(optimizer=optimizer, schedule=schedule).resolve(20)
    absolute = AdaptTraining(learning_rate=1e-2, final_learning_rate=1e-3).resolve(20)
    assert absolute.final_learning_rate_fraction == pytest.approx(0.1)


def test_shots_of_a_class_do_not_depend_on_the_others() -> None:
    images = blobs()
    rows = images.labeled_rows()
    drawn = images.draw_shots(rows, 4, seed=1)
    assert np.bincount(images.labels_N[drawn]).tolist() == [4, 4, 4]
    without = rows[images.labels_N[rows] != 1]
    with raises_naming(UserError, "blobs", "'1'"):
        images.draw_shots(without, 4, seed=1)
    fewer = images.draw_shots(without, 4, seed=1, allow_missing=True)
    assert fewer.tolist() == drawn[images.labels_N[drawn] != 1].tolist()
    assert images.missing_classes(without) == ["1"]


def load_or_fail(row: int, view: View) -> Tensor:
    if row == 2:
        raise BadImage("unreadable", "image 2 is cut off")
    values = torch.tensor([float(row), 0.0])
    return values.flip(0) if view.flip else values


PAIRS = LabeledImages("pairs", ("a", "b"), list("klmn"), np.array([0, 1, 0, -1]), np.array(["x"] * 4), load_or_fail)


def test_other_images_have_another_identity() -> None:
    identity = PAIRS.identify(np.array([0, 1]))
    assert identity == replace(PAIRS, splits=np.array(["y"] * 4)).identify(np.array([0, 1]))
    others = [
        replace(PAIRS, name="others"),
        replace(PAIRS, classes=("a", "c")),
        replace(PAIRS, keys=list("kxmn")),
        replace(PAIRS, labels_N=np.array([1, 0, 0, -1])),
        replace(PAIRS, content=lambda row: bytes([row])),
        replace(PAIRS, content=lambda row: bytes([2 * row])),
    ]
    hashes = [str(other.identify(np.array([0, 1]))) for other in others]
    assert len({str(identity), str(PAIRS.identify(np.array([0]))), *hashes}) == 2 + len(others)


def test_samples_are_pure_functions_and_name_what_cannot_be_read() -> None:
    with pytest.raises(BadSample, match="m: image 2 is cut off"):
        ClassificationDataset(PAIRS).sample(2, 0, 0)
    cached = ClassificationDataset(PAIRS, load_cached({0: torch.ones(1)}, {2: "cut off"}))
    assert cached.sample(0, 0, 0)["inputs"].item() == 1
    with pytest.raises(BadSample, match="m: cut off"):
        cached.sample(2, 0, 0)


def test_predictions_leave_out_what_cannot_be_read() -> None:
    predictions = predict(lambda inputs: inputs, PAIRS)
    assert predictions.rows.tolist() == [0, 1]
    assert predictions.unreadable == {2: "image 2 is cut off"}
    assert predictions.features.shape == (2, 0)
    assert predictions.accuracy == 0.5
    both = predict(lambda inputs: (inputs, 2 * inputs), PAIRS, np.array([1, 0]))
    assert both.features.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    with raises_naming(UserError, "pairs", "image 2 is cut off"):
        predict(lambda inputs: inputs, PAIRS, np.array([2]))


def train(folder: Path, *, evaluations: list[float] | None = None, epochs: int = 3) -> nn.Module:
    images, model = blobs(), nn.Linear(3, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    settings = ClassificationSettings(epochs=epochs, batch_size=16, learning_rate=0.1, workers=0).resolve(60)
    task = ClassificationTask(model)
    if evaluations is not None:

        def evaluate() -> dict[str, float]:
            evaluations.append(predict(model, images).accuracy)
            return {"accuracy": evaluations[-1]}

        task.evaluate_with(evaluate, images_per_epoch=60)
    dataset = ClassificationDataset(images)
    loader = Loader(dataset, rows=images.labeled_rows(), batch_size=16, seed=0, workers=0)
    with start("cpu"):
        loop.train(task, loader, settings, RunFolder.create(folder))
    return model


def test_a_model_learns_and_is_evaluated_after_every_epoch_but_the_last(tmp_path: Path) -> None:
    accuracies: list[float] = []
    model = train(tmp_path / "evaluated", evaluations=accuracies)
    assert predict(model, blobs()).accuracy > 0.9
    assert len(accuracies) == 2
    plain = train(tmp_path / "plain")
    assert torch.equal(model.weight, plain.weight), "an evaluation changes nothing"
    rows = RunFolder(tmp_path / "evaluated").read_metrics()
    assert [row["eval_accuracy"] for row in rows if "eval_accuracy" in row] == accuracies


def test_a_task_in_memory_cannot_be_exported(tmp_path: Path) -> None:
    with raises_naming(UserError, tmp_path):
        ClassificationTask(nn.Linear(2, 2)).export(tmp_path)
