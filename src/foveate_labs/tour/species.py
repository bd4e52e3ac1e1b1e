"""The tour's camera traps: a generated survey, a model of its species, one image through every stage, and a control."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator, uniform
from foveate.records.images import save_thumbnail
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages, decide, prepare_stages
from foveate.species.evaluate import Truth, match_truth, read_truth
from foveate.species.folder import open_species
from foveate.species.predict import predict
from foveate.species.predictions import Predictions
from foveate.species.priors import PRIOR
from foveate.species.priors.histogram import HistogramPrior, fit_prior
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import PredictSettings
from foveate.species.stages.prior import weigh_by_prior
from foveate.species.summary import summarize
from foveate.species.train import train_species
from foveate.survey.survey import Survey
from foveate_labs.studies.results import TourSpecies, TourStep
from foveate_labs.worlds.traps import TrapSettings, build_traps, load_world
from foveate_labs.worlds.traps.kinds import KINDS

SURVEY, RESULTS, LIST = "survey", "species-results", "species-list.txt"
WORLD = TrapSettings(train_cameras=24, test_cameras=8)
ENCODER = {"kind": "lite0", "image_size": 160, "width": 8, "embed_dim": 8}
THRESHOLD, TEMPERATURE = 0.5, 1.5  # of the one image: lower and softer than the defaults, so that each stage has work
NUM_SHUFFLES = 10
DIGITS = 1  # decimals of the map: about 10 km
_LIST_SHARE = 0.002  # of a camera's animals, from which on a person lists a species


@dataclass(frozen=True)
class SurveySize:
    """Images of both splits, and epochs of the training."""

    train: int
    test: int
    epochs: int


FULL, SHORT = SurveySize(480, 200, 8), SurveySize(80, 40, 2)


def tour_species(run: RunFolder, *, seed: int, device: str | None = None, size: SurveySize = FULL) -> dict[str, Any]:
    """Build a survey, train on crops of its animals, decide at unseen cameras; return the result for the page."""
    path = run.path / SURVEY
    build_traps(path, train=size.train, test=size.test, seed=seed, settings=WORLD)
    recipe = SpeciesRecipe.model_validate(
        {"encoder": ENCODER, "graph": {"dim": 64}, "training": {"epochs": size.epochs, "seed": seed}}
    )
    trained = train_species(path, run.path / f"species-seed{seed}", recipe, device=device)
    if trained.model is None:
        raise UserError(f"{run.path}: stopped; run the same command to resume")
    model = open_species(trained.model.folder)
    predict(model, path, run.path / RESULTS, PredictSettings(split="test"), device=device)
    predictions = Predictions.open(run.path / RESULTS)
    prior = {"source": trained.run.path / PRIOR, "by_place": True, "by_hour": True}
    decide_results(predictions, Stages.model_validate({"prior": prior}))
    truth = read_truth(predictions)
    summary = summarize(predictions, predictions.folder, truth=truth, digits=DIGITS, samples=0)
    survey = predictions.survey
    images, model_right, prior_right, shuffled_right = compare_priors(predictions, survey, truth, seed=seed)
    return TourSpecies(
        train_images=trained.result.images,
        train_cameras=trained.result.cameras,
        test_images=summary.images,
        classes=len(model.classes),
        **show_image(predictions, survey, truth, run.path, prior, seed=seed),
        animals=images,
        model=model_right,
        prior=prior_right,
        shuffled=shuffled_right,
        stages=summary.stages,
        cameras=summary.per_camera,
        taxa=summary.taxa,
        digits=DIGITS,
    ).to_json()


def compare_priors(
    predictions: Predictions, survey: Survey, truth: Truth, *, seed: int
) -> tuple[int, float, float, float]:
    """Return the number of images with an animal, and the share of right species by three ways.

    They are the model alone, with the prior of place, and with priors of cameras whose places were dealt out at random
    (mean of `NUM_SHUFFLES`). Without this control a gain could come from any prior that prefers frequent species.
    """
    classes = predictions.classes
    rows = np.flatnonzero((truth.classes_N >= 0) & classes.animals_K[truth.classes_N])
    probabilities_NK = predictions.probabilities_NK[rows].astype(np.float64)
    places_N2, truth_N = survey.places_N2[predictions.rows[rows]], truth.classes_N[rows]
    # The priors below use places alone, so hours and days are unknown.
    unknown_N = np.full(len(rows), np.nan)

    def measure(prior: HistogramPrior) -> float:
        factors_NK = prior.factors(places_N2, unknown_N, unknown_N)
        # Strength and floor are the defaults of the stage.
        weighted_NK = weigh_by_prior(probabilities_NK, factors_NK, classes.animals_K, strength=1.0, floor=0.01)
        return float((weighted_NK.argmax(axis=1) == truth_N).mean())

    labels_T, cameras_T, places_T2 = _read_training(predictions, survey)
    names, index_T = np.unique(cameras_T, return_inverse=True)
    # Places are dealt out by camera: images of one camera stay together, as in the survey.
    places_C2 = places_T2[[int(np.flatnonzero(cameras_T == name)[0]) for name in names]]
    rng = generator("tour species", seed)
    shuffled = [
        measure(fit_prior(labels_T, classes, places=places_C2[rng.permutation(len(names))][index_T]))
        for _ in range(NUM_SHUFFLES)
    ]
    right = float((probabilities_NK.argmax(axis=1) == truth_N).mean())
    return len(rows), right, measure(fit_prior(labels_T, classes, places=places_T2)), float(np.mean(shuffled))


def _read_training(
    predictions: Predictions, survey: Survey
) -> tuple[NDArray[np.int64], NDArray[np.object_], NDArray[np.float64]]:
    """Return class, camera and place of the animal of each training event: the images of a burst are one visit."""
    classes, labels = predictions.classes, survey.labels()
    matches = match_truth(sorted(set(labels.tolist()) - {""}), classes, predictions.taxa)
    labels_N = np.array([matches[label][0] if label else -1 for label in labels.tolist()], np.int64)
    rows = predictions.collection.rows("train")
    rows = rows[(labels_N[rows] >= 0) & classes.animals_K[labels_N[rows]]]
    rows = rows[np.unique(survey.events().event_N[rows], return_index=True)[1]]
    return labels_N[rows], np.asarray(survey.camera_N)[rows], survey.places_N2[rows]


def show_image(
    predictions: Predictions,
    survey: Survey,
    truth: Truth,
    folder: Path,
    prior: Mapping[str, Any],
    *,
    seed: int,
) -> dict[str, Any]:
    """Take the event of one image through every stage; it is drawn by the seed among those with an animal."""
    decision = _draw_event(predictions, truth, seed)
    positions = [predictions.collection_keys.index(key) for key in decision["keys"]]
    rows = predictions.rows[positions]
    classes, taxa = predictions.classes, predictions.taxa
    known = {taxa.ids[taxon] for taxon in classes.taxa_K.tolist() if taxon >= 0}
    names = _list_species(decision["camera"], known, seed)
    write_text_atomically(folder / LIST, "".join(f"{name}\n" for name in names))
    stages = Stages.model_validate(
        {
            "temperature": {"temperature": TEMPERATURE},
            # A list switches the prior off by itself; here both are shown.
            "prior": {**prior, "within_list": True},
            # A very small survey may have trained none of the species that pass here.
            "species_list": {"file": folder / LIST if names else None},
            "threshold": {"threshold": THRESHOLD},
        }
    )
    decisions = decide(
        predictions.probabilities_NK[positions],
        classes,
        taxa,
        prepare_stages(stages, classes, taxa),
        events=np.zeros(len(rows)),
        places=survey.places_N2[rows],
        hours=survey.hour_N[rows],
        # A survey counts days of the year from 1, a prior from 0.
        days=survey.day_N[rows] - 1,
    )
    best = int(decisions.images_R[0])
    key = predictions.collection_keys[positions[best]]
    boxes = [box for box in predictions.boxes.to_pylist() if box["key"] == key and box["used"]]
    image = "images/species.webp"
    save_thumbnail(predictions.collection.image_bytes(int(rows[best])), folder / image, longest_side=640)
    label = _event_label(truth, positions)
    return {
        "image": image,
        "box": tuple(boxes[0][corner] for corner in ("x1", "y1", "x2", "y2")) if boxes else None,
        "file": predictions.images["file"][positions[best]].as_py(),
        "truth": taxa.names[taxa.index(label)] if label in taxa else label,
        "event_images": len(rows),
        "listed": len(names),
        "steps": [TourStep(**step) for step in json.loads(decisions.to_columns()["source"][0].as_py())],
    }


def _event_label(truth: Truth, positions: list[int]) -> str:
    """Return what an event shows: an animal leaves some frames of its burst."""
    labels = [str(truth.names_N[position]) for position in positions]
    return next((label for label in labels if label not in ("", "blank")), labels[0])


def _draw_event(predictions: Predictions, truth: Truth, seed: int) -> dict[str, Any]:
    """Draw the decision of an event with an animal: whatever was answered, right or wrong."""
    index = {key: position for position, key in enumerate(predictions.collection_keys)}
    animals = [
        decision
        for decision in predictions.decisions.to_pylist()
        if _event_label(truth, [index[key] for key in decision["keys"]]) != "blank"
    ]
    if not animals:
        raise UserError(f"{predictions.folder}: no event has an animal; use more images")
    # By a number of each event: the draw does not depend on the order of decisions.
    return min(animals, key=lambda decision: uniform("tour species event", seed, decision["keys"][0]))


def _list_species(camera: str, known: Set[str], seed: int) -> list[str]:
    """List the species that pass a camera, as a person would who knows its surroundings.

    Args:
        known: ids of the taxa of the model; other names would be refused.
    """
    world = load_world(WORLD, seed)
    shares_K = world.shares_at(world.find_camera(camera))
    return [
        kind.taxon
        for kind, share in zip(KINDS, shares_K.tolist(), strict=True)
        if share >= _LIST_SHARE and kind.taxon_id in known
    ]
