"""ActivityNet-QA: `test_q.json` with `test_a.json` beside it as published, or IG-VLM's `ActivityNet_QA.csv`.

The same clip is called v_1QIUV7WYKXg in one place and 1QIUV7WYKXg in another; both names are looked for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records.video_questions import (
    Columns,
    QuestionSet,
    VideoQuestion,
    find_column,
    get_text,
    make_question,
    read_entries,
    read_rows,
)

_KINDS = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; one that the file of answers lacks is a row that is missing, and so is the reverse."""
    if path.suffix != ".json":
        return Columns().read(read_rows(path), path, name_clip=name_clip, name_kind=_name_kind)
    answers_path = path.with_name(f"{path.stem.removesuffix('_q')}_a.json")
    if not path.stem.endswith("_q") or not answers_path.is_file():
        raise UserError(f"{path}: expected a file such as test_q.json with its answers, test_a.json, beside it")
    entries, answers = read_entries(path), read_entries(answers_path)
    for name in ("answer", "question_id"):
        find_column(answers, name, path=answers_path)
    by_id = {get_text(answer, "question_id"): answer for answer in answers}
    ids = [get_text(entry, "question_id") for entry in entries]
    rows = [{"answer": "", "type": ""} | by_id.get(id, {}) | entry for id, entry in zip(ids, entries, strict=True)]
    questions = Columns(kind=("type",)).read(rows, path, name_clip=name_clip, name_kind=_name_kind)
    known_ids = set(ids)
    missing = f"{answers_path.name} has no answer"
    unasked = f"{path.name} has no such question"
    return [each if each.id in by_id else replace(each, problem=missing) for each in questions] + [
        make_question(id=id, clip=(), texts=("",), answer="", problem=unasked) for id in by_id if id not in known_ids
    ]


def _name_kind(number: str) -> str:
    return _KINDS[int(number)] if number in map(str, range(len(_KINDS))) else ""


def name_clip(video: str) -> tuple[str, ...]:
    """Return both names of a clip of ActivityNet."""
    bare = video.removeprefix("v_")
    return (f"v_{bare}", bare) if bare else ()


SET = QuestionSet("ActivityNet-QA", read, published=(8000,))
