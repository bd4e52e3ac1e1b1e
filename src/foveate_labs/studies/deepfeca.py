"""The study `deepfeca`: one encoder trained at several clients towards common centers, and its ablations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.experiment_grid import Cell
from foveate.core.seeds import generator
from foveate_labs.studies import point_sets
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row

SETS = {
    "digits": "Digits as 64 numbers",
    "drawn": "Digits as images",
    "emoji": "Built-in images' features",
    "mnist": "MNIST-5k as 784 numbers",
}
WHAT = {
    "digits": "1,797 points; a head of two layers is trained",
    "drawn": "1,797 images of 8 x 8; a small residual network and a head are trained",
    "emoji": "Noto emoji as 432 frozen features, a category each; a head is trained",
    "mnist": "5,000 points; a head is trained",
}
SPLITS = {"even": "even", "some": "dirichlet:0.3", "few": "dirichlet:0.1"}
# Condition -> data, split, clients.
WORLDS: dict[str, tuple[str, str, int]] = {
    "digits-even": ("digits", "even", 8),
    "digits-some": ("digits", "some", 8),
    "digits-few": ("digits", "few", 8),
    "drawn-some": ("drawn", "some", 8),
    "drawn-few": ("drawn", "few", 8),
    "emoji-some": ("emoji", "some", 8),
    "emoji-few": ("emoji", "few", 8),
    "mnist-some": ("mnist", "some", 8),
}
# Options of `DeepOptions` by set.
# Rates and rounds were set on seeds 100 and 101, which the study does not use.
ENCODERS: dict[str, dict[str, Any]] = {
    "digits": {"augment": "noise"},
    "drawn": {"encoder": "small_resnet", "augment": "shift", "learning_rate": 0.01},
    "emoji": {"augment": "noise"},
    "mnist": {"augment": "noise"},
}
CONDITIONS = tuple(
    Condition(key, f"{SETS[name]}, {SPLITS[split]}, {clients} clients", WHAT[name])
    for key, (name, split, clients) in WORLDS.items()
)
MEASURES = (
    Measure("nmi", "NMI of groups and labels"),
    Measure("probe", "Linear probe on the encoder's output, points that it did not see"),
    Measure("knn", "Label by the vote of 7 neighbors in the encoder's output"),
    Measure("ari", "ARI"),
    Measure("purity", "Purity"),
    Measure("megabytes", "Megabytes exchanged", control=True),
)
# Row -> method of `DeepOptions`; "shuffled" and "raw" are made here.
VARIANTS = {
    "deepfeca": "deepfeca",
    "local": "local",
    "shuffled": "deepfeca",
    "untrained": "untrained",
    "central": "central",
    "raw": "",
}
ROWS = (
    Row("deepfeca", "DeepFeCA, reconstructed", "the reference: clients train towards common centers", "deepfeca",
        role="reference"),
    Row("local", "towards each client's own centroids", "weights are averaged, centers are not common", "local"),
    Row("shuffled", "centers shuffled between clients", "control: a group is trained towards another center at every "
        "client", "shuffled", role="control"),
    Row("untrained", "untrained encoder", "consensus of what the start weights make", "untrained", role="baseline"),
    Row("raw", "no encoder", "consensus of the numbers themselves", "raw", role="baseline"),
    Row("central", "all data in one place", "not federated: DeepCluster at one client", "central", role="baseline"),
)  # fmt: skip


def _claims() -> tuple[Claim, ...]:
    claims = []
    # The claims that must hold were chosen on seeds 100 and 101, too.
    for condition in WORLDS:
        claims += [
            Claim("Training makes groups match labels better than the untrained encoder's", condition, "nmi",
                  "deepfeca", "untrained", asserted=condition == "drawn-some"),
            Claim("... and a linear probe sees more", condition, "probe", "deepfeca", "untrained",
                  source="the paper's measure, other data"),
            Claim("Common centers are better than each client's own", condition, "nmi", "deepfeca", "local",
                  asserted=condition == "digits-few"),
            Claim("... for a linear probe, too", condition, "probe", "deepfeca", "local"),
            Claim("Control: shuffled centers are worse", condition, "nmi", "deepfeca", "shuffled",
                  asserted=condition == "digits-some"),
            Claim("An encoder is worth more than none", condition, "nmi", "deepfeca", "raw"),
            Claim("All data in one place are not better by more than .05", condition, "nmi", "deepfeca", "central",
                  -0.05),
        ]  # fmt: skip
    return tuple(claims)


PAPER_CLAIMS = (
    PaperClaim(
        "Training towards common groups gives better features (linear probe)",
        claim="... and a linear probe sees more",
        control="Control: shuffled centers are worse",
    ),
    PaperClaim(
        "Common centers beat those of each client",
        claim="Common centers are better than each client's own",
        control="Control: shuffled centers are worse",
    ),
    PaperClaim(
        "The published numbers on Tiny-ImageNet",
        untestable="the paper's body was not available; the training loop is a reconstruction on small data",
    ),
)

DESIGN = Design(
    name="deepfeca",
    title="One encoder of several clients, without labels",
    question="Do clients that train towards common centers learn a better encoder than its parts alone?",
    reference="deepfeca",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=_claims(),
    paper_claims=PAPER_CLAIMS,
    limits=(
        "The loop is a reconstruction: the paper's body was not available, and no number here is the paper's.",
        "Small data and small encoders: the paper trains on Tiny-ImageNet.",
        "Rounds, rates and augmentation were set on seeds 100 and 101, and claims that must hold were chosen there.",
        "Labels take no part in training; a probe is logistic regression, fitted with the labels of four fifths of the "
        "points.",
        "A seed changes the split, the start weights and every draw. Nothing is corrected for the number of "
        "comparisons.",
    ),
    optional_data=(point_sets.OPTIONAL[point_sets.MNIST],),
)


@dataclass(frozen=True)
class DeepFecaScale:
    """Size of the study; part of the identity of its cells."""

    rounds: int
    conditions: tuple[str, ...]
    seeds: int


FULL = DeepFecaScale(rounds=10, conditions=tuple(WORLDS), seeds=5)
QUICK = DeepFecaScale(rounds=10, conditions=("digits-some", "drawn-few"), seeds=2)


class DeepfecaStudy(point_sets.PointSetStudy):
    """Split one set, train one variant and measure its groups and its encoder."""

    design, full, quick = DESIGN, FULL, QUICK
    worlds, used = WORLDS, (point_sets.MNIST,)
    image_set = "emoji"
    variants = tuple(VARIANTS)

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {**super().parameters(datasets), "variants": VARIANTS, "encoders": ENCODERS}

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate.federated.deep.job import fit_clients, make_handlers
        from foveate.federated.deep.options import read_options
        from foveate.federated.deep.run import measure_quality
        from foveate.federated.rounds import sum_bytes
        from foveate.federated.sources import gather

        name, split, count = WORLDS[cell.condition]
        source: str | Path = {"emoji": self.folder / "images.npz", "mnist": "mnist-5k"}.get(name, "digits")
        clients = gather([source], label="label", split=SPLITS[split], clients=count, seed=cell.seed)
        assert clients.labels is not None
        labels = np.concatenate([part.astype(str) for part in clients.labels])
        clusters = len(np.unique(labels))
        if cell.variant == "raw":
            return raw(clients.points, labels, clusters, seed=cell.seed)
        options = read_options(
            {
                "clusters": clusters,
                "method": VARIANTS[cell.variant],
                "rounds": self.scale.rounds,
                "seed": cell.seed,
                **ENCODERS[name],
            }
        )
        handlers = shuffling if cell.variant == "shuffled" else make_handlers
        fitted = fit_clients(clients.points, options, device=self.device or "cpu", make_handlers=handlers)
        # All points are measured, none held out: labels take no part in training.
        points = np.concatenate(clients.points)
        vectors, outputs = fitted.transform(points), fitted.outputs(points)
        values = measure_quality(vectors, outputs, fitted.predict(points), fitted.centers, labels, seed=cell.seed)
        values.pop("distance")  # of another embedding in every row
        table = fitted.state.exchanged
        return {**values, "megabytes": (sum_bytes(table, up=True) + sum_bytes(table, up=False)) / 1e6}


def raw(parts: list[np.ndarray], labels: np.ndarray, clusters: int, *, seed: int) -> dict[str, float]:
    """Measure `consensus` on the input features, without an encoder."""
    from foveate.federated.deep.run import measure_quality
    from foveate.federated.estimators import FederatedKMeans

    estimator = FederatedKMeans(clusters, random_state=seed).fit(parts)
    points = np.concatenate(parts)
    values = measure_quality(
        points, points, np.concatenate(estimator.labels_), estimator.cluster_centers_, labels, seed=seed
    )
    values.pop("distance")
    return {**values, "megabytes": (estimator.bytes_up_ + estimator.bytes_down_) / 1e6}


def order_of(seed: int, client: int, clusters: int) -> np.ndarray:
    """Return the center towards which the control trains each group of a client, the same in all rounds."""
    return generator("deepfeca control", seed, client).permutation(clusters).astype(np.int64)


def shuffling(network: Any, options: Any) -> dict[str, Any]:
    """Return a client's handlers for the control: each group is trained towards another center."""
    from foveate.federated.deep.encoder import flatten_weights, set_weights
    from foveate.federated.deep.job import make_handlers
    from foveate.federated.deep.protocol import TRAIN, Training, find_augment, train
    from foveate.federated.rounds import stream

    def astray(data: Any, request: Any, client: int) -> Any:
        set_weights(network, request.array("weights"))
        seed, centers = int(request.number("seed")), request.array("centers")
        # Another order at every client: one order for all would only rename the centers.
        order = order_of(seed, client, len(centers))
        random = stream(seed, round=request.round, client=client, purpose="training")
        training = Training.from_request(request)
        loss = train(network, data, centers, training, find_augment(training.augment, {}), random, order_K=order)
        return request.answer(arrays={"weights": flatten_weights(network)}, points=len(data), loss=loss)

    return {**make_handlers(network, options), TRAIN: astray}


STUDY = DeepfecaStudy
