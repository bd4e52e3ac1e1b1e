"""TGIF-FrameQA: `Test_frameqa_question.csv` as published (tabs), or IG-VLM's `TGIF_FrameQA.csv`.

A question is named by its own id (FRAMEQA1159). `key` and IG-VLM's `question_id` number the GIFs: 13,691 questions have
7,132 of these, and an evaluator that stores a reply by them judges one question of each GIF.
"""

from __future__ import annotations

from pathlib import Path

from foveate.records.video_questions import Columns, QuestionSet, VideoQuestion, read_rows

_COLUMNS = Columns(("vid_id", "video_id"), ("gif_name", "video_name"), kind=("type", "question_type"))
_KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions of GIFs, or of these as videos."""
    return _COLUMNS.read(read_rows(path), path, name_kind=lambda number: _KINDS.get(number, ""))


SET = QuestionSet("TGIF-FrameQA", read, published=(13691,))
