"""The tour's camera traps: the prior's control, and a very small survey from images to the section of the page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foveate.core.results import parse_result
from foveate.core.runs import RunFolder
from foveate.report import render
from foveate.species.evaluate import Truth
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa
from foveate_labs.pages.tour import species_section
from foveate_labs.studies.results import TourSpecies
from foveate_labs.tour.species import LIST, WORLD, SurveySize, compare_priors, tour_species
from foveate_labs.worlds.traps import load_world

TINY = SurveySize(train=60, test=24, epochs=1)


def test_the_prior_of_true_places_gains_and_its_control_does_not() -> None:
    """Two species, each on its own continent; the images alone say nothing."""
    classes = Classes(("deer", "fox"), np.array([0, 1]))
    labels = np.array(["deer", "fox"] * 24, dtype=object)
    places = np.where((labels == "fox")[:, None], [-20.0, 30.0], [50.0, 10.0])
    events = SimpleNamespace(event_N=np.arange(len(labels)))
    survey: Any = SimpleNamespace(
        labels=lambda: labels,
        camera_N=[f"camera {number % 12}" for number in range(len(labels))],
        places_N2=places,
        events=lambda: events,
    )
    predictions: Any = SimpleNamespace(
        classes=classes,
        taxa=Taxa.from_rows([{"id": str(n), "name": name, "rank": "species"} for n, name in enumerate(classes.labels)]),
        probabilities_NK=np.full((len(labels), 2), 0.5),
        rows=np.arange(len(labels)),
        collection=SimpleNamespace(rows=lambda split: np.arange(len(labels))),
    )
    truth = Truth(np.array([0, 1] * 24), labels, {}, {})
    animals, model, prior, shuffled = compare_priors(predictions, survey, truth, seed=0)
    assert (animals, model, prior) == (48, 0.5, 1.0)
    assert shuffled < 0.8


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TourSpecies]:
    run = RunFolder.create(tmp_path_factory.mktemp("tour-species") / "run")
    content = tour_species(run, seed=0, device="cpu", size=TINY)
    return run.path, parse_result(TourSpecies, json.loads(json.dumps(content, allow_nan=False)))


def test_one_image_passes_every_stage(result: tuple[Path, TourSpecies]) -> None:
    path, species = result
    stages = ["classifier", "temperature", "prior", "species_list", "pooling", "rollup", "threshold"]
    assert species.listed
    assert [step.stage for step in species.steps] == stages
    assert all(0 <= step.score <= 1 for step in species.steps)
    assert species.truth != "blank"
    assert (path / species.image).is_file()
    assert len((path / LIST).read_text().splitlines()) == species.listed
    assert 0 < species.animals < species.test_images == TINY.test


def test_places_on_the_map_are_rounded(result: tuple[Path, TourSpecies]) -> None:
    world = load_world(WORLD, 0)
    for row in result[1].cameras:
        camera = world.find_camera(row.camera)
        assert (row.latitude, row.longitude) == (round(camera.latitude, 1), round(camera.longitude, 1))
        assert row.latitude != camera.latitude
    section = species_section(result[1])
    assert str(section["map"]).count("<circle") == len(result[1].cameras)
    assert [name for name, _ in section["steps"]][-1] == "Threshold"


def test_the_page_shows_stages_and_the_control(result: tuple[Path, TourSpecies]) -> None:
    path, species = result
    content = {"kind": "tour", "collection": {"name": "tour"}, "species": species.to_json()}
    (path / "result.json").write_text(json.dumps(content))
    page = render(path).read_text(encoding="utf-8")
    assert all(text in page for text in (species.truth, "Species list", "dealt out at random", species.file))
