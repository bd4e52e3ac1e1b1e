"""Export a survey as one flat CSV: a line per image and taxon, for spreadsheets and R."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.records.collection import Collection
from foveate.survey.decisions import Decision
from foveate.survey.exporters.survey_rows import MergedObservations, SurveyRows, csv_rows, list_image_labels
from foveate.survey.taxa import Taxa

COLUMNS = ("file", "sequence", "deployment", "datetime", "taxon", "rank", "score", "source")


def export_observations_csv(
    collection: Collection,
    path: str | Path,
    *,
    decisions: Sequence[Decision] | None = None,
    events: Mapping[str, Sequence[str]] | None = None,
    taxa: Taxa | None = None,
) -> int:
    """Write the labels of a survey's images to a CSV file, atomically; return the number of lines.

    `taxon` is a scientific name, or blank, human, vehicle, unknown or unclassified; `datetime` is the time after the
    shift of the clock, at the place where the deployment states its offset. No coordinates are written.

    Args:
        decisions, events: see `foveate.survey.exporters.camtrap_dp.export_camtrap_dp`.
        taxa: for the ranks of imported rows; by default the collection's.

    Raises:
        UserError: there is no survey, or a decision is about an unknown image or event.
    """
    rows = SurveyRows(collection)
    merged = MergedObservations(rows, decisions, events)
    files, deployments = (rows.media[name].to_pylist() for name in ("file", "deployment"))
    keys, count = list(rows.keys), 0
    with csv_rows(Path(path), COLUMNS) as writer:
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
            writer.writerow(dict(zip(COLUMNS, values, strict=True)))
            count += 1
    return count
