"""Measure captions in tokens and words; accept, retry, cut or flag them by length and content.

CLIP tokens are those of open_clip's tokenizer with its default cleaning: broken encodings mended, HTML entities
resolved, white space collapsed, lower case. They are counted without the two special tokens that CLIP puts around a
text; with them a text may have `CLIP_WINDOW`. torch is not needed for it: the vocabulary comes from open_clip's files,
and a test compares the ids with open_clip's own.

A descriptive caption (dsc, afc) never leaves with more than 75 tokens, which are 77 with the special ones; a sentence
is never cut.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import ftfy
import regex

from foveate.core.errors import UserError
from foveate.records.caption_formats import CAPTION_FORMATS, LengthFilter
from foveate.records.text import find_sentence_ends, split_sentences, split_words

CLIP_WINDOW = 77
CLIP_SPECIALS = 2
_VOCABULARY = 49_408
_START, _END = "<start_of_text>", "<end_of_text>"
_PIECES = regex.compile(
    rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
_PLAIN = re.compile(r"[ -%'-~]*")  # printable ASCII without "&": nothing for the cleaning to mend


def clean_for_clip(text: str) -> str:
    """Clean a text as CLIP's tokenizer does."""
    if not _PLAIN.fullmatch(text):
        # Twice, as open_clip does: "&amp;lt;" of pages that were escaped twice.
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def encode_clip(text: str) -> list[int]:
    """Encode a text of any length as CLIP's token ids, without the two special tokens."""
    pieces = _PIECES.findall(clean_for_clip(text))
    return _load_clip_bpe().encode(pieces, is_pretokenized=True, add_special_tokens=False).ids if pieces else []


# A caption is counted by the retry, the filter, the flags and the row: once is enough.
@lru_cache(maxsize=4096)
def count_clip_tokens(text: str) -> int:
    """Count CLIP tokens without the two special tokens.

    Example:
        >>> count_clip_tokens("a red boat")
        3
    """
    return len(encode_clip(text))


def truncate_to_clip_window(text: str) -> str:
    """Decode the tokens of a text that fit into CLIP's window."""
    # "</w>" ends a word in CLIP's vocabulary; it becomes the blank between words.
    return _load_clip_bpe().decode(encode_clip(text)[: CLIP_WINDOW - CLIP_SPECIALS]).replace("</w>", " ").strip()


@cache
def _load_clip_bpe() -> Any:
    """Build CLIP's byte-pair encoding of pieces of text from open_clip's vocabulary file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # The file is found without importing open_clip, which would load torch.
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0] if folders else "") / "bpe_simple_vocab_16e6.txt.gz"
    if not file.is_file():
        raise UserError(f"CLIP's vocabulary {file.name} is missing: run `pip install open-clip-torch`")
    # Bytes as letters, in the order of OpenAI's byte_to_unicode: the ids of tokens follow from it.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + index) for index in range(len(hidden))]
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    # The first line is a header, and the file has more merges than CLIP's vocabulary uses.
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : _VOCABULARY - 2 * 256 - 1])]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), _START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == _VOCABULARY
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    # The pieces are cut already: a second regular expression would cut them again, in GPT-2's way.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (_START, _END)])
    return tokenizer


def count_words(text: str) -> int:
    """Count pieces between white space."""
    return len(text.split())


class OtherTokenizer:
    """Counts tokens with any tokenizer.json, in lower case, end token included, as T5 does.

    Raises:
        UserError: the file is missing, or the `tokenizers` library cannot read it.
    """

    def __init__(self, file: str | Path) -> None:
        from tokenizers import Tokenizer

        self.path = Path(file)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; --tokenizer must be a tokenizer.json file")
        try:
            self._tokenizer = Tokenizer.from_file(str(self.path))
        except BaseException as error:
            # The library raises the bare class; subclasses (interrupts, memory errors) are not about the file.
            if type(error) is not Exception:
                raise
            raise UserError(f"{self.path} is not a tokenizer.json ({' '.join(str(error).split())[:200]})") from error

    def count(self, text: str) -> int:
        """Count tokens, special tokens included."""
        return len(self._tokenizer.encode(text.lower()).ids)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of one caption; CLIP tokens without the two special tokens."""

    num_words: int
    clip_tokens: int
    other_tokens: int | None = None

    @property
    def clip_with_specials(self) -> int:
        """CLIP tokens with the two special tokens, to compare with `CLIP_WINDOW`."""
        return self.clip_tokens + CLIP_SPECIALS


def measure_lengths(text: str, other: OtherTokenizer | None = None) -> Lengths:
    """Measure a caption in all units."""
    return Lengths(count_words(text), count_clip_tokens(text), None if other is None else other.count(text))


FLAGS = (
    "too_long",
    "too_short",
    "cut_at_sentence",
    "repeats",
    "copied_alt",
    "non_english",
    "prompt_leak",
    "alt_unusable",
)


@dataclass(frozen=True, slots=True)
class FilteredCaption:
    """A caption that may be stored, with its flags; or `error` where none may be."""

    caption: str
    flags: tuple[str, ...] = ()
    error: str = ""


def choose_retry(kind: str, caption: str) -> str:
    """Choose the prompt of the one retry: "shorten", "lengthen", or "" where none is needed."""
    limits = CAPTION_FORMATS[kind].lengths
    if _is_too_long(limits, caption):
        return limits.when_long
    return limits.when_short if count_clip_tokens(caption) < limits.min_tokens else ""


def pick_better(kind: str, first: str, second: str) -> str:
    """Pick the version of a caption that is nearer to the limits; the second of equal ones."""
    # The retry comes first in the tuple: `min` takes the first of equal ones.
    return min((second, first), key=lambda caption: _distance(CAPTION_FORMATS[kind].lengths, caption))


def apply_length_filter(kind: str, caption: str) -> FilteredCaption:
    """Cut and flag a caption by its length, after the one retry.

    A descriptive caption whose first sentence is too long is an error ("too_long").

    Example:
        >>> apply_length_filter("ssc", "A red boat lies in the harbor.").flags
        ()
        >>> apply_length_filter("dsc", "A red boat.").flags
        ('too_short',)
    """
    limits, flags = CAPTION_FORMATS[kind].lengths, list[str]()
    if limits.cut and count_clip_tokens(caption) > limits.max_tokens:
        caption = _cut(caption, limits.max_tokens)
        if not caption:
            return FilteredCaption("", error="too_long")
        flags.append("cut_at_sentence")
    elif _is_too_long(limits, caption):
        flags.append("too_long")
    # After the cut, which may leave too little.
    if count_clip_tokens(caption) < limits.min_tokens:
        flags.append("too_short")
    return FilteredCaption(caption, tuple(flags))


def find_content_flags(caption: str, *, prompt: str, alt: str = "", english: bool = True) -> tuple[str, ...]:
    """Flag a caption by its content: repeats, copied_alt, non_english, prompt_leak.

    Args:
        prompt: the template that was used, without the image's own texts.
        alt: the image's alt-text, whether or not the captioner saw it; "" for none.
        english: whether the request was for English.

    Example:
        >>> find_content_flags("A red boat, a red boat, a red boat, a red boat.", prompt="Describe the image.")
        ('repeats',)
    """
    holds = {
        "repeats": repeats(caption),
        "copied_alt": copies_alt(caption, alt),
        "non_english": english and is_non_english(caption),
        "prompt_leak": leaks_prompt(caption, prompt),
    }
    return tuple(flag for flag, is_set in holds.items() if is_set)


def _is_too_long(limits: LengthFilter, caption: str) -> bool:
    too_many = limits.max_sentences is not None and len(split_sentences(caption)) > limits.max_sentences
    return too_many or count_clip_tokens(caption) > limits.max_tokens


def _distance(limits: LengthFilter, caption: str) -> float:
    """Tokens between a caption and the limits; 0 is accepted."""
    tokens = count_clip_tokens(caption)
    excess = max(limits.min_tokens - tokens, tokens - limits.max_tokens, 0)
    surplus = 0 if limits.max_sentences is None else len(split_sentences(caption)) - limits.max_sentences
    # Each sentence too many weighs as much as a caption of twice the allowed length.
    return excess + max(surplus, 0) * limits.max_tokens


def _cut(caption: str, max_tokens: int) -> str:
    """Cut a caption after the last sentence that fits; "" where the first one does not."""
    for end in reversed(find_sentence_ends(caption)):
        if count_clip_tokens(caption[:end]) <= max_tokens:
            return caption[:end]
    return ""


def repeats(caption: str) -> bool:
    """Whether a caption has the same four words in a row three times.

    Models that fall into a loop write such captions.
    """
    # Windows of four words; `zip` ends with the shortest, so the last windows are whole.
    tokens = split_words(caption)
    counts = Counter(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return max(counts.values(), default=0) >= 3


def copies_alt(caption: str, alt: str) -> bool:
    """Whether the words of caption and alt-text are nearly the same: Jaccard index above 0.9."""
    in_caption, in_alt = set(split_words(caption)), set(split_words(alt))
    return bool(in_caption and in_alt) and len(in_caption & in_alt) / len(in_caption | in_alt) > 0.9


# Shorter runs ("in front of the") occur in prompts and captions alike.
_LEAK_WORDS = 6
_RESPONSE_FIELDS = ("used_alt_facts", '"caption":', "refusal_reason")


def leaks_prompt(caption: str, prompt: str) -> bool:
    """Whether a caption has six words of the prompt in a row, or a field of the JSON response."""
    if any(name in caption for name in _RESPONSE_FIELDS):
        return True
    return not _word_runs(prompt).isdisjoint(_word_runs(caption))


# Cached for the prompts, which are few and the same for all images.
@lru_cache(maxsize=64)
def _word_runs(text: str) -> frozenset[tuple[str, ...]]:
    """Return all runs of `_LEAK_WORDS` words."""
    tokens = split_words(text)
    return frozenset(tuple(tokens[start : start + _LEAK_WORDS]) for start in range(len(tokens) - _LEAK_WORDS + 1))


# Frequent words of captions.
_ENGLISH_WORDS = frozenset(
    "the and of with on is are at by it its an this that to from there two other has have which while into behind "
    "front left right near over under above below between next some one three background picture".split()
)
# Frequent words of German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish and Indonesian that no English
# caption uses.
_FOREIGN_WORDS = frozenset(
    "der die das und ein eine einer einem einen mit auf ist sind im von zu den dem steht "
    "le la les un une des du et avec dans est sont sur au aux qui pour "
    "el los las una y con en es del al por para que "
    "il lo gli uno di della nel nella sul sono che per "
    "o os um uma e com no na em do da dos das "
    "het een van op met zijn naar bij "
    "na z w jest przed oraz i "
    "och en ett som med av till det "
    "yang dan di dengan sebuah ini pada seorang".split()
) - {"i", "on", "in", "no", "do", "die", "den", "per", "an", "um", "met", "du", "dos"}


def is_non_english(caption: str) -> bool:
    """Whether less than 70 % of letters are Latin, or foreign words outnumber English ones.

    A simple rule: only frequent words are counted, from five words on. Short captions in Latin letters are taken for
    English.
    """
    letters = [letter for letter in caption if letter.isalpha()]
    # Latin letters end before U+0250; U+1E00 to U+1EFF are further ones with diacritics.
    if letters and sum(letter < "\u0250" or "\u1e00" <= letter < "\u1f00" for letter in letters) < 0.7 * len(letters):
        return True
    tokens = split_words(caption)
    if len(tokens) < 5:
        return False
    return sum(token in _FOREIGN_WORDS for token in tokens) > sum(token in _ENGLISH_WORDS for token in tokens)
