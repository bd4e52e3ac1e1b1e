"""The run of an evaluation: resumed at the next batch, no folder after an early error, one process, averages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import UserError
from foveate.core.files import read_json_lines
from foveate.core.results import RunResult
from foveate.multimodal.evaluation import AnswerRow, EvaluationRun, average, cut_batches
from naming import raises_naming

ROWS = "rows.jsonl"


class Stopped(Exception):
    pass


class Model:
    """Answers with the number of the question; stops before the batch `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.batches = stop, list[Sequence[int]]()

    def ask(self, batch: Sequence[int]) -> list[AnswerRow]:
        if len(self.batches) == self.stop:
            raise Stopped
        self.batches.append(batch)
        return [{"id": number} | ({"error": "damaged"} if number == 3 else {"answer": number}) for number in batch]


def evaluate(path: Path, model: Model, *, identity: dict[str, Any] | None = None, **options: Any) -> list[AnswerRow]:
    with EvaluationRun(path, identity or {"model": "m", "batch_size": 2}, rows=ROWS, **options) as run:
        finished = run.read_rows(lambda row: row["id"])
        pending = [number for number in range(7) if number not in finished]
        rows = run.answer(cut_batches(pending, 2), model.ask, finished=finished.values())
        run.write_result(RunResult(kind="test", title=str(len(rows))))
    return rows


def test_a_stopped_run_goes_on_with_the_next_batch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        evaluate(tmp_path / "run", Model(stop=2))
    assert not (tmp_path / "run" / "result.json").exists()
    with (tmp_path / "run" / ROWS).open("a") as handle:
        handle.write('{"id": 4, "ans')  # cut off by a kill
    model = Model()
    rows = evaluate(tmp_path / "run", model)
    assert model.batches == [[4, 5], [6]]
    assert "resumed from question 4/7" in capfd.readouterr().err
    assert rows == evaluate(tmp_path / "whole", Model()) == read_json_lines(tmp_path / "run" / ROWS)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["title"] == "7"
    with raises_naming(UserError, tmp_path / "run", "recipe"):
        evaluate(tmp_path / "run", model, identity={"model": "other", "batch_size": 2})
    evaluate(tmp_path / "run", model, identity={"model": "m", "batch_size": 3}, free=("batch_size",))


def test_the_last_row_of_a_key_counts_and_rows_can_be_replaced(tmp_path: Path) -> None:
    with EvaluationRun(tmp_path / "run", rows=ROWS) as run:
        assert run.read_rows(lambda row: row["id"]) == {}
        run.answer([[1], [3], [1]], Model().ask)
        run.replace_rows([{"id": 1, "answer": "a"}, {"id": 1, "answer": "b"}])
    with EvaluationRun(tmp_path / "run", rows=ROWS) as run:
        assert run.read_rows(lambda row: row["id"]) == {1: {"id": 1, "answer": "b"}}


def test_an_error_before_the_first_answer_leaves_no_folder(tmp_path: Path) -> None:
    with raises_naming(UserError, "no questions"), EvaluationRun(tmp_path / "run", {"model": "m"}, rows=ROWS):
        raise UserError("no questions")
    assert not (tmp_path / "run").exists()
    evaluate(tmp_path / "run", Model())
    with raises_naming(UserError, "late"), EvaluationRun(tmp_path / "run", {"model": "m", "batch_size": 2}, rows=ROWS):
        raise UserError("late")
    assert len(read_json_lines(tmp_path / "run" / ROWS)) == 7


def test_one_process_evaluates_in_a_folder(tmp_path: Path) -> None:
    with EvaluationRun(tmp_path / "run", rows=ROWS) as run:
        run.read_rows(lambda row: row["id"])
        with (
            raises_naming(UserError, tmp_path / "run", "evaluating a model"),
            EvaluationRun(tmp_path / "run", rows=ROWS) as other,
        ):
            other.read_rows(lambda row: row["id"])
    with EvaluationRun(tmp_path / "run", rows=ROWS) as run:
        run.read_rows(lambda row: row["id"])


def test_averages_draw_whole_groups() -> None:
    assert average([], [], seed=0) is None
    alone = average([1.0, 0.0, 1.0], ["a", "a", "a"], seed=0)
    assert alone is not None
    assert (alone.value, alone.low, alone.n) == (pytest.approx(2 / 3), None, 3)
    apart = average([1.0, 0.0] * 20, list(range(40)), seed=0)
    assert apart is not None
    assert apart.low is not None
    assert apart.low < apart.value == 0.5
    assert cut_batches(range(5), 2) == [range(2), range(2, 4), range(4, 5)]
