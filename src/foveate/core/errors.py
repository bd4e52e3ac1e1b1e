"""Errors that a user can act on: one sentence that names the file or field, what is allowed, the nearest match."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_SENTENCES = {
    errno.ENOSPC: "cannot be written: the disk is full{space}; free some space and run the same command again",
    errno.EDQUOT: "cannot be written: your quota is used up{space}; free some space and run the same command again",
    errno.EFBIG: "cannot be written: the file would be larger than this disk or process allows (see ulimit -f)",
    errno.EROFS: "cannot be written: the disk is read-only; choose a folder on another one, or mount it for writing",
    errno.EACCES: "permission denied; look at the owner and the permissions of the file and its folder",
    errno.EPERM: "permission denied; look at the owner and the permissions of the file and its folder",
    errno.EIO: "cannot be read or written: the disk reports an error",
    errno.ESTALE: "cannot be read or written: the network disk lost the file",
    errno.EMFILE: "cannot be opened: too many files are open (see ulimit -n)",
    errno.ENFILE: "cannot be opened: too many files are open on this machine",
    errno.ENAMETOOLONG: "cannot be used: the path is too long for this disk",
    errno.ELOOP: "cannot be used: its symbolic links go round in a circle",
    errno.EISDIR: "cannot be used: it is a folder where a file is wanted",
    errno.ENOTDIR: "cannot be used: a part of the path is a file, not a folder",
}


def sentence(error: OSError) -> str | None:
    """One sentence that names the path, and the free space where the disk is full; None for an error of the program."""
    words = _SENTENCES.get(error.errno or 0)
    if words is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return f"{path or 'a file'}: {words.format(space=_free_space(path))}"


def _free_space(path: str) -> str:
    """The words " (N MB free of M MB now, too little)" for the disk that holds the path, or "" where it is unknown."""
    place = Path(path)
    try:
        while path and not place.exists() and place != place.parent:
            place = place.parent
        usage = shutil.disk_usage(place)
    except OSError:
        return ""
    return f" ({usage.free / 1e6:,.1f} MB free of {usage.total / 1e6:,.1f} MB now, too little)" if path else ""


class UserError(ValueError):
    """A mistake in what the user gave (a file, a field, an option). The command line prints its sentence only."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The ending `". Did you mean 'x'?"` for the choice most like `word`, or an empty string if none is near."""
    by_folded = {choice.casefold(): choice for choice in choices}
    matches = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f". Did you mean '{by_folded[matches[0]]}'?" if matches else ""


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
