"""`foveate video evaluate` and `score`, from a file of questions to a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chat_server import ChatServer, says
from foveate.core.files import read_json_lines
from foveate.mllm.video.judging import REPLIES
from foveate.mllm.video.scores import ANSWERS

HOW = "slowfast-slow_2frms_spatial_1d_max_pool-fast_1x1"


def test_a_set_is_evaluated_and_scored_by_commands(foveate: Any, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    random = np.random.default_rng(0)
    for clip in range(4):
        (videos / f"deep/clip{clip}").mkdir(parents=True)
        for number in range(5):
            frame = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
            frame.save(videos / f"deep/clip{clip}/{number}.png")
    lines = [
        {"video": f"clip{number % 4}", "question": f"what {number}?", "answer": "red"}
        | ({"options": ["red", "blue"]} if number % 2 else {})
        for number in range(8)
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("\n".join(map(json.dumps, lines)))
    run = tmp_path / "run"
    arguments = ["--set", "own", "--questions", questions, "--videos", videos, "--run", run]
    arguments += ["--how", HOW, "--frames", 3, "--max-tokens", 4, "--device", "cpu"]
    result = foveate("video", "evaluate", "mini", *arguments, "--json").json
    assert (result["questions"], result["unjudged"], result["missing"]) == (8, 4, 0)
    assert "Own questions" in Path(result["paths"]["report"]).read_text()
    rows = (run / ANSWERS).read_bytes()
    (run / ANSWERS).write_bytes(rows[: len(rows) // 2])
    foveate("video", "evaluate", "mini", *arguments)
    assert (run / ANSWERS).read_bytes() == rows
    assert all(len(row["seen"]["indices"]) == 3 for row in read_json_lines(run / ANSWERS))
    assert "--judge" in foveate("video", "score", run).sentence
    (videos / "deep/clip3").rename(videos / "deep/other")
    sentence = foveate("video", "evaluate", "mini", *arguments, "--run", tmp_path / "other").sentence
    assert "2 of 8" in sentence
    assert "clip3" in sentence
    with ChatServer(lambda number, body: says("{'pred': 'yes', 'score': 4}")) as server:
        scored = foveate("video", "score", run, "--judge", server.url, "--judge-model", "judge-7").out
    assert "accuracy: strict 1.000, official 1.000, n 4" in scored
    assert "judged by judge-7" in scored
    assert len(read_json_lines(run / REPLIES)) == 4
