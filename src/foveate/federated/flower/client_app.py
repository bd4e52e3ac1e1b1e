"""Flower's ClientApp of a site. Its node is started with `--node-config 'partition-id=0 data="/path/to/points.npz"'`.

The path stays at the site; so do the points. `min-count` and `most-clusters` are the site's own limits, see
`foveate.federated.clustering.limits`. Torch is not loaded for clustering: every task is a new process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context  # pyrefly: ignore[missing-import]
from flwr.app import Message as FlowerMessage  # pyrefly: ignore[missing-import]
from flwr.clientapp import ClientApp  # pyrefly: ignore[missing-import]

from foveate.federated.clustering.limits import Limits
from foveate.federated.clustering.protocol import HANDLERS
from foveate.federated.embedding.kinds import OVER_A_NETWORK, TRAIN
from foveate.federated.flower.exchange import HELLO
from foveate.federated.flower.translate import from_records, to_records
from foveate.federated.messages import Message
from foveate.federated.rounds import attempt
from foveate.federated.sites import Site
from foveate.federated.sources import read_points
from foveate.settings.errors import UserError

app = ClientApp()


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _points(context: Context) -> Any:
    """The site's points.

    Raises:
        UserError: the node was started without a path.
    """
    if "data" not in context.node_config:
        raise UserError("the node has no data: start it with --node-config 'partition-id=0 data=\"points.npz\"'")
    return read_points(Path(str(context.node_config["data"]))).points_ND


def answer(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Answers one question; a fault becomes a message that says so, not an error on which a round might hang."""
    request = from_records(message.content)
    try:
        Limits.of_node(context.node_config).check(request)
        found, reason = attempt(Site(_number(context), _points(context), HANDLERS), request)
    except UserError as problem:
        found, reason = None, str(problem)
    if found is None:
        found = request.answer(failure=reason)
    return FlowerMessage(to_records(found), reply_to=message)


def answer_map(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Answers one question of FedNE; only here is torch loaded."""
    from foveate.federated.embedding.network import answer_elsewhere

    request = from_records(message.content)
    handlers = dict.fromkeys(OVER_A_NETWORK, answer_elsewhere)
    try:
        points, least = _points(context), Limits.of_node(context.node_config).min_count
        if len(points) < least:
            raise UserError(f"{len(points)} points are fewer than this site's own min-count {least}: nothing is sent")
        found, reason = attempt(Site(_number(context), points, handlers), request)
    except UserError as problem:
        found, reason = None, str(problem)
    if found is None:
        found = request.answer(failure=reason)
    return FlowerMessage(to_records(found), reply_to=message)


def hello(message: FlowerMessage, context: Context) -> FlowerMessage:
    """Which site this is."""
    request: Message = from_records(message.content)
    name = str(context.node_config.get("name", ""))
    return FlowerMessage(to_records(request.answer(site=_number(context), name=name)), reply_to=message)


app.query(HELLO.removeprefix("query."))(hello)
for _kind in HANDLERS:
    app.query(_kind.removeprefix("query."))(answer)
for _kind in OVER_A_NETWORK:
    (app.train() if _kind == TRAIN else app.query(_kind.removeprefix("query.")))(answer_map)
