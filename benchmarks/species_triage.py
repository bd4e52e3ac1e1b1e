"""Boxes and triage of the shipped detector on real camera-trap frames, before and after their scores are corrected.

    python -m benchmarks.species_triage --frames CAMERA_TRAPS/frames [--animl ANIML_PY/examples] --out DIR

`species_triage.csv` has boxes of animals that a person drew on the frames of google/cameratrapai, ENA24 and the Camtrap
DP example, and what the frames of conservationtechlab/animl-py show; one frame without an animal but with its shadow
is left out. A crop shows an animal if it holds half of one's box, and animals are a tenth of it; of the burst of a
heron one frame counts. Animal-free scenes are few: so the largest part of each frame beside its animals is one, too.
The threshold is chosen on every second frame, with its part, as the one with the most correct answers of animals and
animal-free scenes in equal weight; all other frames are reported.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import machine
from foveate.core.files import write_json_atomically
from foveate.metrics.intervals import wilson_interval
from foveate.species.boxes import AnimalProposer, ScoredBoxes
from foveate.species.crops import crop_view
from foveate.species.settings import BoxSettings
from foveate.vision.detectors import CLASS_NAMES, NanoDetProposer, ProposalSettings

ANNOTATIONS = Path(__file__).with_suffix(".csv")
_BURST, _FRAME_OF_BURST = "mica-", "RCNX0034"
_MARGIN = 0.02  # between an animal and the animal-free part


@dataclass(frozen=True)
class Scene:
    """A frame, or the part of one beside its animals."""

    name: str
    kind: str
    image: Image.Image
    animals_A4: NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True, help="folder with the frames of the set camera-traps")
    parser.add_argument("--animl", type=Path, help="folder with the frames of the set animl-py")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    folders = {"camera-traps": options.frames} | ({"animl-py": options.animl} if options.animl else {})
    before, after, scenes = list[ScoredBoxes](), list[ScoredBoxes](), list[tuple[str, str, Any]]()
    nanodet = NanoDetProposer(ProposalSettings(threshold=0.05), device="cpu")
    proposer = AnimalProposer(BoxSettings(threshold=0.0), device="cpu")
    right = {"before": 0, "after": 0, "scenes": 0}
    for scene in read_scenes(folders):
        sizes = [scene.image.size]
        (raw,) = nanodet.propose([nanodet.to_square(scene.image)], sizes)
        names = tuple(CLASS_NAMES[index] for index in raw.classes_K.tolist())
        before.append(ScoredBoxes(raw.boxes_K4, raw.scores_K, names))
        buffer = io.BytesIO()
        scene.image.save(buffer, "PNG")
        after += proposer.propose([proposer.load(buffer.getvalue())], sizes)
        scenes.append((scene.name, scene.kind, len(scene.animals_A4)))
        if len(scene.animals_A4):
            right["scenes"] += 1
            for name, boxes in (("before", before[-1]), ("after", after[-1])):
                right[name] += shows_animal(boxes, scene)
    print(f"crops that show an animal: {right['before']} before, {right['after']} after, of {right['scenes']}")
    kinds = np.array([kind for _, kind, _ in scenes])
    result: dict[str, Any] = {"machine": machine(), "crops": right}
    for name, found in (("before", before), ("after", after)):
        # A box of a person or vehicle is none of an animal; before, classes were not read.
        best = [
            max((s for s, k in zip(b.scores_K, b.labels_K, strict=True) if k not in ("human", "vehicle")), default=0.0)
            for b in found
        ]
        result[name] = measure_triage(np.array(best), kinds, [scene for scene, _, _ in scenes])
        print(name, result[name])
    others = [
        (scene, kind, next(iter(boxes.labels_K), "")) for (scene, kind, _), boxes in zip(scenes, after, strict=True)
    ]
    result["people and vehicles"] = [entry for entry in others if {"human", "vehicle"} & set(entry[1:])]
    print(result["people and vehicles"])
    options.out.mkdir(parents=True, exist_ok=True)
    write_json_atomically(options.out / "species_triage.json", result)


def read_scenes(folders: dict[str, Path]) -> Iterator[Scene]:
    """Yield the annotated frames that are there, and the largest part of each beside its animals."""
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    with ANNOTATIONS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["set"], row["file"]), []).append(row)
    for (name, file_name), of_frame in rows.items():
        if file_name.startswith(_BURST) and _FRAME_OF_BURST not in file_name:
            continue
        if name not in folders or not (folders[name] / file_name).is_file():
            continue
        image = Image.open(folders[name] / file_name).convert("RGB")
        image.thumbnail((1400, 1400), Image.Resampling.BICUBIC)
        corners = [[float(row[corner]) for corner in ("x1", "y1", "x2", "y2")] for row in of_frame if row["x1"]]
        kind = of_frame[0]["kind"]
        animals_A4 = np.array(corners if kind == "animal" else []).reshape(-1, 4)
        yield Scene(file_name, kind, image, animals_A4)
        if len(animals_A4):
            part = image.crop(largest_rest(animals_A4, *image.size))
            yield Scene(f"part of {file_name}", "blank", part, np.zeros((0, 4)))


def largest_rest(animals_A4: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the largest part left of, right of, above or below all animals, in pixels."""
    x1, y1 = animals_A4[:, :2].min(axis=0) - _MARGIN
    x2, y2 = animals_A4[:, 2:].max(axis=0) + _MARGIN
    parts = np.array([(0, 0, x1, 1), (x2, 0, 1, 1), (0, 0, 1, y1), (0, y2, 1, 1)])
    sides = (parts[:, 2:] - parts[:, :2]).clip(0)
    best = parts[sides.prod(axis=1).argmax()] * np.array((width, height) * 2)
    left, top, right, bottom = best.astype(int).tolist()
    return left, top, right, bottom


def shows_animal(boxes: ScoredBoxes, scene: Scene) -> bool:
    """Whether the crop of the best box shows an animal, see above."""
    if not len(boxes.boxes_K4):
        return False
    crop = crop_view(boxes.boxes_K4[0], width=scene.image.width, height=scene.image.height, margin=0.1).crop
    if crop is None:
        return False
    corners, animals = crop.to_array(), scene.animals_A4
    lower, upper = np.maximum(corners[:2], animals[:, :2]), np.minimum(corners[2:], animals[:, 2:])
    shared_A = (upper - lower).clip(0).prod(axis=1)
    area_A = (animals[:, 2:] - animals[:, :2]).prod(axis=1)
    area = float((corners[2:] - corners[:2]).prod())
    return bool((shared_A >= 0.5 * area_A).any() and shared_A.sum() >= 0.1 * area)


def format_interval(hits: int, count: int) -> str:
    """Return the share with its 95 % interval (Wilson)."""
    interval = wilson_interval(hits, count)
    return "" if interval is None else f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def measure_triage(best_S: NDArray[np.float64], kinds_S: NDArray[np.str_], names: list[str]) -> dict[str, Any]:
    """Choose a threshold on every second frame, and count animals and false alarms on the others."""
    numbers: dict[str, int] = {}
    # A part goes with its frame: its background was seen, too.
    frames = [numbers.setdefault(name.removeprefix("part of "), len(numbers)) for name in names]
    is_chosen_S = np.array([number % 2 == 0 for number in frames])
    is_animal_S = kinds_S == "animal"
    candidates = np.round(np.arange(0.05, 0.96, 0.01), 2)

    def rates(threshold: float, rows_S: NDArray[np.bool_]) -> tuple[int, int, int, int]:
        animals, others = best_S[rows_S & is_animal_S], best_S[rows_S & ~is_animal_S]
        return int((animals >= threshold).sum()), len(animals), int((others >= threshold).sum()), len(others)

    def balance(threshold: float) -> float:
        hits, animals, alarms, others = rates(threshold, is_chosen_S)
        return hits / max(animals, 1) - alarms / max(others, 1)

    threshold = float(max(candidates, key=balance))
    hits, animals, alarms, others = rates(threshold, ~is_chosen_S)
    return {
        "threshold": threshold,
        "other half": f"{hits} of {animals} animals, {alarms} of {others} animal-free scenes",
        "recall interval": format_interval(hits, animals),
        "false alarm interval": format_interval(alarms, others),
        "all frames": {
            f"{value:g}": rates(value, np.ones(len(best_S), dtype=bool)) for value in (0.2, 0.3, threshold, 0.4)
        },
    }


if __name__ == "__main__":
    main()
