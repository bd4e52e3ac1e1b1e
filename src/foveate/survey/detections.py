"""Rows of detectors and classifiers about images, and decisions about images or events, independent of any file format.

Importers of MegaDetector's and SpeciesNet's results make such rows, the exporter of MegaDetector's writes them, and
they become observations of a survey. Exporters of surveys take decisions.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from foveate.records.boxes import Box
from foveate.survey.types import ObservationKind

NUM_FIELDS = 7  # fields in a SpeciesNet label
_RANKS = ("class", "order", "family", "genus", "species")
# Names of classes that are no taxa, as detectors and classifiers write them.
_KINDS: dict[str, ObservationKind] = {
    "animal": "animal",
    "person": "human",
    "human": "human",
    "homo sapiens": "human",
    "vehicle": "vehicle",
    "blank": "blank",
    "empty": "blank",
    "unknown": "unknown",
    "no cv result": "unknown",
}


def get_kind(name: str) -> ObservationKind:
    """Return the kind of observation of a class: "animal" for everything but a few names.

    >>> get_kind("person"), get_kind("empty"), get_kind("Red Fox")
    ('human', 'blank', 'animal')
    """
    return _KINDS.get(name.strip().lower(), "animal")


@dataclass(frozen=True, slots=True)
class ClassLabel:
    """A class of a classifier.

    Args:
        name: as people read it, such as "red fox".
        description: taxonomy in SpeciesNet's seven fields `id;class;order;family;genus;species;common name`, where
            the file has it; other descriptions stay as they are.

    >>> fox = ClassLabel("red fox", "t044;mammalia;carnivora;canidae;vulpes;vulpes;red fox")
    >>> fox.taxon, fox.taxon_id, fox.kind
    ('Vulpes vulpes', 't044', 'animal')
    >>> ClassLabel("dog family", "t021;mammalia;carnivora;canidae;;;dog family").taxon
    'Canidae'
    >>> ClassLabel("red fox", ";;;;;;red fox").taxon
    'Red fox'
    """

    name: str
    description: str = ""

    @classmethod
    def from_lineage(cls, name: str, taxon_id: str, lineage: Mapping[str, str]) -> Self:
        """Make the class of a taxon with its description in seven fields.

        Args:
            name: common name, or the scientific one.
            taxon_id: without ";".
            lineage: scientific name by rank: "class", "order", "family", "genus", "species" (the binomial).

        >>> ClassLabel.from_lineage("red fox", "5219243", {"genus": "Vulpes", "species": "Vulpes vulpes"}).description
        '5219243;;;;vulpes;vulpes;red fox'
        """
        # SpeciesNet writes them in lower case.
        names = {rank: lineage.get(rank, "").lower() for rank in _RANKS}
        genus, _, epithet = names["species"].partition(" ")
        names |= {"genus": names["genus"] or genus, "species": epithet}
        fields = [taxon_id, *names.values(), name]
        # A ";" inside of a name would shift the fields behind it.
        return cls(name, ";".join(field.replace(";", ",") for field in fields))

    @property
    def kind(self) -> ObservationKind:
        """Kind of an observation of this class."""
        return get_kind(self.taxon) if self.taxon else get_kind(self.name)

    @property
    def is_species(self) -> bool:
        """Whether the class is a taxon of animals, of any rank."""
        return bool(self.taxon) and self.kind == "animal"

    @property
    def taxon(self) -> str:
        """Scientific name of the description, else the name; "" where the class is no taxon."""
        fields = self.description.split(";")
        if len(fields) == NUM_FIELDS:
            ranks, genus, species = fields[1:4], fields[4], fields[5]
            name = f"{genus} {species}" if genus and species else next(filter(None, [genus, *reversed(ranks)]), "")
        else:
            # MegaDetector's example writes only ranks, from the kingdom down, and the binomial as the species.
            name = next(filter(None, reversed(fields)), "")
        # A description may have no rank at all, if the class was known only by its name and then exported again.
        if not name and self.name.strip().lower() not in _KINDS:
            name = self.name
        # SpeciesNet writes all fields in lower case; a scientific name begins with a capital.
        return name[:1].upper() + name[1:]

    @property
    def taxon_id(self) -> str:
        """Id of the taxon in the classifier's taxonomy; "" where the description has none."""
        fields = self.description.split(";")
        return fields[0] if len(fields) == NUM_FIELDS else ""


ScoredLabel: TypeAlias = tuple[ClassLabel, float]


@dataclass(frozen=True, slots=True)
class Detection:
    """One box of a detector.

    Args:
        category: the detector's name of the class: "animal", "person", "vehicle" or another.
        confidence: of the detector, in [0, 1].
        classifications: classes of the box with their scores, best first.
        raw_classifications: the classifier's scores before rules such as SpeciesNet's geofence changed them.
        frame: number of the frame, in a video.

    Example:
        >>> fox = ClassLabel("red fox", ";mammalia;carnivora;canidae;vulpes;vulpes;red fox")
        >>> detection = Detection("animal", 0.93, Box(0.1, 0.2, 0.5, 0.6), classifications=((fox, 0.8),))
        >>> detection.classifications[0][0].taxon
        'Vulpes vulpes'
    """

    category: str
    confidence: float
    box: Box
    classifications: tuple[ScoredLabel, ...] = ()
    raw_classifications: tuple[ScoredLabel, ...] = ()
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A decision about a whole image: a class, its score, and the rule it comes from."""

    label: ClassLabel
    score: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class DetectedImage:
    """One image or video of a results file.

    Args:
        file: path with forward slashes, without a drive or leading slash.
        failure: why the tool could not process it; such a file has no detections.
        prediction: of a classifier that looks at whole images.
        raw_prediction: its scores before rules changed them, best first.
        time: as written.
        frame_rate: frames a second, of a video.
        frames: numbers of the frames that were processed, of a video.

    Example:
        >>> image = DetectedImage("cam-1/0001.jpg", (Detection("animal", 0.93, Box(0.1, 0.2, 0.5, 0.6)),))
        >>> [detection.category for detection in image.detections]
        ['animal']
    """

    file: str
    detections: tuple[Detection, ...] = ()
    failure: str = ""
    prediction: Prediction | None = None
    raw_prediction: tuple[ScoredLabel, ...] = ()
    time: str = ""
    frame_rate: float | None = None
    frames: tuple[int, ...] | None = None


def classify_boxes(image: DetectedImage) -> Iterator[tuple[Detection, ScoredLabel | None]]:
    """Yield each box with its class; one of the whole image belongs to every box that the detector calls the same.

    A box without a class, or one that the classifier calls blank, is still the detector's box.
    """
    for detection in image.detections:
        best = detection.classifications[0] if detection.classifications else None
        prediction = image.prediction
        # The class of an image does not apply to boxes of another kind: a fox is not the person beside it.
        if best is None and prediction is not None and prediction.label.kind == get_kind(detection.category):
            best = prediction.label, prediction.score
        yield detection, best if best is not None and best[0].kind in ("animal", "human", "vehicle") else None


@dataclass(slots=True)
class DetectionResults:
    """Content of a results file.

    Args:
        format: name and version, such as "MegaDetector 1.6".
        detector, classifier: names of the models; "" where not stated.
        detected_at, classified_at: as written.
        categories: the detector's names of its classes.
        labels: the classifier's classes, those without a score among them.
        repairs: what was doubtful and repaired, with the number of times.
        named: outcome of `repairs` -> the images that are left out or contradict themselves.
    """

    images: list[DetectedImage]
    format: str = ""
    detector: str = ""
    detected_at: str = ""
    classifier: str = ""
    classified_at: str = ""
    categories: tuple[str, ...] = ()
    labels: tuple[ClassLabel, ...] = ()
    repairs: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)


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

    Example:
        >>> Decision(key="cam-1/0001", taxon="Vulpes vulpes", rank="species", probability=0.8).label
        'Vulpes vulpes'
        >>> Decision(key="cam-1/0002", kind="blank").label
        'blank'
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
