"""Columns in another order, of another name, in another unit, absurd values: refused, reported, repaired."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_wine

from foveate import FederatedKMeans
from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.messages import Message
from foveate.federated.node import HELLO, answer_request
from foveate.federated.points import ColumnDigests, Feature, find_mismatches
from foveate.federated.rounds import Client, InProcess
from foveate.federated.sources import gather
from foveate.metrics.clustering import adjusted_rand_index
from naming import raises_naming

NAMES = ["age", "height", "pressure"]
ROWS = np.random.default_rng(0).normal(size=(30, 3)) + [50, 170, 120]


def write(path: Path, names: list[str], rows: np.ndarray = ROWS) -> Path:
    """Write a table whose columns are `names`; `rows` has those of NAMES."""
    order = [NAMES.index(name) if name in NAMES else 0 for name in names]
    pq.write_table(pa.table({name: rows[:, index] for name, index in zip(names, order, strict=True)}), path)
    return path


def test_columns_in_another_order_are_refused_or_aligned(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here.parquet", NAMES), write(tmp_path / "there.parquet", NAMES[::-1])
    with raises_naming(UserError, "there.parquet", "pressure", "age", "--align-columns"):
        gather([here, there])
    aligned = gather([here, there], align_columns=True)
    np.testing.assert_array_equal(aligned.points[0], aligned.points[1])
    renamed = write(tmp_path / "renamed.parquet", ["age", "size", "pressure"])
    for align in (False, True):
        with raises_naming(UserError, "renamed.parquet", "size", "height"):
            gather([here, renamed], align_columns=align)


def hello(path: Path, state: Path, **limits: Any) -> Message:
    config = {"partition-id": 0, "data": str(path), "min-count": 10, "state": str(state), **limits}
    return answer_request(config, lambda: Message(HELLO))


def test_clients_send_digests_of_their_columns(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.parquet", names) for number, names in enumerate((NAMES, NAMES, NAMES[::-1]))]
    digests = {}
    for number, path in enumerate(paths):
        answer = hello(path, tmp_path)
        assert b"pressure" not in answer.to_bytes()
        digests[number] = ColumnDigests(str(answer.values["columns"]), str(answer.values["columns.unordered"]))
    reasons = find_mismatches(digests)
    assert list(reasons) == [2]
    assert "--align-columns" in reasons[2]
    aligned = [hello(path, tmp_path, **{"align-columns": True}).values["columns"] for path in paths]
    assert len(set(aligned)) == 1
    with raises_naming(UserError, "columns", "--align-columns"):
        find_mismatches({0: digests[0], 1: digests[2]})
    other = ColumnDigests.of([Feature("age"), Feature("size"), Feature("pressure")])
    assert "other names" in find_mismatches({0: digests[0], 1: digests[1], 3: other})[3]
    typed = ColumnDigests.of([Feature("age"), Feature("height", "boolean"), Feature("pressure")])
    assert 3 in find_mismatches({0: digests[0], 1: digests[1], 3: typed})
    nameless = ColumnDigests.of([Feature(), Feature()])
    assert find_mismatches({0: digests[0], 1: nameless}) == {}


def test_alignment_needs_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", points=ROWS)
    request = protocol.centroids_request(resolve(2, min_count=10, winsorize=3.0), 0)
    config = {"partition-id": 0, "data": str(tmp_path / "points.npz"), "min-count": 10, "state": str(tmp_path)}
    answer = answer_request(config | {"align-columns": True}, lambda: request)
    assert answer.values["failure"] == "columns-unnamed"


WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0) + 4
LABELS = load_wine().target


def split(clients: int) -> list[np.ndarray]:
    return [rows for rows in np.array_split(np.random.default_rng(0).permutation(len(WINE)), clients)]


def fit(parts: list[np.ndarray], **options: Any) -> FederatedKMeans:
    return FederatedKMeans(3, random_state=0, **options).fit(parts)


def agreement(model: FederatedKMeans, rows: list[np.ndarray], keep: list[int]) -> float:
    labels = np.concatenate([model.labels_[client] for client in keep])
    return adjusted_rand_index(np.concatenate([LABELS[rows[client]] for client in keep]), labels)


@pytest.mark.parametrize("clients", [2, 3, 5])
def test_a_client_in_another_unit_is_named_with_any_number_of_clients(clients: int) -> None:
    rows = split(clients)
    parts = [WINE[part] for part in rows]
    assert not fit(parts).suspects_
    parts[1] = parts[1].copy()
    parts[1][:, 3] *= 1000
    model = fit(parts, suspects="report")
    assert 1 in model.suspects_
    assert "column 3" in model.suspects_[1]
    if clients == 2:
        assert set(model.suspects_) == {0, 1}, "nothing says which of two is right"
        with raises_naming(UserError, "2"):
            fit(parts, suspects="exclude")
        with raises_naming(UserError, "column 3", "suspects=report"):
            fit(parts)
        return
    honest = [client for client in range(clients) if client != 1]
    robust = fit(parts, suspects="exclude")
    assert list(robust.excluded_) == list(fit(parts).excluded_) == [1]
    assert agreement(robust, rows, honest) > agreement(model, rows, honest) + 0.2
    assert agreement(robust, rows, honest) > 0.8


@pytest.mark.parametrize("clients", [3, 5])
def test_absurd_magnitudes_are_left_out(clients: int) -> None:
    rows = split(clients)
    parts = [WINE[part] for part in rows]
    for factor in (1e90, 1e20, 1e8):
        changed = [parts[0] * factor, *parts[1:]]
        model = fit(changed)
        assert list(model.excluded_) == [0], factor
        assert np.abs(model.cluster_centers_).max() < 100
    with raises_naming(UserError, "column", "client 0"):
        fit([parts[0] * 1e8, parts[1]])


def lying(data: Any, request: Message, client: int) -> Message:
    """A poisoned client whose handler ignores its own data."""
    good = protocol.answer_centroids(data, request, client)
    return request.answer(arrays={**good.arrays, "centers": good.array("centers") * 0 + 1e90}, **good.values)


def test_a_client_that_sends_1e90_takes_no_center() -> None:
    parts = [WINE[part] for part in split(3)]
    clients = [
        Client(number, part, protocol.HANDLERS | ({protocol.CENTROIDS: lying} if number == 0 else {}))
        for number, part in enumerate(parts)
    ]
    result = cluster(InProcess(clients), resolve(3))
    assert list(result.excluded) == [0]
    assert np.abs(result.centers).max() < 100


@pytest.mark.parametrize("clients", [1, 2, 3])
@pytest.mark.parametrize("min_count", [1, 10])
def test_a_typing_error_is_reported_and_winsorizing_undoes_it(clients: int, min_count: int) -> None:
    rows = split(clients)
    parts = [WINE[part].copy() for part in rows]
    parts[0][5, 2] = 1e8
    everyone = list(range(clients))
    options: dict[str, Any] = {"min_count": min_count, "on_few_groups": "return"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, robust = fit(parts, **options), fit(parts, winsorize=3.0, **options)
    assert "typing error" in plain.suspects_[0]
    assert not robust.suspects_
    assert agreement(robust, rows, everyone) > 0.8
    assert agreement(robust, rows, everyone) > agreement(plain, rows, everyone) + 0.05


def test_winsorizing_leaves_ordinary_points_and_constant_columns_alone() -> None:
    rng = np.random.default_rng(0)
    points = np.c_[rng.normal(size=500), np.zeros(500), rng.random(500) < 0.02]
    np.testing.assert_array_equal(protocol.winsorize(points, 3.0), points)
    points[7, 0] = 1e8
    assert 10 < protocol.winsorize(points, 3.0)[7, 0] < 20


def test_one_group_is_the_mean_of_all_clients() -> None:
    """It was one client's mean: every radius was 0, and every centroid a group of its own."""
    middles, sizes = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]]), (10, 20, 30)
    parts = [
        np.tile(middle, (size, 1)) + [[1, 0], [-1, 0]] * (size // 2)
        for middle, size in zip(middles, sizes, strict=True)
    ]
    mean = FederatedKMeans(1, method="paper_reconstruction", random_state=0).fit(parts)
    np.testing.assert_allclose(mean.cluster_centers_, [[2.0, 2.0]], atol=1e-12)
    weighted = FederatedKMeans(1, method="paper_reconstruction", seeds="most_mass", random_state=0).fit(parts)
    np.testing.assert_allclose(weighted.cluster_centers_, [[2.0, 3.0]], atol=1e-12)
    for radius in ("max_over_clients", "quantile", 0.5):
        model = FederatedKMeans(1, method="paper_reconstruction", radius=radius, random_state=0).fit(parts)
        assert model.cluster_centers_[0] == pytest.approx([2, 2], abs=1e-9)
    by_count = FederatedKMeans(1, method="paper_reconstruction", radius="k_aware", random_state=0).fit(parts)
    np.testing.assert_allclose(by_count.cluster_centers_, weighted.cluster_centers_, atol=1e-12)
