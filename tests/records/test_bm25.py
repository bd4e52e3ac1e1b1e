"""BM25: terms of texts and file names, scores against the formula, damaged files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.records.bm25 import K1, B, TextIndex, split_document, split_terms
from foveate.records.tables import write_table
from naming import raises_naming

DOCUMENTS = [["IMG_0231", "a red boat"], ["redHouse2"], ["red red boats", "boat"], [], ["赤い丸"]]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("IMG_0231.JPG", ["img", "0231", "jpg"]),
        ("twoRedBoats", ["two", "red", "boat"]),
        ("HTMLParser2x", ["html", "parser", "2", "x"]),
        ("holiday-2019/The beach", ["holiday", "2019", "beach"]),
        ("boxes dishes flies glass bus", ["box", "dish", "fly", "glass", "bus"]),
        ("Straße naïve", ["strasse", "naïve"]),
        ("赤い丸 ok", ["赤", "い", "丸", "ok"]),
        ("clipart-7c4bad1e3a6f", ["clipart"]),
        ("of the", ["of", "the"]),
        ("", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert split_terms(text) == terms


def test_words_of_names_are_terms_joined_and_apart() -> None:
    assert split_document("tools/screwDriver1 sail_boats, IMG_0231") == [
        *("tool", "screw", "driver", "1", "sail", "boat", "img", "0231"),
        *("screwdriver", "sailboat"),
    ]
    index = TextIndex.build([["screwDriver1"], ["a screw and a driver"], ["sail-boats"]])
    assert np.flatnonzero(index.score("a screwdriver")).tolist() == [0]
    assert np.flatnonzero(index.score("sailboats")).tolist() == [2]


def test_scores_are_those_of_the_formula() -> None:
    terms = [[term for text in texts for term in split_document(text)] for texts in DOCUMENTS]
    mean = np.mean([len(row) for row in terms])
    query = ["red", "boat", "house"]
    idf = {}
    for term in query:
        count = sum(term in row for row in terms)
        idf[term] = math.log(1 + (len(terms) - count + 0.5) / (count + 0.5))
    whole = sum(idf.values())
    shares = np.array([sum(idf[term] for term in query if term in row) for row in terms]) / whole
    saturated = np.array(
        [
            sum(idf[t] * row.count(t) / (row.count(t) + K1 * (1 - B + B * len(row) / mean)) for t in query) / whole
            for row in terms
        ]
    )
    scores = TextIndex.build(DOCUMENTS).score("red boats, a house")
    np.testing.assert_allclose(scores, shares**2 + (1 - shares) * saturated)
    # Two documents have "red" and "boat"; the one that repeats both comes first.
    assert scores[2] > scores[0]


def test_a_document_with_every_known_word_scores_one() -> None:
    documents = [["solar4.webp"], [f"solar panels on a roof, {'and much else ' * 40}"], ["IMG_0001"], ["a polar_bear"]]
    index = TextIndex.build(documents)
    assert index.score("a polar bear").tolist() == [0, 0, 0, 1]
    # The same words in a short name and in a long text; "unicorn" is in no document.
    assert index.score("solar").tolist() == [1, 1, 0, 0]
    assert index.score("solar unicorn").tolist() == [1, 1, 0, 0]
    short, long, *others = index.score("solar panels")
    assert long == 1
    assert 0 < short < 1
    assert others == [0, 0]
    # "bear" is in one document of four and so is "polar": half of the query's weight, less what saturation takes.
    half = TextIndex.build([["polar"], ["bear"], ["fish"]]).score("polar bear")
    assert half[0] == half[1]
    assert 0.25 < half[0] <= 0.5
    assert not TextIndex.build(DOCUMENTS).score("unicorn").any()
    assert not TextIndex.build([]).score("unicorn").any()


def test_plural_and_singular_match() -> None:
    index = TextIndex.build([["solar-panel3.webp"], ["solarPanels"], ["solar4.webp"]])
    for query in ("solar panels", "a solar panel"):
        scores = index.score(query)
        assert scores[:2].tolist() == [1, 1]
        assert 0 < scores[2] < 1
    # Words of four letters: a tie is no "ty".
    assert TextIndex.build([["red ties"], ["boat"]]).score("tie").tolist() == [1, 0]
    # Where no document has "panel", the word says nothing, and every "solar" is a complete match.
    assert TextIndex.build([["solar4.webp"], ["boat"]]).score("solar panels").tolist() == [1, 0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.text(max_size=12), max_size=3), max_size=6), st.text(max_size=12))
def test_scores_are_shares(documents: list[list[str]], query: str) -> None:
    scores = TextIndex.build(documents).score(query)
    assert scores.shape == (len(documents),)
    assert ((scores >= 0) & (scores <= 1)).all()
    terms = [{term for text in texts for term in split_document(text)} for texts in documents]
    known = {term for term in split_terms(query) if any(term in row for row in terms)}
    assert [score == 1 for score in scores] == [bool(known) and known <= row for row in terms]
    assert [score == 0 for score in scores] == [not known & row for row in terms]


def test_written_and_read(tmp_path: Path) -> None:
    index = TextIndex.build(DOCUMENTS)
    index.write(tmp_path / "a.parquet")
    index.write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    read = TextIndex.read(tmp_path / "a.parquet", len(DOCUMENTS))
    np.testing.assert_array_equal(read.score("red boat"), index.score("red boat"))
    with raises_naming(UserError, tmp_path / "a.parquet"):
        TextIndex.read(tmp_path / "a.parquet", 2)
    write_table(tmp_path / "c.parquet", pa.table({"term": ["a"]}))
    with raises_naming(UserError, tmp_path / "c.parquet"):
        TextIndex.read(tmp_path / "c.parquet", 2)
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    with raises_naming(UserError, tmp_path / "d.parquet"):
        TextIndex.read(tmp_path / "d.parquet", 2)
