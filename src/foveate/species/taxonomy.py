"""Taxonomies of a species model: read from a user's table, a survey, SpeciesNet's labels or the shipped table.

Pruning keeps what lies between classes and root. The two scripts of the released code differ in whether the root stays.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core import tables
from foveate.core.errors import UserError, choose, nearest
from foveate.records.collection import Collection
from foveate.species.checklists import is_checklist, read_checklist
from foveate.survey.taxa import RANKS, Taxa, find_cycle, fold_name, load_builtin_taxa

# Classes of a species model and their taxa.


NON_ANIMALS = ("blank", "human", "vehicle", "unknown")
"""Labels that are no animal class: no species list, prior or roll-up touches them."""


# Compared by identity: arrays have no single truth value, and the caches of stages need a hash of their classes.
@dataclass(frozen=True, eq=False)
class Classes:
    """Labels in the order of a model's columns, with the index of each label's taxon.

    Args:
        labels: Unique labels; "blank", "human", "vehicle" and "unknown" are no animals.
        taxa_K: Index into `Taxa` of each label, -1 where it has no taxon.

    Raises:
        UserError: A label is empty or repeated.

    Example:
        >>> classes = Classes(("ocelot", "margay", "blank"), np.array([1, 2, -1]))
        >>> classes.animals_K.tolist(), classes.index("margay")
        ([True, True, False], 1)
    """

    labels: tuple[str, ...]
    taxa_K: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "taxa_K", np.asarray(self.taxa_K, dtype=np.int64))
        assert len(self.labels) == len(self.taxa_K), "a label has no taxon index"
        wrong = sorted({label for label in self.labels if not label or self.labels.count(label) > 1})
        if wrong:
            raise UserError(f"classes: labels are empty or repeated (got {', '.join(map(repr, wrong[:10]))})")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def animals_K(self) -> NDArray[np.bool_]:
        """Whether each class is an animal; one without a taxon is, too."""
        return np.array([label not in NON_ANIMALS for label in self.labels], dtype=bool)

    def index(self, label: str) -> int:
        """Return the column of a label.

        Raises:
            UserError: No class has it.
        """
        try:
            return self.labels.index(label)
        except ValueError:
            raise UserError(f"class {label!r}: the model has no such class{nearest(label, self.labels)}") from None


def add_labels(classes: Classes, labels: Sequence[str]) -> Classes:
    """Return the classes and, behind them, the labels that they lack, without a taxon."""
    missing = [label for label in labels if label not in classes.labels]
    return Classes((*classes.labels, *missing), np.append(classes.taxa_K, np.full(len(missing), -1, dtype=np.int64)))


Edge = tuple[str, str | None]
PruneMode = Literal["full", "iwildcam", "inat"]
PRUNE_MODES: tuple[PruneMode, ...] = ("full", "iwildcam", "inat")
_COLUMNS = ("id", "name", "rank", "parent", "common", "synonyms")
# Spellings of a missing cell in R, pandas, Python and SQL.
_NO_PARENT = ("", "na", "nan", "none", "null")
_ROOT = "Animalia"
_NUM_FIELDS = 7  # fields in a label of SpeciesNet
_NO_RESULT = "no cv result"  # SpeciesNet writes this into all fields of an image that it could not read
_SPECIES = re.compile(r"[A-Z][a-z]+ [a-z-]+\.?( [a-z-]+)?")  # a scientific name of two or three words
# A person should see the first few rows of a long list of mistakes; the rest repeats them.
_MAX_NAMED = 10


def open_taxa(collection: Collection | None = None, path: str | Path | None = None) -> Taxa:
    """Return the taxa of a file, else those of a collection's survey, else the shipped table.

    Args:
        path: a table with columns taxon and parent; a checklist, see `checklists.read_checklist`; or a text file with a
            seven-field label of SpeciesNet a line. Of a checklist only what the survey names is taken, with its
            ancestors.
    """
    if path is not None:
        path = Path(path)
        if is_checklist(path):
            return complete_taxa(read_checklist(path, None if collection is None else _list_names(collection)))
        return read_labels(path) if path.suffix.lower() == ".txt" else read_taxa(path)
    rows = collection.dataset_table("taxa").to_pylist() if collection is not None else []
    return complete_taxa(Taxa.from_rows(rows)) if rows else load_builtin_taxa()


def _list_names(collection: Collection) -> set[str]:
    """Return the names in a survey's observations."""
    rows = [collection.table("observations"), collection.dataset_table("event_observations")]
    return {name for table in rows if table.num_rows for name in table["taxon"].unique().to_pylist() if name}


def read_taxa(path: Path) -> Taxa:
    """Read a table with the columns `taxon` (or `id`) and `parent`; `name`, `rank`, `common`, `synonyms` may follow.

    A row without a parent is the root. A table whose parents are names of the shipped table adds its rows to it, so
    that a few species can be placed by `Helarctos malayanus,Ursidae` and nothing else. Without a column `name` taxa are
    their names. Where no rank is given, two words are a species and three a subspecies, and other names have the rank
    of the shipped table.

    Raises:
        UserError: a column is missing, a taxon has two parents, a parent is no taxon, parents form a cycle, or there
            is not exactly one root. The error names the rows.
    """
    rows: dict[str, dict[str, str]] = {}
    lines: list[int] = []
    for line, row in _read_rows(path):
        row["parent"] = "" if row["parent"].lower() in _NO_PARENT else row["parent"]
        if not row["id"]:
            raise UserError(f"{path}: line {line} has no taxon")
        # A taxon may have several rows if all of them name the same parent; the first one counts.
        previous = rows.setdefault(row["id"], row)
        if previous["parent"] != row["parent"]:
            parents = f"{previous['parent']!r} in line {lines[list(rows).index(row['id'])]} and {row['parent']!r}"
            raise UserError(f"{path}: line {line}: taxon {row['id']!r} has two parents (got {parents}); expected one")
        if previous is row:
            lines.append(line)
    for row in rows.values():
        row["name"] = row.get("name") or row["id"]
        row["rank"] = row.get("rank") or _find_rank(row["name"])
    if (extended := _extend_shipped(rows)) is not None:
        return extended
    parents = _check_tree(path, list(rows.values()), lines)
    taxa = Taxa.from_rows(rows.values())
    # The checks above and the result must number the taxa alike, in the order of the rows.
    assert np.array_equal(taxa.parents, parents)
    return taxa


def _extend_shipped(rows: Mapping[str, Mapping[str, str]]) -> Taxa | None:
    """Return the shipped taxa with rows below them; None for a table that is no such addition."""
    known = load_builtin_taxa()
    outside = {row["parent"] for row in rows.values() if row["parent"] not in rows}
    parents = {name: known.find(name, kingdom=_ROOT) for name in outside}
    if not parents or any(index < 0 for index in parents.values()):
        return None
    # A taxon that the shipped table has, too, stays where it is there.
    added = [row for row in rows.values() if known.find(row["name"], row["rank"] or None, _ROOT) < 0]
    found = {
        row["id"]: known.find(row["name"], row["rank"] or None, _ROOT) for row in rows.values() if row not in added
    }
    ids = {name: known.ids[index] for name, index in (parents | found).items()}
    return Taxa.from_rows(
        [*known.to_rows(), *({**row, "parent": ids.get(row["parent"], row["parent"])} for row in added)]
    )


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    table = tables.read_rows(path)
    names = table.names
    columns = {("id" if name.strip().lower() == "taxon" else name.strip().lower()): name for name in names}
    for column, hint in (("id", "taxon"), ("parent", "parent")):
        if column not in columns:
            raise UserError(
                f"{path}: no column {hint!r} (got {', '.join(names)}); expected taxon,parent{nearest(hint, names)}"
            )
    columns = {column: name for column, name in columns.items() if column in _COLUMNS}
    indices = {column: names.index(name) for column, name in columns.items()}
    return [(line, {column: cells[index].strip() for column, index in indices.items()}) for line, cells in table.rows]


def _check_tree(path: Path, rows: Sequence[Mapping[str, str]], lines: Sequence[int]) -> NDArray[np.int64]:
    index = {row["id"]: i for i, row in enumerate(rows)}
    unknown = [i for i, row in enumerate(rows) if row["parent"] and row["parent"] not in index]
    if unknown:
        first = rows[unknown[0]]["parent"]
        named = ", ".join(f"{rows[i]['parent']!r} in line {lines[i]}" for i in unknown[:_MAX_NAMED])
        raise UserError(
            f"{path}: {len(unknown)} parents are no taxa of the table, nor all of the shipped one (got {named}); give "
            f"each a row, the root one without a parent{nearest(first, [*index, *load_builtin_taxa().names])}"
        )
    parents = np.array([index.get(row["parent"], -1) for row in rows], dtype=np.int64)
    # Check cycles before roots: a cycle without a root would be reported as a missing root.
    cycle = find_cycle(parents)
    if cycle:
        named = " -> ".join(f"{rows[i]['id']!r} (line {lines[i]})" for i in (*cycle, cycle[0]))
        raise UserError(f"{path}: parents form a cycle (got {named}); expected every chain to end in the root")
    roots = np.flatnonzero(parents < 0).tolist()
    if len(roots) != 1:
        named = ", ".join(f"{rows[i]['id']!r} (line {lines[i]})" for i in roots[:_MAX_NAMED])
        raise UserError(f"{path}: {len(roots)} roots (got {named}); expected one taxon without a parent")
    return parents


def guess_rank(name: str) -> str:
    """Return the rank that the number of words of a scientific name shows; "" for one word, which may have any."""
    # One word may be a genus, a family or an order; a wrong guess would let a homonym of another rank match.
    return {2: "species", 3: "subspecies"}.get(len(name.split()), "")


def _find_rank(name: str) -> str:
    known = load_builtin_taxa()
    index = known.find(name, kingdom=_ROOT)
    return guess_rank(name) or (known.ranks[index] if index >= 0 else "")


def read_labels(path: Path) -> Taxa:
    """Read a text file with a seven-field label of SpeciesNet a line; see `taxa_from_labels`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    labels = [line.strip() for line in text.splitlines() if line.strip()]
    if not labels:
        raise UserError(f"{path} is empty; expected a label of seven fields a line")
    return taxa_from_labels(labels, where=str(path))


def taxa_from_labels(labels: Iterable[str], *, where: str = "labels") -> Taxa:
    """Return the taxa of labels `id;class;order;family;genus;species;common name`, under one root, the animals.

    Labels of no taxon (blank, vehicle) are left out.

    Raises:
        UserError: a label has other fields, or one taxon stands below two.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {
        ("kingdom", _ROOT): {"id": "", "name": _ROOT, "rank": "kingdom", "parent": "", "common": "animal"}
    }
    parent_of: dict[tuple[str, str], tuple[str, str]] = {}
    for number, text in enumerate(labels, 1):
        # Without this, "no cv result" would become a class, an order and a family.
        fields = ["" if field.strip() == _NO_RESULT else field.strip() for field in text.split(";")]
        if len(fields) != _NUM_FIELDS:
            raise UserError(f"{where}: label {number} has {len(fields)} fields (got {text!r}); expected {_NUM_FIELDS}")
        taxon = ("kingdom", _ROOT)
        names = [*fields[1:5], f"{fields[4]} {fields[5]}".strip() if fields[5] else ""]
        for rank, name in zip(("class", "order", "family", "genus", "species"), names, strict=True):
            if not name:
                continue
            child = (rank, name[:1].upper() + name[1:].lower())
            rows.setdefault(child, {"id": "", "name": child[1], "rank": rank, "parent": "", "common": ""})
            previous = parent_of.setdefault(child, taxon)
            if RANKS.index(previous[0]) < RANKS.index(taxon[0]):
                # An earlier label left out a rank that this one gives.
                parent_of[child] = taxon
            elif previous[0] == taxon[0] and previous != taxon:
                raise UserError(
                    f"{where}: label {number}: {rank} {child[1]!r} is in {taxon[1]!r} here and in {previous[1]!r} "
                    "before; expected one"
                )
            taxon = child
        if taxon[0] != "kingdom" or fields[6].lower() == "animal":
            rows[taxon] |= {"id": fields[0], "common": fields[6]}
    # Ids are assigned last: a later label may bring the id of a taxon that was only an ancestor so far.
    used = {row["id"] for row in rows.values()}
    for row in rows.values():
        row["id"] = row["id"] or _free_id(row["name"], row["rank"], used)
    for child, parent in parent_of.items():
        rows[child]["parent"] = rows[parent]["id"]
    return Taxa.from_rows(rows.values())


def _free_id(name: str, rank: str, used: set[str]) -> str:
    taxon_id = name if name not in used else f"{name} ({rank})"
    used.add(taxon_id)
    return taxon_id


def complete_taxa(taxa: Taxa) -> Taxa:
    """Return the taxa with ancestors added to those without, so that all animals have one root.

    Lists of surveys often contain only species. A taxon without a parent is placed below the ancestors of the taxon of
    the same name and rank in the shipped table, else below its genus, else below the animals. Nothing given is changed,
    and every index stays.
    """
    roots = np.flatnonzero(taxa.parents < 0)
    # A list of a single taxon also has one root, but no ancestors yet.
    if len(roots) == 1 < len(taxa):
        return taxa
    rows, known = taxa.to_rows(), load_builtin_taxa()
    used = set(taxa.ids)
    # Reversed, so that of two rows with the same rank and name the first one stays in the dictionary.
    placed = {(row["rank"], fold_name(row["name"])): row for row in reversed(rows)}

    def add_row(name: str, rank: str, common: str = "") -> tuple[dict[str, str], bool]:
        key = (rank, fold_name(name))
        is_new = key not in placed
        if is_new:
            row = {"id": _free_id(name, rank, used), "name": name, "rank": rank, "parent": "", "common": common}
            placed[key] = {**row, "synonyms": ""}
            rows.append(placed[key])
        return placed[key], is_new

    for i in roots.tolist():
        row = rows[i]
        if row["rank"] == "kingdom":
            continue
        child = row
        for j in _find_ancestors(row, known):
            parent, is_new = add_row(known.names[j], known.ranks[j], known.common[j])
            child["parent"] = parent["id"]
            child = parent
            # An existing parent has its own ancestors, or gets them in its own turn.
            if not is_new:
                break
        # The shipped table knows neither the taxon nor its genus, so only the names of the list can place it.
        if not row["parent"]:
            parts = row["name"].split()
            species, genus = ("species", fold_name(" ".join(parts[:2]))), ("genus", fold_name(parts[0]))
            near = next((placed[key] for key in (species, genus) if key in placed and placed[key] is not row), None)
            child["parent"] = (near or add_row(_ROOT, "kingdom", "animal")[0])["id"]
    return Taxa.from_rows(rows)


def _find_ancestors(row: Mapping[str, str], known: Taxa) -> list[int]:
    match = known.find(row["name"], row["rank"] or _find_rank(row["name"]), _ROOT)
    if match >= 0:
        return known.lineage(match)[1:]
    parts = row["name"].split()
    species = known.find(" ".join(parts[:2]), "species", _ROOT) if len(parts) > 2 else -1
    genus = known.find(parts[0], "genus", _ROOT) if len(parts) > 1 else -1
    return known.lineage(species if species >= 0 else genus)


def prune_edges(edges: Iterable[Edge], labels: Iterable[str], mode: PruneMode = "full") -> list[tuple[str, str]]:
    """Return the edges (child, parent) between labels and root, in the order given.

    Args:
        edges: a parent of None marks the root.
        labels: those that are no taxon have no edge.
        mode: "full" and "iwildcam" keep edges to the root; "inat" loses them, so that the tree falls apart below it.

    Source: OSU-NLP-Group/COSMO, preprocess_data_iwildcam.py and process_taxonomy_inat.py: a walk collects a node only
        while it has an entry, and the iNaturalist script removes the root's entry first.
    """
    choose(mode, PRUNE_MODES, "mode of pruning")
    table = list(edges)
    parent_of = {child: parent for child, parent in table if mode != "inat" or parent is not None}
    collected: set[str] = set()
    for label in labels:
        node: str | None = label
        # Everything above a collected node is collected already, so shared ancestors are walked only once.
        while node is not None and node in parent_of and node not in collected:
            collected.add(node)
            node = parent_of[node]
    return [(child, parent) for child, parent in table if parent is not None and {child, parent} <= collected]


# Match labels to taxa by id, or by name with rank and kingdom; list what is ambiguous or unknown.


Status = Literal["id", "name", "synonym", "common name", "genus", "no animal", "homonym", "unmatched"]


@dataclass(frozen=True, slots=True)
class Match:
    """Match of a label to a taxon.

    Args:
        taxon: index into `Taxa`, -1 for none.
        note: of a synonym the name in use, of a homonym its taxa, of a species that hangs below its genus the genus, of
            an unmatched label what to write, and the nearest name.
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
    near = nearest(label, choices)
    if not _SPECIES.fullmatch(label):
        return Match(label, -1, "unmatched", near.removeprefix(". "))
    advice = f"to place it, write the row {label},FAMILY (its genus or family) into a table taxon,parent: --taxonomy"
    return Match(label, -1, "unmatched", advice + near)


def hang_labels(labels: Iterable[str], taxa: Taxa, *, names: Mapping[str, str] | None = None) -> tuple[Taxa, Matching]:
    """Match labels to taxa as `match_labels`; a species without a match hangs below its genus.

    The genus is one of the taxa, or else, where these have the animals as their root, of the shipped table, with its
    ancestors. "Macaca sp." is the genus.

    Returns:
        the taxa with those that were added behind them, and the matching to these.

    Example:
        >>> taxa, matching = hang_labels(["Macaca nemestrina"], load_builtin_taxa())
        >>> print(*matching.matches)
        'Macaca nemestrina': genus (below Macaca)
        >>> [taxa.names[i] for i in taxa.lineage(matching.matches[0].taxon)][:3]
        ['Macaca nemestrina', 'Macaca', 'Cercopithecidae']
    """
    labels, names, known = list(dict.fromkeys(labels)), names or {}, load_builtin_taxa()
    matching = match_labels(labels, taxa, names=names)
    rows, below, genera = taxa.to_rows(), {}, {}
    # A tree of one's own with another root stays as it is: a second one beside it would have no common ancestor.
    is_joinable = fold_name(_ROOT) in {fold_name(taxa.names[i]) for i in np.flatnonzero(taxa.parents < 0)}
    for match in matching.matches:
        name = names.get(match.label, match.label)
        if match.status != "unmatched" or not _SPECIES.fullmatch(name):
            continue
        genus = name.split()[0]
        index = taxa.find(genus, "genus", _ROOT)
        if index < 0 and not (is_joinable and known.find(genus, "genus", _ROOT) >= 0):
            continue
        if name.split()[1].rstrip(".") in ("sp", "spp"):
            genera[match.label] = genus
            name = genus
            if index >= 0:
                continue
        else:
            below[match.label] = genus
        row = {"id": match.label, "name": name, "rank": guess_rank(name) or "genus"}
        # Without a parent here, `complete_taxa` takes the ancestors from the shipped table.
        rows.append({**row, "parent": taxa.ids[index] if index >= 0 else ""})
    if below or genera:
        taxa = complete_taxa(Taxa.from_rows(rows))
    hung = {label: (taxa.index(label), f"below {genus}") for label, genus in below.items()}
    for label, genus in genera.items():
        hung[label] = taxa.index(label) if label in taxa else taxa.find(genus, "genus", _ROOT), f"as {genus}"
    matches = (
        Match(match.label, hung[match.label][0], "genus", hung[match.label][1]) if match.label in hung else match
        for match in matching.matches
    )
    return taxa, Matching(tuple(matches))
