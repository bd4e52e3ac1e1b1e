"""Settings of trainings that are counted in epochs; loads no torch, so that a command line can list the fields."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import Field

from foveate.core.recipes import Settings
from foveate.training.settings import TrainingSettings


def with_default(name: str, default: object) -> Any:
    """Redeclare a field of `TrainingSettings` with another default; bounds and description stay declared once."""
    info = copy.copy(TrainingSettings.model_fields[name])
    info.default = default
    return info


class Augmentation(Settings):
    """Random views and colors of training images; none by default.

    One declaration for every system that trains a classifier: a model and its repetitions must vary images alike. The
    images' room makes a `foveate.training.classification.LoadSample` of it, since nothing here knows pixels.

    The public code of "Fine-Tuning is Fine, if Calibrated" trains Office-Home with crop 0.7, flip 0.5, color 0.3 and
    now and then a gray image.
    """

    crop: float = Field(
        default=1.0, gt=0, le=1, description="smallest area of a random crop, as a share of the image; 1 = no crops"
    )
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of mirroring left to right")
    color: float = Field(
        default=0.0, ge=0, le=0.5, description="maximum change of brightness, contrast, saturation and hue"
    )
    gray: float = Field(default=0.0, ge=0, le=1, description="probability of conversion to grayscale")
    randaugment: int = Field(default=0, ge=0, le=30, description="magnitude of RandAugment's two operations; 0 = none")
    erasing: float = Field(default=0.0, ge=0, le=1, description="probability of erasing a random rectangle to black")


class ClassificationSettings(TrainingSettings):
    """Training of a classifier, counted in epochs: `resolve` gives the loop's settings for a number of images."""

    # 0 instead of None, so that the type is that of the loop's settings.
    steps: int = Field(0, ge=0, description="steps in all; 0 = as many as the epochs have")
    epochs: int = Field(50, ge=1, description="passes over the training images")
    batch_size: int = with_default("batch_size", 64)
    learning_rate: float = with_default("learning_rate", 1e-3)
    # PyTorch's own values: the loop's are those of CLIP, which are for batches of thousands of images.
    betas: tuple[float, float] = with_default("betas", (0.9, 0.999))
    eps: float = with_default("eps", 1e-8)
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps with a rising learning rate")
    gradient_clip_norm: float | None = with_default("gradient_clip_norm", None)
    keep_checkpoints: int = with_default("keep_checkpoints", 1)
    augmentation: Augmentation = Field(default=Augmentation(), description="random views and colors; none by default")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of each target that is spread over all classes"
    )
    mixup: float = Field(
        default=0.0, ge=0, description="mix images of a batch by shares of Beta(mixup, mixup); 0 = none"
    )
    balanced: bool = Field(
        default=False, description="sample every class equally often, regardless of its number of images"
    )

    @property
    def varies_images(self) -> bool:
        """Whether an image differs from epoch to epoch, so that nothing computed of it can be cached."""
        return self.augmentation != Augmentation() or self.mixup > 0

    @property
    def whole_batches(self) -> bool:
        """Whether an epoch counts as the steps of its whole batches; the loader visits the rest a little later."""
        return False

    def resolve(self, num_images: int) -> TrainingSettings:
        """Return the loop's settings for this many training images."""
        # A batch larger than the data would hold images twice.
        batch_size = min(self.batch_size, num_images)
        # Batches run on from one epoch into the next, so the exact number counts the images of all epochs together.
        whole, exact = self.epochs * (num_images // batch_size), self.epochs * num_images // batch_size
        steps = self.steps or max(1, whole if self.whole_batches else exact)
        values = {name: getattr(self, name) for name in TrainingSettings.model_fields}
        values |= {"steps": steps, "batch_size": batch_size}
        values["warmup_steps"] = self.warmup_steps or int(self.warmup * steps)
        values |= self.loop_schedule()
        # Leave out options that the chosen optimizer or schedule does not read: the loop would warn about them.
        read = {"adamw": {"betas", "eps"}, "sgd": {"momentum"}, "adafactor": set[str]()}[self.optimizer]
        idle = {"betas", "eps", "momentum"} - read
        idle |= set() if values["schedule"] == "wsd" else {"decay_fraction"}
        idle |= {"final_learning_rate_fraction"} if values["schedule"] == "constant" else set()
        return TrainingSettings(**{name: value for name, value in values.items() if name not in idle})

    def loop_schedule(self) -> dict[str, Any]:
        """Return the loop's schedule fields, for subclasses that declare their own."""
        return {}
