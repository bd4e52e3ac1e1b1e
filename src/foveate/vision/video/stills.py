"""Sample the frames of a camera trap's video as JPEG images: one a second, at most twelve, evenly."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from foveate.core.errors import UserError
from foveate.records.images import NEEDS_EXTRA, BadImage
from foveate.survey.videos import Still, VideoStills
from foveate.vision.video.reading import ClipReader
from foveate.vision.video.sources import BadClip, VideoFile, load_decoder, open_source

STILLS_PER_SECOND, MAX_STILLS = 1.0, 12
"""Traps film for 5 to 60 seconds: twelve frames show what passes, and cost as much as four bursts."""
_QUALITY = 90  # of the JPEG; the video was compressed more than that


def read_stills(path: Path) -> VideoStills:
    """Read the sampled frames of a video, upright; of a damaged one those that can be decoded.

    A frame a second from the first frame on; of a video of more than twelve seconds, twelve at equal distances from the
    first frame to the last.

    Raises:
        BadImage: no frame can be read, the file cannot be reached, or the extra `video` is missing.
    """
    try:
        load_decoder(path)
    except UserError as error:
        raise BadImage(NEEDS_EXTRA, str(error)) from error
    _check_reachable(path)
    try:
        source = open_source(path)
        reader = ClipReader(source, MAX_STILLS, rule="fps", fps=STILLS_PER_SECOND, allow_damaged=True)
        images = reader.read(_encode_frames)
    except BadClip as problem:
        # A card that is pulled out looks like a damaged file.
        _check_reachable(path)
        raise BadImage(problem.reason, str(problem)) from problem
    record = reader.record
    frames = zip(record.indices, record.times, images, strict=True)
    stills = [Still(number, max(time - record.seconds[0], 0.0), data) for number, time, data in frames]
    # A GIF that is named like a video has neither.
    tags, rate = (source.tags, source.frame_rate) if isinstance(source, VideoFile) else ({}, 0.0)
    if not rate:
        length = record.seconds[1] - record.seconds[0]
        rate = (record.num_decoded - 1) / length if length > 0 else 1.0
    return VideoStills(stills, round(rate, 3), tags, record.warnings[0] if source.damage else "")


def _encode_frames(frames: Iterator[Image.Image]) -> list[bytes]:
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
        encoded.append(buffer.getvalue())
    return encoded


def _check_reachable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise BadImage("unreadable", f"the file cannot be read: {error.strerror or error}") from error
