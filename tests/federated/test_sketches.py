"""Sketches of the rows of data: near-copies of data are one account, other data are not."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.federated import sketches
from foveate.federated.reasons import Refusal
from foveate.federated.sketches import Sketch, list_account
from naming import raises_naming

KEY = bytes(range(32))
ROWS = np.random.default_rng(0).normal(size=(200, 5))
OTHERS = np.random.default_rng(1).normal(size=(200, 5))


def is_near(one: np.ndarray, other: np.ndarray) -> bool:
    near = Sketch.of_points(one, KEY).is_near(Sketch.of_points(other, KEY))
    assert near == Sketch.of_points(other, KEY).is_near(Sketch.of_points(one, KEY)), "whichever came first"
    return near


def replace_rows(count: int) -> np.ndarray:
    return np.concatenate([ROWS[count:], OTHERS[:count]])


COPIES: dict[str, Callable[[], np.ndarray]] = {
    "a row less": lambda: ROWS[1:],
    "a row more": lambda: np.concatenate([ROWS, OTHERS[:1]]),
    "a cell changed": lambda: ROWS + np.eye(*ROWS.shape) * (np.arange(5) == 2),
    "rows in another order": lambda: ROWS[::-1],
    "columns in another order": lambda: ROWS[:, [3, 1, 4, 0, 2]],
    "rows repeated": lambda: np.repeat(ROWS, 3, axis=0),
    "saved as float32": lambda: ROWS.astype(np.float32).astype(np.float64),
    "as many others beside": lambda: np.concatenate([ROWS, OTHERS]),
    "a column less": lambda: ROWS[:, :4],
    "two columns more, rows in another order": lambda: np.column_stack([ROWS, OTHERS[:, :2]])[::-1],
    "rounded to four digits": lambda: np.round(ROWS, 4),
    "another unit of two columns": lambda: ROWS * [1, 1, 1, 2.54, 1e3],
    "a tenth of the rows": lambda: ROWS[:20],
    "half of the rows replaced": lambda: replace_rows(100),
}


@pytest.mark.parametrize("name", COPIES)
def test_near_copies_are_found(name: str) -> None:
    assert is_near(ROWS, COPIES[name]())


@pytest.mark.parametrize(
    "rows",
    [OTHERS, replace_rows(101), np.column_stack([ROWS[:, :1], OTHERS]), ROWS * 2.54, np.round(ROWS, 1)],
    ids=["others", "more than half replaced", "a column in common", "other units", "rounded to two digits"],
)
def test_other_data_are_other_data(rows: np.ndarray) -> None:
    assert not is_near(ROWS, rows)


def test_columns_of_one_value_link_nothing() -> None:
    """Borders of images are black in any data."""
    border = np.zeros((200, 20))
    assert not is_near(np.column_stack([ROWS, border]), np.column_stack([OTHERS, border]))


def test_zero_has_one_sign() -> None:
    assert is_near(np.where(ROWS > 0, ROWS, 0.0), np.where(ROWS > 0, ROWS, -0.0))


@pytest.mark.parametrize("seed", range(12))
def test_a_sketch_that_was_cut_decides_like_all_rows(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares that are not near a half, sizes that differ up to fiftyfold, duplicates."""
    random = np.random.default_rng(seed)
    large = random.normal(size=(random.integers(3000, 10_000), 3))
    size = int(len(large) / random.uniform(1, 50))
    share = random.choice([0.0, 0.25, 0.75, 1.0])
    rows = np.concatenate([large[: int(share * size)], random.normal(size=(size - int(share * size), 3))])
    rows = np.concatenate([rows, rows[: size // 3]])[random.permutation(size + size // 3)]
    expected = is_near(large, rows)
    assert expected == (share > 0.5)
    monkeypatch.setattr(sketches, "MAX_HASHES", 1024)
    assert len(Sketch.of_points(large, KEY).hashes) == 1024
    assert is_near(large, rows) == expected


def test_links_are_transitive(tmp_path: Path) -> None:
    """Of a chain each has a third of its rows new: the ends share none, and have one account."""
    pool = np.random.default_rng(2).normal(size=(600, 4))
    chain = [pool[start : start + 150] for start in range(0, 450, 50)]
    assert not is_near(chain[0], chain[-1])
    random = np.random.default_rng(3)
    for place in random.permutation(len(chain)):
        list_account(tmp_path, f"c{place}", chain[place])
    names = [f"c{place}" for place in range(len(chain))]
    assert list_account(tmp_path, "other", OTHERS) == ["other"]
    assert [list_account(tmp_path, name) for name in names] == [names] * len(names)


def test_what_joins_two_accounts(tmp_path: Path) -> None:
    assert list_account(tmp_path, "a", ROWS) == ["a"]
    assert list_account(tmp_path, "b", OTHERS) == ["b"]
    both = np.concatenate([ROWS, OTHERS])
    assert list_account(tmp_path, "c", both) == ["a", "b", "c"]
    assert list_account(tmp_path, "a", ROWS) == ["a", "b", "c"]


def test_only_the_owner_reads_them(tmp_path: Path) -> None:
    list_account(tmp_path / "state", "a", ROWS)
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"a.sketch", "rows.key", "rows.lock"}
    assert not [path for path in (tmp_path / "state").iterdir() if path.stat().st_mode & 0o077]
    content = (tmp_path / "state" / "a.sketch").read_bytes()
    assert not [value for value in ROWS.astype("<f4").ravel() if value.tobytes() in content][3:], "hashes, not values"


def damage_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"linked": ["a"]', b'"linked": ["z"]'))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty": ("b.sketch", lambda path: path.write_bytes(b"")),
    "cut off": ("b.sketch", lambda path: path.write_bytes(path.read_bytes()[:-8])),
    "a bit": ("b.sketch", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x00")),
    "another link": ("b.sketch", damage_header),
    "text": ("b.sketch", lambda path: path.write_text("{}")),
    "a folder": ("b.sketch", lambda path: (path.unlink(), path.mkdir())),
    "a pipe": ("b.sketch", lambda path: (path.unlink(), os.mkfifo(path))),
    "a link to itself": ("b.sketch", lambda path: (path.unlink(), path.symlink_to(path))),
    "a short key": ("rows.key", lambda path: path.write_bytes(b"short")),
    "another key": ("rows.key", lambda path: path.write_bytes(bytes(32))),
    "no key": ("rows.key", Path.unlink),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_sketch_is_a_named_failure(name: str, tmp_path: Path) -> None:
    """Without it, a link might be lost and with it the budget that was spent; so nobody is answered."""
    list_account(tmp_path, "a", ROWS)
    list_account(tmp_path, "b", ROWS[1:])
    file, damage = DAMAGES[name]
    damage(tmp_path / file)
    for _ in range(2):
        with pytest.raises(Refusal, match="restored") as refused:
            list_account(tmp_path, "a", ROWS)
        assert refused.value.code == "ledger-damaged"
        assert str(tmp_path / file) in str(refused.value) or str(tmp_path / "a.sketch") in str(refused.value)


def test_a_sketch_that_cannot_be_written_is_a_named_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list_account(tmp_path, "a", ROWS)

    def fail(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(sketches, "commit_atomically", fail)
        with raises_naming(Refusal, str(tmp_path / "b.sketch"), "cannot be written"):
            list_account(tmp_path, "b", OTHERS)
    assert not list(tmp_path.glob(".*.tmp"))
    (tmp_path / ".b.sketch.0123.tmp").write_bytes(b"what a kill left")
    assert list_account(tmp_path, "b", OTHERS) == ["b"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_is_asked_at_once_is_linked(tmp_path: Path) -> None:
    """Whoever is last under the lock finds the others; the key is drawn once."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: list_account(tmp_path, f"n{number}", ROWS[number:]), range(16)))
    assert len(list_account(tmp_path, "n0")) == 16


def _join(folder: Path, number: int) -> None:
    list_account(folder, f"p{number}", ROWS[number:])


def test_processes_that_ask_at_once_are_linked(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_join, args=(tmp_path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert list_account(tmp_path, "p0") == ["p0", "p1", "p2", "p3"]


def test_a_sketch_says_what_it_is(tmp_path: Path) -> None:
    list_account(tmp_path, "a", np.repeat(ROWS, 2, axis=0))
    _, header, _ = (tmp_path / "a.sketch").read_bytes().split(b"\n", 2)
    assert json.loads(header)["rows"] == 200
