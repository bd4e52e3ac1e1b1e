"""Taxonomies of a species model: read from a user's table, a survey, SpeciesNet's labels or the shipped table.

Pruning keeps what lies between classes and root. The two scripts of the released code differ in whether the root stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.core import tables
from foveate.core.errors import UserError, choose, nearest
from foveate.records.collection import Collection
from foveate.survey.taxa import RANKS, Taxa, find_cycle, fold_name, load_builtin_taxa

Edge = tuple[str, str | None]
PruneMode = Literal["full", "iwildcam", "inat"]
PRUNE_MODES: tuple[PruneMode, ...] = ("full", "iwildcam", "inat")
_COLUMNS = ("id", "name", "rank", "parent", "common", "synonyms")
# Spellings of a missing cell in R, pandas, Python and SQL.
_NO_PARENT = ("", "na", "nan", "none", "null")
_ROOT = "Animalia"
_NUM_FIELDS = 7  # fields in a label of SpeciesNet
_NO_RESULT = "no cv result"  # SpeciesNet writes this into all fields of an image that it could not read
# A person should see the first few rows of a long list of mistakes; the rest repeats them.
_MAX_NAMED = 10


def open_taxa(collection: Collection | None = None, path: str | Path | None = None) -> Taxa:
    """Return the taxa of a file, else those of a collection's survey, else the shipped table.

    Args:
        path: a table with columns taxon and parent, or a text file with a seven-field label of SpeciesNet a line.
    """
    if path is not None:
        path = Path(path)
        return read_labels(path) if path.suffix.lower() == ".txt" else read_taxa(path)
    rows = collection.dataset_table("taxa").to_pylist() if collection is not None else []
    return complete_taxa(Taxa.from_rows(rows)) if rows else load_builtin_taxa()


def read_taxa(path: Path) -> Taxa:
    """Read a table with the columns `taxon` (or `id`) and `parent`; `name`, `rank`, `common`, `synonyms` may follow.

    A row without a parent is the root. Without a column `name` taxa are their names. Where no rank is given, two words
    are a species and three a subspecies, and other names have the rank of the shipped table.

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
    parents = _check_tree(path, list(rows.values()), lines)
    for row in rows.values():
        row["name"] = row.get("name") or row["id"]
        row["rank"] = row.get("rank") or _find_rank(row["name"])
    taxa = Taxa.from_rows(rows.values())
    # The checks above and the result must number the taxa alike, in the order of the rows.
    assert np.array_equal(taxa.parents, parents)
    return taxa


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
            f"{path}: {len(unknown)} parents are no taxa of the table (got {named}); give each a row, the root one "
            f"without a parent{nearest(first, index)}"
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
