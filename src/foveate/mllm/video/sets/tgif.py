"""TGIF-FrameQA: `Test_frameqa_question.csv` as published (tabs), or IG-VLM's `TGIF_FrameQA.csv`.

A question is named by its own id (FRAMEQA1159). `key` and IG-VLM's `question_id` number the GIFs: 13,691 questions have
7,132 of these, and an evaluator that stores a reply by them judges one question of each GIF.
"""

from __future__ import annotations

from pathlib import Path

from foveate.mllm.video.questions import QuestionSet, VideoQuestion, find_column, make_question, read_rows


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions of GIFs, or of these as videos."""
    rows = read_rows(path)
    clip, id = (
        find_column(rows, "gif_name", "video_name", path=path),
        find_column(rows, "vid_id", "video_id", path=path),
    )
    kind = find_column(rows, "type", "question_type", path=path)
    for name in ("question", "answer"):
        find_column(rows, name, path=path)
    return [
        make_question(
            id=row[id],
            clip=(row[clip],),
            texts=(row["question"],),
            answer=row["answer"],
            kind=_KINDS.get(row[kind], ""),
        )
        for row in rows
    ]


_KINDS = {"0": "object", "1": "number", "2": "color", "3": "location"}
SET = QuestionSet("TGIF-FrameQA", read, published=(13691,))
