"""Count-based prior: frequency of each class near a place, an hour and a day of the year.

For a class k and a condition c the factor is P(c | k) / P(c). Counts are smoothed over neighboring cells, hours and
half-months, and each class is drawn toward the average by a few imagined images, so that a class of three images is
hardly weighed at all: what is rare must not become impossible because nobody saw it here yet.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.species.priors import (
    SelectedPrior,
    check_parts,
    normalize_ratios,
    read_prior_config,
    read_prior_tensors,
    select_animals,
    write_prior,
)
from foveate.species.rows import Floats
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

_EARTH_KM = 6371.0
_HOURS, _SEASONS = 24, 24
_DAYS = 366
# Widths of the kernels: activity is known to an hour or two, a season to half a month.
_HOUR_WIDTH, _SEASON_WIDTH = 1.5, 1.0
# Pseudo-count of images per class for hours and seasons (`_select_smoothing` picks the one for places from
# _STRENGTHS): with it, a species of three images is hardly weighed at all.
_CLASS_IMAGES = 20.0
_BANDWIDTHS_KM = (25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
_STRENGTHS = (2.0, 5.0, 20.0)
_MAX_CELLS_TO_SELECT = 2000
_NOTE = (
    "It holds counts of species per cell of {cell:g} degrees, per hour and per half-month. The middles of the cells "
    "are where cameras of the training stood, to about {km:.0f} km: do not publish this folder if that is too exact."
)


class HistogramSettings(Settings):
    """Options of the histogram."""

    cell_degrees: float = Field(0.5, gt=0, le=10, description="size of a cell; places are known no more exactly")
    place_images: float = Field(5.0, gt=0, description="imagined images of the average that every place has")


@dataclass(frozen=True)
class HistogramPrior:
    """Counts of classes per cell, hour and half-month.

    Args:
        labels: classes of the columns.
        cells_C2: middles of cells in degrees (latitude, longitude).
        counts_CL, hours_HL, seasons_SL: images of each class; None where nothing is known.
        bandwidth_km: width of the kernel between places.
        class_images: imagined images of the average that each class has at a place.
    """

    labels: tuple[str, ...]
    settings: HistogramSettings
    cells_C2: Floats | None = None
    counts_CL: Floats | None = None
    hours_HL: Floats | None = None
    seasons_SL: Floats | None = None
    bandwidth_km: float = _BANDWIDTHS_KM[0]
    class_images: float = _CLASS_IMAGES
    name: str = field(default="histogram", init=False)

    @property
    def parts(self) -> list[str]:
        """Parts that the prior knows."""
        tables = {"place": self.counts_CL, "hour": self.hours_HL, "season": self.seasons_SL}
        return [part for part, table in tables.items() if table is not None]

    def factors(self, places_U2: Floats, hours_U: Floats, days_U: Floats) -> Floats:
        """See `Prior.factors`; columns are those of `labels`."""
        result = np.full((len(hours_U), len(self.labels)), np.nan)
        if self.cells_C2 is not None and self.counts_CL is not None:
            weights_UC = _weigh_places(places_U2, self.cells_C2, self.bandwidth_km)
            ratios = compare_counts(weights_UC, self.counts_CL, self.settings.place_images, self.class_images)
            result = _multiply(result, ratios, ~np.isnan(places_U2.sum(axis=1)))
        # A survey knows whole hours: 8 is any time in [8, 9), whose middle is that of its bin.
        middles_U = np.floor(hours_U) + 0.5
        for table, values, period in ((self.hours_HL, middles_U, 24.0), (self.seasons_SL, days_U, float(_DAYS))):
            if table is not None:
                bins = len(table)
                width = _HOUR_WIDTH if period == 24 else _SEASON_WIDTH
                weights = _weigh_circle(values * bins / period, bins, width)
                ratios = compare_counts(weights, table, self.settings.place_images, _CLASS_IMAGES)
                result = _multiply(result, ratios, ~np.isnan(values))
        return result

    def save(self, folder: Path) -> Path:
        """Write the prior to a folder. It holds cells of the places of training, and no place more exactly."""
        import torch

        tables = {
            "cells": self.cells_C2,
            "counts": self.counts_CL,
            "hours": self.hours_HL,
            "seasons": self.seasons_SL,
        }
        tensors = {name: torch.from_numpy(np.asarray(t, np.float32)) for name, t in tables.items() if t is not None}
        config: dict[str, Any] = {"parts": self.parts, "settings": self.settings.model_dump()}
        config |= {"bandwidth_km": self.bandwidth_km, "class_images": self.class_images}
        cell = self.settings.cell_degrees
        return write_prior(folder, self.name, self.labels, config, tensors, _NOTE.format(cell=cell, km=cell * 111))


def compare_counts(weights_UC: Floats, counts_CL: Floats, condition_images: float, class_images: float) -> Floats:
    """Return P(condition | class) / P(condition) [U, L], smoothed; NaN for a class that was never seen.

    Args:
        weights_UC: kernel between each condition and each bin.
        condition_images: imagined images of the average at each condition: far from all bins factors are 1.
        class_images: imagined images of each class, spread like all images: without images factors are 1.
    """
    total_L = counts_CL.sum(axis=0)
    total = max(total_L.sum(), 1e-12)
    shares_L = total_L / total
    # Far from every bin the kernel is 0: only the imagined images are left, spread like all images, so each ratio is 1.
    near_UL = weights_UC @ counts_CL + condition_images * shares_L
    # P(c): how much was photographed near this condition at all; without it busy places would favor every class.
    share_U1 = near_UL.sum(axis=1, keepdims=True) / total
    return normalize_ratios((near_UL / share_U1 + class_images) / (total_L + class_images), shares_L)


def fit_prior(
    labels_N: ArrayLike,
    classes: Classes,
    *,
    places: ArrayLike | None = None,
    hours: ArrayLike | None = None,
    days: ArrayLike | None = None,
    settings: HistogramSettings | None = None,
) -> HistogramPrior:
    """Count the classes of training images by place, hour and season; arguments are those of `select_animals`.

    Raises:
        UserError: no image has a label and a condition.
    """
    settings = settings or HistogramSettings()
    images, count = select_animals(labels_N, classes, places=places, hours=hours, days=days), len(classes)
    tables: dict[str, Any] = {
        "hours_HL": _count(images.hours_N % 24, images.labels_N, _HOURS, count),
        "seasons_SL": _count(images.days_N * _SEASONS / _DAYS, images.labels_N, _SEASONS, count),
        **_fit_places(images.places_N2, images.labels_N, count, settings),
    }
    tables = {name: table for name, table in tables.items() if table is not None}
    if not tables:
        raise UserError("prior: no training image has both an animal's label and a place, hour or day")
    return HistogramPrior(classes.labels, settings, **tables)


def _count(bins_N: NDArray[Any], labels_N: NDArray[np.int64], num_bins: int, num_classes: int) -> Floats | None:
    rows = np.flatnonzero(~np.isnan(bins_N))
    if not len(rows):
        return None
    table = np.zeros((num_bins, num_classes))
    np.add.at(table, (np.floor(bins_N[rows]).astype(np.int64) % num_bins, labels_N[rows]), 1.0)
    return table


def _fit_places(
    places_N2: Floats, labels_N: NDArray[np.int64], num_classes: int, settings: HistogramSettings
) -> dict[str, Any]:
    rows = np.flatnonzero(~np.isnan(places_N2).any(axis=1))
    if not len(rows):
        return {}
    size = settings.cell_degrees
    # Rounded before anything is stored: the folder never holds where a camera stands.
    corners, cell_N = np.unique(np.floor(places_N2[rows] / size), axis=0, return_inverse=True)
    counts_CL = np.zeros((len(corners), num_classes))
    np.add.at(counts_CL, (cell_N.reshape(-1), labels_N[rows]), 1.0)
    cells_C2 = (corners + 0.5) * size
    bandwidth, class_images = _select_smoothing(cells_C2, counts_CL, settings.place_images)
    return {"cells_C2": cells_C2, "counts_CL": counts_CL, "bandwidth_km": bandwidth, "class_images": class_images}


def _select_smoothing(cells_C2: Floats, counts_CL: Floats, place_images: float) -> tuple[float, float]:
    """Return the bandwidth and class strength that predict each cell best from all others (log-likelihood)."""
    # More cells than this say no more about the two numbers, and their distances take gigabytes.
    step = -(-len(cells_C2) // _MAX_CELLS_TO_SELECT)
    cells_C2, counts_CL = cells_C2[::step], counts_CL[::step]
    shares_L = counts_CL.sum(axis=0) / counts_CL.sum()
    best = (-np.inf, _BANDWIDTHS_KM[0], _CLASS_IMAGES)
    for bandwidth, strength in itertools.product(_BANDWIDTHS_KM, _STRENGTHS):
        weights_CC = _weigh_places(cells_C2, cells_C2, bandwidth)
        # Leave one cell out: a cell that predicts itself always prefers the narrowest kernel.
        np.fill_diagonal(weights_CC, 0.0)
        ratios = compare_counts(weights_CC, counts_CL, place_images, strength)
        # A class without images has log(0) and count 0: 1 keeps its term at 0.
        expected = np.where(shares_L > 0, ratios * shares_L, 1.0)
        # On ties the first one stays, which smooths less.
        best = max(best, (float((counts_CL * np.log(expected)).sum()), bandwidth, strength), key=lambda entry: entry[0])
    return best[1], best[2]


def _weigh_places(places_U2: Floats, cells_C2: Floats, bandwidth_km: float) -> Floats:
    """Return a Gaussian of the great-circle distance [U, C]; 0 where a place is unknown."""
    latitude_U, longitude_U = np.radians(places_U2.T)
    latitude_C, longitude_C = np.radians(cells_C2.T)
    # Haversine: the law of cosines loses all digits at distances of a camera grid.
    half_UC = np.sin((latitude_U[:, None] - latitude_C) / 2) ** 2
    half_UC += np.cos(latitude_U)[:, None] * np.cos(latitude_C) * np.sin((longitude_U[:, None] - longitude_C) / 2) ** 2
    # Rounding may push the sine of antipodes above 1, where arcsin is NaN.
    distance_UC = 2 * _EARTH_KM * np.arcsin(np.sqrt(np.clip(half_UC, 0, 1)))
    # An unknown place weighs 0 in every cell, so that NaN does not spread; `_multiply` then skips its ratios.
    return np.nan_to_num(np.exp(-0.5 * (distance_UC / bandwidth_km) ** 2))


def _weigh_circle(positions_U: Floats, num_bins: int, width: float) -> Floats:
    """Return a Gaussian of the distance [U, bins] around the circle to the middle of each bin; sums to 1."""
    distance = np.abs(positions_U[:, None] - np.arange(num_bins) - 0.5)
    # Around midnight and the turn of the year: the shorter way counts.
    weights = np.nan_to_num(np.exp(-0.5 * (np.minimum(distance, num_bins - distance) / width) ** 2))
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)


def _multiply(factors_UL: Floats, ratios_UL: Floats, known_U: NDArray[np.bool_]) -> Floats:
    # NaN means that no part has given a factor yet, and a product with NaN would stay NaN.
    product = np.where(np.isnan(factors_UL), ratios_UL, factors_UL * ratios_UL)
    return np.where(known_U[:, None], product, factors_UL)


def open_prior(path: Path, classes: Classes, taxa: Taxa, *, parts: Sequence[str]) -> SelectedPrior:
    """See `foveate.species.priors.open_prior`."""
    prior = load_histogram(path)
    check_parts(path, parts, prior.parts)
    return SelectedPrior(prior, prior.labels, classes)


def load_histogram(folder: Path) -> HistogramPrior:
    """Read the folder of a histogram.

    Raises:
        UserError: the folder is none, or damaged.
    """
    config = read_prior_config(folder)
    labels, parts = tuple(config["labels"]), config.get("parts", [])
    names = {"place": ("cells", "counts"), "hour": ("hours",), "season": ("seasons",)}
    tensors = read_prior_tensors(folder, [name for part in parts for name in names[part]])
    fields = {"cells": "cells_C2", "counts": "counts_CL", "hours": "hours_HL", "seasons": "seasons_SL"}
    tables: dict[str, Any] = {fields[name]: tensor.double().numpy() for name, tensor in tensors.items()}
    for name, table in tables.items():
        width = 2 if name == "cells_C2" else len(labels)
        if table.ndim != 2 or table.shape[1] != width:
            raise UserError(f"{folder}: tensor '{name[:-3]}' has shape {table.shape}; expected {width} columns")
    settings = HistogramSettings.model_validate(config["settings"])
    smoothing = {"bandwidth_km": config["bandwidth_km"], "class_images": config["class_images"]}
    return HistogramPrior(labels, settings, **tables, **smoothing)
