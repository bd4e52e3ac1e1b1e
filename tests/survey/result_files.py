"""Files of results of detectors, and the observations that a survey has of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveate.records.collection import Collection
from foveate.survey.types import Observation

FORMATS = Path(__file__).parent.parent / "goldens" / "cosmo" / "formats"
FOX = "t044;mammalia;carnivora;canidae;vulpes;vulpes;red fox"


def write(folder: Path, content: object, name: str = "results.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def change(path: str, value: object) -> dict[str, Any]:
    """The valid MegaDetector file with one value changed; "images/0/detections/0/conf" names it."""
    content = json.loads((FORMATS / "megadetector_1.6.json").read_text())
    *above, last = [int(part) if part.isdigit() and part != "9" else part for part in path.split("/")]
    target = content
    for part in above:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return content


def observations_of(survey: Path) -> dict[str, list[Observation]]:
    with Collection.open(survey) as collection:
        rows = [Observation.from_row(row) for row in collection.table("observations").to_pylist()]
    return {key: [row for row in rows if row.key == key] for key in dict.fromkeys(row.key for row in rows)}
