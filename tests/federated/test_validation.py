"""Lists of clients in all three estimators; columns of data frames; scikit-learn's checks of the map."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from foveate import FederatedKMeans, FederatedNeighborEmbedding
from foveate.core.errors import UserError
from foveate.federated.deep.encoder import flatten_weights
from foveate.federated.deep.estimator import FederatedDeepClustering
from foveate.federated.validation import check_columns, common_columns, count_rows, is_list_of_clients
from naming import raises_naming

warnings.filterwarnings("ignore", "Skipping check", module="sklearn")
RANDOM = np.random.default_rng(0)
CLIENTS = [RANDOM.normal(size=(size, 4)) + 3 * np.eye(4)[number] for number, size in enumerate((40, 25, 60))]
QUICK: dict[str, Any] = {"n_rounds": 1, "hidden_layer_sizes": (8,), "random_state": 0}

# The checks set n_components=1, which no map has.
_ONE_DIMENSION = "maps have 2 or 3 dimensions"
EXPECTED = dict.fromkeys(
    (
        "check_dont_overwrite_parameters",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_fit2d_1sample",
        "check_fit2d_1feature",
        "check_fit2d_predict1d",
    ),
    _ONE_DIMENSION,
)


@parametrize_with_checks(
    [FederatedNeighborEmbedding(**{**QUICK, "n_rounds": 2})], expected_failed_checks=lambda estimator: EXPECTED
)
def test_scikit_learn_checks_of_the_map(estimator: Any, check: Any) -> None:
    check(estimator)


class Frame:
    """As much of a data frame as is looked at."""

    def __init__(self, rows: np.ndarray, columns: list[Any]) -> None:
        self.rows, self.columns, self.shape = rows, columns, rows.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.rows, dtype)

    def __len__(self) -> int:
        return len(self.rows)


def kmeans() -> Any:
    return FederatedKMeans(3, random_state=0)


def deep() -> Any:
    return FederatedDeepClustering(3, n_rounds=1, width=8, random_state=0)


def drawn() -> Any:
    return FederatedNeighborEmbedding(**QUICK)


ESTIMATORS = pytest.mark.parametrize("make", [kmeans, deep, drawn])


@ESTIMATORS
def test_a_list_of_clients_gives_a_list(make: Callable[[], Any]) -> None:
    model = make().fit(CLIENTS)
    found = model.transform(CLIENTS)
    assert [len(one) for one in found] == [40, 25, 60]
    for one, rows in zip(found, CLIENTS, strict=True):
        np.testing.assert_array_equal(one, model.transform(rows))
    for one, two in zip(make().fit_transform(CLIENTS), found, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    for name in ("predict", "features"):
        if hasattr(model, name):
            for one, rows in zip(getattr(model, name)(CLIENTS), CLIENTS, strict=True):
                np.testing.assert_array_equal(one, getattr(model, name)(rows))


@ESTIMATORS
def test_columns_of_frames_are_never_mixed(make: Callable[[], Any]) -> None:
    names = ["a", "b", "c", "d"]
    frames = [Frame(one, names) for one in CLIENTS]
    turned = [*frames[:2], Frame(CLIENTS[2][:, ::-1], names[::-1])]
    with raises_naming(UserError, "d", "a", "2", "0"):
        make().fit(turned)
    with raises_naming(UserError, "e", "d", "1", "0", "3"):
        make().fit([frames[0], Frame(CLIENTS[1], ["a", "b", "c", "e"])])
    make().fit([frames[0], CLIENTS[1], Frame(CLIENTS[2], [0, 1, 2, 3])])  # arrays and numbered columns have no names


@ESTIMATORS
def test_a_frame_with_other_columns_is_refused_later(make: Callable[[], Any]) -> None:
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(one, columns=["a", "b", "c", "d"]) for one in CLIENTS]
    model = make().fit(frames)
    found = model.transform(frames[0])
    np.testing.assert_allclose(model.transform(frames)[0], found, atol=1e-5)
    with pytest.raises(ValueError, match="order"):
        model.transform(frames[0][["d", "b", "c", "a"]])
    model.fit(CLIENTS)
    np.testing.assert_allclose(model.transform(CLIENTS[0]), found, atol=1e-5)


def test_what_a_list_is() -> None:
    assert is_list_of_clients(CLIENTS)
    assert not is_list_of_clients([[1.0, 2.0]])
    assert (count_rows(None), count_rows(7), count_rows(CLIENTS[0])) == (0, 0, 40)
    assert common_columns([CLIENTS[0], None]) is None
    assert common_columns([Frame(CLIENTS[0], ["a", "b", "c", "d"]), Frame(CLIENTS[0][:, :2], ["x", "y"])]) == list(
        "abcd"
    )
    check_columns(CLIENTS[0], ["a", "b", "c", "d"])
    check_columns(Frame(CLIENTS[0][:, :2], ["x", "y"]), ["a", "b", "c", "d"])  # its width is told elsewhere


@pytest.mark.parametrize("nothing", [None, 7.0, [], "word"])
def test_a_client_without_rows_has_no_labels(nothing: Any) -> None:
    found = FederatedKMeans(3, random_state=0).fit([*CLIENTS, nothing])
    assert list(found.excluded_) == [3]
    assert [len(one) for one in found.labels_[:3]] == [40, 25, 60]
    assert (found.labels_[3] == -1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": -1.0}, "FederatedDeepClustering: field 'learning_rate': input should be greater than 0"),
        ({"batch_size": 0}, "field 'batch_size': input should be greater than or equal to 2"),
        ({"local_epochs": 0}, "field 'local_epochs': input should be greater than or equal to 1"),
        ({"width": 1}, "field 'width'"),
        ({"temperature": 0.0}, "field 'temperature'"),
        ({"learning_rate": "fast"}, "field 'learning_rate'"),
    ],
)
def test_training_options_out_of_bounds_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FederatedDeepClustering(3, n_rounds=1, random_state=0, **options).fit(CLIENTS)


def test_numbers_of_numpy_are_options_like_any() -> None:
    plain = deep().fit(CLIENTS)
    given = {"batch_size": np.int64(64), "learning_rate": np.float32(0.05), "local_epochs": np.int32(1)}
    same = FederatedDeepClustering(3, n_rounds=1, width=8, random_state=0, **given).fit(CLIENTS)
    np.testing.assert_allclose(flatten_weights(same.encoder_), flatten_weights(plain.encoder_), atol=1e-6)
    assert plain.method_ == "DeepFeCA, reconstructed, with consensus, spherical True, 1 round"


def test_random_states_of_the_map_are_those_of_scikit_learn() -> None:
    def seeds(state: Any) -> list[int]:
        return [FederatedNeighborEmbedding(**{**QUICK, "random_state": state}).fit(CLIENTS).random_state_ for _ in "ab"]

    assert seeds(5) == seeds(np.int64(5)) == [5, 5]
    first, second = seeds(np.random.RandomState(0))
    assert first != second
    assert seeds(np.random.RandomState(0)) == [first, second]


def test_one_matrix_has_one_map() -> None:
    whole = np.concatenate(CLIENTS)
    one, several = drawn().fit(whole), drawn().fit([whole])
    assert one.embedding_.shape == (125, 2)
    np.testing.assert_array_equal(one.embedding_, several.embedding_[0])
    assert drawn().fit(np.stack([CLIENTS[0], CLIENTS[0]])).embedding_[1].shape == (40, 2)
