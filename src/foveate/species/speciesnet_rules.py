"""The published decision rules of SpeciesNet: detector and classifier combined, geofence, roll-up along the taxonomy.

They work on the five best classes of one image, written with seven fields: id;class;order;family;genus;species;common
name. The real maps of taxa and of regions ship with SpeciesNet's weights, not with its code: a user brings them.

Source: google/cameratrapai (Apache-2.0), speciesnet 5.0.6: taxonomy_utils, geofence_utils,
ensemble_prediction_combiner, ensemble (the map of taxa).
Restated here; the golden `speciesnet_rules.json` holds 72 of its decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from foveate.core.errors import UserError, choose
from foveate.core.files import read_json

BLANK = "f1856211-cfb7-4a5b-9158-c0f72fd09ee6;;;;;;blank"
HUMAN = "990ae9dd-7a59-4344-afcb-1b7b21368000;mammalia;primates;hominidae;homo;sapiens;human"
VEHICLE = "e2895ed5-780b-48f6-8a11-9e27cb594511;;;;;;vehicle"
ANIMAL = "1f689929-883d-4dae-958c-3d57ab5b6c16;;;;;;animal"
UNKNOWN = ";".join(("f2efdae9-efb8-48fb-8a91-eccf79ab4ffb", *["no cv result"] * 6))

# Number of taxon fields (class to species) that the name of a rank fills.
_DEPTHS = {"species": 5, "genus": 4, "family": 3, "order": 2, "class": 1, "kingdom": 0}
_ROLL_UP = ("genus", "family", "order", "class", "kingdom")
# A species that the geofence blocks skips its genus, as in the published code.
_ROLL_UP_OF_BLOCKED = ("family", "order", "class", "kingdom")
NUM_CLASSES = 5
Regions = Mapping[str, Sequence[str]]


class EnsemblePrediction(NamedTuple):
    """A seven-field label, its score, and which part decided: "classifier", "detector", "classifier+geofence+..."."""

    label: str
    score: float
    source: str


def split_label(label: str) -> list[str]:
    """Split a label into its seven fields.

    Raises:
        UserError: it has another number of fields.
    """
    parts = label.split(";")
    if len(parts) != 7:
        raise UserError(f"label '{label}': expected 7 fields with ';' between them (got {len(parts)})")
    return parts


@dataclass(frozen=True)
class SpeciesNetRules:
    """The rules with the maps that they read.

    Args:
        taxonomy: "class;order;family;genus;species" -> label of seven fields; only these taxa can be rolled up to.
        geofence: the same key -> {"allow": {country: [states]}, "block": {country: [states]}}; an empty list of states
            is the whole country. A taxon that is not there is never blocked.
        country: ISO 3166-1 code of three letters, upper case; "" blocks nothing.
        state: code of two letters, as in the map.
        enabled: whether the geofence acts.
    """

    taxonomy: Mapping[str, str]
    geofence: Mapping[str, Mapping[str, Regions]] = field(default_factory=dict)
    country: str = ""
    state: str = ""
    enabled: bool = True

    def find_ancestor(self, label: str, rank: str) -> str | None:
        """Return the label of a taxon's ancestor at `rank`; None if the label or the map of taxa has none."""
        parts = split_label(label)
        depth = _DEPTHS.get(rank)
        if depth is None:
            return None
        # No field holds the kingdom: a label with a class is of an animal, and so is the label "animal" itself.
        filled = parts[depth] if depth else parts[1] or label == ANIMAL
        return self.taxonomy.get(_make_key(parts[1 : depth + 1])) if filled else None

    def is_blocked(self, label: str) -> bool:
        """Return whether the geofence rules a taxon out in the country and state.

        Raises:
            UserError: the country has not three letters, or the state not two.
        """
        # Comes before the checks: without a country nothing is blocked, as in the published code.
        if not (self.enabled and self.country):
            return False
        if len(self.country) != 3:
            raise UserError(f"country: expected the three letters of ISO 3166-1, such as KEN (got '{self.country}')")
        if self.state and len(self.state) != 2:
            raise UserError(f"state: expected two letters, such as TX (got '{self.state}')")
        rules = self.geofence.get(_make_key(split_label(label)[1:6]), {})
        allowed, blocked = rules.get("allow"), rules.get("block")
        # An empty allow list allows all, an empty list of states the whole country; an unknown state never blocks.
        if allowed:
            states = allowed.get(self.country)
            if states is None or (self.state and states and self.state not in states):
                return True
        if blocked and self.country in blocked:
            states = blocked[self.country]
            return not states or (bool(self.state) and self.state in states)
        return False

    def roll_up(
        self, labels: Sequence[str], scores: Sequence[float], ranks: Sequence[str], *, threshold: float
    ) -> EnsemblePrediction | None:
        """Return the first rank whose best taxon that is not blocked has a summed score above `threshold`.

        Args:
            labels, scores: the best classes of an image.
            ranks: from specific to general.

        Raises:
            UserError: a rank is unknown.
        """
        # All ranks are checked first, so that a misspelled one fails on every image, not only where it is reached.
        for rank in ranks:
            choose(rank, _DEPTHS, "rank")
        for rank in ranks:
            sums: dict[str, float] = {}
            for label, score in zip(labels, scores, strict=True):
                if ancestor := self.find_ancestor(label, rank):
                    sums[ancestor] = sums.get(ancestor, 0.0) + score
            open_sums = {label: total for label, total in sums.items() if total > 0 and not self.is_blocked(label)}
            # max() returns the first of equals, as the published loop does.
            best = max(open_sums, key=open_sums.__getitem__, default=None)
            if best is not None and open_sums[best] > threshold:
                return EnsemblePrediction(best, open_sums[best], f"classifier+rollup_to_{rank}")
        return None

    def apply_geofence(self, labels: Sequence[str], scores: Sequence[float]) -> EnsemblePrediction:
        """Return the top class, or the taxon above it that the geofence lets through."""
        if not self.is_blocked(labels[0]):
            return EnsemblePrediction(labels[0], scores[0], "classifier")
        # The sum of an ancestor holds the top score itself and may equal it up to rounding.
        higher = self.roll_up(labels, scores, _ROLL_UP_OF_BLOCKED, threshold=scores[0] - 1e-10)
        if higher is None:
            return EnsemblePrediction(UNKNOWN, scores[0], "classifier+geofence+rollup_failed")
        return higher._replace(source=higher.source.replace("classifier+", "classifier+geofence+", 1))

    def combine(
        self, labels: Sequence[str], scores: Sequence[float], *, detection: str, confidence: float
    ) -> EnsemblePrediction:
        """Decide one image from its best classes and its best detection.

        Args:
            labels, scores: at most five, best first.
            detection: "animal", "human" or "vehicle"; another text is none of them.
            confidence: of the detection, 0 where there is none.
        """
        top, score = labels[0], scores[0]
        # All comparisons are strict, as in the published code: a detection of exactly 0.7 is not enough.
        by_detector = detection in ("human", "vehicle") and confidence > 0.7
        # A person in a car is a person: the classifier's human wins over the detector's vehicle.
        is_human = top == HUMAN or (detection == "human" and top == VEHICLE)
        by_both = detection in ("human", "vehicle") and confidence > 0.2
        if detection == "human" and by_detector:
            return EnsemblePrediction(HUMAN, confidence, "detector")
        if by_both and is_human and score > 0.5:
            return EnsemblePrediction(HUMAN, score, "classifier")
        if detection == "vehicle" and by_detector:
            return EnsemblePrediction(VEHICLE, confidence, "detector")
        if detection == "vehicle" and by_both and top == VEHICLE and score > 0.4:
            return EnsemblePrediction(VEHICLE, score, "classifier")
        if top == BLANK and ((confidence < 0.2 and score > 0.5) or score > 0.99):
            return EnsemblePrediction(BLANK, score, "classifier")
        seen = detection == "animal" and confidence > 0.2
        if top not in (BLANK, HUMAN, VEHICLE) and (score > 0.8 or (score > 0.65 and seen)):
            return self.apply_geofence(labels, scores)
        higher = self.roll_up(labels, scores, _ROLL_UP, threshold=0.65)
        if higher is not None:
            return higher
        if detection == "animal" and confidence > 0.5:
            return EnsemblePrediction(ANIMAL, confidence, "detector")
        return EnsemblePrediction(UNKNOWN, score, "classifier")


def _make_key(parts: Sequence[str]) -> str:
    # Lower ranks are empty fields, as in the keys of the maps of SpeciesNet.
    return ";".join([*parts, *[""] * (5 - len(parts))])


def map_taxa(labels: Iterable[str]) -> dict[str, str]:
    """Map "class;order;family;genus;species" to labels; a later label replaces one of the same key.

    Raises:
        UserError: a label has another number of fields.
    """
    # Blank, vehicle and animal share the key of empty fields, and the release lists them in no useful order: animals
    # must not roll up to a vehicle.
    taxa = (label for label in labels if label not in (BLANK, VEHICLE, UNKNOWN))
    return {_make_key(split_label(label)[1:6]): label for label in (*taxa, HUMAN, ANIMAL)}


def read_taxonomy(path: Path) -> dict[str, str]:
    """Read a list of seven-field labels, one a line (SpeciesNet's taxonomy release), as a map of taxa.

    Raises:
        UserError: the file is missing or a line has another number of fields.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return map_taxa(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def read_geofence(path: Path) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Read SpeciesNet's geofence map.

    Raises:
        UserError: the file is missing, is no JSON, or a rule is not {"allow" or "block": {country: [states]}}.
    """
    rules = read_json(path)
    if not isinstance(rules, dict):
        raise UserError(f"{path}: expected an object of taxa (got {type(rules).__name__})")
    for key, rule in rules.items():
        if not isinstance(rule, dict) or not rule.keys() <= {"allow", "block"}:
            raise UserError(f"{path}: '{key}': expected 'allow' or 'block' (got {rule!r:.80})")
        if any(not isinstance(value, dict) for value in rule.values()):
            raise UserError(f"{path}: '{key}': expected countries with lists of states (got {rule!r:.80})")
    return rules
