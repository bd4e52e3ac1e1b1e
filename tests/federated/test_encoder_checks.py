"""Weights and prototypes that no honest server sends are refused; those of honest runs never are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from foveate.federated import reasons
from foveate.federated.deep import checks
from foveate.federated.deep.encoder import Embedder, build_network, flatten_weights, prepare_samples, set_weights
from foveate.federated.deep.job import DeepJob, DeepState
from foveate.federated.deep.options import DeepOptions
from foveate.federated.job import fit_in_process
from foveate.federated.reasons import Refusal

DIGITS = load_digits().data / 16
WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
SETS = {"digits": (DIGITS, 10), "wine": (WINE, 3)}


def start(options: DeepOptions, features: int) -> tuple[Embedder, Embedder]:
    return build_network(options, features), build_network(options, features)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETS)
def test_honest_heads_pass_in_every_round(name: str, seed: int) -> None:
    points, clusters = SETS[name]
    options = DeepOptions(clusters=clusters, rounds=20, seed=seed, local_epochs=3)
    network, begin = start(options, points.shape[1])

    def check(state: DeepState) -> None:
        set_weights(network, state.weights)
        checks.check_layers(network, begin)
        checks.check_variances(network)
        assert state.centers is not None
        checks.check_prototypes(state.centers, clusters)

    fit_in_process(DeepJob(options), np.array_split(points[::4], 4), after=check)


@pytest.mark.parametrize("encoder", ["small_resnet", "small_vit"])
def test_honest_encoders_pass_in_every_round(encoder: str) -> None:
    options = DeepOptions(clusters=10, encoder=encoder, rounds=4, seed=1)
    network, begin = start(options, 64)

    def check(state: DeepState) -> None:
        set_weights(network, state.weights)
        checks.check_layers(network, begin)
        checks.check_variances(network)

    fit_in_process(DeepJob(options), np.array_split(DIGITS[::8], 3), after=check)


@pytest.mark.parametrize("features", [1, 2, 3])
def test_rows_of_few_inputs_are_no_attack(features: int) -> None:
    options = DeepOptions(clusters=3)
    checks.check_layers(*start(options, features))


def head(network: Embedder) -> torch.Tensor:
    return network.head[0].weight.data


def tilt(network: Embedder, angle: float) -> None:
    """Make the second row the first one, turned by an angle and scaled."""
    rows = head(network)
    other = rows[1] - (rows[1] @ rows[0]) / (rows[0] @ rows[0]) * rows[0]
    other *= rows[0].norm() / other.norm()
    rows[1] = -1.5 * (np.cos(angle) * rows[0] + np.sin(angle) * other)


HOSTILE: dict[str, Callable[[Embedder], object]] = {
    "equal rows": lambda network: head(network).__setitem__(1, head(network)[0]),
    "opposite rows of another length": lambda network: tilt(network, 0.0),
    "nearly equal rows": lambda network: tilt(network, 0.1),
    "all rows equal": lambda network: head(network).copy_(head(network)[:1].expand(256, -1)),
    "equal rows of the last layer": lambda network: network.head[2].weight.data.__setitem__(
        1, network.head[2].weight.data[0]
    ),
    "a large layer": lambda network: head(network).mul_(9),
    "a large row": lambda network: head(network)[3].mul_(20),
    "a row of zeros": lambda network: head(network)[3].mul_(0),
    "biases far out": lambda network: network.head[0].bias.data.mul_(50),
    "NaN": lambda network: head(network)[3].fill_(float("nan")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_weights_of_a_server_s_own_are_refused(name: str) -> None:
    network, begin = start(DeepOptions(clusters=3), 13)
    HOSTILE[name](network)
    with pytest.raises(Refusal) as refused:
        checks.check_layers(network, begin)
    assert (refused.value.code, refused.value.count) == (reasons.WEIGHTS, None)


def test_the_bound_of_a_cosine() -> None:
    for angle, is_refused in ((0.13, True), (0.15, False)):
        network, begin = start(DeepOptions(clusters=3), 64)
        tilt(network, angle)
        assert (np.cos(angle) > checks.MAX_COSINE) == is_refused
        if is_refused:
            with pytest.raises(Refusal, match="equal up to scale and bias"):
                checks.check_layers(network, begin)
        else:
            checks.check_layers(network, begin)


def test_equal_filters_of_images_are_refused() -> None:
    network, begin = start(DeepOptions(clusters=3, encoder="small_resnet"), 64)
    filters = network.encoder[0].weight.data  # type: ignore[index, union-attr]
    filters[5] = 2 * filters[4]
    with pytest.raises(Refusal, match=r"encoder\.0\.weight"):
        checks.check_layers(network, begin)


def test_a_variance_below_zero_is_refused() -> None:
    network, _ = start(DeepOptions(clusters=3, encoder="small_resnet"), 64)
    checks.check_variances(network)
    network.encoder[1].running_var[0] = -1e-6  # type: ignore[index, union-attr]
    with pytest.raises(Refusal, match="variance below 0"):
        checks.check_variances(network)


@pytest.mark.parametrize(
    ("centers", "is_refused"),
    [
        (np.eye(3, 8), False),
        (np.eye(3, 8) * (1 + 1e-7), False),
        (np.eye(3, 8) * 0.5, False),
        (np.eye(3, 8) * 1.001, True),
        (np.eye(4, 8), True),
        (np.full((3, 8), np.nan), True),
        (np.full((3, 8), 1e200), True),
    ],
)
def test_prototypes_are_bounded(centers: np.ndarray, is_refused: bool) -> None:
    if not is_refused:
        checks.check_prototypes(centers, 3)
        return
    with np.errstate(over="ignore"), pytest.raises(Refusal) as refused:
        checks.check_prototypes(centers, 3)
    assert refused.value.code == reasons.WEIGHTS


def test_units_of_few_points_are_found_and_put_back() -> None:
    options = DeepOptions(clusters=3, hidden=6)
    network = build_network(options, 13)
    points = prepare_samples(WINE, options)
    with torch.no_grad():
        before = points @ network.head[0].weight.T
        # Unit j acts on so many points.
        for unit, count in enumerate((0, 1, 9, 10, len(WINE) - 1, len(WINE))):
            values = before[:, unit].sort(descending=True).values
            bound = (
                values[0] + 1
                if count == 0
                else values[-1] - 1
                if count == len(WINE)
                else values[count - 1 : count + 1].mean()
            )
            network.head[0].bias[unit] = -bound
    narrow = checks.find_narrow_units(network, points, 10)
    assert narrow.tolist() == [False, True, True, False, True, False]
    assert not checks.find_narrow_units(network, points, 1).any()
    weights = flatten_weights(network)
    trained = build_network(options, 13)
    set_weights(trained, weights + np.float32(0.1))
    checks.restore_units(trained, weights, narrow)
    for layer, own in (
        (trained.head[0].weight, network.head[0].weight),
        (trained.head[2].weight.T, network.head[2].weight.T),
    ):
        assert torch.equal(layer[narrow], own[narrow])
        assert not (layer[~narrow] == own[~narrow]).any()
