"""Failures that depend on the data: one code and one class of times, a small number of them, none by a value in noise.

A failure is an answer of one bit. A server that chooses what fails (its scale makes values too large exactly where one
exceeds a threshold) searches for a value with it, in as many questions as the value has bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_wine

from foveate.federated import node as at_client
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.reasons import COUNT, FAILURE
from foveate.federated.scaling import Scaling

WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
ONES = np.ones(WINE.shape[1])


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_client, "TIME_CLASS_SECONDS", 1e-3)


def configure(folder: Path, rows: np.ndarray = WINE, **own: Any) -> dict[str, Any]:
    """A client's configuration: its defaults, and what its owner chose."""
    np.savez(folder / "points.npz", points=rows)
    config = {"partition-id": 0, "data": str(folder / "points.npz"), "state": str(folder / "state"), "min-count": 10}
    return config | {name.replace("_", "-"): value for name, value in own.items()}


def failure_of(config: dict[str, Any], request: Message) -> Any:
    """The code of a client's failure; None for an answer."""
    return answer_request(config, lambda: request).values.get(FAILURE)


def outcomes(folder: Path) -> list[str]:
    """Outcomes in the ledger."""
    return [
        json.loads(line)["outcome"]
        for path in (folder / "state").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]


def request(**options: Any) -> Message:
    return protocol.centroids_request(resolve(3, **{"min_count": 10, "winsorize": 3.0} | options), 0)


def noisy_request(kind: str = protocol.CENTROIDS, **options: Any) -> Message:
    """A question whose noise makes it nearly free."""
    chosen = resolve(3, min_count=10, noise=1e9, clip=1.0, **options)
    centers = np.eye(3, WINE.shape[1])
    return {
        protocol.CENTROIDS: lambda: protocol.centroids_request(chosen, 0),
        protocol.LLOYD: lambda: protocol.lloyd_request(centers, chosen, 1),
        protocol.ASSIGN: lambda: protocol.assign_request(centers, chosen, 1),
    }[kind]()


def in_scale(made: Message, offset: np.ndarray, scale: np.ndarray) -> Message:
    return Scaling(offset, scale).add_to(made)


FAILURES: dict[str, Callable[[], Message]] = {
    "a scale in which a column is far out": lambda: in_scale(request(), 0 * ONES, 1e-4 * ONES),
    "a scale that overflows": lambda: in_scale(request(), 0 * ONES, 1e-300 * ONES),
    "an offset that is a row": lambda: in_scale(request(spherical=True, winsorize=1e29), WINE[3], ONES),
    "fewer points than the request's min_count": lambda: request(min_count=179),
    "another width": lambda: protocol.assign_request(np.eye(3, 4), resolve(3, min_count=10, winsorize=3.0), 1),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_fails_because_of_the_data_has_one_code_and_counts(name: str, tmp_path: Path) -> None:
    made = FAILURES[name]()
    own = {"scale": "standard", "winsorize": made.values["winsorize"]}
    answer = answer_request(configure(tmp_path, **own), lambda: made)
    assert dict(answer.values) == {FAILURE: "data-unusable"}
    assert outcomes(tmp_path) == ["failed"]


def test_too_few_points_are_the_same_answer_to_every_request(tmp_path: Path) -> None:
    """Its code is another one, which no request chooses: it depends on the owner's own limit alone."""
    config = configure(tmp_path, WINE[:9], scale="standard")
    requests = [FAILURES[name]() for name in list(FAILURES)[:2]]
    requests += [request(), request(min_count=179), noisy_request()]
    answers = [answer_request(config, lambda message=message: message) for message in requests]
    assert [dict(answer.values) for answer in answers] == [{FAILURE: "too-few-points", COUNT: 10}] * 5
    assert outcomes(tmp_path) == []


def test_an_error_of_the_computation_has_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an overflow, which a server may provoke by its request for some data and not for others."""

    def fail(*arguments: Any) -> Message:
        raise FloatingPointError("Jane Doe")

    monkeypatch.setitem(protocol.HANDLERS, protocol.CENTROIDS, fail)
    answer = answer_request(configure(tmp_path), request)
    assert dict(answer.values) == {FAILURE: "data-unusable"}
    assert outcomes(tmp_path) == ["failed"]
    assert "FloatingPointError: Jane Doe" in (tmp_path / "state" / "client.log").read_text(), "with its traceback"


@pytest.mark.parametrize("seconds", [0.01, 0.2, 0.49, 0.51, 3.3])
def test_the_time_of_a_failure_is_of_a_class(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, waited = iter([100.0, 100.0 + seconds]), []
    monkeypatch.setattr(at_client, "TIME_CLASS_SECONDS", 0.5)
    monkeypatch.setattr(at_client, "time", SimpleNamespace(monotonic=lambda: next(times), sleep=waited.append))
    config = configure(tmp_path, scale="standard")
    assert failure_of(config, FAILURES["a scale that overflows"]()) == "data-unusable"
    assert seconds + waited[0] == pytest.approx(np.ceil(seconds / 0.5) * 0.5)


def search(config: dict[str, Any], ask: Callable[[float], Message], steps: int = 40) -> list[Any]:
    """Codes of a search by halves for the threshold at which a question begins to fail; stopped by a refusal."""
    low, high, codes = 0.0, 1.0, []
    for _ in range(steps):
        middle = (low + high) / 2
        codes.append(failure_of(config, ask(middle)))
        low, high = (middle, high) if codes[-1] == "data-unusable" else (low, middle)
    return codes


def threshold(step: float, **options: Any) -> Message:
    """A question that fails where the first column is more than 100 deviations out, in units of the server's choice."""
    scale = np.concatenate([[10.0 ** (4 * step - 4)], ONES[1:]])
    return in_scale(request(**options), 0 * ONES, scale)


def test_a_search_by_failures_ends_after_a_few(tmp_path: Path) -> None:
    assert set(search(configure(tmp_path), threshold)) == {"scale"}, "by default no scale of a server is taken"
    assert outcomes(tmp_path) == []
    codes = search(configure(tmp_path, scale="standard"), threshold)
    # What is answered counts as a partition, what fails as a failure: neither goes on.
    assert codes.count(None) <= 1
    assert codes.count("data-unusable") <= 5
    assert set(codes[6:]) <= {"max-failures", "max-partitions"}
    limited = configure(tmp_path, scale="standard", max_failures=2, max_partitions=100)
    (tmp_path / "state").rename(tmp_path / "before")
    fails = [answer_request(limited, lambda seed=seed: threshold(0.0, seed=seed)) for seed in range(4)]
    used_up = {FAILURE: "max-failures", COUNT: 2}
    assert [dict(answer.values) for answer in fails] == [{FAILURE: "data-unusable"}] * 2 + [used_up] * 2


@pytest.mark.parametrize("kind", [protocol.CENTROIDS, protocol.LLOYD, protocol.ASSIGN])
def test_no_value_makes_a_question_with_noise_fail(kind: str, tmp_path: Path) -> None:
    """With noise 1e9 a question costs next to nothing, and 40 failures would tell a value to 1e-9."""
    config = configure(tmp_path, scale="standard", max_failures=100)
    largest = WINE[:, 0].max()
    scales = {
        "just below": np.concatenate([[largest * (1 - 1e-9) / 1e30], ONES[1:]]),
        "just above": np.concatenate([[largest * (1 + 1e-9) / 1e30], ONES[1:]]),
        "overflow": 1e-300 * ONES,
        "zero": 0 * ONES,
        "negative": -ONES,
        "no number": np.nan * ONES,
        "infinite": np.inf * ONES,
    }
    codes = {name: failure_of(config, in_scale(noisy_request(kind), 0 * ONES, scale)) for name, scale in scales.items()}
    codes["a row as offset"] = failure_of(config, in_scale(noisy_request(kind, spherical=True), WINE[3], ONES))
    codes["a huge offset"] = failure_of(config, in_scale(noisy_request(kind), 1e308 * ONES, 1e-308 * ONES))
    # Noise may leave no group of a client's own k-means; it decides by noisy counts, whatever the values are.
    allowed = {None, "data-unusable"} if kind == protocol.CENTROIDS else {None}
    assert set(codes.values()) <= allowed, codes


def test_noisy_starts_see_no_value(tmp_path: Path) -> None:
    """With little noise the same question is answered in any scale: what is too large is clipped."""
    config = configure(tmp_path, scale="standard", max_epsilon=1e9)
    made = protocol.centroids_request(resolve(3, min_count=10, noise=0.5, clip=5.0), 0)
    for scale in (1e-300 * ONES, 1e-29 * ONES, ONES):
        answer = answer_request(config, lambda scale=scale: in_scale(made, 0 * ONES, scale))
        assert FAILURE not in answer.values
        assert np.abs(answer.array("centers")).max() < 50
