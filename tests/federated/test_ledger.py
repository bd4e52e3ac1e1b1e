"""The client's log of answered questions, after a kill in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.federated.limits import ClientLimits, Ledger, RequestCost
from foveate.federated.messages import Message
from foveate.federated.reasons import Refusal
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
