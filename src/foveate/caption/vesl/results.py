"""result.json of `foveate regions`, as typed models: the run builds them, its page reads them."""

from __future__ import annotations

from typing import Any, Literal

from foveate.core.results import Example, Histogram, RunResult


class RegionsResult(RunResult):
    """The result of labeling regions.

    Attributes:
        oracle: the detector returns boxes that the collection held before.
        source: of the rows, `vesl:DETECTOR`.
        images: of the split; `done_before` of them were labeled by an earlier run of the recipe.
        status: number of images by status.
        regions, thin: regions written, and boxes dropped as thinner than a pixel, by all runs of the recipe.
        regions_new: regions that this run wrote.
        unreadable: key -> reason, for sample images that could not be read.
    """

    kind: Literal["regions"] = "regions"
    collection: str = ""
    split: str | None = None
    detector: str = ""
    oracle: bool = False
    model: str = ""
    source: str = ""
    recipe: dict[str, Any] = {}
    recipe_hash: str = ""
    images: int = 0
    done_before: int = 0
    status: dict[str, int] = {}
    regions: int = 0
    thin: int = 0
    regions_new: int = 0
    seconds: float | None = None
    stopped: bool = False
    code: str = ""
    histograms: dict[str, Histogram] = {}
    samples: list[Example] = []
    unreadable: dict[str, str] = {}
