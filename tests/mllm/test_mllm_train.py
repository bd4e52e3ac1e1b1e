"""Training a multimodal LLM: stages in order, resumed as uninterrupted, asked from its folder."""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.model_folder import read_tensors
from foveate.core.results import Column, Row, Value
from foveate.mllm.card import model_card
from foveate.mllm.evaluate import SuiteSettings, evaluate
from foveate.mllm.results import SuiteResult
from foveate.mllm.task import MllmTask
from foveate.mllm.train import prepare_training, train_mllm
from foveate.multimodal.opening import open_mllm
from foveate.records.collection import Collection
from tiny_mllm import make_recipe


def test_a_trained_model_answers_from_its_folder(asked_collection: Path, tmp_path: Path) -> None:
    with Collection.open(asked_collection) as collection:
        trained = train_mllm(make_recipe(), collection, tmp_path / "run")
    assert trained.model_folder is not None
    assert [stage.name for stage in trained.result.stages] == ["alignment", "instruction"]
    assert not trained.result.stages[1].bad_samples
    model = open_mllm(trained.model_folder)
    answer = model.ask(torch.zeros(48, 64, 3, dtype=torch.uint8).numpy(), "Where is the red disc?", max_tokens=6)
    assert answer.tokens <= 6
    evaluated = evaluate(
        model, "scenes", asked_collection, run=tmp_path / "evaluation", settings=SuiteSettings(limit=4)
    )
    assert evaluated.questions == 4
    assert all(cell is not None for cell in evaluated.table[0].values.values())


def signal_in_call(number: int, losses: Callable[..., Any]) -> Callable[..., Any]:
    """Send SIGTERM to this process in call number `number`."""
    calls = itertools.count(1)

    def losses_with_signal(*arguments: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(*arguments)

    return losses_with_signal


def test_a_run_that_was_stopped_ends_as_an_uninterrupted_one(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    with Collection.open(asked_collection) as collection:
        whole = train_mllm(recipe, collection, tmp_path / "whole")
        for stop in (2, 3):
            with monkeypatch.context() as patch:
                # A signal that comes before call number `stop` of the losses.
                patch.setattr(MllmTask, "losses", signal_in_call(stop, MllmTask.losses))
                part = train_mllm(recipe, collection, tmp_path / "parts")
            assert part.model_folder is None
            assert part.result.status == "stopped"
        resumed = train_mllm(recipe, collection, tmp_path / "parts")
    assert whole.model_folder is not None
    assert resumed.model_folder is not None
    expected, weights = (read_tensors(run.model_folder / "model.safetensors") for run in (whole, resumed))  # type: ignore[operator]
    assert expected.keys() == weights.keys()
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(asked_collection: Path, tmp_path: Path, parts: int) -> None:
    """With several images a row, and regions, boxes and names of different number per part."""
    stage = make_recipe().stages[1]
    recipe = make_recipe(stages=[{**stage.model_dump(), "training": {**stage.training.model_dump(), "steps": 1}}])
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        samples = training.samples(stage)
        pairs = [row for row in samples.rows if len(samples.sets[row].rows) == 2]
        batch = samples.collate([samples.sample(int(row), 0, 0) for row in [*pairs[:2], *samples.rows[:4]]])
    task = MllmTask(training.model, names=training.names, stage=stage)
    gradients = []
    for pieces in ([batch], task.split(batch, parts)):
        task.zero_grad()
        totals = Counter()  # type: ignore[var-annotated]
        for piece in pieces:
            totals.update(task.count_targets(piece))
        for piece in pieces:
            terms, _ = task.losses(piece)
            counts = task.count_targets(piece)
            weighted = {name: terms[name] * counts[name] / totals[name] for name in terms if name != "loss"}
            task.total(weighted).backward()
        gradients.append({name: value.grad for name, value in task.named_parameters() if value.grad is not None})
    whole, summed = gradients
    assert whole.keys() == summed.keys()
    for name, value in whole.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(summed[name], value, atol=1e-4 * scale + 1e-7, rtol=1e-3, msg=name)


def test_what_a_recipe_cannot_train_is_refused(asked_collection: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="instruction"):
        make_recipe(stages=[{"name": "instruction", "texts": False, "training": make_recipe().stages[0].training}])
    recipe = make_recipe()
    with pytest.raises(UserError, match="box_weight"):
        make_recipe(model={**recipe.model.model_dump(), "box_head": False})
    with Collection.open(asked_collection) as collection, pytest.raises(UserError, match="validation"):
        train_mllm(make_recipe(split="validations"), collection, tmp_path / "run")


def test_a_card_says_first_what_the_model_cannot_do() -> None:
    def row(name: str, value: float) -> Row:
        return Row(question=f"Scenes: {name}", n=9, values={"image": Value(value=value, low=0.1, high=0.9)})

    columns = [Column(key="image", title="With the image")]
    table = [row("name", 0.71), row("count, two answers", 0.55)]
    evaluation = SuiteResult(title="Scenes", columns=columns, table=table, split="test")
    text = model_card(make_recipe(), 4_000_000, {"command": ["foveate", "mllm"], "license": "CC0-1.0"}, evaluation)
    lead = text.split("# A small multimodal model")[1].split("\n\n")[1]
    assert "count, two answers (0.55 of 0.75)" in lead
    assert "name (" not in lead
    assert "compare, two answers" in lead
    assert "| name | 0.710 (0.100 to 0.900) | 9 |" in text
