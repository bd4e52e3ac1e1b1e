"""Two processes against one: the same weights after all stages, though one process may see no image and no box."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from mllm_ranks import TEXTS, train_ranks
from processes import run_processes

from foveate.core.errors import UserError
from foveate.core.model_folder import WEIGHTS, read_tensors
from foveate.mllm.recipe import StageSettings
from foveate.mllm.train import prepare_training
from foveate.records.collection import Collection
from foveate.records.conversations import add_conversations
from foveate.training.distributed import World
from naming import raises_naming
from tiny_mllm import make_recipe


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_two_processes_train_all_stages_as_one_does(parallel: str, asked_collection: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(asked_collection, tmp_path / "shapes")
    add_conversations(folder, TEXTS)
    expected = read_tensors(train_ranks(folder, tmp_path / "single", parallel) / WEIGHTS)
    run_processes(
        Path(__file__).with_name("mllm_ranks.py"), folder, tmp_path / "run", parallel, world_size=2, timeout=400
    )
    weights = read_tensors(tmp_path / "run" / "model" / WEIGHTS)
    assert weights.keys() == expected.keys()
    # AdamW enlarges the rounding of gradients near 0; four steps of the rate are 0.012.
    for name, value in expected.items():
        torch.testing.assert_close(
            weights[name], value, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_token_batches_have_a_part_for_each_process_and_accumulation(asked_collection: Path, tmp_path: Path) -> None:
    stage = make_recipe().stages[1].model_dump()
    tokens = {"max_tokens": 1000, "multiple": 2}
    recipe = make_recipe(stages=[{**stage, "tokens": tokens, "training": {**stage["training"], "accumulate": 2}}])
    settings: StageSettings = recipe.stages[0]
    with Collection.open(asked_collection) as collection:
        training = prepare_training(recipe, collection, tmp_path / "run")
        training.loader(settings, training.samples(settings, features=False))
        training.here = World(0, 2, torch.device("cpu"))
        with raises_naming(UserError, "tokens.multiple", "2", "4"):
            training.loader(settings, training.samples(settings, features=False))


def test_only_a_process_that_is_alone_times_its_stages(
    asked_collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    with Collection.open(asked_collection) as collection:
        training = prepare_training(make_recipe(), collection, tmp_path / "run")
        training.recipe = training.recipe.model_copy(update={"stages": []})
        # Stages are timed where the language model is from elsewhere.
        monkeypatch.setattr(training.staged, "language", object())
        monkeypatch.setattr(training, "announce", lambda: sizes.append(training.here.size))
        for size in (1, 2):
            training.here = World(0, size, torch.device("cpu"))
            assert training.run_all() == "finished"
    assert sizes == [1]
