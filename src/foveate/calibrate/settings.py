"""Settings of a fine-tuning that keeps the features of absent classes; loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from foveate.core.recipes import Settings
from foveate.training.epochs import ClassificationSettings, with_default
from foveate.training.settings import TrainingSettings


class ModelData(Settings):
    """Location of a model's data: a collection with a label field, and the names of two splits."""

    collection: Path = Field(description="collection that the model was fine-tuned on")
    field: str = Field(description="label field that holds the classes")
    train_split: str = Field("train", description="split of --collection that was trained on")
    test_split: str = Field("test", description="split of --collection to evaluate on")


class CalibrateSettings(Settings):
    """How gamma is estimated."""

    method: Literal["alg", "best_gap", "pcv", "all"] | None = Field(
        default=None,
        description="alg: average logit gap; best_gap: mean gap of the best logits; pcv: pseudo cross-validation; all: "
        "each that the data allow; unset = by the number of seen classes and the data, labels of test data among "
        "them, which is printed with the reason",
    )
    threshold: Literal["all_columns", "seen_columns", "none"] = Field(
        default="all_columns",
        description="pcv: minimum accuracy on pseudo-absent classes: the pre-trained model's over these columns",
    )
    pseudo_splits: int = Field(default=3, ge=1, le=20, description="number of pseudo runs of pcv on a model")


class FineTuneSettings(ClassificationSettings):
    """The paper's recipe: SGD, the backbone at a tenth of the head's learning rate, only whole batches.

    Rates are those of its public code (arXiv 2409.16223).

    Example:
        >>> FineTuneSettings(epochs=5, learning_rate=0.003).backbone_rate
        0.1
    """

    epochs: int = Field(20, ge=1, description="passes over the training samples")
    backbone_rate: float = Field(
        default=0.1, ge=0, description="learning rate of all but the head, as a share of the head's; 0 = frozen"
    )
    weight_decay: float = with_default("weight_decay", 5e-4)
    optimizer: Literal["adamw", "sgd"] = with_default("optimizer", "sgd")
    workers: int = with_default("workers", 1)

    @property
    def whole_batches(self) -> bool:
        """Whether an epoch counts as the steps of its whole batches; the loader visits the rest a little later."""
        return True

    def resolve(self, num_images: int) -> TrainingSettings:
        """Return the loop's settings; log rows and checkpoints follow the number of steps unless set."""
        settings = super().resolve(num_images)
        paced = {"log_every": max(1, settings.steps // 20), "checkpoint_every": max(50, settings.steps // 4)}
        return settings.model_copy(update={k: v for k, v in paced.items() if k not in self.model_fields_set})
