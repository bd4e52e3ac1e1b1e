"""A tiny random LLaVA and 260 scenes with own questions: what docs/how-to/own-conversations.md measures tuning with.

    python -m benchmarks.own_vlm --out own

Writes `base`, a model of random weights; `questions.jsonl`, chat messages about scenes of one shape; and
`permuted.jsonl`, the same questions with the answers of other scenes, from which nothing about images can be learned.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.random_vlm import Shape, write_random_vlm
from foveate.core.seeds import generator

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "white": (235, 235, 235)}
QUESTION = "what is in the image"
WORDS = (*QUESTION.split(), "a", "disc", "square", *COLORS, "user", "assistant")
SIDE, SCENES = 32, 260


def draw_scene(color: str, shape: str, number: int) -> Image.Image:
    """Draw a disc or square of a random size and place on dim noise."""
    random = generator("own-vlm", number)
    image = Image.fromarray(random.integers(0, 40, (SIDE, SIDE, 3), dtype="uint8"))
    side = int(random.integers(SIDE // 2, SIDE * 3 // 4))
    left, top = (int(value) for value in random.integers(0, SIDE - side, 2))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)((left, top, left + side, top + side), COLORS[color])
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    (out / "scenes").mkdir(parents=True, exist_ok=True)
    answers = []
    for number in range(SCENES):
        random = generator("own-vlm answer", number)
        color, shape = str(random.choice(list(COLORS))), str(random.choice(["disc", "square"]))
        answers.append(f"a {color} {shape}")
        draw_scene(color, shape, number).save(out / "scenes" / f"{number:03d}.png")
    order = generator("own-vlm permutation").permutation(SCENES)
    for name, of_scene in (("questions", range(SCENES)), ("permuted", order)):
        lines = []
        for number, other in enumerate(of_scene):
            content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answers[int(other)]}]
            lines.append(json.dumps({"images": [f"scenes/{number:03d}.png"], "messages": messages}))
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    write_random_vlm(out / "base", Shape(sizes, sizes, side=SIDE, patch=4), words=WORDS, never_ends=False)


if __name__ == "__main__":
    main()
