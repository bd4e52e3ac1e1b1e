"""Videos of camera traps: the frames that are images of a survey, their keys and times, and back to one video.

A video is one event. Its frames are images with keys such as `A/VID_0001.MP4#t=3.0`, the seconds from its start; the
path before `#t=` is the file of each of them and the id of the event. Files are read elsewhere
(`foveate.vision.video.stills`), because this room has no decoder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from foveate.records.boxes import Box
from foveate.survey.detections import DetectedImage, Detection
from foveate.survey.hours import FIRST_YEAR

# What cameras write; the values are what Camtrap DP calls a medium.
MEDIA_TYPES = {
    "mp4": "video/mp4",
    "m4v": "video/x-m4v",
    "mov": "video/quicktime",
    "avi": "video/x-msvideo",
    "mts": "video/mp2t",
    "mkv": "video/x-matroska",
    "3gp": "video/3gpp",
    "wmv": "video/x-ms-wmv",
}
"""Suffixes of videos and their media types."""
# Further fields of the row of a frame.
FRAME_RATE, NUM_FRAMES, NUM_BYTES, TIME_SOURCE = "frameRate", "videoFrames", "videoBytes", "timeSource"
BY_FILE_DATE = "file modification time"
"""Source of a time that no container and no file name states: a copy of the file may have another one."""
FRAME_MARK = "#t="
"""Between the path of a video and the seconds of a frame in the key of the frame."""
_KEY = re.compile(rf"(?P<video>.+\.(?:{'|'.join(MEDIA_TYPES)})){FRAME_MARK}(?P<seconds>\d+(?:\.\d+)?)", re.IGNORECASE)
_QUICKTIME = "com.apple.quicktime.creationdate"
# 20260531_082538, 2026-05-31 08.25.38, ...: the year first, and no digit before or behind.
_IN_NAME = re.compile(r"(?<!\d)(20\d\d)([-_.]?)(\d\d)\2(\d\d)[-_.T ]{0,3}(\d\d)([-_.h:]?)(\d\d)[-_.m:]?(\d\d)(?!\d)")


@dataclass(frozen=True, slots=True)
class Still:
    """One frame of a video: its number among all frames, seconds from the start, and bytes of a JPEG."""

    number: int
    seconds: float
    data: bytes


@dataclass(frozen=True, slots=True)
class VideoStills:
    """Sampled frames of a video.

    Args:
        frame_rate: frames a second, by the header or else by the frames.
        tags: metadata of the container, such as `creation_time`.
        damage: why the rest of a damaged video cannot be read; "" for a whole one.
    """

    stills: Sequence[Still]
    frame_rate: float
    tags: Mapping[str, str] = field(default_factory=dict)
    damage: str = ""


FramesOf = Callable[[Path], VideoStills]
"""Reads a video; raises BadImage where it has no readable frame."""


def make_frame_key(video: str, seconds: float) -> str:
    """Return the key of a frame, as a media fragment of the W3C.

    >>> make_frame_key("A/VID_0001.MP4", 3.0)
    'A/VID_0001.MP4#t=3.0'
    """
    # A video has fewer than 1,000 frames a second.
    return f"{video}{FRAME_MARK}{round(seconds, 3)}"


def find_video(key: str) -> str:
    """Return the path of the video that an image is a frame of; "" for a photo.

    >>> find_video("A/VID_0001.MP4#t=3.0"), find_video("A/IMG_0001")
    ('A/VID_0001.MP4', '')
    """
    match = _KEY.fullmatch(key) if FRAME_MARK in key else None
    return match["video"] if match else ""


def media_type(video: str) -> str:
    """Return the media type of a video by its suffix."""
    return MEDIA_TYPES[video.rpartition(".")[2].lower()]


def read_video_time(tags: Mapping[str, str], path: Path) -> tuple[datetime | None, str]:
    """Return when a video begins, and where that is written; None where nothing says it.

    A container's creation time is taken as the clock of the camera. MP4 wants it in UTC, but camera traps know no time
    zone and write the clock that they also print on the frame; camtrapR and ExifTool read it so, too. Only QuickTime's
    creationdate has an offset, which is kept. A year before 2000 is a clock that was never set, or none.

    Args:
        tags: metadata of the container.
        path: of the file: its name may have the time, and the time of its last change is the last resort.
    """
    for name in (_QUICKTIME, "creation_time", "date"):
        if (time := _parse(tags.get(name, ""), keep_offset=name == _QUICKTIME)) is not None:
            return time, "container"
    match = _IN_NAME.search(path.stem)
    if match:
        year, _, month, day, hour, _, minute, second = match.groups()
        if (time := _parse(f"{year}-{month}-{day}T{hour}:{minute}:{second}", keep_offset=False)) is not None:
            return time, "file name"
    try:
        # In the zone of this computer: cards have the camera's clock, which systems read as their own.
        return datetime.fromtimestamp(int(path.stat().st_mtime)), BY_FILE_DATE
    except (OSError, OverflowError, ValueError):
        return None, ""


def _parse(text: str, *, keep_offset: bool) -> datetime | None:
    text = text.strip().replace("/", "-")
    # A mere date, as some tools write it, is no time.
    if len(text) < len("2026-05-31 08:25"):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.year < FIRST_YEAR:
        return None
    return time if keep_offset else time.replace(tzinfo=None, microsecond=0)


def format_frame_time(start: datetime | None, seconds: float) -> str:
    """Return the time of a frame as ISO 8601; "" where the start is unknown.

    >>> format_frame_time(datetime(2026, 5, 31, 8, 25, 38), 3.5)
    '2026-05-31T08:25:41.500'
    """
    if start is None:
        return ""
    moment = start + timedelta(seconds=round(seconds, 3))
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")


# From one file of results to the frames of a survey, and back.


def split_video(image: DetectedImage, numbers: Sequence[int]) -> list[DetectedImage]:
    """Return what a detector says of a video for each of the survey's frames.

    Each frame that the detector looked at belongs to the nearest of these; of several, the one with the surest box
    speaks for it, so that no animal is lost. A box without the number of a frame is one of the first.

    Args:
        numbers: of the survey's frames among all frames of the video.
    """
    by_frame: dict[int, list[Detection]] = {}
    for detection in image.detections:
        by_frame.setdefault(detection.frame or 0, []).append(detection)
    best: dict[int, list[Detection]] = {}
    for frame, boxes in by_frame.items():
        # The earlier one of two that are equally near.
        nearest = min(range(len(numbers)), key=lambda index: (abs(numbers[index] - frame), index))
        surest = max(box.confidence for box in boxes)
        rival = max((box.confidence for box in best.get(nearest, ())), default=-1.0)
        # The same frame wins over another one with an equal box.
        if surest > rival or (surest == rival and frame == numbers[nearest]):
            best[nearest] = boxes
    return [replace(image, detections=tuple(best.get(index, ()))) for index in range(len(numbers))]


def join_videos(
    images: Iterable[tuple[str, DetectedImage]], frames: Mapping[str, tuple[int, float]]
) -> Iterator[DetectedImage]:
    """Yield photos as they are, and after them each video with the detections of all its frames.

    Args:
        images: with their keys; the file of a frame is that of its video.
        frames: number and frame rate of each frame of a video, by key.
    """
    videos: dict[str, list[tuple[int, float, DetectedImage]]] = {}
    for key, image in images:
        if key in frames:
            videos.setdefault(image.file, []).append((*frames[key], image))
        else:
            yield image
    for parts in videos.values():
        parts.sort(key=lambda part: part[0])
        _, rate, first = parts[0]
        readable = [(number, image) for number, _, image in parts if not image.failure]
        if not readable:
            yield first
            continue
        detections = [box for number, image in readable for box in _number_boxes(image, number)]
        numbers = tuple(number for number, _ in readable)
        yield DetectedImage(first.file, tuple(detections), time=first.time, frame_rate=rate, frames=numbers)


def _number_boxes(image: DetectedImage, number: int) -> Iterator[Detection]:
    """Yield the boxes of a frame with its number; what is said of the whole frame is a box of it."""
    for detection in image.detections:
        yield replace(detection, frame=number)
    said = image.prediction
    if said is not None and said.label.kind in ("animal", "human", "vehicle"):
        category = {"human": "person"}.get(said.label.kind, said.label.kind)
        whole = Box(0.0, 0.0, 1.0, 1.0)
        yield Detection(category, said.score, whole, classifications=((said.label, said.score),), frame=number)


# What is said of frames, as said of their video.


def select_shown(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what frames of a video show of kinds and taxa: "blank" only where no other frame shows anything.

    >>> select_shown([("blank", ""), ("animal", "Vulpes vulpes"), ("unclassified", "")])
    [('animal', 'Vulpes vulpes')]
    """
    names = list(names)
    for silent in (("unclassified", "blank", "unknown"), ("unclassified", "blank"), ("unclassified",)):
        if shown := [name for name in names if name[0] not in silent]:
            return shown
    return names


def join_frames(
    rows: Iterable[dict[str, object]], videos: Mapping[str, tuple[str, str]]
) -> Iterator[dict[str, object]]:
    """Yield observations of Camtrap DP, and in place of those of frames one of their video for each kind and taxon.

    It is one about the event, which the video is. What a row of the event says already is left out.

    Args:
        videos: times of the first and last frame by the medium.
    """
    said: dict[object, set[tuple[str, str]]] = defaultdict(set)
    pending: dict[str, dict[tuple[str, str], dict[str, object]]] = defaultdict(dict)
    for row in rows:
        name, medium = (str(row["observationType"]), str(row["scientificName"])), str(row["mediaID"])
        if medium not in videos or row["observationLevel"] == "event":
            said[row["eventID"]].add(name)
            yield row
            continue
        known = pending[medium].setdefault(name, row)
        # A person before a machine, and then the surest frame.
        ranks = [
            (each["classificationMethod"] == "human", each["classificationProbability"] or 0) for each in (row, known)
        ]
        if ranks[0] > ranks[1]:
            pending[medium][name] = row
    for medium, of_video in pending.items():
        start, end = videos[medium]
        event = next((row["eventID"] for row in of_video.values() if row["eventID"]), medium)
        for name in select_shown({**of_video, **dict.fromkeys(said[event])}):
            if name not in said[event]:
                row = {column: value for column, value in of_video[name].items() if not column.startswith("bbox")}
                about = {"observationLevel": "event", "mediaID": "", "eventID": event}
                yield {**row, **about, "eventStart": start, "eventEnd": end}
