"""The training that `test_species_kills.py` kills, and the triage of `test_videos.py`."""

from __future__ import annotations

from pathlib import Path

from foveate.core.recipes import validate
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import TriageSettings
from foveate.species.train import train_species
from foveate.species.triage import triage

TRAINING = {
    "epochs": 3,
    "batch_size": 4,
    "learning_rate": 0.01,
    "image_learning_rate": 0.01,
    "log_every": 1,
    "checkpoint_every": 3,
}


def species_train(survey: str, features: str, run: str) -> None:
    """Three epochs over all links, with a checkpoint after every third step."""
    fields = {"graph": {"dim": 24}, "view": {"view": "whole"}, "data": {"features": features}, "training": TRAINING}
    outcome = train_species(Path(survey), Path(run), validate(SpeciesRecipe, fields, where="test"), device="cpu")
    assert outcome.model is not None


def triage_videos(cards: str, results: str, out: str) -> None:
    """Collect cards with videos, and triage them by MegaDetector's results."""
    triage(Path(cards), Path(out), TriageSettings(results=Path(results)), workers=1)
