"""A client's log of answered questions, against which its limits are counted: one account for all kinds of message.

The account is that of a data set, over all jobs, runs and servers. What is answered with noise adds up to one epsilon.
What is answered without is counted by kind: two partitions of the same points differ where a point changed its group,
so that the difference of two sums is that point; sums with outliers clipped and as they are differ by the outliers; and
every training reveals a little more. A question that was answered before, to the last bit, gets the same answer again
and costs nothing.

Data that share most of their rows have one account (`foveate.federated.sketches`): a row more or less buys no budget.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.files import file_lock, fsync_path
from foveate.federated import reasons
from foveate.federated.limits import ClientLimits
from foveate.federated.messages import MAX_NUMBER, Message
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import Refusal
from foveate.federated.sketches import RESTORE, list_account, refuse_file

ANSWERED, FAILED = "answered", "failed"


SUMS, SQUARES, TRAININGS, BOXES, FIELDS = "sums", "squares", "trainings", "boxes", "fields"
"""Budgets of what is answered without noise, beside partitions."""


@dataclass(frozen=True)
class RequestCost:
    """What a request costs.

    Attributes:
        request: the question itself.
        is_partition: its answer has means or sums over the groups of a partition.
        rho: cost of its noise (`costs.answer_cost`); 0 = answered without noise.
        is_repeatable: the same request has the same answer, to the last bit.
        budget: which other budget it is counted in if it is answered without noise.
    """

    request: Message
    is_partition: bool = False
    rho: float = 0.0
    is_repeatable: bool = True
    budget: str = ""


@dataclass(frozen=True)
class Spent:
    """What data have cost so far: questions, partitions that were answered without noise, and rho."""

    questions: int = 0
    partitions: int = 0
    rho: float = 0.0


class Ledger:
    """One file per data set: `DIGEST.jsonl`, a line per question, and beside it the lock of the file.

    Args:
        folder: of all ledgers of this client.
        data: digest of the points as they were read.
        points_ND: the points, by whose rows ledgers of nearly the same data are found; None = those that are known.
    """

    def __init__(self, folder: Path, data: str, points_ND: NDArray[np.floating] | None = None) -> None:
        self.folder, self.name, self.points_ND = folder, data[:32], points_ND
        self.path = folder / f"{self.name}.jsonl"

    def _members(self) -> list[str]:
        """Names of the ledgers of this account, sorted."""
        return list_account(self.folder, self.name, self.points_ND)

    def count_spent(self) -> Spent:
        """Count what these data, and data of the same account, have cost so far; nothing is written.

        Raises:
            Refusal: a file of the account cannot be read.
        """
        lines = []
        for name in list_account(self.folder, self.name, self.points_ND, is_kept=False):
            path = self.folder / f"{name}.jsonl"
            if not os.path.lexists(path):
                continue
            try:
                with io.FileIO(path, "r") as file:
                    lines += _read_lines(self._read(name, file))
            except OSError as problem:
                raise self._refuse(path, problem) from problem
        return Spent(len(lines), _count_partitions(lines), sum(line["rho"] for line in lines))

    @contextmanager
    def _locked(self) -> Iterator[dict[str, io.FileIO]]:
        """Open and lock the ledgers of this account, by name."""
        members = self._members()
        while True:
            with ExitStack() as stack:
                # In the order of their names: two clients that wait for each other's would wait for ever.
                files = {name: stack.enter_context(self._open(self.folder / f"{name}.jsonl")) for name in members}
                # While this one waited, other data may have joined two accounts.
                now = self._members()
                if now == members:
                    yield files
                    return
            members = now

    @contextmanager
    def _open(self, path: Path) -> Iterator[io.FileIO]:
        with ExitStack() as stack:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Waits: two servers that ask at the same moment must not both be the first.
                stack.enter_context(file_lock(path.with_suffix(".lock"), mode=0o600))
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
                # Unbuffered: bytes that wait in a buffer would be written after a failed write was taken back.
                file = stack.enter_context(io.FileIO(os.open(path, flags, 0o600), "r+"))
            except OSError as problem:
                raise self._refuse(path, problem) from problem
            yield file

    def _read(self, name: str, file: io.FileIO) -> str:
        path = self.folder / f"{name}.jsonl"
        try:
            # A pipe or a device would be read for ever.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refusal(reasons.LEDGER_DAMAGED, f"{path}: the ledger is no file; {RESTORE}")
            file.seek(0)
            return file.readall().decode("utf-8")
        except UnicodeDecodeError as problem:
            raise Refusal(
                reasons.LEDGER_DAMAGED,
                f"{path}: the ledger is damaged: byte {problem.start} is no UTF-8; {RESTORE}",
            ) from problem
        except OSError as problem:
            raise self._refuse(path, problem) from problem

    def _append(self, file: io.FileIO, text: str, line: str) -> None:
        """Append a line to what the file holds, durably, or leave the file as it was.

        What a full disk lets through is taken back: half a line would count as a partition.
        """
        before = text.encode("utf-8")
        # A line that a kill cut off is ended first.
        content = (b"\n" if before and not before.endswith(b"\n") else b"") + line.encode("utf-8") + b"\n"
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            # The folder, too: otherwise a power failure may lose a file that was just created.
            fsync_path(self.path.parent)
        except OSError as problem:
            with suppress(OSError):
                file.truncate(len(before))
            raise self._refuse(self.path, problem) from problem

    def _refuse(self, path: Path, problem: OSError) -> Refusal:
        """Refusal for a ledger that cannot be read, or cannot be written."""
        return refuse_file(path, "the ledger", problem)

    def answer(self, question: RequestCost, limits: ClientLimits, respond: Callable[[], Message]) -> Message:
        """Answer a question if the limits allow it, and log it before the answer is returned.

        Args:
            respond: makes the answer. If it raises, the question is logged as failed, since a failure is information,
                too.

        Raises:
            Refusal: a limit is used up, or the ledger cannot be read or written.
        """
        with self._locked() as files:
            texts = {name: self._read(name, file) for name, file in files.items()}
            entries = {name: _read_lines(text) for name, text in texts.items()}
            digest = question.request.digest()
            # Answered questions only: one that failed has no answer to repeat, and counts again. And those of just
            # these data: the same question about nearly the same rows has another answer.
            known = any(line["question"] == digest and line["outcome"] == ANSWERED for line in entries[self.name])
            if not (known and question.is_repeatable):
                _check([line for lines in entries.values() for line in lines], question, limits)
            outcome = FAILED
            try:
                answer = respond()
                outcome = ANSWERED
            finally:
                if not (known and question.is_repeatable):
                    entry = {
                        "time": datetime.now(UTC).isoformat(timespec="seconds"),
                        "kind": question.request.kind,
                        "round": question.request.round,
                        "question": digest,
                        # With noise the budget is counted instead of partitions.
                        "partition": question.is_partition and not question.rho,
                        "budget": "" if question.rho else question.budget,
                        "rho": question.rho,
                        "outcome": outcome,
                    }
                    self._append(files[self.name], texts[self.name], json.dumps(entry))
        return answer


def _read_lines(text: str) -> list[dict[str, Any]]:
    return [_read_line(line) for line in text.splitlines() if line.strip()]


def _read_line(line: str) -> dict[str, Any]:
    """Read an entry; one that cannot be read counts as an answered partition, the most that it can have been."""
    unknown = {"question": "", "partition": True, "budget": "", "rho": 0.0, "outcome": ANSWERED}
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return unknown
    if not _is_entry(entry):
        return unknown
    # Ledgers of before had no budgets: there the kind says which it was.
    return {"budget": _OLD_BUDGETS.get(str(entry.get("kind")), "")} | entry


_OLD_BUDGETS = {
    "train": TRAININGS,
    "train.prototypes": TRAININGS,
    "query.box": BOXES,
    "query.field": FIELDS,
    "query.surrogate": FIELDS,
}


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    rho = entry.get("rho")
    return (
        isinstance(entry.get("question"), str)
        and isinstance(entry.get("budget", ""), str)
        and isinstance(entry.get("partition"), bool)
        # A cost that is no number, or below 0, would make room for others.
        and isinstance(rho, int | float)
        and not isinstance(rho, bool)
        and 0 <= rho <= MAX_NUMBER
        and entry.get("outcome") in (ANSWERED, FAILED)
    )


def _count_partitions(lines: Sequence[dict[str, Any]]) -> int:
    return sum(line["partition"] and line["outcome"] == ANSWERED for line in lines)


def _check(lines: Sequence[dict[str, Any]], question: RequestCost, limits: ClientLimits) -> None:
    """Raise Refusal if a limit has no room for a question after those of `lines`."""
    if len(lines) >= limits.max_questions:
        raise Refusal(
            reasons.MAX_QUESTIONS,
            f"{len(lines)} questions about these data were answered or failed; max-questions is {limits.max_questions}",
            count=limits.max_questions,
        )
    failures = sum(line["outcome"] == FAILED for line in lines)
    if failures >= limits.max_failures:
        raise Refusal(
            reasons.MAX_FAILURES,
            f"{failures} questions about these data failed; max-failures is {limits.max_failures}",
            count=limits.max_failures,
        )
    if question.rho:
        # Failed questions count, because a failure is information, too. Partitions, below, count only if answered.
        spent = sum(line["rho"] for line in lines) + question.rho
        # Written with `not`, so that NaN is refused, too.
        if not epsilon(spent) <= limits.max_epsilon:
            raise Refusal(
                reasons.MAX_EPSILON,
                f"epsilon would be {epsilon(spent):.3g} after this question; max-epsilon is {limits.max_epsilon:g}",
            )
        return
    partitions = _count_partitions(lines)
    if question.is_partition and partitions >= limits.max_partitions:
        raise Refusal(
            reasons.MAX_PARTITIONS,
            f"{partitions} partitions of these data were answered; max-partitions is {limits.max_partitions}",
            count=limits.max_partitions,
        )
    # Answered ones only, as with partitions: what failed counts as a failure.
    spent_by = Counter(line["budget"] for line in lines if line["outcome"] == ANSWERED)
    field = "max_moments" if question.budget in (SUMS, SQUARES) else "max_trainings"
    if question.budget and spent_by[question.budget] >= getattr(limits, field):
        bound, code = getattr(limits, field), field.replace("_", "-")
        raise Refusal(
            code,
            f"{spent_by[question.budget]} answers about these data without noise ({question.budget}) were given; "
            f"{code} is {bound}",
            count=bound,
        )
