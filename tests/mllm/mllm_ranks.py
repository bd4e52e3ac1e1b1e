"""Trains two stages in one process of several; the script of test_mllm_distributed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.train import train_mllm
from foveate.records.collection import Collection
from foveate.records.conversations import Conversation, Turn
from tiny_mllm import make_recipe

TEXTS = [
    Conversation(f"text/{n}", (), (Turn("user", f"What follows {n}?"), Turn("assistant", str(n + 1))), "text")
    for n in range(8)
]


def make_ranks_recipe(parallel: str) -> MllmRecipe:
    """Batches of an image with a box in its answer, one with none, and two texts.

    With this seed the first process of two gets both texts of the second and third step: no image and no box.
    """
    mixture: dict[str, Any] = {
        "alpha": {"general": 1, "refer-ground": 1, "text-rich": 0, "math": 0, "code": 0, "science": 0},
        "w": (0.5, 0, 0.5),
        "draw": "fixed",
        "max_passes": 1e6,
    }
    alignment, instruction = (stage.model_dump() for stage in make_recipe().stages)
    recipe = make_recipe(stages=[alignment, {**instruction, "mixture": mixture, "max_conversations": 2}])
    training = {"parallel": parallel, "seed": 2}
    stages = [
        stage.model_copy(update={"training": stage.training.model_copy(update=training)}) for stage in recipe.stages
    ]
    return recipe.model_copy(update={"stages": tuple(stages)})


def train_ranks(collection: Path, run: Path, parallel: str) -> Path:
    """Train in this process, one of those that the environment names."""
    with Collection.open(collection) as opened:
        train_mllm(make_ranks_recipe(parallel), opened, run, device="cpu")
    return run / "model"


if __name__ == "__main__":
    train_ranks(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
