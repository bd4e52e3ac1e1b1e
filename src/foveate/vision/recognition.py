"""Name, list and find things in photographs by what `bridge` knows: ImageNet's classes and their hypernyms, and COCO's.

Each of the detector's boxes, and the whole image, has the probabilities of 1,000 classes. Summed over the hypernyms of
WordNet they also say "a dog" where twenty breeds are equally likely; a thing gets the most specific name whose sum is
high enough. Names and hypernyms are those of tools/build_recognition.py; thresholds were chosen on half of the images
of benchmarks/ask_photographs.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.files import read_json
from foveate.core.paths import DATA
from foveate.records.boxes import Box, pairwise_iou
from foveate.records.text import singular
from foveate.vision import lite0
from foveate.vision.bridge import BridgeEncoder
from foveate.vision.encoder import BoxProposals
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel
from foveate.vision.localizer.sources import open_localizer
from foveate.vision.preprocess import render_file

NAMES = DATA / "recognition" / "names.json"
MIN_NAME = 0.4  # sum of probabilities of a name; a more general one is said where it is lower
REST = 0.3
MIN_WHOLE = 0.15  # the same of the whole image's mean over views, which is flatter than that of a box
MIN_SAID = 0.25  # score below which the whole image is given no name
MIN_DETECTED = 0.6  # score of a detected class that the classifier does not confirm
MIN_AGREED = 0.3  # and of one that it confirms, with MIN_CONFIRMED
MIN_CONFIRMED = 0.1
MIN_PRESENT = 0.2  # score from which a thing that is asked for counts as there
MIN_SIMILAR = 0.66  # cosine from which a word that WordNet's names lack stands for a class
MAX_THINGS = 5
MIN_OBJECT = 0.25  # score of a box whose crop alone says what it is
OBJECT = 0.4  # score of a box from which its crop counts wholly
MIN_OVERLAP = 0.45  # IoU from which two boxes are one thing
MIN_INSIDE = 0.7  # share of a box inside another one from which it is a part of it
# What is added to a box's score for its size: a crop of a part is often named as surely as the whole.
AREA_WEIGHT = 0.3
# Weights in the score of a box for a phrase, beside bridge's own: the sum of the probabilities of what the phrase
# names, and the score of a detected class of that name.
CROP_WEIGHT, CLASS_WEIGHT = 1.0, 0.5
_ARTICLES = frozenset("a an the any some this that these those my your his her its our their one".split())
_PREPOSITION = re.compile(r"\b(?:of|in|on|at|with|from|by|near|behind|under|next|that|which|and)\b")


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that was recognized.

    Attributes:
        name: without an article. score: in [0, 1]. box: in [0, 1] of the image; None for the image as a whole.
        parent: a common name of its kind, "cat" for a tabby cat; "" where there is none.
        is_detected: whether the detector says so, too.
    """

    name: str
    score: float
    box: Box | None = None
    parent: str = ""
    is_detected: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """Whether an image shows a phrase.

    Attributes:
        thing: the best box. has_match: whether its score is above the floor.
        is_known: whether the phrase is a name that the classes have; else only its sentence vector was compared.
    """

    thing: Thing
    has_match: bool
    is_known: bool
    score: float
    floor: float


class Evidence(NamedTuple):
    """What the networks say of one image.

    Attributes:
        image_C: probabilities of the whole image, the mean of several views. view_C: of one view.
        boxes_K4: in [0, 1]. score_K, class_K: of the detector. crops_KC: probabilities of each box.
        proposals: the boxes as phrases are compared with them. size: width and height in pixels.
    """

    image_C: NDArray[np.float64]
    view_C: NDArray[np.float64]
    boxes_K4: NDArray[np.float64]
    score_K: NDArray[np.float64]
    class_K: NDArray[np.int64]
    crops_KC: NDArray[np.float64]
    proposals: BoxProposals
    size: tuple[int, int]


class NameGraph:
    """ImageNet's classes under their hypernyms, with the words that people use.

    Attributes:
        members_NC: which classes are under each node; the first 1,000 nodes are the classes themselves.
        names: of the nodes that an answer may say, "" for the others.
        detector: names of COCO's classes. detector_nodes: the nodes of each, none where ImageNet has no such thing.
    """

    def __init__(self) -> None:
        stored = read_json(NAMES)
        self.nodes: list[dict] = stored["nodes"]
        self.detector: list[str] = stored["detector"]
        self.detector_parents: dict[str, str] = stored["detector_parents"]
        self.aliases: dict[str, str] = stored["aliases"]
        self.names = [
            node["words"][0] if row < lite0.CLASSES else node.get("name", "") for row, node in enumerate(self.nodes)
        ]
        self.ancestors = [self._list_ancestors(row) for row in range(len(self.nodes))]
        self.members_NC = np.zeros((len(self.nodes), lite0.CLASSES), dtype=bool)
        for row in range(lite0.CLASSES):
            self.members_NC[self.ancestors[row], row] = True
        self.size_N = self.members_NC.sum(axis=1)
        self.named_N = np.array([bool(name) for name in self.names])
        self.words: dict[str, list[int]] = {}
        for row, node in enumerate(self.nodes):
            # A word means what it means first: "cat" the animal before a whip.
            words = [*node["words"], self.names[row]]
            for word in dict.fromkeys(_clean(word).casefold() for word in words if word):
                self.words.setdefault(word, []).append(row)
        self.detector_nodes = [self.words.get(self.aliases.get(name, name), []) for name in self.detector]

    def _list_ancestors(self, row: int) -> list[int]:
        rows = [row]
        for each in rows:
            rows += [up for up in self.nodes[each]["up"] if up not in rows]
        return rows

    def find_nodes(self, phrase: str) -> tuple[str, list[int], list[int]]:
        """Return the words of a phrase that name something, its nodes, and the numbers of COCO's classes.

        Adjectives in front are left out until a name is left: "a red sports car" is a sports car.
        """
        words = normalize_phrase(phrase).split()
        for start in range(len(words)):
            for text in dict.fromkeys((" ".join(words[start:]), " ".join([*words[start:-1], singular(words[-1])]))):
                text = self.aliases.get(text, text)
                nodes = self.words.get(text, [])
                classes = [number for number in range(len(self.detector)) if self._is_detected_as(number, text, nodes)]
                if nodes or classes:
                    return text, nodes, classes
        return "", [], []

    def _is_detected_as(self, number: int, text: str, nodes: Sequence[int]) -> bool:
        """Whether what the detector calls its class `number` is a `text`."""
        parents = self.detector_parents.get(self.detector[number], "").split("|")
        if text == self.detector[number] or text in parents:
            return True
        # Below one of the nodes: a bus is a vehicle, a vehicle no bus.
        return any(node in self.ancestors[own] for own in self.detector_nodes[number] for node in nodes)

    def choose_name(self, mass_N: NDArray[np.float64], minimum: float) -> int | None:
        """Return the most specific node with a name whose sum of probabilities is at least `minimum`."""
        rows = np.flatnonzero((mass_N >= minimum) & self.named_N)
        return int(min(rows, key=lambda row: (self.size_N[row], -mass_N[row]))) if len(rows) else None

    def find_parent(self, row: int) -> str:
        """Return the nearest common name above a node, "" where it has none."""
        above = [up for up in self.ancestors[row][1:] if self.names[up] and self.names[up] != self.names[row]]
        return self.names[above[0]] if above else ""

    def is_related(self, name: str, other: str) -> bool:
        """Whether two names are those of one thing, or one is above the other."""
        if name == other:
            return True
        pairs = [(self.words.get(name.casefold(), []), self.words.get(other.casefold(), []))]
        return any(
            a in self.ancestors[b] or b in self.ancestors[a] for rows, others in pairs for a in rows for b in others
        )


@functools.cache
def load_names() -> NameGraph:
    """Load the shipped names."""
    return NameGraph()


def _clean(name: str) -> str:
    """Return a name of open_clip's without its explanation: "kite (bird of prey)"."""
    return re.sub(r"\s*\(.*\)", "", name)


def normalize_phrase(phrase: str) -> str:
    """Return a phrase in small letters, without articles in front and what follows a preposition.

    >>> normalize_phrase("the red cars on the road")
    'red cars'
    """
    text = " ".join(re.findall(r"[\w'-]+", phrase.casefold()))
    head = _PREPOSITION.split(text, maxsplit=1)[0].strip() or text
    words = head.split()
    while len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(words)


class Recognizer:
    """See the module.

    Args:
        model: `bridge`.
    """

    def __init__(self, model: LocalizingModel) -> None:
        assert isinstance(model.image_encoder, BridgeEncoder)
        self.model, self.encoder, self.graph = model, model.image_encoder, load_names()

    @classmethod
    def open(cls, *, device: str | None = None) -> Recognizer:
        """Open the networks that ship with Foveate."""
        return cls(open_localizer("bridge", device=device))

    @torch.inference_mode()
    def read(self, image: bytes) -> Evidence:
        """Run the networks on one encoded image.

        Raises:
            BadImage: it cannot be read.
        """
        encoder = self.encoder
        pixels_3HW, placement = render_file(image, encoder.preprocess)
        pixels_3HW = pixels_3HW.to(self.model.device)
        features_1F = encoder.frozen_features(pixels_3HW[None])
        map_1LD, view_1D, _ = encoder.unpack(features_1F)
        detected = encoder.detect(pixels_3HW)
        crops_KC = encoder.classify_crops(pixels_3HW[None], detected.boxes_K4)
        head = encoder.open_networks(pixels_3HW.device)[1]
        return Evidence(
            image_C=encoder.classify(map_1LD, view_1D)[0].double().cpu().numpy(),
            view_C=head(view_1D)[0].double().cpu().numpy(),
            boxes_K4=detected.boxes_K4.double().cpu().numpy(),
            score_K=detected.score_K.double().cpu().numpy(),
            class_K=detected.class_K.cpu().numpy(),
            crops_KC=crops_KC.double().cpu().numpy(),
            proposals=encoder.build_proposals(detected, crops_KC, map_1LD[0]),
            size=(placement.width, placement.height),
        )

    def list_things(self, evidence: Evidence, *, max_things: int = MAX_THINGS) -> list[Thing]:
        """List what an image shows, the surest first; empty where nothing is recognized."""
        named = [each for row in range(len(evidence.score_K)) if (each := self._name_box(evidence, row)) is not None]
        whole = self._name_whole(evidence)
        if whole is not None and not any(self.graph.is_related(thing.name, whole.name) for thing in named):
            named.append(whole)
        things: list[Thing] = []
        for thing in sorted(named, key=_rank, reverse=True):
            if not any(self._is_same(thing, other) for other in things):
                things.append(thing)
        return things[:max_things]

    def _is_same(self, thing: Thing, other: Thing) -> bool:
        """Whether a thing is a surer `other` once more, or a part of it that was taken for something."""
        is_related = self.graph.is_related(thing.name, other.name)
        if thing.box is None or other.box is None:
            return is_related
        boxes_24 = np.stack([thing.box.to_array(), other.box.to_array()])
        overlap = float(pairwise_iou(boxes_24[:1], boxes_24[1:])[0, 0])
        sides_2 = (boxes_24[:, 2:].min(axis=0) - boxes_24[:, :2].max(axis=0)).clip(0)
        inside = float(sides_2.prod() / np.prod(boxes_24[0, 2:] - boxes_24[0, :2]))
        if is_related:
            return overlap >= MIN_OVERLAP or inside >= MIN_INSIDE
        # The detector finds what lies on other things; the classifier alone takes their parts for things.
        return overlap >= MIN_OVERLAP or (not thing.is_detected and inside >= MIN_INSIDE)

    def _name_box(self, evidence: Evidence, row: int) -> Thing | None:
        """Name one of the detector's boxes; None where neither network is sure."""
        graph, score, number = self.graph, float(evidence.score_K[row]), int(evidence.class_K[row])
        mass_N = graph.members_NC @ evidence.crops_KC[row]
        box = _to_box(evidence.boxes_K4[row])
        nodes = graph.detector_nodes[number]
        confirmed = max((float(mass_N[node]) for node in nodes), default=0.0)
        best = graph.choose_name(mass_N, MIN_NAME)
        sure = 1 - (1 - confirmed) * (1 - score)
        is_confirmed = score >= MIN_AGREED and confirmed >= MIN_CONFIRMED
        if best is not None:
            if is_confirmed and any(node in graph.ancestors[best] for node in nodes):
                # Both networks say so, and the classifier says of which kind it is.
                both = 1 - (1 - float(mass_N[best])) * (1 - score)
                return Thing(graph.names[best], both, box, graph.find_parent(best), is_detected=True)
            of_class = max(score if score >= MIN_DETECTED else 0.0, sure if is_confirmed else 0.0)
            if float(mass_N[best]) >= of_class:
                is_sure = score >= MIN_OBJECT and graph.names[best] != "animal"
                return Thing(graph.names[best], float(mass_N[best]), box, graph.find_parent(best)) if is_sure else None
        if is_confirmed or score >= MIN_DETECTED:
            parent = graph.detector_parents.get(graph.detector[number], "").split("|")[0]
            return Thing(graph.detector[number], sure, box, parent, is_detected=True)
        return None

    def _name_whole(self, evidence: Evidence) -> Thing | None:
        graph = self.graph
        # The classifier was trained to leave a rest for every class, which sums up in the large groups.
        mass_N = graph.members_NC @ evidence.image_C - REST * graph.size_N / lite0.CLASSES
        best = graph.choose_name(mass_N, MIN_WHOLE)
        if best is None:
            return None
        # One view alone is as sharp as a box's crop; the mean of views decides, and is flatter.
        score = float(max(mass_N[best], graph.members_NC[best] @ evidence.view_C))
        # Nothing in particular is rather an animal than anything else: two of five classes are one.
        if score < MIN_SAID or (graph.names[best] == "animal" and score < MIN_NAME):
            return None
        crops_K = evidence.crops_KC @ graph.members_NC[best].astype(float)
        row = int(_weigh(evidence, crops_K).argmax())
        box = _to_box(evidence.boxes_K4[row]) if crops_K[row] >= MIN_CONFIRMED else None
        return Thing(graph.names[best], score, box, graph.find_parent(best))

    @torch.inference_mode()
    def classify_region(self, image: bytes, box: Box) -> NDArray[np.float64]:
        """Return the sum of the probabilities under each node [N] of a box's crop."""
        pixels_3HW, _ = render_file(image, self.encoder.preprocess)
        boxes_14 = torch.from_numpy(box.to_array())[None].float()
        crop_1C = self.encoder.classify_crops(pixels_3HW[None].to(self.model.device), boxes_14)
        return self.graph.members_NC @ crop_1C[0].double().cpu().numpy()

    def name_region(self, image: bytes, box: Box) -> list[Thing]:
        """Name a box of an image; empty where nothing is recognized in it."""
        mass_N = self.classify_region(image, box)
        best = self.graph.choose_name(mass_N, MIN_NAME)
        if best is None:
            return []
        return [Thing(self.graph.names[best], float(mass_N[best]), box, self.graph.find_parent(best))]

    @torch.inference_mode()
    def find(self, evidence: Evidence, phrase: str) -> Match:
        """Find the best box of a phrase, and say whether it is shown at all."""
        graph = self.graph
        text, nodes, classes = graph.find_nodes(phrase)
        vector_1E = embed_phrases(self.model, [normalize_phrase(phrase) or phrase]).to(self.model.device)
        own_K = evidence.proposals.score(vector_1E)[0].double().cpu().numpy()
        is_member_C = graph.members_NC[nodes].any(axis=0) if nodes else self._find_similar(vector_1E)
        crops_K = evidence.crops_KC @ is_member_C.astype(float)
        detected_K = np.where(np.isin(evidence.class_K, classes), evidence.score_K, 0.0)
        total_K = own_K + CROP_WEIGHT * _weigh(evidence, crops_K) + CLASS_WEIGHT * detected_K
        best = int(total_K.argmax())
        name = text or normalize_phrase(phrase)
        if nodes or classes or is_member_C.any():
            of_image = float((evidence.image_C * is_member_C).sum()) / 0.6
            # Either network alone may know the thing.
            object_K = (evidence.score_K / OBJECT).clip(max=1)
            sure_K = 1 - (1 - crops_K * object_K) * (1 - detected_K)
            score = min(max(float(sure_K.max()), of_image), 1.0)
            thing = Thing(name, score, _to_box(evidence.boxes_K4[best]))
            return Match(thing, score >= MIN_PRESENT, True, score, MIN_PRESENT)
        floors_1 = self.encoder.measure_floors(vector_1E, "proposals")
        floor, score = float(floors_1[0]), float(own_K[best])
        return Match(Thing(name, score, _to_box(evidence.boxes_K4[best])), score > floor, False, score, floor)

    def _find_similar(self, vector_1E: Tensor) -> NDArray[np.bool_]:
        """Return the classes [1000] whose vectors lie next to a phrase that is none of their names."""
        vectors_CE = F.normalize(self.encoder.class_vectors_CE.float(), dim=-1)
        cosine_C = (F.normalize(vector_1E.float(), dim=-1) @ vectors_CE.T)[0].double().cpu().numpy()
        return np.asarray(cosine_C >= MIN_SIMILAR)


def _weigh(evidence: Evidence, crops_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the score of each box for what its crop shows with a probability: larger boxes are rather whole things."""
    sides_K2 = evidence.boxes_K4[:, 2:] - evidence.boxes_K4[:, :2]
    return crops_K.clip(max=0.5) + AREA_WEIGHT * np.sqrt(sides_K2.prod(axis=1).clip(0, 1)) * (crops_K >= MIN_CONFIRMED)


def _rank(thing: Thing) -> float:
    """Order things by how sure and how large they are: a small sure thing is seldom what an image shows."""
    area = 1.0 if thing.box is None else float((thing.box.x2 - thing.box.x1) * (thing.box.y2 - thing.box.y1))
    return thing.score * max(area, 1e-4) ** 0.25


def _to_box(corners_4: NDArray[np.float64]) -> Box:
    x1, y1, x2, y2 = corners_4.tolist()
    # Never empty: a detector's box at the edge may be.
    return Box(min(x1, 0.999), min(y1, 0.999), max(x2, min(x1, 0.999) + 0.001), max(y2, min(y1, 0.999) + 0.001))
