"""Export the labels of a survey's images as one table: a flat CSV, or the batch upload of Wildlife Insights.

The flat CSV has a line per image and taxon, for spreadsheets and R. `images.csv` of a batch upload refers to projects,
cameras and deployments, which are made on the site, by their ids.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.tables import csv_rows
from foveate.records.collection import Collection
from foveate.survey.detections import Decision
from foveate.survey.exporters.survey_rows import (
    ImageLabel,
    MergedObservations,
    SurveyRows,
    format_time,
    list_image_labels,
)
from foveate.survey.taxa import Taxa
from foveate.survey.videos import find_video

CSV_COLUMNS = ("file", "sequence", "deployment", "datetime", "taxon", "rank", "score", "source")


def export_observations_csv(
    collection: Collection,
    path: str | Path,
    *,
    decisions: Sequence[Decision] | None = None,
    events: Mapping[str, Sequence[str]] | None = None,
    taxa: Taxa | None = None,
    without: Set[str] | None = None,
) -> int:
    """Write the labels of a survey's images to a CSV file, atomically; return the number of lines.

    `taxon` is a scientific name, or blank, human, vehicle, unknown or unclassified; `datetime` is the time after the
    shift of the clock, at the place where the deployment states its offset. No coordinates are written.

    Args:
        decisions, events: see `export_camtrap_dp`.
        taxa: for the ranks of imported rows; by default the collection's.
        without: keys of images that are left out, see `SurveyRows`.

    Raises:
        UserError: there is no survey, or a decision is about an unknown image or event.

    Example:
        >>> export_observations_csv(Collection.open(survey_folder), new_folder / "observations.csv")
        56
    """
    rows = SurveyRows(collection, without=without)
    merged = MergedObservations(rows, decisions, events)
    files, deployments = (rows.media[name].to_pylist() for name in ("file", "deployment"))
    keys, count = list(rows.keys), 0
    with csv_rows(Path(path), CSV_COLUMNS) as writer:
        for label in list_image_labels(merged, taxa=taxa, classifier=""):
            values = (
                # Forward slashes everywhere: the source may have been written on Windows.
                (files[label.row] or keys[label.row]).replace("\\", "/"),
                label.sequence,
                deployments[label.row],
                rows.local_times[label.row],
                label.taxon or label.kind,
                label.rank,
                "" if label.probability is None else f"{label.probability:.6g}",
                label.source,
            )
            writer.writerow(dict(zip(CSV_COLUMNS, values, strict=True)))
            count += 1
    return count


UPLOAD_COLUMNS = (
    "project_id",
    "deployment_id",
    "image_id",
    "location",
    "identified_by",
    "wi_taxon_id",
    "class",
    "order",
    "family",
    "genus",
    "species",
    "common_name",
    "uncertainty",
    "timestamp",
    "number_of_objects",
    "highlighted",
    "age",
    "sex",
    "animal_recognizable",
    "individual_id",
    "individual_animal_notes",
    "markings",
)
_RANKS = ("class", "order", "family", "genus", "species")
# As SpeciesNet names them, which is trained on the site's taxa.
_KINDS = {
    "blank": ("f1856211-cfb7-4a5b-9158-c0f72fd09ee6", "Blank"),
    "human": ("990ae9dd-7a59-4344-afcb-1b7b21368000", "Human"),
    "vehicle": ("e2895ed5-780b-48f6-8a11-9e27cb594511", "Vehicle"),
}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNIDENTIFIED = ("unknown", "unclassified")


@dataclass(slots=True)
class WildlifeInsightsExport:
    """Lines that were written, and labels that were left out by reason."""

    lines: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def export_wildlife_insights(
    collection: Collection,
    path: str | Path,
    *,
    project: str,
    classifier: str,
    decisions: Sequence[Decision] | None = None,
    events: Mapping[str, Sequence[str]] | None = None,
    taxa: Taxa | None = None,
    without: Set[str] | None = None,
) -> WildlifeInsightsExport:
    """Write the labels of a survey's images for Wildlife Insights, atomically.

    Images without an identification (unknown, unclassified) and images without a time are left out: the site
    identifies the former itself, and refuses the latter. So are rows that are empty and a species at once, by name.
    `number_of_objects` is 0 for a blank, else the count or 1; `uncertainty` is one minus the probability. No
    coordinates are written.

    Args:
        project: id of the project on the site.
        classifier: `identified_by` of decisions.
        decisions, events: see `export_camtrap_dp`.
        taxa: for the higher taxa of names; by default the collection's.
        without: keys of images that are left out, see `SurveyRows`.

    Raises:
        UserError: there is no survey or project, or a decision is about an unknown image or event.

    Example:
        >>> survey, path = Collection.open(survey_folder), new_folder / "images.csv"
        >>> export_wildlife_insights(survey, path, project="2001234", classifier="my model").lines
        56
    """
    if not project.strip():
        raise UserError("project: Wildlife Insights needs the id of a project (got '')")
    rows = SurveyRows(collection, without=without)
    merged = MergedObservations(rows, decisions, events)
    known = taxa or Taxa.from_rows(collection.dataset_table("taxa").to_pylist())
    columns = {name: rows.media[name].to_pylist() for name in ("key", "file", "deployment")}
    export = WildlifeInsightsExport()
    with csv_rows(Path(path), UPLOAD_COLUMNS) as writer:
        for label in list_image_labels(merged, taxa=known, classifier=classifier):
            # The clock at the place, without its offset.
            time = format_time(float(rows.local_clock_N[label.row]), float("nan")).replace("T", " ")
            if label.kind in _UNIDENTIFIED or not time:
                # Count by reason, so that no image of the survey goes missing silently.
                export.left_out["no identification" if label.kind in _UNIDENTIFIED else "no time"] += 1
                continue
            key, file, deployment = (columns[name][label.row] for name in ("key", "file", "deployment"))
            location = (file or key).replace("\\", "/")
            if label.kind == "blank" and label.taxon:
                # The site has one label a line: either would hide the other, so that a person must say which is right.
                export.left_out[f"called empty and a species at once: {location} ({label.taxon})"] += 1
                continue
            writer.writerow(
                dict.fromkeys(UPLOAD_COLUMNS, "")
                | _name_taxon(label, known)
                | {
                    "project_id": project,
                    "deployment_id": deployment,
                    "image_id": find_video(key) or key,
                    "location": location,
                    "identified_by": label.classifier,
                    "uncertainty": "" if label.probability is None else f"{1 - label.probability:.6g}",
                    "timestamp": time,
                    "number_of_objects": 0 if label.kind == "blank" else label.count or 1,
                }
            )
            export.lines += 1
    return export


def _name_taxon(label: ImageLabel, taxa: Taxa) -> dict[str, str]:
    """Return the seven columns that name a taxon; higher ranks where the taxonomy knows them."""
    if label.kind in _KINDS:
        identity, name = _KINDS[label.kind]
        return {"wi_taxon_id": identity, "common_name": name}
    # The site's ids are UUIDs: numbers of NCBI or GBIF name none of its taxa.
    cells = {"wi_taxon_id": label.taxon_id if _UUID.fullmatch(label.taxon_id) else ""}
    index = taxa.index(label.taxon_id) if label.taxon_id in taxa else taxa.find(label.taxon) if label.taxon else -1
    if index >= 0:
        cells |= {taxa.ranks[i]: taxa.names[i] for i in taxa.lineage(index) if taxa.ranks[i] in _RANKS}
        cells["common_name"] = taxa.common[index]
    elif label.rank in _RANKS:
        cells[label.rank] = label.taxon
    # The site writes "Vulpes", "vulpes": the species without its genus.
    genus, _, epithet = cells.get("species", "").partition(" ")
    if epithet:
        cells |= {"genus": cells.get("genus") or genus, "species": epithet}
    return cells
