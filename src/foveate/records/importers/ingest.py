"""Shared last step of all importers: examine images in threads, then add them in order or quarantine them."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from foveate.core.errors import UserError, choose, nearest
from foveate.core.progress import track
from foveate.records import layout
from foveate.records.images import (
    MAX_PIXELS,
    MIN_AWAY,
    NEEDS_EXTRA,
    BadImage,
    Examined,
    examine,
    read_image_info,
)
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.sample import GROUPINGS, MAX_BYTES, Problem, Sample, SharedOptions, Sidecar
from foveate.records.importers.sidecar import read_sidecars
from foveate.records.importers.versions import FolderVersions
from foveate.records.rows import image_rows
from foveate.records.writer import BYTES_PER_SHARD, IMAGES_PER_SHARD, CollectionWriter

# Sides of a shrunk image are rounded to whole pixels, so the two ratios differ slightly.
SIZE_TOLERANCE = 0.02
_MAX_WORKERS = 8  # by default, and at most one per core
_PENDING_PER_WORKER = 4  # enough to hide slow images, few enough to bound memory


def check_source(source: Path) -> Path:
    """Return `source`; raise UserError with the nearest name in its folder if it does not exist."""
    if source.exists():
        return source
    folder = source.parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    raise UserError(f"{source} does not exist{nearest(source.name, names)}")


@dataclass(slots=True)
class _Prepared:
    """An image after the threaded part: examined, existing already, or refused with a reason."""

    sample: Sample
    data: bytes = b""
    examined: Examined | None = None
    refused: BadImage | None = None


def import_samples(
    target: str | Path,
    samples: Iterable[Sample],
    *,
    default_source: str,
    total: int | None = None,
    show_progress: bool = True,
    ignored: Counter[str] | None = None,
    group_by: str = "none",
    reference: bool = False,
    further: Counter[str] | None = None,
    versions: FolderVersions | None = None,
    begin: Callable[[CollectionWriter], object] | None = None,
    finish: Callable[[CollectionWriter], None] | None = None,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Add samples to the collection `target` in their order; the last step of every importer.

    Args:
        target: collection folder; created if it does not exist.
        samples: consumed lazily.
        default_source: provenance if `shared` has no `source_name`.
        total: number of samples, for the progress.
        ignored: kind -> number of files of the source that are not used.
        group_by: "folder" puts images whose keys have the same folder into one group.
        reference: leave the files where they are and only refer to them.
        further: counts that the importer makes while it yields samples, for the summary.
        versions: compares the source with an earlier import of it.
        begin: called with the writer before the first sample; what it refuses leaves the collection as it is.
        finish: called with the writer after the last sample.
        shared: see `SharedOptions`.

    Raises:
        UserError: the target is not a collection, or another process writes it.
        TypeError: a keyword is none of `SharedOptions`.
    """
    choose(group_by, GROUPINGS, "grouping")
    # A misspelled keyword of any importer ends here, and would have no effect.
    for keyword in shared.keys() - SharedOptions.__annotations__.keys():
        raise TypeError(f"import: unknown keyword {keyword!r}{nearest(keyword, SharedOptions.__annotations__)}")
    workers = shared.get("workers") or min(_MAX_WORKERS, os.cpu_count() or 1)
    max_pixels = shared.get("max_pixels", MAX_PIXELS)
    with CollectionWriter(
        target,
        name=shared.get("name"),
        license=shared.get("license"),
        source=shared.get("source_name") or default_source,
        images_per_shard=shared.get("images_per_shard", IMAGES_PER_SHARD),
        bytes_per_shard=shared.get("bytes_per_shard", BYTES_PER_SHARD),
        max_pixels=max_pixels,
        created=shared.get("created"),
    ) as writer:
        writer.summary.ignored = ignored or Counter()
        writer.summary.ignored_files = writer.summary.ignored.total()
        if begin is not None:
            begin(writer)
        if versions is not None:
            versions.begin(writer)
        tracked = track(samples, description="importing images", total=total) if show_progress else samples
        adjusted = (_apply_options(sample, group_by=group_by, reference=reference) for sample in tracked)
        add_samples(writer, adjusted, workers=workers, max_pixels=max_pixels, versions=versions)
        if versions is not None and versions.take:
            # All together at the end, since `forget` rewrites the shards of the images that it deletes.
            writer.forget(sample.key for sample in versions.replaced)
            add_samples(writer, versions.replaced, workers=workers, max_pixels=max_pixels)
        # The unary plus drops counts of 0, which the summary would list.
        writer.summary.further.update(+(further or Counter()))
        if finish is not None:
            finish(writer)
    return writer.summary


def _apply_options(sample: Sample, *, group_by: str, reference: bool) -> Sample:
    if group_by == "folder":
        sample.group = sample.group or posixpath.dirname(sample.key)
    if not reference:
        # Images without a location are copied into a shard.
        sample.location = None
    return sample


def add_samples(
    writer: CollectionWriter,
    samples: Iterable[Sample],
    *,
    workers: int,
    max_pixels: int,
    versions: FolderVersions | None = None,
) -> None:
    """Add all samples in their order; `workers` threads read and examine images a few ahead."""
    in_row, first = 0, ""
    for prepared in _prepare_ahead(writer, samples, workers=workers, max_pixels=max_pixels):
        _add_prepared(writer, prepared, versions)
        refused = prepared.refused
        # A missing library is no card that is away.
        if refused is not None and refused.is_passing and refused.reason != NEEDS_EXTRA:
            in_row, first = in_row + 1, first if in_row else f"{prepared.sample.source}: {refused}"
        else:
            in_row = 0
    # Only where none came after them: elsewhere single files are damaged, and the findings name them.
    if in_row >= MIN_AWAY:
        writer.summary.away, writer.summary.first_away = in_row, first


def _prepare_ahead(
    writer: CollectionWriter, samples: Iterable[Sample], *, workers: int, max_pixels: int
) -> Iterator[_Prepared]:
    # Oldest first, whichever thread is faster: samples are added in the order of the source.
    pending: deque[Future[_Prepared] | _Prepared] = deque()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for sample in samples:
                if sample.unchanged:
                    # Handing a sample to a thread costs more than there is to do for it.
                    pending.append(_Prepared(sample))
                else:
                    pending.append(pool.submit(_prepare, writer, sample, max_pixels))
                while pending and (isinstance(pending[0], _Prepared) or len(pending) >= workers * _PENDING_PER_WORKER):
                    yield _wait(pending.popleft())
            while pending:
                yield _wait(pending.popleft())
        finally:
            # Leaving the pool waits for all tasks, but after an error or Ctrl-C nothing uses their images.
            for task in pending:
                if isinstance(task, Future):
                    task.cancel()


def _wait(task: Future[_Prepared] | _Prepared) -> _Prepared:
    return task.result() if isinstance(task, Future) else task


def _prepare(writer: CollectionWriter, sample: Sample, max_pixels: int) -> _Prepared:
    prepared = _Prepared(sample)
    # A removed image stays out whatever its bytes are.
    if sample.load is None or sample.unchanged or writer.is_removed(sample.key):
        return prepared
    try:
        prepared.data = sample.load()
        if len(prepared.data) > MAX_BYTES:
            raise BadImage("too many bytes", f"the image has more than {MAX_BYTES:,} bytes")
        # An image that is in the collection is not decoded again, which makes a repeated import fast.
        if hashlib.sha256(prepared.data).hexdigest() != writer.known_sha256(sample.key):
            prepared.examined = examine(prepared.data, max_pixels=max_pixels)
    except BadImage as error:
        prepared.refused = error
    except OSError as error:
        prepared.refused = BadImage("unreadable", f"the file cannot be read: {error.strerror or error}")
    return prepared


def _add_prepared(writer: CollectionWriter, prepared: _Prepared, versions: FolderVersions | None) -> None:
    sample = prepared.sample
    if sample.unchanged:
        writer.skip(sample.key)
        return
    # Findings before the image: if the image fills its shard, the commit must include them.
    _quarantine_problems(writer, sample, sample.problems)
    writer.summary.ignored_files += sample.ignored
    if sample.only_problems:
        return
    try:
        layout.check_key(sample.key)
    except UserError as error:
        _quarantine_problems(writer, sample, [Problem("image", "unusable key", str(error))])
        return
    if sample.load is None:
        # img2dataset also writes a JSON file, with the status, for an image that it could not download.
        status = read_sidecars((), sample.objects, size=None, fields=sample.fields).status
        if status and status != "success":
            problem = Problem("image", "download failed", f"the JSON sidecar says status {status!r}")
        else:
            problem = Problem("image", "no image", "there are sidecars but no image of this key")
        _quarantine_problems(writer, sample, [problem])
        return
    if prepared.refused is not None:
        _quarantine_problems(writer, sample, [Problem("image", prepared.refused.reason, str(prepared.refused))])
        return
    location = None if sample.location is None else sample.location.resolve()
    if prepared.examined is None or not writer.accepts(sample.key, prepared.examined.sha256):
        if versions is not None and prepared.examined is not None and versions.note_replaced(writer, sample):
            return
        # Existing, removed or a duplicate: sidecars of the first were read already, those of others are refused.
        writer.add(sample.key, prepared.data, examined=prepared.examined, source=sample.source, location=location)
        if versions is not None and prepared.data and versions.find(sample) is not None:
            info = read_image_info(prepared.data)[0]
            sidecar = _read_annotations(writer, sample, (info.width, info.height))
            versions.revise(writer, sample, image_rows(sample.key, **_list_annotations(sample, sidecar)))
        return
    info = prepared.examined.info
    sidecar = _read_annotations(writer, sample, (info.width, info.height))
    writer.summary.regions_clipped += sidecar.clipped
    writer.summary.texts_cleaned += sidecar.cleaned
    writer.summary.further.update(+sidecar.further)
    # Images of a camera-trap survey come with observations, not with texts.
    writer.summary.without_text += not sidecar.captions and not sidecar.regions and "media" not in sample.extra
    writer.add(
        sample.key,
        prepared.data,
        **_list_annotations(sample, sidecar),
        group=sidecar.group or sample.group,
        split=sidecar.split,
        examined=prepared.examined,
        source=sample.source,
        location=location,
        stamp=sample.stamp,
    )


def _read_annotations(writer: CollectionWriter, sample: Sample, image_size: tuple[int, int]) -> Sidecar:
    """Read the sidecars of a sample; their problems go to the quarantine."""
    sidecar = read_sidecars(
        sample.texts,
        sample.objects,
        size=_find_box_size(writer, sample, image_size),
        fields=sample.fields,
        labels=sample.labels,
        class_names=sample.class_names,
        label_texts=sample.label_texts,
    )
    _quarantine_problems(writer, sample, sidecar.problems)
    return sidecar


def _list_annotations(sample: Sample, sidecar: Sidecar) -> dict[str, Any]:
    """Return the annotations of an image as keywords of `CollectionWriter.add` and `image_rows`."""
    return {
        "captions": sidecar.captions,
        "regions": sidecar.regions,
        "labels": sidecar.labels,
        "context": sample.context or sidecar.context,
        "extra": _extra_rows(sample, sidecar),
    }


def _extra_rows(sample: Sample, sidecar: Sidecar) -> dict[str, list[Mapping[str, object]]]:
    extra = dict(sample.extra)
    if sidecar.url:
        extra["origin"] = [{"url": sidecar.url}]
    for table, indices in (
        (sample.region_rows, sidecar.region_indices),
        (sample.caption_rows, sidecar.caption_indices),
    ):
        if table is not None and indices:
            kind, rows = table
            # Entries that were refused leave gaps in the file's numbering: `position` counts those that were stored.
            extra[kind] = [{**rows[index], "position": position} for position, index in enumerate(indices)]
    return extra


def _find_box_size(writer: CollectionWriter, sample: Sample, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the image size (width, height) that boxes in pixels refer to; None if it is unclear.

    An image that was shrunk after its boxes were drawn has the stated aspect, so its boxes are right in stated pixels.
    One of another aspect was rotated or cropped: its boxes would be wrong.
    """
    stated = sample.stated_size
    if stated is None or stated == size or not (sample.fields or {}).get("regions"):
        return size
    across, down = size[0] / stated[0], size[1] / stated[1]
    if abs(across - down) <= SIZE_TOLERANCE * max(across, down):
        writer.summary.further["images of another size than their file states, whose boxes were scaled"] += 1
        return stated
    detail = f"boxes are for {stated[0]} x {stated[1]} pixels, but the image has {size[0]} x {size[1]}"
    _quarantine_problems(writer, sample, [Problem("region", "other image shape", detail)])
    return None


def _quarantine_problems(writer: CollectionWriter, sample: Sample, problems: Iterable[Problem]) -> None:
    for problem in problems:
        writer.quarantine(
            sample.key,
            problem.reason,
            problem.detail,
            sample.source,
            subject=problem.subject,
            position=problem.position,
        )
