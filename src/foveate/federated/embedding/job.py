"""FedNE as a training job: shares, boxes, surrogates, training, averaging, round after round.

Source: FedNE (NeurIPS 2024, arXiv 2409.11509); deviations are listed in docs/methods/fedne.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from foveate.core.errors import UserError
from foveate.federated.anomaly import (
    BOX_FAR,
    EXCLUDE,
    WEIGHTS_ALONE,
    find_far_boxes,
    find_odd_sizes,
    find_odd_weights,
    note_suspect,
    warn_of_suspects,
)
from foveate.federated.bounds import MAX_MAP
from foveate.federated.embedding import client as at_client
from foveate.federated.embedding.client import ClientData, build_encoder, make_client
from foveate.federated.embedding.grids import CoordinateGrid, union_grid
from foveate.federated.embedding.networks import (
    average_arrays,
    encoder_config,
    flatten_weights,
    frozen_rows,
    load_flat,
    save_encoder,
    trimmed_mean,
)
from foveate.federated.embedding.options import (
    EXACT,
    FEDNE,
    GRADIENTS,
    LOCAL,
    METHODS,
    POOLED,
    TRAIN_SUMS,
    EmbeddingOptions,
    draw_participants,
    first_surrogate_round,
    is_refreshed,
    learning_rate_of,
)
from foveate.federated.embedding.quality import measure_method
from foveate.federated.embedding.state import OWN_NOISE, MapState, Repulsion
from foveate.federated.embedding.surrogates import ARCHITECTURES
from foveate.federated.job import TrainingJob, fit_in_process
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.results import EmbedClient, EmbedMap, EmbedResult
from foveate.federated.rounds import Client, InProcess, Log, TooFewClientsError, Transport, compare_sizes, stream
from foveate.federated.secure_sums import SumRound, describe_sums, refuse_individual
from foveate.federated.store import digest

Array = NDArray[Any]


MAX_FIELD, MAX_SURROGATE = 10.0, 1e3
"""Largest values of fields and surrogates' weights. Honest fields reach 0.7 (9.3 with the kernel "cauchy", and
ten standard deviations of noise on top), honest weights about 1. A larger value of a single client could make the
training of all others infinite."""


@dataclass
class MapJob(TrainingJob[MapState]):
    """FedNE, or one of its baselines, by options.

    Attributes:
        template: an encoder of another architecture than the perceptron; it is copied.
    """

    name: ClassVar[str] = "embed"
    # Rounds are short: writing every answer to disk would take longer than asking again. And with privacy noise, what
    # was sent twice has to be counted twice, stored or not.
    stores_answers: ClassVar[bool] = False
    options: EmbeddingOptions
    template: nn.Module | None = None
    device: str = "cpu"

    @property
    def num_rounds(self) -> int:
        return self.options.rounds

    @property
    def is_pooled(self) -> bool:
        return self.options.method == POOLED

    @property
    def is_exchanging(self) -> bool:
        return self.options.method not in (POOLED, LOCAL)

    def prepare_points(self, points: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [part.astype(self.options.precision) for part in points]

    def data_digest(self, points: Sequence[NDArray[Any]]) -> str:
        architecture = "" if self.template is None else str(self.template)
        weights = [] if self.template is None else self.template.state_dict().values()
        return digest(*points, architecture, *weights)

    def make_clients(self, points: Sequence[NDArray[Any]], names: Sequence[str], device: str) -> list[Client]:
        self.device = device
        return [
            make_client(number, ClientData(part, self.template, device), name)
            for number, (part, name) in enumerate(zip(points, names, strict=True))
        ]

    def begin(self, transport: Transport, *, min_clients: int = 1) -> MapState:
        """Ask the clients how many points they have, and make the initial weights.

        Raises:
            TooFewClientsError: fewer than `min_clients` answer, or have as many features as most.
            UserError: no number of features that most clients have; `fedne_exact` over a network; an encoder that
                cannot be averaged.
        """
        options = self.options
        # Positions are the data themselves up to the encoder: no setting may send them over a network.
        if options.method == EXACT and not isinstance(transport, InProcess):
            raise UserError("method 'fedne_exact' sends every map position; it is for comparisons in one process only")
        if transport.is_secure:
            refuse_individual(suspects=options.suspects, aggregation=options.aggregation)
        rule = MessageRule(at_client.POINTS, values={"points": int, "features": int})
        request = _request(at_client.POINTS, 0, options)
        result = transport.ask(request, rule, min_clients=min_clients, check=_check_points)
        sizes = compare_sizes(transport, result.answers, min_clients=min_clients)
        network = self.template if self.template is not None else build_encoder(options, sizes.features)
        encoder = flatten_weights(network)
        state = MapState(encoder, dict(sizes.points), sizes.features)
        if transport.is_secure:
            state.add_note(describe_sums(self.name))
        for client, reason in {**result.excluded, **sizes.others}.items():
            state.add_note(f"{transport.name(client)} is left out: {reason}")
        # Sizes weight the average, so a false one is worth checking before the first round.
        for client, reason in find_odd_sizes(sizes.points).items():
            self._note_suspect(transport, state, client, reason)
            if options.suspects == "exclude":
                del state.sizes[client]
        if len(state.sizes) < min_clients:
            raise TooFewClientsError(f"{len(state.sizes)} clients are not suspected; {min_clients} are needed")
        for client, size in state.sizes.items():
            if size <= options.neighbors:
                fewer = f"{size - 1} neighbors instead of {options.neighbors}" if size > 1 else "no neighbor"
                state.add_note(f"{transport.name(client)} has {size} points: {fewer}")
        if options.method == LOCAL:
            state.local_weights = dict.fromkeys(state.sizes, encoder)
        return state

    def run_round(self, transport: Transport, state: MapState, *, min_clients: int = 1) -> dict[str, Any]:
        options, round = self.options, state.round
        start = first_surrogate_round(options.rounds, options.surrogate_start)
        active = options.has_foreign_repulsion and round >= start and len(state.sizes) > 1
        if active and is_refreshed(round, start=start, refresh=options.refresh):
            self._ask_repulsions(transport, state, min_clients)
        rate = learning_rate_of(
            round,
            rounds=options.rounds,
            base=options.learning_rate,
            shares=options.decay_at,
            factor=options.decay_factor,
        )
        # Draw from the server's stream: who takes part does not depend on which clients answer.
        random = stream(options.seed, round=round, client=-1, purpose="participation")
        clients = draw_participants(sorted(state.sizes), options.participation, random)
        usable = self._usable_repulsions(transport, state) if active else []
        requests = {client: self._train_request(state, client, rate, usable) for client in clients}
        # With the method `local` nothing is added up.
        if transport.is_secure and options.method != LOCAL:
            shapes = {"encoder": state.encoder.shape}
            total = transport.ask_sum(requests, TRAIN_SUMS, shapes, min_clients=min_clients)
            return self._use_sum(state, total, rate, usable if active else None)
        answers = transport.ask(requests, self._train_rule(state), min_clients=min_clients).answers
        if not options.hides_training and any("attraction" not in answer.values for answer in answers.values()):
            state.add_note(OWN_NOISE)
        weights = {client: answer.array("encoder") for client, answer in answers.items()}
        if options.method == LOCAL:
            state.local_weights |= weights
        else:
            # This check runs before averaging, while the weights of each client are still separate.
            for client in find_odd_weights(weights):
                far = f"its weights are {WEIGHTS_ALONE:g}x or more as far from others' as the median"
                self._note_suspect(transport, state, client, far)
                if options.suspects == "exclude":
                    del weights[client]
            state.encoder = self._aggregate(state, weights)
        means = _mean_losses(state, answers)
        return _history_entry(state, rate, list(answers), means, _count_outside(answers), usable if active else None)

    def _use_sum(self, state: MapState, total: SumRound, rate: float, usable: Sequence[int] | None) -> dict[str, Any]:
        """Take the mean of the clients' weights, of which only the sum is known; return the entry for the history."""
        if total.totals.numbers["points"] != sum(state.sizes[client] for client in total.clients):
            raise MessageError("the clients' numbers of points do not add up to what they reported at the start")
        state.encoder = total.arrays["encoder"].astype(self.options.precision)
        if not self.options.hides_training and total.totals.means["attraction"] is None:
            state.add_note(OWN_NOISE)
        # Points outside of a box are counted by client, and are not added up.
        return _history_entry(state, rate, total.clients, total.totals.means, None, usable)

    def _note_suspect(self, transport: Transport, state: MapState, client: int, reason: str) -> None:
        state.add_note(note_suspect(transport.name(client), reason, left_out=self.options.suspects == "exclude"))

    def _aggregate(self, state: MapState, weights: Mapping[int, Array]) -> Array:
        """Combine the clients' weights into one encoder."""
        if self.options.aggregation == "mean":
            # Sizes as reported at the start, not those of the mixed points: mixing doubles every client alike.
            return average_arrays(list(weights.values()), [state.sizes[client] for client in weights])
        return trimmed_mean(list(weights.values()), 0.5 if self.options.aggregation == "median" else self.options.trim)

    def _ask_repulsions(self, transport: Transport, state: MapState, min_clients: int) -> None:
        """Ask all clients for surrogates, fields or (exact) positions under the current common encoder."""
        options, round, d = self.options, state.round, self.options.dimensions
        encoder = {"encoder": state.encoder}
        grid: dict[str, Array] = {}
        trusted = sorted(state.sizes)

        def ask_all(kind: str, rule: MessageRule, arrays: Mapping[str, Array], check: Any = None) -> dict[int, Message]:
            requests = dict.fromkeys(trusted, _request(kind, round, options, arrays))
            return transport.ask(requests, rule, min_clients=min_clients, check=check).answers

        if options.method == FEDNE and options.grid == "union":
            rule = MessageRule(at_client.BOX, {"box": _box_rule(d)})
            answers = ask_all(at_client.BOX, rule, encoder, _check_box)
            boxes = {client: answer.array("box") for client, answer in answers.items()}
            for client in find_far_boxes(boxes):
                reason = f"its map reaches {BOX_FAR:g}x or more as far as the median"
                self._note_suspect(transport, state, client, reason)
                if options.suspects == "exclude":  # the others do not feel it, and their grid does not stretch to it
                    del boxes[client]
                    trusted.remove(client)
                    # A repulsion of an earlier round would otherwise go on acting.
                    state.repulsions.pop(client, None)
            # Computed by the server from the boxes, so that all fields share one grid and can be added up.
            common = union_grid(
                np.stack(list(boxes.values())),
                step=options.grid_step,
                min_axis_points=options.min_axis_points,
                max_axis_points=options.max_axis_points,
            )
            grid = {"box": common.box_2d, "counts": np.array(common.shape)}
            if options.surrogate == "grid" and state.grid is not None:
                state.repulsions = {}  # fields on another grid cannot be added to new ones
            state.grid = common
        if options.method == EXACT:
            rule = MessageRule(at_client.POSITIONS, {"positions": ArrayRule(options.precision, (None, d))})
            for client, answer in ask_all(at_client.POSITIONS, rule, encoder).items():
                # No fit, so R2 1: exact positions are never left out for a bad one.
                state.repulsions[client] = Repulsion(answer.array("positions"), np.zeros((2, d)), 1.0, round)
            return
        if options.surrogate == "grid":
            assert state.grid is not None
            # Noise of standard deviation s per value: ten deviations on top of the largest honest value.
            limit = MAX_FIELD * (1 + options.target_noise)
            values = ArrayRule(options.precision, (int(np.prod(state.grid.shape)),), low=-limit, high=limit)
            # A gradient without noise would say more than the noisy field does, so nobody sends one then.
            gradients = () if options.target_noise else GRADIENTS
            rule = MessageRule(
                at_client.FIELD,
                {"field": values},
                {"r2": float} | dict.fromkeys(gradients, float),
                optional=frozenset(gradients),
            )
            for client, answer in ask_all(at_client.FIELD, rule, encoder | grid).items():
                field, box = answer.array("field"), state.grid.box_2d
                state.repulsions[client] = Repulsion(field, box, answer.number("r2"), round, **_read_gradients(answer))
            return
        rule = MessageRule(
            at_client.SURROGATE,
            {
                "surrogate": ArrayRule(
                    options.precision, (_surrogate_size(options),), low=-MAX_SURROGATE, high=MAX_SURROGATE
                ),
                "box": _box_rule(d, limit=10 * MAX_MAP),  # around the map, with a margin
            },
            {"r2": float, "r2_held_out": float, "epochs": int, "queries": int} | dict.fromkeys(GRADIENTS, float),
            optional=frozenset({"r2_held_out", *GRADIENTS}),
        )
        for client, answer in ask_all(at_client.SURROGATE, rule, encoder | grid, _check_box).items():
            vector, box = answer.array("surrogate"), answer.array("box")
            state.repulsions[client] = Repulsion(vector, box, answer.number("r2"), round, **_read_gradients(answer))

    def _usable_repulsions(self, transport: Transport, state: MapState) -> list[int]:
        """Clients whose repulsion is known and fits well enough; the others are noted."""
        usable, options = [], self.options
        for client in sorted(state.sizes):
            repulsion, name = state.repulsions.get(client), transport.name(client)
            if repulsion is None:
                state.add_note(f"{name} has sent no surrogate: the others do not feel it")
                continue
            cosine = repulsion.gradient_cosine
            if repulsion.r2 < options.min_r2:
                state.add_note(f"{name}: its surrogate fits with R2 below {options.min_r2:g} and is left out")
            # Values may fit while the gradient, all that a training feels, points elsewhere.
            elif cosine is not None and cosine < options.min_gradient_cosine:
                below = f"the cosine of its surrogate's gradient is below {options.min_gradient_cosine:g}"
                state.add_note(f"{name}: {below}, and it is left out")
            else:
                usable.append(client)
                if repulsion.r2 < options.warn_r2:
                    state.add_note(f"{name}: its surrogate fits with R2 below {options.warn_r2:g}")
        if options.method == FEDNE and any(state.repulsions[client].gradient_cosine is None for client in usable):
            state.add_note("the gradients of surrogates are not measured: only their R2 decides")
        return usable

    def _train_request(self, state: MapState, client: int, rate: float, usable: Sequence[int]) -> Message:
        """Request to train; shares of the client itself and of those that it feels sum to 1."""
        options = self.options
        arrays: dict[str, Array] = {"encoder": state.local_weights.get(client, state.encoder)}
        others = [other for other in usable if other != client]
        total = state.sizes[client] + sum(state.sizes[other] for other in others)
        # Renormalized over those whose repulsion is known: a missing surrogate must not weaken the total.
        shares = np.array([state.sizes[other] / total for other in others], dtype=np.float64)
        client_share = 1.0
        if others:
            client_share = state.sizes[client] / total
            repulsions = [state.repulsions[other] for other in others]
            if options.method == EXACT:
                sizes = np.array([len(repulsion.vector) for repulsion in repulsions], dtype=np.int64)
                positions = np.concatenate([repulsion.vector for repulsion in repulsions])
                arrays |= {"positions": positions, "sizes": sizes, "shares": shares}
            elif options.surrogate == "grid":
                assert state.grid is not None
                # The server adds up fields on one grid, so that a client learns only the sum of the others.
                field_G = sum(
                    # Add up in float64 and round once at the end.
                    share * repulsion.vector.astype(np.float64)
                    for share, repulsion in zip(shares, repulsions, strict=True)
                )
                arrays["field"] = np.asarray(field_G).astype(options.precision)
                arrays |= {"box": state.grid.box_2d, "counts": np.array(state.grid.shape)}
            else:
                arrays |= {
                    "surrogates": np.stack([repulsion.vector for repulsion in repulsions]),
                    "boxes": np.stack([repulsion.box for repulsion in repulsions]),
                    "shares": shares,
                }
        return _request(at_client.TRAIN, state.round, options, arrays, rate=rate, share=client_share)

    def _train_rule(self, state: MapState) -> MessageRule:
        values = {"attraction": float, "repulsion": float, "foreign": float, "steps": int, "outside": int}
        # Losses are computed from the exact points, so they would reveal what the noise on the weights hides.
        values = {} if self.options.hides_training else values
        encoder = ArrayRule(self.options.precision, (len(state.encoder),))
        # Over a network a client may add noise of its own, and then tells none of them.
        return MessageRule(at_client.TRAIN, {"encoder": encoder}, values, optional=frozenset(values))

    def pack(self, state: MapState) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays: dict[str, NDArray[Any]] = {"encoder": state.encoder}
        arrays |= {f"local.{client}": weights for client, weights in state.local_weights.items()}
        for client, repulsion in state.repulsions.items():
            arrays |= {f"repulsion.{client}.vector": repulsion.vector, f"repulsion.{client}.box": repulsion.box}
        if state.grid is not None:
            arrays |= {f"grid.{number}": axis for number, axis in enumerate(state.grid.axes)}
        header = {
            "features": state.features,
            # Clients are listed as pairs, because JSON would turn numeric keys into strings.
            "sizes": list(state.sizes.items()),
            "repulsions": [
                [client, entry.r2, entry.round, entry.gradient_cosine, entry.gradient_ratio]
                for client, entry in state.repulsions.items()
            ],
            "axes": 0 if state.grid is None else len(state.grid.axes),
            "notes": state.notes,
        }
        return arrays, header

    def unpack(self, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> MapState:
        repulsions = {
            int(client): Repulsion(
                arrays[f"repulsion.{client}.vector"],
                arrays[f"repulsion.{client}.box"],
                float(r2),
                int(round),
                *gradients,
            )
            # A snapshot of an earlier version has no gradients.
            for client, r2, round, *gradients in header["repulsions"]
        }
        axes = tuple(arrays[f"grid.{number}"] for number in range(header["axes"]))
        prefix = "local."
        return MapState(
            encoder=arrays["encoder"],
            sizes={int(client): int(size) for client, size in header["sizes"]},
            features=int(header["features"]),
            local_weights={
                int(name.removeprefix(prefix)): array for name, array in arrays.items() if name.startswith(prefix)
            },
            repulsions=repulsions,
            grid=CoordinateGrid(axes) if axes else None,
            notes=header["notes"],
        )

    def progress_note(self, entry: Mapping[str, Any]) -> str:
        if entry["attraction"] is None:  # hidden by noise
            return ""
        return f"attraction {entry['attraction']:.3f}, repulsion {entry['repulsion']:.3f}"

    def check_remote(self) -> None:
        method = self.options.method
        if method in (LOCAL, POOLED, EXACT):
            raise UserError(f"method '{method}' cannot run over a network: {METHODS[method]}")

    def finished(self, state: MapState, log: Log | None = None) -> EmbeddingFit:
        """Return the trained encoders."""
        encoders = {client: self._load_encoder(state, weights) for client, weights in state.local_weights.items()}
        common = encoders[min(encoders)] if encoders else self._load_encoder(state, state.encoder)
        return EmbeddingFit(self.options, common, encoders, state, Log() if log is None else log)

    def _load_encoder(self, state: MapState, weights_P: NDArray[Any]) -> nn.Module:
        if self.template is not None:
            network = copy.deepcopy(self.template)
        else:
            network = build_encoder(self.options, state.features)
        load_flat(network, weights_P)
        return network.to(self.device).eval()

    def save_remote(self, transport: Transport, state: MapState, folder: Path) -> EmbedResult:
        fitted = self.finished(state)
        save_encoder(
            fitted.encoder,
            folder / "model",
            encoder_config(self.options, state.features, len(state.sizes), state.scaling),
        )
        clients = [
            EmbedClient(name=transport.name(client), points=size, bytes_up=state.sent.get(str(client), 0))
            for client, size in state.sizes.items()
        ]
        return EmbedResult(
            method=self.options.method,
            split="a client each",
            features=state.features,
            clients={client.name: client.points for client in clients},
            neighbors=self.options.neighbors,
            maps=[measure_method(self.options, state, clients, EmbedMap())],
            suspects=warn_of_suspects(state.notes, len(clients), remedy=EXCLUDE),
            options=self.options.model_dump(mode="json"),
        )


def _check_points(client: int, answer: Message) -> None:
    # Zero points have no map and no weight; the average would divide by their total.
    if answer.number("points") < 1:
        raise MessageError("has no point")


def _request(
    kind: str, round: int, options: EmbeddingOptions, arrays: Mapping[str, Array] | None = None, **values: float
) -> Message:
    return Message(kind, round, dict(arrays or {}), {"options": options.model_dump_json(), **values})


def _read_gradients(answer: Message) -> dict[str, float]:
    """Return how the gradient of a surrogate compares with the true one, where its client has measured it."""
    return {name: answer.number(name) for name in GRADIENTS if name in answer.values}


def _box_rule(dimensions: int, limit: float = MAX_MAP) -> ArrayRule:
    return ArrayRule("float64", (2, dimensions), low=-limit, high=limit)


def _check_box(client: int, answer: Message) -> None:
    low, high = answer.array("box")
    # A reversed box would turn the common grid inside out.
    if (low > high).any():
        raise MessageError("array 'box' has a lowest corner above the highest")


def _surrogate_size(options: EmbeddingOptions) -> int:
    widths = (ARCHITECTURES[options.surrogate].inputs(options.dimensions), *ARCHITECTURES[options.surrogate].hidden, 1)
    return sum((inputs + 1) * outputs for inputs, outputs in zip(widths, widths[1:], strict=False))


def _mean_losses(state: MapState, answers: Mapping[int, Message]) -> dict[str, float | None]:
    """Means of the losses over clients, weighted by their points; None where noise hides the training."""
    weights = np.array([state.sizes[client] for client in answers], dtype=np.float64)

    def mean(name: str) -> float | None:
        values = [answer.values.get(name) for answer in answers.values()]
        # Report a mean only if all clients sent the value; a partial mean would look complete.
        if any(value is None for value in values):
            return None
        return float(np.average(np.array(values, dtype=np.float64), weights=weights))

    return {name: mean(name) for name in TRAIN_SUMS.means}


def _count_outside(answers: Mapping[int, Message]) -> int | None:
    """Number of points outside of the boxes; None where noise hides the training."""
    counts = [int(answer.number("outside")) for answer in answers.values() if "outside" in answer.values]
    return sum(counts) if counts else None


def _history_entry(
    state: MapState,
    rate: float,
    clients: Sequence[int],
    means: Mapping[str, float | None],
    outside: int | None,
    usable: Sequence[int] | None,
) -> dict[str, Any]:
    """History of a round."""
    if outside:
        state.add_note(
            "points lie outside the box of a surrogate: a field keeps the value at its edge, a network's is clamped"
        )

    def fits(name: str) -> dict[str, float]:
        """Quality of the surrogates by client; those that are not measured are left out."""
        if usable is None:
            return {}
        values = {client: getattr(state.repulsions[client], name) for client in sorted(state.repulsions)}
        return {str(client): round(value, 6) for client, value in values.items() if value is not None}

    return {
        "round": state.round,
        "rate": rate,
        "clients": list(clients),
        **means,
        **{name: fits(name) for name in ("r2", *GRADIENTS)},
        "usable": None if usable is None else list(usable),
        "outside": outside,
    }


@dataclass
class EmbeddingFit:
    """Result of a training.

    Attributes:
        encoder: the common one; with the method `local` the first client's.
        encoders: by client, `local` only.
        state: weights, history, notes.
        log: all messages.
    """

    options: EmbeddingOptions
    encoder: nn.Module
    encoders: dict[int, nn.Module]
    state: MapState
    log: Log

    def transform(self, points_ND: ArrayLike, *, client: int | None = None) -> NDArray[np.floating]:
        """Map positions [N, d] by the common encoder or, with `local`, that of a client."""
        network = self.encoders.get(client, self.encoder) if client is not None else self.encoder
        first = next(network.parameters())
        rows = torch.from_numpy(self.state.scale_points(points_ND, self.state.features)).to(first)
        return frozen_rows(network, rows).cpu().numpy()


def fit_clients(
    clients: Sequence[ArrayLike],
    options: EmbeddingOptions,
    *,
    template: nn.Module | None = None,
    log: Log | None = None,
    **more: Any,
) -> EmbeddingFit:
    """Train on the points of several clients in this process.

    Args:
        clients: [N, D] per client.
        template: an encoder that replaces the perceptron; it is copied.
        log: takes the messages.
        more: see `foveate.federated.job.fit_in_process`.
    """
    job, log = MapJob(options, template), Log() if log is None else log
    return job.finished(fit_in_process(job, clients, log=log, **more), log)
