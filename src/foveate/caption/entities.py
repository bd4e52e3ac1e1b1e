"""Entities that captions name: their noun phrases without the determiner, in lower case.

The phrases are those of the region recipe (`foveate.caption.vesl.phrases`), here without its limit of twenty. `phrase`
is the whole phrase ("old harbor lighthouse"), `head` its last word ("lighthouse"). `ner` are names instead ("Port
Ellery"), as spaCy's recognizer finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foveate.caption.vesl.phrases import ExtractedPhrases, PhraseSettings
from foveate.caption.vesl.tagging import Extractor, open_extractor
from foveate.core.errors import choose

NAMED = "ner"
KEYS = ("phrase", "head", NAMED)
# Entities are counted in whole captions: the region recipe's limit of 20 phrases must not cut long ones.
_ALL_PHRASES = 10_000
# Labels of spaCy for numbers and measures, which are no names.
_NUMBER_LABELS = frozenset(("CARDINAL", "ORDINAL", "PERCENT", "QUANTITY"))
# Removed from the front of a phrase. Narrower than what a phrase may start with: published counts were made so.
DETERMINERS = frozenset("a an the this that these those each every some any no another all both".split())


def extract_entity(phrase: str, key: str = "phrase") -> str:
    """Return the entity that a phrase names, "" where nothing is left of it.

    >>> extract_entity("The old harbor lighthouse"), extract_entity("a white lighthouse", "head")
    ('old harbor lighthouse', 'lighthouse')
    """
    tokens = phrase.lower().split()
    if tokens and tokens[0] in DETERMINERS:
        tokens = tokens[1:]
    return tokens[-1] if tokens and choose(key, KEYS, "entity key") == "head" else " ".join(tokens)


def collect_entities(phrases: Iterable[Sequence[str]], key: str = "phrase") -> set[str]:
    """Collect the different entities in the phrases of many captions."""
    return {entity for caption in phrases for phrase in caption if (entity := extract_entity(phrase, key))}


class NamedEntities:
    """Finds names of people, places, organizations, works and days with spaCy's recognizer.

    Raises:
        UserError: spaCy or its model is not installed.
    """

    name = "spacy_ner"

    def __init__(self) -> None:
        from foveate.caption.vesl.taggers.spacy import load_spacy

        # Load only the recognizer: the excluded parts take most of the time.
        self._model = load_spacy(exclude=("parser", "tagger", "lemmatizer", "attribute_ruler"))
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def __call__(self, text: str) -> ExtractedPhrases:
        names = [entity.text for entity in self._model(text).ents if entity.label_ not in _NUMBER_LABELS]
        return ExtractedPhrases(names, [], len(names))


def open_entities() -> Extractor:
    """Open the extractor that finds the names in a caption."""
    return NamedEntities()


def open_phrases(tagger: str = "rules") -> Extractor:
    """Open the extractor of all noun phrases of a caption, by the published recipe.

    Raises:
        UserError: the tagger is unknown, or a package that it needs is not installed.
    """
    return open_extractor(PhraseSettings(tagger=tagger, recipe="paper", max_phrases=_ALL_PHRASES))
