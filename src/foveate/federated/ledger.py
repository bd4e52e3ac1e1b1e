"""A client's log of answered questions about the same data, over all runs and servers, and the limits on them.

Two partitions of the same points differ where a point changed its group: the difference of two sums is then that point.
So a client that answers without noise answers about one partition of its data, unless its owner allows more. A question
that was answered before, to the last bit, gets the same answer again and costs nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foveate.core.files import fsync_path
from foveate.federated import reasons
from foveate.federated.limits import Limits
from foveate.federated.messages import Message
from foveate.federated.privacy import epsilon
from foveate.federated.reasons import Refusal

ANSWERED, FAILED = "answered", "failed"


@dataclass(frozen=True)
class Question:
    """What a request costs.

    Attributes:
        request: the question itself.
        is_partition: its answer has means or sums over the groups of a partition.
        rho: cost of its noise (`privacy.gaussian_cost`); 0 = answered without noise.
        is_repeatable: the same request has the same answer, to the last bit.
    """

    request: Message
    is_partition: bool = False
    rho: float = 0.0
    is_repeatable: bool = True


class Ledger:
    """One file per data set: `DIGEST.jsonl`, a line per question.

    Args:
        folder: of all ledgers of this client.
        data: digest of the points as they were read.
    """

    def __init__(self, folder: Path, data: str) -> None:
        self.path = folder / f"{data[:32]}.jsonl"

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as handle:
            # Waits: two servers that ask at the same moment must not both be the first.
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle

    def answer(self, question: Question, limits: Limits, respond: Callable[[], Message]) -> Message:
        """Answer a question if the limits allow it, and log it before the answer is returned.

        Args:
            respond: makes the answer. If it raises, the question is logged as failed, since a failure is information,
                too.

        Raises:
            Refusal: a limit is used up.
        """
        with self._locked() as handle:
            handle.seek(0)
            text = handle.read()
            lines = [_read_line(line) for line in text.splitlines() if line.strip()]
            if text and not text.endswith("\n"):
                handle.write("\n")  # behind a line that a kill cut off
            digest = question.request.digest()
            # Answered questions only: one that failed has no answer to repeat, and counts again.
            known = any(line["question"] == digest and line["outcome"] == ANSWERED for line in lines)
            if not (known and question.is_repeatable):
                _check(lines, question, limits)
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
                        "rho": question.rho,
                        "outcome": outcome,
                    }
                    handle.write(json.dumps(entry) + "\n")
                    handle.flush()
                    os.fsync(handle.fileno())
                    # The folder, too: otherwise a power failure may lose a file that was just created.
                    fsync_path(self.path.parent)
        return answer


def _read_line(line: str) -> dict[str, Any]:
    """Read an entry; one that cannot be read counts as an answered partition, the most that it can have been."""
    try:
        return json.loads(line)
    except ValueError:
        return {"question": "", "partition": True, "rho": 0.0, "outcome": ANSWERED}


def _check(lines: list[dict[str, Any]], question: Question, limits: Limits) -> None:
    if len(lines) >= limits.max_questions:
        raise Refusal(
            reasons.MAX_QUESTIONS,
            f"{len(lines)} questions about these data were answered or failed; max-questions is {limits.max_questions}",
            count=limits.max_questions,
        )
    if question.rho:
        # Failed questions count, because a failure is information, too. Partitions, below, count only if answered.
        spent = sum(line["rho"] for line in lines) + question.rho
        if epsilon(spent) > limits.max_epsilon:
            raise Refusal(
                reasons.MAX_EPSILON,
                f"epsilon would be {epsilon(spent):.3g} after this question; max-epsilon is {limits.max_epsilon:g}",
            )
        return
    partitions = sum(line["partition"] and line["outcome"] == ANSWERED for line in lines)
    if question.is_partition and partitions >= limits.max_partitions:
        raise Refusal(
            reasons.MAX_PARTITIONS,
            f"{partitions} partitions of these data were answered; max-partitions is {limits.max_partitions}",
            count=limits.max_partitions,
        )
