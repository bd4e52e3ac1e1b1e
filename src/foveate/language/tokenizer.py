"""One face for all tokenizers: text to ids and back, the end mark, padding, and placeholders of images and regions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import tokenizers

from foveate.core.errors import UserError
from foveate.records.conversations import IMAGE, REGION

PLACEHOLDERS = (IMAGE, REGION)
"""Marks in a turn's text for an image and a region; a placeholder's token is replaced by their embeddings."""


class Tokenizer(Protocol):
    """What a language model needs of its tokenizer.

    Attributes:
        end: id of the token that ends an answer. pad: id that fills rows; it may be `end`, so padding is masked by
            position, never by id.
        special: text -> id of the tokens that no plain text gives: placeholders and marks of a chat template.
    """

    @property
    def end(self) -> int: ...

    @property
    def pad(self) -> int: ...

    @property
    def special(self) -> Mapping[str, int]: ...

    def encode(self, text: str) -> list[int]:
        """Encode plain text; the names of special tokens in it are text like any other."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, leaving out special tokens."""
        ...


@dataclass(frozen=True)
class BackendTokenizer:
    """A tokenizer on Hugging Face's `tokenizers`; see `Tokenizer` for the attributes."""

    backend: tokenizers.Tokenizer
    end: int
    pad: int
    special: Mapping[str, int]

    def __post_init__(self) -> None:
        # Without this a user who writes "<|im_end|>" would end the turn and could speak as the system.
        self.backend.encode_special_tokens = True
        # A tokenizer.json may set padding or truncation, which would add ids or drop the end of a question.
        self.backend.no_padding()
        self.backend.no_truncation()

    def encode(self, text: str) -> list[int]:
        """Encode plain text; see `Tokenizer`."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, leaving out special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def place_placeholders(
    special: Mapping[str, int], used: Collection[int | None], *, free: Sequence[int]
) -> dict[str, int]:
    """Give every placeholder an id: the token of its name, an unused special token, or a free row of the table.

    A placeholder's embedding is always replaced, so any id serves that no text and no template gives.

    Args:
        special: text -> id of the tokenizer's special tokens.
        used: ids that templates and padding need.
        free: ids of rows behind the vocabulary.

    Raises:
        UserError: there are too few.
    """
    # In the order of ids, so that a checkpoint has the same placeholders in every session.
    unused = [id for text, id in sorted(special.items(), key=lambda item: item[1]) if text not in PLACEHOLDERS]
    ids = iter([id for id in unused if id not in used] + list(free))
    places: dict[str, int] = {}
    for name in PLACEHOLDERS:
        id = special.get(name)
        id = next(ids, None) if id is None else id
        if id is None:
            raise UserError(f"tokenizer: no token is left for the placeholder {name}; add special tokens to it")
        places[name] = id
    return {**special, **places}


def wrap_transformers(tokenizer: Any, *, source: str) -> BackendTokenizer:
    """Wrap a tokenizer of transformers; placeholders for which it has no token get ids behind its last.

    Args:
        source: for errors.

    Raises:
        UserError: it is not one of `tokenizers`, or has no end token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise UserError(f"{source}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; save it with one")
    if tokenizer.eos_token_id is None:
        raise UserError(f"{source}: its tokenizer has no end token (eos_token); answers would never end")
    special = {token.content: id for id, token in backend.get_added_tokens_decoder().items() if token.special}
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    # Searched as text in the Jinja source: at worst a token is spared that a placeholder could have had.
    in_template = {id for token, id in special.items() if token in str(tokenizer.chat_template or "")}
    return BackendTokenizer(
        backend,
        end=tokenizer.eos_token_id,
        pad=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        special=place_placeholders(
            special, named | in_template, free=range(len(tokenizer), len(tokenizer) + len(PLACEHOLDERS))
        ),
    )


# Encode a text in pieces, some of which a user wrote: marks are tokens, unless they are the user's.


class Piece(NamedTuple):
    """A piece of a prompt: marks of the model in it are tokens, unless a user wrote it."""

    text: str
    is_user: bool = False


def encode_pieces(backend: tokenizers.Tokenizer, pieces: Sequence[Piece]) -> list[int]:
    """Encode pieces of a text as one; special tokens whose text a user wrote are spelled.

    Encoding the pieces one by one would be simpler, but a word behind a blank is another token than one at a start.
    """
    text, users = "", list[tuple[int, int]]()
    for piece in pieces:
        if piece.is_user:
            users.append((len(text), len(text) + len(piece.text)))
        text += piece.text
    cuts = [
        # A mark that is cut behind its first character is whole in neither half, so both halves are spelled out.
        match.start() + 1
        for match in _find_marks(backend).finditer(text)
        if any(match.start() < end and match.start() + len(match[1]) > start for start, end in users)
    ]
    bounds = [0, *cuts, len(text)]
    return [
        id
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        for id in _encode(backend, text[start:end], begin=False)
    ]


def list_start_ids(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the ids that a tokenizer puts in front of a sequence, such as its BOS; not what it puts behind."""
    plain, whole = (_encode(backend, "a", begin=begin) for begin in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def write_token(backend: tokenizers.Tokenizer, id: int) -> str:
    """Return the text of one token behind another one, its blank included; of a special token its name."""
    # Some tokenizers drop the blank of the first token.
    before = _encode(backend, "a", begin=False)
    start = len(backend.decode(before, skip_special_tokens=False))
    return backend.decode([*before, id], skip_special_tokens=False)[start:]


@cache
def _find_marks(backend: tokenizers.Tokenizer) -> re.Pattern[str]:
    """Return a pattern that matches, without consuming it, each text that is a special token."""
    added = [token.content for token in backend.get_added_tokens_decoder().values() if _is_mark(token)]
    # A pattern takes the first alternative that matches, so a mark must come before any that is a prefix of it.
    longest_first = sorted(added, key=len, reverse=True)
    return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))" if added else r"(?!)()")


def _is_mark(token: tokenizers.AddedToken) -> bool:
    # Some checkpoints declare <image> as a token that is not special.
    content = token.content
    return len(content) > 1 and (token.special or (content.startswith("<") and content.endswith(">")))


def _encode(backend: tokenizers.Tokenizer, text: str, *, begin: bool) -> list[int]:
    before = backend.encode_special_tokens
    try:
        # `BackendTokenizer` spells all marks, those of our templates too.
        backend.encode_special_tokens = False
        return backend.encode(text, add_special_tokens=begin).ids
    finally:
        backend.encode_special_tokens = before
