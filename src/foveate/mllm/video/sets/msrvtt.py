"""MSRVTT-QA: `val_qa.json` or `test_qa.json` as published, or IG-VLM's `MSRVTT_QA.csv` (val); clips are video0, ..."""

from __future__ import annotations

from pathlib import Path

from foveate.mllm.video.questions import QuestionSet, VideoQuestion, read_open
from foveate.mllm.video.sets.msvd import read_numbered


def read(path: Path) -> list[VideoQuestion]:
    """Read the questions; published scores are mostly of test, those of SlowFast-LLaVA of val."""
    if path.suffix != ".json":
        return read_open(path, name_clip=lambda row: (row["video_name"],))
    return read_numbered(path, lambda number: (f"video{number}",))


SET = QuestionSet("MSRVTT-QA", read, published=(12278, 72821))
