"""Sharpen or flatten probabilities by one temperature, so that they match the accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.species.classes import Classes
from foveate.species.rows import Floats, Rows, Stage
from foveate.survey.taxa import Taxa

ORDER = 10


class StageSettings(Settings):
    """Options of the temperature."""

    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits: above 1 the model is less sure, 1 changes nothing"
    )


def scale_temperature(probabilities_RK: Floats, temperature: float) -> Floats:
    """Return softmax(log p / T), which equals softmax(logits / T) and needs no logits."""
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities_RK)
    logits /= temperature
    logits -= logits.max(axis=1, keepdims=True)
    scaled = np.exp(logits, out=logits)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def prepare(settings: StageSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    if settings.temperature == 1:
        return None
    notes = (f"divided logits by {settings.temperature:g}",)

    def apply(rows: Rows) -> Rows:
        return rows.passed("temperature", scale_temperature(rows.probabilities_RK, settings.temperature), notes)

    return apply
