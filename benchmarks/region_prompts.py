"""What a model says of a region that is drawn, cropped or written as numbers, on test scenes.

    python -m benchmarks.region_prompts --out bench --model mini

Each answer is scored by whether it contains the region's name. The control asks about another region of the same scene
with another name, and scores that answer by the first one's name: what it reaches comes from the scene, not from the
region.
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


def draw_questions(count: int) -> list[tuple[Image.Image, PixelBox, str, PixelBox]]:
    """Draw a scene for each question: image, region and its name, and another region with another name."""
    questions, index = [], 0
    while len(questions) < count:
        scene = draw_scene(seed=0, split="test", index=index, size=448)
        index += 1
        regions = scene.regions
        others = [region for region in regions if region.phrase != regions[0].phrase] if regions else []
        if others:
            first, other = regions[0].box.to_pixels(448, 448), others[0].box.to_pixels(448, 448)
            questions.append((scene.image, first, regions[0].phrase, other))
    return questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    model, questions = open_mllm(options.model, device="cpu"), draw_questions(options.questions)
    rows: dict[str, Any] = {}
    for name, (prompt, mark) in track(list(PROMPTS.items()), description="prompts"):
        hits = {"region": 0, "another region": 0}
        for image, region, phrase, other in questions:
            for asked, box in (("region", region), ("another region", other)):
                question = prompt_regions(model, image, QUESTION, [box], prompt, mark=mark)
                answer = model.ask(question.images, question.text, regions=question.regions, max_tokens=16)
                hits[asked] += phrase.casefold() in answer.text.casefold()
        rows[name] = {asked: count / len(questions) for asked, count in hits.items()}
        interval = wilson_interval(hits["region"], len(questions))
        assert interval is not None
        low, high = interval.low, interval.high
        rows[name] |= {"low": low, "high": high}
        print(f"{name:16} {rows[name]['region']:.3f} ({low:.3f} to {high:.3f})  {rows[name]['another region']:.3f}")
    saved = {"model": options.model, "questions": len(questions), "prompts": rows, "machine": machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(options.out / "region_prompts.json", saved)


if __name__ == "__main__":
    main()
