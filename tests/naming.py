"""Errors are tested by what they name (file, field, value, nearest match), not by the English around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises_naming(error: type[Exception], *names: object) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect `error`, with every one of `names` in its text.

    Args:
        names: what a user needs to find the mistake: a path, a field or option, the value, what is allowed.
    """
    assert names, "name what the error must name"
    with pytest.raises(error) as caught:
        yield caught
    text = str(caught.value)
    missing = [str(name) for name in names if str(name) not in text]
    assert not missing, f"the error names none of {missing}: {text}"
