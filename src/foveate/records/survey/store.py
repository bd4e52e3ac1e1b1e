"""Write a survey into a collection: rows of its images for importers, and tables about the whole survey."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from foveate.records import layout, tables
from foveate.records.record import Context
from foveate.records.survey.types import (
    Deployment,
    Medium,
    Observation,
    deployment_row,
    media_row,
    observation_row,
)
from foveate.records.tables import PROVENANCE_COLUMNS, Provenance
from foveate.records.writer import CollectionWriter


def survey_rows(medium: Medium, observations: Iterable[Observation] = ()) -> dict[str, list[Mapping[str, object]]]:
    """Return the rows of one image by annotation table, for `Sample.extra` or `CollectionWriter.add(extra=...)`."""
    rows: dict[str, list[Mapping[str, object]]] = {"media": [media_row(medium)]}
    observed: list[Mapping[str, object]] = [observation_row(observation) for observation in observations]
    return {**rows, "observations": observed} if observed else rows


def make_context(medium: Medium, deployment: Deployment | None) -> Context:
    """Return where and when an image was taken, for readers that know nothing of surveys; the time as written."""
    if deployment is None:
        return Context(None, None, medium.time, medium.deployment)
    return Context(deployment.latitude, deployment.longitude, medium.time, deployment.camera)


def write_survey(
    writer: CollectionWriter,
    *,
    deployments: Iterable[Deployment] = (),
    event_observations: Iterable[Observation] = (),
    format: str = "",
    descriptor: Mapping[str, object] | None = None,
) -> int:
    """Write the tables about the whole survey; return how many rows are new or changed.

    A row takes the place of the one with its id: a corrected table of deployments is imported by the same command.

    Args:
        format: name of the importer.
        descriptor: the source's own description, stored as JSON for round trips.
    """
    changed = writer.replace_dataset_rows("deployments", map(deployment_row, deployments), by="id")
    changed += writer.replace_dataset_rows("event_observations", map(observation_row, event_observations), by="id")
    if descriptor is not None:
        text = json.dumps(descriptor, ensure_ascii=False)
        changed += writer.replace_dataset_rows("survey", [{"format": format, "descriptor": text}], by="format")
    return changed


def change_deployments(writer: CollectionWriter, deployments: Mapping[str, str]) -> int:
    """Move images to other deployments by a new row of `media`; return how many were moved.

    Args:
        deployments: id of the deployment of each image by key; images that are in no survey are left alone.
    """
    writer.commit()
    parts = layout.annotation_parts(writer.path, "media", set(layout.committed_shards(writer.path)))
    table = tables.read_annotations(parts, "media")
    keys, current = table["key"].to_pylist(), table["deployment"].to_pylist()
    last = dict(zip(keys, range(len(keys)), strict=True))
    removed = set(tables.read_removed(writer.path / layout.REMOVED_FILE)["key"].to_pylist())
    moved = [
        row for key, row in last.items() if deployments.get(key, current[row]) != current[row] and key not in removed
    ]
    if not moved:
        return 0
    names = [column.name for column in tables.SCHEMAS["media"] if column.name not in ("row_id", *PROVENANCE_COLUMNS)]
    rows = [{**row, "deployment": deployments[row["key"]]} for row in table.take(moved).select(names).to_pylist()]
    # A move that is taken back has the content of an earlier row, which would count as known.
    return writer.annotate("media", rows, Provenance(source=writer.source, recipe_hash=f"{len(table):016x}"))
