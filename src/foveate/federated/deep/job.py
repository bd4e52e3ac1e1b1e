"""DeepFeCA as a training job: centroids up, centers down, training, weighted averaging of weights.

The round's shape is a reconstruction: the paper (arXiv 2407.12764) names DeepFeCA's parts, and its body was not
available.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.model_folder import (
    CARD,
    CONFIG,
    METRICS,
    WEIGHTS,
    check_tensors,
    read_config,
    read_tensors,
    write_model_folder,
)
from foveate.federated.anomaly import find_odd_sizes, find_odd_weights, note_suspect, warn_of_suspects
from foveate.federated.clustering import protocol as clustering
from foveate.federated.clustering.distances import nearest
from foveate.federated.clustering.fit import count_points, make_pool
from foveate.federated.clustering.lloyd import unit
from foveate.federated.clustering.methods import describe_method, load_method
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.clustering.protocol import unit_rows
from foveate.federated.clustering.suspects import find_suspects
from foveate.federated.deep.encoder import Embedder, build_network, flatten_weights, prepare_samples, set_weights
from foveate.federated.deep.options import (
    LOCAL,
    METHODS,
    POOLED,
    SIZE,
    TRAIN_SUMS,
    UNTRAINED,
    DeepOptions,
    read_options,
)
from foveate.federated.deep.protocol import (
    SIZE_RULE,
    Training,
    check_size,
    check_trained,
    embed,
    embedded_request,
    embedded_rule,
    handlers,
    train_request,
    train_rule,
)
from foveate.federated.job import TrainingJob, TrainingSnapshot, fit_in_process
from foveate.federated.messages import Message, MessageError
from foveate.federated.results import FeaturesClient, FeaturesMethod, FeaturesResult, GroupMap
from foveate.federated.rounds import ChangedTransport, Client, Handler, Transport, compare_sizes, stream, sum_bytes
from foveate.federated.scaling import Scaling
from foveate.federated.secure_sums import describe_sums
from foveate.federated.store import digest

KIND, FORMAT = "deep-clustering", 2
_NETWORK, _CENTERS = "network.", "centers"
_CARD = """# An encoder and {clusters} centers

Makes a unit vector of {width} values from each row of {features}, and finds the nearest of {clusters} centers.
{parameters:,} weights, trained by the method `{method}` in {rounds} rounds over {clients} clients.

```python
from foveate.federated.deep.job import load_model

model = load_model("this folder")
model.transform(points), model.predict(points)
```

The weights were computed from the clients' points and say something about them: see the page on what is exchanged.
"""


@dataclass
class DeepState(TrainingSnapshot):
    """State of DeepFeCA's training.

    Attributes:
        weights: of the common encoder, [P].
        width: of its embeddings.
        centers: [K, D] of the last round; None before it.
        excluded: for each excluded client the last reason why it was left out.
        suspects: by client and what it sent ("centroids", "weights", "points"), why that is anomalous; of the last
            round in which it was.
    """

    weights: NDArray[np.float32]
    width: int
    centers: NDArray[np.float64] | None = None
    excluded: dict[int, str] = field(default_factory=dict)
    suspects: dict[tuple[int, str], str] = field(default_factory=dict)

    def describe_suspects(self) -> dict[int, str]:
        """Return for each suspicious client its anomalies, in one sentence."""
        reasons: dict[int, list[str]] = {}
        for (client, _), reason in sorted(self.suspects.items()):
            reasons.setdefault(client, []).append(reason)
        return {client: "; ".join(listed) for client, listed in reasons.items()}

    def notes(self, name: Callable[[int], str]) -> list[str]:
        """Sentences for the report about clients that were left out."""
        return [f"{name(client)} was left out: {reason}" for client, reason in self.excluded.items()]

    def warnings(self, name: Callable[[int], str], clients: int) -> list[str]:
        """Sentences about anomalous clients, which train all the same."""
        notes = [note_suspect(name(client), reason) for client, reason in self.describe_suspects().items()]
        return warn_of_suspects(notes, clients, remedy="a run without it shows what it changes")


def average(answers: list[tuple[NDArray[np.float32], int]]) -> NDArray[np.float32]:
    """FedAvg: mean of the clients' weights [P], each client counting by its points."""
    total = sum(points for _, points in answers)
    # Means of differences from the first, not of the weights: equal weights then come back unchanged, without rounding.
    first = answers[0][0].astype(np.float64)
    change = sum((points / total) * (weights.astype(np.float64) - first) for weights, points in answers)
    return (first + change).astype(np.float32)


def match_centers(centers_KD: NDArray[np.float64], before_KD: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Reorder centers to fit those of the round before best (Hungarian algorithm, by cosine)."""
    if before_KD is None or len(before_KD) != len(centers_KD):
        return centers_KD
    _, order = linear_sum_assignment(before_KD @ centers_KD.T, maximize=True)
    return centers_KD[order]


def make_handlers(network: Embedder, options: DeepOptions) -> dict[str, Handler]:
    """Build the handlers of every client of a run; they share the network, whose weights come with every request."""
    return handlers(network)


@dataclass
class Rounds:
    """The rounds themselves, without options of a run: estimators with their own encoder use them directly.

    Attributes:
        clustering: of the server, spherical and one shot.
        training: of the clients.
        common: clients train towards the common centers; without, each towards the centroids that it sent itself.
    """

    clustering: ClusteringOptions
    training: Training
    common: bool = True

    def aggregate(
        self, transport: Transport, state: DeepState, round: int, *, min_clients: int = 1
    ) -> dict[int, Message]:
        """First half of a round: set `state.centers`; return the clients' answers."""
        options = self.clustering
        requests = {client: embedded_request(state.weights, options, client, round) for client in transport.clients}
        result = transport.ask(
            requests,
            embedded_rule(options, state.width),
            min_clients=min_clients,
            check=lambda client, answer: clustering.check_centroids(options, client, answer),
        )
        state.excluded |= result.excluded
        pool, radii = make_pool(result.answers)
        state.suspects |= {(client, "centroids"): reason for client, reason in find_suspects(pool).items()}
        # The server's stream of this round: aggregating again after a restart draws the same starts.
        rng = stream(options.seed, round=round, client=-1, purpose="server")
        # Means of unit vectors are shorter than 1; centers are compared by cosine.
        centers = unit(load_method(options.method).merge(pool, options, rng, radii).centers)
        # The same order in every round, so that a label means the same center to a head that learns it over rounds.
        state.centers = match_centers(centers, state.centers)
        return result.answers

    def run_round(self, transport: Transport, state: DeepState, *, min_clients: int = 1) -> dict[str, Any]:
        """Run a whole round, changing `state`; return its entry for the history.

        Raises:
            TooFewClientsError, TooFewGroupsError: as a clustering.
        """
        options, before, number = self.clustering, state.centers, state.round
        answered = self.aggregate(transport, state, number, min_clients=min_clients)
        assert state.centers is not None
        if self.common:
            shared = train_request(state.weights, state.centers, self.training, options.seed, number)
            requests = dict.fromkeys(answered, shared)
        else:
            centroids = {client: unit(np.asarray(answer.array("centers"))) for client, answer in answered.items()}
            requests = {
                client: train_request(state.weights, centers, self.training, options.seed, number)
                for client, centers in centroids.items()
            }
        # The weights of the average were fixed with the centroids; a client cannot raise its own afterwards.
        points = count_points(answered, options)
        if transport.is_secure:
            entry = self._sum_weights(transport, state, requests, points, min_clients)
            return entry | {"moved": _measure_move(before, state.centers)}
        result = transport.ask(
            requests,
            train_rule(len(state.weights)),
            min_clients=min_clients,
            check=lambda client, answer: check_trained(points.get(client), answer),
        )
        state.excluded |= result.excluded
        if not points:  # otherwise sizes were judged with the centroids
            sizes = {client: answer.number("points") for client, answer in result.answers.items()}
            state.suspects |= {(client, "points"): reason for client, reason in find_odd_sizes(sizes).items()}
        weights = {client: answer.array("weights") for client, answer in result.answers.items()}
        for client, times in find_odd_weights(weights).items():
            state.suspects[client, "weights"] = (
                f"its weights are {times:.3g}x the median distance from half of the other clients"
            )
        answers = [(answer.array("weights"), int(answer.number("points"))) for answer in result.answers.values()]
        state.weights = average(answers)
        total = sum(count for _, count in answers)
        loss = None
        # Over all clients or none: a mean over some of them would look like one over all.
        if all("loss" in answer.values for answer in result.answers.values()):
            # Weighted by points, as the average is: the loss of the common model on all points.
            loss = sum(answer.number("loss") * answer.number("points") for answer in result.answers.values()) / total
        moved = _measure_move(before, state.centers)
        return {"round": number, "loss": loss, "clients": result.clients, "moved": moved}

    def _sum_weights(
        self,
        transport: Transport,
        state: DeepState,
        requests: Mapping[int, Message],
        points: Mapping[int, float],
        min_clients: int,
    ) -> dict[str, Any]:
        """Average the clients' weights, of which only the sum is known; return the entry for the history."""
        shapes = {"weights": state.weights.shape}
        result = transport.ask_sum(requests, TRAIN_SUMS, shapes, min_clients=min_clients)
        state.excluded |= result.excluded
        reported = sum(points[client] for client in result.clients) if points else None
        if reported is not None and result.totals.numbers["points"] != reported:
            raise MessageError(
                "the clients' numbers of points do not add up to what they reported with their centroids"
            )
        state.weights = result.arrays["weights"].astype(np.float32)
        return {"round": state.round, "loss": result.totals.means["loss"], "clients": result.clients}


def _measure_move(before_KD: NDArray[np.float64] | None, centers_KD: NDArray[np.float64]) -> float | None:
    """One minus the mean cosine of matched centers; None in the first round."""
    # It is near 0 once the groups no longer change.
    if before_KD is None or len(before_KD) != len(centers_KD):
        return None
    return float(1 - (before_KD * centers_KD).sum(1).mean())


@dataclass
class DeepJob(TrainingJob[DeepState]):
    """DeepFeCA, or one of its baselines, by options.

    Attributes:
        make_handlers: makes the functions of a client; others make controls.
        network: the architecture that clients train; built once the number of features is known.
        features: known from the start only where the data are in this process.
    """

    name: ClassVar[str] = "features"
    options: DeepOptions
    make_handlers: Callable[[Embedder, DeepOptions], dict[str, Handler]] = make_handlers
    network: Embedder | None = None
    features: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = self.options
        training = Training(
            epochs=options.local_epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            temperature=options.temperature,
            augment=options.augment,
        )
        self.rounds = Rounds(options.clustering_options(), training, common=options.method != LOCAL)

    @property
    def num_rounds(self) -> int:
        return 0 if self.options.method == UNTRAINED else self.options.rounds

    @property
    def is_pooled(self) -> bool:
        return self.options.method == POOLED

    def data_digest(self, points: Sequence[NDArray[Any]]) -> str:
        return digest(*points)

    def make_clients(self, points: Sequence[NDArray[Any]], names: Sequence[str], device: str) -> list[Client]:
        self.features = points[0].shape[1]
        self.network = build_network(self.options, self.features).to(device)
        answering = self.make_handlers(self.network, self.options)
        return [
            # `about`: stored answers belong to this architecture too; equal shapes with other layers must not share
            # them.
            Client(number, prepare_samples(part, self.options).to(device), answering, name, about=str(self.network))
            for number, (part, name) in enumerate(zip(points, names, strict=True))
        ]

    def begin(self, transport: Transport, *, min_clients: int = 1) -> DeepState:
        if self.network is not None:  # in this process the size of the data is known without a request
            return DeepState(flatten_weights(self.network), self.options.width)
        excluded = self._ask_sizes(transport, min_clients)
        assert self.network is not None
        return DeepState(flatten_weights(self.network), self.options.width, excluded=excluded)

    def resume(self, transport: Transport, state: DeepState, *, min_clients: int = 1) -> None:
        # Sizes are asked again: other clients may be there than before the server was stopped.
        state.excluded |= self._ask_sizes(transport, min_clients)
        assert self.network is not None
        if len(state.weights) != len(flatten_weights(self.network)):
            raise UserError(
                f"the stored state belongs to points of another number of features (got {self.features}); use another "
                "folder or delete it"
            )

    def _ask_sizes(self, transport: Transport, min_clients: int) -> dict[int, str]:
        """Ask how large the data are, build the network for it; return who does not fit."""
        result = transport.ask(Message(SIZE), SIZE_RULE, min_clients=min_clients, check=check_size)
        sizes = compare_sizes(transport, result.answers, min_clients=min_clients)
        self.sizes, self.features = sizes.points, sizes.features
        self.network = build_network(self.options, sizes.features)
        return {**result.excluded, **sizes.others}

    def run_round(self, transport: Transport, state: DeepState, *, min_clients: int = 1) -> dict[str, Any]:
        return self.rounds.run_round(transport, state, min_clients=min_clients)

    def finish(self, transport: Transport, state: DeepState, *, min_clients: int = 1) -> None:
        # The centers of the last round belong to the encoder before its last training.
        self.rounds.aggregate(transport, state, self.num_rounds, min_clients=min_clients)

    def pack(self, state: DeepState) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays: dict[str, NDArray[Any]] = {"weights": state.weights}
        if state.centers is not None:
            arrays["centers"] = state.centers
        header = {
            "width": state.width,
            # Lists of pairs: JSON allows neither numbers nor tuples as keys.
            "excluded": list(state.excluded.items()),
            "suspects": [[*key, reason] for key, reason in state.suspects.items()],
        }
        return arrays, header

    def unpack(self, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> DeepState:
        return DeepState(
            arrays["weights"],
            int(header["width"]),
            arrays.get("centers"),
            excluded={int(client): str(reason) for client, reason in header["excluded"]},
            suspects={(int(client), str(sign)): str(reason) for client, sign, reason in header["suspects"]},
        )

    def progress_note(self, entry: Mapping[str, Any]) -> str:
        return "" if entry["loss"] is None else f"loss {entry['loss']:.3f}"

    def check_remote(self) -> None:
        if self.is_pooled:
            raise UserError(f"method '{POOLED}' cannot run over a network: {METHODS[POOLED]}")

    def remote_transport(self, transport: Transport, state: DeepState) -> Transport:
        # Send options only to clients whose data fit; the others were left out when sizes were compared.
        # A client elsewhere builds the network by itself, from the options that come with every request.
        text = self.options.model_dump_json()

        def add_options(request: Message) -> Message:
            return replace(request, values={**request.values, "options": text})

        return ChangedTransport(transport, add_options, sorted(self.sizes))

    def finished(self, state: DeepState) -> DeepClusteringFit:
        """Return the trained network with its centers."""
        assert self.network is not None
        set_weights(self.network, state.weights)
        return DeepClusteringFit(self.options, self.features, self.network.eval(), state)

    def save_remote(self, transport: Transport, state: DeepState, folder: Path) -> FeaturesResult:
        fitted = self.finished(state)
        save_model(fitted, folder / "model", clients=len(self.sizes))
        rows = [
            FeaturesClient(
                name=transport.name(client),
                points=count,
                rounds=sum(client in entry["clients"] for entry in state.history),
                excluded=state.excluded.get(client, ""),
            )
            for client, count in self.sizes.items()
        ]
        return FeaturesResult(
            **result_fields(fitted),
            split="a client each",
            points=sum(self.sizes.values()),
            clients=rows,
            methods=[measure_cost(fitted)],
            suspects=state.warnings(transport.name, len(self.sizes)),
            notes=[describe_sums(self.name)] * transport.is_secure + state.notes(transport.name),
            # A server sees no embeddings that it could draw.
            map=GroupMap(),
        )


@dataclass
class DeepClusteringFit:
    """Result of a training: the network and its state.

    Attributes:
        features: number of values of a point.
    """

    options: DeepOptions
    features: int
    network: Embedder
    state: DeepState

    @property
    def centers(self) -> NDArray[np.float64]:
        """The common centers, [K, width], unit vectors."""
        assert self.state.centers is not None
        return self.state.centers

    def transform(self, points_ND: ArrayLike) -> NDArray[np.float64]:
        """Embed points as vectors of length 1, [N, width]."""
        # In float64, as clients do before their k-means: the network's own unit vectors are rounded to float32.
        return unit_rows(embed(self.network, self._samples(points_ND)))

    def outputs(self, points_ND: ArrayLike) -> NDArray[np.float64]:
        """Return the encoder's output before the head, [N, inner]; without an encoder the embeddings themselves."""
        if not self.options.reads_images:
            return self.transform(points_ND)
        return embed(self.network, self._samples(points_ND), head=False)

    def predict(self, points_ND: ArrayLike) -> NDArray[np.int64]:
        """Return the index of the nearest center of each point, [N]."""
        return nearest(self.transform(points_ND), self.centers)[0]

    def _samples(self, points_ND: ArrayLike) -> Tensor:
        points = self.state.scale_points(points_ND, self.features)
        return prepare_samples(points, self.options).to(next(self.network.parameters()).device)


def fit_clients(
    clients: Sequence[ArrayLike],
    options: DeepOptions,
    *,
    make_handlers: Callable[[Embedder, DeepOptions], dict[str, Handler]] = make_handlers,
    **more: Any,
) -> DeepClusteringFit:
    """Train on the points of several clients in this process.

    Args:
        clients: [N, D] per client.
        make_handlers: makes the functions of a client; another one makes controls.
        more: see `foveate.federated.job.fit_in_process`.
    """
    job = DeepJob(options, make_handlers)
    return job.finished(fit_in_process(job, clients, **more))


def save_model(fitted: DeepClusteringFit, folder: Path, *, clients: int, metrics: dict[str, Any] | None = None) -> Path:
    """Write a trained encoder with its centers as a model folder; return it."""
    options, scaling, state = fitted.options, fitted.state.scaling, fitted.network.state_dict()
    card = _CARD.format(
        clusters=len(fitted.centers),
        width=options.width,
        features=fitted.features,
        parameters=sum(value.numel() for value in state.values()),
        method=options.method,
        rounds=fitted.state.round,
        clients=clients,
    )
    return write_model_folder(
        folder,
        kind=KIND,
        format=FORMAT,
        config={
            **({} if scaling is None else {"scaling": scaling.to_json()}),
            "features": fitted.features,
            "clients": clients,
            "rounds": fitted.state.round,
            "options": options.model_dump(mode="json"),
        },
        tensors={
            # With a prefix, so that no tensor of a network can be taken for the centers.
            **{_NETWORK + name: value for name, value in state.items()},
            _CENTERS: torch.from_numpy(fitted.centers.copy()),
        },
        files={METRICS: metrics or {}, CARD: card},
    )


def load_model(folder: str | Path) -> DeepClusteringFit:
    """Open a model folder, ready to `transform` and `predict`; the history of its training is not stored.

    Raises:
        UserError: the folder is not a model of this kind, or damaged.

    Example:
        >>> model = open_deep_clustering(deep_folder)
        >>> points = np.ones((3, 4))
        >>> model.transform(points).shape, model.predict(points).shape
        ((3, 8), (3,))
    """
    path = Path(folder)
    fields = {"features": int, "rounds": int, "options": dict}
    config = read_config(path, kind=KIND, formats=[FORMAT], fields=fields, label="deep clustering")
    # A network is built from this number, so it is checked before it is.
    if config["features"] < 1:
        raise UserError(f"{path / CONFIG}: field 'features' must be at least 1 (got {config['features']})")
    options = read_options(config["options"], where=str(path / CONFIG))
    tensors = read_tensors(path / WEIGHTS)
    if _CENTERS not in tensors:
        raise UserError(f"{path / WEIGHTS}: tensor '{_CENTERS}' is missing")
    centers = tensors.pop(_CENTERS).double().numpy()
    network = build_network(options, config["features"])
    weights = {name.removeprefix(_NETWORK): value for name, value in tensors.items()}
    check_tensors(weights, network.state_dict(), path / WEIGHTS)
    network.load_state_dict(weights)
    scaling = Scaling.read(config.get("scaling"), config["features"], where=str(path / CONFIG))
    state = DeepState(flatten_weights(network), options.width, centers, round=config["rounds"], scaling=scaling)
    return DeepClusteringFit(options, config["features"], network.eval(), state)


def result_fields(fitted: DeepClusteringFit) -> dict[str, Any]:
    """Fields of the result that are the same for a run in one process and a server over a network."""
    options, state = fitted.options, fitted.state
    return {
        "method": options.method,
        "description": METHODS[options.method],
        "clustering": describe_method(options.clustering_options()),
        "encoder": options.encoder,
        "clusters": len(fitted.centers),
        "features": fitted.features,
        "width": options.width,
        "exchanged": state.exchanged,
        "history": state.history,
        "options": options.model_dump(mode="json"),
    }


def measure_cost(fitted: DeepClusteringFit, quality: dict[str, float] | None = None) -> FeaturesMethod:
    """Build one method's row in the result."""
    options, state = fitted.options, fitted.state
    return FeaturesMethod(
        method=options.method,
        description=METHODS[options.method],
        federated=options.method != POOLED,
        rounds=state.round,
        quality=quality or {},
        bytes_up=sum_bytes(state.exchanged, up=True),
        bytes_down=sum_bytes(state.exchanged, up=False),
        seconds=round(state.seconds, 3),
    )
