"""`FederatedDeepClustering`: its rounds, what is sent, broken clients, going on; frozen features and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_clients import train_deep

from foveate.core.errors import UserError
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.encoder import Embedder, flatten_weights, set_weights, small_resnet
from foveate.federated.deep.estimator import FederatedDeepClustering, as_samples
from foveate.federated.deep.job import Rounds, average, match_centers
from foveate.federated.deep.protocol import AUGMENTS, EMBEDDED, TRAIN, Training, handlers, train
from foveate.federated.messages import Message
from foveate.federated.rounds import Client, InProcess, Log
from foveate.metrics.clustering import normalized_mutual_information
from naming import raises_naming


def blobs(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Three clients with 4 groups of features, the last two groups at two clients each."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(4, 12)) * 3
    held = [[0, 1, 2], [1, 2, 3], [0, 3]]
    parts = [np.concatenate([random.normal(size=(30, 12)) + means[one] for one in groups]) for groups in held]
    return parts, np.concatenate([np.repeat(groups, 30) for groups in held])


def quick(**options) -> FederatedDeepClustering:
    return FederatedDeepClustering(4, **{"n_rounds": 3, "width": 16, "random_state": 0, **options})


def test_groups_of_frozen_features() -> None:
    parts, truth = blobs()
    found = quick(n_rounds=5).fit(parts)
    assert normalized_mutual_information(truth, np.concatenate(found.labels_)) > 0.8
    assert [len(labels) for labels in found.labels_] == [90, 90, 60]
    assert [entry["clients"] for entry in found.history_] == [[0, 1, 2]] * 5
    assert found.history_[-1]["loss"] < found.history_[0]["loss"]
    np.testing.assert_allclose(np.linalg.norm(found.cluster_centers_, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(found.transform(parts[0]), axis=1), 1)
    assert found.method_ == "DeepFeCA, reconstructed, with consensus, spherical True, 5 rounds"


def test_identical_points_have_identical_labels_at_two_clients() -> None:
    parts, _ = blobs()
    found = quick().fit([parts[0], parts[0], parts[1]])
    np.testing.assert_array_equal(found.labels_[0], found.labels_[1])


def test_the_same_seed_gives_the_same() -> None:
    parts, _ = blobs()
    one, two, three = (quick(random_state=seed).fit(parts) for seed in (1, 1, 2))
    np.testing.assert_array_equal(flatten_weights(one.encoder_), flatten_weights(two.encoder_))
    assert (flatten_weights(one.encoder_) != flatten_weights(three.encoder_)).any()


def test_only_centroids_and_weights_leave_a_client() -> None:
    parts, _ = blobs()
    found = quick().fit(parts)
    up = {(row["kind"], row["name"]) for row in found.exchanged_ if row["up"]}
    assert up == {
        (EMBEDDED, "centers"),
        (EMBEDDED, "counts"),
        (EMBEDDED, "trusted"),
        (EMBEDDED, "points"),
        (TRAIN, "weights"),
        (TRAIN, "loss, points"),
    }
    numbers = len(flatten_weights(found.encoder_))
    sent = sum(row["bytes"] for row in found.exchanged_ if row["up"] and row["name"] == "weights")
    assert sent == 3 * 3 * 4 * numbers


def test_equal_weights_are_a_fixed_point_of_averaging() -> None:
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(average([(weights, 3), (weights, 100), (weights, 1)]), weights)
    mean = average([(np.zeros(2, np.float32), 1), (np.full(2, 4, np.float32), 3)])
    assert mean.tolist() == [3, 3]


def test_weights_and_back_with_batch_statistics() -> None:
    torch.manual_seed(0)
    one, two = Embedder(small_resnet(1, (4, 8)), 8), Embedder(small_resnet(1, (4, 8)), 8)
    one.train()
    one(torch.rand(8, 1, 8, 8))
    set_weights(two, flatten_weights(one))
    images = torch.rand(5, 1, 8, 8)
    assert torch.equal(one.eval()(images), two.eval()(images))
    with raises_naming(UserError, "3"):
        set_weights(one, np.zeros(3, np.float32))


def test_centers_keep_their_numbers_from_round_to_round() -> None:
    random = np.random.default_rng(0)
    centers = random.normal(size=(6, 5))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    order = random.permutation(6)
    np.testing.assert_array_equal(match_centers(centers[order], centers), centers)
    np.testing.assert_array_equal(match_centers(centers, None), centers)


def test_images_with_a_small_resnet() -> None:
    random = np.random.default_rng(0)
    images = random.random((60, 1, 8, 8)).astype(np.float32)
    torch.manual_seed(0)
    encoder = small_resnet(1, (4, 8))
    before = flatten_weights(encoder).copy()
    found = FederatedDeepClustering(
        3, encoder=encoder, augment="shift", n_rounds=2, width=8, batch_size=16, random_state=0
    ).fit([images[:30], images[30:]])
    np.testing.assert_array_equal(flatten_weights(encoder), before)  # the user's module is copied
    assert found.features(images).shape == (60, 8)
    assert found.predict(images).shape == (60,)
    assert np.isfinite(found.transform(images)).all()


@pytest.mark.parametrize("name", ["noise", "shift"])
def test_augmentation_keeps_shapes_and_belongs_to_its_generator(name: str) -> None:
    augment = AUGMENTS[name]
    assert augment is not None
    batch = torch.rand(6, 10) if name == "noise" else torch.rand(6, 2, 8, 8)
    one, two, three = (augment(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert one.shape == batch.shape
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def parts_of_an_exchange(broken: dict[str, object], folder: Path | None = None):
    parts, _ = blobs()
    torch.manual_seed(0)
    network = Embedder(None, 12, width=8)
    good = handlers(network)
    clients = [
        Client(number, as_samples(part), good | broken if number == 1 else good)  # type: ignore[operator]
        for number, part in enumerate(parts)
    ]
    plan = resolve(4, refine_rounds=0, spherical=True)
    return InProcess(clients, log=Log(), answers_folder=folder), Rounds(plan, Training()), network


FAULTS: dict[str, tuple[str, object, str]] = {
    "raises": ("", None, "RuntimeError: out of memory"),
    "nan": ("main", lambda a: a * np.nan, "NaN or infinite"),
    "infinite": ("main", lambda a: a + np.inf, "NaN or infinite"),
    "short": ("main", lambda a: a[..., :-1], "must have shape"),
    "flat": ("main", lambda a: a.reshape(1, 1, -1), "must have shape"),
    "another type": ("main", lambda a: a.astype(np.int64), "int64"),
    "words": ("main", lambda a: a.astype(str), "<U"),
    "huge": ("main", lambda a: np.resize(a, (1_000_000,)), "must have shape"),
    "rows of its data": ("rows", None, "holds 'rows'"),
    "nothing": ("nothing", None, "lacks"),
}


@pytest.mark.parametrize("kind", [EMBEDDED, TRAIN])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_client_is_left_out(kind: str, fault: str) -> None:
    good = handlers(Embedder(None, 12, width=8))[kind]
    name = "centers" if kind == EMBEDDED else "weights"
    how, make, words = FAULTS[fault]

    def broken(data, request: Message, client: int) -> Message:
        if fault == "raises":
            raise RuntimeError("out of memory")
        answer = good(data, request, client)
        if how == "nothing":
            return request.answer()
        arrays = {"rows": np.asarray(data)} if how == "rows" else {name: make(answer.array(name))}  # type: ignore[operator]
        return request.answer(arrays={**answer.arrays, **arrays}, **answer.values)

    transport, rounds, network = parts_of_an_exchange({kind: broken})
    state = train_deep(transport, rounds, network, 2)
    assert list(state.excluded) == [1]
    assert words in state.excluded[1]
    assert [entry["clients"] for entry in state.history] == [[0, 2]] * 2
    assert np.isfinite(state.weights).all()


@pytest.mark.parametrize("points", [0, -3])
def test_a_client_that_claims_no_points_is_left_out(points: int) -> None:
    good = handlers(Embedder(None, 12, width=8))[TRAIN]

    def claiming(data, request: Message, client: int) -> Message:
        answer = good(data, request, client)
        return request.answer(arrays=answer.arrays, points=points, loss=0.0)

    transport, rounds, network = parts_of_an_exchange({TRAIN: claiming})
    state = train_deep(transport, rounds, network, 1)
    assert state.excluded == {1: "reports no point"}


@pytest.mark.parametrize(
    "data",
    [np.ones((1, 12)), np.full((50, 12), 7.0), np.eye(12)[:2], np.zeros((20, 12))],
    ids=["one point", "all equal", "fewer than K", "zeros"],
)
def test_odd_data_take_part(data: np.ndarray) -> None:
    parts, _ = blobs()
    found = quick(n_rounds=2).fit([data, *parts])
    assert found.excluded_ == {}
    assert [entry["clients"] for entry in found.history_] == [[0, 1, 2, 3]] * 2
    assert np.isfinite(flatten_weights(found.encoder_)).all()
    assert len(np.unique(found.labels_[0])) <= len(np.unique(data, axis=0))


def test_a_client_of_one_image_takes_part() -> None:
    random = np.random.default_rng(0)
    images = random.random((31, 1, 8, 8)).astype(np.float32)
    found = FederatedDeepClustering(3, encoder=small_resnet(1, (4, 8)), n_rounds=1, width=8, random_state=0).fit(
        [images[:30], images[30:]]
    )
    assert found.excluded_ == {}
    assert np.isfinite(found.transform(images)).all()


def test_the_loss_is_a_mean_over_the_rows_of_used_batches() -> None:
    """Of three rows in batches of two the last is skipped: it must not count as a row without loss."""
    network = Embedder(None, 4, hidden=8, width=4)

    def loss(rows: int, batch_size: int) -> float:
        training = Training(batch_size=batch_size, learning_rate=0.0)
        return train(network, torch.ones(rows, 4), np.eye(4), training, None, np.random.default_rng(0))

    assert loss(3, 2) == pytest.approx(loss(2, 2), rel=1e-6)
    with raises_naming(UserError, "batch_size", "1"):
        loss(3, 1)


def test_a_killed_fit_goes_on(tmp_path: Path) -> None:
    asked: list[str] = []
    good = handlers(Embedder(None, 12, width=8))

    def stopping(data, request: Message, client: int) -> Message:
        asked.append(request.kind)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return good[TRAIN](data, request, client)

    transport, rounds, network = parts_of_an_exchange({TRAIN: stopping}, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train_deep(transport, rounds, network, 3)
    _, _, fresh = parts_of_an_exchange({})
    resumed = train_deep(transport, rounds, fresh, 3)
    assert len(asked) == 4  # one answer was kept, the killed one asked again
    transport, rounds, network = parts_of_an_exchange({}, tmp_path / "b")
    np.testing.assert_array_equal(resumed.weights, train_deep(transport, rounds, network, 3).weights)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([], {}, "list"),
        (np.zeros((3, 4)), {}, "list"),
        ([np.zeros((0, 4))], {}, "samples must be numbers"),
        ([np.full((3, 4), np.nan)], {}, "NaN, infinite"),
        ([np.zeros((3, 4)), np.zeros((3, 5))], {}, "different shapes"),
        ([np.zeros((3, 1, 8, 8))], {}, "images need an encoder"),
        ([np.eye(4)], {"augment": "crop"}, "unknown augment 'crop'"),
        ([np.eye(4)], {"method": "central"}, "pools raw points"),
        ([np.eye(4)], {"n_rounds": -1}, "-1"),
        ([np.array([["a"]])], {}, "samples must be numbers"),
    ],
)
def test_what_does_not_fit(data, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        quick(**options).fit(data)


def test_another_shape_is_refused_later() -> None:
    parts, _ = blobs()
    found = quick(n_rounds=0).fit(parts)
    with raises_naming(UserError, "[5]", "[12]"):
        found.predict(np.zeros((2, 5)))
