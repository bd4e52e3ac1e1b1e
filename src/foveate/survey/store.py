"""Write a survey into a collection, and select what of it holds: later rows replace earlier ones."""

from __future__ import annotations

import json
import shlex
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foveate.core.errors import UserError
from foveate.records import layout, tables
from foveate.records.collection import Collection
from foveate.records.record import Context
from foveate.records.rows import check_row, context_row
from foveate.records.tables import PROVENANCE_COLUMNS, Provenance, positions
from foveate.records.writer import CollectionWriter
from foveate.survey.types import Deployment, Medium, Observation, deployment_row, media_row, observation_row
from foveate.survey.verdicts import RULES
from foveate.survey.videos import FRAME_MARK, find_video

REVIEW_SOURCE = "review:"
"""Beginning of the source of a row that a person wrote in a review; the file of the answers follows."""

ANSWERED, FRAMES = "answered", "frames"
"""Further fields of a row that a person wrote in a review of decisions.

The name that was decided, and the keys of the images of the event as JSON, which only a row about the event has. The
row about the event lies beside those of its images, with the key of the image that was shown: ids of events change with
the settings that form them, images do not.
"""

EMPTY_AND_SPECIES = RULES["empty-and-species"].outcome
"""What an import counts and names with `find_contradictions`."""

# A character that no id has: rows are cleaned of control characters.
SEPARATOR = "\x1f"


def join_names(first: pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    """Join two columns of ids row by row, so that pairs can be looked up as one text."""
    return pc.call_function("binary_join_element_wise", [first, second, pa.scalar(SEPARATOR)])


def find_contradictions(rows: Iterable[tuple[Hashable, str, str, str]]) -> list[str]:
    """Name the images or events that one observer calls empty and a species at once, with the species.

    Args:
        rows: what an observation is about and who made it, its name, its kind, its taxon.

    >>> find_contradictions([("a", "a", "blank", ""), ("a", "a", "animal", "Vulpes vulpes"), ("b", "b", "blank", "")])
    ['a (Vulpes vulpes)']
    """
    empty: set[Hashable] = set()
    named: dict[Hashable, tuple[str, dict[str, None]]] = {}
    for about, name, kind, taxon in rows:
        if kind == "blank":
            empty.add(about)
        if taxon:
            named.setdefault(about, (name, {}))[1][taxon] = None
    return [f"{name} ({', '.join(taxa)})" for about, (name, taxa) in named.items() if about in empty]


def select_current(table: pa.Table) -> pa.Table:
    """Return the current observations of images.

    A row is replaced by a later import of the same id and image. An answer of a review is about a whole image and
    replaces all earlier answers of people about it, whatever their ids. Nothing is removed on disk.

    Args:
        table: rows of the annotation table `observations`.
    """
    table = table.filter(pa.array(_is_latest(table)))
    is_review = pc.call_function("starts_with", [table["source"]], pc.MatchSubstringOptions(REVIEW_SOURCE))
    is_review_O = is_review.fill_null(False).to_numpy()
    if not is_review_O.any():
        return table
    is_answered_O = positions(table["key"], among=table["key"].filter(pa.array(is_review_O)).unique()) >= 0
    is_machine_O = pc.call_function("equal", [table["method"], pa.scalar("machine")]).to_numpy()
    return table.filter(pa.array(is_review_O | is_machine_O | ~is_answered_O))


def select_last(table: pa.Table) -> pa.Table:
    """Return the last row of each image of an annotation table, such as `media`, in their order: the one that holds.

    An image has several rows where it was moved to another deployment.
    """
    codes = pc.call_function("dictionary_encode", [table["key"].combine_chunks()]).indices.to_numpy()
    last = np.zeros(codes.max(initial=-1) + 1, np.int64)
    # Where indices repeat, NumPy keeps the last assignment, and so the last row of each image.
    last[codes] = np.arange(len(codes))
    return table if len(last) == len(table) else table.take(pa.array(np.sort(last)))


def list_deployments(collection: Collection) -> list[Deployment]:
    """List the deployments of a survey's table, in its order."""
    return [Deployment.from_row(row) for row in collection.dataset_table("deployments").to_pylist()]


def name_detectors(table: pa.Table, keys: Sequence[str]) -> list[str]:
    """Return the detector with categories that looked at each image, "" for none or one that failed.

    Only a file of results (`foveate.survey.importers.results`) leaves a row about an image without a box; a classifier
    of whole images does so, too, and is no detector.

    Args:
        table: rows of the annotation table `observations`.
        keys: of the images.
    """
    table = table.filter(pc.call_function("not_equal", [table["model"], pa.scalar("")]))
    table = table.filter(pc.call_function("not_equal", [table["kind"], pa.scalar("unclassified")]))
    table = table.filter(pc.call_function("equal", [table["method"], pa.scalar("machine")]))
    boxed = table.filter(pc.call_function("is_valid", [table["x1"]]))
    has_boxes_O = pc.call_function("is_in", [table["model"]], pc.SetLookupOptions(value_set=boxed["model"].unique()))
    # A class of a whole image has a probability; that a detector found nothing has none.
    is_empty_O = pc.call_function("is_null", [table["probability"]], pc.NullOptions(nan_is_null=True))
    table = table.filter(pc.call_function("or", [has_boxes_O, is_empty_O]))
    models = dict(zip(table["key"].to_pylist(), table["model"].to_pylist(), strict=True))
    return [models.get(key, "") for key in keys]


def _is_latest(table: pa.Table) -> np.ndarray:
    names = join_names(table["key"], table["id"]).combine_chunks()
    # `positions` finds the first match, which from behind is the last.
    backwards = np.arange(len(names))[::-1]
    reversed_names = names.take(pa.array(backwards))
    last = backwards[positions(names, among=reversed_names)]
    # Equal ids of one import are a fault of the source, not a correction: all of these rows hold.
    created = table["created"].combine_chunks()
    is_latest = pc.call_function("equal", [created, created.take(pa.array(last))])
    is_unnamed = pc.call_function("equal", [table["id"], pa.scalar("")])
    return pc.call_function("or", [is_latest, is_unnamed.combine_chunks()]).to_numpy(zero_copy_only=False)


MOVED = "images moved to another deployment"


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

    A row takes the place of the one with its id: a corrected table of deployments is imported by the same command. That
    of a deployment which another source has stays, see `select_deployments`.

    Args:
        format: name of the importer.
        descriptor: the source's own description, stored as JSON for round trips.
    """
    changed = writer.replace_dataset_rows("deployments", select_deployments(writer, deployments), by="id")
    changed += writer.replace_dataset_rows("event_observations", map(observation_row, event_observations), by="id")
    if descriptor is not None:
        text = json.dumps(descriptor, ensure_ascii=False)
        # Store one row a source: a second package of the same format has its own title, people and taxa.
        changed += writer.replace_dataset_rows("survey", [{"format": format, "descriptor": text}], by="source")
    return changed


def select_deployments(writer: CollectionWriter, deployments: Iterable[Deployment]) -> list[dict[str, object]]:
    """Return the rows of the deployments that are new or of the writer's source.

    Deployments that another source has with the same content, or that have nothing but an id, are left out.

    Raises:
        UserError: another source has a different deployment of the same id, as a second season may.
    """
    # A writer without a source corrects what is there.
    stored = _read_deployments(writer) if writer.source else []
    others = {row["id"]: row for row in stored if row["source"] != writer.source}
    selected = []
    for deployment in deployments:
        row = check_row("deployments", deployment_row(deployment))
        known = others.get(row["id"])
        if known is None or (says_nothing(Deployment.from_row(known)) and not says_nothing(deployment)):
            selected.append(row)
        elif not says_nothing(deployment) and any(known.get(name) != value for name, value in row.items()):
            raise UserError(
                f"deployment {deployment.id!r} of {writer.source!r} differs from that of {known['source']!r} in the "
                "collection; give it another id, collect into another collection, or, if it is the same survey, add "
                f"--source-name {shlex.quote(known['source'])}"
            )
    return selected


def says_nothing(deployment: Deployment) -> bool:
    """Whether nothing but the id is known, as from a file of annotations without a table of places."""
    return deployment.location in ("", deployment.id) and deployment == Deployment(
        deployment.id, location=deployment.location
    )


def _read_deployments(writer: CollectionWriter) -> list[dict[str, Any]]:
    path = layout.dataset_table_path(writer.path, "deployments")
    return tables.read_table(path).to_pylist() if path.is_file() else []


def update_images(
    writer: CollectionWriter,
    deployment_of: Mapping[str, str],
    deployments: Iterable[Deployment],
    *,
    times: Mapping[str, str] | None = None,
) -> int:
    """Move images to other deployments and give them the places of corrected ones; return how many were moved.

    Both are done by appending rows to `media` and `context`. A different image with one of the keys stays unchanged,
    such as one of an earlier season whose cards have the same names.

    Args:
        deployment_of: id of the deployment of each image by key; images that are in no survey stay unchanged.
        deployments: with the coordinates of today.
        times: capture times of the images that were read, as written, by key. They distinguish an image whose bytes
            changed from one of an earlier season with the same names of cards and folder.
    """
    # Committed first: the last row of each image is read from disk, and rows of this run count too.
    writer.commit()
    media, last = _read_last(writer, "media")
    current = media["deployment"].to_pylist()
    sources = media["source"].to_pylist()
    own = {key for key, row in last.items() if key in deployment_of and writer.is_about(key, sources[row])}
    if times is not None:
        taken = media["time"].to_pylist()
        # Without a time nothing proves that two different files are the same image.
        own = {key for key in own if not writer.is_refused(key) or (times.get(key) and times[key] == taken[last[key]])}
    moved = [row for key, row in last.items() if key in own and deployment_of[key] != current[row]]
    left_out = ("row_id", *PROVENANCE_COLUMNS)
    names = [column.name for column in tables.SCHEMAS["media"] if column.name not in left_out]
    taken_rows = media.take(pa.array(moved, pa.int64())).select(names).to_pylist()
    rows: list[dict[str, object]] = [{**row, "deployment": deployment_of[str(row["key"])]} for row in taken_rows]
    _annotate(writer, "media", rows, num_before=len(media))
    # Stored deployments take precedence: new rows without content did not replace them.
    known = {deployment.id: deployment for deployment in deployments}
    known |= {row["id"]: Deployment.from_row(row) for row in _read_deployments(writer)}
    contexts, last = _read_last(writer, "context")
    columns = ("key", "latitude", "longitude", "time", "place")
    values = list(zip(*(contexts[name].to_pylist() for name in columns), strict=True))
    changed = []
    for key, row in last.items():
        if key in own:
            medium = Medium(key, deployment_of[key], time=values[row][3])
            new = context_row(key, make_context(medium, known.get(medium.deployment)))
            changed += [new] if tuple(new[name] for name in columns) != values[row] else []
    _annotate(writer, "context", changed, num_before=len(contexts))
    return len(moved)


def read_videos(writer: CollectionWriter) -> dict[str, dict[str, dict[str, str]]]:
    """Return the frames of videos that were imported: path of the video -> key -> further fields; removed ones, too."""
    parts = layout.annotation_parts(writer.path, "media", set(layout.committed_shards(writer.path)))
    table = tables.read_annotations(parts, "media").select(["key", "extra"])
    is_frame = pc.call_function("match_substring", [table["key"]], pc.MatchSubstringOptions(FRAME_MARK))
    videos: dict[str, dict[str, dict[str, str]]] = {}
    for row in table.filter(is_frame).to_pylist():
        if video := find_video(row["key"]):
            videos.setdefault(video, {})[row["key"]] = json.loads(row["extra"])
    return videos


def _read_last(writer: CollectionWriter, kind: str) -> tuple[pa.Table, dict[str, int]]:
    """Read an annotation table, and the last row of each image that was not removed."""
    parts = layout.annotation_parts(writer.path, kind, set(layout.committed_shards(writer.path)))
    table = tables.read_annotations(parts, kind)
    removed = set(tables.read_removed(writer.path / layout.REMOVED_FILE)["key"].to_pylist())
    last = {key: row for row, key in enumerate(table["key"].to_pylist()) if key not in removed}
    return table, last


def _annotate(writer: CollectionWriter, kind: str, rows: list[dict[str, object]], *, num_before: int) -> None:
    if rows:
        # A correction that is taken back has the content of an earlier row, which would count as known.
        writer.annotate(kind, rows, Provenance(source=writer.source, recipe_hash=f"{num_before:016x}"))
