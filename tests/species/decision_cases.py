"""Small trees of taxa and bursts for tests of the decision stages."""

from __future__ import annotations

import numpy as np

from foveate.species.taxonomy import Classes
from foveate.survey.taxa import Taxa

RANKS = ("class", "order", "family", "genus", "species")
NON_ANIMALS = ("blank", "human", "vehicle")


def grow_taxa(num_species: int, rng: np.random.Generator, *, branches: int = 2) -> Taxa:
    """Grow a random tree from class to species; no name is the beginning of another."""
    rows: dict[str, dict[str, str]] = {}
    for _ in range(num_species):
        parent = ""
        for rank in RANKS:
            name = f"{parent[:-1]}{rng.integers(branches)}x" if parent else f"t{rng.integers(branches)}x"
            if rank == "species":
                name = f"{parent[:-1]}s{len(rows):04d}x"
            text = f"{parent} {name}" if rank == "species" else name
            rows.setdefault(
                text, {"id": text, "name": text, "rank": rank, "parent": parent, "common": f"common {text}"}
            )
            parent = text
    return Taxa.from_rows(rows.values())


def make_classes(taxa: Taxa, *, ranks: tuple[str, ...] = ("species",), more: tuple[str, ...] = NON_ANIMALS) -> Classes:
    """Make classes of the taxa of some ranks, and of labels without a taxon."""
    indices = [i for i, rank in enumerate(taxa.ranks) if rank in ranks]
    labels = (*(taxa.names[i] for i in indices), *more)
    return Classes(labels, np.array([*indices, *[-1] * len(more)], dtype=np.int64))


def draw_probabilities(count: int, num_classes: int, rng: np.random.Generator, *, sharpness: float = 4.0) -> np.ndarray:
    """Draw rows of probabilities, most of them sure of one class."""
    weights = np.exp(sharpness * rng.standard_normal((count, num_classes)))
    return weights / weights.sum(axis=1, keepdims=True)
