"""Questions of a set and the clips they are about.

A set is a module of `foveate.mllm.video.sets` with a `SET`, which reads published lists as they are. A question that
cannot be asked is never left out: it bears its problem.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.core.files import read_json
from foveate.core.plugins import load_plugin

_NUM_OPTIONS = 5


@dataclass(frozen=True)
class VideoQuestion:
    """One question of a set.

    Attributes:
        clip: names of its clip without suffix, the best first; one with "/" is a path below the folder of videos.
        texts: the question; two that have the same answer where their consistency is judged.
        answer: the reference.
        options: of a multiple choice, of which the number `correct` is right.
        kind: part of the set that is also reported by itself.
        evidence: groups of frames, counted from 0; the answer needs one frame of each.
        aspects: what a judge scores, `""` for right or wrong; none of a multiple choice.
        problem: why it cannot be asked.
    """

    id: str
    clip: tuple[str, ...]
    texts: tuple[str, ...]
    answer: str
    options: tuple[str, ...] = ()
    correct: int | None = None
    kind: str = ""
    evidence: tuple[tuple[int, ...], ...] = ()
    aspects: tuple[str, ...] = ("",)
    problem: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Question set.

    Attributes:
        title: of its benchmark.
        read: path of its questions -> these. published: how many questions its published lists have.
    """

    title: str
    read: Callable[[Path], list[VideoQuestion]]
    published: tuple[int, ...] = ()


def load_set(name: str) -> QuestionSet:
    """Load a question set by the name of its module; raise UserError with the nearest name."""
    return load_plugin("foveate.mllm.video.sets", name, "SET", label="question set")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table with a header, of commas or tabs; a cell that a short row lacks is empty.

    Raises:
        UserError: no such file, no text, a quote without an end (a file that was cut), or a row that is too long.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, restval="", strict=True)
            rows = []
            for row in reader:
                if None in row:
                    raise UserError(f"{path}, line {reader.line_num}: more cells than the header has columns")
                rows.append(row)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a file of questions") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no table of questions ({error})") from error
    if not rows:
        raise UserError(f"{path}: no rows; expected a header and questions")
    return rows


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects; raise UserError if the file is none."""
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content) or not content:
        raise UserError(f"{path}: expected a JSON list of questions (got {type(content).__name__})")
    return content


def find_column(rows: Sequence[Mapping[str, Any]], *names: str, path: Path) -> str:
    """Return the first of the names that the rows have.

    Raises:
        UserError: they have none; the error lists their columns.
    """
    for name in names:
        if name in rows[0]:
            return name
    columns = [str(column) for column in rows[0]]
    expected = " or ".join(f"'{name}'" for name in names)
    raise UserError(f"{path}: no column {expected} (got {', '.join(columns)}){nearest(names[0], columns)}")


def read_choices(
    path: Path, *, name_clip: Callable[[str], tuple[str, ...]] = lambda video: (video,)
) -> list[VideoQuestion]:
    """Read multiple choices with the options a0 to a4, as NExT-QA and IntentQA publish them or as IG-VLM lists them.

    The published lists have the number of the right option and count questions by video; those of IG-VLM have its
    text, or its number too.
    """
    rows = read_rows(path)
    video = find_column(rows, "video_name", "video", "video_id", path=path)
    kind, id = find_column(rows, "question_type", "type", path=path), find_column(rows, "question_id", "qid", path=path)
    answer = find_column(rows, "answer_number", "answer", path=path)
    options = [find_column(rows, f"a{index}", path=path) for index in range(_NUM_OPTIONS)]
    by_number = answer == "answer_number" or id == "qid"
    return [
        make_choice(
            id=f"{row[video]}_{row[id]}" if id == "qid" else row[id],
            clip=name_clip(row[video]),
            text=row.get("question", ""),
            options=[row[option] for option in options],
            correct=_parse_number(row[answer]) if by_number else row[answer],
            kind=row[kind],
        )
        for row in rows
    ]


def make_choice(
    *,
    id: str,
    clip: tuple[str, ...],
    text: str,
    options: Sequence[str],
    correct: int | str | None,
    kind: str = "",
    evidence: tuple[tuple[int, ...], ...] = (),
) -> VideoQuestion:
    """Make a multiple choice; its right option is a number or a text.

    Of two equal options the first is right, as in the official lists.
    """
    if isinstance(correct, str):
        correct = options.index(correct) if correct in options else None
    known = correct is not None and 0 <= correct < len(options)
    return make_question(
        id=id,
        clip=clip,
        texts=(text,),
        answer=options[correct] if known and correct is not None else "",
        options=tuple(options),
        correct=correct if known else None,
        kind=kind,
        evidence=evidence,
        aspects=(),
        problem="" if known else "its answer is none of its options",
    )


def make_question(**fields: Any) -> VideoQuestion:
    """Make a question; where a text is missing, it bears this as its problem."""
    question = VideoQuestion(**fields)
    named = {"video": question.clip[0] if question.clip else "", "answer": question.answer}
    named |= {"question": "" if not all(text.strip() for text in question.texts) else "text"}
    named |= {"option": "" if not all(option.strip() for option in question.options) else "text"}
    empty = [name for name, text in named.items() if not text.strip()]
    if empty and not question.problem:
        return replace(question, problem=f"it has no {' and no '.join(empty)}")
    return question


def read_open(
    path: Path,
    *,
    name_clip: Callable[[Mapping[str, str]], tuple[str, ...]],
    name_kind: Callable[[str], str] = lambda kind: kind,
) -> list[VideoQuestion]:
    """Read open questions of a table of IG-VLM: question, answer, question_id and question_type."""
    rows = read_rows(path)
    for name in ("video_name", "question", "answer", "question_id"):
        find_column(rows, name, path=path)
    return [
        make_question(
            id=row["question_id"],
            clip=name_clip(row),
            texts=(row["question"],),
            answer=row["answer"],
            kind=name_kind(row.get("question_type", "")),
        )
        for row in rows
    ]


def _parse_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def hash_questions(questions: Sequence[VideoQuestion]) -> str:
    """Return the SHA-256 of all fields of questions, from which a run knows its questions again."""
    content = json.dumps([vars(question) for question in questions], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
