"""From the points of several clients to one encoder, in this process: DeepFeCA and its baselines, resumable by rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from foveate.core.errors import UserError
from foveate.federated.clients import Client, Handler
from foveate.federated.clustering.distances import nearest
from foveate.federated.clustering.protocol import unit_rows
from foveate.federated.deep.checkpoint import TrainingSnapshot, sent, together
from foveate.federated.deep.encoder import ENCODERS, Embedder, embedder, set_weights, weights_of
from foveate.federated.deep.options import LOCAL, POOLED, UNTRAINED, DeepOptions, image_shape
from foveate.federated.deep.protocol import Training, embedded, handlers
from foveate.federated.deep.rounds import Deep, run
from foveate.federated.rounds import InProcess, Log, Transport
from foveate.federated.store import digest, same_data
from foveate.metrics.neighbors import as_points
from foveate.vision.registry import seeded


@dataclass
class Fitted:
    """What a run left: the trained network, where training stands, and all that was exchanged."""

    options: DeepOptions
    features: int
    network: Embedder
    stand: TrainingSnapshot

    @property
    def centers(self) -> NDArray[np.float64]:
        """The common centers, [K, width], unit vectors."""
        assert self.stand.state.centers is not None
        return self.stand.state.centers

    def transform(self, points_ND: ArrayLike) -> NDArray[np.float64]:
        """Embeddings of length 1, [N, width]."""
        return unit_rows(embedded(self.network, self._samples(points_ND)))

    def outputs(self, points_ND: ArrayLike) -> NDArray[np.float64]:
        """The encoder's output before the head, [N, inner]; without an encoder the embeddings themselves."""
        if not self.options.reads_images:
            return self.transform(points_ND)
        return embedded(self.network, self._samples(points_ND), head=False)

    def predict(self, points_ND: ArrayLike) -> NDArray[np.int64]:
        """The nearest center of each point, [N]."""
        return nearest(self.transform(points_ND), self.centers)[0]

    def _samples(self, points_ND: ArrayLike) -> Tensor:
        points = as_points(points_ND)
        if points.shape[1] != self.features:
            raise UserError(f"points have {points.shape[1]} features; the encoder reads {self.features}")
        return samples_of(points, self.options).to(next(self.network.parameters()).device)


def samples_of(points_ND: NDArray[Any], options: DeepOptions) -> Tensor:
    """Rows as what the encoder reads: features [N, D], or images [N, C, H, W]; float32.

    Raises:
        UserError: rows that are no images of the given shape, or values beyond float32.
    """
    if not float(np.abs(points_ND).max(initial=0)) <= float(np.finfo(np.float32).max):
        raise UserError("points have NaN, infinite or huge values")
    rows = torch.from_numpy(np.ascontiguousarray(points_ND, dtype=np.float32))
    return rows.reshape(-1, *image_shape(options, points_ND.shape[1])) if options.reads_images else rows


def network_of(options: DeepOptions, features: int) -> Embedder:
    """The network of a run before training; its start weights belong to the seed.

    Raises:
        UserError: an encoder that cannot read rows of so many numbers.
    """
    sample = samples_of(np.zeros((1, features)), options)
    with seeded(options.seed):
        encoder = ENCODERS[options.encoder](*sample.shape[1:]) if options.reads_images else None
    return embedder(encoder, sample, seed=options.seed, hidden=options.hidden, width=options.width)


def training_of(options: DeepOptions) -> Training:
    """How a client trains."""
    return Training(
        epochs=options.local_epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        temperature=options.temperature,
        augment=options.augment,
    )


def answering(network: Embedder, options: DeepOptions) -> dict[str, Handler]:
    """The functions of every client of a run; they share the network, whose weights come with every question."""
    return handlers(network)


def fit_clients(
    points: Sequence[NDArray[Any]],
    options: DeepOptions,
    *,
    names: Sequence[str] = (),
    device: str = "cpu",
    stand: TrainingSnapshot | None = None,
    after: Callable[[TrainingSnapshot], None] = lambda stand: None,
    keep: Path | None = None,
    at_least: int = 1,
    respond: Callable[[Embedder, DeepOptions], dict[str, Handler]] = answering,
) -> Fitted:
    """Trains on the points of several clients, in this process.

    Args:
        points: [N, D] by client. names: of the clients.
        stand: where an earlier run was; it goes on from there, bit for bit on a CPU. after: called at each round's end.
        keep: folder of the running round's answers. at_least: clients that must answer.
        respond: makes the functions of a client; another one makes controls.

    Raises:
        UserError: no client, no point, points that do not fit, or a stand of other points.
        TooFewClientsError, TooFewGroupsError: as a clustering.
    """
    if not points:
        raise UserError("there is no client: give a list with the points of each")
    read = [as_points(one, what=f"points of client {number}") for number, one in enumerate(points)]
    if empty := [number for number, one in enumerate(read) if not len(one)]:
        raise UserError(f"client {empty[0]} has no point; leave it out")
    widths = {one.shape[1] for one in read}
    if len(widths) > 1:
        raise UserError(f"clients have different numbers of features: {', '.join(map(str, sorted(widths)))}")
    if options.method == POOLED:
        read, names = [np.concatenate(read)], ["all clients"]
    features = read[0].shape[1]
    network = network_of(options, features).to(device)
    found = respond(network, options)
    titles = list(names) or [""] * len(read)
    members = [
        Client(number, samples_of(one, options).to(device), found, name, about=str(network))
        for number, (one, name) in enumerate(zip(read, titles, strict=True))
    ]
    data = digest(*read)
    stand = TrainingSnapshot(Deep(weights_of(network), options.width), data=data) if stand is None else stand
    same_data(stand.data, data, stand.state.round)
    exchange = InProcess(members, keep=keep, log=Log())
    run_rounds(exchange, options, stand, after=after, at_least=at_least)
    set_weights(network, stand.state.weights)
    return Fitted(options, features, network.eval(), stand)


def run_rounds(
    exchange: Transport,
    options: DeepOptions,
    stand: TrainingSnapshot,
    *,
    after: Callable[[TrainingSnapshot], None] = lambda stand: None,
    at_least: int = 1,
) -> None:
    """The rounds that are not done yet, over any exchange; changes `stand`, with what was exchanged and the seconds.

    Args:
        after: called at each round's end. at_least: clients that must answer.

    Raises:
        TooFewClientsError, TooFewGroupsError: as a clustering.
    """
    earlier, before, started = stand.exchanged, stand.seconds, time.monotonic()

    def booked(state: Deep) -> None:
        stand.exchanged = [] if options.method == POOLED else together(earlier, exchange.log.table())
        stand.seconds = before + time.monotonic() - started

    def ended(state: Deep) -> None:
        booked(state)
        account = {f"bytes_{way}": sent(stand.exchanged, up=way == "up") for way in ("up", "down")}
        state.history[-1] |= account
        after(stand)
        exchange.forget(before=state.round)

    rounds = 0 if options.method == UNTRAINED else options.rounds
    plan, training, common = options.plan(), training_of(options), options.method != LOCAL
    run(exchange, plan, training, stand.state, rounds, at_least=at_least, common=common, after=ended)
    booked(stand.state)
