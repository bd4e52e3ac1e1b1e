"""Prior by BirdNET's geomodel: the user's ONNX file, opened by onnxruntime (extra `onnx`).

Input: (latitude, longitude, week). A month has four weeks, 1 to 48, which begin on its days 1, 8, 15 and 22. Output: an
occurrence score in [0, 1] for each species of the labels file beside it. Without a day of the year it is the maximum
over all weeks, as BirdNET itself does. The factor of a class is its score over the highest score of the model's classes
at that place.

Source: BirdNET geomodel 3.0 (Kahl et al., MIT), `date_to_week` of its utils/gbifutils; package birdnet 1.3.1,
geo/models/v3_0 and geo/inference/session.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.species.priors import check_parts
from foveate.species.rows import Floats
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa, normalize_name

_WEEKS = 48
# First day of each month in a common year, from 0. The day does not reveal a leap year: there a date after February
# counts as the next one, at most a day late.
_MONTH_STARTS = np.cumsum([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30])


def find_weeks(days_U: Floats) -> Floats:
    """Return the week, 1 to 48, of days of the year from 0, none of them NaN."""
    months_U = np.searchsorted(_MONTH_STARTS, days_U, side="right") - 1
    # The fourth week lasts to the end of the month.
    return (4 * months_U + np.minimum((days_U - _MONTH_STARTS[months_U]) // 7, 3) + 1).astype(np.float64)


def read_labels(path: Path) -> list[str]:
    """Read the scientific names of a labels file: "code<tab>name<tab>common", or "name_common" a line.

    Raises:
        UserError: the file is missing or empty.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the labels of the geomodel beside it")
    names = []
    # A byte order mark would otherwise become part of the first name.
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        parts = line.split("\t")
        names.append(parts[1].strip() if len(parts) > 2 else parts[0].partition("_")[0].strip())
    if not names:
        raise UserError(f"{path}: the labels file is empty; expected a species per line")
    return names


def find_labels(model: Path) -> Path:
    """Find the labels file of a model: its stem with "Labels" or "labels" in place of the precision, or .txt.

    Raises:
        UserError: there is none, or more than one.
    """
    stem = model.stem.removesuffix("_FP16").removesuffix("_FP32")
    candidates = [
        model.with_suffix(".txt"),
        *(model.with_name(f"{stem}{end}") for end in ("_Labels.txt", "_labels.txt")),
    ]
    for path in candidates:
        if path.is_file():
            return path
    # A renamed model still has its labels beside it; they are used if there is only one candidate.
    others = sorted(path for path in model.parent.glob("*.txt") if "label" in path.name.lower())
    if len(others) != 1:
        raise UserError(f"{model}: no labels beside it; expected {candidates[1].name} or {candidates[0].name}")
    return others[0]


class BirdNETPrior:
    """Scores of a geomodel for the classes of a model.

    Args:
        session: an onnxruntime session with one input [n, 3] and one output [n, species].
        columns_K: output of each class, -1 for a class that the geomodel does not know.
    """

    name = "birdnet"

    def __init__(self, session: Any, columns_K: np.ndarray) -> None:
        self.session, self.columns_K = session, columns_K

    def factors(self, places_U2: Floats, hours_U: Floats, days_U: Floats) -> Floats:
        """See `Prior.factors`; the geomodel knows nothing of hours."""
        result = np.full((len(places_U2), len(self.columns_K)), np.nan)
        known_U = ~np.isnan(places_U2).any(axis=1)
        dated = np.flatnonzero(known_U & ~np.isnan(days_U))
        result[dated] = self._run(places_U2[dated], find_weeks(days_U[dated]))
        for row in np.flatnonzero(known_U & np.isnan(days_U)):
            # A resident of any season counts: the date is unknown, not average.
            year = self._run(np.repeat(places_U2[row : row + 1], _WEEKS, axis=0), np.arange(1.0, _WEEKS + 1))
            result[row] = year.max(axis=0)
        # Relative to the likeliest class: the geomodel's scores are of occurrence, and at a poor place all are low.
        highest_U1 = np.nanmax(np.nan_to_num(result, nan=0.0), axis=1, keepdims=True, initial=1e-12)
        return result / highest_U1

    def _run(self, places_W2: Floats, weeks_W: Floats) -> Floats:
        if not len(weeks_W):
            return np.zeros((0, len(self.columns_K)))
        # onnxruntime does not cast its inputs, and the geomodel takes float32.
        batch = np.column_stack([places_W2, weeks_W]).astype(np.float32)
        (scores,) = self.session.run(None, {self.session.get_inputs()[0].name: batch})[:1]
        return np.where(self.columns_K >= 0, np.asarray(scores, dtype=np.float64)[:, self.columns_K], np.nan)


def open_prior(path: Path, classes: Classes, taxa: Taxa, *, parts: Sequence[str]) -> BirdNETPrior:
    """See `foveate.species.priors.open_prior`."""
    check_parts(path, parts, ("place", "season"))
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected BirdNET's geomodel (.onnx)")
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: needs onnxruntime; expected pip install 'foveate[onnx]'") from None
    names = read_labels(find_labels(path))
    # One class for each fault, without a common one below Exception.
    faults = vars(importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    kinds = tuple(kind for kind in faults if isinstance(kind, type) and issubclass(kind, Exception))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except kinds as error:
        raise UserError(f"{path}: onnxruntime cannot open it ({' '.join(str(error).split())[:200]})") from error
    _check_signature(path, session, len(names))
    position = {normalize_name(name): n for n, name in enumerate(names)}
    columns = []
    for taxon, label in zip(classes.taxa_K.tolist(), classes.labels, strict=True):
        texts = (taxa.names[taxon], *taxa.synonyms[taxon]) if taxon >= 0 else (label,)
        columns.append(next((position[key] for key in map(normalize_name, texts) if key in position), -1))
    if max(columns, default=-1) < 0:
        raise UserError(f"{path}: none of the model's {len(classes)} classes is a species of the geomodel")
    return BirdNETPrior(session, np.array(columns))


def _check_signature(path: Path, session: Any, num_species: int) -> None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 2 or inputs[0].shape[1] != 3:
        shapes = [tensor.shape for tensor in inputs]
        raise UserError(f"{path}: expected one input [n, 3] (latitude, longitude, week) (got {shapes})")
    width = outputs[0].shape[-1]
    if isinstance(width, int) and width != num_species:
        raise UserError(
            f"{path}: {width} outputs, but {num_species} labels beside it; expected the labels of this model"
        )
