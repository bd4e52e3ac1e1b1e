"""A common scale of columns from sums: exact, without a row that moves, and within `min_count`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_wine
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from foveate import FederatedKMeans
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated import scaling
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.job import DeepJob, load_model
from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.options import read_options as read_deep_options
from foveate.federated.embedding.estimator import FederatedNeighborEmbedding
from foveate.federated.embedding.job import MapJob
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.job import fit_in_process, load_snapshot, save_snapshot, serve
from foveate.federated.node import answer_request
from foveate.federated.rounds import Client, InProcess, Log
from naming import raises_naming

POINTS, LABELS = (np.asarray(part) for part in load_wine(return_X_y=True))


def split(seed: int, clients: int = 4) -> tuple[list[np.ndarray], np.ndarray]:
    parts = np.array_split(np.random.default_rng(seed).permutation(len(POINTS)), clients)
    return [POINTS[rows] for rows in parts], np.concatenate([LABELS[rows] for rows in parts])


def run(parts: list[np.ndarray], log: Log, **options: object):
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]
    return cluster(InProcess(clients, log=log), resolve(3, seed=0, **options), evaluate=True)  # type: ignore[arg-type]


def test_the_scale_is_that_of_all_rows_in_one_place() -> None:
    parts, _ = split(0)
    # A large mean: sums of squares about zero would leave few digits of the deviation.
    parts = [part + 1e9 for part in parts]
    found = run(parts, Log(), scale="standard")
    reference = StandardScaler().fit(np.concatenate(parts))
    assert found.scaling is not None
    np.testing.assert_allclose(found.scaling.offset_D, reference.mean_, rtol=1e-12)
    np.testing.assert_allclose(found.scaling.scale_D, reference.scale_, rtol=1e-6)


def test_groups_are_those_of_rows_that_were_scaled_before() -> None:
    parts, _ = split(1)
    scaler = StandardScaler().fit(np.concatenate(parts))
    common = FederatedKMeans(3, scale="standard", random_state=0).fit(parts)
    before = FederatedKMeans(3, random_state=0).fit([scaler.transform(part) for part in parts])
    for mine, theirs in zip(common.labels_, before.labels_, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(common.cluster_centers_, scaler.inverse_transform(before.cluster_centers_), rtol=1e-9)
    np.testing.assert_array_equal(common.predict(parts[0]), common.labels_[0])
    np.testing.assert_allclose(common.transform(parts[0]), before.transform(scaler.transform(parts[0])), atol=1e-9)


def test_wine_is_found_in_a_common_scale_only() -> None:
    scores: dict[str, list[float]] = {"none": [], "standard": []}
    for seed in range(3):
        parts, labels = split(seed)
        for scale, values in scores.items():
            model = FederatedKMeans(3, scale=scale, random_state=seed).fit(parts)
            values.append(float(adjusted_rand_score(labels, np.concatenate(model.labels_))))
    assert max(scores["none"]) < 0.45
    assert min(scores["standard"]) > 0.8


def test_what_is_sent_are_sums_and_no_row_and_nothing_of_few_points() -> None:
    parts, _ = split(2)
    log = Log(record=True)
    run([*parts, POINTS[:4]], log, scale="standard", min_count=10)
    sent = [message for _, up, message in log.messages if up and message.kind == scaling.MOMENTS]
    assert len(sent) == 2 * len(parts)
    assert {name for message in sent for name in message.arrays} == {"sums", "squares"}
    assert all(array.shape == (13,) for message in sent for array in message.arrays.values())
    with raises_naming(UserError, "4", "min_count 10"):
        scaling.answer_moments(POINTS[:4], scaling.moments_request(10), 0)


def test_a_client_of_another_width_is_left_out_with_a_warning() -> None:
    parts, _ = split(3)
    parts[2] = parts[2][:, :5]
    for scale in ("none", "standard"):
        with pytest.warns(UserWarning, match="client 2 was left out.*5 features.*13"):
            model = FederatedKMeans(3, scale=scale, random_state=0).fit(parts)
        assert list(model.excluded_) == [2]


def test_a_constant_column_keeps_its_unit() -> None:
    parts = [np.column_stack([part, np.full(len(part), 7.0)]) for part in split(0)[0]]
    model = FederatedKMeans(3, scale="standard", random_state=0).fit(parts)
    np.testing.assert_allclose(model.cluster_centers_[:, -1], 7.0)


@pytest.mark.parametrize("method", ["consensus", "central"])
def test_the_verb_writes_centers_in_the_units_of_the_data(tmp_path: Path, method: str) -> None:
    np.savez(tmp_path / "wine.npz", points=POINTS, label=LABELS)
    arguments = ["cluster", tmp_path / "wine.npz", "--label", "label", "--split", "even", "--clients", "4"]
    arguments += ["--scale", "standard", "--method", method, "--out", tmp_path / "r", "--json", "--quiet"]
    done = CliRunner().invoke(cli, ["federated", *map(str, arguments)])
    assert done.exit_code == 0, repr(done.exception)
    assert json.loads(done.stdout)["methods"][0]["quality"]["ari"] > 0.8
    centers = np.load(tmp_path / "r" / "centers.npz")
    assert set(centers) == {"centers", "offset", "scale"}
    low, high = POINTS.min(0), POINTS.max(0)
    assert ((centers["centers"] >= low) & (centers["centers"] <= high)).all()


JOBS = {
    "embed": lambda **more: MapJob(EmbeddingOptions(rounds=3, **more)),
    "features": lambda **more: DeepJob(DeepOptions(clusters=3, rounds=2, width=8, hidden=16, **more)),
}
MEAN = np.array([0.0] * 13 + [1e9])


def with_loud_column(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Put beside well-scaled columns one of noise that is a million times as wide, around a large mean."""
    random = np.random.default_rng(9)
    scaler = StandardScaler().fit(POINTS)
    return [
        np.column_stack([scaler.transform(part), 1e6 * random.normal(size=len(part))]) + MEAN[None] for part in parts
    ]


@pytest.mark.parametrize("name", JOBS)
def test_a_training_sees_columns_in_the_scale_of_all_rows(name: str) -> None:
    parts = with_loud_column(split(0)[0])
    scaler = StandardScaler().fit(np.concatenate(parts))
    common, before = JOBS[name](scale="standard"), JOBS[name]()
    log = Log()
    state = fit_in_process(common, parts, log=log)
    other = fit_in_process(before, [scaler.transform(part) for part in parts])
    mine, theirs = common.finished(state), before.finished(other)
    # Two roads to the same scale differ in last bits of float64, which float32 hides.
    np.testing.assert_allclose(mine.transform(parts[1]), theirs.transform(scaler.transform(parts[1])), atol=1e-4)
    assert sum(entry.kind == scaling.MOMENTS and entry.up for entry in log.entries) == 2 * len(parts)
    assert any(row["kind"] == scaling.MOMENTS for row in state.exchanged)


@pytest.mark.parametrize("name", JOBS)
def test_a_loud_column_no_longer_dominates_a_training(name: str) -> None:
    parts, labels = split(0)
    parts = [part - MEAN for part in with_loud_column(parts)]
    scores = {}
    for scale in ("none", "standard"):
        job = JOBS[name](scale=scale)
        fitted: Any = job.finished(fit_in_process(job, parts))
        if name == "features":
            scores[scale] = adjusted_rand_score(labels, np.concatenate([fitted.predict(part) for part in parts]))
        else:
            positions = np.concatenate([fitted.transform(part) for part in parts])
            scores[scale] = cross_val_score(KNeighborsClassifier(5), positions, labels, cv=5).mean()
    assert scores["standard"] > scores["none"] + 0.15, scores


@pytest.mark.parametrize("name", JOBS)
def test_a_resumed_training_keeps_its_scale(name: str, tmp_path: Path) -> None:
    parts = with_loud_column(split(1)[0])
    job = JOBS[name](scale="standard")
    whole = fit_in_process(job, parts)
    path = tmp_path / "state.safetensors"

    def stop(state: Any) -> None:
        save_snapshot(path, job, state)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_in_process(JOBS[name](scale="standard"), parts, after=stop)
    again = JOBS[name](scale="standard")
    log = Log()
    resumed = fit_in_process(again, parts, state=load_snapshot(path, again), log=log)
    np.testing.assert_array_equal(again.finished(resumed).transform(parts[0]), job.finished(whole).transform(parts[0]))
    assert not any(entry.kind == scaling.MOMENTS for entry in log.entries), "the scale is not asked for twice"


class Node(dict[str, Any]):
    """Handlers of a client that answers every kind as a node elsewhere does, from a file."""

    def __init__(self, number: int, part: np.ndarray, folder: Path) -> None:
        super().__init__()
        np.savez(folder / f"{number}.npz", points=part)
        data, state = str(folder / f"{number}.npz"), str(folder / f"state-{number}")
        self.config = {"partition-id": number, "data": data, "min-count": 1, "state": state, "max-partitions": 9}
        # As in one process: without noise, clip, and units withheld that few points switch on.
        self.config |= {"jobs": "embed,features", "scale": "standard", "noise-multiplier": 0.0, "winsorize": 0.0}
        self.config |= {"update-clip": 100.0}

    def __contains__(self, kind: object) -> bool:
        return True

    def __getitem__(self, kind: str) -> Any:
        return lambda data, request, client: answer_request(self.config, lambda: request)


@pytest.mark.parametrize("name", JOBS)
def test_over_a_network_clients_scale_their_own_points(name: str, tmp_path: Path) -> None:
    parts = with_loud_column(split(2)[0])
    log = Log()
    more = {"embed": {"method": "fedavg"}, "features": {"min_count": 10}}[name]
    nodes = InProcess(
        [Client(number, None, Node(number, part, tmp_path)) for number, part in enumerate(parts)], log=log
    )
    serve(JOBS[name](scale="standard", **more), nodes, tmp_path / "out", min_clients=4)
    assert not [entry.reason for entry in log.entries if entry.reason], "nobody refused"
    load: Any = FederatedNeighborEmbedding.load if name == "embed" else load_model
    job = JOBS[name](scale="standard", **more)
    here = job.finished(fit_in_process(job, parts))
    np.testing.assert_allclose(
        load(tmp_path / "out" / "model").transform(parts[0]), here.transform(parts[0]), atol=1e-4
    )
    path = tmp_path / "out" / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["scaling"]["scale"][0] = 0.0
    path.write_text(json.dumps(config), encoding="utf-8")
    with raises_naming(UserError, "config.json", "scaling", "14"):
        load(tmp_path / "out" / "model")


def test_what_a_scale_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="noise and scale"):
        EmbeddingOptions(scale="standard", target_noise=0.1)
    with raises_naming(UserError, "scale", "pixels"):
        read_deep_options({"clusters": 2, "encoder": "small_resnet", "scale": "standard"})
    with raises_naming(UserError, "winsorize", "-1"):
        scaling.answer_moments(POINTS, scaling.moments_request(1, winsorize=-1.0), 0)


@pytest.mark.parametrize("verb", ["embed", "features"])
def test_verbs_of_trainings_take_a_scale(verb: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "wine.npz", points=POINTS, label=LABELS)
    arguments = [verb, tmp_path / "wine.npz", "--label", "label", "--split", "even", "--clients", "4"]
    arguments += ["--scale", "standard", "--rounds", "2", "--out", tmp_path / "r", "--json", "--quiet"]
    done = CliRunner().invoke(cli, ["federated", *map(str, arguments)])
    assert done.exit_code == 0, repr(done.exception)
    result = json.loads(done.stdout)
    assert result["options"]["scale"] == "standard"
    if verb == "features":
        [plain] = [row for row in result["methods"] if row["method"] == "plain"]
        assert plain["quality"]["ari"] > 0.8
