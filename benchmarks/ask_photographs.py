"""Questions to `foveate ask` about photographs and cut-outs: what is in it, where is it, is it there, and others.

    python -m benchmarks.ask_photographs --packages FOLDER --out bench

24 photographs of the Debian package gcompris-qt-data and 24 cut-outs of tuxpaint-stamps-default (both GPL: read where
they are unpacked, see benchmarks/search_folders.py). Questions, right names and boxes (in fractions of the image, drawn
by hand; of a cut-out its visible part) are in ask_photographs.csv, written before the answers were seen. The first half
chose thresholds, the other is reported. Controls: the same questions about other images, the language model alone, and
a box of the whole image. Then the share of generated test scenes that are not taken for scenes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import machine
from benchmarks.search_folders import find_folder
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.metrics.intervals import wilson_interval
from foveate.multimodal.answers import NOT_FOUND, Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.picture_check import load_picture_check
from foveate.multimodal.prepare import encode_sample
from foveate.multimodal.recognition import SOURCE, UNKNOWN
from foveate.records.boxes import pairwise_iou
from foveate_labs.worlds.scenes import draw_scene

QUESTIONS = Path(__file__).with_suffix(".csv")
FOLDERS = {"gcompris-qt-data": "photographs", "tuxpaint-stamps-default": "stamps"}
HALVES = ("chosen on", "reported")
_SHIFT = 5  # the other image of the control, in the list of a half

Row = dict[str, str]


def read_questions() -> list[Row]:
    """Read the questions with what is right."""
    with QUESTIONS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def find_boxes(row: Row, image: bytes, path: Path) -> np.ndarray:
    """Return the right boxes [B, 4] of a row in [0, 1], of which any counts."""
    if row["boxes"] != "visible":
        return np.array([[float(edge) for edge in box.split()] for box in row["boxes"].split(";")])
    with Image.open(path) as stamp:
        visible = stamp.convert("RGBA").getchannel("A").point(lambda alpha: 255 if alpha > 20 else 0).getbbox()
        assert visible is not None
        return np.array([visible]) / (stamp.size * 2)


def is_named(answer: Answer, names: str) -> bool:
    """Whether the first thing that an answer names has one of the right names."""
    first = answer.text.removeprefix("probably: ").partition(" (.")[0].partition(" [")[0].casefold()
    words = f" {first.replace('(', ' ').replace(')', ' ')} "
    return answer.text != NOT_FOUND and any(f" {name} " in words for name in names.split("|"))


def score(row: Row, answer: Answer, truth_B4: np.ndarray | None, size: tuple[int, int]) -> bool:
    """Whether an answer is right."""
    if row["kind"] == "what":
        return is_named(answer, row["names"])
    if row["kind"] == "is there":
        return answer.text.casefold().startswith(row["names"])
    if row["kind"] == "other":
        return answer.text == UNKNOWN
    assert truth_B4 is not None
    return bool(answer.boxes) and iou_of(answer, truth_B4, size) >= 0.5


def iou_of(answer: Answer, truth_B4: np.ndarray, size: tuple[int, int]) -> float:
    """Return the IoU of the first box with the best right one."""
    box = answer.boxes[0]
    corners = np.array([[box.x1, box.y1, box.x2, box.y2]]) / (size * 2)
    return float(pairwise_iou(corners, truth_B4).max())


def share(values: Sequence[bool]) -> str:
    """Write a share with its 95 % interval."""
    interval = wilson_interval(sum(values), len(values))
    assert interval is not None
    return f"{np.mean(values):.2f} ({interval.low:.2f} to {interval.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("/"), help="folder of installed or unpacked packages")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--alone", action="store_true", help="ask the language model without the check, too")
    parser.add_argument("--scenes", type=int, default=500, help="test scenes for the rate of false alarms")
    parser.add_argument("--work", type=Path, default=Path("runs/search-quality"), help="folder for photographs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    model = open_mllm(options.model)
    assert isinstance(model, Mllm)
    assert model.pictures is not None
    model.pictures.max_images = 64  # each image is asked about as a control of another one, too
    alone = Mllm(model.loaded)
    folders = {package: find_folder(name, options.packages, options.work) for package, name in FOLDERS.items()}
    if None in folders.values():
        raise SystemExit(f"the packages are not below {options.packages}")
    questions = read_questions()
    paths = {row["image"]: Path(str(folders[row["package"]])) / row["image"] for row in questions}
    images = {name: path.read_bytes() for name, path in paths.items()}
    sizes = {name: Image.open(path).size for name, path in paths.items()}
    tables, answers = {}, []
    for package in FOLDERS:
        for half in HALVES:
            rows = [row for row in questions if (row["package"], row["half"]) == (package, half)]
            keys = list(dict.fromkeys(row["image"] for row in rows))
            others = {key: keys[(number + _SHIFT) % len(keys)] for number, key in enumerate(keys)}
            results: dict[str, dict[str, list[bool]]] = {}
            for row in track(rows, description=f"{FOLDERS[package]}, {half}"):
                key, question = row["image"], row["question"]
                truth_B4 = find_boxes(row, images[key], paths[key]) if row["kind"] == "where" else None
                kind = row["kind"] if row["kind"] != "is there" else f"is there, {row['names']}"
                columns = {
                    "ask": (model.ask(images[key], question), sizes[key]),
                    "another image": (model.ask(images[others[key]], question), sizes[others[key]]),
                }
                if options.alone:
                    columns["language model alone"] = (alone.ask(images[key], question), sizes[key])
                for name, (answer, size) in columns.items():
                    results.setdefault(kind, {}).setdefault(name, []).append(score(row, answer, truth_B4, size))
                if truth_B4 is not None:
                    whole = pairwise_iou(np.array([[0.0, 0.0, 1.0, 1.0]]), truth_B4).max()
                    results[kind].setdefault("whole image", []).append(bool(whole >= 0.5))
                first = columns["ask"][0]
                answers.append(row | {"answer": first.text, "right": str(results[kind]["ask"][-1])})
                results.setdefault("answered by recognition", {}).setdefault("ask", []).append(first.source == SOURCE)
            name = f"{FOLDERS[package]}, {half}"
            tables[name] = {kind: {c: share(v) for c, v in columns.items()} for kind, columns in results.items()}
            for column in results["is there, yes"]:
                yes, no = (float(np.mean(results[f"is there, {word}"][column])) for word in ("yes", "no"))
                tables[name].setdefault("is there, balanced", {})[column] = f"{(yes + no) / 2:.2f}"
            print(name, *(f"  {kind}: {columns}" for kind, columns in tables[name].items()), sep="\n")
    check, alarms = load_picture_check(), []
    for index in track(range(options.scenes), description="scenes"):
        scene = draw_scene(seed=23, split="test", index=index, size=(224, 320, 448)[index % 3]).image.convert("RGB")
        vector_D = encode_sample(model.loaded, [scene])[1][0].vector_D
        assert vector_D is not None
        alarms.append(bool(check.are_unlike(vector_D[None])[0]))
    if alarms:
        tables["scenes"] = {"sent to recognition": {"ask": share(alarms)}}
        print("scenes", tables["scenes"])
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "ask-photographs-answers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(answers[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(answers)
    write_json_atomically(options.out / "ask-photographs.json", {"machine": machine(), "tables": tables})


if __name__ == "__main__":
    main()
