"""Result of `species train`, declared once; loads no torch. The page of `foveate.report.pages.species` reads it."""

from __future__ import annotations

from typing import Any

from foveate.core.results import ResultModel, RunResult


class PassResult(ResultModel):
    """One relation of the training.

    Attributes:
        links: that were learned. candidates: that competed. steps: of an epoch.
        loss: mean over the last rows of the log. chance: of a guess, where it has one number (places and hours).
    """

    relation: str
    links: int
    candidates: int
    steps: int
    loss: float | None = None
    chance: float | None = None


class ClassResult(ResultModel):
    """A class with its training images."""

    label: str
    taxon: str = ""
    images: int = 0


class SpeciesTrainResult(RunResult):
    """One model trained by `species train`; no coordinates and no names of cameras.

    Attributes:
        status: "finished", or "stopped" by a signal.
        method: "cosmo", or the name of a baseline.
        contexts: links beside the species that took part.
        left_out: reason -> number of images without a label or context.
        strips: what was done with info strips, and on how many cameras they were found.
        cropped: images that showed a box instead of the whole frame.
        selection: metrics of the validation images at the epoch that was taken.
        model: folder, relative to the run folder; "" where training was stopped.
    """

    kind: str = "species_train"
    status: str = "finished"
    method: str = "cosmo"
    recipe: dict[str, Any] = {}
    data: str = ""
    contexts: list[str] = []
    classes: list[ClassResult] = []
    images: int = 0
    validation_images: int = 0
    cameras: int = 0
    left_out: dict[str, int] = {}
    passes: list[PassResult] = []
    cropped: int = 0
    strips: str = "keep"
    epoch: int | None = None
    steps: int | None = None
    seconds: float | None = None
    curves: str = "metrics.jsonl"
    selection: dict[str, float | None] = {}
    bad_samples: dict[str, str] = {}
    revision: str = ""
    model: str = ""
