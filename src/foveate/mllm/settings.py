"""Settings of evaluations, calibrations and previews; free of torch and data for the help of the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foveate.core.recipes import Settings
from foveate.multimodal.settings import REGION_PROMPT, RegionPrompt


class SuiteSettings(Settings):
    """Settings of an evaluation: questions, answers and judge.

    Example:
        >>> SuiteSettings(split="validation", limit=100).seed
        0
    """

    split: str = Field("test", description="split of the data to ask about")
    limit: int | None = Field(None, ge=1, description="maximum number of questions, drawn by the seed")
    batch_size: int = Field(16, ge=1, description="questions that are asked together")
    judge: str = Field("", description="address of the judge's server, up to /v1 (ferret-bench)")
    judge_model: str = Field(
        "", description="name of the judge at its server, which stands in its scores (ferret-bench)"
    )
    judge_key_env: str = Field("", description="environment variable that holds the judge's key (ferret-bench)")
    training_words: Literal["reference", "never"] = Field(
        "reference",
        description="words that were invented for a model's training, such as 'gorp': reference lets it write them "
        "where a reference or choice has one, as in few-shot episodes; never forbids them, as about a user's images",
    )
    region_prompt: RegionPrompt | None = Field(None, description=REGION_PROMPT)
    official: bool = Field(
        False, description="print the published evaluator's scores beside ours, where they differ on purpose"
    )
    seed: int = Field(0, ge=0, description="of the drawn questions, the other images and the intervals")


class CalibrateSettings(Settings):
    """Selection of the images that the threshold is measured on."""

    split: str = Field("validation", description="split of the collection; one that the model was not trained on")
    limit: int = Field(200, ge=1, description="maximum number of images; of each a phrase that it shows, and one not")


class PreviewSettings(Settings):
    """Selection of training samples for a preview."""

    stage: str | None = Field(None, description="stage of the recipe; by default the first with conversations")
    step: int = Field(1, ge=1, description="training step whose batch is loaded")
    samples: int = Field(4, ge=1, le=64, description="maximum number of the batch's samples that are drawn in full")
