"""Three small clients of a map, and options that are done in a moment."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from foveate.federated.deep.encoder import Embedder
from foveate.federated.deep.job import DeepJob, DeepState, Rounds
from foveate.federated.deep.options import DeepOptions
from foveate.federated.embedding.client import answer_remote
from foveate.federated.embedding.job import EmbeddingFit, MapJob, fit_clients
from foveate.federated.embedding.options import REMOTE_KINDS, EmbeddingOptions
from foveate.federated.embedding.state import MapState
from foveate.federated.job import run_rounds
from foveate.federated.limits import ClientLimits
from foveate.federated.rounds import Client, InProcess, Log, Transport

RANDOM = np.random.default_rng(0)


CLIENTS = [RANDOM.normal(size=(size, 6)) + 3 * number for number, size in enumerate((40, 25, 60))]


SMALL: dict[str, Any] = {"rounds": 4, "hidden": (16,), "surrogate_start": 0.25, "batch_points": 16}


def options(**changes: Any) -> EmbeddingOptions:
    return EmbeddingOptions(**(SMALL | changes))


def train(transport: Transport, options: EmbeddingOptions) -> MapState:
    """A whole training of a map over a transport."""
    job = MapJob(options)
    return run_rounds(job, transport, job.begin(transport))


def train_deep(transport: Transport, rounds: Rounds, network: Embedder, num_rounds: int) -> DeepState:
    """Rounds of DeepFeCA over a transport, from a network's weights; answers of finished rounds stay stored."""
    options = DeepOptions(clusters=rounds.clustering.clusters, rounds=num_rounds, width=8)
    job = DeepJob(options, network=network)
    job.rounds = rounds
    return run_rounds(job, transport, job.begin(transport), forget=False)


def fit_remote(parts: list[np.ndarray], options: EmbeddingOptions) -> EmbeddingFit:
    """A training in this process by clients that answer as over a network, without noise."""
    answer = partial(answer_remote, limits=ClientLimits(min_count=1, noise_multiplier=0.0))
    handlers = dict.fromkeys(REMOTE_KINDS, answer)

    def make_transport(members: Any, log: Log) -> InProcess:
        return InProcess([Client(member.number, parts[member.number], handlers) for member in members], log=log)

    return fit_clients(parts, options, make_transport=make_transport)
