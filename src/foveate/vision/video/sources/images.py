"""Clips of images: files of a folder, images in memory, a GIF, WebP or PNG with several frames."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.images import (
    SUFFIXES,
    BadImage,
    check,
    decode,
    encode_input,
    iterate_frames,
    read_image_info,
    to_rgb,
)
from foveate.vision.video.sources.source import BadClip, Frame


def open_images(clip: Any, frame_rate: float) -> ImageList:
    """Open a folder or list of images, `frame_rate` of them per second.

    Raises:
        BadClip: the folder has no images.
        UserError: the rate is not above 0.
    """
    if not 0 < frame_rate < float("inf"):
        raise UserError(f"frame_rate: expected images per second above 0 (got {frame_rate})")
    if isinstance(clip, str | os.PathLike):
        return ImageList(str(clip), _list_images(Path(clip)), frame_rate=frame_rate)
    return ImageList("clip", list(clip), frame_rate=frame_rate)


def _list_images(folder: Path) -> list[Path]:
    """List the images of a folder, names sorted as strings as in the official code; hidden files are left out."""
    suffixes = {*SUFFIXES.values(), "jpeg", "tiff"}
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    images = [folder / name for name in names if name.rpartition(".")[2].lower() in suffixes]
    if not images:
        raise BadClip("empty folder", f"{folder}: no images; expected files such as 0001.jpg or 0001.png")
    return images


class ImageList:
    """Images in memory or in files, `frame_rate` of them per second."""

    def __init__(self, name: str, images: Sequence[Any], *, frame_rate: float) -> None:
        self.name, self.images, self.frame_rate = name, images, frame_rate
        self.damage: list[str] = []
        self.header_frames, self.size = 0, (0, 0)

    def predict_times(self) -> list[float]:
        return [index / self.frame_rate for index in range(len(self.images))]

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        self.damage = []
        num_decoded = 0
        for index, item in enumerate(self.images):
            image = None
            try:
                if isinstance(item, Image.Image) or _is_rgb(item):
                    # Pixels in memory cannot be broken: no detour over an encoded file.
                    image = to_rgb(Image.fromarray(item) if isinstance(item, np.ndarray) else item)
                else:
                    data = encode_input(item)
                    image = decode(data) if num_decoded in indices else None
                    # Frames that are not sampled are checked too, so that every pass counts the same frames.
                    if image is None:
                        check(data)
            except UserError as error:
                name = item.name if isinstance(item, Path) else f"image {index}"
                self.damage.append(f"{name}: {error}")
                continue
            yield Frame(index / self.frame_rate, image if num_decoded in indices else None)
            num_decoded += 1


def _is_rgb(item: object) -> bool:
    """Whether it is an array of uint8 [H, W, 3 or 4] with pixels; `encode_input` names what is wrong with others."""
    if not isinstance(item, np.ndarray) or item.dtype != np.uint8 or item.ndim != 3:
        return False
    return item.shape[2] in (3, 4) and item.size > 0


class AnimatedImage:
    """A GIF, WebP or PNG with several frames; a still image is a clip of one frame."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.data = name, data
        self.damage: list[str] = []
        try:
            info = read_image_info(data)[0]
            self.header_frames, self.size = info.frames, (info.width, info.height)
        except BadImage as error:
            raise BadClip(error.reason, f"{name}: {error}") from error

    def predict_times(self) -> list[float]:
        # Only decoding tells how long each frame is shown; 100 ms is the usual time.
        return [index / 10 for index in range(self.header_frames)]

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        self.damage = []
        num_decoded = 0
        try:
            for time, image in iterate_frames(self.data, indices=indices):
                yield Frame(time, image)
                num_decoded += 1
        except BadImage as error:
            self.damage.append(f"after frame {num_decoded}: {error}")
