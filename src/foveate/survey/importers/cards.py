"""Import the cards of a camera-trap survey: a folder per camera, EXIF times, and a table of deployments.

The folder of a deployment is the cell `folder` of its row, or else its id; images may lie at any depth below it.
Without a table each camera's folder is a deployment without a place. Times come only from EXIF: no file name, file date
or folder replaces a missing one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
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
from foveate.records.importers.sample import IMAGE_SUFFIXES, REFUSED_SUFFIXES, Sample, SharedOptions
from foveate.records.writer import CollectionWriter
from foveate.survey.deployments import TABLE, DeploymentTable, derive_table, read_deployments
from foveate.survey.store import (
    MOVED,
    list_deployments,
    make_context,
    says_nothing,
    select_deployments,
    survey_rows,
    update_images,
    write_survey,
)
from foveate.survey.types import Deployment, Medium

NAME = "cards"
_VIDEO_SUFFIXES = frozenset("avi mp4 mov mts m4v mkv 3gp wmv".split())
_DATE_TIME, _DATE_TIME_ORIGINAL, _OFFSET_TIME, _OFFSET_TIME_ORIGINAL = 0x0132, 0x9003, 0x9010, 0x9011
_SUB_SECONDS_ORIGINAL = 0x9291
_OFFSET = re.compile(r"[+-]\d{2}:?\d{2}|Z")
_MAX_TEXT = 64  # letters of an EXIF time; damaged tags may be long
_LISTED = 5


def import_cards(
    source: str | Path,
    target: str | Path,
    *,
    deployments: str | Path | None = None,
    reference: bool = False,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import all images below `source` as a survey into the collection `target`.

    Importing again adds only what is new, and corrected rows of deployments take the place of old ones.

    Args:
        source: folder with a folder per camera.
        target: collection folder; created if it does not exist.
        deployments: table of deployments, see `read_deployments`; by default `deployments.csv` in `source`, and else
            the folders themselves, see `derive_table`.
        reference: leave the files where they are and only refer to them.
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
    images = [path for path in files if get_suffix(path) in IMAGE_SUFFIXES | REFUSED_SUFFIXES]
    if not images:
        raise UserError(f"{source} has no images; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if is_derived:
        table = derive_table(
            (path.parent.relative_to(source).as_posix() for path in images), name=source.resolve().name
        )
        _check_untold(Path(target))
    cards = _Cards(source, table, is_derived=is_derived)
    cards.match_folders(images)
    videos = sum(get_suffix(path) in _VIDEO_SUFFIXES for path in files)
    used = IMAGE_SUFFIXES | REFUSED_SUFFIXES | set(_VIDEO_SUFFIXES)
    others = (get_suffix(path) for path in files if get_suffix(path) not in used and path != table_path)
    summary = import_samples(
        target,
        cards.samples(images),
        default_source=source.resolve().name,
        total=len(images),
        ignored=count_kinds(others, hidden=hidden),
        reference=reference,
        further=Counter({"videos, which are not read": videos}),
        # Check deployments before the first image: a second season with the ids of the first is refused, and the survey
        # stays unchanged.
        begin=lambda writer: select_deployments(writer, table.deployments),
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
    deployment_of: dict[str, str] = field(default_factory=dict)  # folder of images -> id of its deployment
    unlisted: Counter[str] = field(default_factory=Counter)  # images of folders that no row has
    key_deployments: dict[str, str] = field(default_factory=dict)
    times: dict[str, str] = field(default_factory=dict)  # EXIF times of the images that were read

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

    def samples(self, images: list[Path]) -> Iterator[Sample]:
        """Yield the sample of each image; its time is read with its bytes."""
        root = self.source.resolve()
        deployments = {deployment.id: deployment for deployment in self.table.deployments}
        for path in images:
            relative = path.relative_to(self.source)
            identity = self.deployment_of[relative.parent.as_posix()]
            deployment = deployments.get(identity)
            sample = Sample(
                key=relative.with_suffix("").as_posix(),
                source=relative.as_posix(),
                load=None,
                location=path,
                group=identity if deployment is None else deployment.camera,
            )
            self.key_deployments[sample.key] = identity
            problem = check_file(path, root)
            if problem is None:
                self._load_with_time(sample, path, identity, deployment)
            else:
                sample.load = make_refusal(problem)
            yield sample

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
    ),
)
