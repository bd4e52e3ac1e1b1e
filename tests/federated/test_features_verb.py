"""`foveate federated features` from sources to a page, stopped and repeated; its baselines, encoders, model folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.results import parse_result
from foveate.federated import job as federated_job
from foveate.federated.deep import job as deep_job
from foveate.federated.deep.encoder import ENCODERS, flatten_weights
from foveate.federated.deep.estimator import FederatedDeepClustering
from foveate.federated.deep.job import DeepJob, fit_clients, load_model
from foveate.federated.deep.options import METHODS, DeepOptions, read_options
from foveate.federated.deep.protocol import EMBEDDED, TRAIN
from foveate.federated.deep.run import plan, probe
from foveate.federated.job import load_snapshot, save_snapshot
from foveate.federated.results import FeaturesResult
from foveate.federated.rounds import merge_tables
from foveate.federated.sources import gather, read_points
from foveate.report import render
from foveate.report.pages import federated
from naming import raises_naming

QUICK = ["--rounds", "3", "--set", "width=8", "--set", "hidden=16", "--quiet"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["federated", "features", *map(str, arguments)])


def answer(*arguments: object) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    return json.loads(done.stdout)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three groups of four-sided points at two hospitals."""
    random = np.random.default_rng(0)
    points = random.normal(size=(120, 6)) + 4 * random.normal(size=(3, 6))[np.arange(120) % 3]
    columns = {
        "embedding": pa.array(list(points)),
        "species": [f"s{n % 3}" for n in range(120)],
        "hospital": ["north" if n < 60 else "south" for n in range(120)],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_from_a_table_to_a_page(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = answer(
        table,
        "--client",
        "hospital",
        "--label",
        "species",
        "--compare",
        "untrained,local,central",
        "--out",
        out,
        *QUICK,
    )
    assert [one["method"] for one in found["methods"]] == [*list(METHODS)[:1], "untrained", "local", "central", "plain"]
    assert [one["rounds"] for one in found["methods"]] == [3, 0, 3, 3, 0]
    assert found["methods"][-1]["quality"] == {"nmi": 1, "ari": 1, "purity": 1}, "groups that k-means sees at once"
    assert "No encoder: the points as they are" in (out / "report.html").read_text(encoding="utf-8")
    for one in found["methods"][:-1]:
        assert {"distance", "nmi", "ari", "purity", "knn", "probe"} == set(one["quality"])
        assert 0.9 < one["quality"]["probe"] <= 1, "groups that a line separates"
    assert found["clusters"] == 3
    assert found["clustering"] == "consensus, spherical True, one shot"
    assert [(client["name"], client["points"], client["rounds"]) for client in found["clients"]] == [
        ("north", 60, 3), ("south", 60, 3)
    ]  # fmt: skip
    by_method = {one["method"]: one for one in found["methods"]}
    assert by_method["central"]["bytes_up"] == by_method["central"]["bytes_down"] == 0
    assert by_method["local"]["bytes_up"] == by_method["deepfeca"]["bytes_up"]
    assert {(row["kind"], row["up"]) for row in found["exchanged"]} == {
        (kind, up) for kind in (EMBEDDED, TRAIN) for up in (True, False)
    }
    features = pq.read_table(found["paths"]["features"])
    assert features.column_names == ["client", "row", "label", "embedding"]
    lengths = np.linalg.norm(np.stack(features["embedding"].to_pylist()), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    groups = pq.read_table(found["paths"]["groups"])
    assert groups.column_names == ["client", "row", "label", "group"]
    model = load_model(found["paths"]["model"])
    read = gather([table], client="hospital")
    together_ = np.concatenate([model.predict(one) for one in read.points])
    np.testing.assert_array_equal(together_, groups["group"].to_numpy())
    page = Path(found["paths"]["report"]).read_text(encoding="utf-8")
    for words in ("One encoder of", "DeepFeCA, reconstructed", "Linear probe", "By group", "By client", "By label",
                  "Loss of the clients", "centroids of embeddings", "All data in one place"):  # fmt: skip
        assert words in page
    # What it wrote is a source like any other.
    again = answer(
        out / "features.parquet", "--client", "client", "--label", "label", "--out", tmp_path / "again", *QUICK
    )
    assert again["features"] == 8


def test_words_for_people_and_no_labels(table: Path, tmp_path: Path) -> None:
    done = call(table, "--client", "hospital", "--clusters", 3, "--compare", "none", "--out", tmp_path / "r", *QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "One encoder of 2 clients"
    assert lines[1].startswith("DeepFeCA, reconstructed: ")
    assert lines[2].startswith("Clients: 2 · Points: 120 · ")
    assert lines[3].split() == ["Method", "Distance", "Rounds", "Exchanged", "Time"], "without labels, no NMI"
    assert lines[4].startswith("DeepFeCA, reconstructed  ")
    assert [line.split(":")[0] for line in lines[5:]] == ["run", "model", "features", "groups", "report"]
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "By label" not in page
    # A hash of the page's policy may spell it.
    assert "NMI" not in re.sub(r"sha256-[\w+/=]+", "", page)


@pytest.mark.parametrize("stop", [1, 3])
def test_stopped_after_a_round_and_repeated_it_ends_with_the_same_weights(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    arguments = [table, "--client", "hospital", "--label", "species", *QUICK]
    whole = answer(*arguments, "--out", tmp_path / "whole")

    def killed(path: Path, job: Any, state: Any) -> None:
        save_snapshot(path, job, state)
        if state.round == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(federated_job, "save_snapshot", killed)
    assert call(*arguments, "--out", tmp_path / "cut").exit_code != 0
    assert not (tmp_path / "cut" / "result.json").exists()
    monkeypatch.undo()
    trained: list[int] = []
    handlers = deep_job.handlers

    def counting(*given: Any) -> Any:
        found = handlers(*given)

        def train(data: Any, request: Any, client: int) -> Any:
            trained.append(request.round)
            return found[TRAIN](data, request, client)

        return {**found, TRAIN: train}

    monkeypatch.setattr(deep_job, "handlers", counting)
    again = answer(*arguments, "--out", tmp_path / "cut")
    assert sorted(set(trained)) == list(range(stop, 3)), "no finished round is trained again"
    same = [load_file(tmp_path / one / "model" / "model.safetensors") for one in ("whole", "cut")]
    assert same[0].keys() == same[1].keys()
    for name, array in same[0].items():
        np.testing.assert_array_equal(array, same[1][name], err_msg=name)
    for one, two in zip(whole["methods"], again["methods"], strict=True):
        assert one["quality"] == two["quality"]
        assert (one["bytes_up"], one["bytes_down"]) == (two["bytes_up"], two["bytes_down"])
    assert whole["exchanged"] == again["exchanged"]
    assert whole["history"] == again["history"]


def test_stopped_within_a_round_it_asks_nobody_twice(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [table, "--client", "hospital", "--label", "species", "--compare", "none", *QUICK]
    whole = answer(*arguments, "--out", tmp_path / "whole")
    asked: list[tuple[str, int, int]] = []
    handlers = deep_job.handlers

    def noting(*given: Any) -> Any:
        def wrapped(kind: str, handler: Any) -> Any:
            def run(data: Any, request: Any, client: int) -> Any:
                asked.append((kind, request.round, client))
                if len(asked) == 8:  # the second client's training of the second round
                    raise KeyboardInterrupt
                return handler(data, request, client)

            return run

        return {kind: wrapped(kind, handler) for kind, handler in handlers(*given).items()}

    monkeypatch.setattr(deep_job, "handlers", noting)
    assert call(*arguments, "--out", tmp_path / "cut").exit_code != 0
    assert asked[-1] == (TRAIN, 1, 1)
    again = answer(*arguments, "--out", tmp_path / "cut")
    assert len(asked) == len(set(asked)) + 1, "the killed question alone is asked again"
    assert again["methods"][0]["quality"] == whole["methods"][0]["quality"]
    assert again["exchanged"] == whole["exchanged"]
    kept = sorted(path.name for path in (tmp_path / "cut" / "answers" / "deepfeca").iterdir())
    assert kept == ["000003-query.embedded"], "weights of finished rounds are forgotten"


@pytest.mark.parametrize(("encoder", "numbers"), [("small_resnet", 64), ("small_vit", 64)])
def test_encoders_of_images(encoder: str, numbers: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "p.npz", points=random.random((60, 48)), label=np.arange(60) % 3, client=np.arange(60) % 2)
    found = answer(
        tmp_path / "p.npz", "--client", "client", "--label", "label", "--set", f"encoder={encoder}", "--set",
        "augment=shift", "--rounds", 1, "--set", "width=8", "--out", tmp_path / "run", "--quiet",
    )  # fmt: skip
    features = pq.read_table(found["paths"]["features"])
    assert features.column_names == ["client", "row", "label", "embedding", "output"]
    assert len(features["output"][0]) == numbers
    model = load_model(found["paths"]["model"])
    points = gather([tmp_path / "p.npz"], client="client").points
    wanted = np.stack(features["embedding"].to_pylist())
    np.testing.assert_allclose(np.concatenate([model.transform(one) for one in points]), wanted, atol=1e-6)


def test_the_verb_trains_what_the_estimator_trains() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(size=(40, 5)) + 3 * number for number in range(3)]
    options = read_options({"clusters": 3, "rounds": 2, "width": 16, "seed": 4})
    fitted = fit_clients(parts, options)
    estimator = FederatedDeepClustering(3, n_rounds=2, width=16, random_state=4).fit(parts)
    np.testing.assert_array_equal(fitted.state.weights, flatten_weights(estimator.encoder_))
    np.testing.assert_array_equal(fitted.centers, estimator.cluster_centers_)
    assert sum(row["bytes"] for row in fitted.state.exchanged if row["up"]) == estimator.bytes_up_


def test_own_centroids_are_another_training_than_common_ones() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(size=(40, 5)) + 2 * number for number in range(3)]
    found = {
        name: fit_clients(parts, read_options({"clusters": 3, "rounds": 2, "width": 8, "method": name}))
        for name in ("deepfeca", "local", "untrained", "central")
    }
    weights = [one.state.weights for one in found.values()]
    assert all((one != two).any() for place, one in enumerate(weights) for two in weights[place + 1 :])
    alone = [
        fit_clients(parts[:1], read_options({"clusters": 3, "rounds": 2, "width": 8, "method": name}))
        for name in ("deepfeca", "central")
    ]
    np.testing.assert_array_equal(alone[0].state.weights, alone[1].state.weights)


def test_the_plan_writes_nothing_and_bounds_what_is_sent(table: Path, tmp_path: Path) -> None:
    arguments = [table, "--client", "hospital", "--label", "species", "--compare", "none", *QUICK]
    planned = answer(*arguments, "--dry-run", "--out", tmp_path / "run")
    gathered, options = gather([table], client="hospital"), DeepOptions.model_validate(planned["options"])
    assert planned["bytes_up_per_client"] == plan(gathered, options)["bytes_up_per_client"]
    assert planned["clients"] == {"north": 60, "south": 60}
    assert not (tmp_path / "run").exists()
    found = answer(*arguments, "--out", tmp_path / "run")
    assert found["methods"][0]["bytes_up"] == 2 * planned["bytes_up_per_client"]


def test_tables_of_messages_are_added() -> None:
    row = {"kind": "train", "up": True, "name": "weights", "dtype": "float32"}
    one = [{**row, "messages": 2, "bytes": 8, "smallest": [1, 4], "largest": [3, 4]}]
    two = [{**row, "messages": 1, "bytes": 4, "smallest": [2, 4], "largest": [5, 4]}, {**one[0], "up": False}]
    found = merge_tables(one, two)
    assert found[0] == {**row, "messages": 3, "bytes": 12, "smallest": [1, 4], "largest": [5, 4]}
    assert len(found) == 2
    assert one[0]["messages"] == 2, "what is added is left as it was"


def test_a_probe_of_one_label_is_no_number() -> None:
    assert probe(np.eye(10), np.zeros(10)) is None
    assert probe(np.eye(3), np.arange(3)) is None
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    assert probe(random.normal(size=(200, 4)) + 5 * labels[:, None], labels) == 1
    assert 0.2 < probe(random.normal(size=(200, 4)), labels) < 0.8  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "locale"], "Did you mean 'local'"),
        (["--set", "roundes=3"], "Did you mean 'rounds'"),
        (["--set", "rounds=3"], "--rounds"),
        (["--set", "seed=3"], "--seed"),
        (["--set", "clustering=consenus"], "Did you mean 'consensus'"),
        (["--set", "clustering=central"], "pools raw points"),
        (["--set", "encoder=small_resnet"], "rows of 6 values are not square images"),
        (["--set", "encoder=small_vit", "--set", "shape=[1,2,3]"], "square images (got 2 x 3)"),
        (
            ["--set", "encoder=small_resnet", "--set", "shape=[1,2,2]"],
            "shape: channels x height x width must be the 6 values of a row",
        ),
        (["--set", "shape=[1,2,3]"], "field 'shape' has no effect"),
        (["--set", "augment=shift"], "shift moves images"),
        (["--set", "encoder=small_resnet", "--set", "augment=noise"], "noise is for features"),
        (["--set", "width=1"], "field 'width'"),
        (["--min-clients", "3"], "2 of 2 clients answered; 3 are needed"),
        (["--clusters", "200"], "200"),
    ],
)
def test_a_users_mistake_is_one_sentence(table: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = call(table, "--client", "hospital", "--label", "species", "--out", tmp_path / "run", "--quiet", *arguments)
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)


def test_an_unknown_method_is_a_wrong_argument(table: Path, tmp_path: Path) -> None:
    done = call(table, "--client", "hospital", "--label", "species", "--out", tmp_path / "run", "--method", "deepfecca")
    assert done.exit_code == 2
    assert "Did you mean 'deepfeca'" in done.output


def test_labels_or_a_number_of_clusters_are_needed(table: Path, tmp_path: Path) -> None:
    done = call(table, "--client", "hospital", "--out", tmp_path / "run")
    assert isinstance(done.exception, UserError)
    assert "--clusters" in str(done.exception)


def test_a_folder_of_other_settings_and_damaged_files_are_refused(table: Path, tmp_path: Path) -> None:
    arguments = [table, "--client", "hospital", "--label", "species", "--compare", "none", *QUICK]
    answer(*arguments, "--out", tmp_path / "a")
    other = call(*arguments, "--out", tmp_path / "a", "--seed", "3")
    assert isinstance(other.exception, UserError)
    assert "another recipe" in str(other.exception)
    kept = tmp_path / "a" / "states" / "deepfeca.safetensors"
    with raises_naming(UserError, "8", "4"):
        load_snapshot(kept, DeepJob(read_options({"clusters": 3, "rounds": 3, "hidden": 16, "width": 4})))
    kept.write_bytes(kept.read_bytes()[:50])
    broken = call(*arguments, "--out", tmp_path / "a")
    assert isinstance(broken.exception, UserError)
    assert "damaged" in str(broken.exception)
    model = tmp_path / "a" / "model"
    with pytest.raises(UserError, match="Did you mean"):
        load_model(tmp_path / "a")
    with raises_naming(UserError, "5", "6"):
        load_model(model).predict(np.zeros((2, 5)))
    (model / "model.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(UserError, match="damaged"):
        load_model(model)


def test_a_page_without_rounds_or_with_a_client_left_out(table: Path, tmp_path: Path) -> None:
    answer(table, "--client", "hospital", "--clusters", 3, "--method", "untrained", "--out", tmp_path / "r", "--quiet")
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert 'id="rounds"' not in page
    result = json.loads((tmp_path / "r" / "result.json").read_text(encoding="utf-8"))
    result["clients"][1]["excluded"] = "no answer"
    result["notes"] = ["south was left out: no <answer>"]
    (tmp_path / "r" / "result.json").write_text(json.dumps(result), encoding="utf-8")
    page = render(tmp_path / "r").read_text(encoding="utf-8")
    assert "south (left out)" in page
    result["methods"].append({**result["methods"][0], "method": "central", "federated": False, "quality": {"nmi": 0.5}})
    table = federated.features_measures(parse_result(FeaturesResult, result))
    # Measures that no method has are left out.
    assert table.heads == ["Method", "NMI", "Distance", "Rounds", "Exchanged", "Time"]
    assert table.rows[0][1] == "–"
    assert table.rows[1][:-1] == ["All data in one place", "0.500", "–", "0", "all points"]
    assert "no &lt;answer&gt;." in page


def test_each_encoder_of_the_options_can_be_built() -> None:
    allowed = get_args(DeepOptions.model_fields["encoder"].annotation)
    assert set(allowed) == {"none", *ENCODERS}


def test_digits_are_a_source() -> None:
    assert read_options({"clusters": 10, "encoder": "small_resnet"}).reads_images
    assert deep_job.prepare_samples(read_points("digits").points_ND[:3], read_options(
        {"clusters": 10, "encoder": "small_resnet"})).shape == (3, 1, 8, 8)  # fmt: skip
