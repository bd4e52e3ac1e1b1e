"""What a model says of a region that is drawn, cropped or written as numbers, on test scenes.

    python -m benchmarks.region_prompts --out bench --model mini

Each region is asked about twice: the model writes an answer, which is right if it contains the region's name, and it
chooses between that name and the one of another region of the scene, where half is chance. The control points at the
other region and scores by the first one's name: what it reaches comes from the scene, not from the region.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import machine
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.metrics.intervals import wilson_interval
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.pointing import Mark, prompt_regions
from foveate.multimodal.settings import RegionPrompt
from foveate.records.boxes import PixelBox
from foveate_labs.worlds.scenes import draw_scene

PROMPTS: dict[str, tuple[RegionPrompt | None, Mark]] = {
    "the model's own": (None, "rectangle"),
    "coordinates": ("coordinates", "rectangle"),
    "draw, rectangle": ("draw", "rectangle"),
    "draw, ellipse": ("draw", "ellipse"),
    "draw, arrow": ("draw", "arrow"),
    "crop": ("crop", "rectangle"),
}
QUESTION = "What is <1>?"
COLUMNS = ("written", "written, another region", "chosen", "chosen, another region")


def draw_questions(count: int) -> list[tuple[Image.Image, PixelBox, str, PixelBox, str]]:
    """Draw a scene for each question: image, region and its name, and another region with another name."""
    questions, index = [], 0
    while len(questions) < count:
        scene = draw_scene(seed=0, split="test", index=index, size=448)
        index += 1
        boxes = [(region.box.to_pixels(448, 448), region.phrase) for region in scene.regions if region.box is not None]
        others = [(box, phrase) for box, phrase in boxes if phrase != boxes[0][1]]
        if others:
            questions.append((scene.image, *boxes[0], *others[0]))
    return questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--prompts", nargs="+", choices=[*PROMPTS], default=[*PROMPTS])
    options = parser.parse_args()
    model, questions = open_mllm(options.model, device="cpu"), draw_questions(options.questions)
    rows: dict[str, Any] = {}
    for name, (prompt, mark) in track([(name, PROMPTS[name]) for name in options.prompts], description="prompts"):
        hits = dict.fromkeys(COLUMNS, 0)
        for image, region, phrase, other, other_phrase in questions:
            for ending, box in (("", region), (", another region", other)):
                question = prompt_regions(model, image, QUESTION, [box], prompt, mark=mark)
                answer = model.ask(question.images, question.text, regions=question.regions, max_tokens=16)
                hits[f"written{ending}"] += phrase.casefold() in answer.text.casefold()
                shares = model.choose(
                    question.images, question.text, [phrase, other_phrase], regions=question.regions, per_token=True
                )
                hits[f"chosen{ending}"] += shares[0] > shares[1]
        rows[name] = {column: count / len(questions) for column, count in hits.items()}
        for column in ("written", "chosen"):
            interval = wilson_interval(hits[column], len(questions))
            assert interval is not None
            rows[name][f"{column}, interval"] = [interval.low, interval.high]
        print(name, *(f"{column} {rows[name][column]:.3f}" for column in COLUMNS), sep="  ", flush=True)
    saved = {"model": options.model, "questions": len(questions), "prompts": rows, "machine": machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(options.out / "region_prompts.json", saved)


if __name__ == "__main__":
    main()
