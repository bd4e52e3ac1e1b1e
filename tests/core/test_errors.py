"""Errors name what is expected and the nearest match."""

from __future__ import annotations

import pytest

from foveate.core.errors import UserError, choose, nearest


@pytest.mark.parametrize(
    ("word", "ending"),
    [
        ("promter", ". Did you mean 'prompter'?"),
        ("PROMPTER", ". Did you mean 'prompter'?"),
        ("rio", ". Did you mean 'roi'?"),
        ("something else", ""),
        ("", ""),
    ],
)
def test_nearest(word: str, ending: str) -> None:
    assert nearest(word, ("none", "prompter", "roi")) == ending


def test_nearest_of_nothing() -> None:
    assert nearest("x", ()) == ""


def test_a_word_of_megabytes_is_near_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difflib.get_close_matches", None)
    assert nearest("none" * 4, ("none", "roi")) == ""


def test_choose() -> None:
    assert choose("roi", ("none", "roi"), "method") == "roi"
    with pytest.raises(UserError) as problem:
        choose("promter", ("roi", "prompter"), "method")
    assert str(problem.value) == "unknown method 'promter': expected one of prompter, roi. Did you mean 'prompter'?"
    with pytest.raises(UserError, match="there are none"):
        choose("x", (), "method")
    assert issubclass(UserError, ValueError)
