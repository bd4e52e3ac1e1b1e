"""The published chunker over spaCy's words and tags, see `foveate.caption.vesl.taggers.spacy`."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.taggers.spacy import load
from foveate.caption.vesl.tagging import Tagger, TaggerPhrases


class SpacyTagger(Tagger):
    """Words of spaCy's tokenizer and tags of its tagger."""

    name = "spacy_tags"

    def __init__(self) -> None:
        self._model = load()
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def tokens(self, sentence: str) -> list[str]:
        return [token.text for token in self._model.tokenizer(sentence) if not token.is_space]

    def tags(self, tokens: Sequence[str]) -> list[str]:
        from spacy.tokens import Doc

        with self._model.select_pipes(enable=["tok2vec", "tagger"]):
            return [token.tag_ for token in self._model(Doc(self._model.vocab, words=list(tokens)))]


def open_tagger(settings: PhraseSettings) -> TaggerPhrases:
    """See `SpacyTagger`."""
    return TaggerPhrases(SpacyTagger(), settings)


TAGGER = open_tagger
