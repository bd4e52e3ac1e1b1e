"""Flower's ClientApp of a client. Its node is started with `--node-config 'partition-id=0 data="/path/to/points.npz"'`.

The path stays at the client, and so do the points. `min-count` and `max-clusters` are the client's own limits, see
`foveate.federated.clustering.limits`. Torch is not loaded for clustering: every task is a new process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context  # pyrefly: ignore[missing-import]
from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]
from flwr.clientapp import ClientApp  # pyrefly: ignore[missing-import]

from foveate.core.errors import UserError
from foveate.federated.clients import Client
from foveate.federated.clustering.limits import Limits
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.deep.message_kinds import REMOTE_KINDS as FEATURES_KINDS
from foveate.federated.embedding.message_kinds import REMOTE_KINDS as MAP_KINDS
from foveate.federated.embedding.message_kinds import TRAIN
from foveate.federated.flower.translate import from_records, to_records
from foveate.federated.flower.transport import HELLO
from foveate.federated.messages import Message
from foveate.federated.rounds import attempt
from foveate.federated.sources import read_points

app = ClientApp()


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _points(context: Context) -> Any:
    """The client's points.

    Raises:
        UserError: the node was started without a path.
    """
    if "data" not in context.node_config:
        raise UserError("the node has no data; start it with --node-config 'partition-id=0 data=\"points.npz\"'")
    # Read anew for each request: every task is a process of its own, and keeps nothing.
    return read_points(Path(str(context.node_config["data"]))).points_ND


def _reply(message: FlowerMessage, ask: Callable[[Message], tuple[Message | None, str]]) -> FlowerMessage:
    """Reply with the answer of `ask`; a fault becomes a message, not an error on which a round might hang."""
    request = from_records(message.content)
    try:
        answer, reason = ask(request)
    except UserError as problem:
        answer, reason = None, str(problem)
    if answer is None:
        answer = request.answer(failure=reason)
    return FlowerMessage(to_records(answer), reply_to=message)


def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Answer a request of a clustering."""

    def ask(request: Message) -> tuple[Message | None, str]:
        # Before the data are read: a refused request costs the client nothing.
        Limits.of_node(context.node_config).check(request)
        return attempt(Client(_number(context), _points(context), HANDLERS), request)

    return _reply(message, ask)


def answer_map(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Answer a request of FedNE; torch is loaded only here and for DeepFeCA."""
    from foveate.federated.embedding.client import answer_remote

    def ask(request: Message) -> tuple[Message | None, str]:
        points, min_count = _points(context), Limits.of_node(context.node_config).min_count
        # A map has no clusters to merge: this client's own limit holds for its points as a whole.
        if len(points) < min_count:
            raise UserError(
                f"{len(points)} points are fewer than this client's own min-count {min_count}: nothing is sent"
            )
        return attempt(Client(_number(context), points, dict.fromkeys(MAP_KINDS, answer_remote)), request)

    return _reply(message, ask)


def answer_features(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Answer a request of DeepFeCA."""
    from foveate.federated.deep.remote import answer_remote

    def ask(request: Message) -> tuple[Message | None, str]:
        handler = partial(answer_remote, limits=Limits.of_node(context.node_config))
        return attempt(Client(_number(context), _points(context), dict.fromkeys(FEATURES_KINDS, handler)), request)

    return _reply(message, ask)


def hello(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Say which client this is: node numbers of Flower are random."""
    request: Message = from_records(message.content)
    name = str(context.node_config.get("name", ""))
    return FlowerMessage(to_records(request.answer(client=_number(context), name=name)), reply_to=message)


# Flower routes by these names; each is registered, and whatever is not cannot be asked.
app.query(HELLO.removeprefix("query."))(hello)
for _kind in HANDLERS:
    app.query(_kind.removeprefix("query."))(answer)
for _kind in MAP_KINDS:
    (app.train() if _kind == TRAIN else app.query(_kind.removeprefix("query.")))(answer_map)
for _kind in FEATURES_KINDS:
    _name = _kind.partition(".")[2]
    (app.train(_name) if _kind.startswith("train.") else app.query(_name))(answer_features)
