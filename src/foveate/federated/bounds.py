"""Bounds of the work that a server's request can ask of a client: more is refused before its data are read.

Every number of a request that decides how long a client computes, or how much memory it takes, has a bound here. All
are the client's own (`foveate.federated.policy`); honest runs of all jobs at their defaults stay within the defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, StrictInt

from foveate.core.recipes import Settings
from foveate.federated import reasons
from foveate.federated.messages import Message, MessageError
from foveate.federated.reasons import Refusal

if TYPE_CHECKING:
    from foveate.federated.deep.options import DeepOptions
    from foveate.federated.embedding.options import EmbeddingOptions

MAX_AXIS_POINTS, MAX_HIDDEN = 28, 1024
"""Largest grid per axis and widest layer that a client computes for a server, by default.

Finer grids and wider layers than the defaults of the jobs tell single rows apart; smaller ones make that harder and do
not rule it out, which is why both jobs must be named by the owner.
"""
MAX_MAP = 1e12
"""Largest coordinate of a map's box."""
MAX_QUERIES = 2000
"""Largest number of queries of a client's own grid, by default."""
_MIB = 1 << 20


class RequestBounds(Settings):
    """Largest values that a client accepts in a request."""

    max_request_mib: StrictInt = Field(256, ge=1, description="refuse requests larger than this many MiB")
    max_rounds: StrictInt = Field(1000, ge=1, description="refuse requests of runs with more rounds than this")
    max_clusters: StrictInt = Field(1000, ge=1, description="refuse requests for more than this many clusters")
    # The largest value that the options of the encoder job allow.
    max_n_init: StrictInt = Field(100, ge=1, description="refuse requests for more runs of the k-means than this")
    # The largest value that the options of a clustering allow.
    max_noise_steps: StrictInt = Field(
        100, ge=1, description="refuse requests for more steps of the k-means with noise than this"
    )
    # The exact sampler draws whole numbers of 64 bits, and the cost of more noise than this would round to nothing.
    max_noise: float = Field(
        1e9, gt=0, le=1e12, description="refuse requests for more noise than this, in units of the clip"
    )
    max_axis_points: StrictInt = Field(
        MAX_AXIS_POINTS, ge=2, description="refuse maps with a grid of more points per axis than this"
    )
    max_queries: StrictInt = Field(
        MAX_QUERIES, ge=16, description="refuse maps with more queries than this on a grid of the client's own"
    )
    max_surrogates: StrictInt = Field(
        100, ge=1, description="refuse to train a map against surrogates of more clients than this"
    )
    max_neighbors: StrictInt = Field(30, ge=1, description="refuse maps with more edges per point than this")
    max_negatives: StrictInt = Field(30, ge=1, description="refuse maps with more negative samples per edge than this")
    max_hidden: StrictInt = Field(MAX_HIDDEN, ge=1, description="refuse networks with a layer wider than this")
    max_layers: StrictInt = Field(8, ge=1, description="refuse networks with more hidden layers than this")
    max_local_epochs: StrictInt = Field(20, ge=1, description="refuse trainings of more epochs per round than this")
    max_batch: StrictInt = Field(1024, ge=2, description="refuse trainings with more points per step than this")
    max_steps: StrictInt = Field(
        100_000, ge=1, description="refuse trainings that take more steps per round than this with the client's points"
    )

    def check_message(self, request: Message) -> None:
        """Raise Refusal for a request of too many bytes, or of a round that no run within the bounds has."""
        self._check("max_request_mib", -(-request.size // _MIB), "{} MiB")
        if request.round < 0:
            raise MessageError(f"message '{request.kind}' has round {request.round}; rounds are counted from 0")
        # An array of a trillion empty rows has no byte, and a list of these rows would fill any memory.
        if empty := [name for name, array in request.arrays.items() if not array.size]:
            raise MessageError(f"array '{empty[0]}' of message '{request.kind}' has no value")
        self._check("max_rounds", request.round, "round {}")

    def check_clustering(self, request: Message) -> None:
        """Raise Refusal for a request of a clustering that asks for more repeats than the bounds."""
        if "n_init" in request.values:
            self._check("max_n_init", read_count(request, "n_init", least=1), "{} runs of k-means")
        if "noise_steps" in request.values:
            self._check("max_noise_steps", read_count(request, "noise_steps", least=1), "{} steps with noise")
        if "noise" in request.values:
            self._check_noise(request.number("noise"))

    def check_map(self, request: Message, options: EmbeddingOptions) -> None:
        """Raise Refusal for a request of a map with a finer grid, a larger network or more work than the bounds.

        Args:
            request: with the arrays that decide the size of a grid. options: those that it carries.
        """
        # Only `fedne_exact` sends positions, and no client sends its own: a server that has some departs from the
        # protocol, and a sum over any number of them could keep the client busy for hours.
        if foreign := {"positions", "sizes"} & set(request.arrays):
            raise MessageError(f"brings '{min(foreign)}', which is not exchanged over a network")
        counts = request.arrays.get("counts")
        # A grid has the product of all counts, so their number needs a bound as much as each of them.
        if counts is not None and counts.shape != (options.dimensions,):
            raise Refusal(
                reasons.GRID,
                f"asks for a grid of {counts.size} axes; its map has {options.dimensions} dimensions",
                count=self.max_axis_points,
            )
        sizes = (options.min_axis_points, options.max_axis_points, *(() if counts is None else counts))
        # Written with `not`, so that NaN is refused, too.
        if any(not size <= self.max_axis_points for size in sizes):
            raise Refusal(
                reasons.GRID,
                f"asks for a grid of more than {self.max_axis_points} points per axis",
                count=self.max_axis_points,
            )
        if "box" in request.arrays:
            box = request.array("box")
            # What a client adds noise to must be a number wherever its points are.
            if box.shape != (2, options.dimensions) or not (np.abs(box) <= MAX_MAP).all():
                raise MessageError(f"array 'box' must be [2, {options.dimensions}] numbers of at most {MAX_MAP:g}")
        if options.max_points > self.max_queries:
            raise Refusal(
                reasons.GRID,
                f"asks for {options.max_points} queries; at most {self.max_queries} are allowed",
                count=self.max_queries,
            )
        # The number of its points follows the width of the map, which the server's weights decide.
        if options.grid == "official":
            raise Refusal(reasons.GRID, "asks for the public code's grid, which has no bound", count=self.max_queries)
        if "surrogates" in request.arrays:
            clients = len(np.atleast_1d(request.array("surrogates")))
            self._check("max_surrogates", clients, "{} surrogates")
            for name, shape in {"shares": (clients,), "boxes": (clients, 2, options.dimensions)}.items():
                if name in request.arrays and request.array(name).shape != shape:
                    raise MessageError(f"array '{name}' must have shape {list(shape)}, one entry per surrogate")
        for noise in (options.update_noise, options.target_noise):
            if noise:
                self._check_noise(noise)
        self._check_network(*options.hidden)
        self._check("max_neighbors", options.neighbors, "{} neighbors")
        # "all" is the exact mean, which has a bound of points of its own (`training.MAX_EXACT_POINTS`).
        if options.negatives != "all":
            self._check("max_negatives", options.negatives, "{} negative samples per edge")
        self._check_training(options.rounds, options.local_epochs, options.batch_points)

    def check_features(self, options: DeepOptions) -> None:
        """Raise Refusal for the options of an encoder with a larger network or more work than the bounds."""
        self._check_network(options.hidden, options.width)
        if options.n_init is not None:
            self._check("max_n_init", options.n_init, "{} runs of k-means")
        self._check_training(options.rounds, options.local_epochs, options.batch_size)

    def check_steps(self, points: int, epochs: int, batch: int) -> None:
        """Raise Refusal if a training of so many epochs over this client's points takes too many steps."""
        self._check("max_steps", epochs * -(-points // batch), "{} steps of training")

    def _check_network(self, *widths: int) -> None:
        self._check("max_layers", len(widths), "{} hidden layers")
        if any(width > self.max_hidden for width in widths):
            raise Refusal(
                reasons.HIDDEN,
                f"asks for layers of {', '.join(map(str, widths))}; at most {self.max_hidden} is allowed",
                count=self.max_hidden,
            )

    def _check_training(self, rounds: int, epochs: int, batch: int) -> None:
        self._check("max_rounds", rounds, "{} rounds")
        self._check("max_local_epochs", epochs, "{} epochs per round")
        self._check("max_batch", batch, "{} points per step")

    def _check_noise(self, noise: float) -> None:
        # Written with `not`, so that NaN is refused, too.
        if not noise > 0:
            raise MessageError(f"asks for noise of {noise:g}; expected a number above 0")
        if not noise <= self.max_noise:
            text = f"asks for noise of {noise:.3g}; this client's own max-noise is {self.max_noise:g}"
            raise Refusal("max-noise", text, count=int(self.max_noise))

    def _check(self, field: str, value: int, request: str) -> None:
        """Raise Refusal for a value above a bound; its code is the name of the bound."""
        bound, code = getattr(self, field), field.replace("_", "-")
        if value > bound:
            text = f"asks for {request.format(f'{value:,}')}; this client's own {code} is {bound:,}"
            raise Refusal(code, text, count=bound)


def read_count(request: Message, name: str, *, least: int = 0) -> int:
    """Read a whole number of a request.

    Raises:
        MessageError: there is none, or it is smaller than `least`.
    """
    value = request.number(name)
    # NaN and infinity are no whole numbers, and `int` would raise errors that nobody expects.
    if value != value or value in (float("inf"), float("-inf")) or value != int(value) or value < least:
        raise MessageError(f"value '{name}' must be a whole number from {least} (got {value})")
    return int(value)
