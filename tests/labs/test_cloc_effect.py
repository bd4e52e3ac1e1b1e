"""The method's effects on a toy whose answers are known: noise canvases with colored shapes, three seeds.

What is asserted, and what is not, follows the margins of the method's own toy: the embedding depends on the box, it
beats CLIP's pooled tokens, grounding beats the mean box, whole images are found as before. Nothing is asserted of the
Prompter against RoI-Align, the filter, grounding for naming, or M.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from foveate.core.recipes import load
from foveate.pretrain.evaluate import evaluate
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.train import pretrain
from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.record import Caption, Region
from foveate.records.writer import CollectionWriter
from foveate.vision.localizer.folder import load_model
from foveate_labs.studies.trainings import box_gain

SIZE = 224
COLORS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 200), "yellow": (220, 200, 50)}
SHAPES = ("square", "circle", "triangle", "cross")
CLASSES = [f"{color} {shape}" for color, shape in itertools.product(COLORS, SHAPES)]
SEEDS = (0, 1, 2)


def draw_shape(pen: ImageDraw.ImageDraw, name: str, x: int, y: int, side: int) -> None:
    color, shape = name.split()
    fill = COLORS[color]
    match shape:
        case "square":
            pen.rectangle((x, y, x + side - 1, y + side - 1), fill=fill)
        case "circle":
            pen.ellipse((x, y, x + side - 1, y + side - 1), fill=fill)
        case "triangle":
            pen.polygon([(x, y + side - 1), (x + side - 1, y + side - 1), (x + side // 2, y)], fill=fill)
        case _:
            third = side // 3
            pen.rectangle((x + third, y, x + 2 * third, y + side - 1), fill=fill)
            pen.rectangle((x, y + third, x + side - 1, y + 2 * third), fill=fill)


def canvas(rng: np.random.Generator) -> tuple[bytes, list[Region]]:
    """Noise with 2 to 4 different shapes, each in a quarter of its own."""
    image = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    count = int(rng.integers(2, 5))
    names = rng.choice(CLASSES, count, replace=False)
    regions = []
    for name, quarter in zip(names, rng.permutation(4)[:count], strict=True):
        side = int(rng.integers(45, 100))
        x, y = (int(corner * SIZE // 2 + rng.integers(0, SIZE // 2 - side)) for corner in (quarter % 2, quarter // 2))
        draw_shape(pen, str(name), x, y, side)
        box = Box(x / SIZE, y / SIZE, (x + side) / SIZE, (y + side) / SIZE)
        regions.append(Region(box, str(name), label=str(name), slice="seen"))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=90)
    return target.getvalue(), regions


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("effect") / "shapes"
    rng = np.random.default_rng(0)
    with CollectionWriter(path, source="shapes") as writer:
        for split, count in (("train", 600), ("test", 120)):
            for number in range(count):
                data, regions = canvas(rng)
                said = " and ".join(f"a {region.phrase}" for region in regions)
                if split == "train":  # alternative texts name one thing, or nothing
                    said = regions[0].phrase if rng.random() < 0.4 else f"IMG_{number:04d}.jpg"
                writer.add(
                    f"{split}-{number:04d}", data, captions=(Caption(said, "alt", "shapes"),), regions=tuple(regions),
                    labels={"source": "shapes"}, split=split,
                )  # fmt: skip
    return path


def trained(path: Path, recipe: str, seed: int, run: Path) -> dict[str, float]:
    changes = ["training.steps=160", "training.warmup_steps=16", "training.batch_size=48", f"training.seed={seed}"]
    changes += ["training.checkpoint_every=160", "training.workers=1"]
    collection = Collection.open(path)
    done = pretrain(load(PretrainRecipe, recipe, changes), collection, run, device="cpu", evaluate_split=None)
    assert done.model_folder is not None
    model = load_model(done.model_folder, device="cpu")
    evaluation, seen = evaluate(model, collection, name="m", rules=("head",))
    values = {
        f"{row['question']}{column.removeprefix('m')}": value["value"]
        for row in evaluation.to_json()["table"]
        if row["data"] in ("seen", "all regions", "shapes images")
        for column, value in row["values"].items()
    }
    return values | ({"box_gain": box_gain(seen, collection)} if "head" in seen.located else {})


@pytest.mark.slow
def test_boxes_are_read_found_and_cost_no_retrieval(shapes: Path, tmp_path: Path) -> None:
    cloc = [trained(shapes, "tour", seed, tmp_path / f"cloc{seed}") for seed in SEEDS]
    clip = [trained(shapes, "tour-clip", seed, tmp_path / f"clip{seed}") for seed in SEEDS]

    def mean(runs: list[dict[str, float]], name: str) -> float:
        return float(np.mean([run[name] for run in runs]))

    named, retrieved = "what is in this box, of all names: mAcc", "which text belongs to this image: R@1"
    assert mean(cloc, named) - mean(cloc, f"{named}_shuffled") >= 0.30, "the embedding depends on the box"
    assert mean(cloc, named) >= mean(clip, named) + 0.15, "it beats CLIP's tokens under the box"
    assert mean(cloc, "box_gain") >= 0.15, "grounding beats the mean box"
    assert mean(cloc, retrieved) >= mean(clip, retrieved) - 0.05, "whole images are found as before"
