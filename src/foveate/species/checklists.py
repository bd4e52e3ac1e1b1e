"""Read checklists of taxa as GBIF (Darwin Core) and NCBI publish them: accepted names, synonyms, parents.

A whole backbone has millions of rows, so that rows are read one by one; only the names of a survey and their ancestors
become taxa.

Source: https://dwc.tdwg.org/terms/#taxon; GBIF's backbone, Taxon.tsv; NCBI's taxdump, names.dmp and nodes.dmp.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.tables import iterate_rows
from foveate.core.text_tables import open_text
from foveate.survey.taxa import RANKS, Taxa, fold_name

NODES, NAMES = "nodes.dmp", "names.dmp"
# Words of a name before its author, by rank; one word everywhere else.
_NUM_WORDS = {"species": 2, "subspecies": 3, "variety": 3, "form": 3}
_SCIENTIFIC, _COMMON = "scientific name", "genbank common name"
_SYNONYMS = ("synonym", "equivalent name", "includes")


@dataclass(slots=True)
class _Record:
    """A row of a checklist: a taxon, or a synonym of the taxon `accepted`."""

    id: str
    name: str
    rank: str
    parent: str
    accepted: str = ""
    common: str = ""


@dataclass(slots=True)
class _Kept:
    """Names of a taxon that is taken."""

    name: str = ""
    rank: str = ""
    common: str = ""
    synonyms: dict[str, None] = field(default_factory=dict)


def is_checklist(path: Path) -> bool:
    """Whether a file is a Darwin Core table of taxa, or a file or folder of NCBI's taxdump."""
    if path.is_dir():
        return (path / NODES).is_file()
    if path.name in (NODES, NAMES):
        return True
    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return False
    try:
        columns = {name.strip().casefold() for name in open_text(path).names}
    except UserError:
        return False
    return {"taxonid", "scientificname"} <= columns and bool({"parentnameusageid", "taxonrank"} & columns)


def read_checklist(path: Path, names: Collection[str] | None = None) -> Taxa:
    """Read a checklist: Darwin Core, or NCBI's taxdump (its folder, or nodes.dmp beside names.dmp).

    Darwin Core has the columns taxonID, scientificName and parentNameUsageID; taxonRank, taxonomicStatus,
    acceptedNameUsageID, canonicalName and vernacularName may follow. A row whose acceptedNameUsageID is another taxon
    is a synonym of it. Authors are cut off. Ancestors of ranks that are not of Camtrap DP are left out.

    Args:
        names: scientific or common names to take, with their genera, synonyms and ancestors; None takes all.

    Raises:
        UserError: a file or column is missing, a taxon occurs twice or its accepted one never, or none of the names is
            in the checklist.
    """
    is_ncbi = path.is_dir() or path.name in (NODES, NAMES)
    folder = path if path.is_dir() else path.parent

    def read() -> Iterator[_Record]:
        return _read_ncbi(folder) if is_ncbi else _read_darwin_core(path)

    wanted = None if names is None else {fold_name(text) for name in names for text in (name, name.split()[0])}
    parents: dict[str, str] = {}
    ranks: dict[str, str] = {}
    matches: dict[str, None] = {}
    accepted_of: set[str] = set()
    for record in read():
        if record.accepted:
            accepted_of.add(record.accepted)
        elif record.id in parents:
            raise UserError(f"{path}: taxon {record.id!r} occurs twice")
        else:
            parents[record.id] = record.parent
            # A backbone has a few dozen ranks and millions of rows.
            ranks[record.id] = sys.intern(record.rank)
        if wanted is None or {fold_name(record.name), fold_name(record.common)} & wanted:
            matches[record.accepted or record.id] = None
    if not matches:
        example = next(iter(names or ()), "")
        raise UserError(f"{path}: none of the {len(names or ())} names of the survey is in it (got {example!r})")
    lost = sorted(accepted_of - parents.keys() if wanted is None else matches.keys() - parents.keys())
    if lost:
        raise UserError(f"{path}: acceptedNameUsageID {lost[0]!r} of a synonym is no taxon of the table")
    kept = {each: _Kept() for taxon in matches for each in _climb(taxon, parents, ranks)}
    for record in read():
        taxon = kept.get(record.accepted or record.id)
        if taxon is None:
            continue
        if record.accepted:
            taxon.synonyms[record.name] = None
        else:
            taxon.name, taxon.rank, taxon.common = record.name, record.rank, record.common
    return Taxa.from_rows(_make_rows(kept, parents))


def _climb(taxon: str, parents: Mapping[str, str], ranks: Mapping[str, str]) -> list[str]:
    """Return a taxon and its ancestors up to the kingdom."""
    lineage: list[str] = []
    while taxon in parents and taxon not in lineage:
        lineage.append(taxon)
        # Above a kingdom are only names that are no taxa of a survey, such as "cellular organisms".
        if ranks[taxon] == "kingdom":
            break
        taxon = parents[taxon]
    return lineage


def _make_rows(kept: Mapping[str, _Kept], parents: Mapping[str, str]) -> Iterator[dict[str, object]]:
    def find_parent(taxon: str) -> str:
        parent = parents[taxon]
        while parent in kept and kept[parent].rank not in RANKS and parents[parent] != parent:
            parent = parents[parent]
        return parent if parent in kept and kept[parent].rank in RANKS and parent != taxon else ""

    for taxon, entry in kept.items():
        # A name without a rank of the standard may still be that of a label, but is nobody's ancestor.
        is_kingdom = entry.rank == "kingdom"
        yield {
            "id": taxon,
            "name": entry.name,
            "rank": entry.rank if entry.rank in RANKS else "",
            "parent": "" if is_kingdom else find_parent(taxon),
            "common": entry.common,
            "synonyms": "|".join(name for name in entry.synonyms if name != entry.name),
        }


def _read_darwin_core(path: Path) -> Iterator[_Record]:
    columns, rows = iterate_rows(path)
    index = {name.strip().casefold(): number for number, name in enumerate(columns)}
    for name in ("taxonID", "scientificName", "parentNameUsageID"):
        if name.casefold() not in index:
            raise UserError(f"{path}: no column {name!r} (got {', '.join(columns[:30])})")

    def get(cells: list[str], name: str) -> str:
        return cells[index[name]].strip() if name in index else ""

    for line, cells in rows:
        identity, rank = get(cells, "taxonid"), get(cells, "taxonrank").lower()
        if not identity:
            raise UserError(f"{path}: line {line} has no taxonID")
        accepted = get(cells, "acceptednameusageid")
        name = get(cells, "canonicalname") or strip_author(get(cells, "scientificname"), rank)
        parent, common = get(cells, "parentnameusageid"), get(cells, "vernacularname")
        yield _Record(identity, name, rank, parent, "" if accepted == identity else accepted, common)


def strip_author(name: str, rank: str) -> str:
    """Return a scientific name without its author and subgenus.

    >>> strip_author("Macaca nemestrina (Linnaeus, 1766)", "species"), strip_author("Macaca Lacépède, 1799", "genus")
    ('Macaca nemestrina', 'Macaca')
    """
    words = re.sub(r" \([A-Z][a-z]+\)(?= [a-z])", "", name).split()
    if rank:
        return " ".join(words[: _NUM_WORDS.get(rank, 1)])
    # Without a rank, an author begins with a capital or a bracket.
    return " ".join(words[:1] + [word for word in words[1:3] if re.fullmatch("[a-z-]+", word)])


def _read_ncbi(folder: Path) -> Iterator[_Record]:
    names: dict[str, tuple[str, str]] = {}
    synonyms: list[tuple[str, str]] = []
    for taxon, name, _, kind, *_ in _read_dump(folder / NAMES, 4):
        if kind == _SCIENTIFIC:
            names[taxon] = name, names.get(taxon, ("", ""))[1]
        elif kind == _COMMON:
            names[taxon] = names.get(taxon, ("", ""))[0], name
        elif kind in _SYNONYMS:
            synonyms.append((taxon, name))
    for taxon, parent, rank, *_ in _read_dump(folder / NODES, 3):
        name, common = names.get(taxon, ("", ""))
        # The root is its own parent.
        yield _Record(taxon, name, rank, "" if parent == taxon else parent, common=common)
    for taxon, name in synonyms:
        yield _Record("", strip_author(name, "") if "," in name else name, "", "", accepted=taxon)


def _read_dump(path: Path, width: int) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                cells = [cell.strip() for cell in line.rstrip("\r\n").removesuffix("|").split("|")]
                if len(cells) < width:
                    raise UserError(f"{path}: line {number} has {len(cells)} fields; expected {width}, divided by |")
                yield cells
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; NCBI's taxdump has {NODES} and {NAMES}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
