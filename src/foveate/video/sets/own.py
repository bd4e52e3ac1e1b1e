"""Questions of a user: JSON Lines with video, question and answer, and options for a multiple choice.

    {"video": "trips/taxi.mp4", "question": "What follows the taxi?", "answer": "a bus"}
    {"video": "taxi", "question": "Where is it?", "options": ["on the left", "on the right"], "answer": "on the left"}

`id` names a question and `type` a part that is also reported by itself. `answer` is a text, and of a multiple choice
the text of an option or its number from 0. `evidence` names the frames that hold the answer, counted from 0, in groups
of which one frame each is needed; how often they were among the frames that a model saw is then reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, nearest
from foveate.core.json_fields import get_field, read_lines
from foveate.records.clip_search import CLIP_SUFFIXES
from foveate.records.video_questions import (
    QuestionSet,
    VideoQuestion,
    get_text,
    make_choice,
    make_question,
)

_FIELDS = ("id", "video", "question", "answer", "options", "type", "evidence")


def read(path: Path) -> list[VideoQuestion]:
    """Read a file of questions, one a line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected questions as JSON Lines")
    questions = [
        _read_line(entry, f"{path}, line {number}", number) for number, entry in enumerate(read_lines(path), 1)
    ]
    if not questions:
        raise UserError(f"{path}: no questions; expected a line of JSON for each")
    return questions


def _read_line(entry: dict[str, Any], where: str, number: int) -> VideoQuestion:
    for name in entry:
        if name not in _FIELDS:
            raise UserError(f"{where}: unknown field '{name}'; expected {', '.join(_FIELDS)}{nearest(name, _FIELDS)}")
    video, text = (get_field(entry, name, str, where=where) for name in ("video", "question"))
    # Names may have dots of their own: only the suffix of a clip is cut off.
    stem, _, suffix = video.rpartition(".")
    clip = (stem if suffix.lower() in CLIP_SUFFIXES else video,)
    id, kind, answer = get_text(entry, "id", number), get_text(entry, "type"), entry.get("answer", "")
    if isinstance(answer, bool) or not isinstance(answer, str | int):
        raise UserError(f"{where}: field 'answer': expected a text or the number of an option (got {answer!r:.60})")
    evidence = _read_evidence(entry.get("evidence", []), where)
    if "options" not in entry:
        return make_question(id=id, clip=clip, texts=(text,), answer=str(answer), kind=kind, evidence=evidence)
    options = [str(option) for option in get_field(entry, "options", list, where=where)]
    if len(options) < 2:
        raise UserError(f"{where}: field 'options': expected at least two (got {len(options)})")
    return make_choice(options, answer, id=id, clip=clip, texts=(text,), kind=kind, evidence=evidence)


def _read_evidence(value: Any, where: str) -> tuple[tuple[int, ...], ...]:
    groups = value if isinstance(value, list) else [None]
    if not all(isinstance(group, list) and group and all(map(_is_frame, group)) for group in groups):
        expected = "expected groups of frames counted from 0, [[3], [7, 8]]"
        raise UserError(f"{where}: field 'evidence': {expected} (got {value!r:.60})")
    return tuple(tuple(group) for group in groups)


def _is_frame(value: Any) -> bool:
    # bool is an int, too.
    return type(value) is int and value >= 0


SET = QuestionSet("Own questions", read)
