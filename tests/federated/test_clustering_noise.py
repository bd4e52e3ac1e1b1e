"""Clustering with noise: the sampler's distribution, what one point moves, the account, the budget, what is read."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from s_sets import split_s_set
from scipy import stats

from foveate.core.errors import UserError
from foveate.federated import attacks, privacy
from foveate.federated.clustering import noise, protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.clustering.run import account
from foveate.federated.messages import Message, MessageError
from foveate.federated.node import answer_request
from foveate.federated.reasons import FAILURE
from foveate.federated.rounds import Client, InProcess
from naming import raises_naming

PARTS = [part - 5 for part in split_s_set("s1", alpha=None, clients=2, seed=0)]
CLIP = 5.0


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(7, 5), Fraction(6)])
def test_the_discrete_gaussian_has_its_distribution(sigma: Fraction) -> None:
    drawn = privacy.discrete_gaussian(sigma, (6000,))
    assert drawn.dtype == np.int64
    reach = math.ceil(3 * sigma)
    values = np.arange(-reach, reach + 1)
    weights = np.exp(-(values**2) / (2 * float(sigma) ** 2))
    observed = np.array([(drawn == value).sum() for value in values])
    inside = observed.sum()
    # One in 10^5: the sampler has no seed, so the test has a chance of failing.
    assert stats.chisquare(observed, weights / weights.sum() * inside).pvalue > 1e-5
    assert inside > 0.98 * len(drawn)


def test_normal_noise_of_the_system() -> None:
    drawn = privacy.SystemNoise().standard_normal((200, 100))
    assert drawn.shape == (200, 100)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-5
    assert not np.array_equal(drawn, privacy.SystemNoise().standard_normal((200, 100)))
    assert isinstance(privacy.private_noise(), privacy.SystemNoise)


def test_no_row_is_longer_than_the_clip_on_the_grid() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(500, 7)) * 10.0 ** rng.uniform(-6, 6, (500, 1)), np.eye(7) * 2.5])
    steps = noise.clip_to_grid(rows, 2.5)
    assert (np.sqrt((steps.astype(object) ** 2).sum(1).astype(float)) <= noise.GRID).all()
    short = np.linalg.norm(rows, axis=1) < 2.5
    np.testing.assert_allclose(steps[short] * (2.5 / noise.GRID), rows[short], atol=2.5 / noise.GRID)


def test_the_account_covers_what_one_point_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the noise itself: sums and counts in units of the noise move by at most 2 / z, from end to end."""
    monkeypatch.setattr(noise, "discrete_gaussian", lambda sigma, shape: np.zeros(shape, dtype=np.int64))
    scale, clip = 3.0, 4.0
    rows = np.random.default_rng(0).normal(size=(50, 3))
    centers = np.array([[4.0, 0.0, 0.0], [-4.0, 0.0, 0.0]])
    largest = 0.0
    for first, second in (
        ((9.0, 0, 0), (-9.0, 0, 0)),
        ((0.1, 9.0, 0), (0.1, -9.0, 0)),
        ((0.1, 0, 9.0), (-0.1, 0, 9.0)),
    ):
        tables = []
        for row in (first, second):
            steps = noise.clip_to_grid(np.concatenate([rows, [row]]), clip)
            labels = protocol.nearest(steps * (clip / noise.GRID), centers)[0]
            tables.append(noise.noisy_sums(steps, labels, 2, clip=clip, noise=scale, min_count=1))
        sums, counts = ((tables[0][part] - tables[1][part]) for part in (0, 1))
        moved = math.sqrt(((sums / (scale * clip)) ** 2).sum() + ((counts / scale) ** 2).sum())
        largest = max(largest, moved)
        assert moved <= 2 / scale + 1e-9
    assert largest > 1.9 / scale


def test_costs_by_hand() -> None:
    options = resolve(5, noise=4.0, clip=CLIP, noise_steps=3, refine_rounds=2)
    assert options.eliminate == "none"
    assert noise.request_cost(protocol.centroids_request(options, 0)) == pytest.approx(3 * 2 / 16)
    assert noise.request_cost(protocol.lloyd_request(np.eye(5), options, 1)) == pytest.approx(2 / 16)
    assert noise.request_cost(protocol.assign_request(np.eye(5), options, 1)) == pytest.approx(1 / 32)
    assert noise.request_cost(protocol.centroids_request(resolve(5), 0)) == 0
    rows = {row.name: row for row in account(options, evaluated=True)}
    assert rows["centroids"].rho == pytest.approx(3 * 2 / 16)
    assert rows["sums and counts"].rho == pytest.approx(2 * 2 / 16)
    assert rows["together"].rho == pytest.approx(3 * 2 / 16 + 2 * 2 / 16 + 1 / 32)
    assert rows["together"].epsilon == pytest.approx(privacy.epsilon(rows["together"].rho or 0))
    assert {row.unit for row in account(resolve(5), evaluated=False)} == {"nothing"}


def test_groups_are_found_through_little_noise_and_answers_differ() -> None:
    options = resolve(15, noise=2.0, clip=CLIP, min_count=10, refine_rounds=3, seed=3)
    members = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(PARTS)]
    found = [cluster(InProcess(members), options, evaluate=True) for _ in range(2)]
    assert not np.array_equal(found[0].centers, found[1].centers)
    points = np.concatenate(PARTS)
    quiet = cluster(InProcess(members), resolve(15, min_count=10, seed=3))
    inertias = [protocol.nearest(points, result.centers)[1].mean() for result in (*found, quiet)]
    assert max(inertias[:2]) < 2.5 * inertias[2]
    assert inertias[2] < min(inertias[:2])
    for message in found[0].client_reports.values():
        assert message["counts"].min() >= 10


def test_noise_hides_what_differences_read(tmp_path: Path) -> None:
    rows = PARTS[0][:400]
    np.savez(tmp_path / "points.npz", points=rows)
    config = {
        "partition-id": 0,
        "data": str(tmp_path / "points.npz"),
        "state": str(tmp_path / "state"),
        "min-count": 10,
    }

    def ask(request: Message) -> Message | None:
        answer = answer_request(config, lambda: request)
        return None if FAILURE in answer.values else answer

    answers = []
    for seed in range(30):
        options = resolve(4, noise=8.0, clip=CLIP, min_count=10, seed=seed)
        answer = ask(protocol.centroids_request(options, 0))
        answers += [answer] if answer is not None else []
    # epsilon 8 at delta 1e-5 is rho 1.23; a run costs 5 steps of 2 / 64: seven runs.
    assert len(answers) == 7
    assert privacy.epsilon(7 * 5 * 2 / 64) <= 8 < privacy.epsilon(8 * 5 * 2 / 64)
    assert attacks.count_rows_read(attacks.subtract_cells(answers), rows) == 0
    # A request without enough noise is not an answer for free.
    loud = protocol.centroids_request(resolve(4, noise=1e-6, clip=CLIP, min_count=10), 0)
    assert answer_request(config, lambda: loud).values[FAILURE] == "max-epsilon"


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"noise": -1.0}, ("noise", "-1")),
        ({"clip": 0.0}, ("clip", "0")),
        ({"winsorize": 3.0}, ("noise", "winsorize")),
        ({"eliminate": "flags"}, ("noise", "eliminate")),
    ],
)
def test_a_request_that_weakens_the_noise_is_refused(changed: dict, names: tuple[str, ...]) -> None:
    good = protocol.centroids_request(resolve(4, noise=8.0, clip=CLIP), 0)
    request = Message(good.kind, 0, good.arrays, {**good.values, **changed})
    with raises_naming(MessageError, *names):
        protocol.answer_centroids(PARTS[0], request, 0)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"noise": 1.0}, ("noise", "clip")),
        ({"noise": 1.0, "clip": 1.0, "eliminate": "flags"}, ("eliminate", "none")),
        ({"noise": 1.0, "clip": 1.0, "winsorize": 3.0}, ("winsorize", "clip")),
    ],
)
def test_options_that_do_not_fit_noise(options: dict, names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        resolve(4, **options)
