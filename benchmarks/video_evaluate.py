"""Evaluating a question set of generated clips: batches of 8 questions against 1, in the order of clips.

    OMP_NUM_THREADS=1 python -m benchmarks.video_evaluate --out bench
    OMP_NUM_THREADS=1 python -m benchmarks.video_evaluate --out bench --questions 40 --repeats 3

Ratios above 1: batches of 8 are faster. Clips have two questions each, or one: those of a clip share its encoding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.common import Timing, compare, publish, ratio
from foveate.core import progress, seeds
from foveate.mllm.video.clip_model import ClipWatcher
from foveate.mllm.video.evaluate import VideoEvaluationSettings, evaluate
from foveate.mllm.video.grammar import parse_how
from foveate.mllm.video.networks import open_network
from foveate.records.scenes.clip_files import write_frames
from foveate.records.scenes.clip_questions import ask_clip
from foveate.records.scenes.clips import draw_clip

_BATCH = 8


def write_set(folder: Path, *, questions: int, per_clip: int) -> Path:
    """Write generated clips and their questions as a set of a user."""
    lines = []
    for number in range(questions // per_clip):
        clip = draw_clip("order", seed=0, split="test", index=number)
        write_frames((frame.pixels_HW3 for frame in clip), folder / "videos" / f"{number}.webp")
        asked = ask_clip(clip, seeds.generator("benchmark", number))
        for question in asked[:per_clip]:
            lines.append(
                {"video": str(number), "question": question.question.prompt, "options": question.options}
                | {"answer": question.answer, "evidence": question.evidence}
            )
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    progress.configure(quiet=True)
    network = open_network(arguments.model, device="cpu")
    how = parse_how("slowfast", frames=16, slow=4, slow_pool="grid_1x2", fast="2x2")
    for per_clip in (1, 2):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = write_set(folder, questions=arguments.questions, per_clip=per_clip)
            runs = iter(range(1_000_000))

            def run(batch_size: int, folder: Path = folder, path: Path = path, runs=runs) -> None:
                settings = VideoEvaluationSettings(question_set="own", batch_size=batch_size, max_tokens=16)
                target = folder / f"run{next(runs)}"
                evaluate(ClipWatcher(network, how), path, folder / "videos", run=target, settings=settings)

            timings: dict[str, Timing] = compare(
                {"batches of 8": lambda run=run: run(_BATCH), "one": lambda run=run: run(1)},
                repeats=arguments.repeats,
                warmup=int(per_clip == 1),
            )
            ratios = {
                kind: ratio(timings, "batches of 8", "one", processor=kind == "processor time")
                for kind in ("time", "processor time")
            }
            publish(f"video-evaluate-{per_clip}", timings, out=arguments.out, ratios=ratios)


if __name__ == "__main__":
    main()
