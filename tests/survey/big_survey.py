"""Import a survey of many rows in this process; print the peak of its memory in MB.

    python tests/survey/big_survey.py FOLDER ROWS [camtrap-dp|coco-camera-traps|wilds|megadetector|speciesnet]

camtrap-dp is exported again; megadetector and speciesnet add results to the survey that coco-camera-traps left in
FOLDER, or to one that is imported first.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from made_surveys import GOLDEN, import_package, read_rows
from PIL import Image

from foveate.core.devices import peak_gigabytes
from foveate.survey.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp
from foveate.survey.importers.coco_camera_traps import import_coco_camera_traps, import_wilds
from foveate.survey.importers.results import add_results

_FIRST = datetime(2023, 5, 2, tzinfo=UTC)
_CAMERAS, _SPECIES = 50, 200


def make_package(folder: Path, rows: int) -> Path:
    """The golden package with `rows` media and as many observations, in events of four, with boxes."""
    folder.mkdir(parents=True)
    (folder / "datapackage.json").write_bytes((GOLDEN / "datapackage.json").read_bytes())
    (folder / "deployments.csv").write_bytes((GOLDEN / "deployments.csv").read_bytes())
    medium, observation = read_rows(GOLDEN, "media")["m00"], read_rows(GOLDEN, "observations")["o00"]
    with (
        (folder / "media.csv").open("w", newline="") as media,
        (folder / "observations.csv").open("w", newline="") as seen,
    ):
        tables = csv.DictWriter(media, list(medium)), csv.DictWriter(seen, list(observation))
        for table in tables:
            table.writeheader()
        for number in range(rows):
            moment = (_FIRST + timedelta(seconds=7 * number)).isoformat()
            path = f"media/dep-A/{number // 10_000:03d}/IMG_{number:07d}.JPG"
            event = f"event-{number // 4}"
            tables[0].writerow(medium | {"mediaID": f"m{number}", "timestamp": moment, "filePath": path})
            tables[1].writerow(
                observation
                | {"observationID": f"o{number}", "mediaID": f"m{number}", "eventID": event, "eventStart": moment}
                | {"eventEnd": moment, "classificationProbability": f"{number % 1000 / 1000}"}
            )
    return folder


def list_images(rows: int) -> Iterator[tuple[int, str, str]]:
    """Yield number, camera and path of each image."""
    for number in range(rows):
        camera = f"camera-{number * _CAMERAS // rows:02d}"
        yield number, camera, f"{camera}/IMG_{number:07d}.PNG"


def make_images(folder: Path, rows: int) -> Path:
    """Write images that differ in bytes behind their end, which decoders do not read."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (90, 120, 60)).save(buffer, "PNG")
    for number, _, file in list_images(rows):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(buffer.getvalue() + number.to_bytes(4, "big"))
    return folder


def make_coco(path: Path, rows: int) -> Path:
    """Write a COCO Camera Traps file: an annotation with a box for each image, in bursts of four."""
    images, annotations = [], []
    for number, camera, file in list_images(rows):
        moment = (_FIRST + timedelta(seconds=7 * number)).strftime("%Y-%m-%d %H:%M:%S")
        image = {"id": f"i{number}", "file_name": file, "location": camera, "datetime": moment}
        images.append({**image, "seq_id": f"s{number // 4}", "frame_num": number % 4, "width": 32, "height": 24})
        annotation = {"id": f"a{number}", "image_id": f"i{number}", "category_id": number % _SPECIES}
        annotations.append({**annotation, "bbox": [4, 4, 12, 12]})
    categories = [{"id": number, "name": f"genus species{number}" if number else "empty"} for number in range(_SPECIES)]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    return path


def make_wilds(folder: Path, rows: int) -> Path:
    """Write metadata.csv and categories.csv of WILDS."""
    header = ("split", "filename", "y", "location", "sequence", "datetime", "frame_num")
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        for number, camera, name in list_images(rows):
            moment = (_FIRST + timedelta(seconds=7 * number)).strftime("%Y-%m-%d %H:%M:%S")
            table.writerow(("train", name, number % _SPECIES, camera, f"s{number // 4}", moment, number % 4))
    rows_of_classes = [f"{number},{f'genus species{number}' if number else 'empty'}" for number in range(_SPECIES)]
    (folder / "categories.csv").write_text("\n".join(["y,name", *rows_of_classes]) + "\n")
    return folder / "metadata.csv"


def make_results(path: Path, rows: int, format: str) -> Path:
    """Write results with two boxes of three classes each (MegaDetector), or five classes an image (SpeciesNet)."""
    names = [f"id{number};mammalia;order;family;genus;species{number};common {number}" for number in range(_SPECIES)]

    def make_detection(number: int, best: int) -> dict[str, Any]:
        detection = {"category": "1", "conf": 0.9 - 0.1 * number, "bbox": [0.1, 0.1 * number, 0.4, 0.5]}
        classes = [[str((best + rank) % _SPECIES), score] for rank, score in enumerate((0.7, 0.2, 0.05))]
        return detection | ({"classifications": classes} if format == "megadetector" else {"label": "animal"})

    images: list[Mapping[str, Any]] = []
    for number, _, file in list_images(rows):
        detections = [make_detection(box, number) for box in range(2)]
        if format == "megadetector":
            images.append({"file": file, "detections": detections})
            continue
        classes = [names[(number + rank) % _SPECIES] for rank in range(5)]
        scores = {"classes": classes, "scores": [0.6, 0.2, 0.1, 0.05, 0.01]}
        decision = {"prediction": classes[0], "prediction_score": 0.6, "prediction_source": "classifier"}
        images.append({"filepath": file, "classifications": scores, "detections": detections, **decision})
    content: dict[str, Any] = {"predictions": images}
    if format == "megadetector":
        content = {"info": {"format_version": "1.6", "detector": "md"}, "detection_categories": {"1": "animal"}}
        content["classification_categories"] = {str(number): name.split(";")[-1] for number, name in enumerate(names)}
        content["classification_category_descriptions"] = {str(number): name for number, name in enumerate(names)}
        content["images"] = images
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make_source(folder: Path, rows: int, format: str) -> Path:
    """Write what is imported, in another process: its memory is not that of the import."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Path]] = {
        "camtrap-dp": lambda: make_package(folder / "package", rows),
        "coco-camera-traps": lambda: make_coco(folder / "traps.json", rows),
        "wilds": lambda: make_wilds(folder, rows),
    }
    make = makers.get(format, lambda: make_results(folder / f"{format}.json", rows, format))
    writer = multiprocessing.get_context("fork").Process(target=make)
    writer.start()
    writer.join()
    if format in ("coco-camera-traps", "wilds"):
        make_images(folder / "images", rows)
    names = {"camtrap-dp": "package", "coco-camera-traps": "traps.json", "wilds": "metadata.csv"}
    return folder / names.get(format, f"{format}.json")


def run(folder: Path, source: Path, format: str) -> dict[str, Any]:
    """Import, or add results; return counts and seconds of the processor."""
    began = time.process_time()
    if format == "camtrap-dp":
        collection = import_package(source, folder / "collection")
        imported = time.process_time()
        result = export_camtrap_dp(collection, folder / "out", settings=CamtrapSettings(coordinate_digits="recorded"))
        return {"rows": result.rows, "import_s": imported - began, "export_s": time.process_time() - imported}
    if format in ("megadetector", "speciesnet"):
        added = add_results(folder / "survey", source)
        return {"rows": {"images": added.images, "boxes": added.detections}, "import_s": time.process_time() - began}
    importer = import_wilds if format == "wilds" else import_coco_camera_traps
    target = folder / ("survey" if format == "coco-camera-traps" else format)
    summary = importer(source, target, images=source.parent / "images", reference=True, show_progress=False, workers=1)
    return {"rows": {"images": summary.imported}, "import_s": time.process_time() - began}


def main() -> None:
    folder, rows, format = Path(sys.argv[1]), int(sys.argv[2]), (sys.argv[3:] or ["camtrap-dp"])[0]
    if format in ("megadetector", "speciesnet") and not (folder / "survey").is_dir():
        subprocess.run([sys.executable, __file__, str(folder), str(rows), "coco-camera-traps"], check=True)
    result = run(folder, make_source(folder / "source", rows, format), format)
    # Not ru_maxrss, which begins with that of the process that started this one.
    print(json.dumps({**result, "mb": peak_gigabytes() * 1024}))


if __name__ == "__main__":
    main()
