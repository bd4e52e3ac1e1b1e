"""Abstain from answers whose probability is below a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from pydantic import Field

from foveate.core.recipes import Settings
from foveate.species.classes import Classes
from foveate.species.rows import ABSTAINED, Rows, Stage
from foveate.species.stages.rules import StageSettings as RulesSettings
from foveate.survey.taxa import Taxa

ORDER = 60


class StageSettings(Settings):
    """Options of the threshold."""

    threshold: float = Field(
        0.65, ge=0, le=1, description="probability that an answer needs; with roll-up, the most specific taxon above it"
    )


def prepare(settings: StageSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    rules = others.get("rules")
    if not settings.threshold or (isinstance(rules, RulesSettings) and rules.rules != "none"):
        return None
    notes = (
        f"at least {settings.threshold:g}",
        f"below {settings.threshold:g}",
        "no answer",
        "decided by the detector",
    )

    def apply(rows: Rows) -> Rows:
        low_R = (rows.answers_R >= 0) & (rows.scores_R < settings.threshold) & ~rows.is_fixed_R
        codes_R = np.where(rows.answers_R < 0, 2, low_R.astype(np.int64))
        codes_R = np.where(rows.is_fixed_R, 3, codes_R)
        return replace(rows, answers_R=np.where(low_R, ABSTAINED, rows.answers_R)).noted("threshold", notes, codes_R)

    return apply
