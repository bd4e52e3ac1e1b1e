"""The recipe of a pre-training run: which encoders, which losses, which texts and views, how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from foveate.core.recipes import Settings
from foveate.training.image_texts import Combine, TextRule
from foveate.training.mixture import Missing, MixtureSampler
from foveate.training.settings import TrainingSettings
from foveate.vision.localizer.settings import LocalizerSettings


class ViewSettings(Settings):
    """What the model sees of an image."""

    scale: tuple[float, float] = Field((1.0, 1.0), description="area of the random crop; (1, 1) = no crop")
    flip: float = Field(0.0, ge=0, le=1, description="share of mirrored images; none with left or right in a text")
    cached: int = Field(2, ge=1, description="views kept per image when the encoder's frozen part is cached")


class DataSettings(Settings):
    """Which texts and regions of an image are drawn at each epoch."""

    captions: dict[str, float] = Field(
        {"alt": 1.0}, description="weight of each caption kind; one text is drawn per image per epoch"
    )
    mixture: str | None = Field(None, description="a preset of weights instead of `captions`: clip, mllm_pretrain, ...")
    missing: Missing = Field("renormalize", description="weight of kinds that an image lacks")
    combine: Combine = Field(
        "none", description="ablations: concat, fuse, part or uniform instead of one whole text by the mixture"
    )
    prefer: tuple[str, ...] = Field((), description="caption models, best first, where several wrote one kind")
    allow_truncation: bool = Field(False, description="train on dsc_plus although the text tower cuts it off")
    regions_per_image: int = Field(4, ge=1, description="M, the most regions drawn per image and step")
    region_sources: tuple[str, ...] | None = Field(
        None, description="whose regions are drawn: sources of the table, e.g. vesl:nanodet or vesl:cloc@RECIPE; all"
    )
    whole_image_region: bool = Field(
        False, description="an image without regions gets one: the whole image with its drawn text"
    )
    views: ViewSettings = ViewSettings()
    split: str = Field("train", description="split to train on")

    @model_validator(mode="after")
    def _has_weights(self) -> DataSettings:
        self.text_rule()
        return self

    def text_rule(self) -> TextRule:
        """How one text per epoch is drawn."""
        if self.mixture is not None:
            return TextRule(MixtureSampler.preset(self.mixture, missing=self.missing), self.combine)
        sources = tuple(self.captions) if self.missing != "alt" or "alt" in self.captions else (*self.captions, "alt")
        return TextRule(MixtureSampler(self.captions, sources=sources, missing=self.missing), self.combine)


class ParameterRuleSettings(Settings):
    """What holds for the parameters whose whole name matches; the first rule that matches holds."""

    pattern: str = Field(description="regular expression on whole names")
    learning_rate_scale: float = Field(1.0, ge=0, description="factor of the learning rate")
    weight_decay: float | None = Field(None, ge=0, description="instead of the recipe's")
    frozen: bool = Field(False, description="not trained at all")


class PretrainRecipe(LocalizerSettings):
    """`foveate pretrain RECIPE --collection DIR`."""

    config_version: Literal[1] = 1
    initial: str | None = Field(
        None, description="start from this: a model folder, a CLIP's folder or OWNER/NAME; 'required' = must be given"
    )
    data: DataSettings = DataSettings()
    training: TrainingSettings
    parameter_rules: tuple[ParameterRuleSettings, ...] = Field(
        (), description="learning rates, decay and freezing of parts"
    )

    def initial_seed(self) -> int:
        return self.training.seed
