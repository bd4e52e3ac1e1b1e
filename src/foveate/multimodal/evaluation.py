"""The run of an evaluation, the same for every wing: folder, batches of questions, rows of answers, averages, result.

```python
with EvaluationRun(path, identity, rows="rows.jsonl", command=command) as run:
    questions = ...                                     # read and draw
    finished = run.read_rows(lambda row: row["id"])
    rows = run.answer(cut_batches(...), ask, finished=finished.values())
    run.write_result(summarize(rows))
```

A wing brings its questions, a function from a batch of them to rows, and one from all rows to the result. A kill costs
the rows of one batch: the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml

from foveate.core.errors import UserError
from foveate.core.files import FolderLock, append_json_lines, repair_json_lines, write_text_atomically
from foveate.core.progress import Meter, say
from foveate.core.results import RunResult, Value
from foveate.core.runs import RunFolder
from foveate.metrics.intervals import Groups, bootstrap_interval

Q = TypeVar("Q")
K = TypeVar("K", bound=Hashable)
AnswerRow = dict[str, Any]


class EvaluationRun:
    """The run folder of an evaluation; an error before the first answer leaves no folder behind.

    Args:
        path: run folder, new or that of the same evaluation.
        identity: what decides the answers, as JSON values: saved as recipe.yaml, and the same in every session; None
            for an evaluation that is not resumed.
        rows: name of the file of answers.
        command: command line, for run.json.
        free: fields of `identity` that a resumed run may change.

    Raises:
        UserError: the folder holds another run.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any] | None = None,
        *,
        rows: str = "",
        command: list[str] | None = None,
        free: Sequence[str] = (),
    ) -> None:
        recipe = None if identity is None else yaml.safe_dump(dict(identity))
        self.folder = RunFolder.create(Path(path), command=command, recipe=recipe, free=free)
        self.path = self.folder.path
        self._rows = self.path / rows
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> EvaluationRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exits.close()
        if isinstance(error, UserError):
            # Nothing is asked yet where the folder has no rows: the corrected call may take it.
            self.folder.discard()

    def read_rows(self, key: Callable[[AnswerRow], K]) -> dict[K, AnswerRow]:
        """Lock the folder for this process, and return the rows of earlier sessions; the last row of a key counts.

        Raises:
            UserError: another process evaluates in this folder.
        """
        self._exits.enter_context(FolderLock(self.path, purpose="evaluating a model"))
        return {key(row): row for row in repair_json_lines(self._rows)}

    def replace_rows(self, rows: Iterable[AnswerRow]) -> None:
        """Write the file of rows anew, such as without rows that are asked for again."""
        write_text_atomically(self._rows, "".join(json.dumps(row) + "\n" for row in rows))

    def answer(
        self,
        batches: Sequence[Sequence[Q]],
        ask: Callable[[Sequence[Q]], Sequence[AnswerRow]],
        *,
        finished: Iterable[AnswerRow] = (),
    ) -> list[AnswerRow]:
        """Ask the questions that are left batch by batch; append the rows of each batch to the file.

        Args:
            ask: a batch -> its rows; one with an "error" has no answer.
            finished: rows of earlier sessions whose questions are in no batch.

        Returns:
            The finished rows and the new ones.
        """
        rows = list(finished)
        total = len(rows) + sum(map(len, batches))
        if rows:
            say(f"resumed from question {len(rows):,}/{total:,}")
        num_failed = sum("error" in row for row in rows)
        with Meter("answered", total) as meter:
            meter.advance(len(rows))
            for batch in batches:
                part = ask(batch)
                append_json_lines(self._rows, part)
                rows += part
                num_failed += sum("error" in row for row in part)
                meter.advance(len(batch), note=f"{num_failed} without an answer")
        return rows

    def write_result(self, result: RunResult) -> None:
        """Write result.json, which the page of the run reads."""
        self.folder.write_result(result.to_json())


def cut_batches(questions: Sequence[Q], size: int) -> list[Sequence[Q]]:
    """Cut questions into batches of `size` in their order; the last may have fewer."""
    return [questions[start : start + size] for start in range(0, len(questions), size)]


def average(values: Sequence[float], groups: Groups, *, seed: int) -> Value | None:
    """Average scores, with a bootstrap interval; None without any.

    Args:
        groups: image or clip of each value. Questions about one of them are not independent: whole ones are drawn.
    """
    return bootstrap_interval(values, seed=seed, groups_N=groups).to_value() if len(values) else None
