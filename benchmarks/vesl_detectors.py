"""Which detector labels regions best: right boxes of phrases on photographic composites and on drawn scenes.

    foveate collect scenes --out scenes
    python -m benchmarks.vesl_detectors --packages FOLDER --scenes scenes --out bench

Recall: share of true boxes that the detector gives to their phrase (IoU of at least .5). Precision: share of its boxes
that are such.
Composites are those of benchmarks/composites.py, of the half that chose no weight; scenes are every second of the test
split. Shuffled boxes: those that a detector gives the phrases of the next image that are not of this one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine
from benchmarks.composites import HALVES, Composite, make_composites, read_scenes
from foveate.caption.vesl.detection import Detector, DetectorInput, find_detector
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.core.recipes import validate
from foveate.metrics.intervals import wilson_interval
from foveate.records.boxes import pairwise_iou
from foveate.records.collection import Collection
from foveate.records.images import decode

_MIN_IOU = 0.5


def measure(detector: Detector, images: Sequence[Composite], phrases: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Detect `phrases[i]` in `images[i]` and count the boxes that lie on the phrase's own."""
    right = found = true = boxes_in_all = 0
    for image, asked in zip(track(images, description=detector.name), phrases, strict=True):
        pixels = decode(image.data)
        (boxes,) = detector.detect([DetectorInput(0, "image", pixels, *pixels.size)], [asked])
        iou_KT = pairwise_iou(boxes.boxes_K4, image.boxes_T4)
        same_KT = np.array([[asked[each] == phrase for phrase in image.phrases] for each in boxes.phrase_K], bool)
        hit_KT = (iou_KT >= _MIN_IOU) & same_KT.reshape(iou_KT.shape)
        boxes_in_all += len(boxes.boxes_K4)
        right += int(hit_KT.any(axis=1).sum())
        found += int(hit_KT.any(axis=0).sum())
        true += len(image.phrases)
    asked = sum(map(len, phrases))
    return {"asked": asked, "precision": _share(right, boxes_in_all), "recall": _share(found, true)}


def _share(hits: int, n: int) -> dict[str, Any]:
    interval = wilson_interval(hits, n)
    return {"n": n, "value": None if interval is None else asdict(interval)}


def _shuffle(images: Sequence[Composite]) -> list[list[str]]:
    """Give each image the phrases of the next one that it has not itself."""
    others = [*images[1:], images[0]]
    return [
        [phrase for phrase in dict.fromkeys(other.phrases) if phrase not in image.phrases] or ["nothing"]
        for image, other in zip(images, others, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("/"), help="folder of installed or unpacked packages")
    parser.add_argument("--scenes", type=Path, required=True, help="collection of `foveate collect scenes`")
    parser.add_argument("--detectors", nargs="+", default=["nanodet", "mllm"])
    parser.add_argument("--images", type=int, default=70, help="of each kind")
    parser.add_argument("--work", type=Path, default=Path("runs/search-quality"), help="folder for photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    kinds = {
        "composites": make_composites(options.packages, options.work, HALVES[1], options.images),
        "scenes": read_scenes(options.scenes, HALVES[1], options.images),
    }
    with Collection.open(options.scenes) as collection:
        rows: dict[str, Any] = {}
        for name in options.detectors:
            detector_kind = find_detector(name)
            settings = validate(detector_kind.settings, {}, where="--detectors")
            detector = detector_kind.open(settings, collection, None)
            for kind, images in kinds.items():
                # A phrase that stands twice in an image has two true boxes, and is asked for once.
                found = measure(detector, images, [list(dict.fromkeys(image.phrases)) for image in images])
                shuffled = measure(detector, images, _shuffle(images))
                rows[f"{name}, {kind}"] = {**found, "shuffled": shuffled}
                print(f"{name}, {kind}", rows[f"{name}, {kind}"], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(options.out / "vesl_detectors.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
