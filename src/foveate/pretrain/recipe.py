"""The recipe of a pretraining run: encoders, losses, texts, views, training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from foveate.core.recipes import Settings
from foveate.training.image_texts import Combine, TextRule
from foveate.training.mixture import Missing, MixtureSampler
from foveate.training.settings import TrainingSettings
from foveate.vision.localizer.settings import LocalizerSettings


class ViewSettings(Settings):
    """Random crops and mirroring of the training images."""

    scale: tuple[float, float] = Field((1.0, 1.0), description="area of the random crop; (1, 1) = no crop")
    flip: float = Field(0.0, ge=0, le=1, description="probability of mirroring; never with left or right in a text")
    cached: int = Field(2, ge=1, description="views per image whose frozen features are cached")


class DataSettings(Settings):
    """The texts and regions drawn from an image in each epoch."""

    captions: dict[str, float] = Field(
        {"alt": 1.0}, description="weight of each caption kind; one text is drawn per image per epoch"
    )
    mixture: str | None = Field(None, description="a preset of weights instead of `captions`: clip, mllm_pretrain, ...")
    missing: Missing = Field("renormalize", description="weight of kinds that an image lacks")
    combine: Combine = Field(
        "none", description="ablations: concat, fuse, part or uniform instead of one whole text by the mixture"
    )
    prefer: tuple[str, ...] = Field((), description="caption models, best first, where several wrote one kind")
    allow_truncation: bool = Field(False, description="train on dsc_plus although it exceeds the text tower's context")
    regions_per_image: int = Field(4, ge=1, description="M, maximum of regions drawn per image and step")
    region_sources: tuple[str, ...] | None = Field(
        None,
        description="sources of the regions drawn, e.g. vesl:nanodet or vesl:cloc@RECIPE; own = no pseudo-labels; "
        "unset = all, pseudo-labels of detectors and models included",
    )
    whole_image_region: bool = Field(
        False, description="an image without regions gets one: the whole image with its drawn text"
    )
    views: ViewSettings = ViewSettings()
    split: str = Field("train", description="split to train on")
    collections: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="further collections to mix in: folder -> weight; --collection has weight 1"
    )
    validation_split: str = Field(
        "validation", description="split for training.evaluate_every, and to choose the better locate rule"
    )
    validation_images: int = Field(
        1000, ge=2, description="maximum of images per evaluation during training, drawn by the seed"
    )

    @model_validator(mode="after")
    def _has_weights(self) -> DataSettings:
        self.text_rule()
        return self

    def text_rule(self) -> TextRule:
        """Return the rule by which one text per epoch is drawn."""
        if self.mixture is not None:
            return TextRule(MixtureSampler.preset(self.mixture, missing=self.missing), self.combine)
        # The sampler draws only from its sources, so `alt` must be one of them if it may inherit weight.
        sources = tuple(self.captions) if self.missing != "alt" or "alt" in self.captions else (*self.captions, "alt")
        return TextRule(MixtureSampler(self.captions, sources=sources, missing=self.missing), self.combine)


class ParameterRuleSettings(Settings):
    """Settings of the parameters whose full name matches; the first matching rule applies."""

    pattern: str = Field(description="regular expression on full names")
    learning_rate_scale: float = Field(1.0, ge=0, description="factor of the learning rate")
    weight_decay: float | None = Field(None, ge=0, description="instead of training.weight_decay")
    frozen: bool = Field(False, description="do not train them")


class PretrainRecipe(LocalizerSettings):
    """The recipe of `foveate pretrain`: encoders, region module, losses, texts, views, training.

    Example:
        >>> from foveate.core import load_recipe
        >>> recipe = load_recipe(PretrainRecipe, "tour", ["embed_dim=64"])
        >>> recipe.embed_dim, recipe.regions.method
        (64, 'prompter')
    """

    config_version: Literal[1] = 1
    initial: str | None = Field(
        None,
        description="start from this: a model folder, a CLIP's folder, OWNER/NAME or open_clip:ARCH/PRETRAINED; "
        "'required' = must be given",
    )
    data: DataSettings = DataSettings()
    training: TrainingSettings
    parameter_rules: tuple[ParameterRuleSettings, ...] = Field(
        (), description="learning rates, decay and freezing of parts"
    )

    def initial_seed(self) -> int:
        return self.training.seed
