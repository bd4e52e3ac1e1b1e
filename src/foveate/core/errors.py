"""Errors for users: one sentence with the file or field, the problem, what is expected, and the nearest match."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten

# Only what a user can change; any other OSError is a bug of the program and keeps its traceback.
_PROBLEMS = {
    errno.ENOSPC: "cannot be written: the disk is full{space}; free some space and run the same command again",
    errno.EDQUOT: "cannot be written: your quota is used up{space}; free some space and run the same command again",
    errno.EFBIG: "cannot be written: the file would be larger than this disk or process allows (see ulimit -f)",
    errno.EROFS: "cannot be written: the disk is read-only; choose a folder on another disk, or mount it for writing",
    errno.EACCES: "permission denied; check the owner and the permissions of the file and its folder",
    errno.EPERM: "permission denied; check the owner and the permissions of the file and its folder",
    errno.EIO: "cannot be read or written: the disk reports an error",
    errno.ESTALE: "cannot be read or written: the network disk lost the file",
    errno.EMFILE: "cannot be opened: too many files are open (see ulimit -n)",
    errno.ENFILE: "cannot be opened: too many files are open on this machine",
    errno.ENAMETOOLONG: "cannot be used: the path is too long for this disk",
    errno.ELOOP: "cannot be used: its symbolic links form a loop",
    errno.EISDIR: "cannot be used: it is a folder; expected a file",
    errno.ENOTDIR: "cannot be used: a part of the path is a file, not a folder",
}


STANDARD_OUTPUT = "standard output"
"""Name of the file in errors of printing."""


def explain_os_error(error: OSError) -> str | None:
    """Explain an operating-system error with its path in one sentence; None if it is no fault of the user."""
    problem = _PROBLEMS.get(error.errno or 0)
    if problem is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    return f"{path or 'a file'}: {problem.format(space=_describe_free_space(path))}"


def _describe_free_space(path: str) -> str:
    """Describe the free space on the disk of `path`, in parentheses; "" where it is unknown."""
    import shutil

    if path == STANDARD_OUTPUT:
        return ""
    folder = Path(path)
    try:
        # The file itself may not exist yet, nor its folder.
        while path and not folder.exists() and folder != folder.parent:
            folder = folder.parent
        usage = shutil.disk_usage(folder)
    except OSError:
        return ""
    return f" ({usage.free / 1e6:,.1f} MB free of {usage.total / 1e6:,.1f} MB now, too little)" if path else ""


class UserError(ValueError):
    """A mistake in a file, field or option of the user; the command line prints its message without a traceback.

    Example:
        >>> try:
        ...     Box(0.5, 0.0, 0.2, 1.0)
        ... except UserError as error:
        ...     print(type(error).__name__)
        UserError
    """

    # Exit status of the command line.
    exit_code = 1


class NothingSucceededError(UserError):
    """No part of a run succeeded: a script must not take that for success, nor for a mistake in its options."""

    exit_code = 3


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return `". Did you mean 'x'?"` with the choice nearest to `word`, or "" if none is near: the end of an error."""
    # Case is the most frequent mistake, and difflib counts it as a difference.
    by_folded = {choice.casefold(): choice for choice in choices}
    # No such word is near, and difflib reads one of megabytes for seconds.
    if len(word) > 3 * max(map(len, by_folded), default=0):
        return ""
    matches = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f". Did you mean '{by_folded[matches[0]]}'?" if matches else ""


def shorten_reason(error: Exception, limit: int = 200) -> str:
    """Return an error's text in one line, cut behind a sentence or a word; its class where it has no text.

    Args:
        limit: most characters. A sentence that ends in the first half of them says too little: the next is cut then.

    >>> shorten_reason(ValueError("It broke."))
    'It broke.'
    >>> shorten_reason(OSError("The file is missing. Please check your connection."), limit=30)
    'The file is missing'
    >>> shorten_reason(OSError("Please check your connection"), limit=20)
    'Please check ...'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) <= limit:
        return text
    end = text.rfind(". ", 0, limit)
    # Without its period: the reason stands in parentheses, within a sentence.
    return text[:end] if end >= limit / 2 else shorten(text, limit, placeholder=" ...")


def choose(word: str, choices: Iterable[str], what: str) -> str:
    """Check that `word` is one of `choices` and return it.

    Args:
        what: what the word names, for the error ("detector").

    Raises:
        UserError: it is none; the error lists all choices and the nearest.
    """
    allowed = list(choices)
    if word in allowed:
        return word
    expected = f"expected one of {', '.join(sorted(allowed))}" if allowed else "there are none"
    raise UserError(f"unknown {what} '{word}': {expected}{nearest(word, allowed)}")
