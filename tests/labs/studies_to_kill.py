"""Studies for tests that kill them: one of made trainings, and a very small one of real trainings."""

from __future__ import annotations

from pathlib import Path

import torch

import foveate_labs.studies
from foveate.core import progress
from foveate_labs.studies import cloc
from foveate_labs.studies.runner import run_study

progress.configure(quiet=True)
foveate_labs.studies.__path__.append(str(Path(__file__).resolve().parent / "made"))


def counted(folder: str) -> None:
    """Twelve made trainings."""
    run_study("counted", Path(folder))


def trained(folder: str) -> None:
    """Four trainings of two steps on a dozen scenes."""
    torch.set_num_threads(1)
    cloc.VARIANTS = {name: cloc.VARIANTS[name] for name in ("cloc", "clip")}
    cloc._ON_COARSE = ("cloc",)
    scale = cloc.ClocScale(train_scenes=12, test_scenes=4, steps=2, batch_size=4, map_drawings=9, seeds=1)
    run_study("cloc", Path(folder), scale=scale)
