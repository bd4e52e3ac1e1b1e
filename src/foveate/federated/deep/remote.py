"""DeepFeCA over any exchange: what a server that sees no points runs and writes, and what a client answers.

| kind | down | up |
|---|---|---|
| `query.size` | | the numbers of points and of features |
| `query.embedded`, `train.prototypes` | as in one process, and `options` | as in one process |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, write_json_atomically
from foveate.federated.clustering.limits import Limits
from foveate.federated.deep.checkpoint import TrainingSnapshot, load_stand, save_stand, sent
from foveate.federated.deep.encoder import set_weights, weights_of
from foveate.federated.deep.fitting import Fitted, network_of, run_rounds, samples_of, training_of
from foveate.federated.deep.folder import save_model
from foveate.federated.deep.message_kinds import EMBEDDED, REMOTE_KINDS, RESULT, SIZE
from foveate.federated.deep.options import METHODS, POOLED, DeepOptions, options_of
from foveate.federated.deep.protocol import embedded_request, handlers, train_request
from foveate.federated.deep.rounds import Deep
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.rounds import Check, Requests, Round, Transport, sizes_of
from foveate.federated.store import same_data
from foveate.metrics.neighbors import as_points

MOST_FEATURES = 1 << 20
"""Of a point: a server makes a network for as many as clients say."""
LONGEST_OPTIONS = 10_000
SIZE_RULE = MessageRule(SIZE, values={"points": int, "features": int})


def answer_elsewhere(
    points_ND: NDArray[np.floating], request: Message, client: int, limits: Limits | None = None
) -> Message:
    """A client's answer to a server elsewhere. The network is made of the options that come with the question.

    Args:
        points_ND: the client's data. limits: the client's own.

    Raises:
        MessageError: a kind that no client answers over a network, options or arrays that do not fit one another, or
            more than the client's own limits allow.
        UserError: data that are no points, hold NaN, or are fewer than the client's own `min_count`.
    """
    if request.kind not in REMOTE_KINDS:
        raise MessageError(f"'{request.kind}' is not answered over a network")
    own = limits or Limits()
    points = as_points(points_ND, what="the data")
    if len(points) < own.min_count:
        raise UserError(
            f"{len(points)} points are fewer than this client's own min-count {own.min_count}: nothing is sent"
        )
    if request.kind == SIZE:
        return request.answer(points=len(points), features=points.shape[1])
    options = options_in(request)
    own.allow(options.min_count, options.clusters)
    checked = _as_options_say(request, options, client)
    _check_size(len(checked.array("weights")), options, points.shape[1])
    network = network_of(options, points.shape[1])
    return handlers(network)[request.kind](samples_of(points, options), checked, client)


def options_in(request: Message) -> DeepOptions:
    """The options that a question carries, within their bounds.

    Raises:
        MessageError: it carries none that can be read. UserError: unknown fields, values out of bounds.
    """
    words = request.values.get("options")
    if not isinstance(words, str) or len(words) > LONGEST_OPTIONS:
        raise MessageError(f"message '{request.kind}' has no 'options' of at most {LONGEST_OPTIONS:,} letters")
    try:
        content = json.loads(words)
    except (ValueError, RecursionError):
        raise MessageError("field 'options' is no JSON") from None
    if not isinstance(content, dict):
        raise MessageError("field 'options' is no mapping of names to values")
    options = options_of(content, where="the question's options")
    if options.method == POOLED:
        raise MessageError(f"method '{POOLED}' pools raw points; no client sends them")
    return options


def _as_options_say(request: Message, options: DeepOptions, client: int) -> Message:
    """The question as its options make it: so their bounds hold for all that it asks.

    Raises:
        MessageError: it says anything else.
    """
    weights = request.array("weights")
    rules = {"weights": ArrayRule("float32", (None,))}
    if request.kind == EMBEDDED:
        made = embedded_request(weights, options.plan(), client, request.round)
    else:
        centers = request.array("centers")
        rules["centers"] = ArrayRule("float64", (None, options.width))
        made = train_request(weights, centers, training_of(options), options.seed, request.round)
        if not 1 <= len(centers) <= options.clusters:
            raise MessageError(f"has {len(centers)} centers; its options allow 1 to {options.clusters}")
    values = {**made.values, "options": request.values["options"]}
    MessageRule(request.kind, rules, {name: type(value) for name, value in values.items()}).check(request)
    for name, value in values.items():
        if request.values[name] != value:
            raise MessageError(f"asks with {name} {request.values[name]}; its options say {value}")
    return made


def _check_size(numbers: int, options: DeepOptions, features: int) -> None:
    """Returns where a network of these options may have so many numbers; asked before memory is taken for it.

    Raises:
        MessageError: it has more.
    """
    head = options.hidden + options.width * (options.hidden + 1)
    least = head if options.reads_images else head + options.hidden * features
    if numbers < least:
        raise MessageError(f"array 'weights' has {numbers:,} numbers; a network of its options has at least {least:,}")


class Told:
    """An exchange whose questions carry the options, and go to some clients only."""

    def __init__(self, exchange: Transport, options: DeepOptions, clients: Sequence[int]) -> None:
        self._exchange, self._options = exchange, options
        self.clients, self.log = clients, exchange.log

    def name(self, client: int) -> str:
        """As of the exchange."""
        return self._exchange.name(client)

    def ask(self, requests: Requests, rule: MessageRule, *, at_least: int = 1, check: Check | None = None) -> Round:
        """As `Transport.ask`."""
        asked = dict.fromkeys(self.clients, requests) if isinstance(requests, Message) else requests
        words = self._options.model_dump_json()
        told = {client: replace(one, values={**one.values, "options": words}) for client, one in asked.items()}
        return self._exchange.ask(told, rule, at_least=at_least, check=check)

    def forget(self, *, before: int | None = None) -> None:
        """As of the exchange."""
        self._exchange.forget(before=before)


def _check_answer(client: int, answer: Message) -> None:
    if answer.number("points") < 1:
        raise MessageError("has no point")
    if not 1 <= answer.number("features") <= MOST_FEATURES:
        raise MessageError(f"has {answer.number('features'):g} features; allowed are 1 to {MOST_FEATURES:,}")


def run_server(exchange: Transport, options: DeepOptions, out: Path, *, at_least: int = 1) -> dict[str, Any]:
    """Rounds over an exchange, the state in `states` after each, then `model` and result.json; goes on after a kill.

    A finished run leaves no state and no answers: whether the clients' data are the same at the next call cannot be known
    here.

    Raises:
        UserError: for a method without an exchange, clients of different data, or a folder with another run.
        TooFewClientsError, TooFewGroupsError: as a clustering.
    """
    if options.method == POOLED:
        raise UserError(f"method '{POOLED}' cannot run over a network: {METHODS[POOLED]}")
    with FolderLock(out, purpose="federated features over a network"):
        kept = out / "states" / f"{options.method}.safetensors"
        stand = load_stand(kept, options)
        found = exchange.ask(Message(SIZE), SIZE_RULE, at_least=at_least, check=_check_answer)
        sizes = sizes_of(exchange, found.answers, at_least=at_least)
        network = network_of(options, sizes.features)
        start = weights_of(network)
        stand = TrainingSnapshot(Deep(start, options.width)) if stand is None else stand
        same_data(stand.data, "", stand.state.round)
        if len(stand.state.weights) != len(start):
            raise UserError(f"{kept}: was begun with other features than {sizes.features}; give another place")
        stand.state.excluded |= {**found.excluded, **sizes.others}
        told = Told(exchange, options, sorted(sizes.points))
        run_rounds(told, options, stand, after=lambda now: save_stand(now, options, kept), at_least=at_least)
        set_weights(network, stand.state.weights)
        fitted = Fitted(options, sizes.features, network.eval(), stand)
        save_model(fitted, out / "model", clients=len(sizes.points))
        result = _result(exchange, fitted, sizes.points)
        write_json_atomically(out / "result.json", result)
        kept.unlink(missing_ok=True)
        exchange.forget()
    return result


def _result(exchange: Transport, fitted: Fitted, points: Mapping[int, int]) -> dict[str, Any]:
    """The run's result without groups, measures and a map: the server has no points to look at."""
    options, stand, state = fitted.options, fitted.stand, fitted.stand.state
    rows = [
        {
            "name": exchange.name(client),
            "points": count,
            "rounds": sum(client in entry["clients"] for entry in state.history),
            "excluded": state.excluded.get(client, ""),
        }
        for client, count in points.items()
    ]
    notes = [f"{exchange.name(client)} was left out: {reason}" for client, reason in state.excluded.items()]
    notes += [f"{exchange.name(client)} is odd: {reason}" for client, reason in state.odd().items()]
    trained = {
        "method": options.method,
        "what": METHODS[options.method],
        "federated": True,
        "rounds": state.round,
        "quality": {},
        "bytes_up": sent(stand.exchanged, up=True),
        "bytes_down": sent(stand.exchanged, up=False),
        "seconds": round(stand.seconds, 3),
    }
    return {
        "kind": RESULT,
        "method": options.method,
        "what": METHODS[options.method],
        "clustering": options.plan().title,
        "encoder": options.encoder,
        "clusters": len(fitted.centers),
        "features": fitted.features,
        "width": options.width,
        "split": "a client each",
        "points": sum(points.values()),
        "clients": rows,
        "methods": [trained],
        "exchanged": stand.exchanged,
        "history": state.history,
        "notes": notes,
        "map": {"places": [], "owners": [], "groups": [], "labels": None, "centers": []},
        "options": options.model_dump(mode="json"),
    }
