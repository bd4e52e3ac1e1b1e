"""EgoSchema: `questions.json` as published with `subset_answers.json` beside it, or IG-VLM's `EgoSchema.csv`.

The answers of 500 of the 5,031 questions are published, and these are asked. An answer without a question is a row that
is missing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.json_fields import read_table
from foveate.records.video_questions import (
    FIVE_OPTIONS,
    Columns,
    QuestionSet,
    VideoQuestion,
    find_column,
    get_text,
    read_entries,
    read_rows,
)

_ANSWERS = "subset_answers.json"
# A question is named by its clip, which is its own.
_LISTED = Columns(("video_name",), kind=(), options=FIVE_OPTIONS)
_PUBLISHED = Columns(
    ("q_uid",), ("q_uid",), kind=(), options=tuple(f"option {index}" for index in range(5)), by_number=True
)


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions that have an answer."""
    if path.suffix == ".csv":
        return _LISTED.read(read_rows(path), path)
    answers_path = path.with_name(_ANSWERS)
    if not answers_path.is_file():
        raise UserError(f"{answers_path}: no such file; it holds the answers of {path.name}")
    answers, entries = read_table(answers_path), read_entries(path)
    for name in ("q_uid", *_PUBLISHED.texts, *_PUBLISHED.options):
        find_column(entries, name, path=path)
    by_id = {get_text(entry, "q_uid"): entry for entry in entries}
    empty = dict.fromkeys([*_PUBLISHED.texts, *_PUBLISHED.options], "")
    rows = [by_id.get(id, empty) | {"q_uid": id, "answer": answer} for id, answer in answers.items()]
    questions = _PUBLISHED.read(rows, path) if rows else []
    problem = f"{path.name} has no such question"
    return [each if each.id in by_id else replace(each, problem=problem) for each in questions]


SET = QuestionSet("EgoSchema, subset", read, published=(500,))
