"""A client's own noise on DeepFeCA's answers: how much, what it costs, what a hostile server reads, honest runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from federated.test_hostile_server import asker, attack_encoder, configure
from foveate.core.errors import UserError
from foveate.federated import attacks, reasons
from foveate.federated.costs import answer_cost
from foveate.federated.deep import noise
from foveate.federated.deep.encoder import build_network, flatten_weights, prepare_samples, set_weights
from foveate.federated.deep.job import DeepJob, load_model
from foveate.federated.deep.options import EMBEDDED, REMOTE_KINDS, SIZE, TRAIN, DeepOptions
from foveate.federated.deep.protocol import embedded_request, embedded_rule, prototype_loss, train_request, train_rule
from foveate.federated.deep.remote import answer_remote, check_weights
from foveate.federated.job import serve
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import NOISE, answer_request
from foveate.federated.privacy import epsilon, send_change
from foveate.federated.reasons import FAILURE, Refusal, read_failure
from foveate.federated.rounds import Client, InProcess
from foveate.report import render

DIGITS = load_digits().data / 16
WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
DEFAULTS = ClientLimits(min_count=10)


def noise_cost(kind: str, multiplier: float = DEFAULTS.noise_multiplier) -> float:
    return answer_cost(Message(kind), ClientLimits(noise_multiplier=multiplier)).rho


QUICK: dict[str, Any] = {"clusters": 3, "rounds": 2, "width": 8, "hidden": 12, "min_count": 10}


class Units:
    """Noise of standard deviation 1 that can be told from anything else; counts what is drawn."""

    def __init__(self, seed: int = 0) -> None:
        self.random, self.drawn = np.random.default_rng(seed), 0

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray:
        self.drawn += math.prod(size)
        return self.random.standard_normal(size)


def request(kind: str, options: DeepOptions, weights: np.ndarray, round: int = 0, centers: Any = None) -> Message:
    if kind == EMBEDDED:
        made = embedded_request(weights, options.clustering_options(), 0, round)
    else:
        centers = np.eye(options.clusters, options.width) if centers is None else centers
        made = train_request(weights, centers, DeepJob(options).rounds.training, options.seed, round)
    return replace(made, values={**made.values, "options": options.model_dump_json()})


def test_what_an_answer_costs() -> None:
    for kind in (EMBEDDED, TRAIN):
        assert noise_cost(kind, 15.0) == pytest.approx(1 / 450)
        assert noise_cost(kind, 0.0) == 0
    assert noise_cost(SIZE, 15.0) == 0
    # A run of the default 20 rounds fits into the default budget.
    assert epsilon(41 * noise_cost(TRAIN)) < DEFAULTS.max_epsilon


@pytest.mark.parametrize(("multiplier", "clip"), [(15.0, 1.0), (2.0, 0.25)])
def test_the_noise_on_a_change(multiplier: float, clip: float) -> None:
    before = np.zeros(20_000, np.float32)
    after = before.copy()
    after[0] = 100
    seen: list[np.ndarray] = []

    class Source(Units):
        def standard_normal(self, size: tuple[int, ...]) -> np.ndarray:
            seen.append(super().standard_normal(size))
            return seen[-1]

    sigma = noise.SENSITIVITY * clip * multiplier
    sent = send_change(before, after, clip=clip, sigma=sigma, source=Source())
    expected = sigma * seen[0]
    expected[0] += clip
    np.testing.assert_allclose(sent, expected * clip / np.linalg.norm(expected), rtol=1e-5, atol=1e-9)
    # What the ledger charges for it.
    assert noise_cost(TRAIN, multiplier) == pytest.approx((2 * clip) ** 2 / (2 * sigma**2))
    # Without noise the change is clipped all the same; a training that ends in NaN is none.
    bare = send_change(before, after, clip=clip)
    assert (bare[0], np.abs(bare[1:]).max()) == (np.float32(clip), 0)
    assert np.array_equal(send_change(before, after * np.float32("nan"), clip=clip), before)


def test_gradients_are_clipped_point_by_point() -> None:
    options = DeepOptions(**QUICK)
    network, points = build_network(options, 13), prepare_samples(WINE, options)
    prototypes, labels = torch.eye(3, 8), torch.arange(len(WINE)) % 3
    for clip in (0.5, 3.0, 1e9):
        total = [np.zeros(parameter.shape) for parameter in network.head.parameters()]
        for point, label in zip(points.split(1), labels.split(1), strict=True):
            network.zero_grad()
            prototype_loss(network(point), prototypes, label).backward()
            parts = [parameter.grad.double().numpy() for parameter in network.head.parameters()]  # type: ignore[union-attr]
            norm = math.sqrt(sum(float((part**2).sum()) for part in parts))
            total = [so_far + part * min(1, clip / norm) for so_far, part in zip(total, parts, strict=True)]
        found = noise.clipped_gradients(network, points, prototypes, labels, temperature=0.1, clip=clip)
        for part, expected in zip(found, total, strict=True):
            np.testing.assert_allclose(part, expected, atol=1e-4 * np.abs(expected).max())


def test_a_replaced_point_moves_a_sum_of_gradients_by_two_clips_at_most() -> None:
    options = DeepOptions(**QUICK)
    network, random = build_network(options, 13), np.random.default_rng(0)
    labels, prototypes = torch.arange(len(WINE)) % 3, torch.eye(3, 8)

    def sums(rows: np.ndarray) -> np.ndarray:
        samples = prepare_samples(rows, options)
        parts = noise.clipped_gradients(network, samples, prototypes, labels, temperature=0.1, clip=1.0)
        return np.concatenate([part.ravel() for part in parts])

    for size in (1.0, 1e4, 1e15):
        changed = WINE.copy()
        changed[7] = size * random.normal(size=13)
        assert np.isfinite(sums(changed)).all()
        assert np.linalg.norm(sums(changed) - sums(WINE)) <= 2 * noise.GRADIENT_CLIP + 1e-4


@pytest.mark.parametrize("steps", [1, 4])
def test_the_noise_on_gradients(steps: int) -> None:
    options = DeepOptions(**QUICK)
    network, points = build_network(options, 13), prepare_samples(WINE, options)
    labels, prototypes = torch.arange(len(WINE)) % 3, torch.eye(3, 8)
    before, source, multiplier = flatten_weights(network), Units(), 3.0
    more = {"steps": steps, "learning_rate": 1.0, "temperature": 0.1, "source": source}
    noise.train_with_noise(network, points, prototypes, labels, multiplier=multiplier, **more)
    assert source.drawn == steps * len(before)
    noisy = flatten_weights(network)
    set_weights(network, before)
    noise.train_with_noise(network, points, prototypes, labels, multiplier=0.0, **more)
    spread = (noisy - flatten_weights(network)).std() * len(points)
    # Each of S steps has sqrt(S) times the noise of one, so that together they cost as much; S of them add up.
    assert spread == pytest.approx(2 * noise.GRADIENT_CLIP * multiplier * steps, rel=0.15)


def test_the_noise_on_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that depends on points is drawn with the noise that the cost assumes: rho = S * 2 / noise^2."""
    used: list[tuple[float, float]] = []
    exact = noise.noisy_sums

    def note(steps: Any, labels: Any, groups: int, *, clip: float, noise: float, min_count: int) -> Any:
        used.append((clip, noise))
        return exact(steps, labels, groups, clip=clip, noise=noise, min_count=min_count)

    monkeypatch.setattr(noise, "noisy_sums", note)
    monkeypatch.setattr("foveate.federated.clustering.noise.noisy_sums", note)
    vectors = noise.clean_vectors(WINE)
    noise.noisy_centroids(vectors, 3, np.random.default_rng(0), multiplier=4.0, min_count=10)
    assert len(used) == noise.STEPS
    assert used[0][0] == 1.0
    assert sum(2 / scale**2 for _, scale in used) == pytest.approx(noise_cost(EMBEDDED, 4.0))


def test_vectors_that_are_no_numbers_are_no_error() -> None:
    rows = np.eye(4, 3)
    rows[1], rows[2, 0] = np.nan, np.inf
    found = noise.clean_vectors(rows)
    assert found.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("clustering", ["consensus", "weighted_kmeans", "paper_reconstruction", "kfed"])
@pytest.mark.parametrize("points", [10, 25, 178])
@pytest.mark.parametrize("multiplier", [0.01, 15.0, 1000.0])
def test_the_server_takes_noisy_centroids(clustering: str, points: int, multiplier: float) -> None:
    options = DeepOptions(**QUICK | {"clustering": clustering})
    limits = ClientLimits(min_count=10, noise_multiplier=multiplier)
    asked = request(EMBEDDED, options, flatten_weights(build_network(options, 13)))
    answer = answer_remote(WINE[:points], asked, 0, limits)
    embedded_rule(options.clustering_options(), options.width).check(answer)
    assert len(answer.array("centers")) == min(3, points // 10)
    if "counts" in answer.arrays:
        assert answer.array("counts").sum() == answer.number("points") == points
    if "trusted" in answer.arrays:
        assert answer.array("trusted").all(), "which ones are doubted has no noise"


@pytest.mark.parametrize(
    ("counts", "points", "shared"),
    [
        ([30.0, 20.0, 10.0], 60, [40, 20, 0]),
        ([0.0, 0.0, 0.0], 50, [17, 17, 16]),
        ([1000.0, 0.0, 0.0], 40, [20, 10, 10]),
        ([5.0], 40, [40]),
        ([500.0, 250.0], 12, [6, 6]),
    ],
)
def test_counts_add_up_to_the_points(counts: list[float], points: int, shared: list[int]) -> None:
    found = noise.share_points(np.array(counts), points, 10)
    assert found.sum() == points
    assert (found >= min(10, points // len(counts))).all()
    if counts[0] != 30:
        assert found.tolist() == shared


def test_noise_leaves_variances_above_zero() -> None:
    options = DeepOptions(clusters=3, encoder="small_resnet")
    network = build_network(options, 64)
    before = flatten_weights(network)
    sent = noise.keep_variances(network, before, before - np.float32(5))
    set_weights(network, sent)
    assert all((value > 0).all() for name, value in network.state_dict().items() if name.endswith("running_var"))
    assert np.array_equal(noise.keep_variances(network, before, before), before)


def test_a_noisy_question_fails_because_of_no_value(tmp_path: Path) -> None:
    """Weights and rows so large that everything overflows are answered as any others."""
    options = DeepOptions(**QUICK)
    rows = WINE.copy()
    # The largest value that data may have.
    rows[3] = 1e30
    weights = flatten_weights(build_network(options, 13)) * np.float32(1e30)
    for kind in (EMBEDDED, TRAIN):
        for data in (WINE, rows):
            answer = answer_remote(data, request(kind, options, weights), 0, DEFAULTS)
            assert all(np.isfinite(array).all() for array in answer.arrays.values())


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (folder / "state").glob("*.jsonl") for line in path.read_text().splitlines()]


def network_clients(tmp_path: Path, parts: list[np.ndarray], **own: Any) -> InProcess:
    """Clients that answer as over a network, by configurations of their own."""

    def make(number: int, part: np.ndarray) -> Client:
        folder = tmp_path / str(number)
        folder.mkdir()
        config = configure(folder, part, jobs="features", **own) | {"partition-id": number}

        def answer(data: Any, asked: Message, client: int) -> Message:
            found = answer_request(config, lambda: asked)
            if FAILURE in found.values:
                raise UserError(read_failure(found))
            return found

        return Client(number, part, dict.fromkeys(REMOTE_KINDS, answer))

    return InProcess([make(number, part) for number, part in enumerate(parts)])


@pytest.mark.parametrize("chosen", [{}, {"encoder": "small_resnet", "augment": "shift"}, {"method": "local"}])
def test_an_honest_run_over_a_network_with_default_noise(chosen: dict[str, Any], tmp_path: Path) -> None:
    parts = np.array_split(DIGITS[::9], 2)
    options = DeepOptions(**QUICK | chosen)
    found = serve(DeepJob(options), network_clients(tmp_path, parts), tmp_path / "out", min_clients=2)
    assert [entry["clients"] for entry in found["history"]] == [[0, 1]] * 2
    assert [entry["loss"] for entry in found["history"]] == [None, None]
    assert load_model(tmp_path / "out" / "model").predict(parts[0]).shape == (len(parts[0]),)
    page = render(tmp_path / "out").read_text(encoding="utf-8")
    assert "Losses are hidden by the clients" in page
    assert "Loss of the clients" not in page
    lines = entries(tmp_path / "0")
    assert [line["kind"] for line in lines] == [SIZE, *[EMBEDDED, TRAIN] * 2, EMBEDDED]
    assert [line["rho"] for line in lines] == [0, *[pytest.approx(1 / 450)] * 5]
    assert not any(line["partition"] for line in lines), "max-partitions is 1, and there were three clusterings"


def test_a_row_near_zero_is_refused_only_without_noise(tmp_path: Path) -> None:
    """Rows of a single value are near zero after noise now and then: two of six honest runs were refused."""
    options = DeepOptions(**QUICK | {"encoder": "small_vit", "width": 8, "hidden": 12, "seed": 4})
    network = build_network(options, 16)
    with torch.no_grad():
        network.encoder[0].cut.weight[0] = 1e-4
    asked = replace(request(EMBEDDED, options, flatten_weights(network)), round=1)

    def refuses(multiplier: float) -> bool:
        limits = ClientLimits(min_count=10, noise_multiplier=multiplier)
        try:
            check_weights(asked, 16, limits, tmp_path / str(multiplier), "rows")
        except Refusal:
            return True
        return False

    assert refuses(0.0)
    assert not refuses(15.0)


def test_an_honest_run_over_a_network_without_noise(tmp_path: Path) -> None:
    parts = np.array_split(DIGITS[::9], 2)
    options = DeepOptions(**QUICK | {"rounds": 8})
    clients = network_clients(tmp_path, parts, noise_multiplier=0, max_partitions=9)
    found = serve(DeepJob(options), clients, tmp_path / "out", min_clients=2)
    assert all(entry["loss"] > 0 for entry in found["history"])
    assert [line["rho"] for line in entries(tmp_path / "0")] == [0.0] * 18


def test_the_greeting_tells_whether_there_is_noise(tmp_path: Path) -> None:
    for own, multiplier in (({}, 15.0), ({"noise_multiplier": 0}, 0.0)):
        answer = answer_request(configure(tmp_path, WINE, **own), lambda: Message("query.hello"))
        assert answer.values[NOISE] == multiplier


def test_the_budget_ends_a_run(tmp_path: Path) -> None:
    codes: list[Any] = []
    ask = asker(configure(tmp_path, WINE, jobs="features", max_epsilon=0.5), codes)
    options = DeepOptions(**QUICK)
    weights = flatten_weights(build_network(options, 13))
    for _ in range(4):
        # A noisy answer is never the same: each time it counts.
        ask(request(EMBEDDED, options, weights))
    assert codes[0] is None
    assert codes[-1] == "max-epsilon"
    assert epsilon(sum(line["rho"] for line in entries(tmp_path))) <= 0.5


def fitting_start(options: DeepOptions, features: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(flatten_weights(build_network(options, features))).astype(np.float32)


def read_units(answer: Message, before: np.ndarray, features: int, hidden: int) -> list[np.ndarray]:
    """Rows by the first layer's gradients: that of a unit over its bias, and of differences of all pairs of units.

    What one point alone makes act is that point; two units whose points differ by one give it by their difference.
    """
    change = answer.array("weights").astype(np.float64) - before.astype(np.float64)
    rows, counts = change[: hidden * features].reshape(hidden, features), change[hidden * features :][:hidden]
    used = np.abs(counts) > 1e-6 * np.abs(counts).max()
    rows, counts = rows[used], counts[used]
    candidates = list(rows / counts[:, None])
    for j in range(len(rows)):
        gap = counts - counts[j]
        good = np.abs(gap) > 1e-6 * np.abs(counts).max()
        candidates += list((rows[good] - rows[j]) / gap[good, None])
    return candidates


def test_gradients_of_an_honest_start_are_rows(tmp_path: Path) -> None:
    """Units of an honest encoder that act on a single point give it away, without any attack; not over a network."""
    rows = DIGITS[::12]
    features, hidden = rows.shape[1], 256
    options = DeepOptions(clusters=3, batch_size=1024, weight_decay=0.0, min_count=10, width=16)
    weights = flatten_weights(build_network(options, features))
    asked = request(TRAIN, options, weights)
    bare = read_units(answer_remote(rows, asked, 0), weights, features, hidden)
    assert attacks.count_rows_read(bare, rows, within=1e-2) > 0, "the attack works"
    for own in ({}, {"noise_multiplier": 0}, {"noise_multiplier": 1.0}):
        (folder := tmp_path / f"{own}").mkdir()
        codes: list[Any] = []
        answer = asker(configure(folder, rows, jobs="features", **own), codes)(asked)
        assert codes == [None]
        assert answer is not None
        found = read_units(answer, weights, features, hidden)
        assert attacks.count_rows_read(found, rows, within=1e-2) == 0


def test_the_table_s_attack_reads_nothing(tmp_path: Path) -> None:
    """Equal rows with graded biases: refused by the client, with noise and without."""
    assert (
        attacks.count_rows_read(attack_encoder(lambda asked: answer_remote(WINE, asked, 0), 13), WINE, within=1e-2) > 50
    )
    for own in ({}, {"noise_multiplier": 0}):
        codes: list[Any] = []
        assert attack_encoder(asker(configure(tmp_path, WINE, jobs="features", **own), codes), 13) == []
        assert codes == [reasons.WEIGHTS]
    assert entries(tmp_path) == [], "refused without a look at the points"


def test_noise_alone_hides_rows() -> None:
    """Past all checks: what proves that rows are hidden is the noise."""
    limits = ClientLimits(min_count=10, noise_multiplier=1.0, update_clip=100.0)
    found = attack_encoder(lambda asked: answer_remote(WINE, asked, 0, limits), 13)
    assert len(found) > 100, "there is an answer"
    assert attacks.count_rows_read(found, WINE, within=1e-2) == 0


def test_weights_of_a_later_round_are_compared_with_the_last(tmp_path: Path) -> None:
    options = DeepOptions(**QUICK | {"rounds": 5})
    weights = flatten_weights(build_network(options, 13))
    codes: list[Any] = []
    ask = asker(configure(tmp_path, WINE, jobs="features"), codes)
    ask(request(EMBEDDED, options, fitting_start(options, 13, lambda values: values * 1.01)))
    ask(request(EMBEDDED, options, weights))
    answer = ask(request(TRAIN, options, weights))
    assert answer is not None
    ask(request(EMBEDDED, options, answer.array("weights"), round=1))
    direction = np.random.default_rng(0).normal(size=len(weights)).astype(np.float32)
    ask(request(TRAIN, options, weights + 30 * direction / np.linalg.norm(direction), round=2))
    ask(request(EMBEDDED, options, answer.array("weights"), round=6))
    assert codes == [reasons.WEIGHTS, None, None, None, reasons.WEIGHTS, reasons.WEIGHTS]


def test_training_answers_without_loss_fit_the_rule() -> None:
    options = DeepOptions(**QUICK)
    weights = flatten_weights(build_network(options, 13))
    answer = answer_remote(WINE, request(TRAIN, options, weights), 0, DEFAULTS)
    train_rule(len(weights)).check(answer)
    assert dict(answer.values) == {"points": len(WINE)}
    assert np.linalg.norm(answer.array("weights") - weights) <= DEFAULTS.update_clip * (1 + 1e-6)
