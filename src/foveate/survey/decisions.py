"""Decisions of a machine about images or events, as exporters of surveys take them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from foveate.records.boxes import Box
from foveate.survey.types import ObservationKind


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision about one image, or about one event by pooling its images.

    Args:
        key: of the image; "" for a decision about an event.
        event: id of the event that was pooled; "" for a decision about an image.
        keys: of the images of the event that the decision is about, where it is one of several; by default all.
        kind: "unknown" for an abstention, "unclassified" for an image that was not processed.
        taxon: scientific name of an animal, of any rank; "" where there is none.
        taxon_id, rank: of the taxon; "" where unknown.
        probability: of that taxon after all stages, in [0, 1].
        alternatives: names and probabilities, the best first.
        source: what each stage did, in order.
        count: of individuals, where counted.
    """

    key: str = ""
    event: str = ""
    keys: tuple[str, ...] = ()
    kind: ObservationKind = "animal"
    taxon: str = ""
    taxon_id: str = ""
    rank: str = ""
    probability: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    source: tuple[str, ...] = ()
    box: Box | None = None
    count: int | None = None

    @property
    def label(self) -> str:
        """The taxon, or else the kind."""
        return self.taxon or self.kind


def format_comment(decision: Decision) -> str:
    """Return alternatives and stages as compact JSON, "" where there are none.

    >>> format_comment(Decision(key="a", alternatives=(("Vulpes vulpes", 0.5512),), source=("rollup",)))
    '{"alternatives":[["Vulpes vulpes",0.5512]],"source":["rollup"]}'
    """
    content: dict[str, object] = {}
    if decision.alternatives:
        content["alternatives"] = [[name, round(probability, 4)] for name, probability in decision.alternatives]
    if decision.source:
        content["source"] = list(decision.source)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) if content else ""
