"""Queries of benchmarks/search_quality.py and what answers each of them, read from search_queries.csv.

Columns of the table:

- images: the built-in ones, or one of the two folders of benchmarks/search_folders.py.
- group: plain and harder queries have answers, absent ones name what no image shows, and nothing answers nonsense. No
  floor was chosen with those that are held out, absent or other nonsense; they were written before any was searched.
  Rare words are those that the tour has no image of, most of which a person knows. Scripts: a boat, a dog and the like
  in scripts that English text towers have hardly seen.
- names: words of an image's names that make it a right answer.
- pattern: regular expression that does so too, of "category/subcategory" of built-in images and of "folder/name".
"""

from __future__ import annotations

import csv
from pathlib import Path

# query -> words of names, pattern
Queries = dict[str, tuple[str, str]]


def read_queries() -> dict[tuple[str, str], Queries]:
    """Read the queries by images and group, in the order of the table."""
    queries: dict[tuple[str, str], Queries] = {}
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            group = queries.setdefault((row["images"], row["group"]), {})
            # A query that is listed twice would count once, and the numbers of queries in the docs would be wrong.
            assert row["query"] not in group, f"search_queries.csv: '{row['query']}' is listed twice"
            group[row["query"]] = (row["names"], row["pattern"])
    return queries


QUERIES = read_queries()
PLAIN, HARDER = QUERIES["built-in", "plain"], QUERIES["built-in", "harder"]
HELD_OUT, ABSENT = QUERIES["built-in", "held out"], QUERIES["built-in", "absent"]
NONSENSE, OTHER_NONSENSE, RARE, SCRIPTS = (
    tuple(QUERIES["built-in", group]) for group in ("nonsense", "other nonsense", "rare", "scripts")
)
FOLDER_QUERIES = {name: (QUERIES[name, "plain"], QUERIES[name, "harder"]) for name in ("stamps", "photographs")}
FOLDER_ABSENT = {name: tuple(QUERIES[name, "absent"]) for name in FOLDER_QUERIES}
