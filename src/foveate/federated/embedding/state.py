"""State of a map's training between two rounds: the common encoder, and each client's repulsion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from foveate.core.progress import say
from foveate.federated.embedding.grids import CoordinateGrid
from foveate.federated.job import TrainingSnapshot

Array = NDArray[Any]
OWN_NOISE = "clients hide what they send by noise of their own, whose cost only they know"
"""Note of a run in which clients sent no losses, although the options ask for no noise."""


@dataclass
class Repulsion:
    """One client's repulsion, as the server holds it.

    Attributes:
        vector: a surrogate's weights, or the values of a field.
        box: where it is valid, [2, d].
        r2: how well it fits between its queries.
        round: in which it was made.
        gradient_cosine, gradient_ratio: see `FieldQuality`; None where they are not measured, as with noise.
    """

    vector: Array
    box: Array
    r2: float
    round: int
    gradient_cosine: float | None = None
    gradient_ratio: float | None = None


@dataclass
class MapState(TrainingSnapshot):
    """State of FedNE's training.

    Attributes:
        encoder: the common weights, [P].
        sizes: points by client, without mixed ones.
        features: number of values of a point.
        local_weights: weights by client, method `local` only.
        repulsions: by client.
        grid: of the fields in `repulsions`.
        notes: what a user should know, and how often each occurred.
    """

    encoder: Array
    sizes: dict[int, int]
    features: int
    local_weights: dict[int, Array] = field(default_factory=dict)
    repulsions: dict[int, Repulsion] = field(default_factory=dict)
    grid: CoordinateGrid | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def add_note(self, text: str) -> None:
        """Count a note, and print it the first time."""
        if text not in self.notes:
            say(text)
        self.notes[text] = self.notes.get(text, 0) + 1
