"""Priors of place, hour and season: fitted, written and read back; BirdNET's signature on a tiny ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.model_folder import CONFIG, WEIGHTS
from foveate.species.decisions import Stages, decide, prepare_stages
from foveate.species.priors import open_prior
from foveate.species.priors.birdnet import BirdNETPrior, find_labels, find_weeks, read_labels
from foveate.species.priors.histogram import HistogramPrior, compare_counts, load_histogram
from foveate.species.priors.histogram import fit_prior as fit_histogram
from foveate.species.priors.learned import (
    LearnedSettings,
    draw_conditions,
    encode_conditions,
    load_learned,
    presence_loss,
)
from foveate.species.priors.learned import fit_prior as fit_learned
from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa
from naming import raises_naming

LABELS = ("fox", "lynx", "rare", "never", "blank")
CLASSES = Classes(LABELS, np.array([0, 1, -1, -1, -1]))
TAXA = Taxa(("1", "2"), ("Vulpes vulpes", "Lynx lynx"), ("species",) * 2, np.array([-1, -1]))
NORTH, SOUTH = (60.0, 20.0), (10.0, 20.0)
UNKNOWN = np.array([np.nan])


@pytest.fixture(scope="module")
def survey() -> dict[str, Any]:
    """Foxes live in the north and at night, lynxes in the south and by day; one image of a rare animal; blanks."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 200 + [1] * 200 + [2] + [4] * 50)
    places = np.where(labels[:, None] == 0, NORTH, SOUTH) + rng.normal(0, 0.5, (len(labels), 2))
    places[5] = np.nan
    hours = np.where(labels == 0, 1.0, 13.0) + rng.uniform(-2, 2, len(labels))
    days = np.where(labels == 0, 20.0, 200.0) + rng.uniform(-10, 10, len(labels))
    return {"labels_N": labels, "places": places, "hours": hours, "days": days}


@pytest.fixture(scope="module")
def histogram(survey: dict[str, Any]) -> HistogramPrior:
    return fit_histogram(survey["labels_N"], CLASSES, **{name: survey[name] for name in ("places", "hours", "days")})


def test_histogram_weighs_places_hours_and_seasons(histogram: HistogramPrior) -> None:
    north = histogram.factors(np.array([NORTH]), UNKNOWN, UNKNOWN)[0]
    assert north[0] > 1.5 > 0.2 > north[1]
    # One image in the south says little against the rare animal in the north.
    assert 0.5 < north[2] < 1
    assert np.isnan(north[[3, 4]]).all(), "nothing is known of a class without images, or that is no animal"
    night = histogram.factors(np.full((1, 2), np.nan), np.array([1.0]), UNKNOWN)[0]
    summer = histogram.factors(np.full((1, 2), np.nan), UNKNOWN, np.array([200.0]))[0]
    assert night[0] > 1.3 > 0.7 > night[1]
    assert summer[1] > 1.3 > 0.7 > summer[0]
    both = histogram.factors(np.array([NORTH]), np.array([1.0]), UNKNOWN)[0]
    np.testing.assert_allclose(both[:3], (north * night)[:3])
    # Midnight and noon of the year's end are neighbors on their circles.
    late = histogram.factors(np.full((1, 2), np.nan), np.array([23.9]), UNKNOWN)[0]
    assert late[0] > 1


def test_an_hour_is_weighed_by_its_middle() -> None:
    labels = np.array([0] * 30 + [1] * 30)
    prior = fit_histogram(labels, CLASSES, hours=np.where(labels == 0, 8.0, 20.0))
    before, at, after = prior.factors(np.full((3, 2), np.nan), np.array([7.0, 8.0, 9.0]), np.full(3, np.nan))[:, 0]
    assert at > before
    assert before == pytest.approx(after)


def test_histogram_knows_nothing_far_away(histogram: HistogramPrior) -> None:
    far = histogram.factors(np.array([[-60.0, -150.0]]), UNKNOWN, UNKNOWN)[0]
    np.testing.assert_allclose(far[:3], 1, atol=0.02)
    assert np.isnan(histogram.factors(np.full((1, 2), np.nan), UNKNOWN, UNKNOWN)).all()


def test_factors_average_to_one_over_the_counts() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 30, (6, 4)).astype(float)
    ratios = compare_counts(np.eye(6), counts, 1e-9, 1e-9)
    # Without smoothing they are P(c | k) / P(c).
    expected = (counts / counts.sum(axis=0)) / (counts.sum(axis=1, keepdims=True) / counts.sum())
    np.testing.assert_allclose(ratios, expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ratios @ (counts.sum(axis=0) / counts.sum()), 1)


def test_histogram_folder_keeps_cells_only(histogram: HistogramPrior, survey: dict[str, Any], tmp_path: Path) -> None:
    folder = histogram.save(tmp_path / "prior")
    again = load_histogram(folder)
    conditions = (np.array([NORTH, SOUTH]), np.array([3.0, np.nan]), np.array([np.nan, 150.0]))
    np.testing.assert_allclose(again.factors(*conditions), histogram.factors(*conditions), rtol=1e-5)
    assert histogram.cells_C2 is not None
    assert (np.mod(histogram.cells_C2, 0.5) == 0.25).all(), "a place is known no more exactly than its cell"
    assert "km" in (folder / "README.md").read_text()
    assert not list(folder.glob("*.p*kl*"))
    selected = open_prior(folder, Classes(("lynx", "new", "fox"), np.full(3, -1)), TAXA, parts=["place"])
    columns = selected.factors(*conditions)
    np.testing.assert_allclose(columns[:, [2, 0]], again.factors(*conditions)[:, [0, 1]])
    assert np.isnan(columns[:, 1]).all()


def test_stage_with_a_prior(histogram: HistogramPrior, tmp_path: Path) -> None:
    folder = histogram.save(tmp_path / "prior")
    settings = {"prior": {"source": folder, "by_place": True, "by_hour": True}, "pooling": {"method": "none"}}
    stages = prepare_stages(Stages.model_validate(settings), CLASSES, TAXA)
    p = np.array([[0.45, 0.5, 0.0, 0.0, 0.05]] * 3)
    places = [NORTH, SOUTH, (np.nan, np.nan)]
    decisions = decide(p, CLASSES, TAXA, stages, places=places, hours=[1.0, np.nan, np.nan])
    assert decisions.names().to_pylist() == ["Vulpes vulpes", "Lynx lynx", "unknown"]
    trace = decisions.traces[1]
    assert [trace.notes[code] for code in trace.codes_R] == [
        "histogram prior: place, hour",
        "histogram prior: place",
        "histogram prior: nothing known",
    ]


def test_learned_prior(survey: dict[str, Any], tmp_path: Path) -> None:
    settings = LearnedSettings(width=16, epochs=12, batch_size=64, learning_rate=1e-2)
    options = {"places": survey["places"], "days": survey["days"], "settings": settings}
    prior = fit_learned(survey["labels_N"], CLASSES, **options)
    again = fit_learned(survey["labels_N"], CLASSES, **options)
    conditions = (np.array([NORTH, SOUTH, (np.nan, np.nan)]), np.full(3, np.nan), np.array([20.0, np.nan, 1.0]))
    factors = prior.factors(*conditions)
    np.testing.assert_array_equal(again.factors(*conditions), factors)
    assert factors[0, 0] > 1.5 > 0.5 > factors[0, 1]
    assert factors[1, 1] > 1 > factors[1, 0]
    assert np.isnan(factors[2]).all()
    assert np.isnan(factors[:, 3:]).all()
    loaded = load_learned(prior.save(tmp_path / "learned"))
    np.testing.assert_allclose(loaded.factors(*conditions), factors, rtol=1e-6)
    with raises_naming(UserError, "learned", "hour"):
        open_prior(tmp_path / "learned", CLASSES, TAXA, parts=["hour"])


def test_learned_factors_are_measured_against_scores_at_the_same_dates() -> None:
    labels, places = np.array([0, 1] * 4), [NORTH] * 8
    days = np.where(labels == 0, 20.0, 200.0)
    days[6:] = np.nan
    settings = LearnedSettings(width=16, epochs=20, learning_rate=1e-2)
    prior = fit_learned(labels, CLASSES, places=places, days=days, settings=settings)
    dates = np.concatenate([days[:6], np.arange(15.25, 366, 30.5)])
    weights = np.array([1.0] * 6 + [2 / 12] * 12)
    features = encode_conditions(torch.tensor([NORTH] * 18), torch.from_numpy(dates).float())
    with torch.no_grad():
        expected = np.average(prior.network(features).double().numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(prior.means_L, expected, rtol=1e-5)


def test_presence_loss_and_inputs() -> None:
    present, elsewhere = torch.tensor([[0.9, 0.2]]), torch.tensor([[0.5, 0.1]])
    expected = (2 * -np.log(0.9 + 1e-5) - np.log(0.8 + 1e-5)) / 2 - (np.log(0.5 + 1e-5) + np.log(0.9 + 1e-5)) / 2
    assert float(presence_loss(present, elsewhere, torch.tensor([0]))) == pytest.approx(expected, rel=1e-6)
    features = encode_conditions(torch.tensor([[45.0, 90.0]]), torch.tensor([183.0]))
    np.testing.assert_allclose(features[0], [1, 1, 0, 0, 0, 1], atol=1e-6)
    places, days = draw_conditions(4000, torch.Generator().manual_seed(0))
    # Uniform on the sphere: half of it lies within 30 degrees of the equator.
    assert float((places[:, 0].abs() < 30).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert 0 <= float(days.min()) <= float(days.max()) < 366


def write_geomodel(folder: Path, *, inputs: int = 3) -> Path:
    """A network of BirdNET's signature: the score of species n is sigmoid(10 (latitude, longitude, week) . w[n])."""
    onnx = pytest.importorskip("onnx")
    weights = np.zeros((inputs, 4), dtype=np.float32)
    weights[:, 0], weights[:, 1] = [0.1, 0, 0][:inputs], [-0.1, 0, 0][:inputs]
    weights[-1, 2] = 0.1
    tensor = onnx.numpy_helper.from_array(weights, "w")
    nodes = [onnx.helper.make_node("MatMul", ["input", "w"], ["z"]), onnx.helper.make_node("Sigmoid", ["z"], ["out"])]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
        for name, width in (("input", inputs), ("out", 4))
    ]
    graph = onnx.helper.make_graph(nodes, "geomodel", values[:1], values[1:], [tensor])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    path = folder / "BirdNET+_Geomodel_FP16.onnx"
    onnx.save(model, path)
    names = ["a\tVulpes vulpes\tRed Fox", "b\tLynx lynx\tLynx", "c\tSula sula\tBooby", "d\tRara avis\tRare"]
    (folder / "BirdNET+_Geomodel_Labels.txt").write_text("\n".join(names))
    return path


def test_birdnet(tmp_path: Path) -> None:
    path = write_geomodel(tmp_path)
    classes = Classes(("fox", "lynx", "Sula sula", "blank"), np.array([0, 1, -1, -1]))
    prior = open_prior(path, classes, TAXA, parts=["place", "season"])
    factors = prior.factors(np.array([(40.0, 0.0), (-40.0, 0.0), (np.nan, 0.0)]), UNKNOWN, np.array([0.0, np.nan, 3.0]))
    assert factors[0, 0] == 1, "what fits best keeps its probability"
    assert factors[0, 1] < 0.05
    assert factors[1, 0] < 0.05
    # Week 1 in the first row, the best of 48 weeks where the day is unknown.
    sigmoid = 1 / (1 + np.exp(-np.array([4.0, 0.1, 4.8])))
    np.testing.assert_allclose(factors[[0, 1], [2, 2]], [sigmoid[1] / sigmoid[0], 1.0], rtol=1e-5)
    assert factors[1, 1] == pytest.approx(sigmoid[0] / sigmoid[2], rel=1e-5)
    assert np.isnan(factors[2]).all()
    assert np.isnan(factors[:, 3]).all()


def test_bad_priors(histogram: HistogramPrior, tmp_path: Path) -> None:
    with raises_naming(UserError, "nowhere"):
        open_prior(tmp_path / "nowhere", CLASSES, TAXA, parts=["place"])
    with raises_naming(UserError, "geo.onnx"):
        open_prior(tmp_path / "geo.onnx", CLASSES, TAXA, parts=["place"])
    path = write_geomodel(tmp_path, inputs=2)
    with raises_naming(UserError, path.name, "3"):
        open_prior(path, CLASSES, TAXA, parts=["place"])
    path = write_geomodel(tmp_path)
    with raises_naming(UserError, "hour", "--hour-prior"):
        open_prior(path, CLASSES, TAXA, parts=["hour"])
    (tmp_path / "BirdNET+_Geomodel_Labels.txt").write_text("Vulpes vulpes_Red Fox\n")
    with raises_naming(UserError, path.name, "4", "1"):
        open_prior(path, CLASSES, TAXA, parts=["place"])
    (tmp_path / "BirdNET+_Geomodel_Labels.txt").unlink()
    with raises_naming(UserError, path.name, "Labels.txt"):
        open_prior(path, CLASSES, TAXA, parts=["place"])
    path.write_bytes(b"no network")
    (tmp_path / "labels.txt").write_text("Vulpes vulpes_Red Fox\n")
    with raises_naming(UserError, path.name):
        open_prior(path, CLASSES, TAXA, parts=["place"])
    folder = histogram.save(tmp_path / "prior")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with raises_naming(UserError, WEIGHTS):
        open_prior(folder, CLASSES, TAXA, parts=["place"])
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace('"histogram"', '"hystogram"'))
    with raises_naming(UserError, "hystogram", "histogram"):
        open_prior(folder, CLASSES, TAXA, parts=["place"])
    with raises_naming(UserError, "label"):
        fit_histogram([4, -1], CLASSES, hours=[1.0, 2.0])
    with raises_naming(UserError, "label"):
        fit_learned([4, -1], CLASSES, places=[NORTH, SOUTH])


class Weeks:
    """A session whose scores are the week and the latitude, as onnxruntime would return them."""

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "input"})]

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        places, weeks = inputs["input"][:, :2], inputs["input"][:, 2]
        return [np.stack([weeks / 48, np.clip(places[:, 0] / 90, 0, 1)], axis=1)]


def test_birdnet_scores_the_week_or_the_best_of_the_year() -> None:
    prior = BirdNETPrior(Weeks(), np.array([0, 1, -1]))
    places = np.array([(45.0, 0.0), (45.0, 0.0), (np.nan, 0.0)])
    factors = prior.factors(places, UNKNOWN, np.array([180.9, np.nan, 0.0]))
    # Day 180 is the last of June, week 24 of 48; without a day the last week is the best.
    np.testing.assert_allclose(factors[0], [1.0, 1.0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(factors[1], [1.0, 0.5, np.nan], rtol=1e-6)
    assert np.isnan(factors[2]).all()


def test_a_month_has_four_weeks() -> None:
    # The first of January, the 7th, 8th, 29th and 31st, 1 February, 1 March, 1 December, and the end of a leap year.
    days = np.array([0, 6, 7, 28, 30, 31, 59, 334, 365], dtype=np.float64)
    assert find_weeks(days).tolist() == [1, 1, 2, 4, 4, 5, 9, 45, 48]


def test_birdnet_labels_of_both_versions(tmp_path: Path) -> None:
    (tmp_path / "geo_Labels.txt").write_text("a\tVulpes vulpes\tRed Fox\nLynx lynx_Lynx\n")
    assert find_labels(tmp_path / "geo_FP16.onnx") == tmp_path / "geo_Labels.txt"
    assert read_labels(tmp_path / "geo_Labels.txt") == ["Vulpes vulpes", "Lynx lynx"]
    (tmp_path / "geo_Labels.txt").write_text("")
    with raises_naming(UserError, "geo_Labels.txt"):
        read_labels(tmp_path / "geo_Labels.txt")
