"""The server's side of FedNE: shares, boxes, surrogates, training, averaging; round after round, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.federated.anomaly import BOX_FAR, WEIGHTS_ALONE, odd_boxes, odd_sizes, odd_weights
from foveate.federated.clients import stream
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import build_encoder
from foveate.federated.embedding.grids import Grid, union_grid
from foveate.federated.embedding.networks import average_arrays, flat_weights, middle_arrays
from foveate.federated.embedding.options import (
    EXACT,
    FEDNE,
    LOCAL,
    EmbeddingOptions,
    first_surrogate_round,
    is_refreshed,
    participants,
    rate_of,
)
from foveate.federated.embedding.surrogates import ARCHITECTURES
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.rounds import InProcess, TooFewClientsError, Transport, sizes_of

Array = NDArray[Any]

MAP_MOST, FIELD_MOST, SURROGATE_MOST = 1e12, 10.0, 1e3
"""Largest numbers of boxes, of fields (honest ones reach 0.7, with the kernel "cauchy" 9.3; ten standard deviations of
noise come on top) and of surrogates' weights (honest ones are about 1): larger ones of a single client could make the
training of all others infinite."""


@dataclass
class Known:
    """What the server holds of a client's repulsion: a surrogate's vector or a field, its box, its R2, its round."""

    vector: Array
    box: Array
    r2: float
    round: int


@dataclass
class State:
    """All that the next round depends on, besides options and data.

    Attributes:
        round: the next one. encoder: the common weights. own: weights by client, method `local` only.
        known: by client. grid: of the fields in `known`. sizes: points by client, without any mixed ones.
        again: how often the run went on after it was stopped; each time a round's questions may have been asked again.
        history: one entry a finished round. notes: what a user should know, with how often it happened.
        data: digest of the clients' points, where they are in this process; "" over a network.
    """

    round: int
    encoder: Array
    sizes: dict[int, int]
    features: int
    own: dict[int, Array] = field(default_factory=dict)
    known: dict[int, Known] = field(default_factory=dict)
    grid: Grid | None = None
    again: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    data: str = ""

    def note(self, words: str) -> None:
        """Counts a note, and says it the first time."""
        if words not in self.notes:
            say(words)
        self.notes[words] = self.notes.get(words, 0) + 1


def begin(
    exchange: Transport, options: EmbeddingOptions, template: nn.Module | None = None, *, at_least: int = 1
) -> State:
    """Asks the clients how many points they have, and makes the start weights.

    Raises:
        TooFewClientsError: fewer than `at_least` clients say it, or have as many features as most.
        UserError: points of no width that most clients have; `fedne_exact` over a network; an encoder that cannot be
            averaged.
    """
    if options.method == EXACT and not isinstance(exchange, InProcess):
        raise UserError("method 'fedne_exact' sends every map position and exists for comparison in one process only")
    rule = MessageRule(at_client.POINTS, values={"points": int, "features": int})
    found = exchange.ask(_request(at_client.POINTS, 0, options), rule, at_least=at_least, check=_check_points)
    said = sizes_of(exchange, found.answers, at_least=at_least)
    sizes = said.points
    encoder = flat_weights(template if template is not None else build_encoder(options, said.features))
    state = State(0, encoder, sizes, said.features)
    for one, reason in {**found.excluded, **said.others}.items():
        state.note(f"{exchange.name(one)} is left out: {reason}")
    for one, words in odd_sizes(sizes).items():
        _odd(exchange, options, state, one, words)
        if options.suspects == "exclude":
            del state.sizes[one]
    if len(state.sizes) < at_least:
        raise TooFewClientsError(f"{len(state.sizes)} clients are not suspected; {at_least} are needed")
    for one, size in sizes.items():
        if size <= options.neighbors:
            fewer = f"{size - 1} neighbors instead of {options.neighbors}" if size > 1 else "no neighbor"
            state.note(f"{exchange.name(one)} has {size} points: {fewer}")
    if options.method == LOCAL:
        state.own = {one: encoder for one in sizes}
    return state


def _odd(exchange: Transport, options: EmbeddingOptions, state: State, client: int, words: str) -> None:
    """Notes that a client is odd, and where odd ones are excluded, that it is left out."""
    state.note(f"{exchange.name(client)} is odd: {words}" + "; left out" * (options.suspects == "exclude"))


def _check_points(client: int, answer: Message) -> None:
    if answer.number("points") < 1:
        raise MessageError("has no point")


def run_rounds(
    exchange: Transport,
    options: EmbeddingOptions,
    state: State,
    *,
    after: Callable[[State], None] = lambda state: None,
    at_least: int = 1,
) -> State:
    """Rounds until `options.rounds`; `after` is called when one is finished, with what the next one needs.

    Args:
        at_least: clients that must answer, else `TooFewClientsError`.
    """
    while state.round < options.rounds:
        started = time.monotonic()
        before = (exchange.log.bytes(up=True), exchange.log.bytes(up=False))
        entry = one_round(exchange, options, state, at_least=at_least)
        entry["seconds"] = round(time.monotonic() - started, 4)
        entry["bytes_up"] = exchange.log.bytes(up=True) - before[0]
        entry["bytes_down"] = exchange.log.bytes(up=False) - before[1]
        state.history.append(entry)
        state.round += 1
        after(state)
    return state


def one_round(exchange: Transport, options: EmbeddingOptions, state: State, *, at_least: int = 1) -> dict[str, Any]:
    """One round in place; returns its entry for the history."""
    start = first_surrogate_round(options.rounds, options.surrogate_start)
    active = options.feels_others and state.round >= start and len(state.sizes) > 1
    if active and is_refreshed(state.round, start=start, refresh=options.refresh):
        _ask_what_repels(exchange, options, state, at_least)
    rate = rate_of(
        state.round,
        rounds=options.rounds,
        base=options.learning_rate,
        shares=options.decay_at,
        factor=options.decay_factor,
    )
    drawn = stream(options.seed, round=state.round, client=-1, purpose="participation")
    clients = participants(sorted(state.sizes), options.participation, drawn)
    usable = _usable(exchange, options, state) if active else []
    requests = {one: _training(options, state, one, rate, usable) for one in clients}
    found = exchange.ask(requests, _training_rule(options, state), at_least=at_least).answers
    if options.method == LOCAL:
        state.own |= {one: answer.array("encoder") for one, answer in found.items()}
    else:
        weights = {one: answer.array("encoder") for one, answer in found.items()}
        for one in odd_weights(weights):
            far = f"its weights are {WEIGHTS_ALONE:g} times as far from others' as usual, or more"
            _odd(exchange, options, state, one, far)
            if options.suspects == "exclude":
                del weights[one]
        state.encoder = _common(options, state, weights)
    return _entry(state, rate, found, usable if active else None)


def _common(options: EmbeddingOptions, state: State, weights: Mapping[int, Array]) -> Array:
    """One encoder of those of the clients."""
    if options.aggregation == "mean":
        return average_arrays(list(weights.values()), [state.sizes[one] for one in weights])
    return middle_arrays(list(weights.values()), 0.5 if options.aggregation == "median" else options.trim)


def _request(
    kind: str, round_: int, options: EmbeddingOptions, arrays: Mapping[str, Array] | None = None, **values: float
) -> Message:
    return Message(kind, round_, dict(arrays or {}), {"options": options.model_dump_json(), **values})


def _ask_what_repels(exchange: Transport, options: EmbeddingOptions, state: State, at_least: int) -> None:
    """Surrogates, fields or (exact) positions of all clients, from the current common encoder."""
    encoder = {"encoder": state.encoder}
    grid: dict[str, Array] = {}
    d = options.dimensions
    trusted = sorted(state.sizes)

    def everyone(*asked: Any) -> dict[int, Message]:
        return dict.fromkeys(trusted, _request(*asked))

    if options.method == FEDNE and options.grid == "union":
        rule = MessageRule(at_client.BOX, {"box": _box_rule(d)})
        boxes_asked = everyone(at_client.BOX, state.round, options, encoder)
        asked = exchange.ask(boxes_asked, rule, at_least=at_least, check=_check_box)
        boxes = {one: answer.array("box") for one, answer in asked.answers.items()}
        for one in odd_boxes(boxes):
            _odd(exchange, options, state, one, f"its map reaches {BOX_FAR:g} times as far as usual, or more")
            if options.suspects == "exclude":  # the others do not feel it, and their grid does not stretch to it
                del boxes[one]
                trusted.remove(one)
                state.known.pop(one, None)
        common = union_grid(
            np.stack(list(boxes.values())), step=options.grid_step, fewest=options.grid_fewest, most=options.grid_most
        )
        grid = {"box": common.box_2d, "counts": np.array(common.shape)}
        if options.surrogate == "grid" and state.grid is not None:
            state.known = {}  # fields on another grid cannot be added to new ones
        state.grid = common
    if options.method == EXACT:
        rule = MessageRule(at_client.POSITIONS, {"positions": ArrayRule(options.precision, (None, d))})
        asked = exchange.ask(everyone(at_client.POSITIONS, state.round, options, encoder), rule, at_least=at_least)
        for one, answer in asked.answers.items():
            state.known[one] = Known(answer.array("positions"), np.zeros((2, d)), 1.0, state.round)
        return
    if options.surrogate == "grid":
        assert state.grid is not None
        most = FIELD_MOST * (1 + options.target_noise)
        values = ArrayRule(options.precision, (int(np.prod(state.grid.shape)),), low=-most, high=most)
        rule = MessageRule(at_client.FIELD, {"field": values}, {"r2": float})
        asked = exchange.ask(everyone(at_client.FIELD, state.round, options, encoder | grid), rule, at_least=at_least)
        for one, answer in asked.answers.items():
            box = state.grid.box_2d
            state.known[one] = Known(answer.array("field"), box, answer.number("r2"), state.round)
        return
    rule = MessageRule(
        at_client.SURROGATE,
        {
            "surrogate": ArrayRule(
                options.precision, (_surrogate_size(options),), low=-SURROGATE_MOST, high=SURROGATE_MOST
            ),
            "box": _box_rule(d, most=10 * MAP_MOST),  # around the map, with a margin
        },
        {"r2": float, "r2_held_out": float, "epochs": int, "queries": int},
        optional=frozenset({"r2_held_out"}),
    )
    surrogates_asked = everyone(at_client.SURROGATE, state.round, options, encoder | grid)
    asked = exchange.ask(surrogates_asked, rule, at_least=at_least, check=_check_box)
    for one, answer in asked.answers.items():
        state.known[one] = Known(answer.array("surrogate"), answer.array("box"), answer.number("r2"), state.round)


def _box_rule(dimensions: int, most: float = MAP_MOST) -> ArrayRule:
    return ArrayRule("float64", (2, dimensions), low=-most, high=most)


def _check_box(client: int, answer: Message) -> None:
    low, high = answer.array("box")
    if (low > high).any():
        raise MessageError("array 'box' has a lowest corner above the highest")


def _surrogate_size(options: EmbeddingOptions) -> int:
    widths = (ARCHITECTURES[options.surrogate].inputs(options.dimensions), *ARCHITECTURES[options.surrogate].hidden, 1)
    return sum((inputs + 1) * outputs for inputs, outputs in zip(widths, widths[1:], strict=False))


def _usable(exchange: Transport, options: EmbeddingOptions, state: State) -> list[int]:
    """Clients whose surrogate is there and fits well enough; the others are noted."""
    usable = []
    for one in sorted(state.sizes):
        known = state.known.get(one)
        if known is None:
            state.note(f"{exchange.name(one)} has sent no surrogate: the others do not feel it")
        elif known.r2 < options.least_r2:
            state.note(f"{exchange.name(one)}: its surrogate fits with R2 below {options.least_r2:g} and is left out")
        else:
            usable.append(one)
            if known.r2 < options.warn_r2:
                state.note(f"{exchange.name(one)}: its surrogate fits with R2 below {options.warn_r2:g}")
    return usable


def _training(options: EmbeddingOptions, state: State, client: int, rate: float, usable: Sequence[int]) -> Message:
    """The request to train; shares of the client itself and of those that it feels sum to 1."""
    arrays: dict[str, Array] = {"encoder": state.own.get(client, state.encoder)}
    others = [one for one in usable if one != client]
    total = state.sizes[client] + sum(state.sizes[one] for one in others)
    shares = np.array([state.sizes[one] / total for one in others], dtype=np.float64)
    own = 1.0
    if others:
        own = state.sizes[client] / total
        known = [state.known[one] for one in others]
        if options.method == EXACT:
            sizes = np.array([len(one.vector) for one in known], dtype=np.int64)
            arrays |= {"positions": np.concatenate([one.vector for one in known]), "sizes": sizes, "shares": shares}
        elif options.surrogate == "grid":
            assert state.grid is not None
            field_G = sum(share * one.vector.astype(np.float64) for share, one in zip(shares, known, strict=True))
            arrays["field"] = np.asarray(field_G).astype(options.precision)
            arrays |= {"box": state.grid.box_2d, "counts": np.array(state.grid.shape)}
        else:
            arrays |= {
                "surrogates": np.stack([one.vector for one in known]),
                "boxes": np.stack([one.box for one in known]),
                "shares": shares,
            }
    return _request(at_client.TRAIN, state.round, options, arrays, rate=rate, share=own)


def _training_rule(options: EmbeddingOptions, state: State) -> MessageRule:
    values = {"attraction": float, "repulsion": float, "foreign": float, "steps": int, "outside": int}
    values = {} if options.hides_training else values
    encoder = ArrayRule(options.precision, (len(state.encoder),))
    return MessageRule(at_client.TRAIN, {"encoder": encoder}, values, optional=frozenset({"foreign"}))


def _entry(state: State, rate: float, found: Mapping[int, Message], usable: Sequence[int] | None) -> dict[str, Any]:
    """What the history keeps of a round; losses are means over clients, weighted by their points.

    Losses, and how many points lie outside, are None where noise hides the training.
    """
    weights = np.array([state.sizes[one] for one in found], dtype=np.float64)

    def mean(name: str) -> float | None:
        values = [answer.values.get(name) for answer in found.values()]
        if any(value is None for value in values):
            return None
        return float(np.average(np.array(values, dtype=np.float64), weights=weights))

    told = [int(answer.number("outside")) for answer in found.values() if "outside" in answer.values]
    outside = sum(told) if told else None
    if outside:
        state.note("points lie outside the box of a surrogate; its value is clamped there")
    known = {str(one): round(state.known[one].r2, 6) for one in sorted(state.known)} if usable is not None else {}
    return {
        "round": state.round,
        "rate": rate,
        "clients": list(found),
        "attraction": mean("attraction"),
        "repulsion": mean("repulsion"),
        "foreign": mean("foreign"),
        "r2": known,
        "felt": None if usable is None else list(usable),
        "outside": outside,
    }
