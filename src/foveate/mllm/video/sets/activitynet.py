"""ActivityNet-QA: `test_q.json` with `test_a.json` beside it as published, or IG-VLM's `ActivityNet_QA.csv`.

The same clip is called v_1QIUV7WYKXg in one place and 1QIUV7WYKXg in another; both names are looked for.
"""

from __future__ import annotations

from pathlib import Path

from foveate.core.errors import UserError
from foveate.mllm.video.questions import (
    QuestionSet,
    VideoQuestion,
    find_column,
    make_question,
    read_entries,
    read_open,
)

_KINDS = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; one that the file of answers lacks is a row that is missing, and so is the reverse."""
    if path.suffix != ".json":
        return read_open(path, name_clip=lambda row: name_clip(row["video_name"]), name_kind=_name_kind)
    answers_path = path.with_name(f"{path.stem.removesuffix('_q')}_a.json")
    if not path.stem.endswith("_q") or not answers_path.is_file():
        raise UserError(f"{path}: expected a file such as test_q.json with its answers, test_a.json, beside it")
    entries, answers = read_entries(path), read_entries(answers_path)
    for name in ("video_name", "question", "question_id"):
        find_column(entries, name, path=path)
    for name in ("answer", "question_id"):
        find_column(answers, name, path=answers_path)
    by_id = {str(answer.get("question_id", "")): answer for answer in answers}
    questions = []
    for entry in entries:
        id = str(entry.get("question_id", ""))
        answer = by_id.pop(id, {})
        questions.append(
            make_question(
                id=id,
                clip=name_clip(str(entry.get("video_name", ""))),
                texts=(str(entry.get("question", "")),),
                answer=str(answer.get("answer", "")),
                kind=_name_kind(str(answer.get("type", ""))),
                problem="" if answer else f"{answers_path.name} has no answer",
            )
        )
    problem = f"{path.name} has no such question"
    return questions + [make_question(id=id, clip=(), texts=("",), answer="", problem=problem) for id in by_id]


def _name_kind(number: str) -> str:
    return _KINDS[int(number)] if number in map(str, range(len(_KINDS))) else ""


def name_clip(video: str) -> tuple[str, ...]:
    """Return both names of a clip of ActivityNet."""
    bare = video.removeprefix("v_")
    return (f"v_{bare}", bare) if bare else ()


SET = QuestionSet("ActivityNet-QA", read, published=(8000,))
