"""Progress on standard error: plain lines without a terminal, nothing when quiet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from foveate.core import progress


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    progress.configure(quiet=False)
    yield
    progress.configure(quiet=False)


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track([1, 2, 3], description="counting")) == [1, 2, 3]
    assert list(progress.track(iter("ab"), description="letters")) == ["a", "b"]
    progress.say("done")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "counting: 3/3, finished\nletters: 2, finished\ndone\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_said_where_nothing_is_to_do(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert list(progress.track([], description="scenes")) == []
    assert list(progress.track(iter(()), description="scenes", total=0)) == []
    assert capsys.readouterr() == ("", "")


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure(quiet=True)
    assert list(progress.track([1, 2], description="counting")) == [1, 2]
    progress.say("done")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.track(range(5), description="counting")) == [0, 1, 2, 3, 4]
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/5" in err
