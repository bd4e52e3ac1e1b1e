"""DeepFeCA's messages: two requests per round, the clients' answers, and the training behind them.

| kind | down | up |
|---|---|---|
| `query.embedded` | `weights` of the encoder, options | as `query.centroids`: centroids of embeddings |
| `train.prototypes` | `weights`, `centers`, how to train | `weights`; points, loss (not where noise hides it) |

Names of the loss are those of DeepFeCA (arXiv 2407.12764); its form is that of DeepCluster-v2 (facebookresearch/swav,
main_deepclusterv2.py): unit vectors, temperature 0.1, prototypes without gradient, label -100 is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from foveate.core.errors import UserError, choose
from foveate.federated.clustering import protocol as clustering
from foveate.federated.clustering.local import local_kmeans
from foveate.federated.clustering.options import ClusteringOptions
from foveate.federated.deep.encoder import Embedder, flatten_weights, set_weights
from foveate.federated.deep.options import EMBEDDED, SIZE, TRAIN
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule
from foveate.federated.rounds import Handler, stream

TEMPERATURE = 0.1
IGNORE = -100


def pseudo_labels(features_BD: Tensor, prototypes_KD: Tensor, *, spherical: bool = True) -> Tensor:
    """Nearest prototype of each row, [B]: by cosine, or by Euclidean distance; ties to the lower index."""
    if spherical:
        return (normalize(features_BD, dim=1) @ normalize(prototypes_KD, dim=1).T).argmax(1)
    return ((features_BD[:, None] - prototypes_KD[None]) ** 2).sum(-1).argmin(1)


def prototype_loss(
    features_BD: Tensor, prototypes_KD: Tensor, labels_B: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Cross-entropy of cosines over the temperature, mean over rows whose label is not -100."""
    # No gradient into the prototypes: with one, all vectors could collapse onto one point to lower the loss.
    with torch.no_grad():
        frozen_KD = normalize(prototypes_KD, dim=1)
    logits_BK = normalize(features_BD, dim=1) @ frozen_KD.T / temperature
    return cross_entropy(logits_BK, labels_B, ignore_index=IGNORE)


Augment = Callable[[Tensor, torch.Generator], Tensor]
_EMBED_BATCH = 512
"""Points embedded at once: bounds memory, not results, in evaluation mode."""


@dataclass(frozen=True)
class Training:
    """Settings of a client's training: SGD with momentum 0.9 on the cross-entropy at a temperature.

    Attributes:
        epochs: passes over its points.
        augment: a name of `AUGMENTS`, or of a function that clients have by themselves.
    """

    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 1e-6
    temperature: float = 0.1
    augment: str = "none"

    @classmethod
    def from_request(cls, request: Message) -> Training:
        """Read the fields of a request."""
        number = request.number
        return cls(
            epochs=int(number("epochs")),
            batch_size=int(number("batch_size")),
            learning_rate=float(number("learning_rate")),
            weight_decay=float(number("weight_decay")),
            temperature=float(number("temperature")),
            augment=str(request.values["augment"]),
        )


def embed(network: Embedder, points: Tensor, *, head: bool = True) -> NDArray[np.float64]:
    """Unit vectors of all points, or without `head` the encoder's output; evaluation mode, float64."""
    network.eval()
    with torch.inference_mode():
        parts = [network(part) if head else network.features(part) for part in points.split(_EMBED_BATCH)]
    # float64 for the k-means that follows: its ties and margins assume it.
    return torch.cat(parts).double().cpu().numpy()


def embedded_request(weights_P: NDArray[np.float32], options: ClusteringOptions, client: int, round: int) -> Message:
    """Request of centroids of a client's embeddings under these weights."""
    # Spreads are for the scales of features; embeddings have length 1.
    values = {**clustering.centroids_request(options, client).values, "send_spreads": False}
    return Message(EMBEDDED, round, {"weights": weights_P}, values)


def embedded_rule(options: ClusteringOptions, width: int) -> MessageRule:
    """Rule of the answers to `embedded_request`."""
    rule = clustering.centroids_rule(options)
    arrays = {name: array for name, array in rule.arrays.items() if name != "spreads"}
    # The server owns the encoder, so it knows the width; in plain clustering only a majority of clients can establish
    # it.
    return replace(rule, kind=EMBEDDED, arrays={**arrays, "centers": ArrayRule("float64", ("k", width))})


def train_request(
    weights_P: NDArray[np.float32], centers_KD: NDArray[np.float64], training: Training, seed: int, round: int
) -> Message:
    """Request to train towards centers. All that decides the answer, besides the client's data, is in it."""
    return Message(TRAIN, round, {"weights": weights_P, "centers": centers_KD}, {"seed": seed, **asdict(training)})


def train_rule(num_weights: int) -> MessageRule:
    """Rule of the answers to `train_request`."""
    arrays = {"weights": ArrayRule("float32", (num_weights,))}
    return MessageRule(TRAIN, arrays, {"points": int, "loss": float}, max_bytes=1 << 31, optional=frozenset({"loss"}))


def check_trained(points: float | None, answer: Message) -> None:
    """Raise MessageError if the client reports no point, or another number of points than with its centroids.

    The number is the client's weight in the average: it must not change between the two messages of a round.

    Args:
        points: number reported with the centroids; None where it was not asked for.
    """
    # The rule takes any whole number; zero or less is no weight for an average.
    if answer.number("points") < 1:
        raise MessageError("reports no point")
    if points is not None and answer.number("points") != points:
        raise MessageError(f"reports {answer.number('points'):g} points, but {points:g} with its centroids")


def handlers(network: Embedder, custom: Mapping[str, Augment] | None = None) -> dict[str, Handler]:
    """Handlers of a client. The network is only an architecture: its weights come with every request, and none stay.

    Args:
        custom: functions by name that a request's `augment` may name besides `AUGMENTS`.
    """

    def answer_embedded(data: Tensor, request: Message, client: int) -> Message:
        # First of all: one network object may serve several clients of a process.
        set_weights(network, request.array("weights"))
        points = clustering.unit_rows(_check_finite(embed(network, data)))
        seed = int(request.number("seed"))
        clusters = int(request.number("clusters"))
        local = local_kmeans(
            points,
            clusters,
            stream(seed, round=request.round, client=client, purpose="local k-means"),
            start=str(request.values["client_init"]),
            tries=int(request.number("n_init")),
            # Rows have unit length, so Euclidean and cosine distance rank centers alike.
            spherical=True,
        )
        clustering.warn_of_few_points(points, local, clusters, client)
        return clustering.describe(points, local, request)

    def answer_train(data: Tensor, request: Message, client: int) -> Message:
        set_weights(network, request.array("weights"))
        seed = int(request.number("seed"))
        random = stream(seed, round=request.round, client=client, purpose="training")
        training = Training.from_request(request)
        augment = find_augment(training.augment, custom or {})
        loss = train(network, data, request.array("centers"), training, augment, random)
        return request.answer(arrays={"weights": flatten_weights(network)}, points=len(data), loss=loss)

    return {EMBEDDED: answer_embedded, TRAIN: answer_train}


def _check_finite(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(vectors_ND).all():
        raise UserError("the encoder returns NaN or infinity for this client's points")
    return vectors_ND


def train(
    network: Embedder,
    points: Tensor,
    centers_KD: NDArray[np.float64],
    training: Training,
    augment: Augment | None,
    random: np.random.Generator,
    *,
    order_K: NDArray[np.int64] | None = None,
) -> float:
    """Train towards pseudo-labels; return the mean loss of the last epoch over the rows it used.

    Args:
        order_K: center that each label is trained towards; its own by default. Another order at every client is a
            control: as much training, towards centers that mean something else everywhere.

    Raises:
        UserError: no batch has two rows.
    """
    # Pseudo-labels are assigned once, before training, as in DeepCluster-v2: assigned again at every step they would
    # follow the drifting weights instead of the common centers.
    prototypes_KD = torch.from_numpy(np.array(centers_KD)).float().to(points.device)
    labels_N = pseudo_labels(torch.from_numpy(embed(network, points)).float().to(points.device), prototypes_KD)
    # Labels are mapped after the assignment, so the control differs in nothing but what its labels mean.
    if order_K is not None:
        labels_N = torch.from_numpy(order_K).to(points.device)[labels_N]
    # Augmentation runs in torch; its generator is seeded from the client's stream, so that one seed decides everything.
    torch_random = torch.Generator().manual_seed(int(random.integers(2**62)))
    # A fresh optimizer: momentum of the last round would belong to other weights, and clients keep nothing.
    optimizer = torch.optim.SGD(
        network.parameters(), lr=training.learning_rate, momentum=0.9, weight_decay=training.weight_decay
    )
    network.train()
    loss_sum, num_used = 0.0, 0
    for _ in range(training.epochs):
        loss_sum, num_used = 0.0, 0
        order = torch.from_numpy(random.permutation(len(points)))
        for rows in order.split(training.batch_size):
            if len(rows) < 2 and len(points) > 1:
                continue  # batch normalization has no statistics of a single row
            index = rows.to(points.device)
            batch = points[index] if augment is None else augment(points[index], torch_random)
            loss = prototype_loss(network(batch), prototypes_KD, labels_N[index], temperature=training.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(rows)
            num_used += len(rows)
    if training.epochs and len(points) and num_used == 0:
        raise UserError(f"batch_size must be at least 2, else no point is trained on (got {training.batch_size})")
    return loss_sum / max(num_used, 1)


def noise(batch: Tensor, random: torch.Generator) -> Tensor:
    """Add Gaussian noise of a tenth of each feature's standard deviation in the batch."""
    drawn = torch.randn(batch.shape, generator=random).to(batch.device)
    # A batch of one row has no standard deviation (NaN): it stays as it is.
    return batch + 0.1 * batch.std(0, keepdim=True).nan_to_num(0.0) * drawn


def shift(batch: Tensor, random: torch.Generator) -> Tensor:
    """Shift images by up to an eighth of their side in each direction, repeating edges."""
    reach = max(1, batch.shape[-1] // 8)
    padded = torch.nn.functional.pad(batch, (reach,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * reach + 1, (len(batch), 2), generator=random)
    height, width = batch.shape[-2:]
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, moves.tolist(), strict=True)]
    )


AUGMENTS: dict[str, Augment | None] = {"none": None, "noise": noise, "shift": shift}


def find_augment(name: str, custom: Mapping[str, Augment]) -> Augment | None:
    """Augmentation by name; None for "none".

    Raises:
        UserError: an unknown name.
    """
    known = AUGMENTS | dict(custom)
    return known[choose(name, known, "augment")]


MAX_FEATURES = 1 << 20
"""Of a point: a server builds a network for as many as clients report."""
SIZE_RULE = MessageRule(SIZE, values={"points": int, "features": int})


def check_size(client: int, answer: Message) -> None:
    """Raise MessageError for sizes that no data have."""
    if answer.number("points") < 1:
        raise MessageError("has no point")
    if not 1 <= answer.number("features") <= MAX_FEATURES:
        raise MessageError(f"has {answer.number('features'):g} features; allowed are 1 to {MAX_FEATURES:,}")
