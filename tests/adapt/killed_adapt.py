"""The training that `test_adapt_kills.py` kills."""

from __future__ import annotations

import sys
from pathlib import Path

from foveate.adapt.load_backbone import parse_backbone
from foveate.adapt.recipe import build_recipe
from foveate.adapt.train import train_adapter

METHODS = ("lora", "full", "linear")


def adapt_train(backbone: str, data: str, run: str, method: str) -> None:
    """Thirty updates with a checkpoint after every second one; a solved head would have none."""
    fields = [
        "training.head_solver=steps",
        "training.epochs=10",
        "training.batch_size=10",
        "training.checkpoint_every=2",
        "training.log_every=1",
    ]
    recipe = build_recipe(parse_backbone(backbone), method, [*fields, "training.workers=0"])
    done = train_adapter(recipe, Path(data), Path(run), device="cpu", command=sys.argv)
    assert done.folder is not None
