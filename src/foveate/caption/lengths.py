"""How long a caption is, in the units that matter: CLIP tokens, tokens of a T5-like tokenizer, words.

CLIP tokens are those of open_clip's tokenizer with its default cleaning: broken encodings mended, HTML entities
resolved, white space collapsed, lower case. They are counted without the two special tokens that CLIP puts around a
text; with them a text may have `CLIP_WINDOW`. torch is not needed for it: the vocabulary comes from open_clip's files,
and a test compares the ids with open_clip's own.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import ftfy
import regex

from foveate.core.errors import UserError

CLIP_WINDOW = 77
CLIP_SPECIALS = 2
_VOCABULARY = 49_408
_START, _END = "<start_of_text>", "<end_of_text>"
_PIECES = regex.compile(
    rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
_PLAIN = re.compile(r"[ -%'-~]*")  # printable ASCII without "&": nothing for the cleaning to mend


def clip_clean(text: str) -> str:
    """Text as CLIP's tokenizer sees it."""
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def clip_ids(text: str) -> list[int]:
    """CLIP's token ids of a text of any length, without the two special tokens."""
    pieces = _PIECES.findall(clip_clean(text))
    return _clip_bpe().encode(pieces, is_pretokenized=True, add_special_tokens=False).ids if pieces else []


@lru_cache(maxsize=4096)
def clip_tokens(text: str) -> int:
    """Number of CLIP tokens without the two special tokens."""
    return len(clip_ids(text))


def clip_window(text: str) -> str:
    """What of a text CLIP reads within its window, decoded from the tokens that fit."""
    return _clip_bpe().decode(clip_ids(text)[: CLIP_WINDOW - CLIP_SPECIALS]).replace("</w>", " ").strip()


@cache
def _clip_bpe() -> Any:
    """CLIP's byte-pair encoding of pieces of text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    place = importlib.util.find_spec("open_clip")
    folders = place.submodule_search_locations if place else None
    file = Path(folders[0] if folders else "") / "bpe_simple_vocab_16e6.txt.gz"
    if not file.is_file():
        raise UserError(f"CLIP's vocabulary {file.name} is missing: run `pip install open-clip-torch`")
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + place) for place in range(len(hidden))]
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : _VOCABULARY - 2 * 256 - 1])]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), _START, _END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    assert len(vocabulary) == _VOCABULARY
    made = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (_START, _END)])
    return made


def words(text: str) -> int:
    """Number of pieces between white space."""
    return len(text.split())


class OtherTokenizer:
    """Token counts of any tokenizer.json, the text in lower case, its end token counted (T5 and its like)."""

    def __init__(self, file: str | Path) -> None:
        """Read the file. Raises UserError where it is none that the `tokenizers` library reads."""
        from tokenizers import Tokenizer

        self.path = Path(file)
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file; a tokenizer is one file tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(self.path))
        except BaseException as error:
            if type(error) is not Exception:  # the library raises the bare class, and nothing else is meant
                raise
            raise UserError(f"{self.path}: no tokenizer.json ({' '.join(str(error).split())[:200]})") from error

    def count(self, text: str) -> int:
        """Number of tokens, special tokens included."""
        return len(self._tokenizer.encode(text.lower()).ids)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Counts of one caption: words; CLIP tokens without special tokens; tokens of another tokenizer, or None."""

    words: int
    clip: int
    other: int | None = None

    @property
    def clip_with_specials(self) -> int:
        """CLIP tokens with the two special tokens."""
        return self.clip + CLIP_SPECIALS


def measure(text: str, other: OtherTokenizer | None = None) -> Lengths:
    """All lengths of a caption."""
    return Lengths(words(text), clip_tokens(text), None if other is None else other.count(text))
