"""Errors that a user can act on: one sentence that names the file or field, what is allowed, the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave (a file, a field, an option). The command line prints its sentence only."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The ending `"; did you mean 'x'?"` for the choice most like `word`, or an empty string if none is near."""
    by_folded = {choice.casefold(): choice for choice in choices}
    matches = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f"; did you mean '{by_folded[matches[0]]}'?" if matches else ""


def choose(word: str, choices: Iterable[str], what: str) -> str:
    """Returns `word` if it is one of `choices`.

    Raises:
        UserError: naming `what`, the allowed choices and the nearest match.
    """
    allowed = list(choices)
    if word in allowed:
        return word
    listed = ", ".join(sorted(allowed)) or "none"
    raise UserError(f"unknown {what} '{word}': allowed are {listed}{nearest(word, allowed)}")
