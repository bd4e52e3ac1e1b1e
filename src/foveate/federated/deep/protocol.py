"""DeepFeCA's two questions a round, and what a client answers.

| kind | down | up |
|---|---|---|
| `query.embedded` | `weights` of the encoder, options | as `query.centroids`: centroids of embeddings |
| `train.prototypes` | `weights`, `centers`, how to train | `weights`; the numbers of points, the loss |
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
from foveate.federated.clients import Handler, stream
from foveate.federated.clustering import protocol as clustering
from foveate.federated.clustering.local import local_kmeans
from foveate.federated.clustering.options import Settings
from foveate.federated.deep.encoder import Embedder, set_weights, weights_of
from foveate.federated.deep.message_kinds import EMBEDDED, TRAIN
from foveate.federated.messages import ArrayRule, Message, MessageError, MessageRule

TEMPERATURE = 0.1
IGNORE = -100


def pseudo_labels(features_BD: Tensor, prototypes_KD: Tensor, *, spherical: bool = True) -> Tensor:
    """The nearest prototype of each row, [B]: by cosine, or by Euclidean distance; ties to the lower number."""
    if spherical:
        return (normalize(features_BD, dim=1) @ normalize(prototypes_KD, dim=1).T).argmax(1)
    return ((features_BD[:, None] - prototypes_KD[None]) ** 2).sum(-1).argmin(1)


def prototype_loss(
    features_BD: Tensor, prototypes_KD: Tensor, labels_B: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Cross-entropy of cosines over the temperature, in the mean over rows whose label is not -100.

    The prototypes are constants: no gradient flows into them.
    """
    with torch.no_grad():
        frozen_KD = normalize(prototypes_KD, dim=1)
    logits_BK = normalize(features_BD, dim=1) @ frozen_KD.T / temperature
    return cross_entropy(logits_BK, labels_B, ignore_index=IGNORE)


Augment = Callable[[Tensor, torch.Generator], Tensor]
_EMBED_BATCH = 512


@dataclass(frozen=True)
class Training:
    """How a client trains: `epochs` over its points in batches, SGD with momentum .9, cross-entropy at a temperature.

    `augment` is a name of `AUGMENTS`, or that of a function which clients have by themselves.
    """

    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 1e-6
    temperature: float = 0.1
    augment: str = "none"

    @classmethod
    def asked(cls, request: Message) -> Training:
        """What a request says."""
        number = request.number
        return cls(
            epochs=int(number("epochs")),
            batch_size=int(number("batch_size")),
            learning_rate=float(number("learning_rate")),
            weight_decay=float(number("weight_decay")),
            temperature=float(number("temperature")),
            augment=str(request.values["augment"]),
        )


def embedded(network: Embedder, points: Tensor, *, head: bool = True) -> NDArray[np.float64]:
    """Unit vectors of all points (or the encoder's features), in evaluation mode, float64."""
    network.eval()
    with torch.inference_mode():
        parts = [network(part) if head else network.features(part) for part in points.split(_EMBED_BATCH)]
    return torch.cat(parts).double().cpu().numpy()


def embedded_request(weights_P: NDArray[np.float32], settings: Settings, client: int, round: int) -> Message:
    """Asks for centroids of what the encoder makes of a client's points."""
    values = clustering.centroids_request(settings, client).values
    return Message(EMBEDDED, round, {"weights": weights_P}, values)


def embedded_rule(settings: Settings, width: int) -> MessageRule:
    """What the answer must be."""
    rule = clustering.centroids_rule(settings)
    return replace(rule, kind=EMBEDDED, arrays={**rule.arrays, "centers": ArrayRule("float64", ("k", width))})


def train_request(
    weights_P: NDArray[np.float32], centers_KD: NDArray[np.float64], training: Training, seed: int, round: int
) -> Message:
    """Asks a client to train towards the global centers. All that decides its answer, besides its data, is in it."""
    return Message(TRAIN, round, {"weights": weights_P, "centers": centers_KD}, {"seed": seed, **asdict(training)})


def train_rule(numbers: int) -> MessageRule:
    """Weights of as many numbers."""
    arrays = {"weights": ArrayRule("float32", (numbers,))}
    return MessageRule(TRAIN, arrays, {"points": int, "loss": float}, most_bytes=1 << 31)


def check_trained(points: float | None, answer: Message) -> None:
    """What the rule cannot say.

    Args:
        points: how many the client said with its centroids; None where it was not asked.

    Raises:
        MessageError: no point, which the mean of weights would be divided by, or another number than before.
    """
    if answer.number("points") < 1:
        raise MessageError("says that it has no point")
    if points is not None and answer.number("points") != points:
        raise MessageError(f"says that it has {answer.number('points'):g} points, and {points:g} with its centroids")


def handlers(network: Embedder, own: Mapping[str, Augment] | None = None) -> dict[str, Handler]:
    """A client's functions. The network is a shape: its weights come with every question, and none stay.

    Args:
        own: functions by name that a request's `augment` may name besides `AUGMENTS`.
    """

    def answer_embedded(data: Tensor, request: Message, client: int) -> Message:
        set_weights(network, request.array("weights"))
        points = clustering.unit_rows(_usable(embedded(network, data)))
        seed = int(request.number("seed"))
        clusters = int(request.number("clusters"))
        local = local_kmeans(
            points,
            clusters,
            stream(seed, round=request.round, client=client, purpose="local k-means"),
            start=str(request.values["client_init"]),
            tries=int(request.number("n_init")),
            spherical=True,
        )
        clustering.warn_of_few_points(points, local, clusters, client)
        return clustering.describe(points, local, request)

    def answer_train(data: Tensor, request: Message, client: int) -> Message:
        set_weights(network, request.array("weights"))
        seed = int(request.number("seed"))
        random = stream(seed, round=request.round, client=client, purpose="training")
        training = Training.asked(request)
        found = augment_of(training.augment, own or {})
        loss = train(network, data, request.array("centers"), training, found, random)
        return request.answer(arrays={"weights": weights_of(network)}, points=len(data), loss=loss)

    return {EMBEDDED: answer_embedded, TRAIN: answer_train}


def _usable(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(vectors_ND).all():
        raise UserError("the encoder makes NaN of this client's points")
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
    """Local epochs towards pseudo-labels that are taken once, before; returns the mean loss of the last epoch.

    Args:
        order_K: the center that each label is trained towards; its own by default. Another order at every client is a
            control: as much training, towards centers that mean something else everywhere.
    """
    prototypes_KD = torch.from_numpy(np.array(centers_KD)).float().to(points.device)
    labels_N = pseudo_labels(torch.from_numpy(embedded(network, points)).float().to(points.device), prototypes_KD)
    if order_K is not None:
        labels_N = torch.from_numpy(order_K).to(points.device)[labels_N]
    torch_random = torch.Generator().manual_seed(int(random.integers(2**62)))
    optimizer = torch.optim.SGD(
        network.parameters(), lr=training.learning_rate, momentum=0.9, weight_decay=training.weight_decay
    )
    network.train()
    loss_sum = 0.0
    for _ in range(training.epochs):
        loss_sum = 0.0
        order = torch.from_numpy(random.permutation(len(points)))
        for rows in order.split(training.batch_size):
            if len(rows) < 2 and len(points) > 1:
                continue  # batch statistics of a single row do not exist
            chosen = rows.to(points.device)
            batch = points[chosen] if augment is None else augment(points[chosen], torch_random)
            loss = prototype_loss(network(batch), prototypes_KD, labels_N[chosen], temperature=training.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += float(loss.detach()) * len(rows)
    return loss_sum / len(points)


def noise(batch: Tensor, random: torch.Generator) -> Tensor:
    """Features with Gaussian noise of a tenth of each feature's spread in the batch."""
    drawn = torch.randn(batch.shape, generator=random).to(batch.device)
    return batch + 0.1 * batch.std(0, keepdim=True).nan_to_num(0.0) * drawn


def shift(batch: Tensor, random: torch.Generator) -> Tensor:
    """Images moved by up to an eighth of their side in each direction, edges repeated."""
    most = max(1, batch.shape[-1] // 8)
    padded = torch.nn.functional.pad(batch, (most,) * 4, mode="replicate")
    moves = torch.randint(0, 2 * most + 1, (len(batch), 2), generator=random)
    height, width = batch.shape[-2:]
    return torch.stack(
        [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, moves.tolist(), strict=True)]
    )


AUGMENTS: dict[str, Augment | None] = {"none": None, "noise": noise, "shift": shift}


def augment_of(name: str, own: Mapping[str, Augment]) -> Augment | None:
    """The augmentation of that name; None for "none".

    Raises:
        UserError: there is none.
    """
    known = AUGMENTS | dict(own)
    return known[choose(name, known, "augment")]
