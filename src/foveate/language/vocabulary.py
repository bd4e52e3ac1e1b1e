"""A small vocabulary of one's own: byte-level BPE, with whole names as single tokens.

A name that regions have ("grinning face with smiling eyes") is one token, so that naming what an image shows is one
decision. Any other text is spelled in word pieces, without loss. The file is `tokenizer.json` of Hugging Face's
tokenizers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from foveate.core.errors import UserError
from foveate.language.tokenizer import BackendTokenizer

PAD, END, USER, ASSISTANT, SYSTEM = "<pad>", "<end>", "<user>", "<assistant>", "<system>"
IMAGE, REGION = "<image>", "<region>"
SPECIALS = (PAD, END, USER, ASSISTANT, SYSTEM, IMAGE, REGION)
_WORD = re.compile(r"\w+")
_MAX_NAMES = 0.5  # of the vocabulary
_COMBINED = 5  # two-word names that share a part, from which the part is a token of its own


def train_tokenizer(
    texts: Iterable[str], *, size: int, names: Iterable[str] = (), specials: Sequence[str] = SPECIALS
) -> tokenizers.Tokenizer:
    """Train a byte-level BPE of at most `size` tokens.

    Args:
        texts: what it is trained on.
        size: tokens, names and special tokens included.
        names: phrases of regions, each as often as it occurs; those that occur twice become tokens, the most frequent
            first, up to half of the vocabulary. A name with which a longer word of the texts begins is spelled, and one
            of two words that combine with many others is written with a token for each.
        specials: tokens that no plain text gives.
    """
    texts, uses = list(texts), Counter(names)
    unclear = _beginnings(texts)
    usable = [name for name, count in uses.items() if count >= 2 and name not in unclear]
    # "red disc" is two tokens where other things are red and discs have other colors: both can be asked for alone.
    parts = _combined_parts(usable)
    whole = [name for name in usable if not (len(name.split()) == 2 and parts.issuperset(name.split()))]
    ordered = [*sorted(parts - unclear), *sorted(set(whole) - parts, key=lambda name: (-uses[name], name))]
    # Every byte is a token: a small vocabulary has room for few names besides them.
    name_tokens = ordered[: max(0, min(int(_MAX_NAMES * size), size - 256 - len(specials)))]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(name_tokens),
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # With the blank before them, as they stand within a sentence.
    tokenizer.add_tokens([AddedToken(f" {name}", normalized=False) for name in name_tokens])
    return tokenizer


def _combined_parts(names: Sequence[str]) -> set[str]:
    """Collect first and second parts of two-word names that each stand in many such names."""
    pairs = [tuple(name.split()) for name in names if len(name.split()) == 2]
    first, second = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    combined = [pair for pair in pairs if first[pair[0]] >= _COMBINED and second[pair[1]] >= _COMBINED]
    return {part for pair in combined for part in pair}


def _beginnings(texts: Iterable[str]) -> set[str]:
    """Collect the beginnings of words that are no word but for a plural's ending."""
    whole = {word for text in texts for word in _WORD.findall(text)}
    return {word[:end] for word in whole for end in range(1, len(word)) if word[end:] not in ("s", "es")}


@dataclass(frozen=True)
class WordTokenizer(BackendTokenizer):
    """A tokenizer of `train_tokenizer`, read from its `tokenizer.json`."""

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.backend.get_vocab_size()

    @cached_property
    def name_ids(self) -> frozenset[int]:
        """The tokens that are names, or parts of names."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if not token.special and token.content.startswith(" "))


def read_tokenizer(path: Path) -> WordTokenizer:
    """Read the tokenizer.json of a small vocabulary.

    Raises:
        UserError: it is damaged, lacks a special token, or its ids have gaps.
    """
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged, not UTF-8 text") from error
    except BaseException as error:
        if type(error) is not Exception:  # the library raises the bare class, and nothing else is meant
            raise
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error
    ids = sorted(backend.get_vocab(with_added_tokens=True).values())
    # Ids are rows of the embedding table: a gap, or an id of a billion, has none.
    if ids != list(range(len(ids))):
        raise UserError(f"{path}: ids must be 0 to {len(ids) - 1:,} without gaps (the largest is {ids[-1]:,})")
    return wrap_tokenizer(backend, source=str(path))


def wrap_tokenizer(backend: tokenizers.Tokenizer, *, source: str) -> WordTokenizer:
    """Wrap a tokenizer; raise UserError where it lacks a special token."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    missing = [text for text in SPECIALS if text not in vocabulary]
    if missing:
        raise UserError(f"{source}: has no token {missing[0]!r}; it was not made by foveate mllm train")
    special = {text: vocabulary[text] for text in SPECIALS}
    return WordTokenizer(backend, end=special[END], pad=special[PAD], special=special)
