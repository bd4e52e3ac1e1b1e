"""Models that were trained on features of a file predict from one; MLP-concat reads place and hour as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from training_survey import build_survey, write_features

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.records.tables import write_table
from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages
from foveate.species.explain import explain
from foveate.species.export import write_megadetector
from foveate.species.model import SpeciesModel
from foveate.species.predict import predict
from foveate.species.predictions import DECISIONS, Predictions
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import PredictSettings
from foveate.species.summary import rank_links
from foveate.species.train import train_species
from foveate.survey.survey import Survey
from naming import raises_naming


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return build_survey(tmp_path_factory.mktemp("survey") / "survey", images=32)


def train(survey: Survey, features: Path, run: Path, method: str) -> SpeciesModel:
    values = {"method": method, "data": {"features": str(features)}, "training": {"epochs": 1}, "graph": {"dim": 8}}
    recipe = validate(SpeciesRecipe, {**values, "prior": "none"}, where="test")
    outcome = train_species(survey.collection.path, run, recipe, include_locations=method != "erm", device="cpu")
    assert outcome.model is not None
    return outcome.model


@pytest.mark.parametrize("method", ["erm", "mlp_concat"])
def test_features_of_a_file_are_predicted(survey: Survey, tmp_path: Path, method: str) -> None:
    path = tmp_path / "features.npz"
    arrays = write_features(path, survey)
    model = train(survey, path, tmp_path / "run", method)
    # The first image has none.
    np.savez(path, key=arrays["key"][1:], vector=arrays["vector"][1:])
    result = predict(model, survey.collection.path, tmp_path / "results", PredictSettings(features=path, batch=5))
    assert (result.images, result.failed, result.cropped, result.boxed) == (32, 1, 0, 0)
    predictions = Predictions.open(tmp_path / "results")
    context = {"places_N2": survey.places_N2[1:], "hours_N": survey.hour_N[1:]} if method == "mlp_concat" else {}
    expected = model.probabilities(arrays["vector"][1:], **context)
    np.testing.assert_allclose(predictions.probabilities_NK[1:], expected, atol=1e-6)
    assert np.isnan(predictions.probabilities_NK[0]).all()
    assert predictions.images["failure"].to_pylist()[:2] == ["no features in the file", ""]
    with raises_naming(UserError, "run/model", "--features"):
        predict(model, survey.collection.path, tmp_path / "others", PredictSettings())
    with raises_naming(UserError, "nothing.npz"):
        predict(model, survey.collection.path, tmp_path / "others", PredictSettings(features=tmp_path / "nothing.npz"))
    # A model that moved is the same.
    config = json.loads((tmp_path / "results" / "predict.json").read_text())
    config["model"]["path"] = "moved/model"
    (tmp_path / "results" / "predict.json").write_text(json.dumps(config))
    assert predict(model, survey.collection.path, tmp_path / "results", PredictSettings(features=path)).images == 32
    moved = json.loads((tmp_path / "results" / "predict.json").read_text())
    assert moved["model"] == {"path": str(model.folder), "sha256": model.sha256}
    config["model"]["sha256"] = "0" * 64
    (tmp_path / "results" / "predict.json").write_text(json.dumps(config))
    with raises_naming(UserError, "predict.json", "model"):
        predict(model, survey.collection.path, tmp_path / "results", PredictSettings(features=path))
    config["model"]["sha256"] = model.sha256
    (tmp_path / "results" / "predict.json").write_text(json.dumps(config))
    write_features(path, survey, seed=2)
    with raises_naming(UserError, "predict.json", "features"):
        predict(model, survey.collection.path, tmp_path / "results", PredictSettings(features=path))


def test_new_images_never_have_decisions_of_others(survey: Survey, tmp_path: Path) -> None:
    features, results = tmp_path / "features.npz", tmp_path / "results"
    write_features(features, survey)
    model = train(survey, features, tmp_path / "run", "erm")
    verb = ["species", "predict", str(model.folder), str(survey.collection.path), "--features", str(features)]
    (tmp_path / "list.csv").write_text("Lynx lynks\n")
    with raises_naming(UserError, tmp_path / "list.csv", "Lynx lynks"):
        options = ["--out", str(results), "--list", str(tmp_path / "list.csv")]
        CliRunner().invoke(cli, [*verb, *options], catch_exceptions=False)
    assert not results.exists(), "refused before any image is predicted"
    settings = PredictSettings(features=features)
    predict(model, survey.collection.path, results, settings)
    table = decide_results(Predictions.open(results), Stages())
    # A table that lacks an image: by index -1 it would get the last decision.
    write_table(results / DECISIONS, table.slice(1))
    first = table["keys"][0].as_py()[0]
    for act in (
        lambda predictions: explain(predictions, model, first, tmp_path / "explanation"),
        lambda predictions: write_megadetector(predictions, tmp_path / "md.json"),
    ):
        with raises_naming(UserError, DECISIONS, repr(first), "predict"):
            act(Predictions.open(results))
    # Other images: their old decisions go.
    (results / "scores/00000.safetensors").unlink()
    predict(model, survey.collection.path, results, settings)
    assert not (results / DECISIONS).exists()


def test_doubtful_clocks_and_places_are_those_of_the_graph(tmp_path: Path) -> None:
    survey = build_survey(tmp_path / "survey", images=64)
    arrays = write_features(tmp_path / "features.npz", survey)
    model = train(survey, tmp_path / "features.npz", tmp_path / "run", "cosmo")
    settings = PredictSettings(features=tmp_path / "features.npz")
    predict(model, survey.collection.path, tmp_path / "results", settings)
    predictions = Predictions.open(tmp_path / "results")
    np.testing.assert_allclose(predictions.links("places"), model.predict_links(arrays["vector"], "place"), atol=1e-5)
    clocks, places = rank_links(predictions, predictions.survey)
    assert len(clocks) == 4
    # Cameras of the training alone are candidates.
    assert {hint.deployment for hint in places} == {"oak-1", "creek-1"}
    assert {hint.likelier for hint in places} <= {"", "oak", "creek"}
    assert not any(str(value) in (tmp_path / "results/predict.json").read_text() for value in survey.places_N2[0])


def test_fields_of_the_encoder_keep_its_default_kind() -> None:
    recipe = validate(SpeciesRecipe, {"encoder": {"image_size": 64}}, where="test")
    assert recipe.encoder == {"kind": "lite0", "image_size": 64}
    other = validate(SpeciesRecipe, {"encoder": {"kind": "timm"}}, where="test")
    assert other.encoder == {"kind": "timm"}, "sizes of the default encoder are not those of another"
