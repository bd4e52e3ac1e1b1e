"""Evaluating a question set of generated clips: batches of 8 questions against 1.

    OMP_NUM_THREADS=1 python -m benchmarks.video_evaluate --out bench
    OMP_NUM_THREADS=1 python -m benchmarks.video_evaluate --out bench --model mini --questions 40

Ratios above 1: batches of 8 are faster. Without --model: random weights at toy width. 500 questions are asked once on
each side, in five parts whose ratios give the interval. Clips have two questions each, or one: those of a clip share
its encoding. Of 500 clips fifty are different; the others are links to them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import Timing, compare, publish, ratio
from benchmarks.video_asking import build_network
from foveate.core import progress, seeds
from foveate.video.evaluate import VideoEvaluationSettings, evaluate
from foveate.video.networks import open_network
from foveate.video.strategies import parse_how
from foveate.video.watching import ClipWatcher
from foveate_labs.worlds.scenes.clip_questions import ask_clip
from foveate_labs.worlds.scenes.clips import draw_clip, write_frames

_BATCH = 8
_DISTINCT = 50


def write_set(folder: Path, *, questions: int, per_clip: int, parts: int) -> list[Path]:
    """Write generated clips and their questions as sets of a user, one for each part."""
    lines = []
    for number in range(questions // per_clip):
        clip = draw_clip("order", seed=0, split="test", index=number % _DISTINCT)
        path = folder / "videos" / f"{number}.webp"
        if number < _DISTINCT:
            write_frames((frame.pixels_HW3 for frame in clip), path)
        else:
            os.link(folder / "videos" / f"{number % _DISTINCT}.webp", path)
        for question in ask_clip(clip, seeds.generator("benchmark", number))[:per_clip]:
            lines.append(
                {"video": str(number), "question": question.question.prompt, "options": question.options}
                | {"answer": question.answer, "evidence": question.evidence}
            )
    size = len(lines) // parts
    paths = [folder / f"part{part}.jsonl" for part in range(parts)]
    for part, path in enumerate(paths):
        rows = lines[part * size : (part + 1) * size]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="folder or hub id; by default random weights at toy width")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--parts", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    progress.configure(quiet=True)
    toy = not arguments.model
    network = build_network(width=64, layers=2, side=64, grid=8) if toy else open_network(arguments.model, device="cpu")
    how = parse_how("slowfast", frames=16, slow=4, slow_pool="grid_1x2", fast="2x2")
    for per_clip in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = write_set(folder, questions=arguments.questions, per_clip=per_clip, parts=arguments.parts)

            def prepare(batch_size: int, folder: Path = folder, paths: list[Path] = paths) -> Callable[[], None]:
                remaining = iter(paths)

                def run() -> None:
                    path = next(remaining)
                    settings = VideoEvaluationSettings(question_set="own", batch_size=batch_size, max_tokens=16)
                    target = folder / f"{path.stem}-{batch_size}"
                    evaluate(ClipWatcher(network, how), path, folder / "videos", run=target, settings=settings)

                return run

            timings: dict[str, Timing] = compare(
                {"batches of 8": prepare(_BATCH), "one": prepare(1)}, repeats=arguments.parts, warmup=0
            )
            ratios = {
                kind: ratio(timings, "batches of 8", "one", processor=kind == "processor time")
                for kind in ("time", "processor time")
            }
            items = arguments.questions // arguments.parts
            publish(
                f"video-evaluate-{per_clip}", timings, out=arguments.out, ratios=ratios, items=items, unit="questions"
            )


if __name__ == "__main__":
    main()
