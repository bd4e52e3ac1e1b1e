"""Commands about a survey of many images: seconds and peak memory of each, in a process of its own.

    python -m benchmarks.species_survey --out DIR --images 50000

The survey has bursts of 1 to 12 images at 50 cameras, two boxes of MegaDetector on each image, a model of 100 classes
that has looked at both, and answers of a person about one event in twenty. No network runs: scores are drawn. Images
are of 32 x 24 pixels, since `check` and `review` decode few of them. Seconds are the processor's, with the start of
Python.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.species_stages import build_classes, draw_bursts
from foveate.core.files import write_json_atomically
from foveate.records import tables
from foveate.records.collection import Collection
from foveate.records.writer import CollectionWriter
from foveate.species.predictions import (
    BOXES,
    IMAGES,
    ScorePart,
    describe_images,
    write_classes,
    write_config,
    write_part,
)
from foveate.survey.importers.results import add_results
from foveate.survey.store import make_context, survey_rows, write_survey
from foveate.survey.survey import Survey
from foveate.survey.types import Deployment, Medium

_CAMERAS, _PER_PART, _ANSWERED = 50, 256, 20
_FIRST = datetime(2026, 3, 1)
_PACKAGE = ("--coordinate-digits", "2", "--contributor", "A. Person", "--utc-offset", "+01:00")
# Name -> arguments; in this order, since some need what an earlier one writes.
COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("species", "check", "survey", "--no-images"),
    "check with images": ("species", "check", "survey"),
    "decide": ("species", "decide", "results"),
    "review": ("species", "review", "results"),
    "review --corrections": ("species", "review", "results", "--corrections", "answers.csv"),
    "review again": ("species", "review", "results", "--out", "again"),
    "summary": ("species", "summary", "results", "--out", "tables"),
    "export csv": ("species", "export", "results", "--to", "csv"),
    "export megadetector": ("species", "export", "results", "--to", "megadetector"),
    "export wildlife-insights": ("species", "export", "results", "--to", "wildlife-insights", "--project", "1"),
    "export camtrap-dp": ("species", "export", "results", "--to", "camtrap-dp", *_PACKAGE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[*COMMANDS], help="names of commands, as printed")
    options = parser.parse_args()
    if not (options.out / "results").is_dir():
        write_survey_folder(options.out, options.images, options.classes)
    rows = {name: measure(options.out, COMMANDS[name]) for name in options.only}
    for name, row in rows.items():
        print(f"{name:<26} {row['processor_s']:7.1f} s {row['peak_mb']:7.0f} MB")
    write_json_atomically(options.out / "species_survey.json", {"images": options.images, "commands": rows})


def measure(folder: Path, arguments: tuple[str, ...]) -> dict[str, float]:
    """Run a command in a process of its own; return its seconds and the peak of its memory."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-c", _CHILD, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    used = json.loads(done.stderr.splitlines()[-1])
    return {"processor_s": used["seconds"], "wall_s": time.monotonic() - began, "peak_mb": used["kilobytes"] / 1e3}


# The peak is read in the child itself: that of all children of a process never falls.
_CHILD = """
import json, resource, sys
from foveate.cli.main import main
try:
    code = main()
except SystemExit as ending:
    code = ending.code
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": used.ru_utime + used.ru_stime, "kilobytes": peak}), file=sys.stderr)
sys.exit(code or 0)
"""


def write_survey_folder(folder: Path, count: int, num_classes: int) -> None:
    """Write the survey, results of MegaDetector in it, what `predict` leaves, and a person's answers."""
    folder.mkdir(parents=True, exist_ok=True)
    taxa, classes = build_classes(num_classes)
    probabilities_NK, events_N = draw_bursts(count, classes, taxa)
    frame_N = np.arange(count) - np.searchsorted(events_N, events_N)
    write_images(folder / "survey", events_N.tolist(), frame_N.tolist())
    add_results(folder / "survey", write_detections(folder / "md.json", events_N))
    results = folder / "results"
    results.mkdir()
    collection = Collection.open(folder / "survey")
    keys = pa.array(collection.keys, pa.string())
    config = {"collection": str((folder / "survey").resolve()), "split": None, "view": {"view": "crop"}}
    config |= {"model": {"path": "runs/model", "sha256": "0" * 64}, "features": None, "hours": [], "places": []}
    write_config(results, config | {"images_per_part": _PER_PART, "created": "2026-06-01T00:00:00+00:00"})
    write_classes(results, classes, taxa)
    # The second box of every tenth image shows another species.
    others_NK = np.where((np.arange(count) % 10 == 0)[:, None], np.roll(probabilities_NK, 1, axis=1), probabilities_NK)
    for number in range(-(-count // _PER_PART)):
        rows = slice(number * _PER_PART, (number + 1) * _PER_PART)
        size = len(probabilities_NK[rows])
        boxes = {"box_rows_B": np.arange(size), "box_probabilities_BK": others_NK[rows]}
        write_part(results, number, ScorePart("", probabilities_NK[rows], {}, {}, **boxes))
    columns: dict[str, Any] = {"key": keys, **describe_images(collection, np.arange(count), Survey.open(collection))}
    texts = {"status": "ok", "failure": "", "scored": True, "detector": "MegaDetector v5a", "cropped": True}
    columns |= {name: pa.repeat(pa.scalar(value), count) for name, value in texts.items()}
    tables.write_table(results / IMAGES, pa.table(columns))
    tables.write_table(results / BOXES, list_boxes(keys))
    write_answers(folder / "answers.csv", collection.keys, events_N.tolist(), taxa.names[-1])


def write_images(folder: Path, events: list[int], frames: list[int]) -> None:
    """Write the survey: cameras one after the other, a burst every 20 minutes."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 120, 60)).save(buffer, "PNG")
    num_events = events[-1] + 1
    with CollectionWriter(folder, source="cards") as writer:
        deployments = [
            Deployment(f"camera-{number:02}", f"camera-{number:02}", 48.1 + number / 100, 11.5, utc_offset="+01:00")
            for number in range(_CAMERAS)
        ]
        for number, (event, frame) in enumerate(zip(events, frames, strict=True)):
            deployment = deployments[event * _CAMERAS // num_events]
            key = f"{deployment.id}/IMG_{number:06}"
            moment = _FIRST + timedelta(minutes=20 * (event % (num_events // _CAMERAS + 1)), seconds=frame)
            medium = Medium(key, deployment.id, time=moment.isoformat(sep=" "), file=f"{key}.PNG")
            # Bytes behind the end of an image, which decoders do not read, make each file another one.
            data = buffer.getvalue() + number.to_bytes(4, "big")
            context = make_context(medium, deployment)
            writer.add(key, data, context=context, extra=survey_rows(medium), group=deployment.id)
        write_survey(writer, deployments=deployments)


def write_detections(path: Path, events_N: np.ndarray) -> Path:
    """Write results of MegaDetector: two animals on each image, a person on one event in fifty."""
    num_events = int(events_N[-1]) + 1
    images = []
    for number, event in enumerate(events_N.tolist()):
        category = "2" if event % 50 == 0 else "1"
        boxes = [{"category": category, "conf": 0.9, "bbox": [0.1, 0.1, 0.4, 0.5]}]
        boxes.append({"category": "1", "conf": 0.5, "bbox": [0.5, 0.4, 0.3, 0.4]})
        file = f"camera-{event * _CAMERAS // num_events:02}/IMG_{number:06}.PNG"
        images.append({"file": file, "detections": boxes})
    content = {"info": {"format_version": "1.6", "detector": "MegaDetector v5a"}, "images": images}
    path.write_text(
        json.dumps({**content, "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"}}),
        encoding="utf-8",
    )
    return path


def list_boxes(keys: pa.Array) -> pa.Table:
    """Return the two boxes of each image as `predict` stores them; the model has looked at both."""
    count = len(keys)
    corners = {"x1": (0.1, 0.5), "y1": (0.1, 0.4), "x2": (0.5, 0.8), "y2": (0.6, 0.8), "score": (0.9, 0.5)}
    columns: dict[str, Any] = {"key": keys.take(pa.array(np.repeat(np.arange(count), 2)))}
    columns |= {name: np.tile(values, count) for name, values in corners.items()}
    columns |= {"label": ["animal"] * (2 * count), "source": ["detector:MegaDetector v5a"] * (2 * count)}
    return pa.table({**columns, "used": np.tile([True, False], count), "crop": np.tile([0, 1], count)})


def write_answers(path: Path, keys: list[str], events: list[int], name: str) -> None:
    """Write answers about the first image of one event in twenty, as a table of files and species."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "species"))
        for number, event in enumerate(events):
            if event % _ANSWERED == 0 and (number == 0 or events[number - 1] != event):
                writer.writerow((f"{keys[number]}.PNG", name if event % 40 else "blank"))


if __name__ == "__main__":
    main()
