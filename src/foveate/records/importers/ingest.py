"""What all importers share: images are examined in threads, taken in in order, or quarantined."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from foveate.core.errors import UserError, choose, nearest
from foveate.core.progress import track
from foveate.records import layout
from foveate.records.images import MAX_PIXELS, BadImage, Examined, examine
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import folder_of
from foveate.records.importers.sample import GROUPINGS, MAX_BYTES, Problem, Sample, SharedOptions, Sidecar
from foveate.records.importers.sidecar import read_sidecars
from foveate.records.writer import BYTES_PER_SHARD, IMAGES_PER_SHARD, CollectionWriter

# Two sides of an image that was made smaller are rounded to whole pixels, so their ratios differ a little.
SIZE_TOLERANCE = 0.02
_AHEAD_PER_WORKER = 4


def default_workers() -> int:
    """Threads that examine images: one per core, at most 8."""
    return min(8, os.cpu_count() or 1)


def check_source(source: Path) -> Path:
    """Return `source` if it exists; else raise UserError with the nearest name in its folder."""
    if source.exists():
        return source
    folder = source.parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    raise UserError(f"{source} does not exist{nearest(source.name, names)}")


@dataclass(slots=True)
class _Prepared:
    """An image after the threaded part: examined, or known already, or with the reason why it is refused."""

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
    shown: bool = True,
    ignored_files: int = 0,
    group_by: str = "none",
    reference: bool = False,
    further: Counter[str] | None = None,
    finish: Callable[[CollectionWriter], None] | None = None,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Take samples into the collection `target`, in their order; what every importer ends with.

    Args:
        target: collection folder, made where it does not exist.
        samples: what to take, lazily.
        default_source: provenance where `shared` has no `source_name`.
        total: how many samples there are, for the progress, which is `shown` or not.
        ignored_files: files of the source that are not used.
        group_by: "folder" puts images whose keys have the same folder into one group.
        reference: leave the files where they are; the collection points at them.
        further: what the importer counts while it gives samples; it goes into the summary.
        finish: called with the writer when all samples are taken.
        shared: see `SharedOptions`.

    Raises:
        UserError: the target is no collection, or is being written by another process.
    """
    choose(group_by, GROUPINGS, "grouping")
    workers = shared.get("workers") or default_workers()
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
        writer.summary.ignored_files = ignored_files
        tracked = track(samples, description="importing images", total=total) if shown else samples
        adjusted = (_adjusted(sample, group_by=group_by, reference=reference) for sample in tracked)
        take_samples(writer, adjusted, workers=workers, max_pixels=max_pixels)
        writer.summary.further.update(+(further or Counter()))
        if finish is not None:
            finish(writer)
    return writer.summary


def _adjusted(sample: Sample, *, group_by: str, reference: bool) -> Sample:
    if group_by == "folder":
        sample.group = sample.group or folder_of(sample.key)
    if not reference:
        sample.location = None
    return sample


def take_samples(writer: CollectionWriter, samples: Iterable[Sample], *, workers: int, max_pixels: int) -> None:
    """Take all samples into the writer's collection, in their order.

    Images are read and examined by `workers` threads, a few ahead. Findings about an image go to the
    quarantine before the image is added, so that a commit never parts them.
    """
    for prepared in _prepare_ahead(writer, samples, workers=workers, max_pixels=max_pixels):
        _take(writer, prepared)


def _prepare_ahead(
    writer: CollectionWriter, samples: Iterable[Sample], *, workers: int, max_pixels: int
) -> Iterator[_Prepared]:
    pending: deque[Future[_Prepared]] = deque()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for sample in samples:
                pending.append(pool.submit(_prepare, writer, sample, max_pixels))
                if len(pending) >= workers * _AHEAD_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _prepare(writer: CollectionWriter, sample: Sample, max_pixels: int) -> _Prepared:
    prepared = _Prepared(sample)
    if sample.load is None:
        return prepared
    try:
        prepared.data = sample.load()
        if len(prepared.data) > MAX_BYTES:
            raise BadImage("too many bytes", f"the image has more than {MAX_BYTES:,} bytes")
        if hashlib.sha256(prepared.data).hexdigest() != writer.known_sha256(sample.key):
            prepared.examined = examine(prepared.data, max_pixels=max_pixels)
    except BadImage as error:
        prepared.refused = error
    except OSError as error:
        prepared.refused = BadImage("unreadable", f"the file cannot be read: {error.strerror or error}")
    return prepared


def _take(writer: CollectionWriter, prepared: _Prepared) -> None:
    sample = prepared.sample
    _note(writer, sample, sample.problems)
    writer.summary.ignored_files += sample.ignored
    if sample.only_problems:
        return
    try:
        layout.check_key(sample.key)
    except UserError as error:
        _note(writer, sample, [Problem("image", "unusable key", str(error))])
        return
    if sample.load is None:
        status = read_sidecars(None, sample.json, size=None, given=sample.fields).status
        if status and status != "success":
            problem = Problem("image", "download failed", f"the JSON sidecar says status {status!r}")
        else:
            problem = Problem("image", "no image", "there are sidecars but no image of this key")
        _note(writer, sample, [problem])
        return
    if prepared.refused is not None:
        _note(writer, sample, [Problem("image", prepared.refused.reason, str(prepared.refused))])
        return
    location = None if sample.location is None else sample.location.resolve()
    if prepared.examined is None or not writer.accepts(sample.key, prepared.examined.sha256):
        # Already there, removed or a duplicate: its sidecars were read, or are refused with it.
        writer.add(sample.key, prepared.data, examined=prepared.examined, source=sample.source, location=location)
        return
    info = prepared.examined.info
    size = _size_of_boxes(writer, sample, (info.width, info.height))
    sidecar = read_sidecars(sample.text, sample.json, size=size, given=sample.fields, labels=sample.labels)
    _note(writer, sample, sidecar.problems)
    writer.summary.regions_clipped += sidecar.clipped
    writer.summary.texts_cleaned += sidecar.cleaned
    writer.summary.without_text += not sidecar.captions and not sidecar.regions
    writer.add(
        sample.key,
        prepared.data,
        captions=sidecar.captions,
        regions=sidecar.regions,
        labels=sidecar.labels,
        group=sidecar.group or sample.group,
        split=sidecar.split,
        extra=_extra_rows(sample, sidecar),
        examined=prepared.examined,
        source=sample.source,
        location=location,
    )


def _extra_rows(sample: Sample, sidecar: Sidecar) -> dict[str, list[Mapping[str, object]]]:
    extra = dict(sample.extra)
    if sidecar.url:
        extra["origin"] = [{"url": sidecar.url}]
    for given, kept in ((sample.region_rows, sidecar.regions_kept), (sample.caption_rows, sidecar.captions_kept)):
        if given is not None and kept:
            kind, rows = given
            extra[kind] = [{**rows[place], "position": position} for position, place in enumerate(kept)]
    return extra


def _size_of_boxes(writer: CollectionWriter, sample: Sample, size: tuple[int, int]) -> tuple[int, int] | None:
    """The image size (width, height) that the sample's boxes in pixels refer to; None where it is unclear.

    An image that was made smaller since its boxes were drawn has the stated shape, so the boxes are good in
    the stated pixels. One of another shape was turned or cut, and its boxes would lie elsewhere.
    """
    stated = sample.stated_size
    if stated is None or stated == size or not (sample.fields or {}).get("regions"):
        return size
    across, down = size[0] / stated[0], size[1] / stated[1]
    if abs(across - down) <= SIZE_TOLERANCE * max(across, down):
        writer.summary.further["images of another size than their file states, whose boxes were scaled"] += 1
        return stated
    detail = f"the boxes are for {stated[0]} x {stated[1]} pixels, the image has {size[0]} x {size[1]}"
    _note(writer, sample, [Problem("region", "other image shape", detail)])
    return None


def _note(writer: CollectionWriter, sample: Sample, problems: Iterable[Problem]) -> None:
    for problem in problems:
        writer.quarantine(
            sample.key,
            problem.reason,
            problem.detail,
            sample.source,
            subject=problem.subject,
            position=problem.position,
        )
