"""Choose the next token, end texts that repeat themselves, and split tokens into text; without a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_REPLACEMENT = "\ufffd"
# Tokens of the longest phrase that counts as a loop; longer ones are sentences, which `until_repeated` compares.
_MAX_LOOP = 12


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token that was written, with its log-probability and the likeliest tokens in its place, the likeliest first."""

    id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


class TextStream:
    """Turn tokens into pieces of text; together the pieces are the decoded whole.

    A byte-level token may hold part of a character, which decodes to U+FFFD until the rest has come: such an end waits.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._ids, self._length = decode, list[int](), 0

    def push(self, id: int) -> str:
        """Add a token; return the text that is certain now, "" if none is."""
        self._ids.append(id)
        return self._advance(self._decode(self._ids).rstrip(_REPLACEMENT))

    def flush(self) -> str:
        """Return what is left at the end, incomplete characters included."""
        return self._advance(self._decode(self._ids))

    def _advance(self, text: str) -> str:
        piece = text[self._length :]
        self._length = max(self._length, len(text))
        return piece


def until_repeated(
    ids: Sequence[int], ends: Collection[int], decode: Callable[[Sequence[int]], str] | None = None
) -> int:
    """Return the number of tokens before the first repeated sentence, or of all if none is repeated.

    Small decoders fall into loops; a text that begins to repeat a sentence ends there.

    Args:
        ids: of a text. ends: tokens that end a sentence.
        decode: see `generate`.

    >>> until_repeated([5, 9, 6, 9, 5, 9], ends={9})
    4
    """
    known, start = set[str | tuple[int, ...]](), 0
    for index, token in enumerate(ids):
        if token in ends:
            tokens = tuple(ids[start : index + 1])
            # Many tokenizers write the first sentence, which no blank precedes, with other tokens than its repetition.
            sentence = tokens if decode is None else decode(tokens).strip()
            if sentence in known:
                return start
            known.add(sentence)
            start = index + 1
    return len(ids)


def is_loop(ids: Sequence[int], repeats: int) -> bool:
    """Return whether a text ends in the same few tokens, `repeats` times in a row.

    A small decoder that has fallen into such a loop never leaves it; a list of different items is none.

    >>> is_loop([7, 5, 6, 5, 6, 5, 6], 3), is_loop([5, 6, 5, 7, 5, 6], 3)
    (True, False)
    """
    for length in range(1, min(_MAX_LOOP, len(ids) // repeats) + 1):
        end = list(ids[-length * repeats :])
        if end == end[:length] * repeats:
            return True
    return False


def draw_token(logits_V: NDArray[np.float64], number: float, *, temperature: float, top_p: float = 1.0) -> int:
    """Draw a token by inverse transform sampling in float64.

    Args:
        logits_V: of all tokens. number: uniform in [0, 1).
        temperature: above 0. top_p: the smallest set of likeliest tokens that holds this share is drawn from
            (arXiv 1904.09751, Section 3.1).
    """
    # Minus the largest logit, so that no exponential overflows.
    shares_V = np.exp((logits_V - logits_V.max()) / temperature)
    shares_V /= shares_V.sum()
    if top_p < 1:
        shares_V = np.where(select_nucleus(shares_V, top_p), shares_V, 0.0)
    cumulative_V = np.cumsum(shares_V)
    # Scaled by the sum, which is below 1 when only the nucleus is left.
    token = int(np.searchsorted(cumulative_V, number * cumulative_V[-1], side="right"))
    # The product may round up to the whole sum.
    return min(token, int(np.flatnonzero(shares_V)[-1]))


def select_nucleus(shares_V: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """Select the smallest set of likeliest tokens whose shares sum to `top_p` at least: a mask [V]."""
    # Tokens below (1 - top_p) / V hold less than 1 - top_p together, so they are outside; few are left to sort.
    candidates = np.flatnonzero(shares_V >= (1 - top_p) / len(shares_V))
    ordered = candidates[np.argsort(-shares_V[candidates], kind="stable")]
    before = np.cumsum(shares_V[ordered]) - shares_V[ordered]
    mask_V = np.zeros(len(shares_V), dtype=np.bool_)
    # The token that reaches the share belongs to the set, so the sum before it decides; the likeliest token always
    # does.
    mask_V[ordered[before < top_p]] = True
    return mask_V


def score_token(logs_V: NDArray[np.float32], token: int, count: int) -> TokenScore:
    """Return the log-probability of a token and the likeliest `count`, without those that cannot be written."""
    order = np.argsort(-logs_V, kind="stable")[:count].tolist()
    likeliest = [(id, float(logs_V[id])) for id in order if logs_V[id] > -np.inf]
    return TokenScore(token, float(logs_V[token]), tuple(likeliest))
