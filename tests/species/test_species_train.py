"""Training on a survey: run folder, resuming, baselines, inputs of every kind, and the model folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from training_survey import KINDS, PLACES, build_survey, write_features

from foveate.cli.verbs.species.options import build_stages
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically
from foveate.core.model_folder import CARD
from foveate.core.recipes import validate
from foveate.core.stopping import StopRequest
from foveate.species import fit
from foveate.species.estimate import estimate_training, format_estimate
from foveate.species.folder import open_species
from foveate.species.graph import SpeciesGraph, build_graph
from foveate.species.predict import predict
from foveate.species.priors import PRIOR
from foveate.species.priors.histogram import load_histogram
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import PredictSettings
from foveate.species.sources import read_features
from foveate.species.train import SpeciesRun, train_species
from foveate.survey.survey import Survey
from foveate.vision.registry import build_image_encoder
from naming import raises_naming

SMALL: dict[str, Any] = {
    "graph": {"dim": 24},
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "image_learning_rate": 0.01, "log_every": 1},
    "view": {"view": "whole"},
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return build_survey(tmp_path_factory.mktemp("survey") / "survey")


@pytest.fixture(scope="module")
def features(survey: Survey, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, NDArray[Any]]]:
    path = tmp_path_factory.mktemp("features") / "features.npz"
    return path, write_features(path, survey)


def recipe(**fields: Any) -> SpeciesRecipe:
    return validate(SpeciesRecipe, {**SMALL, **fields}, where="test")


@pytest.fixture(scope="module")
def trained(survey: Survey, features: Any, tmp_path_factory: pytest.TempPathFactory) -> SpeciesRun:
    run = tmp_path_factory.mktemp("run") / "run"
    return train_species(survey.collection.path, run, recipe(data={"features": str(features[0])}))


def test_result_and_model_say_what_was_trained(trained: SpeciesRun, features: Any) -> None:
    result, model = trained.result, trained.model
    assert model is not None
    assert json.loads((trained.run.path / "result.json").read_text())["kind"] == "species_train"
    assert result.contexts == ["taxonomy", "place", "time"]
    assert (result.images, result.validation_images, result.cameras) == (28, 14, 2)
    assert {entry.relation: entry.candidates for entry in result.passes}["location"] == 2
    assert all(entry.chance is not None for entry in result.passes if entry.relation in ("location", "time"))
    assert set(result.selection) == {"accuracy", "macro_f1"}
    assert result.left_out["unlabeled"] == 8
    assert sorted(model.classes.labels) == sorted(KINDS)
    animals = [label for label in model.classes.labels if label != "blank"]
    assert [model.taxa.names[taxon] for taxon in model.classes.taxa_K.tolist() if taxon >= 0] == animals
    vectors = features[1]["vector"]
    predicted = [model.classes.labels[column] for column in model.probabilities(vectors).argmax(axis=1)]
    truth = [KINDS[number % 4] for number in range(len(vectors))]
    assert np.mean(np.array(predicted) == truth) > 0.7


def test_a_dry_run_counts_what_is_trained(trained: SpeciesRun, survey: Survey, features: Any) -> None:
    files = sorted(survey.collection.path.rglob("*"))
    estimate = estimate_training(recipe(data={"features": str(features[0])}), survey.collection.path)
    result = trained.result
    assert (estimate["images"], estimate["validation_images"]) == (result.images, result.validation_images)
    assert estimate["classes"] == len(result.classes)
    assert estimate["contexts"] == result.contexts
    assert estimate["left_out"] == result.left_out
    # A training may end before its last epoch, where the validation images gain nothing.
    assert estimate["steps_per_epoch"] == {entry.relation: entry.steps for entry in result.passes}
    assert result.steps % sum(estimate["steps_per_epoch"].values()) == 0 < result.steps <= estimate["steps"]
    assert f"at most {estimate['steps']:,} steps" in format_estimate(estimate)[1]
    assert sorted(survey.collection.path.rglob("*")) == files
    solved = estimate_training(recipe(method="linear_probe"), survey.collection.path)
    assert (solved["steps"], format_estimate(solved)[1]) == (0, "solved, not trained in steps")
    with raises_naming(UserError, "no such file"):
        estimate_training(recipe(data={"features": "missing.npz"}), survey.collection.path)


def test_folder_opens_to_the_same_scores(trained: SpeciesRun, features: Any) -> None:
    model = trained.model
    assert model is not None
    vectors = torch.from_numpy(features[1]["vector"]).float()
    again = open_species(model.folder)
    np.testing.assert_allclose(again.logits(vectors), model.network(vectors).numpy(), rtol=1e-4, atol=1e-5)
    assert again.sha256 == model.sha256
    assert again.predict_links(vectors, "time").shape == (64, len(again.hours))
    assert again.entity_vectors.shape == (len(again.info.entity_taxa), 24)


def test_no_coordinate_and_no_camera_leaves_the_folder(trained: SpeciesRun, survey: Survey, features: Any) -> None:
    assert trained.model is not None
    files = {path.name: path.read_bytes() for path in trained.model.folder.iterdir()}
    # Results are shown to others as well.
    files["result.json"] = (trained.run.path / "result.json").read_bytes()
    for name, content in files.items():
        for camera, degrees in PLACES.items():
            assert f"{camera}-1".encode() not in content, name
            assert str(degrees[0]).encode() not in content, name
    tensors = load_file(trained.model.folder / "model.safetensors")
    assert not [name for name in tensors if "place" in name or "degrees" in name]
    with raises_naming(UserError, "include-locations"):
        trained.model.predict_links(features[1]["vector"], "place")


def test_a_prior_lies_beside_the_model(trained: SpeciesRun) -> None:
    prior = load_histogram(trained.run.path / PRIOR)
    assert prior.parts == ["place", "hour", "season"]
    assert prior.cells_C2 is not None
    assert prior.cells_C2.tolist() == [[51.25, 4.75]], "both training cameras stand in one cell"
    assert prior.counts_CL is not None
    assert prior.counts_CL.sum() == 24, "28 labels, of which 4 are blank, each an event of its own"
    assert trained.model is not None
    assert not list(trained.model.folder.rglob("*prior*"))


def test_locations_on_demand(survey: Survey, features: Any, tmp_path: Path) -> None:
    chosen = recipe(data={"features": str(features[0])}, graph={"dim": 24, "place_input": "sphere"})
    run = train_species(survey.collection.path, tmp_path / "run", chosen, include_locations=True)
    assert run.model is not None
    np.testing.assert_allclose(run.model.places_P2, [PLACES["oak"], PLACES["creek"]])
    assert run.model.predict_links(features[1]["vector"], "place").shape == (64, 2)


@pytest.mark.parametrize("fields", [{"method": "erm"}, {"graph": {"dim": 24, "contexts": ["taxonomy", "time"]}}])
def test_no_locations_without_places(
    fields: dict[str, Any], survey: Survey, features: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = recipe(data={"features": str(features[0])}, training={**SMALL["training"], "epochs": 1}, **fields)
    run = train_species(survey.collection.path, tmp_path / "run", chosen, include_locations=True)
    assert run.model is not None
    assert not len(run.model.places_P2)
    assert "no coordinates" in (run.model.folder / CARD).read_text("utf-8")
    assert "--include-locations has no effect" in capsys.readouterr().err


def test_a_graph_on_disk_trains_to_the_same_weights(
    trained: SpeciesRun, survey: Survey, features: Any, tmp_path: Path
) -> None:
    build_graph(survey.collection.path, tmp_path / "graph")
    chosen = recipe(data={"features": str(features[0])})
    run = train_species(tmp_path / "graph", tmp_path / "run", chosen)
    assert run.model is not None
    assert trained.model is not None
    whole, parts = (load_file(folder / "model.safetensors") for folder in (trained.model.folder, run.model.folder))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    with raises_naming(UserError, "taxonomy", "x.csv"):
        train_species(tmp_path / "graph", tmp_path / "run", chosen, taxonomy=Path("x.csv"))


def test_a_stopped_run_ends_with_the_same_weights(
    trained: SpeciesRun, survey: Survey, features: Any, tmp_path: Path
) -> None:
    chosen = recipe(data={"features": str(features[0])})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__init__", _stopping)
        stopped = train_species(survey.collection.path, tmp_path / "run", chosen)
    assert stopped.model is None
    assert stopped.result.status == "stopped"
    resumed = train_species(survey.collection.path, tmp_path / "run", chosen)
    assert resumed.model is not None
    assert trained.model is not None
    whole, parts = (load_file(run.folder / "model.safetensors") for run in (trained.model, resumed.model))
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def _stopping(self: StopRequest) -> None:
    self.signal_name = "SIGTERM"


def test_another_graph_in_the_same_run_is_refused(
    trained: SpeciesRun, survey: Survey, features: Any, tmp_path: Path
) -> None:
    chosen = recipe(data={"features": str(features[0])})
    taxonomy = tmp_path / "taxa.csv"
    taxonomy.write_text("taxon,parent\nAnimalia,\n" + "".join(f"{kind},Animalia\n" for kind in KINDS[:3]))
    with raises_naming(UserError, "taxonomy", "--out"):
        train_species(survey.collection.path, trained.run.path, chosen, taxonomy=taxonomy)


def test_other_features_in_the_same_run_are_refused(survey: Survey, tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    chosen = recipe(method="erm", data={"features": str(path)})
    np.savez(path, key=np.array(["x"]), vector=np.zeros((1, 2)))
    with raises_naming(UserError, path, "'x'"):
        train_species(survey.collection.path, tmp_path / "run", chosen)
    # Nothing was trained on that one.
    write_features(path, survey)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__init__", _stopping)
        assert train_species(survey.collection.path, tmp_path / "run", chosen).model is None
    write_features(path, survey, seed=2)
    with raises_naming(UserError, "features", "--out"):
        train_species(survey.collection.path, tmp_path / "run", chosen)
    path.unlink()
    with raises_naming(UserError, path, "data.features"):
        train_species(survey.collection.path, tmp_path / "run", chosen)


def stop(survey: Survey, run: Path, chosen: SpeciesRecipe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__init__", _stopping)
        assert train_species(survey.collection.path, run, chosen).model is None


def assert_same_model(run: SpeciesRun, expected: SpeciesRun) -> None:
    assert run.model is not None
    assert expected.model is not None
    whole, parts = (load_file(outcome.model.folder / "model.safetensors") for outcome in (expected, run))  # type: ignore[union-attr]
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_resumes_with_other_fields_without_influence(
    trained: SpeciesRun, survey: Survey, features: Any, tmp_path: Path
) -> None:
    stop(survey, tmp_path / "run", recipe(data={"features": str(features[0])}))
    free = {"log_every": 2, "checkpoint_every": 3, "workers": 0}
    chosen = recipe(data={"features": str(features[0])}, training={**SMALL["training"], **free})
    assert_same_model(train_species(survey.collection.path, tmp_path / "run", chosen), trained)


def test_a_run_of_0_2_resumes(trained: SpeciesRun, survey: Survey, features: Any, tmp_path: Path) -> None:
    """Its hashes are in graph.json."""
    chosen = recipe(data={"features": str(features[0])})
    stop(survey, tmp_path / "run", chosen)
    (tmp_path / "run" / "data.json").rename(tmp_path / "run" / "graph.json")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert_same_model(train_species(survey.collection.path, tmp_path / "run", chosen), trained)
    identity = json.loads((tmp_path / "other" / "graph.json").read_text())
    assert json.loads((tmp_path / "run" / "data.json").read_text()) == identity
    (tmp_path / "other" / "graph.json").write_text(json.dumps({**identity, "features": "another"}))
    with raises_naming(UserError, "features", "another", "--out"):
        train_species(survey.collection.path, tmp_path / "other", chosen)


def test_a_first_attempt_that_fails_does_not_block_the_corrected_command(
    trained: SpeciesRun, survey: Survey, features: Any, tmp_path: Path
) -> None:
    chosen = recipe(data={"features": str(features[0])})
    with raises_naming(UserError, "lite0", "train_encoder"):
        train_species(survey.collection.path, tmp_path / "run", recipe(train_encoder=True))
    assert (tmp_path / "run" / "data.json").is_file()
    assert_same_model(train_species(survey.collection.path, tmp_path / "run", chosen), trained)


@pytest.mark.parametrize("method", ["erm", "linear_probe", "mlp_concat"])
def test_baselines(
    method: str, survey: Survey, features: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A single layer without a product of vectors behind it: it needs larger steps.
    training = {**SMALL["training"], "image_learning_rate": 0.1}
    chosen = recipe(method=method, data={"features": str(features[0])}, training=training)
    run = train_species(survey.collection.path, tmp_path / "run", chosen, include_locations=method == "mlp_concat")
    assert run.result.contexts == []
    assert ("graph.dim has no effect" in capsys.readouterr().err) == (method != "mlp_concat")
    model, vectors = run.model, features[1]["vector"]
    assert model is not None
    contexts = {"places_N2": survey.places_N2, "hours_N": survey.hour_N}
    if method != "mlp_concat":
        with raises_naming(UserError, method, "features alone"):
            model.probabilities(vectors, **contexts)
        contexts = {}
    probabilities = model.probabilities(vectors, **contexts)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    truth = [model.classes.index(KINDS[number % 4]) for number in range(64)]
    assert (probabilities.argmax(1) == truth).mean() > 0.7


@pytest.mark.parametrize(
    ("fields", "idle"),
    [
        ({}, set()),
        ({"graph": {"score": "conve", "conve_rows": 4}, "training": {"taxonomy_passes": 3}}, set()),
        ({"graph": {"conve_rows": 4}, "training": {"tau": 2}}, {"graph.conve_rows", "training.tau"}),
        ({"graph": {"contexts": ["place", "time"]}, "training": {"extra_species_pass": False}}, set()),
        ({"training": {"extra_species_pass": False}}, {"training.extra_species_pass"}),
        (
            {"graph": {"contexts": ["taxonomy"], "hour_input": "raw", "start": "official"}},
            {"graph.hour_input", "graph.start"},
        ),
        ({"method": "mlp_concat", "graph": {"dim": 8, "hour_input": "raw", "score": "complex"}}, {"graph.score"}),
        ({"method": "erm", "graph": {"dim": 8}, "training": {"epochs": 3, "balance": "sampling"}}, {"graph.dim"}),
        (
            {"method": "linear_probe", "training": {"epochs": 3, "patience": 2}},
            {"training.epochs", "training.patience"},
        ),
        ({"data": {"features": "f.npz"}, "view": {"view": "whole"}}, {"view"}),
        ({"data": {"validation": ""}, "training": {"monitor": "accuracy"}}, {"training.monitor"}),
    ],
)
def test_fields_without_effect_are_named(fields: dict[str, Any], idle: set[str]) -> None:
    assert set(SpeciesRecipe.model_validate(fields).idle_fields()) == idle


def test_mlp_concat_needs_its_places(survey: Survey, features: Any, tmp_path: Path) -> None:
    chosen = recipe(method="mlp_concat", data={"features": str(features[0])})
    places_N2 = survey.places_N2.copy()
    row = int(np.flatnonzero((survey.collection.splits == "train") & (survey.labels() != ""))[3])
    places_N2[row] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Survey, "places_N2", places_N2)
        with raises_naming(UserError, "mlp_concat", "1 of", survey.keys[row]):
            train_species(survey.collection.path, tmp_path / "lacking", chosen, include_locations=True)
    with raises_naming(UserError, "mlp_concat", "--include-locations"):
        train_species(survey.collection.path, tmp_path / "run", chosen)
    assert not (tmp_path / "run").exists()


TINY = {"kind": "timm", "model": "test_resnet", "embed_dim": 4, "image_size": 32, "geometry": "stretch"}


@pytest.mark.parametrize("train_encoder", [False, True])
def test_encoders_frozen_and_trained(
    train_encoder: bool, survey: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {**SMALL["training"], "epochs": 1, "workers": 0}
    chosen = recipe(encoder=TINY, train_encoder=train_encoder, training=training)
    run = train_species(survey.collection.path, tmp_path / "run", chosen)
    model = run.model
    assert model is not None
    encoder = model.load_encoder()
    pixels = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        vectors = encoder.image_vectors(encoder.frozen_features(pixels))
    assert model.probabilities(vectors).shape == (3, 4)
    names = load_file(model.folder / "model.safetensors").keys()
    assert train_encoder == any(name.startswith("image.encoder.") for name in names)
    if not train_encoder:
        # The fingerprint of an older model does not name a projection that was trained with its encoder.
        monkeypatch.setattr(type(encoder), "unnamed_weights", lambda self: {"weight": torch.ones(1)})
        model.load_encoder()
        config = json.loads((model.folder / "config.json").read_text())
        config["encoder"]["model"] = "test_resnet"
        config["fingerprint"] = "0000-32px-vectors"
        (model.folder / "config.json").write_text(json.dumps(config))
        with raises_naming(UserError, "config.json", "0000-32px-vectors"):
            open_species(model.folder).load_encoder()


def test_the_last_stages_of_lite0_are_trained_on_cached_maps(survey: Survey, tmp_path: Path) -> None:
    """Maps are computed once, the folder stores the trained blocks, and opened it predicts from pixels."""
    options = {"kind": "lite0", "image_size": 32, "width": 4, "embed_dim": 4, "train_last_stages": True}
    training = {**SMALL["training"], "epochs": 1}
    chosen = recipe(encoder=options, train_encoder=True, training=training)
    model = train_species(survey.collection.path, tmp_path / "run", chosen).model
    assert model is not None
    encoder, untrained = model.load_encoder(), build_image_encoder(options)
    trained = dict(encoder.unnamed_weights())
    assert trained.keys() == untrained.unnamed_weights().keys()
    assert any(not torch.equal(value, untrained.unnamed_weights()[name]) for name, value in trained.items())
    pixels = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        vectors = encoder.image_vectors(encoder.frozen_features(pixels))
        scores = model.network(pixels)
    np.testing.assert_allclose(model.logits(vectors), scores.numpy(), atol=1e-4)
    settings = PredictSettings(detect=False)
    assert predict(model, survey.collection.path, tmp_path / "results", settings, device="cpu").failed == 0


def test_a_frozen_network_cannot_be_trained(survey: Survey, tmp_path: Path) -> None:
    with raises_naming(UserError, "lite0", "train_encoder"):
        train_species(survey.collection.path, tmp_path / "run", recipe(train_encoder=True))


def _break_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["entities.weight"] = tensors["entities.weight"][:2].clone()
    save_file(tensors, folder / "model.safetensors")


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, folder / "model.safetensors")


def _edit(name: str, field: str, value: Any) -> Any:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content[field] = value
        (folder / name).write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_break_tensor, ("entities.weight", "model.safetensors")),
        (_drop_tensor, ("head.bias", "model.safetensors")),
        (_edit("config.json", "kind", "adapter"), ("config.json", "kind")),
        (_edit("config.json", "format", 99), ("config.json", "99")),
        (_edit("config.json", "targets", [0, 1, 2, 99]), ("config.json", "targets")),
        (_edit("config.json", "entities", ["no such taxon"]), ("config.json", "no such taxon")),
        (_edit("config.json", "features", 10**9), ("model.safetensors", "10")),
        (_edit("config.json", "classes", [{"label": "a"}]), ("config.json", "taxon")),
        (_edit("taxa.json", "taxa", 3), ("config.json",)),
        (lambda folder: (folder / "taxa.json").unlink(), ("taxa.json",)),
    ],
)
def test_damaged_folders_are_refused(damage: Any, names: tuple[str, ...], trained: SpeciesRun, tmp_path: Path) -> None:
    assert trained.model is not None
    folder = Path(shutil.copytree(trained.model.folder, tmp_path / "model"))
    damage(folder)
    with raises_naming(UserError, *names):
        open_species(folder)


def test_features_of_another_width_or_not_finite(trained: SpeciesRun) -> None:
    assert trained.model is not None
    with raises_naming(UserError, "features", 6):
        trained.model.probabilities(np.zeros((2, 5)))
    with raises_naming(UserError, "row 1"):
        trained.model.probabilities(np.array([[0.0] * 6, [np.nan] * 6]))
    with raises_naming(UserError, "features", trained.model.folder):
        trained.model.load_encoder()


def test_files_of_features(survey: Survey, tmp_path: Path) -> None:
    keys, rows = list(survey.keys), np.arange(4)
    arrays = {"key": np.array([*keys[:3], "other"]), "vector": np.arange(8.0).reshape(4, 2)}
    np.savez(tmp_path / "a.npz", **arrays)
    table = pa.table({"key": arrays["key"].tolist(), "vector": arrays["vector"].tolist()})
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.npz", "a.parquet"):
        features, missing = read_features(tmp_path / name, keys, rows)
        assert features[1].tolist() == [2.0, 3.0]
        assert missing.tolist() == [3]
    np.savez(tmp_path / "twice.npz", key=np.array([keys[0], keys[0]]), vector=np.zeros((2, 2)))
    np.savez(tmp_path / "none.npz", key=np.array(["x"]), vector=np.zeros((1, 2)))
    np.savez(tmp_path / "nan.npz", key=np.array(keys[:1]), vector=np.full((1, 2), np.nan))
    np.savez(tmp_path / "shape.npz", key=np.array(keys[:1]), vector=np.zeros(2))
    np.savez(tmp_path / "names.npz", keys=np.array(keys[:1]))
    np.savez(tmp_path / "scalar.npz", key=np.array(keys[0]), vector=np.zeros((1, 2)))
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros((1, 2)))
    np.savez_compressed(
        tmp_path / "damaged.npz", key=np.array(keys[:1]), vector=np.random.default_rng(0).random((1, 999))
    )
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[2000:2100] = b"\xff" * 100
    (tmp_path / "damaged.npz").write_bytes(damaged)
    (tmp_path / "text.npz").write_text("no archive")
    pq.write_table(pa.table({"key": keys[:1], "vector": [["x", "y"]]}), tmp_path / "strings.parquet")
    pq.write_table(pa.table({"key": keys[:1], "vector": [[[1.0], [2.0]]]}), tmp_path / "nested.parquet")
    pq.write_table(pa.table({"key": keys[:2], "vector": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"key": keys[:2], "vectors": [[1.0], [2.0]]}), tmp_path / "column.parquet")
    np.savez(tmp_path / "empty.npz", key=np.array(keys[:2]), vector=np.zeros((2, 0)))
    for name, part in {
        "twice.npz": keys[0],
        "none.npz": "'x'",
        "nan.npz": keys[0],
        "empty.npz": "length 0",
        "shape.npz": "vector",
        "names.npz": "'key'",
        "scalar.npz": "'key'",
        "single.npz": "npz",
        "damaged.npz": "npz",
        "text.npz": "npz",
        "missing.npz": "no such file",
        "ragged.parquet": "vector",
        "column.parquet": "vector",
        "strings.parquet": "string",
        "nested.parquet": "list<",
    }.items():
        with raises_naming(UserError, name, part):
            read_features(tmp_path / name, keys, rows)


def test_classes_of_the_test_images_alone(survey: Survey, features: Any, tmp_path: Path) -> None:
    labels = survey.labels()
    labels[(labels == "Lynx lynx") & (survey.collection.splits == "train")] = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Survey, "labels", lambda self, *arguments, **options: labels)
        graph = SpeciesGraph.from_collection(survey.collection)
        assert graph.untrained_classes() == ["Lynx lynx"]
        chosen = recipe(method="linear_probe", data={"features": str(features[0])})
        model = train_species(survey.collection.path, tmp_path / "run", chosen).model
        assert model is not None
        column = model.classes.index("Lynx lynx")
        assert model.info.images_K[column] == 0
        assert not model.probabilities(features[1]["vector"])[:, column].any()
        labels[labels != "blank"] = ""
        with raises_naming(UserError, "survey", "blank"):
            train_species(survey.collection.path, tmp_path / "other", chosen)


def test_a_survey_without_labels_is_refused(survey: Survey, tmp_path: Path) -> None:
    chosen = recipe(data={"train": ["tran"]})
    with raises_naming(UserError, "tran", "train"):
        train_species(survey.collection.path, tmp_path / "run", chosen)


def test_a_validation_split_that_is_unknown_or_trained_on(survey: Survey, features: Any, tmp_path: Path) -> None:
    options, run = {"features": str(features[0])}, tmp_path / "run"
    known = sorted({*survey.collection.splits} - {""})
    for name, parts in {f"{known[-1]}x": ("unknown", f"'{known[-1]}'"), "train": ("trained on",)}.items():
        with raises_naming(UserError, "data.validation", f"'{name}'", *parts):
            train_species(survey.collection.path, run, recipe(data={**options, "validation": name}))
    assert not run.exists()
    chosen = recipe(method="linear_probe", data={**options, "validation": ""})
    assert train_species(survey.collection.path, run, chosen).result.validation_images == 0


def test_a_command_divides_logits_by_the_temperature_of_the_model(
    survey: Survey, features: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit_temperature", lambda logits, truth: 1.5)
    run = train_species(survey.collection.path, tmp_path / "run", recipe(data={"features": str(features[0])}))
    model = run.run.path / "model"
    assert read_json(model / "metrics.json")["temperature"] == 1.5
    assert build_stages({}, model).temperature.temperature == 1.5
    assert build_stages({"temperature": {"temperature": 1.0}}, model).temperature.temperature == 1.0
    # A model that was trained before, and one that is not there any more.
    write_json_atomically(model / "metrics.json", {"accuracy": 0.5})
    assert build_stages({}, model).temperature.temperature == 1.0
    assert build_stages({}, tmp_path / "nothing").temperature.temperature == 1.0
