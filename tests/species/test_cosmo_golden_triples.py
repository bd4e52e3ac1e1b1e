"""Numbering of triples against the released code of COSMO, and our candidates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.species.triples import (
    COLUMNS,
    LOCATION,
    PARENT,
    SPECIES,
    TIME,
    Triples,
    make_table,
    normalize_id,
    read_triples,
    write_triples,
)
from naming import raises_naming

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "cosmo"
GOLDEN = json.loads((FOLDER / "triples.json").read_text())
RELATIONS = {"id->id": PARENT, "image->id": SPECIES, "image->location": LOCATION, "image->time": TIME}
TABLE = make_table(GOLDEN["rows"])


def test_official_numbering() -> None:
    triples = Triples.index(TABLE, official=True)
    numbers = {name: number for number, name in enumerate(triples.entities)}
    assert numbers == GOLDEN["entity2id"]
    assert triples.targets_K.tolist() == GOLDEN["target_list"]
    np.testing.assert_array_equal(triples.places_P2.astype(np.float32), np.float32(GOLDEN["all_locs_float32"]))
    assert triples.hours_H.tolist() == GOLDEN["all_hours"]
    for name, rows in GOLDEN["passes"].items():
        kind, split = name.split("/")
        links = triples.links(RELATIONS[kind], split)
        heads = [numbers[head] for head in links.heads] if kind == "id->id" else links.heads
        pairs = zip(heads, links.labels.tolist(), strict=True)
        assert [{"head": head, "rel": RELATIONS[kind], "label": label} for head, label in pairs] == rows


def test_hours_are_those_that_are_written() -> None:
    for case in json.loads((FOLDER / "hours.json").read_text()):
        row = ("a.jpg", "image", TIME, case["timestamp"], "time", "train")
        assert Triples.index(make_table([row])).hours_H.tolist() == [case["month_hour"][1]]


def test_our_candidates_are_those_of_training() -> None:
    triples = Triples.index(TABLE)
    assert triples.entities == Triples.index(TABLE, official=True).entities
    assert triples.hours_H.tolist() == [5.0, 23.0]
    assert len(triples.places_P2) == 2
    # d.jpg was taken where and when no training image was; e.jpg at a known place.
    assert triples.links(LOCATION, "val").labels.tolist() == triples.links(TIME, "val").labels.tolist() == [-1]
    assert triples.links(LOCATION, "test").labels.tolist() == [1]


def test_places_are_compared_as_numbers_or_as_text() -> None:
    texts = ("[10. 20.]", "[10.0 20.0]", "[10.00000001 20.0]", "[-0.0 20]", "[0 20.]")
    table = make_table((f"{n}.jpg", "image", LOCATION, text, "location", "train") for n, text in enumerate(texts))
    assert Triples.index(table).links(LOCATION, "train").labels.tolist() == [0, 0, 0, 1, 1]
    assert len(Triples.index(table, official=True).places_P2) == 5


def test_a_table_is_read_back(tmp_path: Path) -> None:
    rows = [('a, b".jpg', "image", SPECIES, "NA", "id", "train"), ("9.0", "image", SPECIES, "9.0", "id", "train")]
    rows += [("zeile\n2", "image", SPECIES, "", "id", "val"), ("é", "image", SPECIES, "9", "id", "val")]
    write_triples(tmp_path / "triples.csv", make_table(rows))
    table = read_triples(tmp_path / "triples.csv")
    assert table.equals(make_table(rows))
    assert (tmp_path / "triples.csv").read_text().splitlines()[2] == "9.0,image,3,9.0,id,train"
    triples = Triples.index(table)
    assert triples.entities == ("NA", "9", "")
    assert triples.links(SPECIES, "train").heads[1] == "9.0"
    assert [normalize_id(text) for text in ("9696.0", "9696.", "0.5", "x.0")] == ["9696", "9696", "0.5", "x.0"]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (("a", "image", 2, "40", "id", "train"), ["'2'", "'id'"]),
        (("a", "image", 7, "40", "id", "train"), ["'7'"]),
        (("a", "image", 0, "June", "time", "train"), ["June", "YYYY-MM-DD"]),
        (("a", "image", 0, "2020-01-01 25:00:00", "time", "train"), ["25:00"]),
        (("a", "image", 2, "[91 0]", "location", "train"), ["[-90, 90]"]),
        (("a", "image", 2, "[nan 0]", "location", "train"), ["[-90, 90]"]),
        (("a", "image", 2, "here", "location", "train"), ["latitude"]),
    ],
)
def test_wrong_triples(row: tuple[object, ...], names: list[str]) -> None:
    with raises_naming(UserError, *names):
        Triples.index(make_table([row]))


def test_a_file_of_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "triples.csv"
    path.write_text(",".join(COLUMNS).replace("datatype_t", "datatype_tail") + "\n")
    with raises_naming(UserError, "triples.csv", "datatype_t", "datatype_tail"):
        read_triples(path)
    with raises_naming(UserError, "none.csv"):
        read_triples(tmp_path / "none.csv")
