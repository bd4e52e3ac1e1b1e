"""Open a clip, recognized by its content."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foveate.core.errors import UserError
from foveate.records.images import BadImage, ImageInput, detect_format, encode_input
from foveate.vision.video.sources.images import AnimatedImage, open_images
from foveate.vision.video.sources.source import BadClip, Source
from foveate.vision.video.sources.video_file import VideoFile

ClipInput = str | os.PathLike[str] | bytes | Sequence[ImageInput] | np.ndarray | Source
"""A clip of the Python API: a video file, GIF, WebP or folder of images; images; uint8 pixels [T, H, W, 3]; the bytes
of a file; or a source that `open_source` opened."""


def open_source(clip: ClipInput, *, frame_rate: float | None = None) -> Source:
    """Open a clip, recognized by its content; see `foveate.vision.video.reading.read_clip`.

    Raises:
        BadClip: it cannot be opened, or is no clip.
        UserError: PyAV is needed and missing.
    """
    if isinstance(clip, Source):
        return clip
    is_path = isinstance(clip, str | os.PathLike)
    if (is_path and Path(clip).is_dir()) or not (is_path or isinstance(clip, bytes)):
        return open_images(clip, 1.0 if frame_rate is None else frame_rate)
    if frame_rate is not None:
        raise UserError(
            f"frame_rate: is for folders and lists of images (got {frame_rate}); this clip has its own times"
        )
    if isinstance(clip, bytes):
        if not clip:
            raise BadClip("empty file", "clip: 0 bytes; expected a video")
        return AnimatedImage("clip", clip) if _is_image(clip) else VideoFile(clip)
    path = Path(clip)
    if not path.is_file():
        problem = "a pipe, socket or device" if path.exists() else "no such file"
        raise BadClip("unreadable", f"{path}: {problem}; expected a video file or a folder of images")
    # Image signatures are at the start of a file, so a long video is not read for them.
    with path.open("rb") as handle:
        start = handle.read(512)
    if not start:
        raise BadClip("empty file", f"{path}: the file has 0 bytes; expected a video")
    return AnimatedImage(str(path), encode_input(path)) if _is_image(start) else VideoFile(path)


def _is_image(start: bytes) -> bool:
    try:
        detect_format(start)
    except BadImage:
        return False
    return True
