"""Mixing, the schedule, and a whole round of two clients with everything fixed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedne_goldens import about, arrays, surrogate, tensor

from foveate.federated.embedding.networks import average, copy_weights, load_weights, perceptron
from foveate.federated.embedding.options import decay_rounds, first_surrogate_round, learning_rate_of
from foveate.federated.embedding.surrogates import SurrogateSum
from foveate.federated.embedding.training import PassSettings, edges, make_optimizer, mix, neighborhood, step
from foveate.metrics.neighbors import nearest

MIXING, ROUND = arrays("mixing"), arrays("round")
NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def rows_alike(found: np.ndarray, stored: np.ndarray) -> float:
    return float(np.mean([set(a) == set(b) for a, b in zip(found.tolist(), stored.tolist(), strict=True)]))


@pytest.mark.parametrize("case", ["m0", "m1"])
def test_mixing_and_its_graph(case: str) -> None:
    one = {name.removeprefix(f"{case}_"): value for name, value in MIXING.items() if name.startswith(f"{case}_")}
    points, k = one["X"], int(one["k"])
    assert rows_alike(nearest(points, k), one["neighbours"]) >= 0.99
    mixed = mix(points, one["choice"], one["lambda"])
    np.testing.assert_allclose(mixed, one["mixed"], atol=1e-6)
    stacked = np.concatenate([points, one["mixed"]])
    for keep, name in ((False, "knn_self_by_index"), (True, "knn_official")):
        heads, tails = edges(stacked, k, keep_self_edges=keep)
        found = tails.reshape(len(stacked), k)
        assert heads.tolist() == np.repeat(np.arange(len(stacked)), k).tolist()
        assert rows_alike(found, one[name]) >= 0.99
    owned = np.flatnonzero((found == np.arange(len(stacked))[:, None]).any(axis=1))
    assert set(owned) == set(one["official_self_edge_rows"])


def test_mixing_is_drawn_as_it_says() -> None:
    points = MIXING["m0_X"]
    around = neighborhood(points, 7, np.random.default_rng(3), beta=0.2)
    random = np.random.default_rng(3)
    lambdas, picks = random.beta(0.2, 0.2, len(points)), random.integers(0, 7, len(points))
    np.testing.assert_array_equal(around.points_ND[:60], points)
    partners = nearest(points, 7)[np.arange(60), picks]
    np.testing.assert_array_equal(around.points_ND[60:], mix(points, partners, lambdas))


@pytest.mark.parametrize("case", about("schedule"), ids=lambda case: f"{case['rounds']} rounds")
def test_the_schedule(case: dict) -> None:
    rounds = case["rounds"]
    for script, shares in (("main_surrogate", (0.6,)), ("main_mnist", (0.2, 0.3, 0.6))):
        stored = case[script]
        rates = [learning_rate_of(number, rounds=rounds, base=1e-3, shares=shares) for number in range(rounds)]
        assert [rates[0], rates[-1]] == pytest.approx(stored["lr_first_last"], rel=1e-12)
        changes = [0, *(number for number in range(1, rounds) if rates[number] != rates[number - 1])]
        assert changes == stored["changes"]
        assert set(decay_rounds(rounds, shares)) == set(stored.get("decay_rounds", [stored.get("decay_round")]))
    assert first_surrogate_round(rounds, 0.0) == case["main_surrogate"]["surrogate_start"]
    assert first_surrogate_round(rounds, 0.3) == case["main_mnist"]["surrogate_start"]


@pytest.mark.parametrize("mode", ["surrogate", "plain"])
def test_a_whole_round(mode: str) -> None:
    near = {"rtol": 1e-8, "atol": 1e-10}
    ratios, finals = ROUND["ratios"], []
    for client in (0, 1):
        network = perceptron((6, 10, 2), torch.Generator(), dtype=torch.float64)
        load_weights(network, {name: ROUND[f"init_{name.replace('.', '_')}"] for name in NAMES})
        optimizer = make_optimizer(network, 1e-2)
        other = 1 - client
        foreign = SurrogateSum([surrogate(ROUND, f"S{other}")], [float(ratios[other])], dtype=torch.float64)
        settings = PassSettings(rate=1e-2, share=float(ratios[client]))
        points = tensor(ROUND[f"client{client}_X"])
        for number in range(3):
            named = (ROUND[f"client{client}_step{number}_{part}"] for part in ("item", "neigh", "neg"))
            losses = step(
                network,
                optimizer,
                points,
                *(torch.from_numpy(one) for one in named),
                settings,
                foreign=foreign if mode == "surrogate" else None,
            )
            loss = losses.total(negatives=5, share=settings.share).item()
            assert loss == pytest.approx(float(ROUND[f"{mode}_client{client}_step{number}_loss"]), rel=1e-8, abs=1e-10)
        finals.append(copy_weights(network))
        for name in NAMES:
            stored = ROUND[f"{mode}_client{client}_final_{name.replace('.', '_')}"]
            np.testing.assert_allclose(finals[-1][name], stored, **near)
    averaged = average(finals, ratios.tolist())
    for name in NAMES:
        np.testing.assert_allclose(averaged[name], ROUND[f"{mode}_avg_{name.replace('.', '_')}"], **near)
