"""Decide about a results folder of many images in this process; print seconds of the processor and the peak in MB.

    python tests/species/big_results.py FOLDER IMAGES CLASSES

The survey has a box, a species and a time for each image of 50 cameras; probabilities are drawn, no image is read but
the samples of the page.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are no package of the wheel

from benchmarks.species_stages import build_classes, draw_bursts  # noqa: E402

from foveate.core.devices import peak_gigabytes  # noqa: E402
from foveate.records import tables  # noqa: E402
from foveate.records.collection import Collection  # noqa: E402
from foveate.species.decide_results import decide_results  # noqa: E402
from foveate.species.decisions import Stages  # noqa: E402
from foveate.species.predictions import (  # noqa: E402
    BOXES,
    IMAGES,
    Predictions,
    ScorePart,
    describe_images,
    write_classes,
    write_config,
    write_part,
)
from foveate.species.summary import summarize  # noqa: E402
from foveate.survey.survey import Survey  # noqa: E402

_IMAGES_PER_PART = 256


def write_results(survey: Path, folder: Path, num_classes: int) -> None:
    """Write what `foveate species predict` leaves."""
    taxa, classes = build_classes(num_classes)
    collection = Collection.open(survey)
    count = len(collection.keys)
    probabilities_NK, _ = draw_bursts(count, classes, taxa)
    folder.mkdir()
    config = {"collection": str(survey), "split": None, "model": {"path": "model"}, "view": {"view": "crop"}}
    config |= {"features": None, "hours": [], "places": [], "images_per_part": _IMAGES_PER_PART, "created": "2024"}
    write_config(folder, config)
    write_classes(folder, classes, taxa)
    for number in range(-(-count // _IMAGES_PER_PART)):
        rows = slice(number * _IMAGES_PER_PART, (number + 1) * _IMAGES_PER_PART)
        write_part(folder, number, ScorePart("", probabilities_NK[rows], {}))
    keys = pa.array(collection.keys, pa.string())
    texts = {"status": "ok", "failure": ""} | {"scored": True, "cropped": True}
    columns = {"key": keys, **describe_images(collection, np.arange(count), Survey.open(collection))}
    columns |= {name: pa.repeat(pa.scalar(value), count) for name, value in texts.items()}
    tables.write_table(folder / IMAGES, pa.table(columns))
    corners = {name: np.full(count, value) for name, value in (("x1", 0.1), ("y1", 0.1), ("x2", 0.5), ("y2", 0.6))}
    texts = {"label": "animal", "source": "detector:md", "used": True}
    repeated = {name: pa.repeat(pa.scalar(value), count) for name, value in texts.items()}
    tables.write_table(folder / BOXES, pa.table({"key": keys, **corners, "score": np.full(count, 0.9), **repeated}))


def main() -> None:
    folder, images, num_classes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    survey, results = folder / "survey", folder / "results"
    if not survey.is_dir():
        script = ROOT / "tests/survey/big_survey.py"
        subprocess.run([sys.executable, script, folder, str(images), "coco-camera-traps"], check=True)
    # In another process: its memory is not that of the decision.
    writer = multiprocessing.get_context("fork").Process(target=write_results, args=(survey, results, num_classes))
    writer.start()
    writer.join()
    began = time.process_time()
    predictions = Predictions.open(results)
    decisions = decide_results(predictions, Stages())
    decided, peak = time.process_time(), peak_gigabytes() * 1024
    summarize(predictions, results)
    rest = {"page_s": time.process_time() - decided, "mb_with_page": peak_gigabytes() * 1024}
    print(json.dumps({"decisions": len(decisions), "decide_s": decided - began, "mb": peak, **rest}))


if __name__ == "__main__":
    main()
