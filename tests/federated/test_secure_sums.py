"""Sums in fixed point: what secure aggregation adds up equals what is added up in the clear, in one process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s_sets import split_s_set

from foveate.core.errors import UserError
from foveate.federated.clustering import protocol
from foveate.federated.clustering.fit import cluster
from foveate.federated.clustering.methods import resolve
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import read_options as read_deep_options
from foveate.federated.embedding.job import EmbeddingFit, fit_clients
from foveate.federated.embedding.options import read_options as read_map_options
from foveate.federated.job import fit_in_process
from foveate.federated.messages import Message, MessageError
from foveate.federated.rounds import Client, InProcess, Log, TooFewClientsError
from foveate.federated.scaling import MOMENTS, answer_moments, ask_scaling
from foveate.federated.secure_sums import COUNTS, MAX_DIGIT, MOMENT_SUMS, SUMS, WEIGHTS, FixedPoint, SumFormat
from naming import raises_naming

PARTS = [part * [1.0, 1000.0] + [0.0, 1e6] for part in split_s_set("s1", alpha=0.3, clients=3, seed=0)]
GRIDS = (SUMS, MOMENT_SUMS, WEIGHTS, COUNTS)
SCALED = resolve(15, seed=5, scale="standard", refine_rounds=3)


def connect(parts, *, is_secure: bool = True, log: Log | None = None) -> InProcess:
    clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(parts)]
    return InProcess(clients, is_secure=is_secure, log=log)


def make_secure(members: Sequence[Client], log: Log) -> InProcess:
    return InProcess(members, log=log, is_secure=True)


def make_plain(members: Sequence[Client], log: Log) -> InProcess:
    return InProcess(members, log=log)


@pytest.mark.parametrize("grid", GRIDS)
@given(share=st.floats(-1, 1), smaller=st.integers(0, 240))
def test_digits_and_back(grid: FixedPoint, share: float, smaller: int) -> None:
    value = np.array([share * grid.bound * 2.0**-smaller])
    digits = grid.split(value)
    assert (np.abs(digits) <= MAX_DIGIT).all()
    # Half a step, and what float64 itself rounds.
    assert abs(grid.join(digits) - value)[0] <= grid.step / 2 + abs(value[0]) * 2**-52


@pytest.mark.parametrize("value", [np.nan, np.inf, WEIGHTS.bound * 1.01])
def test_what_the_grid_has_not_is_refused(value: float) -> None:
    with raises_naming(UserError, "cannot be added up"):
        WEIGHTS.split(np.array([value]))


def test_a_clustering_of_sums_equals_the_plain_one() -> None:
    log = Log(record=True)
    summed, plain = cluster(connect(PARTS, log=log), SCALED), cluster(connect(PARTS, is_secure=False), SCALED)
    assert summed.scaling is not None
    assert plain.scaling is not None
    np.testing.assert_allclose(summed.scaling.offset_D, plain.scaling.offset_D, rtol=1e-14)
    np.testing.assert_allclose(summed.centers, plain.centers, atol=1e-12)
    # Moments and sums leave a client as one vector; its centroids leave it as they are, once.
    sent = {(message.kind, *message.arrays) for _, up, message in log.messages if up}
    assert {("query.moments", "vector"), ("query.lloyd", "vector")} < sent
    assert {kind for kind, *names in sent if names != ["vector"]} == {"query.centroids"}


@pytest.mark.parametrize("method", ["fedavg", "fedne"])
def test_a_map_of_sums_equals_the_plain_one(method: str) -> None:
    base = {"rounds": 3, "hidden": (8,), "surrogate_start": 0.3, "min_r2": -10.0, "scale": "standard"}
    options = read_map_options(base | {"method": method})
    summed, plain = (fit_clients(PARTS, options, make_transport=make) for make in (make_secure, make_plain))
    assert_same_weights(summed, plain)
    for one, other in zip(summed.state.history, plain.state.history, strict=True):
        assert one["attraction"] == pytest.approx(other["attraction"], rel=1e-6)
        assert (one["foreign"] is None) == (other["foreign"] is None)


def assert_same_weights(summed: EmbeddingFit, plain: EmbeddingFit) -> None:
    # float32: one unit in the last place of a weight of 1 is 1.2e-7, the step of the grid less than a thousandth of it.
    np.testing.assert_allclose(summed.state.encoder, plain.state.encoder, atol=1e-6)


def test_an_encoder_of_sums_equals_the_plain_one() -> None:
    options = read_deep_options({"clusters": 5, "rounds": 2, "width": 8, "hidden": 16, "scale": "standard"})
    summed, plain = (fit_in_process(DeepJob(options), PARTS, make_transport=make) for make in (make_secure, make_plain))
    np.testing.assert_allclose(summed.weights, plain.weights, atol=1e-6)
    np.testing.assert_allclose(summed.centers, plain.centers, atol=1e-5)
    assert summed.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-5)


def test_two_clients_have_no_sum() -> None:
    with raises_naming(TooFewClientsError, "2 of 2 clients are in the sum; 3 are needed"):
        cluster(connect(PARTS[:2]), SCALED)


def test_options_about_single_clients_are_refused() -> None:
    with raises_naming(UserError, "suspects=exclude"):
        cluster(connect(PARTS), resolve(15, suspects="exclude"))
    for name, value in (("aggregation", "median"), ("aggregation", "trimmed_mean"), ("suspects", "exclude")):
        with raises_naming(UserError, f"{name}={value}"):
            fit_clients(PARTS, read_map_options({"rounds": 1, name: value}), make_transport=make_secure)


def test_a_client_of_other_columns_is_left_out_by_the_length_of_its_vector() -> None:
    clients = [Client(number, part, {MOMENTS: answer_moments}) for number, part in enumerate(PARTS)]
    clients.append(Client(3, np.ones((20, 5)), {MOMENTS: answer_moments}))
    excluded: dict[int, str] = {}
    scaling = ask_scaling(InProcess(clients, is_secure=True), min_count=1, excluded=excluded)
    np.testing.assert_allclose(scaling.offset_D, np.concatenate(PARTS).mean(0))
    assert list(excluded) == [3]
    assert "digits" in excluded[3]


def test_noise_beyond_the_grid_of_a_sum_is_clipped_to_it() -> None:
    format = SumFormat({"encoder": WEIGHTS}, is_weighted=True)
    answer = Message("train", arrays={"encoder": np.array([1e300, -1e300, 1.0])})
    with raises_naming(UserError, "2.15e+09"):
        format.encode(answer, 10)
    arrays, _ = format.decode(format.encode(answer, 10, clip=True), {"encoder": (3,)}, 1)
    assert arrays["encoder"].tolist() == pytest.approx([WEIGHTS.bound / 10, -WEIGHTS.bound / 10, 1.0])


def test_a_total_that_no_clients_make_is_refused() -> None:
    format = SumFormat({"encoder": WEIGHTS}, is_weighted=True, means=("loss",))
    answer = Message("train", arrays={"encoder": np.ones(3)}, values={"loss": 0.5})
    total = 3 * format.encode(answer, 10)
    arrays, totals = format.decode(total, {"encoder": (3,)}, 3)
    assert arrays["encoder"].tolist() == [1, 1, 1]
    assert totals.numbers == {"points": 30}
    assert totals.means == {"loss": 0.5}
    # One client without the value: a mean over the others would look like one over all.
    without = format.encode(Message("train", arrays={"encoder": np.ones(3)}), 10)
    assert format.decode(total + without, {"encoder": (3,)}, 4)[1].means == {"loss": None}
    with raises_naming(MessageError, "do not fit the question"):
        format.decode(total, {"encoder": (4,)}, 3)
    with raises_naming(MessageError, "out of range"):
        format.decode(total + 3 * MAX_DIGIT, {"encoder": (3,)}, 3)
    with raises_naming(MessageError, "below its smallest"):
        format.decode(-total, {"encoder": (3,)}, 3)


def test_a_false_sum_is_refused_where_no_honest_clients_have_it() -> None:
    """Squares below 0, more points than before: what a total shows; a lie within bounds is not seen."""

    def negative(data, request, client):
        answer = answer_moments(data, request, client)
        arrays = {name: (-1e3 if name == "squares" else 1) * array for name, array in answer.arrays.items()}
        return answer.answer(arrays=arrays, points=int(answer.number("points")))

    def heavy(data, request, client):
        answer = protocol.answer_lloyd(data, request, client)
        return answer.answer(arrays={name: 1000 * array for name, array in answer.arrays.items()})

    for kind, lie, words in (
        (MOMENTS, negative, "add up to less than 0"),
        (protocol.LLOYD, heavy, "reported"),
    ):
        clients = [Client(number, part, protocol.HANDLERS) for number, part in enumerate(PARTS)]
        clients[1] = Client(1, PARTS[1], {**protocol.HANDLERS, kind: lie})
        with raises_naming(UserError, words):
            cluster(InProcess(clients, is_secure=True), SCALED)
