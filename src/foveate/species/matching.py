"""Match labels to taxa by id, or by name with rank and kingdom; list what is ambiguous or unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from foveate.core.errors import nearest
from foveate.records.collection import Collection
from foveate.species.classes import NON_ANIMALS
from foveate.species.taxonomy import guess_rank
from foveate.survey.taxa import Taxa, fold_name

Status = Literal["id", "name", "synonym", "common name", "no animal", "homonym", "unmatched"]


@dataclass(frozen=True, slots=True)
class Match:
    """Match of a label to a taxon.

    Args:
        taxon: index into `Taxa`, -1 for none.
        note: of a synonym the name in use, of a homonym its taxa, of an unmatched label the nearest name.
    """

    label: str
    taxon: int
    status: Status
    note: str = ""

    def __str__(self) -> str:
        return f"{self.label!r}: {self.status}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True, eq=False)
class Matching:
    """Matches of distinct labels, in their order."""

    matches: tuple[Match, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of labels by status."""
        return dict(Counter[str](match.status for match in self.matches))

    @property
    def doubtful(self) -> tuple[Match, ...]:
        """Matches that a person should look at: all but those by id, and by the name in use."""
        return tuple(match for match in self.matches if match.status not in ("id", "name", "no animal"))


def match_labels(
    labels: Iterable[str], taxa: Taxa, *, names: Mapping[str, str] | None = None, kingdom: str = "Animalia"
) -> Matching:
    """Match distinct labels to taxa.

    Args:
        labels: ids, scientific names, or common names; "blank", "human", "vehicle" and "unknown" are no taxa.
        names: scientific name of labels that are ids of another taxonomy, see `read_names`.
        kingdom: of names; an id needs none.
    """
    names = names or {}
    common: dict[str, list[int]] = {}
    for i, name in enumerate(taxa.common):
        if name:
            common.setdefault(fold_name(name), []).append(i)
    matches = []
    for label in dict.fromkeys(labels):
        match = _match(label, taxa, kingdom, common)
        # An id of another taxonomy matches nothing, but the name that the survey gives it may.
        if match.taxon < 0 and match.status != "no animal" and label in names:
            match = replace(_match(names[label], taxa, kingdom, common), label=label)
        matches.append(match)
    return Matching(tuple(matches))


def read_names(collection: Collection) -> dict[str, str]:
    """Return the scientific name of each taxon id of a survey's observations; none where they give an id two names."""
    table = collection.table("observations").select(["taxon", "taxon_id"])
    names: dict[str, set[str]] = {}
    for row in table.group_by(["taxon", "taxon_id"]).aggregate([]).to_pylist():
        if row["taxon"] and row["taxon_id"]:
            names.setdefault(row["taxon_id"], set()).add(row["taxon"])
    return {taxon_id: next(iter(texts)) for taxon_id, texts in names.items() if len(texts) == 1}


def _match(label: str, taxa: Taxa, kingdom: str, common: dict[str, list[int]]) -> Match:
    if label in NON_ANIMALS:
        return Match(label, -1, "no animal")
    if label in taxa:
        return Match(label, taxa.index(label), "id")
    # Search only the kingdom: the released scripts join by name, and a plant genus may capture a mammal genus.
    indices = taxa.matches(label, kingdom=kingdom)
    # Use the rank only if the name is ambiguous: a synonym may have one more word than the name in use.
    ranked = taxa.matches(label, guess_rank(label), kingdom) if len(indices) > 1 else indices
    indices = ranked if len(ranked) == 1 else indices
    by_common = common.get(fold_name(label), [])
    # A genus is capitalized: "puma" is the English name of one species, "Puma" the genus.
    is_english = label.islower() and " " not in label
    if len(by_common) == 1 and (is_english or not indices):
        return Match(label, by_common[0], "common name", taxa.names[by_common[0]])
    if len(indices) == 1:
        name = taxa.names[indices[0]]
        is_name = fold_name(name) == fold_name(label)
        return Match(label, indices[0], "name", "") if is_name else Match(label, indices[0], "synonym", f"of {name}")
    if indices or by_common:
        described = (f"{taxa.names[i]}, {taxa.ranks[i] or 'no rank'}, id {taxa.ids[i]}" for i in indices or by_common)
        return Match(label, -1, "homonym", "; ".join(described))
    # In any kingdom, so that the note shows that the name is known and why it was not used.
    others = taxa.matches(label)
    if others:
        where = ", ".join(f"id {taxa.ids[i]}" for i in others)
        return Match(label, -1, "unmatched", f"of another kingdom than {kingdom}: {where}")
    choices = [name for names in (taxa.names, *taxa.synonyms, taxa.common, taxa.ids) for name in names if name]
    return Match(label, -1, "unmatched", nearest(label, choices).removeprefix(". "))
