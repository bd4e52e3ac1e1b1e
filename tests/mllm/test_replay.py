"""A stage with replay: a share of its samples has conversations of other groups about the same images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foveate.core.errors import UserError
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.samples import MllmSamples
from foveate.mllm.train import prepare_training
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Turn, add_conversations
from naming import raises_naming
from tiny_mllm import make_recipe

INSTRUCTION = make_recipe().stages[1].model_dump()


@pytest.fixture(scope="module")
def captioned(asked_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection with a caption of every second of its training images."""
    folder = shutil.copytree(asked_collection, tmp_path_factory.mktemp("captioned") / "shapes")
    with Collection.open(folder) as collection:
        keys = [collection.keys[row] for row in collection.rows("train")][::2]
    turns = (Turn("user", "<image>\nWrite a caption."), Turn("assistant", "A disc."))
    add_conversations(folder, [Conversation(f"{key}/c", (key,), turns, "descriptions") for key in keys])
    return folder


def make_samples(folder: Path, run: Path, **stage: object) -> MllmSamples:
    recipe: MllmRecipe = make_recipe(stages=[{**INSTRUCTION, **stage}])
    with Collection.open(folder) as collection:
        return prepare_training(recipe, collection, run).samples(recipe.stages[0])


def groups_of(samples: MllmSamples, epochs: int) -> list[set[str]]:
    drawn = [samples.sample(int(row), epoch, 0) for epoch in range(epochs) for row in samples.rows]
    return [{talk.group for talk in sample["conversations"]} for sample in drawn]


def test_the_share_of_the_samples_is_replayed(captioned: Path, tmp_path: Path) -> None:
    samples = make_samples(captioned, tmp_path / "run", groups=["descriptions"], replay=0.3)
    both = [row for row in samples.rows if samples.sets[row].others]
    assert both
    samples.rows = samples.rows[[row in both for row in samples.rows]]
    groups = groups_of(samples, epochs=400 // len(both))
    replayed = [of_sample for of_sample in groups if "descriptions" not in of_sample]
    # 4 standard errors of 400 draws.
    assert abs(len(replayed) / len(groups) - 0.3) < 0.1
    assert all(of_sample == {"descriptions"} for of_sample in groups if of_sample not in replayed)


def test_only_images_of_the_groups_are_drawn(captioned: Path, tmp_path: Path) -> None:
    samples = make_samples(captioned, tmp_path / "run", groups=["descriptions"], replay=0.9)
    assert all(samples.sets[row].conversations for row in samples.rows)
    without = make_samples(captioned, tmp_path / "without", groups=["descriptions"])
    assert list(without.rows) == list(samples.rows)
    assert all(of_sample == {"descriptions"} for of_sample in groups_of(without, epochs=3))


def test_replay_without_groups_is_refused() -> None:
    with raises_naming(UserError, "replay", "groups"):
        make_recipe(stages=[{**INSTRUCTION, "replay": 0.1}])


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ({"groups": ["descriptions"]}, ["descriptions"]),
        ({"groups": ["descriptions"], "replay": 0.3}, ["descriptions", "general", "multi-image", "refer-ground"]),
        ({"mixture": {"alpha": {"general": 1, "refer-ground": 0}, "w": (1, 0, 0)}}, ["general"]),
    ],
)
def test_the_groups_that_were_trained_are_those_that_a_stage_draws(
    captioned: Path, tmp_path: Path, stage: dict[str, object], trained: list[str]
) -> None:
    recipe = make_recipe(stages=[{**INSTRUCTION, **stage}])
    with Collection.open(captioned) as collection:
        assert prepare_training(recipe, collection, tmp_path / "run").trained_groups() == trained
