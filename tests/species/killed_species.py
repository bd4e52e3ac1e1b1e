"""The runs that `test_species_kills.py` kills: training, prediction, review page; and a triage of videos."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from card_survey import ColorModel

from foveate.core.files import FolderLock
from foveate.core.recipes import validate
from foveate.serve import review
from foveate.serve.run import serve
from foveate.serve.settings import ServeSettings
from foveate.species import predict as predict_module
from foveate.species.answers import ReviewSession
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages
from foveate.species.predictions import Predictions
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import PredictSettings, TriageSettings
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


def species_predict(cards: str, results: str) -> None:
    """Collect cards, predict them in parts of four images, and decide."""
    predict_module._IMAGES_PER_PART = 4
    model: Any = ColorModel(Path(cards))
    predict_module.predict(model, Path(cards), Path(results), PredictSettings(detect=False), device="cpu", workers=1)
    decide_results(Predictions.open(Path(results)), Stages())


def species_review(results: str, port_file: str, key: str) -> None:
    """Serve the review page, and store answers in the survey many times a second."""
    review._STORE_SECONDS = 0.02
    with FolderLock(Path(results), purpose="reviewing on a page"):
        session = ReviewSession(Path(results))
        settings = ServeSettings(port=0, port_file=Path(port_file), max_body_mb=1)
        serve(review.ReviewApplication(session, settings, key=key), ready=lambda port: None, log_level=logging.WARNING)
        session.store()
