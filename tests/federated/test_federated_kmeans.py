"""`FederatedKMeans` with scikit-learn's conventions: its checks, shapes, options, labels, what is told of a result."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest
from s_sets import split_s_set
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from foveate.core.errors import UserError
from foveate.federated import estimators
from foveate.federated.clustering.methods import load_method, method_names, resolve
from foveate.federated.estimators import FederatedKMeans, is_list_of_clients
from naming import raises_naming

warnings.filterwarnings("ignore", "Skipping check", module="sklearn")


@parametrize_with_checks(
    [FederatedKMeans(3), FederatedKMeans(3, method="weighted_kmeans"), FederatedKMeans(3, method="central")]
)
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


def test_docstring_example() -> None:
    assert doctest.testmod(estimators).failed == 0


def test_foveate_exports_it_without_torch() -> None:
    import foveate

    assert foveate.FederatedKMeans is FederatedKMeans


def test_labels_are_those_of_predict_and_reports_are_there() -> None:
    parts = split_s_set("s1", alpha=0.3, clients=4, seed=0)
    found = FederatedKMeans(15, random_state=0).fit(parts)
    for labels, part, predicted in zip(found.labels_, parts, found.predict(parts), strict=True):
        np.testing.assert_array_equal(labels, predicted)
        np.testing.assert_array_equal(labels, found.transform(part).argmin(1))
    total = sum(
        ((part - found.cluster_centers_[labels]) ** 2).sum() for part, labels in zip(parts, found.labels_, strict=True)
    )
    assert found.inertia_ == pytest.approx(total)
    assert found.n_features_in_ == 2
    assert set(found.client_reports_) == {0, 1, 2, 3}
    assert set(found.client_reports_[0]) == {"centers", "counts", "spreads", "trusted", "points"}
    assert found.server_report_["weighted_sse"] > 0
    check_groups(found.server_report_, 15, sum(len(part) for part in parts))
    assert found.bytes_up_ == sum(row["bytes"] for row in found.exchanged_ if row["up"])
    names = {"centers", "counts", "spreads", "trusted", "points", "sums"}
    assert {row["name"] for row in found.exchanged_ if row["up"]} == names


def check_groups(report: dict, clusters: int, points: int) -> None:
    """The groups of the candidate that won: the K heaviest, and those that were rejected."""
    supports, rejected = report["supports"], report["rejected_supports"]
    assert len(supports) == clusters
    assert report["groups"] == clusters + len(rejected)
    assert supports + rejected == sorted(supports + rejected, reverse=True)
    told = sum(supports) + sum(rejected)
    assert told == points if report["chosen"] == "all centroids" else 0 < told <= points
    following = rejected[0] if rejected else 0
    assert report["score"] == pytest.approx(clusters * (supports[-1] - following) / told)


def test_groups_that_were_rejected_are_reported() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(40, 2)) * 0.1 + 9 * np.array(one) for one in ((0, 0), (1, 0), (0, 1), (1, 1))]
    found = FederatedKMeans(2, random_state=0, restarts=0, refine_rounds=0, client_init="random").fit(parts)
    check_groups(found.server_report_, 2, 160)
    assert len(found.server_report_["rejected_supports"]) >= 1
    drawn = FederatedKMeans(2, random_state=0).fit(parts)
    if drawn.server_report_["chosen"] == "weighted k-means++":
        assert drawn.server_report_["groups"] is None


def test_a_client_of_fewer_different_points_than_clusters_is_warned_of() -> None:
    part = split_s_set("s1", alpha=None, clients=2, seed=0)[0]
    few = np.repeat(part[:3], 5, axis=0)
    with pytest.warns(UserWarning, match="client 1 .* 3 .* 15"):
        found = FederatedKMeans(15, random_state=0).fit([part, few])
    assert len(found.client_reports_[1]["centers"]) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FederatedKMeans(15, random_state=0).fit([part, part + 1])


def test_traffic_is_that_of_the_specification() -> None:
    parts = split_s_set("s1", alpha=None, clients=4, seed=0)
    found = FederatedKMeans(15, random_state=0, refine_rounds=0).fit(parts)
    clusters = sum(len(report["centers"]) for report in found.client_reports_.values())
    assert (
        found.bytes_up_ == clusters * (8 * (2 + 1 + 1) + 1) + 4 * 8
    )  # centers, counts, spreads, flags; one number of points


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    parts = split_s_set("s4", alpha=0.1, clients=4, seed=0)
    options = {"client_init": "random", "n_init": 1, "refine_rounds": 0}
    one, two, three = (FederatedKMeans(15, random_state=seed, **options).fit(parts) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.cluster_centers_, two.cluster_centers_)
    assert (one.cluster_centers_ != three.cluster_centers_).any()
    rng = np.random.RandomState(0)
    draws = [FederatedKMeans(15, random_state=rng, **options).fit(parts).cluster_centers_ for _ in range(2)]
    assert (draws[0] != draws[1]).any()


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "consensus, 1 round of refinement"),
        ({"refine_rounds": 0}, "consensus, one shot"),
        ({"refine_rounds": 3, "restarts": 0}, "consensus, restarts 0, 3 rounds of refinement"),
        ({"method": "paper_reconstruction"}, "paper_reconstruction, one shot"),
        (
            {"method": "paper_reconstruction", "radius": "fused", "seeds": "most_neighbors"},
            "paper_reconstruction, radius fused, seeds most_neighbors, one shot",
        ),
        ({"method": "central"}, "central, not federated"),
        ({"min_count": 1, "n_init": 5}, "consensus, 1 round of refinement"),
    ],
)
def test_a_result_names_its_method(options: dict, title: str) -> None:
    parts = [np.repeat(np.eye(3), 4, axis=0), np.repeat(np.eye(3), 2, axis=0)]
    assert FederatedKMeans(3, random_state=0, **options).fit(parts).method_ == title


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"method": "consens"}, ("method", "consens", "Did you mean 'consensus'")),
        ({"client_init": "kmeans+"}, ("client_init", "kmeans+", "kmeans++")),
        ({"eliminate": "some"}, ("eliminate", "some", "drop")),
        ({"method": "paper_reconstruction", "radius": "half"}, ("radius", "half", "half_min_distance")),
        ({"method": "paper_reconstruction", "radius": -1.0}, ("radius", "-1.0")),
        ({"method": "paper_reconstruction", "seeds": "most"}, ("seeds", "most", "most_mass")),
        ({"n_init": 0}, ("n_init", "0", "1")),
        ({"restarts": 1.5}, ("restarts", "1.5")),
        ({"refine_rounds": -1}, ("refine_rounds", "-1")),
        ({"local_clusters": [3, 0]}, ("local_clusters", "[3, 0]")),
        ({"min_count": 0}, ("min_count", "0")),
        ({"n_clusters": 0}, ("clusters", "0")),
        ({"suspects": "punish"}, ("suspects", "punish")),
    ],
)
def test_wrong_options(options: dict, names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        FederatedKMeans(**{"n_clusters": 2, **options}).fit([np.eye(3), np.eye(3)])


def test_an_option_without_effect_warns() -> None:
    with pytest.warns(UserWarning, match="option 'radius' has no effect on the method 'consensus'"):
        FederatedKMeans(2, radius=0.5).fit([np.eye(3), np.eye(3)])


def test_every_option_of_a_method_is_used_by_it_alone() -> None:
    for name in method_names():
        chosen = load_method(name)
        assert chosen.name == name
        assert set(chosen.defaults) - {"eliminate", "refine_rounds", "client_init", "n_init"} <= chosen.uses
        assert resolve(3, method=name).changed == {}


def test_far_from_zero_distances_are_those_of_predict() -> None:
    rng = np.random.default_rng(0)
    points = 1e7 + np.repeat(np.eye(16)[:3] * 0.5, 50, axis=0) + 0.05 * rng.normal(size=(150, 16))
    found = FederatedKMeans(3, random_state=0).fit([points[::2], points[1::2]])
    assert np.bincount(found.predict(points)).tolist() == [50, 50, 50]
    np.testing.assert_array_equal(found.transform(points).argmin(1), found.predict(points))


def test_one_array_with_the_client_of_each_row() -> None:
    parts = split_s_set("s1", alpha=0.3, clients=3, seed=0)
    points, names = np.concatenate(parts), np.repeat(["a", "b", "c"], [len(part) for part in parts])
    by_name = FederatedKMeans(15, random_state=0).fit(points, clients=names)
    by_list = FederatedKMeans(15, random_state=0).fit(parts)
    np.testing.assert_array_equal(by_name.cluster_centers_, by_list.cluster_centers_)
    assert by_name.clients_.tolist() == ["a", "b", "c"]
    with raises_naming(UserError, "2"):
        FederatedKMeans(15).fit(points, clients=["a", "b"])
    with raises_naming(UserError, "clients"):
        FederatedKMeans(15).fit(parts, clients=names)


def test_clone_and_pipeline() -> None:
    parts = split_s_set("s1", alpha=None, clients=2, seed=0)
    estimator = clone(FederatedKMeans(15, radius=0.5, method="paper_reconstruction", refine_rounds=1, random_state=4))
    assert estimator.get_params()["radius"] == 0.5
    labels = make_pipeline(StandardScaler(), FederatedKMeans(15, random_state=0)).fit_predict(np.concatenate(parts))
    assert labels.shape == (5000,)


def test_a_list_of_clients_is_told_from_rows() -> None:
    assert is_list_of_clients([np.eye(2), np.eye(2)])
    assert is_list_of_clients([[[1.0, 2.0]], [[3.0, 4.0]]])
    assert is_list_of_clients((None, np.eye(2)))
    assert not is_list_of_clients([[1.0, 2.0], [3.0, 4.0]])
    assert not is_list_of_clients(np.eye(2))
    assert not is_list_of_clients([])


def test_predict_refuses_another_width() -> None:
    found = FederatedKMeans(2, random_state=0).fit([np.eye(3), np.eye(3)])
    with raises_naming(ValueError, "4", "FederatedKMeans", "3"):
        found.predict(np.eye(4))


def test_no_restarts_are_refused_where_no_center_would_be_left() -> None:
    points = np.random.default_rng(0).normal(size=(40, 2))
    with raises_naming(UserError, "restarts", "weighted_kmeans", 0):
        FederatedKMeans(2, method="weighted_kmeans", restarts=0).fit([points[:20], points[20:]])
