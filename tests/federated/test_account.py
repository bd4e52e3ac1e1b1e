"""One account of a client for all jobs and kinds of message, and for near-copies of its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_wine

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep import options as features_kinds
from foveate.federated.deep.encoder import build_network
from foveate.federated.deep.encoder import flatten_weights as flatten_embedder
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import DeepOptions
from foveate.federated.deep.protocol import embedded_request, train_request
from foveate.federated.embedding import options as map_kinds
from foveate.federated.embedding.client import build_encoder
from foveate.federated.embedding.networks import flatten_weights
from foveate.federated.embedding.options import EmbeddingOptions
from foveate.federated.ledger import BOXES, SUMS, TRAININGS, Ledger, RequestCost
from foveate.federated.limits import JOBS, ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import COUNT, FAILURE, REMEDIES, SENTENCES, Refusal
from foveate.federated.scaling import moments_request
from naming import raises_naming

WINE = (load_wine().data - load_wine().data.mean(0)) / load_wine().data.std(0)
Ask = Callable[[Message], Any]


def configure(folder: Path, rows: np.ndarray = WINE, name: str = "points", **own: Any) -> dict[str, Any]:
    """A client that answers all jobs, and what its owner chose."""
    np.savez(folder / f"{name}.npz", points=rows)
    config = {"partition-id": 0, "data": str(folder / f"{name}.npz"), "state": str(folder / "state"), "min-count": 10}
    config |= {"jobs": ",".join(JOBS), "scale": "standard"}
    return config | {field.replace("_", "-"): value for field, value in own.items()}


def failure_of(config: dict[str, Any], request: Message) -> Any:
    return answer_request(config, lambda: request).values.get(FAILURE)


def entries(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "state").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


MAP = EmbeddingOptions(hidden=(4,), surrogate="grid", neighbors=3)
DEEP = DeepOptions(clusters=3, hidden=8, width=4, min_count=10)


def map_request(kind: str, options: EmbeddingOptions = MAP) -> Message:
    arrays: dict[str, Any] = {"encoder": flatten_weights(build_encoder(options, WINE.shape[1]))}
    values: dict[str, Any] = {"options": options.model_dump_json()}
    if kind in (map_kinds.FIELD, map_kinds.SURROGATE):
        arrays |= {"box": np.array([[-1.0, -1.0], [1.0, 1.0]]), "counts": np.array([12, 12])}
    if kind == map_kinds.TRAIN:
        values |= {"rate": 1e-3, "share": 1.0}
    return Message(kind, 0, arrays, values)


def features_request(kind: str) -> Message:
    weights = flatten_embedder(build_network(DEEP, WINE.shape[1]))
    if kind == features_kinds.EMBEDDED:
        request = embedded_request(weights, DEEP.clustering_options(), 0, 0)
    else:
        request = train_request(weights, np.eye(3, DEEP.width), DeepJob(DEEP).rounds.training, DEEP.seed, 0)
    return replace(request, values={**request.values, "options": DEEP.model_dump_json()})


def cluster_request(**options: Any) -> Message:
    return protocol.centroids_request(resolve(3, **{"min_count": 10, "winsorize": 3.0} | options), 0)


def noisy_request(**values: Any) -> Message:
    """A clustering with noise 60, or with values that no options take."""
    request = protocol.centroids_request(resolve(3, min_count=10, noise=60.0, clip=5.0), 0)
    return replace(request, values={**request.values, **values})


CHARGED: dict[str, Callable[[], Message]] = {
    "box": lambda: map_request(map_kinds.BOX),
    "field": lambda: map_request(map_kinds.FIELD),
    "training of a map": lambda: map_request(map_kinds.TRAIN),
    "embeddings": lambda: features_request(features_kinds.EMBEDDED),
    "training of an encoder": lambda: features_request(features_kinds.TRAIN),
}


def test_all_jobs_have_one_account(tmp_path: Path) -> None:
    config = configure(tmp_path)
    for make in CHARGED.values():
        assert failure_of(config, make()) is None
    assert failure_of(config, noisy_request(noise_steps=2)) is None
    rho = [entry["rho"] for entry in entries(tmp_path)]
    assert rho == pytest.approx([1 / 450] * 5 + [2 * 2 / 60**2])
    # With noise nothing counts as a partition, as a training, or as any other answer without.
    assert {(entry["partition"], entry["budget"]) for entry in entries(tmp_path)} == {(False, "")}
    # Whoever asks next, of whichever job, finds what is left.
    used = epsilon(sum(rho))
    small = config | {"max-epsilon": used * 1.0001}
    for make in (*CHARGED.values(), noisy_request):
        assert failure_of(small, make()) == "max-epsilon"
    assert failure_of(config, map_request(map_kinds.BOX)) is None


@pytest.mark.parametrize("name", CHARGED)
def test_answers_with_noise_end_with_the_budget(name: str, tmp_path: Path) -> None:
    config = configure(tmp_path, max_epsilon=epsilon(3.5 / 450))
    codes = [failure_of(config, CHARGED[name]()) for _ in range(5)]
    assert codes == [None] * 3 + ["max-epsilon"] * 2


COUNTED = {
    "box": "max-trainings",
    "field": "max-trainings",
    "training of a map": "max-trainings",
    "training of an encoder": "max-trainings",
}


@pytest.mark.parametrize("name", COUNTED)
def test_answers_without_noise_are_counted_by_kind(name: str, tmp_path: Path) -> None:
    config = configure(tmp_path, noise_multiplier=0.0, max_trainings=2)
    answers = [answer_request(config, CHARGED[name]).values for _ in range(4)]
    assert [answer.get(FAILURE) for answer in answers] == [None] * 2 + [COUNTED[name]] * 2
    assert answers[-1][COUNT] == 2
    # Others are counted by themselves, but trainings of both jobs together.
    other = map_request(map_kinds.FIELD if name == "box" else map_kinds.BOX)
    assert failure_of(config, other) is None
    if name == "training of a map":
        assert failure_of(config, features_request(features_kinds.TRAIN)) == "max-trainings"
    assert failure_of(config | {"noise-multiplier": 15.0}, CHARGED[name]()) is None, "with noise it is charged"


def test_embeddings_without_noise_are_partitions(tmp_path: Path) -> None:
    config = configure(tmp_path, noise_multiplier=0.0)
    assert failure_of(config, features_request(features_kinds.EMBEDDED)) is None
    assert failure_of(config, features_request(features_kinds.EMBEDDED)) is None, "the same question"
    assert failure_of(config, cluster_request()) == "max-partitions"


def test_a_client_answers_about_one_scale(tmp_path: Path) -> None:
    """Sums with and without outliers clipped differ by the outliers; a map's server gets the same as a clustering's."""
    config = configure(tmp_path)
    clipped = answer_request(config, lambda: moments_request(10, winsorize=3.0))
    plain = answer_request(config, lambda: moments_request(10))
    assert clipped.digest() == plain.digest(), "the client's own winsorize, whichever job asks"
    assert len(entries(tmp_path)) == 1, "the same question costs nothing"
    mean_D = clipped.array("sums") / len(WINE)
    assert failure_of(config, moments_request(10, center_D=mean_D)) is None
    assert failure_of(config, moments_request(10, winsorize=3.0, center_D=mean_D)) is None
    assert failure_of(config, moments_request(10, center_D=mean_D + 1)) == "max-moments"
    assert failure_of(config, moments_request(11)) == "max-moments"
    assert failure_of(config, moments_request(10, winsorize=2.0)) == "winsorize"
    assert failure_of(config | {"max-moments": 2}, moments_request(11)) is None
    # By changing its own winsorize, the owner does not open a second account.
    assert failure_of(config | {"winsorize": 0}, moments_request(10)) == "max-moments"


NEAR: dict[str, Callable[[], np.ndarray]] = {
    "a row less": lambda: WINE[1:],
    "a row more": lambda: np.concatenate([WINE, WINE[:1] + 1]),
    "a row changed": lambda: np.concatenate([WINE[1:], WINE[:1] + 1]),
    "another order": lambda: WINE[::-1],
    "other columns first": lambda: WINE[:, ::-1],
    "half of it": lambda: WINE[::2],
}


@pytest.mark.parametrize("name", NEAR)
def test_a_near_copy_of_the_data_has_no_budget_of_its_own(name: str, tmp_path: Path) -> None:
    """Before: another digest, another ledger; and two partitions that differ by a row are that row."""
    config, copy = configure(tmp_path), configure(tmp_path, NEAR[name](), "copy")
    assert failure_of(config, cluster_request()) is None
    assert failure_of(copy, cluster_request()) == "max-partitions"
    assert failure_of(config, moments_request(10)) is None
    assert failure_of(copy, moments_request(10)) == "max-moments"
    # Epsilon, and the number of questions, too.
    assert failure_of(config, map_request(map_kinds.BOX)) is None
    assert failure_of(copy | {"max-epsilon": epsilon(1.5 / 450)}, map_request(map_kinds.BOX)) == "max-epsilon"
    assert failure_of(copy | {"max-questions": 3}, Message(features_kinds.SIZE)) == "max-questions"
    other = configure(tmp_path, np.random.default_rng(0).normal(size=(60, 13)), "other")
    assert failure_of(other, cluster_request()) is None


def test_a_folder_of_before_goes_on(tmp_path: Path) -> None:
    """Ledgers without sketches and names of budgets count as they did; sketches come with the next question."""
    config = configure(tmp_path, noise_multiplier=0.0, max_trainings=2)
    assert failure_of(config, cluster_request()) is None
    (ledger,) = (tmp_path / "state").glob("*.jsonl")
    for path in [*(tmp_path / "state").glob("*.sketch"), *(tmp_path / "state").glob("rows.*")]:
        path.unlink()
    old = {"time": "", "round": 0, "question": "", "partition": False, "rho": 0.0, "outcome": "answered"}
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    lines += [{**old, "kind": kind} for kind in ("train", "train.prototypes")]
    for line in lines:
        line.pop("budget", None)
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert failure_of(config, cluster_request()) is None, "the same question"
    assert failure_of(config, cluster_request(seed=1)) == "max-partitions"
    assert failure_of(config, map_request(map_kinds.TRAIN)) == "max-trainings"
    copy = configure(tmp_path, WINE[1:], "copy")
    assert failure_of(copy, cluster_request()) == "max-partitions"


def test_a_damaged_sketch_has_a_name(tmp_path: Path) -> None:
    config = configure(tmp_path)
    assert failure_of(config, cluster_request()) is None
    (path,) = (tmp_path / "state").glob("*.sketch")
    path.write_bytes(path.read_bytes()[:-1])
    assert [failure_of(config, cluster_request()) for _ in range(2)] == ["ledger-damaged"] * 2
    assert str(path) in (tmp_path / "state" / "client.log").read_text()


@pytest.mark.parametrize(
    ("noise", "code"),
    [(1e9, None), (1e10, "max-noise"), (1e160, "max-noise"), (1e300, "max-noise")]
    + [(noise, "request-invalid") for noise in (-1.0, float("nan"))]
    + [(0.0, "winsorize"), (1e-300, "max-epsilon"), (float("inf"), "max-noise")],
)
def test_no_noise_is_an_internal_error_or_free(noise: float, code: str | None, tmp_path: Path) -> None:
    """Before: 1e160 overflowed the account."""
    config = configure(tmp_path, scale="none")
    answer = answer_request(config, lambda: noisy_request(noise=noise)).values.get(FAILURE)
    # So much noise may leave no group, whatever the data are.
    assert answer in ({None, "data-unusable"} if code is None else {code})
    assert all(entry["rho"] > 0 for entry in entries(tmp_path))


@pytest.mark.parametrize("field", ["update_noise", "target_noise"])
def test_noise_of_a_map_has_a_bound(field: str, tmp_path: Path) -> None:
    options = MAP.model_copy(update={"update_clip": 1.0, field: 1e160})
    assert failure_of(configure(tmp_path), map_request(map_kinds.TRAIN, options)) == "max-noise"


@pytest.mark.parametrize("value", [-1.0, 1e-9, 1e7, float("nan"), float("inf")])
def test_noise_that_has_no_cost_is_no_setting(value: float) -> None:
    with raises_naming(UserError, "noise_multiplier"):
        ClientLimits.of_node({"min-count": 10, "noise-multiplier": value})
    assert ClientLimits.of_node({"min-count": 10, "noise-multiplier": 0}).noise_multiplier == 0


@pytest.mark.parametrize(
    ("budget", "code"), [(SUMS, "max-moments"), (TRAININGS, "max-trainings"), (BOXES, "max-trainings")]
)
def test_what_failed_counts_as_a_failure_only(budget: str, code: str, tmp_path: Path) -> None:
    ledger, limits = Ledger(tmp_path, "0" * 64), ClientLimits(max_moments=1, max_trainings=1)
    question = RequestCost(Message("train"), is_repeatable=False, budget=budget)

    def fail() -> Message:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        ledger.answer(question, limits, fail)
    ledger.answer(question, limits, lambda: question.request.answer())
    with raises_naming(Refusal, code, "1") as refused:
        ledger.answer(question, limits, lambda: question.request.answer())
    assert refused is None or refused.value.code == code
    assert code in SENTENCES
    assert code in REMEDIES


def test_the_commands_have_the_clients_own_protection() -> None:
    called = (
        "client",
        "--folder",
        "north",
        "--client",
        "0",
        "--server",
        "ward",
        "--data",
        "p.npz",
        "--min-count",
        "10",
    )
    more = ("--jobs", "embed", "--noise-multiplier", "20", "--update-clip", "0.5", "--max-trainings", "9")
    done = CliRunner().invoke(cli, ["federated", *called, *more, "--max-moments", "2", "--dry-run"])
    assert done.exit_code == 0, done.output
    command = done.output.splitlines()[-1]
    for part in ("noise-multiplier=20", "update-clip=0.5", "max-trainings=9", "max-moments=2"):
        assert part in command


def test_an_honest_run_of_default_rounds_fits() -> None:
    """A map of 150 rounds with three questions each from a third on; an encoder of 20 rounds with two."""
    limits, options = ClientLimits(), EmbeddingOptions()
    fields = int((1 - options.surrogate_start) * options.rounds)
    assert options.rounds <= limits.max_trainings
    assert options.rounds + 2 * fields + 2 <= limits.max_questions
    assert epsilon((options.rounds + 2 * fields) / (2 * limits.noise_multiplier**2)) < limits.max_epsilon
    deep = DeepOptions(clusters=3)
    assert epsilon((2 * deep.rounds + 1) / (2 * limits.noise_multiplier**2)) < limits.max_epsilon
