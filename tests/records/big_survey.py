"""Import and export a Camtrap DP package of many rows in this process; print the peak of its memory in MB."""

from __future__ import annotations

import csv
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from made_surveys import GOLDEN, import_package, read_rows

from foveate.core.devices import peak_gigabytes
from foveate.records.exporters.camtrap_dp import CamtrapSettings, export_camtrap_dp


def make_package(folder: Path, rows: int) -> Path:
    """The golden package with `rows` media and as many observations, in events of four, with boxes."""
    folder.mkdir(parents=True)
    (folder / "datapackage.json").write_bytes((GOLDEN / "datapackage.json").read_bytes())
    (folder / "deployments.csv").write_bytes((GOLDEN / "deployments.csv").read_bytes())
    medium, observation = read_rows(GOLDEN, "media")["m00"], read_rows(GOLDEN, "observations")["o00"]
    first = datetime(2023, 5, 2, tzinfo=UTC)
    with (
        (folder / "media.csv").open("w", newline="") as media,
        (folder / "observations.csv").open("w", newline="") as seen,
    ):
        tables = csv.DictWriter(media, list(medium)), csv.DictWriter(seen, list(observation))
        for table in tables:
            table.writeheader()
        for number in range(rows):
            moment = (first + timedelta(seconds=7 * number)).isoformat()
            path = f"media/dep-A/{number // 10_000:03d}/IMG_{number:07d}.JPG"
            event = f"event-{number // 4}"
            tables[0].writerow(medium | {"mediaID": f"m{number}", "timestamp": moment, "filePath": path})
            tables[1].writerow(
                observation
                | {"observationID": f"o{number}", "mediaID": f"m{number}", "eventID": event, "eventStart": moment}
                | {"eventEnd": moment, "classificationProbability": f"{number % 1000 / 1000}"}
            )
    return folder


def main() -> None:
    folder, rows = Path(sys.argv[1]), int(sys.argv[2])
    package = make_package(folder / "package", rows)
    began = time.process_time()
    collection = import_package(package, folder / "collection")
    imported = time.process_time()
    result = export_camtrap_dp(collection, folder / "out", settings=CamtrapSettings(coordinate_digits="recorded"))
    exported = time.process_time()
    # Not ru_maxrss, which begins with that of the process that started this one.
    peak = peak_gigabytes() * 1024
    print(json.dumps({"rows": result.rows, "mb": peak, "import_s": imported - began, "export_s": exported - imported}))


if __name__ == "__main__":
    main()
