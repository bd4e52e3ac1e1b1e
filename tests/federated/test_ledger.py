"""The client's log of answered questions: cut off by a kill, damaged, on a full disk, with failed questions."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.federated.clustering import protocol
from foveate.federated.clustering.methods import resolve
from foveate.federated.ledger import Ledger, RequestCost
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import Message
from foveate.federated.node import answer_request
from foveate.federated.reasons import FAILURE, Refusal
from naming import raises_naming


def test_a_line_that_was_cut_off_counts_as_a_partition(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "0" * 64)
    partition = RequestCost(Message("query.centroids", 0, values={"clusters": 3}), is_partition=True)
    other = RequestCost(Message("query.moments", 0, values={}))
    ledger.answer(partition, ClientLimits(), lambda: partition.request.answer())
    whole = ledger.path.read_text(encoding="utf-8")
    ledger.path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with raises_naming(Refusal, "1", "max-partitions"):
        ledger.answer(partition, ClientLimits(max_partitions=1), lambda: partition.request.answer())
    assert ledger.answer(other, ClientLimits(max_partitions=1), lambda: other.request.answer()).kind == "query.moments"
    cut, last = ledger.path.read_text(encoding="utf-8").splitlines()
    assert cut == whole[: len(whole) // 2]
    assert json.loads(last)["kind"] == "query.moments"


def test_questions_that_failed_count(tmp_path: Path) -> None:
    ledger, question = Ledger(tmp_path, "0" * 64), RequestCost(Message("query.moments", 0, values={}))

    def fail() -> Message:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        ledger.answer(question, ClientLimits(), fail)
    with raises_naming(Refusal, "1", "failed", "max-questions"):
        ledger.answer(question, ClientLimits(max_questions=1), lambda: question.request.answer())


def test_failed_questions_have_a_small_number_of_their_own(tmp_path: Path) -> None:
    ledger, noisy = Ledger(tmp_path, "0" * 64), RequestCost(Message("query.lloyd"), rho=1e-18, is_repeatable=False)

    def fail() -> Message:
        raise ValueError("no answer")

    for _ in range(ClientLimits().max_failures):
        with pytest.raises(ValueError, match="no answer"):
            ledger.answer(noisy, ClientLimits(), fail)
    with raises_naming(Refusal, "5", "max-failures"):
        ledger.answer(noisy, ClientLimits(), lambda: noisy.request.answer())
    assert ledger.answer(noisy, ClientLimits(max_failures=6), lambda: noisy.request.answer()).kind == "query.lloyd"


@pytest.mark.parametrize(
    "line",
    ["3", "null", "{}", '{"question": 1}', "[" * 100_000, "\x00" * 40]
    + [
        json.dumps({"question": "", "partition": False, "rho": rho, "outcome": "answered"})
        for rho in (float("nan"), float("inf"), -5.0, "0", True, None, 10**400)
    ],
    ids=lambda line: line[:60].replace("\x00", "0"),
)
def test_a_line_that_is_no_entry_counts_as_a_partition(line: str, tmp_path: Path) -> None:
    ledger, partition = Ledger(tmp_path, "0" * 64), RequestCost(Message("query.centroids"), is_partition=True)
    ledger.path.write_text(line + "\n", encoding="utf-8")
    with raises_naming(Refusal, "1", "max-partitions"):
        ledger.answer(partition, ClientLimits(), lambda: partition.request.answer())
    noisy = RequestCost(Message("query.lloyd"), rho=1e-3, is_repeatable=False)
    assert ledger.answer(noisy, ClientLimits(), lambda: noisy.request.answer()).kind == "query.lloyd"


def test_a_cost_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """Written to the ledger, it would make every later sum one that no limit is below."""
    ledger, question = Ledger(tmp_path, "0" * 64), RequestCost(Message("query.lloyd"), rho=float("nan"))
    with raises_naming(Refusal, "max-epsilon"):
        ledger.answer(question, ClientLimits(), lambda: question.request.answer())


def ask(folder: Path) -> Message:
    """One clustering of a client whose ledger lies in that folder."""
    np.savez(folder / "points.npz", points=np.random.default_rng(0).normal(size=(40, 2)))
    config = {"partition-id": 0, "data": str(folder / "points.npz"), "state": str(folder / "state"), "min-count": 10}
    return answer_request(config, lambda: protocol.centroids_request(resolve(2, min_count=10, winsorize=3.0), 0))


def find_ledger(folder: Path) -> Path:
    """The ledger of those data, which one answer has made."""
    assert FAILURE not in ask(folder).values
    (path,) = (folder / "state").glob("*.jsonl")
    return path


def replace_by(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGED: dict[str, Callable[[Path], Any]] = {
    "bytes that are no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a folder": replace_by(Path.mkdir),
    "a pipe": replace_by(os.mkfifo),
    "a link to itself": replace_by(lambda path: path.symlink_to(path)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_ledger_has_a_name(damage: str, tmp_path: Path) -> None:
    path = find_ledger(tmp_path)
    DAMAGED[damage](path)
    assert [dict(ask(tmp_path).values) for _ in range(2)] == [{FAILURE: "ledger-damaged"}] * 2
    lines = (tmp_path / "state" / "client.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert all(f"ledger-damaged: {path}: the ledger" in line for line in lines), "its owner reads which file it is"
    assert "Traceback" not in lines[0]


@pytest.mark.parametrize(
    ("number", "is_readable", "code"),
    [
        (errno.EACCES, False, "ledger-damaged"),
        (errno.EACCES, True, "ledger-unwritable"),
        (errno.EIO, True, "ledger-damaged"),
        (errno.EROFS, True, "ledger-unwritable"),
        (errno.ENOSPC, True, "ledger-unwritable"),
    ],
)
def test_a_ledger_that_cannot_be_opened(
    number: int, is_readable: bool, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = find_ledger(tmp_path), os.open

    def fail(name: Any, *arguments: Any, **named: Any) -> int:
        if str(name) == str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(name, *arguments, **named)

    # For root, who may run this test, no file is unreadable.
    monkeypatch.setattr(os, "open", fail)
    monkeypatch.setattr(os, "access", lambda name, mode: is_readable)
    assert dict(ask(tmp_path).values) == {FAILURE: code}
    assert str(path) in (tmp_path / "state" / "client.log").read_text(encoding="utf-8")


def test_on_a_full_disk_nothing_is_answered_and_nothing_counts(tmp_path: Path) -> None:
    """A limit of the file's size ends a write in its middle, as a full disk does."""
    ledger, partition = Ledger(tmp_path, "0" * 64), RequestCost(Message("query.centroids"), is_partition=True)
    other = RequestCost(Message("query.moments"))
    ledger.answer(other, ClientLimits(), lambda: other.request.answer())
    before, limit = ledger.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limit[1]))
    try:
        with pytest.raises(Refusal) as refused:
            ledger.answer(partition, ClientLimits(), lambda: partition.request.answer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert refused.value.code == "ledger-unwritable"
    assert str(ledger.path) in str(refused.value)
    assert ledger.path.read_bytes() == before, "half a line would count as a partition"
    assert ledger.answer(partition, ClientLimits(), lambda: partition.request.answer()).kind == "query.centroids"
