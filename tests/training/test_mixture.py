from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from foveate.core.errors import UserError
from foveate.training.mixture import PRESETS, MixtureSampler
from naming import raises_naming

WEIGHTS = {"alt": 0.5, "ssc": 0.3, "dsc": 0.2}
ALL = ("alt", "ssc", "dsc", "dsc_plus", "afc")
IDS = [f"image-{number}" for number in range(10_000)]


def draws(sampler: MixtureSampler, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return np.array([sampler.draw(ALL, seed=seed, epoch=epoch, key=key) for key in IDS])


def test_shares_and_changes_between_visits() -> None:
    sampler = MixtureSampler(WEIGHTS)
    first, second = draws(sampler), draws(sampler, epoch=1)
    for source, share in WEIGHTS.items():
        assert abs((first == source).mean() - share) < 4 * math.sqrt(share * (1 - share) / len(IDS))
    expected = 1 - sum(share**2 for share in WEIGHTS.values())
    for other in (second, draws(sampler, seed=1)):
        changed = (first != other).mean()
        assert abs(changed - expected) < 4 * math.sqrt(expected * (1 - expected) / len(IDS))
    table = [[((first == a) & (second == b)).sum() for b in WEIGHTS] for a in WEIGHTS]
    assert chi2_contingency(table).pvalue > 1e-4


def test_the_draw_does_not_see_order_scale_or_zero_weights() -> None:
    reference = draws(MixtureSampler(WEIGHTS))
    for weights in (
        dict(reversed(WEIGHTS.items())),
        {source: weight * 1000 for source, weight in WEIGHTS.items()},
        WEIGHTS | {"dsc_plus": 0, "afc": 0.0},
    ):
        assert (draws(MixtureSampler(weights)) == reference).all()


def test_a_small_change_of_the_weights_moves_few_samples() -> None:
    moved = draws(MixtureSampler(WEIGHTS)) != draws(MixtureSampler(WEIGHTS | {"alt": 0.51, "ssc": 0.29}))
    assert moved.mean() < 0.02


@pytest.mark.parametrize("missing", ["renormalize", "alt", "skip"])
def test_nothing_unavailable_is_drawn(missing: str) -> None:
    sampler = MixtureSampler(WEIGHTS | {"afc": 0}, missing=missing)
    for available in (("alt", "dsc"), ("ssc", "afc"), ("afc",), ()):
        drawn = {sampler.draw(available, seed=0, epoch=0, key=key) for key in IDS[:500]}
        assert drawn - {None} <= set(available) - {"afc"}


def test_ways_to_treat_missing_texts() -> None:
    available = ("alt", "dsc")
    assert MixtureSampler(WEIGHTS).probabilities(available) == pytest.approx({"alt": 5 / 7, "dsc": 2 / 7})
    given = MixtureSampler(WEIGHTS, missing="alt")
    assert given.probabilities(available) == pytest.approx({"alt": 0.8, "dsc": 0.2})
    assert MixtureSampler({"dsc_plus": 1}, missing="alt").probabilities(("alt",)) == {"alt": 1}
    assert given.probabilities(("ssc", "dsc")) == pytest.approx({"ssc": 0.6, "dsc": 0.4})
    skipping = MixtureSampler(WEIGHTS, missing="skip")
    assert skipping.probabilities(available) == pytest.approx({"alt": 0.5, "dsc": 0.2})
    drawn = [skipping.draw(available, seed=0, epoch=0, key=key) for key in IDS]
    assert abs(drawn.count(None) / len(IDS) - 0.3) < 4 * math.sqrt(0.21 / len(IDS))
    with raises_naming(UserError, "ssc"):
        MixtureSampler(WEIGHTS, missing="error").draw(available, seed=0, epoch=0, key="a")


def test_own_sources() -> None:
    sampler = MixtureSampler({"title": 1, "keywords": 1}, sources=("title", "keywords", "exact"))
    assert {sampler.draw(("title", "keywords"), seed=0, epoch=0, key=key) for key in IDS[:50]} == {
        "title",
        "keywords",
    }


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "x", None, True])
def test_bad_weights_are_refused(weight: object) -> None:
    with raises_naming(UserError, "alt"):
        MixtureSampler({"alt": weight, "ssc": 1})


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with raises_naming(UserError, "ssd"):
        MixtureSampler({"ssd": 1})
    with raises_naming(UserError, "clp", "clip"):
        MixtureSampler.preset("clp")
    assert [MixtureSampler.preset(name).weights for name in PRESETS]
