"""Rules: SpeciesNet's published decisions in place of roll-up and threshold (`foveate.species.speciesnet_rules`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.species import speciesnet_rules
from foveate.species.rows import ABSTAINED, DETECTED, Rows, Stage, answer_codes
from foveate.species.speciesnet_rules import NUM_CLASSES, SpeciesNetRules
from foveate.species.stages import StageKind, warn_idle
from foveate.species.stages.species_list import ANIMAL, ListSettings
from foveate.species.taxonomy import Classes, add_labels
from foveate.survey.taxa import Taxa

_RANKS = ("class", "order", "family", "genus", "species")
_SPECIAL = {
    "blank": speciesnet_rules.BLANK,
    "human": speciesnet_rules.HUMAN,
    "vehicle": speciesnet_rules.VEHICLE,
    "unknown": speciesnet_rules.UNKNOWN,
    ANIMAL: speciesnet_rules.ANIMAL,
}


class RulesSettings(Settings):
    """Options of SpeciesNet's rules."""

    rules: Literal["none", "speciesnet"] = Field("none", description="decide by SpeciesNet's rules, without roll-up")
    taxonomy: Path | None = Field(
        None, description="SpeciesNet's list of taxa, seven fields a line; the model's own taxa by default"
    )
    geofence: Path | None = Field(None, description="SpeciesNet's map of regions (JSON)")
    country: str = Field("", pattern="^([A-Z]{3})?$", description="country of the cameras, ISO 3166-1 alpha-3")
    state: str = Field(
        "", pattern="^([A-Z0-9]{2})?$", description="state of the cameras, as the map of regions writes it"
    )


def make_labels(taxa: Taxa) -> list[str]:
    """Return the label of seven fields of each taxon, in lower case; a taxon above a class is "animal"."""
    labels = []
    for i, taxon_id in enumerate(taxa.ids):
        names = [taxa.names[j].lower() if (j := taxa.at_rank(i, rank)) >= 0 else "" for rank in _RANKS]
        genus, species = names[3], names[4]
        # The field holds only the epithet, without the genus.
        names[4] = species.removeprefix(f"{genus} ") if genus else species
        labels.append(";".join([taxon_id, *names, taxa.common[i].lower()]) if names[0] else speciesnet_rules.ANIMAL)
    return labels


def prepare(settings: RulesSettings, others: Mapping[str, Settings], classes: Classes, taxa: Taxa) -> Stage | None:
    """See `foveate.species.stages`."""
    if settings.rules == "none":
        warn_idle(settings, "taxonomy", "geofence", "country", "state", needs="--rules speciesnet")
        return None
    # SpeciesNet ships its map with the weights, not with its code, so there is no default.
    if settings.country and settings.geofence is None:
        raise UserError("country: no map of regions; expected --geofence with SpeciesNet's JSON file")
    if not settings.country:
        warn_idle(settings, "geofence", "state", needs="--country")
    labels = make_labels(taxa)
    # A key that two taxa share is that of the higher one: subspecies have none of their own.
    map_of_taxa = speciesnet_rules.map_taxa(reversed(labels))
    listing = others.get("species_list")
    is_listed = isinstance(listing, ListSettings) and listing.file is not None
    rules = SpeciesNetRules(
        speciesnet_rules.read_taxonomy(settings.taxonomy) if settings.taxonomy else map_of_taxa,
        speciesnet_rules.read_geofence(settings.geofence) if settings.geofence else {},
        country=settings.country,
        state=settings.state,
        # A geofence must not remove a species that a person listed.
        enabled=not is_listed,
    )
    # All taxa above a class share the label "animal", which must not be resolved to one of them.
    taxon_of = {label: i for i, label in reversed(list(enumerate(labels))) if label != speciesnet_rules.ANIMAL}
    by_key = {";".join(label.split(";")[1:6]): i for label, i in taxon_of.items()}

    def apply(rows: Rows) -> Rows:
        extended = add_labels(rows.classes, list(_SPECIAL))
        codes_K = answer_codes(extended, taxa)
        special = {_SPECIAL[name]: int(codes_K[extended.labels.index(name)]) for name in _SPECIAL}
        label_K = [
            _SPECIAL.get(label) or (labels[taxon] if taxon >= 0 else f";;;;;;{label}")
            for label, taxon in zip(extended.labels, extended.taxa_K.tolist(), strict=True)
        ]
        code_of = {label: int(code) for label, code in zip(label_K, codes_K, strict=True)}
        top_R5 = np.argsort(-rows.probabilities_RK, axis=1, kind="stable")[:, :NUM_CLASSES]
        scores_R5 = np.take_along_axis(rows.probabilities_RK, top_R5, axis=1)
        answers_R, scores_R = rows.answers_R.copy(), rows.scores_R.copy()
        notes: dict[str, int] = {"no answer": 0}
        sources_R = np.zeros(len(answers_R), dtype=np.int64)
        # The rules are those of one image; this mode is for comparison, not for speed.
        for r in np.flatnonzero(rows.answers_R >= 0):
            kind = int(rows.detections.kinds_N[r])
            prediction = rules.combine(
                [label_K[k] for k in top_R5[r]],
                scores_R5[r].tolist(),
                detection=DETECTED[kind] if kind >= 0 else "",
                confidence=float(rows.detections.scores_N[r]),
            )
            answer = special.get(prediction.label, code_of.get(prediction.label, taxon_of.get(prediction.label)))
            if answer is None:
                # A map of taxa from a file has ids of its own.
                answer = by_key.get(";".join(prediction.label.split(";")[1:6]), special[speciesnet_rules.ANIMAL])
            answers_R[r] = ABSTAINED if prediction.label == speciesnet_rules.UNKNOWN else answer
            scores_R[r] = prediction.score
            sources_R[r] = notes.setdefault(prediction.source, len(notes))
        width = len(extended) - len(rows.classes)
        # The added classes get probability 0: only the rules answer with them.
        probabilities_RK = np.pad(rows.probabilities_RK, ((0, 0), (0, width)))
        rows = replace(
            rows, classes=extended, probabilities_RK=probabilities_RK, answers_R=answers_R, scores_R=scores_R
        )
        return rows.noted("rules", tuple(notes), sources_R)

    return apply


_OPTIONS = {"rules": "--rules", "taxonomy": "--rules-taxonomy"}
_OPTIONS |= {name: f"--{name}" for name in ("geofence", "country", "state")}
STAGES = {"rules": StageKind(45, RulesSettings, prepare, _OPTIONS, {"rules": "none"}, "SpeciesNet's rules")}
