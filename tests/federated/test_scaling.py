"""A common scale of columns from sums: exact, without a row that moves, and within `min_count`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_wine
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from foveate import FederatedKMeans
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.clients import Client
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.options import resolve
from foveate.federated.rounds import InProcess, Log
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
    sent = [message for _, up, message in log.messages if up and message.kind == protocol.MOMENTS]
    assert len(sent) == 2 * len(parts)
    assert {name for message in sent for name in message.arrays} == {"sums", "squares"}
    assert all(array.shape == (13,) for message in sent for array in message.arrays.values())
    with raises_naming(UserError, "4", "min_count 10"):
        protocol.answer_moments(POINTS[:4], protocol.moments_request(resolve(3, min_count=10)), 0)


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
    arguments += ["--scale", "standard", "--method", method, "--run", tmp_path / "r", "--json", "--quiet"]
    done = CliRunner().invoke(cli, ["federated", *map(str, arguments)])
    assert done.exit_code == 0, repr(done.exception)
    assert json.loads(done.stdout)["methods"][0]["quality"]["ari"] > 0.8
    centers = np.load(tmp_path / "r" / "centers.npz")
    assert set(centers) == {"centers", "offset", "scale"}
    low, high = POINTS.min(0), POINTS.max(0)
    assert ((centers["centers"] >= low) & (centers["centers"] <= high)).all()
