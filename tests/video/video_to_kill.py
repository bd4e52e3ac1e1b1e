"""Evaluations of a question set by a model that answers from a table, whole or killed at any moment."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.multimodal.choose import Choice
from foveate.video.evaluate import ClipRequest, VideoEvaluationSettings, evaluate
from foveate.video.results import VideoScores


@dataclass
class Reply:
    text: str
    finished: bool = True
    seen: dict[str, Any] = field(default_factory=lambda: {"indices": [0, 4, 8], "slow": [1], "num_decoded": 9})
    choice: Choice | None = None


class HashModel:
    """Answers that follow from the clip, the question and all that is in the batch: another batch, another answer."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[list[ClipRequest]] = []

    def ask_all(self, requests: Sequence[ClipRequest], *, max_tokens: int) -> list[Reply]:
        self.batches.append(list(requests))
        time.sleep(self.seconds)
        for request in requests:
            if request.clip.is_file() and request.clip.read_bytes() == b"damaged":
                raise UserError(f"{request.clip.name}: no frame can be decoded")
        digest = hashlib.sha256(repr([(r.clip.name, r.text, r.options) for r in requests]).encode()).hexdigest()
        return [Reply(f"{'ABCDE'[len(r.text) % 5]}) In the image {digest}{r.text}") for r in requests]


def write_questions(folder: Path, *, count: int = 60, clips: int = 13) -> Path:
    """Writes questions of all kinds, those of one clip apart from one another, and their clips."""
    path = folder / "questions.jsonl"
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        line: dict[str, Any] = {"video": f"clip{number % clips}", "question": "why?" * (number % 7 + 1), "answer": 1}
        line["type"] = ("cause", "order")[number % 2]
        if number % 3:
            line["options"] = ["run", "sit", "eat"]
        lines.append(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for clip in range(clips):
        (videos / f"clip{clip}.mp4").write_bytes(f"clip {clip}".encode())
    return path


def run_evaluation(folder: str, run: str, seconds: float = 0.0, batch_size: int = 4, model: Any = None) -> VideoScores:
    """Asks all questions of a folder that `write_questions` wrote."""
    settings = VideoEvaluationSettings(question_set="own", batch_size=batch_size)
    base = Path(folder)
    return evaluate(model or HashModel(seconds), base / "questions.jsonl", base / "videos", run=run, settings=settings)
