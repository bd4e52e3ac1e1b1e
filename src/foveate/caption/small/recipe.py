"""Recipe of a captioner: encoder, decoder, targets, and training of each stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from foveate.caption.targets.settings import TargetSettings
from foveate.core.recipes import Settings
from foveate.training.settings import TrainingSettings


class WordSettings(Settings):
    """Stage 0, cheap: the prefix learns to name what each region shows.

    A region is one of the collection with its phrase, or the whole image with the words of its targets.
    """

    steps: int = Field(0, ge=0, description="steps of the prefix alone, before stage 1; 0 = none")
    batch_size: int = Field(128, ge=1, description="images of one such step")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate of these steps")
    loss_weight: float = Field(0.1, ge=0, description="weight of the same loss added to the captions' in both stages")
    captioned: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a batch's images whose captions are trained, in both stages; words of all are",
    )
    seeing_rate: float = Field(
        0.3, gt=0, le=1, description="factor of the learning rate of encoder head and prefix in stages 1 and 2"
    )
    regions: bool = Field(True, description="use the collection's regions; false = whole images only")
    all_images: bool = Field(
        True, description="before stage 1 also use regions of images of the split that data.images left out"
    )
    common: float = Field(0.1, gt=0, le=1, description="words in more than this share of the images are left out")


class AlignmentSettings(Settings):
    """Stage 2: targets from full descriptions."""

    steps: int = Field(ge=0, description="steps of stage 2; 0 = none")
    learning_rate_scale: float = Field(0.5, gt=0, description="its peak learning rate over that of stage 1")
    replay: float = Field(0.1, ge=0, le=1, description="share of samples of stage 1 in it")


class CaptionerRecipe(Settings):
    """`foveate captioner train RECIPE --collection DIR`."""

    config_version: Literal[1] = 1
    image_encoder: dict[str, Any] = Field(
        description="`kind` and the fields of that encoder; its frozen part is cached"
    )
    pixel_shuffle: int = Field(
        2, ge=1, le=8, description="n x n neighboring image tokens are joined into one of the prefix"
    )
    decoder: dict[str, Any] = Field(description="`model_type` of transformers and the fields of its configuration")
    vocabulary: int = Field(
        2048, ge=300, le=65_536, description="tokens: names of regions, then a byte-level BPE of the targets"
    )
    max_alt_tokens: int = Field(48, ge=4, le=512, description="maximum tokens of an AltText that the decoder reads")
    length_groups: int = Field(4, ge=1, description="a batch is processed in this many groups of similar length")
    data: TargetSettings = TargetSettings()
    word_training: WordSettings = WordSettings()
    training: TrainingSettings
    alignment: AlignmentSettings = AlignmentSettings(steps=0)

    @model_validator(mode="after")
    def _consistent(self) -> CaptionerRecipe:
        if "kind" not in self.image_encoder:
            raise ValueError("image_encoder needs a 'kind', for example lite0")
        if "model_type" not in self.decoder:
            raise ValueError("decoder needs a 'model_type' of transformers, for example llama or gpt2")
        return self

    def stage_settings(self, stage: int) -> TrainingSettings:
        """The training settings of stage 0 (words), 1 (format following) or 2 (alignment)."""
        if stage == 1:
            return self.training
        rate = self.training.learning_rate * self.alignment.learning_rate_scale
        changes: dict[str, Any] = {"steps": self.alignment.steps, "learning_rate": rate}
        if stage == 0:
            changes = {
                "steps": self.word_training.steps,
                "learning_rate": self.word_training.learning_rate,
                "batch_size": self.word_training.batch_size,
            }
        changes["warmup_steps"] = min(self.training.warmup_steps, max(0, changes["steps"] // 5))
        return self.training.model_copy(update=changes)
