"""Nothing that was kept of a run is used for other data or other options: by the verbs, and by all three estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from foveate import FederatedKMeans, FederatedNeighborEmbedding
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.deep.encoder import flatten_weights, small_resnet
from foveate.federated.deep.estimator import FederatedDeepClustering
from foveate.federated.store import digest
from naming import raises_naming

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(90, 5)) + 4 * np.eye(5)[np.arange(90) % 3]
CLIENTS = [POINTS[:30], POINTS[30:60], POINTS[60:]]
MOVED = [3 * one + 50 for one in CLIENTS]


def verb(name: str, points: np.ndarray, folder: Path, *more: str) -> Result:
    np.savez(folder / "p.npz", points=points, label=np.arange(len(points)) % 3)
    split = ["--label", "label", "--split", "even", "--clients", "3", "--out", str(folder / "run"), "--quiet"]
    return CliRunner().invoke(cli, ["federated", name, str(folder / "p.npz"), *split, *more])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cluster", ()),
        ("embed", ("--rounds", "2", "--set", "hidden=[8]", "--set", "surrogate=grid", "--compare", "none")),
        ("features", ("--rounds", "2", "--set", "width=8", "--set", "hidden=8", "--compare", "none")),
    ],
)
def test_a_run_folder_belongs_to_its_points(name: str, more: tuple[str, ...], tmp_path: Path) -> None:
    assert verb(name, POINTS, tmp_path, *more).exit_code == 0
    assert verb(name, POINTS, tmp_path, *more).exit_code == 0, "the same points may be asked for again"
    done = verb(name, 3 * POINTS + 100, tmp_path, *more)
    assert isinstance(done.exception, UserError), done.output
    assert "run of another recipe" in str(done.exception)
    one_off = POINTS.copy()
    one_off[-1, -1] += 1e-9
    assert isinstance(verb(name, one_off, tmp_path, *more).exception, UserError)


def test_kept_answers_of_other_data_are_not_used_by_kmeans(tmp_path: Path) -> None:
    def fit(data: list[np.ndarray], folder: Path | None) -> np.ndarray:
        return FederatedKMeans(3, random_state=0, answers_folder=folder).fit(data).cluster_centers_

    first = fit(CLIENTS, tmp_path)
    np.testing.assert_array_equal(fit(MOVED, tmp_path), fit(MOVED, None))
    np.testing.assert_array_equal(fit(CLIENTS, tmp_path), first)
    assert (fit([CLIENTS[1], CLIENTS[0], CLIENTS[2] + 1], tmp_path) != first).any()


def test_a_checkpoint_of_other_data_is_refused_by_the_map(tmp_path: Path) -> None:
    def fit(data: list[np.ndarray], **options: Any) -> FederatedNeighborEmbedding:
        return FederatedNeighborEmbedding(n_rounds=2, random_state=0, checkpoint=tmp_path / "kept", **options).fit(data)

    fit(CLIENTS)
    fit(CLIENTS)
    for other in (MOVED, CLIENTS[:2], [*CLIENTS, CLIENTS[0]], CLIENTS[::-1]):
        with raises_naming(UserError, "2"):
            fit(other)


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    def fit(activation: torch.nn.Module) -> FederatedNeighborEmbedding:
        torch.manual_seed(0)
        own = torch.nn.Sequential(torch.nn.Linear(5, 8), activation, torch.nn.Linear(8, 2))
        return FederatedNeighborEmbedding(n_rounds=1, random_state=0, encoder=own, checkpoint=tmp_path / "k").fit(
            CLIENTS
        )

    fit(torch.nn.ReLU())
    fit(torch.nn.ReLU())
    with pytest.raises(UserError, match="was made of other data"):
        fit(torch.nn.Tanh())


def deep(data: list[np.ndarray], folder: Path | None, **options: Any) -> np.ndarray:
    given = {"n_rounds": 2, "width": 8, "random_state": 0, **options}
    return flatten_weights(FederatedDeepClustering(3, answers_folder=folder, **given).fit(data).encoder_)


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 1e-4},
        {"local_epochs": 3},
        {"batch_size": 7},
        {"temperature": 0.5},
        {"augment": "noise"},
        {"augment": lambda batch, random: batch + torch.randn(batch.shape, generator=random)},
    ],
    ids=lambda one: next(iter(one)),
)
def test_kept_answers_of_another_training_are_not_used_by_deepfeca(tmp_path: Path, options: dict[str, Any]) -> None:
    first = deep(CLIENTS, tmp_path)
    np.testing.assert_array_equal(deep(CLIENTS, tmp_path), first)
    other = deep(CLIENTS, tmp_path, **options)
    np.testing.assert_array_equal(other, deep(CLIENTS, None, **options))
    assert (other != first).any()


def test_kept_answers_of_other_data_are_not_used_by_deepfeca(tmp_path: Path) -> None:
    deep(CLIENTS, tmp_path)
    np.testing.assert_array_equal(deep(MOVED, tmp_path), deep(MOVED, None))
    images = [RANDOM.random((9, 1, 8, 8)) for _ in range(2)]

    def encoded(activation: torch.nn.Module, folder: Path | None) -> np.ndarray:
        torch.manual_seed(0)
        return deep(images, folder, encoder=torch.nn.Sequential(small_resnet(1, (4, 8)), activation))

    assert (encoded(torch.nn.Identity(), tmp_path) != encoded(torch.nn.Tanh(), tmp_path)).any()
    np.testing.assert_array_equal(encoded(torch.nn.Tanh(), tmp_path), encoded(torch.nn.Tanh(), None))


def test_a_digest_is_that_of_types_shapes_and_numbers() -> None:
    array = np.arange(6.0)
    known = [
        digest(array), digest(array[::-1]), digest(array.reshape(2, 3)), digest(array.astype("float32")), digest(),
        digest("a"), digest("b"), digest("a", "b"), digest(array, "a"), digest(np.zeros((0, 3))), digest(np.zeros(0)),
    ]  # fmt: skip
    assert len(set(known)) == len(known)
    assert digest(array) == digest(array.copy()) == digest(torch.arange(6.0, dtype=torch.float64)) == digest([*array])
    for odd in (None, [[1], [1, 2]], np.array([None]), object()):
        assert digest(odd) != digest(odd), "what cannot be read equals nothing"
