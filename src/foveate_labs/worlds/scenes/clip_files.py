"""Write frames as animated GIF or WebP, as a video file, or as a folder of images."""

from __future__ import annotations

import itertools
import math
import shutil
import uuid
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import UserError, choose
from foveate.core.files import atomic_file, commit_atomically

# Encoder, pixel format and its options; FFV1 keeps every pixel, H.264 is what players open.
_ENCODERS = {
    ".mp4": ("mp4", "libx264", "yuv420p", {"crf": "18"}),
    ".mkv": ("matroska", "ffv1", "bgr0", {}),
}
SUFFIXES = (".gif", ".webp", *_ENCODERS, "")


def write_frames(frames: Iterable[NDArray[np.uint8]], path: str | Path, *, frame_rate: float = 8.0) -> None:
    """Write frames (height, width, 3) to a file by its suffix, or to a new folder if it has none.

    `.mp4` is H.264 and loses details; `.mkv` (FFV1), `.webp` and a folder of PNG keep every pixel; `.gif` keeps 256
    colors a frame and hundredths of a second. GIF and WebP merge equal frames into one that lasts longer, and are
    written from memory; the others take one frame at a time.

    Args:
        frames: of one size, an even one for `.mp4`.

    Raises:
        UserError: an unknown suffix, no frames, frames of two shapes, a folder that exists, odd sides for `.mp4`, a
            frame rate that is not above 0, or PyAV is missing.
    """
    path = Path(path)
    suffix = choose(path.suffix.lower(), SUFFIXES, "suffix of a clip")
    check_frame_rate(frame_rate)
    iterator = iter(frames)
    # The first frame is drawn before any file is opened, so that its errors leave no file behind.
    first = next(iterator, None)
    if first is None:
        raise UserError(f"{path}: no frames; expected at least one")
    frames = _check_shapes(itertools.chain([first], iterator), path, first.shape)
    if not suffix:
        _write_folder(frames, path)
        return
    if suffix == ".mp4" and (first.shape[0] % 2 or first.shape[1] % 2):
        raise UserError(f"{path}: odd sides for H.264 (got {first.shape[1]} x {first.shape[0]}); expected even ones")
    with atomic_file(path) as handle:
        if suffix in _ENCODERS:
            _encode(frames, handle, suffix, frame_rate)
        else:
            images = (Image.fromarray(pixels_HW3) for pixels_HW3 in frames)
            options = {"lossless": True} if suffix == ".webp" else {}
            next(images).save(
                *(handle, suffix[1:]),
                save_all=True,
                append_images=images,
                duration=round(1000 / frame_rate),
                loop=0,
                **options,
            )


def check_frame_rate(frame_rate: float) -> None:
    """Raise UserError unless a frame rate is above 0 and finite."""
    if not 0 < frame_rate < math.inf:
        raise UserError(f"frame_rate: not above 0 (got {frame_rate}); expected frames in a second")


def _check_shapes(
    frames: Iterable[NDArray[np.uint8]], path: Path, shape: tuple[int, ...]
) -> Iterator[NDArray[np.uint8]]:
    # Encoders would scale other frames silently.
    for index, pixels_HW3 in enumerate(frames):
        if pixels_HW3.shape != shape:
            raise UserError(f"{path}: frame {index} has another shape (got {pixels_HW3.shape}); expected {shape}")
        yield pixels_HW3


def _write_folder(frames: Iterator[NDArray[np.uint8]], path: Path) -> None:
    if path.exists():
        raise UserError(f"{path}: exists; expected a new folder")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        for index, pixels_HW3 in enumerate(frames):
            Image.fromarray(pixels_HW3).save(temporary / f"{index:06d}.png")
        commit_atomically(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encode(frames: Iterator[NDArray[np.uint8]], handle: BinaryIO, suffix: str, frame_rate: float) -> None:
    try:
        import av
    except ImportError:
        raise UserError(f"{suffix} needs PyAV: run `pip install 'foveate[video]'`, or write .gif or .webp") from None
    container_format, encoder, pixel_format, options = _ENCODERS[suffix]
    with av.open(handle, "w", format=container_format) as container:
        stream = container.add_stream(encoder, Fraction(frame_rate).limit_denominator(1000), options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = pixel_format
        for index, pixels_HW3 in enumerate(frames):
            if not index:
                stream.height, stream.width = pixels_HW3.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HW3, format="rgb24")))
        # Encoders hold frames back until they are flushed with None.
        container.mux(stream.encode(None))
