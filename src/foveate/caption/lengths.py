"""Lengths of captions in CLIP tokens, tokens of another tokenizer, and words.

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
    """Count CLIP tokens without the two special tokens."""
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
