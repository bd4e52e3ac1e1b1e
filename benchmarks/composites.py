"""Photographs with cut-outs pasted on them, whose boxes are known: how well is a phrase's box found?

    python -m benchmarks.composites --packages FOLDER --out bench
    python -m benchmarks.composites --model small --scenes runs/small/collection --out bench

Three photographic cut-outs of the Debian package tuxpaint-stamps-default (animals, food, household, vehicles, clothes,
hobbies) on a photograph of gcompris-qt-data; the first lines of the cut-outs' texts are the phrases. Cut-outs and
photographs are halved: one half chose the weights of `foveate.vision.bridge`, the other is reported. Absent phrases are
those of cut-outs of other composites. A contact sheet shows ten boxes. With --scenes, the test scenes of a collection
take their place, of which every second one is reported.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.common import machine
from benchmarks.search_folders import find_folder
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.metrics.grounding import baseline_boxes
from foveate.records.boxes import pairwise_iou
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.search.calibration import TextCache
from foveate.search.locate import encode_image, locate_phrases, propose
from foveate.search.settings import LOCATE_RULES
from foveate.vision.localizer.sources import open_localizer

CLASSES = ("animals", "food", "household", "vehicles", "clothes", "hobbies")
HALVES = ("chosen on", "reported")
_SIDE, _THINGS, _MIN_IOU = 640, 3, 0.5


@dataclass(frozen=True)
class Composite:
    """A photograph with things pasted on it: its file, and their phrases and boxes [T, 4] in [0, 1]."""

    data: bytes
    phrases: list[str]
    boxes_T4: np.ndarray
    slices: tuple[str, ...] = ()  # of each phrase, where they are reported by themselves


def make_composites(packages: Path, work: Path, half: str, count: int) -> list[Composite]:
    """Compose `count` images from the cut-outs and photographs of one half."""
    stamps, photographs = (find_folder(name, packages, work) for name in ("stamps", "photographs"))
    if stamps is None or photographs is None:
        raise SystemExit(f"the packages are not below {packages}")
    cutouts = [
        path
        for path in sorted(stamps.rglob("*.png"))
        if path.relative_to(stamps).parts[0] in CLASSES
        and "cartoon" not in str(path)
        and path.with_suffix(".txt").exists()
    ]
    backgrounds = sorted(photographs.rglob("*.webp"))
    number = HALVES.index(half)
    halves = [[path for row, path in enumerate(paths) if row % 2 == number] for paths in (cutouts, backgrounds)]
    composites = []
    for row in range(count):
        rng = generator("composites", half, row)
        things = [halves[0][index] for index in rng.permutation(len(halves[0]))[:_THINGS]]
        background = halves[1][int(rng.integers(len(halves[1])))]
        composites.append(_compose(background, things, rng))
    return composites


def _compose(background: Path, things: Sequence[Path], rng: np.random.Generator) -> Composite:
    canvas = decode(background.read_bytes())
    scale = _SIDE / max(canvas.size)
    canvas = canvas.resize((round(canvas.width * scale), round(canvas.height * scale)), Image.Resampling.BICUBIC)
    phrases, boxes = [], []
    for path in things:
        stamp = Image.open(path).convert("RGBA")
        visible = stamp.getchannel("A").point(lambda alpha: 255 if alpha > 20 else 0).getbbox()
        stamp = stamp.crop(visible)
        # Among some places the one that covers least of the things that lie there already.
        side = rng.uniform(0.25, 0.5) * min(canvas.size)
        factor = side / max(stamp.size)
        stamp = stamp.resize((max(1, round(stamp.width * factor)), max(1, round(stamp.height * factor))))
        corners = [
            (int(rng.integers(canvas.width - stamp.width + 1)), int(rng.integers(canvas.height - stamp.height + 1)))
            for _ in range(50)
        ]
        rows = np.array([[x, y, x + stamp.width, y + stamp.height] for x, y in corners], dtype=np.float64)
        covered = pairwise_iou(rows, np.array(boxes)).max(axis=1) if boxes else np.zeros(len(rows))
        best = int(covered.argmin())
        canvas.paste(stamp, corners[best], stamp)
        boxes.append(rows[best].tolist())
        phrases.append(path.with_suffix(".txt").read_text("utf-8").split("\n", 1)[0].strip(" ."))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return Composite(buffer.getvalue(), phrases, np.array(boxes) / (canvas.size * 2))


def read_scenes(folder: Path, half: str, count: int) -> list[Composite]:
    """Read every second of the first `2 * count` test scenes of a collection, such as that of tools/build_small.py."""
    collection, scenes = Collection.open(folder), []
    for row in collection.rows("test", {"source": "scenes"})[HALVES.index(half) : 2 * count : 2]:
        regions = collection.record(int(row)).regions
        if regions:
            boxes_T4 = np.array([region.box.to_array() for region in regions])
            slices = tuple(region.slice for region in regions)
            phrases = [region.phrase for region in regions]
            scenes.append(Composite(collection.image_bytes(int(row)), phrases, boxes_T4, slices))
    return scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("/"), help="folder of installed or unpacked packages")
    parser.add_argument("--model", default="bridge")
    parser.add_argument("--images", type=int, default=70, help="composites, or scenes, of each half")
    parser.add_argument("--scenes", type=Path, help="collection whose test scenes are measured instead")
    parser.add_argument("--rule", choices=LOCATE_RULES, help="rule of the boxes; by default the model's")
    parser.add_argument("--work", type=Path, default=Path("runs/search-quality"), help="folder for photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    model, cache = open_localizer(options.model), TextCache()
    file = "composites" if options.scenes is None else "scenes"
    rows = {}
    for half in HALVES:
        if options.scenes is None:
            composites = make_composites(options.packages, options.work, half, options.images)
        else:
            composites = read_scenes(options.scenes, half, options.images)
        hits: dict[str, list[bool]] = {}
        refused: dict[str, list[bool]] = {"present, right box": [], "present": [], "absent": []}
        sheet = []
        for row, image in enumerate(track(composites, description=half)):
            absent = composites[(row + 1) % len(composites)].phrases
            absent = [phrase for phrase in absent if phrase not in image.phrases]
            located = locate_phrases(model, image.data, [*image.phrases, *absent], rule=options.rule, cache=cache)
            proposals = propose(model, encode_image(model, image.data))
            for index, each in enumerate(located):
                if index >= len(image.phrases):
                    refused["absent"].append(not each.has_match)
                    continue
                truth_14 = image.boxes_T4[index : index + 1]
                is_right = bool(pairwise_iou(np.array([each.box]), truth_14)[0, 0] >= _MIN_IOU)
                hits.setdefault("found", []).append(is_right)
                if image.slices:
                    hits.setdefault(f"found, {image.slices[index]}", []).append(is_right)
                refused["present"].append(not each.has_match)
                if is_right:
                    refused["present, right box"].append(not each.has_match)
                if proposals is not None:
                    best = pairwise_iou(proposals.boxes_K4.cpu().double().numpy(), truth_14).max()
                    hits.setdefault("best of all proposals", []).append(bool(best >= _MIN_IOU))
                for name, boxes in baseline_boxes(1, seed=3 * row + index).items():
                    hits.setdefault(name, []).append(bool(pairwise_iou(boxes, truth_14)[0, 0] >= _MIN_IOU))
            if len(sheet) < 10:
                sheet.append((image, located))
        options.out.mkdir(parents=True, exist_ok=True)
        _draw(sheet, options.out / f"{file}-{half.replace(' ', '-')}.png")
        shares = {name: round(float(np.mean(values)), 3) for name, values in hits.items()}
        not_found = {name: round(float(np.mean(values)), 3) for name, values in refused.items()}
        counts = {name: len(values) for name, values in hits.items() if name.startswith("found")}
        rows[half] = {"n": counts, "hits": shares, "refused": not_found}
        print(half, rows[half])
    result = {"machine": machine(), "model": options.model, "rule": options.rule, "rows": rows}
    write_json_atomically(options.out / f"{file}.json", result)


def _draw(sheet: Sequence[tuple[Composite, Sequence]], path: Path) -> None:
    """Draw ten images with the first phrase's box (green) and what was found (red)."""
    tiles = Image.new("RGB", (5 * 330, 2 * 370), "white")
    for number, (image, located) in enumerate(sheet):
        picture = decode(image.data)
        draw = ImageDraw.Draw(picture)
        for box, color in ((image.boxes_T4[0], "lime"), (located[0].box, "red")):
            x1, y1, x2, y2 = np.array(box) * (picture.size * 2)
            draw.rectangle((x1, y1, x2, y2), outline=color, width=5)
        picture.thumbnail((320, 320))
        x, y = 330 * (number % 5), 370 * (number // 5)
        tiles.paste(picture, (x, y + 30))
        ImageDraw.Draw(tiles).text((x + 4, y + 4), image.phrases[0][:50], fill="black")
    tiles.save(path)


if __name__ == "__main__":
    main()
