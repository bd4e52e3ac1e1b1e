"""What `foveate adapt train` is told: backbone, method, data and training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from foveate.core.recipes import Settings, apply_overrides, validate
from foveate.training.settings import TrainingSettings


def rate_of_epoch(epoch: int, *, peak: float, epochs: int, warmup_epochs: int, final: float, first: float) -> float:
    """The rate meant for an epoch (from 0): linear from `first` towards `peak`, then half a cosine to `final`.

    The cosine counts from epoch 0, not from the end of the warm-up, so that `peak` itself is never reached.
    """
    if epoch < warmup_epochs:
        return first + epoch * (peak - first) / warmup_epochs
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * epoch / epochs))


def released_rate(epoch: int, *, peak: float, epochs: int, warmup_epochs: int, final: float, first: float) -> float:
    """The rate with which the released code trains in an epoch (from 0)."""
    late = max(0, epoch - 1)
    return rate_of_epoch(late, peak=peak, epochs=epochs, warmup_epochs=warmup_epochs, final=final, first=first)


class AdaptData(Settings):
    """Which labels of which images."""

    field: str | None = Field(None, description="label field of the collection")
    train: list[str] = Field(["train"], min_length=1, description="splits that are trained on")
    validation: str = Field("validation", description="split of the accuracies during a comparison")
    test: str = Field("test", description="split that is measured at the end; never used to choose")
    shots: int | None = Field(None, ge=1, description="training images of each class, drawn by the seed")
    classes: list[str] | None = Field(None, description="only these classes, in this order")


class AdaptTraining(Settings):
    """How long and how fast."""

    epochs: int = Field(50, ge=1, description="visits of each training image")
    batch_size: int = Field(64, ge=1, description="images of one update")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled")
    decay: Literal["all", "matrices"] = Field(
        "all", description="what decays: all that is trained (the study), or weights of two or more dimensions"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the updates with a rising learning rate")
    schedule: Literal["cosine", "constant", "osu_release"] = Field(
        "cosine",
        description="after the warm-up; osu_release = as the study's released code: by epoch, and one epoch late",
    )
    final_learning_rate: float = Field(0.0, ge=0, description="at the end, of cosine and osu_release")
    first_learning_rate: float = Field(1e-6, gt=0, description="at the start, of osu_release")
    drop_path: float = Field(0.0, ge=0, lt=1, description="rate at the last block, rising from 0; timm's networks")
    flip: bool = Field(False, description="mirror half of the training images; then nothing is computed once")
    keep: bool = Field(True, description="compute frozen parts in front of the first change once for each image")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 = autocast")
    gradient_clip_norm: float | None = Field(None, gt=0, description="largest global gradient norm")
    seed: int = Field(0, ge=0, description="decides first values, order, drawn shots and dropout")
    log_every: int = Field(10, ge=1, description="updates between two rows of the log")
    checkpoint_every: int = Field(200, ge=1, description="updates between two checkpoints")
    workers: int = Field(2, ge=0, description="threads that read images")

    def without_effect(self, given: Iterable[str]) -> list[str]:
        """Sentences on those of the fields that a user gave which the schedule does not read."""
        read_by = {
            "first_learning_rate": ("osu_release",),
            "final_learning_rate": ("cosine", "osu_release"),
        }
        return [
            f"training.{name} has no effect with training.schedule {self.schedule}; it is of {' and '.join(schedules)}"
            for name, schedules in read_by.items()
            if name in given and self.schedule not in schedules
        ]

    def resolved(self, images: int) -> TrainingSettings:
        """The loop's settings for so many training images."""
        size = min(self.batch_size, images)
        steps = max(1, self.epochs * images // size)
        if self.schedule == "osu_release":
            steps = self.epochs * (images // size)
        final = min(1.0, self.final_learning_rate / self.learning_rate) if self.schedule == "cosine" else 0.0
        return TrainingSettings(
            steps=steps,
            batch_size=size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.999),
            eps=1e-8,
            warmup_steps=int(self.warmup * steps),
            schedule="constant" if self.schedule == "constant" else "cosine",
            final_learning_rate_fraction=final,
            gradient_clip_norm=self.gradient_clip_norm,
            precision=self.precision,
            seed=self.seed,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=1,
            workers=self.workers,
        )

    def factor(self, images: int) -> Callable[[int], float] | None:
        """Update (from 0) to the share of the peak rate; None: as the loop's settings say."""
        if self.schedule != "osu_release":
            return None
        updates = images // min(self.batch_size, images)
        warmup = round(self.warmup * self.epochs)
        rates = [
            released_rate(
                epoch,
                peak=self.learning_rate,
                epochs=self.epochs,
                warmup_epochs=warmup,
                final=self.final_learning_rate,
                first=self.first_learning_rate,
            )
            for epoch in range(self.epochs)
        ]
        return lambda step: rates[min(step // updates, self.epochs - 1)] / self.learning_rate


class AdaptRecipe(Settings):
    """All of one run."""

    backbone: dict[str, Any] = Field(description="`kind` and the fields of that encoder; see `--backbone`")
    method: dict[str, Any] = Field(description="`method` and its options")
    head: str | None = Field(
        None, description="adapter folder whose head this one starts from, such as a linear probe's of the same classes"
    )
    data: AdaptData = AdaptData()
    training: AdaptTraining = AdaptTraining()

    @model_validator(mode="after")
    def _method_is_known(self) -> Self:
        from foveate.adapt.registry import settings_of

        settings_of(self.method)
        return self


def recipe_of(
    backbone: Mapping[str, Any],
    method: str,
    overrides: Sequence[str] = (),
    *,
    head: str | None = None,
    **given: Mapping[str, Any],
) -> AdaptRecipe:
    """A checked recipe from options and `part.field=value` overrides; a bare field is one of the method.

    Raises:
        UserError: for unknown fields or methods, with the nearest.
    """
    content: dict[str, Any] = {"backbone": dict(backbone), "method": {"method": method}, "head": head}
    content |= {part: dict(fields) for part, fields in given.items()}
    parts = ("backbone", "method", "data", "training")
    full = [
        text if text.partition("=")[0].partition(".")[0] in parts or "=" not in text else f"method.{text}"
        for text in overrides
    ]
    apply_overrides(content, full)
    from foveate.adapt.registry import settings_of

    settings_of(content["method"])  # its own sentence, not one within another
    return validate(AdaptRecipe, content, where="foveate adapt")
