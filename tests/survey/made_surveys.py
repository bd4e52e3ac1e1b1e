"""Camtrap DP packages for tests: the golden one with images, with changed tables, or zipped."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from made_images import jpeg

from foveate.records.collection import Collection
from foveate.survey.importers.camtrap_dp import import_camtrap_dp

FORMATS = Path(__file__).parents[1] / "goldens" / "cosmo" / "formats"
GOLDEN = FORMATS / "camtrap_dp"
_BESIDE = Path(__file__).parents[3] / "shared" / "assets" / "camera-traps"
CAMERA_TRAPS = Path(os.environ.get("FOVEATE_CAMERA_TRAPS", _BESIDE))
EXAMPLE = CAMERA_TRAPS / "camtrap-dp-example"
needs_example = pytest.mark.skipif(
    not EXAMPLE.is_dir(), reason="no camera-traps/camtrap-dp-example: name its parent with FOVEATE_CAMERA_TRAPS"
)
KEYS = {"deployments": "deploymentID", "media": "mediaID", "observations": "observationID"}


def copy_package(folder: Path, replaces: Mapping[str, Any] | None = None, *, images: bool = False) -> Path:
    """Copy the golden package; `replaces` maps file names to texts or JSON values."""
    shutil.copytree(GOLDEN, folder)
    for name, content in (replaces or {}).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    for number, row in enumerate(read_rows(folder, "media").values() if images else ()):
        path = folder / row["filePath"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return folder


def read_rows(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """Read a CSV table of a package by its key."""
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {row[KEYS[name]]: row for row in csv.DictReader(file)}


def write_rows(folder: Path, name: str, rows: dict[str, dict[str, str]]) -> None:
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(next(iter(rows.values()))))
        writer.writeheader()
        writer.writerows(rows.values())


def read_descriptor(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "datapackage.json").read_text(encoding="utf-8"))


def import_package(package: Path, target: Path) -> Collection:
    import_camtrap_dp(package, target)
    return Collection.open(target)


def make_incomplete_collection(folder: Path) -> Collection:
    """Import the golden package with all images but the last two."""
    package = copy_package(folder / "package", images=True)
    (package / "media/dep-C/IMG_0008.JPG").unlink()
    (package / "media/dep-C/IMG_0009.JPG").write_bytes(jpeg(9)[:200])
    return import_package(package, folder / "collection")
