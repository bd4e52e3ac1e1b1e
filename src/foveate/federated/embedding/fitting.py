"""From the points of several clients to encoders, in this process: FedNE and its baselines, resumable after any round."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from foveate.core.errors import UserError
from foveate.federated.clients import Client
from foveate.federated.embedding.client import ClientData, build_encoder, client_of
from foveate.federated.embedding.networks import frozen_rows, load_flat
from foveate.federated.embedding.options import LOCAL, POOLED, EmbeddingOptions
from foveate.federated.embedding.server import State, begin, run_rounds
from foveate.federated.rounds import InProcess, Log, Transport
from foveate.federated.store import digest, same_data
from foveate.metrics.neighbors import as_points

Points = NDArray[np.floating]


@dataclass
class Fitted:
    """What a run left.

    Attributes:
        encoder: the common one; with the method `local` the first client's. own: encoders by client, `local` only.
        state: weights, history, notes. log: all messages.
    """

    options: EmbeddingOptions
    encoder: nn.Module
    own: dict[int, nn.Module]
    state: State
    log: Log

    def transform(self, points_ND: ArrayLike, *, client: int | None = None) -> Points:
        """Map positions [N, d] of any points, by the common encoder or, with `local`, that of a client."""
        network = self.own.get(client, self.encoder) if client is not None else self.encoder
        first = next(network.parameters())
        points = as_points(points_ND)
        if points.shape[1] != self.state.features:
            raise UserError(f"points have {points.shape[1]} features; the encoder reads {self.state.features}")
        rows = torch.from_numpy(points).to(first)
        return frozen_rows(network, rows).cpu().numpy()


def client_points(clients: Sequence[ArrayLike], precision: str) -> list[Points]:
    """The points of every client as matrices of one width.

    Raises:
        UserError: no client, an empty one, NaN, or different widths; names the client.
    """
    if not len(clients):
        raise UserError("there is no client: give a list with the points of each")
    found = [as_points(one, what=f"points of client {number}") for number, one in enumerate(clients)]
    for number, one in enumerate(found):
        if not len(one):
            raise UserError(f"client {number} has no point; leave it out")
        if one.shape[1] != found[0].shape[1]:
            raise UserError(f"client {number} has {one.shape[1]} features, client 0 has {found[0].shape[1]}")
    return [one.astype(precision) for one in found]


def in_process(members: Sequence[Client], log: Log) -> Transport:
    """The plain loop over clients."""
    return InProcess(members, log=log)


def fit_clients(
    clients: Sequence[ArrayLike],
    options: EmbeddingOptions,
    *,
    names: Sequence[str] = (),
    template: nn.Module | None = None,
    device: str = "cpu",
    state: State | None = None,
    after: Callable[[State], None] = lambda state: None,
    log: Log | None = None,
    transport: Callable[[Sequence[Client], Log], Transport] = in_process,
) -> Fitted:
    """Trains on the points of several clients, in this process.

    Args:
        names: of the clients. template: an encoder that takes the perceptron's place; it is copied.
        state: where an earlier run was; it goes on from there, bit for bit on a CPU. after: called at each round's end.
        transport: makes the exchange of clients; the plain loop by default.
        log: takes the messages; with `local` and `global`, which exchange none, it stays empty.

    Raises:
        UserError: for points that do not fit, a state of other points, or an encoder that cannot be averaged.
    """
    points = client_points(clients, options.precision)
    if options.method == POOLED:
        points, names = [np.concatenate(points)], ["all clients"]
    named = list(names) or [f"client {number}" for number in range(len(points))]
    members = [
        client_of(number, ClientData(one, template, device), name)
        for number, (one, name) in enumerate(zip(points, named, strict=True))
    ]
    log = Log() if log is None else log
    unexchanged = options.method in (POOLED, LOCAL)
    exchange = transport(members, Log() if unexchanged else log)
    shape = "" if template is None else str(template)
    data = digest(*points, shape, *([] if template is None else template.state_dict().values()))
    if state is None:
        state = begin(exchange, options, template)
        state.data = data
    same_data(state.data, data, state.round)
    run_rounds(exchange, options, state, after=_silenced(after) if unexchanged else after)
    own = {one: encoder_of(state, options, weights, template, device) for one, weights in state.own.items()}
    shared = own[min(own)] if own else encoder_of(state, options, state.encoder, template, device)
    return Fitted(options, shared, own, state, log)


def _silenced(after: Callable[[State], None]) -> Callable[[State], None]:
    """For methods without an exchange: their histories count no bytes."""

    def told(state: State) -> None:
        state.history[-1] |= {"bytes_up": 0, "bytes_down": 0}
        after(state)

    return told


def encoder_of(
    state: State, options: EmbeddingOptions, weights_P: NDArray[Any], template: nn.Module | None, device: str
) -> nn.Module:
    """An encoder with these weights, in eval mode."""
    network = copy.deepcopy(template) if template is not None else build_encoder(options, state.features)
    load_flat(network, weights_P)
    return network.to(device).eval()
