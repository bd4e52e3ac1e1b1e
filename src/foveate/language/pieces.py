"""Encode a text in pieces, some of which a user wrote: marks are tokens, unless they are the user's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import tokenizers


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


@cache
def _find_marks(backend: tokenizers.Tokenizer) -> re.Pattern[str]:
    """Return a pattern that matches, without consuming it, each text that is a special token."""
    added = [token.content for token in backend.get_added_tokens_decoder().values() if _is_mark(token)]
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
