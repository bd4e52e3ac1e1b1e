"""Look up the ground truth of images: generated worlds have one, photographs have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from foveate.core.plugins import load_all
from foveate.records.collection import Collection


class GroundTruth(Protocol):
    """Truth of some images of a collection, by which assertions about them are judged.

    Attributes:
        definition: how it judges, in a sentence for pages.
    """

    definition: str

    def __contains__(self, row: int) -> bool:
        """Whether the truth of a row of the collection is known."""
        ...

    def judge(self, row: int, assertions: Sequence[str]) -> list[str]:
        """Return "supported", "contradicted" or "unverifiable" for each assertion about the image of a row."""
        ...


class _Unknown:
    """Ground truth of photographs: there is none."""

    definition = ""

    def __contains__(self, row: int) -> bool:
        return False

    def judge(self, row: int, assertions: Sequence[str]) -> list[str]:
        raise KeyError(row)


def open_ground_truth(collection: Collection) -> GroundTruth:
    """Return the first ground truth that knows images of the collection, or one that knows none.

    The kinds are the modules of `foveate.caption.ground_truths`, each with `open_ground_truth(collection)`, which
    returns None for collections that are not of its world.
    """
    for open_kind in load_all("foveate.caption.ground_truths", "open_ground_truth").values():
        truth: GroundTruth | None = open_kind(collection)
        if truth is not None:
            return truth
    return _Unknown()
