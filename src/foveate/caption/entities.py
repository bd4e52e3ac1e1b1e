"""What captions name: their noun phrases without the determiner, in lower case.

The phrases are those of the region recipe (`foveate.caption.vesl.phrases`), here without its limit of twenty. `phrase`
is the whole phrase ("old harbor lighthouse"), `head` its last word ("lighthouse"). `ner` are names instead ("Port
Ellery"), as spaCy's recognizer finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from foveate.caption.vesl.phrases import ExtractedPhrases
from foveate.caption.vesl.tagging import Extractor
from foveate.core.errors import choose

NAMED = "ner"
KEYS = ("phrase", "head", NAMED)
# Numbers and measures, which spaCy marks, too, are no names.
_NO_NAMES = frozenset(("CARDINAL", "ORDINAL", "PERCENT", "QUANTITY"))
# Removed from the front of a phrase, as the goldens have it: narrower than what a phrase may start with.
LEADING = frozenset("a an the this that these those each every some any no another all both".split())


def entity(phrase: str, key: str = "phrase") -> str:
    """The entity that a phrase names, "" where nothing is left of it.

    >>> entity("The old harbor lighthouse"), entity("a white lighthouse", "head")
    ('old harbor lighthouse', 'lighthouse')
    """
    words = phrase.lower().split()
    if words and words[0] in LEADING:
        words = words[1:]
    return words[-1] if words and choose(key, KEYS, "entity key") == "head" else " ".join(words)


def entities(phrases: Iterable[Sequence[str]], key: str = "phrase") -> set[str]:
    """The different entities in the phrases of many captions."""
    return {found for caption in phrases for phrase in caption if (found := entity(phrase, key))}


class NamedEntities:
    """Names of people, places, organizations, works, days and the like, by spaCy's recognizer of named entities."""

    name = "spacy_ner"

    def __init__(self) -> None:
        """Opens the model. Raises UserError where spaCy or its model is not installed."""
        from foveate.caption.vesl.taggers.spacy import load_spacy

        self._model = load_spacy(exclude=("parser", "tagger", "lemmatizer", "attribute_ruler"))
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def __call__(self, text: str) -> ExtractedPhrases:
        kept = [one.text for one in self._model(text).ents if one.label_ not in _NO_NAMES]
        return ExtractedPhrases(kept, [], len(kept))


def open_entities() -> Extractor:
    """What finds the names in a caption."""
    return NamedEntities()
