"""A tiny comparison as a function of a path, for processes that are killed."""

from __future__ import annotations

from pathlib import Path

import torch

from adapt.compared import network, recipe
from foveate.adapt.compare.run import compare
from foveate.core import progress


def run(folder: str) -> None:
    torch.set_num_threads(1)
    progress.configure(quiet=True)
    wanted = recipe(Path(folder), methods=["linear", "layernorm"], training={"epochs": 2, "batch_size": 9}, seeds=2)
    compare(wanted, Path(folder) / "run", network=network(), device="cpu")
