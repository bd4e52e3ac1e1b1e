"""Priors of place, hour and season: a prior is a module with `open_prior(path, classes, taxa, parts)`.

One that is fitted to a survey has `fit_prior(labels_N, classes, places=, hours=, days=)`, too, with the arguments of
`select_animals`; its result is saved by `save(folder)`.

A factor is how much more likely a class is here and now than on average. Those of a fitted prior average to 1 over the
training images, so that blank, human and vehicle, which no prior touches, neither gain nor lose by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.core.errors import UserError
from foveate.core.model_folder import WEIGHTS, read_config, read_tensors, write_model_folder
from foveate.core.plugins import load_plugin
from foveate.species.rows import Floats
from foveate.species.taxonomy import Classes
from foveate.survey.hours import GAP_SECONDS
from foveate.survey.taxa import Taxa

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.species.link_data import LinkData
    from foveate.survey.survey import Survey

KIND, FORMAT = "species-prior", 1
PARTS = ("place", "hour", "season")
PRIOR = "prior"
"""Folder of a run that holds the prior of its survey, beside the model."""


class Prior(Protocol):
    """Factors by which place, hour and season make classes more or less likely."""

    @property
    def name(self) -> str:
        """Name of the prior in traces."""
        ...

    def factors(self, places_U2: Floats, hours_U: Floats, days_U: Floats) -> Floats:
        """Return factors [U, K], NaN where the prior knows nothing.

        Args:
            places_U2: degrees (latitude, longitude), NaN where unknown.
            hours_U: local hour in [0, 24), NaN where unknown.
            days_U: day of the year from 0, NaN where unknown.
        """
        ...


def open_prior(path: Path, classes: Classes, taxa: Taxa, *, parts: Sequence[str]) -> Prior:
    """Open a prior for some classes: a folder with its kind inside, or BirdNET's geomodel (a file .onnx).

    Args:
        parts: of `PARTS`, those that will be used.

    Raises:
        UserError: there is no such prior, or it knows nothing of a part.
    """
    # BirdNET is a single .onnx file; a fitted prior is a folder whose config names its module.
    name = "birdnet" if path.suffix == ".onnx" else read_prior_config(path)["prior"]
    return load_plugin(__name__, name, "open_prior", label="prior")(path, classes, taxa, parts=parts)


def fit_survey_prior(
    folder: Path, kind: str, data: LinkData, survey: Survey, *, gap_seconds: float = GAP_SECONDS
) -> Path | None:
    """Fit a prior to the training images of a survey and write it; None where no place, hour or day is known.

    An event counts each of its classes once: bursts repeat what one animal did.

    Args:
        kind: module of the prior, "histogram" or "learned".
        data: labels of the images of `survey`.
    """
    rows = data.train_rows
    # Priors never weigh blank, human or vehicle, so these are left out of the averages as well.
    rows = rows[data.classes.animals_K[data.labels_N[rows]]]
    codes = survey.events(gap_seconds=gap_seconds).event_N[rows] * len(data.classes) + data.labels_N[rows]
    rows = rows[np.unique(codes, return_index=True)[1]]
    # Days of a survey count from 1.
    places_N2, hours_N, days_N = survey.places_N2[rows], survey.hour_N[rows], survey.day_N[rows] - 1
    # The learned prior ignores hours, and a day without a place is of no use to it.
    needed = [places_N2[:, 0]] if kind == "learned" else [places_N2[:, 0], hours_N, days_N]
    if all(np.isnan(column).all() for column in needed):
        return None
    fit = load_plugin(__name__, kind, "fit_prior", label="prior")
    return fit(data.labels_N[rows], data.classes, places=places_N2, hours=hours_N, days=days_N).save(folder)


class AnimalImages(NamedTuple):
    """Images of animals that a prior is fitted to; places, hours and days are NaN where unknown."""

    labels_N: NDArray[np.int64]
    places_N2: Floats
    hours_N: Floats
    days_N: Floats


def select_animals(
    labels_N: ArrayLike,
    classes: Classes,
    *,
    places: ArrayLike | None = None,
    hours: ArrayLike | None = None,
    days: ArrayLike | None = None,
) -> AnimalImages:
    """Select the training images with an animal's label.

    Args:
        labels_N: class of each image, -1 for none; classes that are no animals are left out.
        places: degrees [N, 2] (latitude, longitude), NaN where unknown.
        hours: local hour [N] in [0, 24), NaN where unknown.
        days: day of the year [N] from 0, NaN where unknown.
    """
    labels = np.asarray(labels_N, dtype=np.int64)
    rows = np.flatnonzero((labels >= 0) & classes.animals_K[labels])
    places_N2 = np.full((len(labels), 2), np.nan) if places is None else np.asarray(places, dtype=np.float64)
    hours_N, days_N = (
        np.full(len(labels), np.nan) if column is None else np.asarray(column, dtype=np.float64)
        for column in (hours, days)
    )
    return AnimalImages(labels[rows], places_N2[rows], hours_N[rows], days_N[rows])


def write_prior(
    folder: Path, name: str, labels: Sequence[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor], note: str
) -> Path:
    """Write the folder of a fitted prior.

    Args:
        name: module of the prior.
        labels: its classes.
        note: text for its README about the places of training that the folder contains.
    """
    return write_model_folder(
        folder,
        kind=KIND,
        format=FORMAT,
        config={"prior": name, "labels": list(labels), **config},
        tensors=tensors,
        files={"README.md": f"# Prior of species: {name}\n\n{note}\n"},
    )


def read_prior_config(folder: Path) -> dict[str, Any]:
    """Read the config of a fitted prior.

    Raises:
        UserError: the folder is no prior.
    """
    fields = {"prior": str, "labels": list}
    return read_config(folder, kind=KIND, formats=(FORMAT,), fields=fields, label="prior")


def read_prior_tensors(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the tensors of a fitted prior.

    Raises:
        UserError: one of `names` is missing, or the file is damaged.
    """
    tensors = read_tensors(folder / WEIGHTS)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UserError(f"{folder / WEIGHTS}: tensor '{missing[0]}' is missing; train the prior again")
    return tensors


def check_parts(folder: Path, parts: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError if a part is asked of a prior that knows nothing of it."""
    for part in parts:
        if part not in known:
            raise UserError(f"{folder}: this prior knows nothing of the {part}; leave --{part}-prior out")


class SelectedPrior:
    """A fitted prior whose columns are those of a model's classes; NaN for classes that it does not know."""

    def __init__(self, prior: Prior, labels: Sequence[str], classes: Classes) -> None:
        self.name, self.prior = prior.name, prior
        # Matched by label: the model may have other classes than the prior, or the same ones in another order.
        position = {label: n for n, label in enumerate(labels)}
        self.columns_K = np.array([position.get(label, -1) for label in classes.labels])

    def factors(self, places_U2: Floats, hours_U: Floats, days_U: Floats) -> Floats:
        """See `Prior.factors`."""
        factors_UL = self.prior.factors(places_U2, hours_U, days_U)
        # Index -1 reads the last column, which `where` then replaces by NaN.
        return np.where(self.columns_K >= 0, factors_UL[:, self.columns_K], np.nan)


def normalize_ratios(ratios_UK: Floats, shares_K: NDArray[np.float64]) -> Floats:
    """Scale rows so that their mean over the shares of classes is 1; a class without a share is NaN."""
    # Without training images a ratio is 0 / 0 or pure smoothing; NaN means unknown and later becomes a factor of 1.
    ratios_UK = np.where(shares_K > 0, ratios_UK, np.nan)
    return ratios_UK / np.nansum(ratios_UK * shares_K, axis=1, keepdims=True)
