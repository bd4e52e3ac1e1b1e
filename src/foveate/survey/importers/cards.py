"""Import the cards of a camera-trap survey: a folder per camera, EXIF times, and a table of deployments.

The folder of a deployment is the cell `folder` of its row, or else its id; images may lie at any depth below it.
Without a table each camera's folder is a deployment without a place. Times of photos come only from EXIF: no file name,
file date or folder replaces a missing one. Videos become frames (`foveate.survey.videos`), with times of their own.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Unpack

from foveate.core.errors import UserError, nearest
from foveate.records import layout
from foveate.records.collection import Collection
from foveate.records.images import BadImage, read_exif
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import check_file, count_kinds, get_suffix, list_names, make_reader, make_refusal
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source, import_samples
from foveate.records.importers.sample import IMAGE_SUFFIXES, REFUSED_SUFFIXES, Problem, Sample, SharedOptions
from foveate.records.writer import CollectionWriter
from foveate.survey.deployments import TABLE, DeploymentTable, derive_table, read_deployments
from foveate.survey.store import (
    MOVED,
    list_deployments,
    make_context,
    read_videos,
    says_nothing,
    select_deployments,
    survey_rows,
    update_images,
    write_survey,
)
from foveate.survey.types import Deployment, Medium
from foveate.survey.videos import (
    BY_FILE_DATE,
    FRAME_RATE,
    MEDIA_TYPES,
    NUM_BYTES,
    NUM_FRAMES,
    TIME_SOURCE,
    FramesOf,
    VideoStills,
    find_video,
    format_frame_time,
    make_frame_key,
    read_video_time,
)

NAME = "cards"
_DATE_TIME, _DATE_TIME_ORIGINAL, _OFFSET_TIME, _OFFSET_TIME_ORIGINAL = 0x0132, 0x9003, 0x9010, 0x9011
_SUB_SECONDS_ORIGINAL = 0x9291
_OFFSET = re.compile(r"[+-]\d{2}:?\d{2}|Z")
_MAX_TEXT = 64  # letters of an EXIF time; damaged tags may be long
_LISTED = 5
_VIDEOS_AHEAD = 4  # files that are decoded before their turn


def import_cards(
    source: str | Path,
    target: str | Path,
    *,
    deployments: str | Path | None = None,
    reference: bool = False,
    frames_of: FramesOf | None = None,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import all images below `source`, and frames of videos, as a survey into the collection `target`.

    Importing again adds only what is new, and corrected rows of deployments take the place of old ones. A video is
    known by its path and size: its frames are not decoded again.

    Args:
        source: folder with a folder per camera.
        target: collection folder; created if it does not exist.
        deployments: table of deployments, see `read_deployments`; by default `deployments.csv` in `source`, and else
            the folders themselves, see `derive_table`.
        reference: leave the files where they are and only refer to them; frames of videos are packed.
        frames_of: reads the frames of a video, as commands do with PyAV; see the module `videos`.
            By default videos are counted and left out.
        shared: see `SharedOptions`.

    Raises:
        UserError: the source or its table is missing or wrong, or no row has a folder with images; the collection has
            the deployments of a table, and none is given.

    Example:
        >>> summary = import_cards(cards_folder, new_folder)  # a folder per camera, and deployments.csv
        >>> summary.imported, Survey.open(new_folder)
        (1, Survey('new', 1 images of 1 deployments))
    """
    source = check_source(Path(source))
    if not source.is_dir():
        raise UserError(f"{source} is a file; expected a folder with a folder per camera")
    if (source / layout.DESCRIPTION).is_file():
        raise UserError(f"{source} is a collection already; expected a folder with a folder per camera")
    table_path = source / TABLE if deployments is None else Path(deployments)
    is_derived = deployments is None and not table_path.is_file()
    table = DeploymentTable(()) if is_derived else read_deployments(table_path)
    names, links, hidden = list_names(source, Path(target))
    files = [source / name for name in sorted([*names, *links], key=os.fsencode)]
    used = IMAGE_SUFFIXES | REFUSED_SUFFIXES | (frozenset() if frames_of is None else MEDIA_TYPES.keys())
    images = [path for path in files if get_suffix(path) in used]
    if not images:
        raise UserError(f"{source} has no images; expected files that end in {', '.join(sorted(used))}")
    if is_derived:
        table = derive_table(
            (path.parent.relative_to(source).as_posix() for path in images), name=source.resolve().name
        )
        _check_untold(Path(target))
    cards = _Cards(source, table, is_derived=is_derived, frames_of=frames_of)
    cards.match_folders(images)
    videos = sum(get_suffix(path) in MEDIA_TYPES for path in files)
    others = (
        get_suffix(path) for path in files if get_suffix(path) not in used | MEDIA_TYPES.keys() and path != table_path
    )
    summary = import_samples(
        target,
        cards.samples(images),
        default_source=source.resolve().name,
        # How many frames a video has is known when it was read.
        total=None if frames_of is not None and videos else len(images),
        ignored=count_kinds(others, hidden=hidden),
        reference=reference,
        further=Counter({"videos" if frames_of is not None else "videos, which are not read": videos}),
        begin=cards.begin,
        finish=cards.finish,
        **shared,
    )
    summary.notes += cards.notes()
    return summary


@dataclass
class _Cards:
    source: Path
    table: DeploymentTable
    is_derived: bool = False
    frames_of: FramesOf | None = None
    deployment_of: dict[str, str] = field(default_factory=dict)  # folder of images -> id of its deployment
    unlisted: Counter[str] = field(default_factory=Counter)  # images of folders that no row has
    key_deployments: dict[str, str] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)  # times of the images that were read, as written
    # Frames of earlier imports by their video: key -> further fields of its row.
    known_frames: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    num_by_file_date: int = 0  # videos whose time is that of their file

    def match_folders(self, images: list[Path]) -> None:
        """Find the deployment of each folder with images.

        Raises:
            UserError: no folder has a row.
        """
        counts = Counter(path.parent.relative_to(self.source).as_posix() for path in images)
        for folder, count in counts.items():
            identity = find_deployment(folder, self.table.ids)
            if identity is None:
                # Images at the top belong to no camera; others to one that is named like their first folder.
                top = PurePosixPath(folder).parts[0] if folder != "." else ""
                self.unlisted[top or "."] += count
                identity = top
            self.deployment_of[folder] = identity
        if not set(self.table.ids.values()) & set(self.deployment_of.values()):
            top = sorted(self.unlisted)[0]
            raise UserError(
                f"{self.source}: no row of the deployments has a folder with images (got {top!r}); expected one of "
                f"{', '.join(list(self.table.ids)[:20])} in the column folder or deploymentID"
                f"{nearest(top, self.table.ids)}"
            )

    def begin(self, writer: CollectionWriter) -> None:
        """Check the deployments before the first image: a refused second season leaves the survey unchanged."""
        select_deployments(writer, self.table.deployments)
        if self.frames_of is not None:
            self.known_frames = read_videos(writer)

    def samples(self, images: list[Path]) -> Iterator[Sample]:
        """Yield the sample of each image, whose time is read with its bytes, and those of the frames of each video."""
        root = self.source.resolve()
        deployments = {deployment.id: deployment for deployment in self.table.deployments}
        # Videos are decoded in threads, a few files before their turn; samples stay in the order of the files.
        pending: deque[tuple[Sample, Path, Future[VideoStills] | None]] = deque()
        with ThreadPoolExecutor(max_workers=min(_VIDEOS_AHEAD, os.cpu_count() or 1)) as pool:
            for path in images:
                relative = path.relative_to(self.source)
                identity = self.deployment_of[relative.parent.as_posix()]
                deployment = deployments.get(identity)
                is_video = get_suffix(path) in MEDIA_TYPES
                sample = Sample(
                    key=(relative if is_video else relative.with_suffix("")).as_posix(),
                    source=relative.as_posix(),
                    load=None,
                    location=path,
                    group=identity if deployment is None else deployment.camera,
                )
                self.key_deployments[sample.key] = identity
                problem, stills = check_file(path, root), None
                if problem is None and is_video:
                    problem = self._find_other_video(sample.key, path)
                if problem is not None:
                    sample.load = make_refusal(problem)
                elif not is_video:
                    self._load_with_time(sample, path, identity, deployment)
                elif self.frames_of is not None and not self._is_complete(sample.key):
                    stills = pool.submit(self.frames_of, path)
                pending.append((sample, path, stills))
                if len(pending) > _VIDEOS_AHEAD:
                    yield from self._finish_sample(*pending.popleft(), deployments)
            while pending:
                yield from self._finish_sample(*pending.popleft(), deployments)

    def _find_other_video(self, video: str, path: Path) -> Problem | None:
        """Return the problem of a video whose path another one had in an earlier import, as of a second season."""
        known = self.known_frames.get(video, {})
        size = str(path.stat().st_size)
        if all(extra[NUM_BYTES] == size for extra in known.values()):
            return None
        return Problem("image", "duplicate key", f"{video!r} belongs to a different video, whose frames are kept")

    def _is_complete(self, video: str) -> bool:
        """Whether all frames of a video were imported; a run that was killed may have left some out."""
        known = self.known_frames.get(video, {})
        return any(int(extra[NUM_FRAMES]) == len(known) for extra in known.values())

    def _finish_sample(
        self, sample: Sample, path: Path, stills: Future[VideoStills] | None, deployments: Mapping[str, Deployment]
    ) -> Iterator[Sample]:
        """Yield a photo or what was refused as it is, and the frames of a video."""
        if sample.load is not None:
            yield sample
            return
        video, identity = sample.key, self.key_deployments.pop(sample.key)
        known = self.known_frames.get(video, {})
        for key in known:
            self.key_deployments[key] = identity
            yield Sample(key=key, source=sample.source, load=None, unchanged=True)
        if stills is None:
            return
        try:
            read = stills.result()
        except BadImage as problem:
            sample.load = make_refusal(Problem("image", problem.reason, str(problem)))
            yield sample
            return
        if read.damage:
            finding = Problem("video", "damaged, of which some frames are used", read.damage)
            yield Sample(key=video, source=sample.source, load=None, problems=[finding], only_problems=True)
        start, time_source = read_video_time(read.tags, path)
        self.num_by_file_date += time_source == BY_FILE_DATE
        extra = {FRAME_RATE: f"{read.frame_rate:g}", NUM_FRAMES: str(len(read.stills)), TIME_SOURCE: time_source}
        extra[NUM_BYTES] = str(path.stat().st_size)
        for still in read.stills:
            key = make_frame_key(video, still.seconds)
            if key in known:
                continue
            self.key_deployments[key] = identity
            time = self.times[key] = format_frame_time(start, still.seconds)
            # The video is the sequence, and so one event.
            medium = Medium(key, identity, video, still.number, time, sample.source, extra)
            deployment = deployments.get(identity)
            yield Sample(
                key=key,
                source=sample.source,
                load=_make_loader(still.data),
                group=sample.group,
                extra=survey_rows(medium),
                context=make_context(medium, deployment),
            )

    def _load_with_time(self, sample: Sample, path: Path, identity: str, deployment: Deployment | None) -> None:
        # EXIF is read from bytes that a thread of the import loads anyway; the sample's rows are used only afterwards.
        read = make_reader(path)

        def load() -> bytes:
            data = read()
            time = read_time(data)
            self.times[sample.key] = time
            medium = Medium(sample.key, identity, time=time, file=sample.source)
            sample.extra = survey_rows(medium)
            sample.context = make_context(medium, deployment)
            return data

        sample.load = load

    def finish(self, writer: CollectionWriter) -> None:
        """Write the deployments, and move images whose folder got another deployment since they were imported."""
        write_survey(writer, deployments=self.table.deployments, format=NAME)
        moved = update_images(writer, self.key_deployments, self.table.deployments, times=self.times)
        further = writer.summary.further
        # Count only imported images: the others have another reason.
        timeless = sum(not time and writer.known_sha256(key) is not None for key, time in self.times.items())
        further["images without a time in EXIF: they have no hour"] += timeless
        frames = sum(bool(find_video(key)) and writer.known_sha256(key) is not None for key in self.key_deployments)
        further["frames of videos"] += frames
        further["videos whose time is that of their file's last change"] += self.num_by_file_date
        further[MOVED] += moved
        further["images of folders that are in no row of the deployments"] += sum(self.unlisted.values())
        # Unary plus drops what was counted 0 times.
        writer.summary.further = +further

    def notes(self) -> list[str]:
        """Return sentences about folders without a row and rows without a folder."""
        used = set(self.deployment_of.values())
        absent = [folder for folder, identity in self.table.ids.items() if identity not in used]
        notes = []
        if self.is_derived:
            ids = [deployment.id for deployment in self.table.deployments]
            more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
            notes.append(
                f"no table of deployments: {len(ids)} by folder ({', '.join(ids[:_LISTED])}{more}), without places; "
                "foveate species check COLLECTION --table FILE writes a first one to complete"
            )
        for name, count in sorted(self.unlisted.items())[:_LISTED]:
            hint = nearest(name, absent)
            notes.append(f"folder {name!r} ({count} images) is in no row of the deployments{hint}")
        if len(self.unlisted) > _LISTED:
            notes.append(f"{len(self.unlisted) - _LISTED} further folders are in no row of the deployments")
        if absent:
            more = f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
            notes.append(f"rows of the deployments without a folder of images: {', '.join(absent[:_LISTED])}{more}")
        return notes


def _make_loader(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _check_untold(target: Path) -> None:
    """Raise UserError if a collection has deployments of a table, which those of folders would replace."""
    if not (target / layout.DESCRIPTION).is_file():
        return
    with Collection.open(target) as collection:
        if told := [entry.id for entry in list_deployments(collection) if not says_nothing(entry)]:
            raise UserError(
                f"--deployments: missing; {target} has deployments of a table, such as {told[0]!r}: give it again, or "
                f"put it into the folder of the cards as {TABLE}"
            )


def find_deployment(folder: str, ids: Mapping[str, str]) -> str | None:
    """Return the id of the deployment of a folder of images, or None.

    Args:
        folder: below the source, with slashes; "." for the source.
        ids: folder of each row -> id. The longest beginning of `folder` wins, then the first of its parts, since cards
            are often copied into a folder of the year or region.
    """
    parts = PurePosixPath(folder).parts
    for length in range(len(parts), 0, -1):
        identity = ids.get("/".join(parts[:length]))
        if identity is not None:
            return identity
    named = next((ids[part] for part in parts if part in ids), None)
    # A row with the folder "." takes what no other row does.
    return ids.get("") if named is None else named


def read_time(data: bytes) -> str:
    """Return the EXIF time at which an image was taken, as written; "" if there is none.

    Fractions of seconds and an offset are appended where the camera writes them. The time of the last change of a file
    (tag DateTime) is none.
    """
    try:
        tags = read_exif(data)
    except BadImage:
        return ""  # the import refuses the image with its reason
    time = _read_text(tags, _DATE_TIME_ORIGINAL)
    if not time.strip(": "):
        return ""  # EXIF writes an unknown time as blanks and colons
    fraction = _read_text(tags, _SUB_SECONDS_ORIGINAL)
    offset = _read_text(tags, _OFFSET_TIME_ORIGINAL)
    if not offset.strip(": ") and _read_text(tags, _DATE_TIME) == time:
        # OffsetTime belongs to DateTime: it is the same offset unless the file was edited in another time zone.
        offset = _read_text(tags, _OFFSET_TIME)
    fraction = f".{fraction}" if fraction.isascii() and fraction.isdigit() else ""
    return time + fraction + (offset if _OFFSET.fullmatch(offset) else "")


def _read_text(tags: Mapping[int, object], tag: int) -> str:
    value = tags.get(tag)
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    # Cameras pad texts with zero bytes.
    return text.split("\0")[0].strip()[:_MAX_TEXT] if isinstance(text, str) else ""


def _recognize(source: str) -> str | None:
    # A Camtrap DP package has a table of this name, too.
    packaged = (Path(source) / "datapackage.json").is_file()
    return f"a folder with {TABLE}" if (Path(source) / TABLE).is_file() and not packaged else None


FORMATS = (
    Format(
        name=NAME,
        run=import_cards,
        recognize=_recognize,
        options=("deployments", "reference"),
        by_option="deployments",
        survey=True,
        videos=True,
    ),
)
