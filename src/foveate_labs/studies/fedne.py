"""The study `fedne`: one map of several clients with surrogate repulsion, compared with its baselines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foveate.core.experiment_grid import Cell
from foveate.core.seeds import generator
from foveate_labs.studies import point_sets
from foveate_labs.studies.study import Claim, Condition, Design, Measure, PaperClaim, Row

SHARDS, DIRICHLET, EVEN, MNIST, FASHION, FASHION_SKEWED, CELLS, IMAGES = (
    "digits-shards",
    "digits-dirichlet",
    "digits-even",
    "mnist-shards",
    "fashion-shards",
    "fashion-dirichlet",
    "cells",
    "images",
)
USED = (point_sets.MNIST, point_sets.FASHION, point_sets.CELLS)  # optional sets
FASHION_POINTS = 2_000
# Source, split, clients.
WORLDS: dict[str, tuple[str, str, int]] = {
    SHARDS: ("digits", "shards:2", 5),
    DIRICHLET: ("digits", "balanced:0.1", 10),
    EVEN: ("digits", "even", 5),
    MNIST: ("mnist", "shards:2", 5),
    FASHION: ("fashion", "shards:2", 5),
    FASHION_SKEWED: ("fashion", "balanced:0.1", 10),
    CELLS: ("cells", "balanced:0.5", 5),
    IMAGES: ("images", "shards:1", 8),
}
CONDITIONS = (
    Condition(SHARDS, "Digits, two a client", "1,797 images of 64 pixels over 5 clients, two digits each"),
    Condition(DIRICHLET, "Digits, Dirichlet", "over 10 clients of about equal size, Dirichlet(0.1), as FedNE splits"),
    Condition(EVEN, "Digits, even", "over 5 clients at random: every client sees all digits"),
    Condition(MNIST, "MNIST-5k, two a client", "5,000 images of 784 pixels over 5 clients, two digits each"),
    Condition(FASHION, "Fashion-MNIST, two a client", "2,000 of its images, other ones for every seed, over 5 clients"),
    Condition(FASHION_SKEWED, "Fashion-MNIST, Dirichlet", "over 10 clients of about equal size, Dirichlet(0.1)"),
    Condition(CELLS, "Blood cells", "700 cells as 50 principal components over 5 clients, Dirichlet(0.5), ten types"),
    Condition(IMAGES, "Built-in images", "Noto emoji as 432 frozen features over 8 clients, a category each"),
)
MEASURES = (
    Measure("knn", "Label by the vote of 7 map neighbors, held-out points"),
    Measure("trustworthiness", "Trustworthiness, held-out points"),
    Measure("continuity", "Continuity, held-out points"),
    Measure("hit", "Share of map neighbors with the same label"),
    Measure("foreign", "Share of map neighbors from other clients", control=True),
    Measure("distances", "Correlation of distances"),
    Measure("r2", "R2 of the surrogates, mean over rounds and clients"),
    Measure("megabytes", "Megabytes exchanged", control=True),
)
# Changes of `EmbeddingOptions`, by variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "fedavg": {"method": "fedavg"},
    "grid": {"method": "fedne", "surrogate": "grid"},
    "network": {"method": "fedne", "surrogate": "network"},
    "exact": {"method": "fedne_exact"},
    "shuffled": {"method": "fedne", "surrogate": "grid"},
    "grid-early": {"method": "fedne", "surrogate": "grid", "surrogate_start": 0.0},
    "grid-mixing": {"method": "fedne", "surrogate": "grid", "mixing": True},
    "fedavg-mixing": {"method": "fedavg", "mixing": True},
    "fedprox": {"method": "fedprox"},
    "local": {"method": "local"},
    "global": {"method": "global"},
}
ROWS = (
    Row("fedavg", "federated averaging", "the reference: clients do not feel one another", "fedavg", role="reference"),
    Row("grid", "FedNE, values on a grid", "the others' repulsion as a table of 28 x 28 values", "grid"),
    Row("network", "FedNE, surrogate networks", "as published", "network"),
    Row("exact", "exact positions", "the others' map positions themselves: not private", "exact", role="baseline"),
    Row("shuffled", "FedNE, shuffled grid", "control: the values of the grid in random order", "shuffled",
        role="control"),
    Row("grid-early", "FedNE from the first round", "grid; no rounds of plain averaging before", "grid-early"),
    Row("grid-mixing", "FedNE with mixing", "grid, and mixtures of near points", "grid-mixing"),
    Row("fedavg-mixing", "averaging with mixing", "mixtures of near points alone", "fedavg-mixing", role="baseline"),
    Row("fedprox", "FedProx", "averaging with clients held near the common encoder", "fedprox", role="baseline"),
    Row("local", "each client alone", "no exchange; unrelated maps laid on one another", "local", role="baseline"),
    Row("global", "all data in one place", "not federated: the upper end", "global", role="baseline"),
)  # fmt: skip


# Where not all variants are drawn: they cost a minute each on MNIST-5k.
DRAWN: dict[str, tuple[str, ...]] = {
    DIRICHLET: tuple(name for name in VARIANTS if name != "network"),
    EVEN: ("fedavg", "grid", "grid-early", "grid-mixing", "shuffled", "global"),
    MNIST: ("fedavg", "grid", "network", "shuffled", "global"),
    FASHION: ("fedavg", "grid", "shuffled", "global"),
    FASHION_SKEWED: ("fedavg", "grid", "shuffled", "global"),
    CELLS: tuple(name for name in VARIANTS if name != "network"),
    IMAGES: ("fedavg", "grid", "grid-early", "grid-mixing", "exact", "shuffled", "local", "global"),
}


def _claims() -> tuple[Claim, ...]:
    claims = [
        Claim("Feeling the others' exact positions tells labels better apart", SHARDS, "knn", "exact", "fedavg", 0.05,
              asserted=True),
        Claim("So do surrogate networks", SHARDS, "knn", "network", "fedavg", 0.0, asserted=True),
        Claim("So do values on a grid", SHARDS, "knn", "grid", "fedavg", 0.0, asserted=True),
        Claim("Clients lie less on one another with values on a grid", SHARDS, "foreign", "fedavg", "grid", 0.0,
              asserted=True),
        Claim("All data in one place remain far ahead", SHARDS, "knn", "global", "fedavg", 0.2, asserted=True),
    ]  # fmt: skip
    for condition in WORLDS:
        claims += [
            Claim("FedNE (grid) is better than averaging", condition, "knn", "grid", "fedavg",
                  source="captions of the paper, other data"),
            Claim("FedNE (grid) is more trustworthy than averaging", condition, "trustworthiness", "grid", "fedavg",
                  source="captions of the paper, other data"),
            Claim("Control: shuffled values gain less", condition, "knn", "grid", "shuffled",
                  asserted=condition == SHARDS),
        ]  # fmt: skip
        if "grid-mixing" in DRAWN.get(condition, VARIANTS):
            claims += [
                Claim("Mixing helps FedNE", condition, "knn", "grid-mixing", "grid", source="part of the method"),
                Claim("Waiting for 30 % of the rounds helps", condition, "knn", "grid", "grid-early"),
            ]
        if condition in (SHARDS, MNIST):
            claims.append(Claim("Surrogate networks do what the grid does, within .03", condition, "knn", "network",
                               "grid", -0.03))  # fmt: skip
    return tuple(claims)


PAPER_CLAIMS = (
    PaperClaim(
        "FedNE keeps labels apart better than federated averaging",
        claim="FedNE (grid) is better than averaging",
        control="Control: shuffled values gain less",
    ),
    PaperClaim(
        "FedNE is more trustworthy than federated averaging",
        claim="FedNE (grid) is more trustworthy than averaging",
        control="Control: shuffled values gain less",
    ),
    PaperClaim(
        "Mixing near points helps",
        claim="Mixing helps FedNE",
    ),
    PaperClaim(
        "Surrogates should wait for 30 % of the rounds",
        claim="Waiting for 30 % of the rounds helps",
    ),
    PaperClaim(
        "The published numbers at 60,000 points and up to 600 rounds",
        untestable="takes days on two cores; here 700 to 5,000 points and 60 rounds",
    ),
)

DESIGN = Design(
    name="fedne",
    title="One map of several clients",
    question="Does FedNE's surrogate repulsion improve the common map over federated averaging?",
    reference="fedavg",
    conditions=CONDITIONS,
    rows=ROWS,
    measures=MEASURES,
    claims=_claims(),
    paper_claims=PAPER_CLAIMS,
    limits=(
        "Small data: 700 to 5,000 points, 60 rounds; the paper has 60,000 points and up to 600 rounds.",
        "Start round, grid and kernel were chosen by others on digits split by pairs, before this study.",
        "Labels take no part in training; the vote measures how far the map keeps them apart.",
        "A seed changes the split, the start weights, every draw, and which points are held out.",
        "Nothing is corrected for the number of comparisons.",
    ),
    optional_data=tuple(point_sets.OPTIONAL[key] for key in USED),
)


@dataclass(frozen=True)
class FedneScale:
    """Size of the study; part of the identity of its cells."""

    rounds: int
    conditions: tuple[str, ...]
    variants: tuple[str, ...]
    seeds: int


FULL = FedneScale(rounds=60, conditions=tuple(WORLDS), variants=tuple(VARIANTS), seeds=5)
QUICK = FedneScale(
    rounds=60,
    conditions=(SHARDS, EVEN),
    variants=("fedavg", "grid", "exact", "shuffled", "local", "global"),
    seeds=2,
)


class FedneStudy(point_sets.PointSetStudy):
    """Fit one map of several clients and measure it."""

    design, full, quick = DESIGN, FULL, QUICK
    worlds, used = WORLDS, USED

    @classmethod
    def cells(cls, scale: Any, *, seed: int, datasets: Collection[str]) -> list[Cell]:
        """List what takes longest, surrogate networks on MNIST-5k, last; the others seed by seed."""
        listed = super().cells(scale, seed=seed, datasets=datasets)
        # The sort is stable: all other cells stay in the order of seeds.
        return sorted(listed, key=lambda cell: (cell.condition, cell.variant) == (MNIST, "network"))

    @classmethod
    def variants_of(cls, condition: str, scale: Any) -> Sequence[str]:
        return [variant for variant in scale.variants if variant in DRAWN.get(condition, VARIANTS)]

    @classmethod
    def parameters(cls, datasets: Collection[str]) -> dict[str, Any]:
        return {**super().parameters(datasets), "variants": VARIANTS, "fashion_points": FASHION_POINTS}

    def measure(self, cell: Cell) -> dict[str, float]:
        from foveate.federated.embedding.job import fit_clients
        from foveate.federated.embedding.options import EmbeddingOptions
        from foveate.federated.embedding.quality import measure_quality, stack_clients
        from foveate.federated.embedding.run import split_held_out
        from foveate.federated.sources import split_clients

        source, split, count = WORLDS[cell.condition]
        points, labels = point_sets.points_of(
            source, folder=self.folder, datasets=self.datasets, seed=cell.seed, max_points=FASHION_POINTS
        )
        clients = split_clients(points, labels.astype(str), split, count, seed=cell.seed)
        # Votes, trustworthiness and continuity are measured on points that the map was not fitted to.
        parts = split_held_out(clients, 0.2, seed=cell.seed)
        options = EmbeddingOptions(rounds=self.scale.rounds, seed=cell.seed, **VARIANTS[cell.variant])
        make_transport = shuffling(cell.seed) if cell.variant == "shuffled" else None
        fitted = fit_clients(parts.fit, options, device=self.device or "cpu", make_transport=make_transport)
        drawn = [
            stack_clients(
                side, [fitted.transform(points_of_client, client=n) for n, points_of_client in enumerate(side)], labels
            )
            for side, labels in ((parts.fit, parts.fit_labels), (parts.held_out, parts.held_out_labels))
        ]
        values = measure_quality(drawn[0], drawn[1], k=options.neighbors)
        history = fitted.state.history
        # Plain averaging, and rounds before surrogates start (30 % by default), have no R2.
        fits = [np.mean(list(entry["r2"].values())) for entry in history if entry["r2"]]
        if fits:
            values["r2"] = float(np.mean(fits))
        values["megabytes"] = sum(entry["bytes_up"] + entry["bytes_down"] for entry in history) / 1e6
        return values


def shuffling(seed: int) -> Callable[[Sequence[Any], Any], Any]:
    """Return a transport that shuffles the grid values for every client: equal repulsion, random places."""
    from foveate.federated.messages import Message
    from foveate.federated.rounds import InProcess

    class Shuffled(InProcess):
        def ask(self, requests: Any, *arguments: Any, **options: Any) -> Any:
            # Fields come in one request per client, each with the sum of the others'; a message to all has none.
            if not isinstance(requests, Message):
                requests = {client: spoiled(client, request) for client, request in requests.items()}
            return super().ask(requests, *arguments, **options)

    def spoiled(client: int, request: Message) -> Message:
        if "field" not in request.arrays:
            return request
        order = generator("fedne control", seed, request.round, client).permutation(len(request.array("field")))
        return replace(request, arrays={**request.arrays, "field": request.array("field")[order]})

    return lambda members, log: Shuffled(members, log=log)


STUDY = FedneStudy
