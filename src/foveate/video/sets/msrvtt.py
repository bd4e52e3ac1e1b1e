"""MSRVTT-QA: `val_qa.json` or `test_qa.json` as published, or IG-VLM's `MSRVTT_QA.csv` (val); clips are video0, ..."""

from __future__ import annotations

from pathlib import Path

from foveate.records.video_questions import Columns, QuestionSet, VideoQuestion, read_entries, read_rows
from foveate.video.sets.msvd import PUBLISHED


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; published scores are mostly of test, those of SlowFast-LLaVA of val."""
    if path.suffix != ".json":
        return Columns().read(read_rows(path), path)
    return PUBLISHED.read(read_entries(path), path, name_clip=lambda number: (f"video{number}",))


SET = QuestionSet("MSRVTT-QA", read, published=(12278, 72821))
