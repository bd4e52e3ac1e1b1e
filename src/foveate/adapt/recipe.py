"""The recipe of `foveate adapt train`: backbone, method, data and training; options of the other commands."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from foveate.core.recipes import Settings, apply_overrides, format_overrides, validate
from foveate.core.reference import REFERENCE, reference_values, refuse_reference
from foveate.training.epochs import ClassificationSettings, with_default
from foveate.training.settings import TrainingSettings

DEFAULT_EPOCHS, MIN_STEPS = 50, 300


class AdaptData(Settings):
    """Images, their labels, and the splits to train, select and test on."""

    field: str | None = Field(None, description="label field of the collection, or column of a table")
    task: Literal["auto", "single-label", "multi-label", "regression", "ordinal"] = Field(
        "auto",
        description="labels: one class, several, a value, ordered classes; auto = what the labels look like, printed",
    )
    unit: str = Field("", description="unit of a regression's values, for tables, such as degrees")
    train: list[str] = Field(["train"], min_length=1, description="splits that are trained on")
    validation: str = Field("validation", description="split of the accuracies during training and of comparisons")
    test: str = Field("test", description="split that is measured at the end; never used to choose")
    shots: int | None = Field(None, ge=1, description="number of training images per class, drawn by the seed")
    classes: list[str] | None = Field(None, description="only these classes, in this order")


class AdaptTraining(ClassificationSettings):
    """Training of an adapter: the loop's settings, in epochs, with the study's schedule and frozen parts cached."""

    epochs: int | None = Field(  # pyrefly: ignore[bad-override]
        None, ge=1, description="number of epochs; by default 50, or as many as 300 steps take"
    )
    head_solver: Literal["lbfgs", "steps"] = Field(
        "lbfgs",
        description="of method linear; lbfgs = the head is solved (no learning rate), steps = trained as with others",
    )
    head_init: Literal["solved", "random"] = Field(
        "solved",
        description="start of a new head: solved = the linear probe on the untuned features, random = as in the study",
    )
    head_c: float | None = Field(
        None, gt=0, description="inverse L2 penalty of a solved head; by default chosen by cross-validation"
    )
    weight_decay: float = with_default("weight_decay", 1e-4)
    decay: Literal["all", "matrices"] = Field(
        "all", description="what decays: all that is trained (the study), or weights of two or more dimensions"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with a rising learning rate")
    schedule: Literal["cosine", "wsd", "constant", "osu_release"] = Field(  # pyrefly: ignore[bad-override]
        "cosine",
        description="after the warm-up",
        # As the study's released code: by epoch, and one epoch late.
        json_schema_extra=reference_values("osu_release"),
    )
    final_learning_rate: float = Field(0.0, ge=0, description="at the end, of cosine and wsd")
    first_learning_rate: float = Field(
        1e-6,
        ge=0,
        description="at the start, of the schedule osu_release; 0 = a first epoch at rest",
        json_schema_extra=REFERENCE,
    )
    loss: Literal["mse", "huber"] = Field(
        "mse", description="of regression and ordinal: squared error, or Huber's, which outliers move less"
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced = a class counts inversely to its number of images, a label to its share"
    )
    focal_gamma: float = Field(
        0.0, ge=0, description="exponent of the focal loss, for rare classes; 2 is usual, 0 = none"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from each block to the one before it; 1 = none"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="rate at the last block, rising from 0; timm's networks")
    cache: bool = Field(True, description="compute frozen parts in front of the first change once for each image")
    checkpoint_every: int = with_default("checkpoint_every", 200)

    @model_validator(mode="before")
    @classmethod
    def _refuse_flip(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "flip" in values:
            raise ValueError("training.flip: is a probability now; expected training.augmentation.flip, such as 0.5")
        return values

    def count_epochs(self, num_images: int) -> int:
        """Return the passes over this many training images.

        Few images make few steps: 50 passes over 100 images are 78 updates, in which no method gets anywhere.
        """
        if self.epochs is not None:
            return self.epochs
        # `min`, because fewer images than a batch still make one step per epoch.
        return max(DEFAULT_EPOCHS, math.ceil(MIN_STEPS * min(self.batch_size, num_images) / num_images))

    def resolve(self, num_images: int) -> TrainingSettings:
        """Return the loop's settings for this many training images."""
        if self.epochs is not None:
            return super().resolve(num_images)
        return self.model_copy(update={"epochs": self.count_epochs(num_images)}).resolve(num_images)

    def unused_fields(self, names: Iterable[str]) -> list[str]:
        """Return a sentence for each of the fields in `names` that the schedule does not read."""
        read_by = {
            "first_learning_rate": ("osu_release",),
            "final_learning_rate": ("cosine", "wsd", "osu_release"),
        }
        return [
            f"training.{name} has no effect with training.schedule {self.schedule}; it is read by "
            f"{' and '.join(schedules)}"
            for name, schedules in read_by.items()
            if name in names and self.schedule not in schedules
        ]

    def loop_schedule(self) -> dict[str, Any]:
        """Return the loop's fields of the schedule; `osu_release` is a function of its own (`step_schedule`)."""
        fraction = self.final_learning_rate_fraction
        if self.final_learning_rate and self.schedule in ("cosine", "wsd"):
            # Grids give the final rate absolutely, for candidates of different peaks.
            fraction = min(1.0, self.final_learning_rate / self.learning_rate)
        schedule = "cosine" if self.schedule == "osu_release" else self.schedule
        return {"schedule": schedule, "final_learning_rate_fraction": fraction}

    @property
    def whole_batches(self) -> bool:
        """Whether an epoch counts as the steps of its whole batches; the loader visits the rest a little later."""
        return self.schedule == "osu_release"

    def step_schedule(self, num_images: int) -> Callable[[int], float] | None:
        """Return step (from 0) -> share of the peak rate; None where the loop's own schedule is used."""
        if self.schedule != "osu_release":
            return None
        # Without the last partial batch, as the released code counts an epoch.
        steps_per_epoch = num_images // min(self.batch_size, num_images)
        epochs = self.count_epochs(num_images)
        warmup_epochs = round(self.warmup * epochs)
        rates = [
            released_rate(
                epoch,
                peak=self.learning_rate,
                epochs=epochs,
                warmup_epochs=warmup_epochs,
                final=self.final_learning_rate,
                first=self.first_learning_rate,
            )
            for epoch in range(epochs)
        ]
        return lambda step: rates[min(step // steps_per_epoch, epochs - 1)] / self.learning_rate


def rate_of_epoch(epoch: int, *, peak: float, epochs: int, warmup_epochs: int, final: float, first: float) -> float:
    """Return the scheduled rate of an epoch (from 0): linear from `first` to `peak`, then half a cosine to `final`."""
    if epoch < warmup_epochs:
        return first + epoch * (peak - first) / warmup_epochs
    # The cosine counts from epoch 0, not from the end of the warm-up, so that `peak` itself is never reached.
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * epoch / epochs))


def released_rate(epoch: int, *, peak: float, epochs: int, warmup_epochs: int, final: float, first: float) -> float:
    """Return the rate with which the study's released code (arXiv 2409.16434) trains in an epoch (from 0)."""
    # Its scheduler is stepped after an epoch with that epoch's own number: the first two epochs both have the rate of
    # the first, and every later one that of the epoch before it.
    late = max(0, epoch - 1)
    return rate_of_epoch(late, peak=peak, epochs=epochs, warmup_epochs=warmup_epochs, final=final, first=first)


class AdaptRecipe(Settings):
    """Everything that decides one run of `adapt train`."""

    backbone: dict[str, Any] = Field(description="`kind` and the fields of that encoder; see `--backbone`")
    method: dict[str, Any] = Field(description="`method` and its options")
    head: str | None = Field(
        None, description="start from the head of this adapter folder, such as a linear probe of the same classes"
    )
    keep: Literal["better", "tuned"] = Field(
        "better",
        description="adapter to save: better = untuned features with a solved head if validation accuracy is higher",
    )
    data: AdaptData = AdaptData()
    training: AdaptTraining = AdaptTraining()

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        from foveate.adapt.registry import parse_settings

        parse_settings(self.method)
        return self


def build_recipe(
    backbone: Mapping[str, Any] | None,
    method: str | None,
    overrides: Sequence[str] = (),
    *,
    content: Mapping[str, Any] | None = None,
    head: str | None = None,
    keep: str | None = None,
    **sections: Mapping[str, Any],
) -> AdaptRecipe:
    """Check a recipe from a file's content, `part.field=value` overrides and options; a bare field is the method's.

    An option beats an override, and both beat the content.

    Args:
        backbone: fields of the network; None: those of the content.
        method: its name; None: that of the content. Options of another method in the content are dropped.
        content: of a recipe file, such as the recipe.yaml of an earlier run.
        sections: fields of `data` and `training`.

    Raises:
        UserError: unknown fields or methods; the nearest is named.
    """
    options = {"backbone": dict(backbone or {}), "head": head, "keep": keep, **sections}
    if method is not None:
        options["method"] = {"method": method}
    recipe = copy.deepcopy(dict(content or {}))
    if isinstance(recipe.get("training"), Mapping):
        recipe["training"] = _drop_defaults(recipe["training"])
    if backbone is not None:
        # Fields of the content's network do not fit another one.
        recipe["backbone"] = {}
    named = recipe.get("method")
    if method is not None and not (isinstance(named, Mapping) and named.get("method") == method):
        recipe["method"] = {"method": method}
    parts = ("backbone", "method", "data", "training")
    # A bare `rank=4` is an option of the method; `training.epochs=5` names its part.
    qualified = [
        text if text.partition("=")[0].partition(".")[0] in parts or "=" not in text else f"method.{text}"
        for text in overrides
    ]
    apply_overrides(recipe, [*qualified, *format_overrides(options)])
    from foveate.adapt.registry import parse_settings

    # Checked before the whole, so that a wrong option of the method gives one sentence and not one inside another.
    if isinstance(recipe.get("method"), Mapping):
        settings = parse_settings(recipe["method"])
        refuse_reference(type(settings), recipe["method"], where="foveate adapt")
    if isinstance(recipe.get("training"), Mapping):
        refuse_reference(AdaptTraining, recipe["training"], where="foveate adapt: training")
    return validate(AdaptRecipe, recipe, where="foveate adapt")


def _drop_defaults(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a saved recipe that are not at their defaults: it has all, and few were set by a user."""
    defaults = AdaptTraining().model_dump(mode="json")
    return {name: value for name, value in training.items() if name not in defaults or value != defaults[name]}


# Settings of `foveate adapt compare`, `wise`, `merge` and `predict` beside their recipes.


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
    """The calibration of predictions, and their columns."""

    top: int = Field(1, ge=1, description="number of most probable classes to write for each image")
    each_class: bool = Field(False, description="also write the probability of each class, in a column of its own")

    gamma: float | None = Field(None, description="value to add to the logits of classes without training images")
    calibration: Path | None = Field(
        None, description="run folder of `foveate calibrate`; by default RUN/calibration, if it exists"
    )
