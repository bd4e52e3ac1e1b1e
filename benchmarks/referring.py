"""Evaluators of boxes in answers against loops over the answers: `python -m benchmarks.referring --out DIR`.

The loops are written as pycocotools and Ferret write theirs: each answer is parsed letter by letter, its boxes become a
small array, and each pair of texts is normalized and compared. Both sides must give equal scores. Ratios are of
processor seconds: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.metrics.referring import RECALL_RANKS, TruePhrase, score_boxes, score_phrases
from foveate.records.box_text import fold_phrase, parse_streaming
from foveate.records.boxes import PixelBox

NAMES = tuple(f"{size} {name}" for size in ("a small", "the", "a red") for name in ("dog", "man", "car", "hat", "tree"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    answers, true, sizes, phrases, captions = make_answers(options.answers)
    timings: dict[str, Timing] = {}
    ratios: dict[str, Ratio] = {}
    results: dict[str, object] = {}

    def ours_refcoco() -> None:
        scores = score_boxes(answers, true, sizes, phrases, mode="official")
        results["ours refcoco"] = scores.summarize()[""]

    def ours_flickr() -> None:
        results["ours flickr"] = score_phrases(answers, captions, sizes, mode="official").recall()

    def loop_refcoco() -> None:
        results["loop refcoco"] = score_boxes_in_a_loop(answers, true, sizes, phrases)

    def loop_flickr() -> None:
        results["loop flickr"] = score_phrases_in_a_loop(answers, captions, sizes)

    for name, ours, loop in (("refcoco", ours_refcoco, loop_refcoco), ("flickr", ours_flickr, loop_flickr)):
        pair = {f"ours {name}": ours, f"loop {name}": loop}
        timings |= compare(pair, repeats=options.repeats, warmup=0)
        ratios[name] = ratio(timings, f"ours {name}", f"loop {name}", processor=True)
        if results[f"ours {name}"] != results[f"loop {name}"]:
            raise SystemExit(f"{name}: unequal scores {results}")
    publish("referring", timings, out=options.out, ratios=ratios, items=options.answers, unit="answers")


def make_answers(count: int) -> tuple[list[str], np.ndarray, np.ndarray, list[str], list[list[TruePhrase]]]:
    """Draw answers with one to four boxes, one in fifty of them malformed, and what is true of their images."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 1200, (count, 2))
    answers, true, phrases, captions = [], [], [], []
    for row in range(count):
        names = rng.choice(NAMES, rng.integers(1, 5), replace=False).tolist()
        corners = np.sort(rng.integers(0, 1000, (len(names), 2, 2)), axis=1).reshape(len(names), 4)
        moved = (corners + rng.integers(-60, 60, corners.shape)).clip(0, 999)
        parts = [f"{name} [{', '.join(map(str, four))}]" for name, four in zip(names, moved.tolist(), strict=True)]
        answers.append("A bad list [x, y]." if row % 50 == 0 else ", ".join(parts) + ".")
        pixels = corners * np.tile(sizes[row], 2) / 1000 + (0, 0, 1, 1)
        pick = int(rng.integers(len(names)))
        true.append(pixels[pick])
        phrases.append(names[pick])
        captions.append(
            [TruePhrase(n, (PixelBox(*four),), ("all things",)) for n, four in zip(names, pixels, strict=True)]
        )
    return answers, np.array(true), sizes, phrases, captions


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    sides = (high - low).clip(min=0)
    shared = sides[..., 0] * sides[..., 1]
    of_a, of_b = ((x[:, 2] - x[:, 0]).clip(0) * (x[:, 3] - x[:, 1]).clip(0) for x in (a, b))
    union = of_a[:, None] + of_b - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def is_same_phrase(a: str, b: str) -> bool:
    fold = fold_phrase.__wrapped__  # the loops remember no phrases
    return fold(a) == fold(b)


def parse(answer: str, size: np.ndarray) -> list[tuple[str, PixelBox]]:
    try:
        return parse_streaming(answer, width=int(size[0]), height=int(size[1]))
    except (ValueError, IndexError):
        return []


def score_boxes_in_a_loop(
    answers: list[str], true: np.ndarray, sizes: np.ndarray, phrases: list[str]
) -> dict[str, float]:
    hits = {"k=1": 0, "mean": 0, "upper bound": 0}
    for answer, truth, size, phrase in zip(answers, true, sizes, phrases, strict=True):
        boxes = []
        for entity, box in parse(answer, size):
            # The official loop compares the phrases and then takes the box either way.
            is_same_phrase(entity, phrase)
            boxes.append([box.x1, box.y1, box.x2, box.y2])
        predicted = np.array(boxes or [[0, 0, 0, 0]], dtype=np.float64)
        iou, mean = box_iou(predicted, truth[None]), box_iou(predicted.mean(0)[None], truth[None])
        hits["k=1"] += iou[0, 0] >= 0.5
        hits["mean"] += mean.max() >= 0.5
        hits["upper bound"] += iou.max() >= 0.5
    return {name: float(count / len(answers)) for name, count in hits.items()}


def score_phrases_in_a_loop(
    answers: list[str], captions: list[list[TruePhrase]], sizes: np.ndarray
) -> dict[int, dict[str, float]]:
    hits: dict[int, dict[str, list[bool]]] = {k: {} for k in RECALL_RANKS}
    for answer, caption, size in zip(answers, captions, sizes, strict=True):
        for entry in caption:
            boxes = []
            # Parsed again for each phrase, as the official loop does.
            for entity, box in parse(answer, size):
                if is_same_phrase(entity, entry.phrase):
                    boxes.append([box.x1, box.y1, box.x2, box.y2])
            true = np.array([[box.x1, box.y1, box.x2, box.y2] for box in entry.boxes])
            truth = [*true[:, :2].min(0), *true[:, 2:].max(0)]
            iou = box_iou(np.array(boxes or [[0, 0, 0, 0]], dtype=np.float64), np.array([truth]))
            for k in RECALL_RANKS:
                best = iou.max() if k == -1 else iou[:k].max()
                for name in ("all", *entry.categories):
                    hits[k].setdefault(name, []).append(bool(best >= 0.5))
    return {k: {name: float(np.mean(values)) for name, values in groups.items()} for k, groups in hits.items()}


if __name__ == "__main__":
    main()
