"""Reweight classes: by one temperature, and by place, hour and season; a floor keeps every class possible.

The temperature sharpens or flattens probabilities, so that they match the accuracy.

q_k is proportional to p_k max(prior_k, floor)^strength over animals; a class of which the prior knows nothing keeps
factor 1, and blank, human, vehicle and unknown are never touched. A species list switches the prior off, because a
person who writes a list knows more than a map; `within_list` re-ranks what the list lets through.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.species.priors import PARTS, open_prior
from foveate.species.rows import Floats, Rows, Stage
from foveate.species.stages import StageKind, warn_idle
from foveate.species.stages.species_list import ListSettings, renormalize
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa


class TemperatureSettings(Settings):
    """Options of the temperature."""

    temperature: float = Field(
        1.0,
        gt=0,
        le=100,
        description="divides the logits: above 1 the model is less sure, 1 changes nothing; a command takes by default "
        "the one that training fitted on validation images",
    )


def scale_temperature(probabilities_RK: Floats, temperature: float) -> Floats:
    """Return softmax(log p / T), which equals softmax(logits / T) and needs no logits."""
    # A probability of 0 becomes minus infinity here, which is 0 again after `exp`.
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities_RK)
    logits /= temperature
    # The maximum cancels in the division below; without subtracting it, `exp` could be 0 for every logit of a row.
    logits -= logits.max(axis=1, keepdims=True)
    scaled = np.exp(logits, out=logits)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def prepare_temperature(
    settings: TemperatureSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa
) -> Stage | None:
    """See `foveate.species.stages`."""
    if settings.temperature == 1:
        return None
    notes = (f"divided logits by {settings.temperature:g}",)

    def apply(rows: Rows) -> Rows:
        return rows.passed("temperature", scale_temperature(rows.probabilities_RK, settings.temperature), notes)

    return apply


class PriorSettings(Settings):
    """Options of the prior."""

    source: Path | None = Field(
        None, description="folder of a prior that `species train` wrote, or BirdNET's geomodel (a file .onnx)"
    )
    by_place: bool = Field(False, description="weigh classes by the place of the camera")
    by_hour: bool = Field(False, description="weigh classes by the local hour")
    by_season: bool = Field(False, description="weigh classes by the day of the year")
    strength: float = Field(1.0, ge=0, le=10, description="exponent of the prior; 0 changes nothing")
    floor: float = Field(0.01, ge=0, le=1, description="smallest factor, so that no class becomes impossible")
    within_list: bool = Field(False, description="use the prior although a species list is in use")


def weigh_by_prior(
    probabilities_RK: Floats, prior_RK: Floats, animals_K: NDArray[np.bool_], *, strength: float, floor: float
) -> Floats:
    """Multiply probabilities by a prior and renormalize; a row with nothing left is NaN.

    Args:
        prior_RK: factors, NaN where the prior knows nothing.
        animals_K: the classes that the prior acts on.
    """
    # `np.maximum` propagates NaN, so an unknown factor becomes 1 below instead of the floor.
    factors = np.maximum(prior_RK, floor) ** strength
    factors[np.isnan(factors)] = 1.0
    factors[:, ~animals_K] = 1.0
    return renormalize(probabilities_RK * factors)


def prepare_prior(
    settings: PriorSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa
) -> Stage | None:
    """See `foveate.species.stages`."""
    used = [part for part in PARTS if getattr(settings, f"by_{part}")]
    if not used:
        if settings.source is not None:
            raise UserError(f"prior: nothing reads {settings.source}; expected --place-prior, --hour-prior or more")
        warn_idle(settings, "strength", "floor", "within_list", needs="--place-prior, --hour-prior or --season-prior")
        return None
    listing = others.get("species_list")
    if isinstance(listing, ListSettings) and listing.file is not None and not settings.within_list:
        # Leaves a trace, so that `source` explains why --place-prior changed no answer.
        return lambda rows: rows.noted("prior", ("off: a species list is in use",))
    if settings.source is None:
        raise UserError(
            f"prior: --{used[0]}-prior needs a prior, and none lies beside the model; expected --prior with the folder "
            "that `foveate species train` wrote, or with BirdNET's file .onnx"
        )
    # Opened here, so that a wrong file fails before any row is decided.
    prior = open_prior(settings.source, classes, taxa, parts=used)
    subsets = [[part for bit, part in enumerate(PARTS) if code >> bit & 1] for code in range(2 ** len(PARTS))]
    notes = tuple(
        f"{prior.name} prior: {', '.join(parts)}" if parts else f"{prior.name} prior: nothing known"
        for parts in subsets
    )

    def apply(rows: Rows) -> Rows:
        # A part that was not requested is set to unknown, so that it does not affect the factors.
        conditions = [
            rows.places_R2 if "place" in used else np.full_like(rows.places_R2, np.nan),
            (rows.hours_R if "hour" in used else np.full_like(rows.hours_R, np.nan))[:, None],
            (rows.days_R if "season" in used else np.full_like(rows.days_R, np.nan))[:, None],
        ]
        # A camera takes thousands of images under few conditions.
        unique, inverse_R = np.unique(np.hstack(conditions), axis=0, return_inverse=True)
        prior_UK = prior.factors(unique[:, :2], unique[:, 2], unique[:, 3])
        known = ~np.isnan(np.stack([unique[:, :2].sum(axis=1), unique[:, 2], unique[:, 3]], axis=1))
        # A bit for each part that is known: the number of the note.
        codes_U = known @ (1 << np.arange(len(PARTS)))
        inverse_R = inverse_R.reshape(-1)
        weighted = weigh_by_prior(
            rows.probabilities_RK,
            prior_UK[inverse_R],
            rows.classes.animals_K,
            strength=settings.strength,
            floor=settings.floor,
        )
        return rows.passed("prior", weighted, notes, codes_U[inverse_R])

    return apply


_OPTIONS = {"source": "--prior"} | {f"by_{part}": f"--{part}-prior" for part in PARTS}
_OPTIONS |= {"strength": "--prior-strength", "floor": "--prior-floor", "within_list": "--prior-within-list"}
STAGES = {
    "temperature": StageKind(
        10, TemperatureSettings, prepare_temperature, {"temperature": "--temperature"}, {"temperature": 1}
    ),
    "prior": StageKind(20, PriorSettings, prepare_prior, _OPTIONS, {f"by_{part}": False for part in PARTS}),
}
