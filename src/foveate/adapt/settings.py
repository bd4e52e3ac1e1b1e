"""Settings of `foveate adapt compare`, `wise`, `merge` and `predict` beside their recipes; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from foveate.core.recipes import Settings


class CompareTasks(Settings):
    """Shots of every task of a comparison, and epochs of every training."""

    shots: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (), description="number of images per class, for training and validation together; all by default"
    )
    epochs: int | None = Field(None, ge=1, description="number of epochs; the grid's by default")


class CompareRun(Settings):
    """Limit of a comparison's time, and what it writes."""

    max_hours: float = Field(
        24.0, ge=0, description="refuse to start if the estimated time on this machine is longer, in hours"
    )
    save_adapters: bool = Field(
        False,
        description="save the adapter of every final training run; these were trained on the validation images, too",
    )


class WiseSettings(Settings):
    """Alphas, splits and head of a curve between a network and its tuned one."""

    validation: str = Field("validation", description="split that selects alpha")
    test: str = Field("test", description="split for the evaluation only")
    points: int = Field(11, ge=2, le=101, description="number of alphas from 0 to 1")
    head: Literal["auto", "interpolate", "keep"] = Field(
        "auto",
        description="keep: use the tuned head at every alpha; auto: interpolate if the head started from a trained one",
    )
    at: float | None = Field(None, ge=0, le=1, description="alpha of the written model; the recommended one by default")


class MergeSettings(Settings):
    """The form in which a tuned model is written."""

    format: Literal["merged", "peft"] = Field(
        "merged",
        description="merged: weights in the backbone's own format; peft: an adapter folder of PEFT, not merged",
    )


class PredictSettings(Settings):
    """The calibration of predictions."""

    gamma: float | None = Field(None, description="value to add to the logits of classes without training images")
    calibration: Path | None = Field(
        None, description="run folder of `foveate calibrate`; by default RUN/calibration, if it exists"
    )
