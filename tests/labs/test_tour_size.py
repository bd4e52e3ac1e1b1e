"""The size of a tour: what a machine can do in time, what the user names, what a stopped run had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.core.runs import RunFolder
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import build_model
from foveate_labs.studies.settings import TourSettings, TourSize
from foveate_labs.tour import run as tour_study
from foveate_labs.tour import size as sizes
from foveate_labs.tour.run import RECIPES, _list_overrides, tour
from foveate_labs.tour.size import FULL, SIZES, Speed, choose_size, choose_tour_size, estimate_seconds, measure_speed
from naming import raises_naming

# Measured on two cores of an AMD EPYC without AVX-512.
SLOW = Speed(scene=0.0138, image=0.0107, step=0.088)


def stop(*arguments: object, **options: object) -> None:
    raise InterruptedError


def times(speed: Speed, factor: float) -> Speed:
    return Speed(speed.scene * factor, speed.image * factor, speed.step * factor)


@pytest.mark.parametrize(("size", "seconds"), [(FULL, 916), (TourSize(image_size=128, scenes=6000, steps=500), 521)])
def test_the_estimate_is_near_what_tours_took(size: TourSize, seconds: float) -> None:
    assert estimate_seconds(SLOW, size) == pytest.approx(seconds, rel=0.05)


def test_estimates_fall_from_size_to_size_and_scale_with_the_machine() -> None:
    seconds = [estimate_seconds(SLOW, size) for size in SIZES]
    assert SIZES[0] == FULL
    assert seconds == sorted(seconds, reverse=True)
    assert estimate_seconds(times(SLOW, 0.5), FULL) == pytest.approx(seconds[0] / 2)


def test_the_largest_size_in_time_is_chosen() -> None:
    assert choose_size(times(SLOW, 0.4)) == FULL
    assert choose_size(times(SLOW, 100)) == SIZES[-1], "the smallest, where none is in time"
    for factor in (0.4, 0.6, 0.8, 1.0):
        speed = times(SLOW, factor)
        chosen = SIZES.index(choose_size(speed))
        assert estimate_seconds(speed, SIZES[chosen]) <= sizes.MAX_SECONDS
        assert all(estimate_seconds(speed, size) > sizes.MAX_SECONDS for size in SIZES[:chosen])


def test_this_machine_is_measured_in_seconds() -> None:
    speed = measure_speed("cpu")
    assert 0 < speed.scene < 5
    assert 0 < speed.image < 5
    assert speed.image < speed.step, "192 images, though the smaller part of the network"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "measure_speed", lambda device: times(SLOW, 100))


def test_a_run_keeps_its_size(slow: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path)
    assert choose_tour_size(run, TourSettings()) == SIZES[-1]
    assert "--full" in capsys.readouterr().err
    (tmp_path / sizes.FILE).write_text(json.dumps(SIZES[1].model_dump()))
    assert choose_tour_size(run, TourSettings()) == SIZES[1], "stored, not measured again"
    assert "--full" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"full": True}),
        ({}, {"seeds": 3}),
        ({}, {"steps": 800}),
        ({"steps": 20}, {}),
        ({"steps": 20}, {"full": True}),
        ({"scenes": 300}, {"scenes": 400}),
        ({"full": True}, {"steps": FULL.steps}),
        ({}, {"image_size": SIZES[-1].image_size, "scenes": SIZES[-1].scenes, "steps": SIZES[-1].steps}),
    ],
)
def test_a_folder_keeps_one_size(first: dict[str, Any], second: dict[str, Any], slow: None, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    size = choose_tour_size(run, TourSettings(**first))
    advice = "leave out --full" if size.by_speed else "leave out --image-size" if size == FULL else "repeat its options"
    with raises_naming(UserError, tmp_path, size.describe(), advice, "--out") as caught:
        choose_tour_size(run, TourSettings(**second))
    held, _, requested = str(caught.value).partition(" (this command asks for ")
    assert not requested.startswith(f"{size.describe()})"), "both would read alike"
    assert held.removesuffix(", chosen by speed").endswith(size.describe())
    assert held.endswith("chosen by speed") == size.by_speed
    assert choose_tour_size(run, TourSettings(**first)) == size, "the refused command changed nothing"


def test_another_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, command=["foveate", "tour"])
    run.write_result(FULL.model_dump(), sizes.FILE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with raises_naming(UserError, tmp_path, FULL.describe(), "--out"):
        tour(tmp_path, TourSettings(steps=20), command=["foveate", "tour", "--steps", "20"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("settings", "seed"), [(TourSettings(test_scenes=800), 0), (TourSettings(), 1)])
def test_another_seed_or_number_of_test_scenes_is_refused_before_anything_is_written(
    settings: TourSettings, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first part of the tour: what comes before it refuses, what comes behind it writes.
    monkeypatch.setattr(tour_study, "ask_shipped", stop)
    with pytest.raises(InterruptedError):
        tour(tmp_path, command=["foveate", "tour"])
    RunFolder(tmp_path).write_result(FULL.model_dump(), sizes.FILE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with raises_naming(UserError, tmp_path, "another recipe", "--out"):
        tour(tmp_path, settings, seed=seed, command=["foveate", "tour", "..."])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InterruptedError):  # more trainings are added
        tour(tmp_path, TourSettings(seeds=3))


def test_a_tour_of_a_version_that_noted_no_seed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tour_study, "ask_shipped", stop)
    RunFolder.create(tmp_path).write_result(FULL.model_dump(), sizes.FILE)
    (tmp_path / "collection").mkdir()
    with pytest.raises(InterruptedError):
        tour(tmp_path)
    with raises_naming(UserError, tmp_path, "another recipe"):
        tour(tmp_path, seed=1)


@pytest.mark.parametrize("settings", [{"full": True}, {"steps": 20}, {"scenes": 300}, {}])
def test_the_same_command_goes_on(settings: dict[str, Any], slow: None, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    size = choose_tour_size(run, TourSettings(**settings))
    assert choose_tour_size(run, TourSettings(**settings)) == size


def test_a_tour_of_a_version_without_sizes_is_refused(slow: None, tmp_path: Path) -> None:
    (tmp_path / "collection").mkdir()
    with raises_naming(UserError, tmp_path, "earlier version", "--out"):
        choose_tour_size(RunFolder.create(tmp_path), TourSettings())


@pytest.mark.parametrize("name", RECIPES.values())
def test_the_full_size_is_that_of_the_recipes(name: str) -> None:
    recipe = load(PretrainRecipe, name)
    full = load(PretrainRecipe, name, _list_overrides(recipe.training.seed, FULL))
    assert recipe.training == full.training
    with torch.device("meta"):
        assert build_model(recipe).image_encoder.preprocess == build_model(full).image_encoder.preprocess


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (TourSettings(full=True), FULL),
        (TourSettings(seeds=2), FULL),
        (TourSettings(scenes=300), TourSize(scenes=300)),
        (TourSettings(steps=20, image_size=64), TourSize(steps=20, image_size=64, short=True)),
    ],
)
def test_what_is_named_is_taken_and_the_rest_is_whole(
    settings: TourSettings, size: TourSize, slow: None, tmp_path: Path
) -> None:
    assert choose_tour_size(RunFolder.create(tmp_path), settings) == size


def test_the_full_size_has_no_other_part(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path)
    with raises_naming(UserError, "--full", "--image-size, --steps"):
        choose_tour_size(run, TourSettings(full=True, steps=20, image_size=64))
    assert not (tmp_path / sizes.FILE).exists()


def test_a_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / sizes.FILE).write_text('{"image_size": 100, "scenes": 300, "steps": 20}')
    with raises_naming(UserError, tmp_path / sizes.FILE, "image_size", "32"):
        choose_tour_size(RunFolder.create(tmp_path), TourSettings())
