"""A run to review, small and quick: events of three frames with one or two kinds, people, and empty frames."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from card_survey import ColorModel, draw_frame, name_file, write_boxes, write_card

from foveate.species.decide_results import decide_results
from foveate.species.decisions import Stages
from foveate.species.export import export_predictions
from foveate.species.predict import predict
from foveate.species.predictions import CONFIG, Predictions
from foveate.species.settings import ExportSettings, PredictSettings
from foveate.survey.importers.results import add_results

PLACES = ((0.05, 0.5, 0.4, 0.45), (0.55, 0.5, 0.4, 0.45), (0.3, 0.02, 0.4, 0.4))
FOX, LYNX, HARE = "Vulpes vulpes", "Lynx lynx", "Lepus europaeus"
FORMATS = ("csv", "camtrap-dp", "megadetector", "wildlife-insights")


def write_run(folder: Path, events: int) -> Path:
    """Write a survey and its results into `folder`, with people in one box of seven; return the results."""
    rng = np.random.default_rng(7)
    frames: list[list[tuple[Any, ...]]] = []
    for _ in range(3 * events):
        pairs = [("person" if rng.random() < 0.15 else "animal", int(rng.integers(3))) for _ in range(rng.integers(4))]
        frames.append([(name, 0.9 - 0.1 * n, PLACES[n], kind) for n, (name, kind) in enumerate(pairs)])
    write_card(folder / "card", [draw_frame(number, frame) for number, frame in enumerate(frames)])
    boxes = {number: [box[:3] for box in frame] for number, frame in enumerate(frames)}
    add_results(folder / "card", write_boxes(folder / "md.json", boxes))
    model: Any = ColorModel(folder)
    predict(model, folder / "card", folder / "results", PredictSettings(), device="cpu", workers=1)
    decide_results(Predictions.open(folder / "results"), Stages())
    return folder / "results"


def copy_run(results: Path, folder: Path) -> Path:
    """Copy a run with its survey; return the copied results."""
    shutil.copytree(results.parent, folder)
    config = json.loads((folder / "results" / CONFIG).read_text(encoding="utf-8"))
    config["collection"] = str(folder / "card")
    (folder / "results" / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder / "results"


def list_files(events: int) -> list[str]:
    return [name_file(number) for number in range(3 * events)]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def export(results: Path, folder: Path) -> dict[str, str]:
    """Write all exports of a run; return the text of each file that holds rows, without the time of writing."""
    options: dict[str, Any] = {"camtrap-dp": {"coordinate_digits": "2", "contributor": ("A. Person",)}}
    options["wildlife-insights"] = {"project": "p"}
    for name in FORMATS:
        settings = ExportSettings(format=name, **options.get(name, {}))
        export_predictions(Predictions.open(results), folder / name, settings)
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "datapackage.json"]
    texts = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in written}
    # Images were taken in another offset.
    return {name: re.sub(r"\d{4}-\d\d-\d\dT[\d:]{8}(\+00:00|Z)", "now", text) for name, text in texts.items()}
