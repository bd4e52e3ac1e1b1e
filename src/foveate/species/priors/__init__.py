"""Priors of place, hour and season: a prior is a module with `open_prior(path, classes, taxa, parts)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from foveate.core.model_folder import read_config
from foveate.core.plugins import load_plugin
from foveate.records.survey.taxa import Taxa
from foveate.species.classes import Classes
from foveate.species.rows import Floats

KIND, FORMAT = "species-prior", 1


class Prior(Protocol):
    """Factors by which place, hour and season make classes more or less likely."""

    name: str

    def factors(self, places_U2: Floats, hours_U: Floats, days_U: Floats) -> Floats:
        """Return factors [U, K], NaN where the prior knows nothing.

        Args:
            places_U2: degrees (latitude, longitude), NaN where unknown.
            hours_U: local hour in [0, 24), NaN where unknown.
            days_U: day of the year from 0, NaN where unknown.
        """
        ...


def open_prior(path: Path, classes: Classes, taxa: Taxa, *, parts: Sequence[str]) -> Prior:
    """Open a prior for some classes: a folder that says its kind, or BirdNET's geomodel (a file .onnx).

    Args:
        parts: of "place", "hour" and "season", those that will be used.

    Raises:
        UserError: there is no such prior, or it knows nothing of a part.
    """
    name = "birdnet" if path.suffix == ".onnx" else _read_name(path)
    return load_plugin(__name__, name, "open_prior", label="prior")(path, classes, taxa, parts=parts)


def _read_name(folder: Path) -> str:
    return read_config(folder, kind=KIND, formats=(FORMAT,), fields={"prior": str}, label="prior")["prior"]
