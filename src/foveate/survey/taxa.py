"""Taxa of a survey: identifiers, scientific names, ranks, and the tree of their parents."""

from __future__ import annotations

import functools
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import UserError, nearest
from foveate.core.paths import DATA
from foveate.core.tables import read_rows

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species", "subspecies")
"""Ranks from general to specific; a taxon may have another one, which is never rolled up to."""

# Open Tree and GBIF write Animalia, NCBI writes Metazoa; a check of the kingdom must not part them.
_KINGDOMS = {"metazoa": "animalia", "viridiplantae": "plantae"}
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SYNONYM_SEPARATOR = "|"


def normalize_name(name: str) -> str:
    """Return `name` in lower case, without ASCII punctuation, blanks collapsed.

    Source: OSU-NLP-Group/COSMO, preprocess_data_iwildcam.py.
    """
    return " ".join(name.translate(_WITHOUT_PUNCTUATION).lower().split())


def fold_name(name: str) -> str:
    """Return `normalize_name`, with NCBI's names of kingdoms as those of GBIF and Open Tree."""
    folded = normalize_name(name)
    return _KINGDOMS.get(folded, folded)


# A generated `__eq__` would compare arrays, whose comparison has no single truth value.
@dataclass(frozen=True, eq=False)
class Taxa:
    """A forest of taxa, each known by its index.

    Args:
        ids: Unique identifier of each taxon, for example an NCBI or GBIF number.
        names: Scientific names; two taxa may share one (homonyms).
        ranks: Rank in lower case, "" where unknown.
        parents: Index of each parent, -1 for a root.
        common: Vernacular name of each taxon, or no entry at all.
        synonyms: Further scientific names of each taxon, or no entry at all.

    Raises:
        UserError: An id is empty or repeated, a parent is out of range, or the parents form a cycle.

    Example:
        >>> felids = {"id": "1", "name": "Felidae", "rank": "family"}
        >>> taxa = Taxa.from_rows([felids, {"id": "2", "name": "Leopardus wiedii", "rank": "species", "parent": "1"}])
        >>> [taxa.names[i] for i in taxa.lineage(taxa.find("Leopardus wiedii"))]
        ['Leopardus wiedii', 'Felidae']
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    ranks: tuple[str, ...]
    parents: NDArray[np.int64]
    common: tuple[str, ...] = ()
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.ids)
        object.__setattr__(self, "parents", np.asarray(self.parents, dtype=np.int64))
        object.__setattr__(self, "common", self.common or ("",) * count)
        object.__setattr__(self, "synonyms", self.synonyms or ((),) * count)
        lengths = {len(self.names), len(self.ranks), len(self.parents), len(self.common), len(self.synonyms)}
        assert lengths == {count}, "columns of taxa differ in length"
        repeated = sorted(name for name, uses in Counter(self.ids).items() if uses > 1 or not name)
        if repeated:
            raise UserError(f"taxa: ids are empty or repeated (got {', '.join(map(repr, repeated[:10]))})")
        if count and not (self.parents.min() >= -1 and self.parents.max() < count):
            raise UserError(f"taxa: a parent is out of range; expected an index below {count} or -1")
        cycle = find_cycle(self.parents)
        if cycle:
            chain = " -> ".join(f"{self.ids[i]} ({self.names[i]})" for i in (*cycle, cycle[0]))
            raise UserError(f"taxa: parents form a cycle (got {chain}); expected every chain to end in a root")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for i, (name, synonyms) in enumerate(zip(self.names, self.synonyms, strict=True)):
            # Each key once: a synonym that folds to the taxon's own name would make it a homonym of itself.
            for key in dict.fromkeys(fold_name(text) for text in (name, *synonyms)):
                indices.setdefault(key, []).append(i)
        return indices

    def index(self, taxon_id: str) -> int:
        """Return the index of an identifier.

        Raises:
            UserError: No taxon has it.
        """
        try:
            return self._index[taxon_id]
        except KeyError:
            raise UserError(f"taxon {taxon_id!r}: no taxon has this id{nearest(taxon_id, self.ids)}") from None

    def __contains__(self, taxon_id: str) -> bool:
        return taxon_id in self._index

    def matches(self, name: str, rank: str | None = None, kingdom: str | None = None) -> list[int]:
        """List the taxa with a scientific name or synonym; several if it is a homonym.

        Args:
            name: Compared without case and punctuation.
            rank: Only taxa of this rank, or of an unknown one.
            kingdom: Only taxa of this kingdom, or of an unknown one.
        """
        indices = self._by_name.get(fold_name(name), [])
        if rank:
            indices = [i for i in indices if self.ranks[i] in ("", rank.lower())]
        if kingdom:
            kingdoms = {i: self.at_rank(i, "kingdom") for i in indices}
            indices = [i for i, j in kingdoms.items() if j < 0 or fold_name(self.names[j]) in ("", fold_name(kingdom))]
        return list(indices)

    def find(self, name: str, rank: str | None = None, kingdom: str | None = None) -> int:
        """Return the index of the only match of a name; -1 if there is none or more than one."""
        # A homonym is no match: a plant genus must not take the place of an animal's of the same name.
        indices = self.matches(name, rank, kingdom)
        return indices[0] if len(indices) == 1 else -1

    def lineage(self, i: int) -> list[int]:
        """Return the indices from a taxon to its root, both included."""
        indices = []
        # The loop ends because parents that form a cycle are refused when taxa are made.
        while i >= 0:
            indices.append(i)
            i = int(self.parents[i])
        return indices

    def at_rank(self, i: int, rank: str) -> int:
        """Return the index of the ancestor (or the taxon itself) at `rank`; -1 if its lineage has none."""
        return next((j for j in self.lineage(i) if self.ranks[j] == rank), -1)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]]) -> Taxa:
        """Build taxa from rows with `id`, `name`, `rank`, `parent` (an id, "" for a root), `common`, `synonyms`.

        Raises:
            UserError: A parent is no id of the rows, or a check of `Taxa` fails.
        """
        table = [{name: _text(value) for name, value in row.items()} for row in rows]
        ids = tuple(row["id"] for row in table)
        index = {name: i for i, name in enumerate(ids)}
        parents = [row.get("parent", "") for row in table]
        unknown = [f"row {n}: {parent!r}" for n, parent in enumerate(parents, 1) if parent and parent not in index]
        if unknown:
            raise UserError(f"taxa: parents are no ids of the table (got {'; '.join(unknown[:10])})")
        return cls(
            ids=ids,
            names=tuple(row.get("name", "") for row in table),
            ranks=tuple(row.get("rank", "").lower() for row in table),
            parents=np.array([index.get(parent, -1) for parent in parents], dtype=np.int64),
            common=tuple(row.get("common", "") for row in table),
            synonyms=tuple(tuple(filter(None, row.get("synonyms", "").split(_SYNONYM_SEPARATOR))) for row in table),
        )

    def to_rows(self) -> list[dict[str, str]]:
        """Return a row per taxon; `from_rows` builds equal taxa from them."""
        return [
            {
                "id": self.ids[i],
                "name": self.names[i],
                "rank": self.ranks[i],
                "parent": self.ids[self.parents[i]] if self.parents[i] >= 0 else "",
                "common": self.common[i],
                "synonyms": _SYNONYM_SEPARATOR.join(self.synonyms[i]),
            }
            for i in range(len(self))
        ]


@functools.cache
def load_builtin_taxa() -> Taxa:
    """Return the shipped table: about 120 species of camera traps with their ancestors, ids of NCBI Taxonomy.

    Some lineages have no class, since NCBI has none of turtles.

    Example:
        >>> taxa = load_builtin_taxa()
        >>> taxa.common[taxa.find("Vulpes vulpes")]
        'red fox'
    """
    return Taxa.from_rows(read_rows(DATA / "taxa.csv").to_dicts())


def find_cycle(parents: NDArray[np.int64]) -> list[int]:
    """Return the indices along one cycle of `parents` (-1 ends a chain); empty if there is none."""
    finished = np.zeros(len(parents), dtype=bool)
    for start in range(len(parents)):
        chain: dict[int, int] = {}
        i = start
        while i >= 0 and not finished[i]:
            if i in chain:
                return list(chain)[chain[i] :]
            chain[i] = len(chain)
            i = int(parents[i])
        # Later chains end here, so that each taxon is visited once.
        finished[list(chain)] = True
    return []


def _text(value: object) -> str:
    return "" if value is None else str(value)
