"""Check requests of DeepFeCA over a network, where a client does not trust its server.

| kind | down | up |
|---|---|---|
| `query.size` | | number of points and of features |
| `query.embed`, `train.prototypes` | as in one process, and `options` | as in one process |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.federated.deep.encoder import build_network, prepare_samples
from foveate.federated.deep.job import DeepJob
from foveate.federated.deep.options import EMBEDDED, REMOTE_KINDS, SIZE, DeepOptions, request_options
from foveate.federated.deep.protocol import embedded_request, handlers, train_request
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.scaling import take_scale
from foveate.metrics.neighbors import as_points


def answer_remote(
    points_ND: NDArray[np.floating], request: Message, client: int, limits: ClientLimits | None = None
) -> Message:
    """Answer a server elsewhere, with a network built from the options that come with the request.

    Args:
        points_ND: the client's data.
        limits: the client's own.

    Raises:
        MessageError: a kind that is not answered over a network, options or arrays that do not fit one another, or more
            than the client's own limits allow.
        UserError: data that are not points, hold NaN, or are fewer than the client's own `min_count`.
    """
    if request.kind not in REMOTE_KINDS:
        raise MessageError(f"'{request.kind}' is not answered over a network")
    client_limits = limits or ClientLimits()
    points = as_points(points_ND, what="the data")
    # Check this before any answer, sizes included: with fewer points than its own limit a client sends nothing at all.
    client_limits.need_points(len(points))
    points, request = take_scale(points, request)
    # A request for sizes needs no options and no network.
    if request.kind == SIZE:
        return request.answer(points=len(points), features=points.shape[1])
    # The server is not trusted: options are parsed within their bounds before anything is computed from the request.
    options = request_options(request)
    client_limits.allow(options.min_count, options.clusters)
    checked = _rebuild(request, options, client)
    # Before the network is built: a request must not make a client reserve any amount of memory.
    _check_size(len(checked.array("weights")), options, points.shape[1])
    network = build_network(options, points.shape[1])
    return handlers(network)[request.kind](prepare_samples(points, options), checked, client)


def _rebuild(request: Message, options: DeepOptions, client: int) -> Message:
    """Build the request anew from its options, so that the options' bounds hold for everything that it asks.

    Raises:
        MessageError: the request differs from the one that its options produce.
    """
    weights = request.array("weights")
    rules = {"weights": ArrayRule("float32", (None,))}
    rounds = DeepJob(options).rounds
    if request.kind == EMBEDDED:
        rebuilt = embedded_request(weights, rounds.clustering, client, request.round)
    else:
        centers = request.array("centers")
        rules["centers"] = ArrayRule("float64", (None, options.width))
        rebuilt = train_request(weights, centers, rounds.training, options.seed, request.round)
        if not 1 <= len(centers) <= options.clusters:
            raise MessageError(f"has {len(centers)} centers; its options allow 1 to {options.clusters}")
    values = {**rebuilt.values, "options": request.values["options"]}
    # Types first: a comparison of values below would take True for 1.
    MessageRule(request.kind, rules, {name: type(value) for name, value in values.items()}).check(request)
    for name, value in values.items():
        # Equal to what the options imply, or refused: no value can ask for more than the options admit.
        if request.values[name] != value:
            raise MessageError(f"asks with {name} {request.values[name]}; its options say {value}")
    return rebuilt


def _check_size(num_weights: int, options: DeepOptions, features: int) -> None:
    """Raise MessageError if a network of these options has more weights than the request.

    A lower bound is enough: it can be computed without building a network whose size the server's options decide.
    """
    # Weights of the head, without its first layer's weights on the encoder's output, whose width is not known yet.
    head = options.hidden + options.width * (options.hidden + 1)
    min_weights = head if options.reads_images else head + options.hidden * features
    if num_weights < min_weights:
        raise MessageError(
            f"array 'weights' has {num_weights:,} values; a network of its options has at least {min_weights:,}"
        )
