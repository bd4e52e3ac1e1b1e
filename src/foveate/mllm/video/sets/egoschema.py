"""EgoSchema: `questions.json` as published with `subset_answers.json` beside it, or IG-VLM's `EgoSchema.csv`.

The answers of 500 of the 5,031 questions are published, and these are asked. An answer without a question is a row that
is missing.
"""

from __future__ import annotations

from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.json_fields import read_table
from foveate.mllm.video.questions import (
    QuestionSet,
    VideoQuestion,
    find_column,
    make_choice,
    make_question,
    read_entries,
    read_rows,
)

_ANSWERS = "subset_answers.json"


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions that have an answer; a question is named by its clip, which is its own."""
    if path.suffix == ".csv":
        return _read_table(path)
    answers_path = path.with_name(_ANSWERS)
    if not answers_path.is_file():
        raise UserError(f"{answers_path}: no such file; it holds the answers of {path.name}")
    answers, entries = read_table(answers_path), read_entries(path)
    for name in ("q_uid", "question", *(f"option {index}" for index in range(5))):
        find_column(entries, name, path=path)
    by_id = {str(entry.get("q_uid", "")): entry for entry in entries}
    questions = []
    for id, answer in answers.items():
        entry = by_id.get(id)
        if entry is None:
            missing = f"{path.name} has no such question"
            questions.append(make_question(id=id, clip=(id,), texts=("",), answer="", aspects=(), problem=missing))
            continue
        options = [str(entry.get(f"option {index}", "")) for index in range(5)]
        number = answer if isinstance(answer, int) and not isinstance(answer, bool) else None
        text = str(entry.get("question", ""))
        questions.append(make_choice(id=id, clip=(id,), text=text, options=options, correct=number))
    return questions


def _read_table(path: Path) -> list[VideoQuestion]:
    rows = read_rows(path)
    for name in ("video_name", "question", "answer", *(f"a{index}" for index in range(5))):
        find_column(rows, name, path=path)
    return [
        make_choice(
            id=row["video_name"],
            clip=(row["video_name"],),
            text=row["question"],
            options=[row[f"a{index}"] for index in range(5)],
            correct=row["answer"],
        )
        for row in rows
    ]


SET = QuestionSet("EgoSchema, subset", read, published=(500,))
