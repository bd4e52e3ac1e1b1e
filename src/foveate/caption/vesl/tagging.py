"""What turns a caption into phrases, by name: `x` is the module `foveate.caption.vesl.taggers.x`.

A new tagger is one new module with a `TAGGER`; nothing here changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Protocol

import foveate.caption.vesl.taggers
from foveate.caption.vesl.phrases import Phrases, PhraseSettings, clean_phrases, paper_phrases, without_generic
from foveate.core.errors import choose
from foveate.records.text import split_sentences


class Tagger(Protocol):
    """Words of a sentence, and a Penn tag for each. `version` names the code or the weights, for the recipe's hash."""

    name: str
    version: str

    def tokens(self, sentence: str) -> list[str]:
        """The tokens of one lower-case sentence."""
        ...

    def tags(self, tokens: Sequence[str]) -> list[str]:
        """One tag per token."""
        ...


class Extractor(Protocol):
    """A caption's phrases."""

    name: str
    version: str

    def __call__(self, text: str) -> Phrases: ...


class TaggerPhrases:
    """The recipe of `settings` over a tagger."""

    def __init__(self, tagger: Tagger, settings: PhraseSettings) -> None:
        self.tagger, self.settings = tagger, settings
        self.name, self.version = tagger.name, tagger.version

    def __call__(self, text: str) -> Phrases:
        parts = split_sentences(text.lower(), style="treebank")
        tokens = [token for part in parts for token in self.tagger.tokens(part)]
        if self.settings.recipe == "paper":
            tokens = without_generic(tokens)
            return paper_phrases(tokens, self.tagger.tags(tokens), most=self.settings.most)
        return clean_phrases(tokens, self.tagger.tags(tokens), most=self.settings.most)


def tagger_names() -> list[str]:
    """Names of all taggers, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(foveate.caption.vesl.taggers.__path__))


def open_extractor(settings: PhraseSettings) -> Extractor:
    """What turns captions into phrases.

    Raises:
        UserError: for an unknown tagger, with the nearest match; or where what it needs is not installed.
    """
    choose(settings.tagger, tagger_names(), "tagger")
    module = importlib.import_module(f"foveate.caption.vesl.taggers.{settings.tagger}")
    made: Callable[[PhraseSettings], Extractor] = module.TAGGER
    return made(settings)
