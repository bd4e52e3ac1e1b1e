"""Tokens and tags of the published recipe: NLTK's word tokenizer and its averaged perceptron.

NLTK's package holds the code only. The tagger's weights are NLTK data that its users download; they are read here as
JSON (never a pickle) from `tagger_data`, else from where NLTK finds `taggers/averaged_perceptron_tagger_eng`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.caption.vesl.phrases import PhraseSettings
from foveate.caption.vesl.tagging import Tagger, TaggerPhrases
from foveate.core.errors import UserError
from foveate.core.files import read_json, sha256_file

_FOLDER = "averaged_perceptron_tagger_eng"
_PARTS = ("weights", "tagdict", "classes")


class NltkTagger(Tagger):
    """NLTK's perceptron with the weights of a folder.

    Raises:
        UserError: NLTK is not installed, or its data is missing or unreadable.
    """

    name = "nltk"

    def __init__(self, data: str | None) -> None:
        try:
            import nltk
            from nltk.tag.perceptron import PerceptronTagger
            from nltk.tokenize import NLTKWordTokenizer
        except ImportError as error:
            raise UserError("the tagger 'nltk' needs NLTK: run `pip install foveate[nltk]`") from error
        folder = Path(data) if data else _find_data()
        files = {part: folder / f"{_FOLDER}.{part}.json" for part in _PARTS}
        self._tokenizer = NLTKWordTokenizer()
        # load=False and filled here: NLTK's own loading looks only where its downloader puts data.
        self._tagger: Any = PerceptronTagger(load=False)
        self._tagger.model.weights = _read_mapping(files["weights"])
        self._tagger.tagdict = _read_mapping(files["tagdict"])
        classes = read_json(files["classes"])
        if not isinstance(classes, list) or not all(isinstance(tag, str) for tag in classes):
            raise UserError(f"{files['classes']}: expected a JSON list of tags")
        self._tagger.classes = self._tagger.model.classes = set(classes)
        # Code and weights: either may change the phrases.
        self.version = f"{nltk.__version__} {sha256_file(files['weights'])[:12]}"

    def tokens(self, sentence: str) -> list[str]:
        return self._tokenizer.tokenize(sentence)

    def tags(self, tokens: Sequence[str]) -> list[str]:
        return [tag for _, tag in self._tagger.tag(list(tokens))]


def _find_data() -> Path:
    import nltk

    try:
        return Path(str(nltk.data.find(f"taggers/{_FOLDER}")))
    except LookupError as error:
        raise UserError(
            f"the tagger 'nltk' needs NLTK's data package {_FOLDER}: with a network, "
            f"`python -m nltk.downloader {_FOLDER}`; else unpack it and give its folder as --tagger-data"
        ) from error


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object (got {type(content).__name__})")
    return content


def open_tagger(settings: PhraseSettings) -> TaggerPhrases:
    """Open the published chunker over NLTK's tags."""
    return TaggerPhrases(NltkTagger(settings.tagger_data), settings)


TAGGER = open_tagger
