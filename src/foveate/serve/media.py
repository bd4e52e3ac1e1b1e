"""Data URLs to checked images and clips, in a few threads; nothing is fetched, no path opened, no header believed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from foveate.core.errors import UserError
from foveate.records.images import BadImage, check, decode_with_info, detect_format
from foveate.serve.calls import Refused, ServedImage
from foveate.serve.mp4_index import count_samples
from foveate.vision.video.sources.opening import open_source
from foveate.vision.video.sources.source import Source

# Each decodes one image at a time: with them the memory that pixels take is bounded.
_MAX_THREADS = 4
# Sound has samples, too: 40 s of 48 kHz.
_MAX_SAMPLES = 2_000_000
# Each four letters are three bytes, so parts of a multiple of four can be decoded one by one.
_DECODED_LETTERS = 2**20
_EBML = b"\x1a\x45\xdf\xa3"
_HEAD = re.compile(r"data:(?:(?:image|video)/[a-z0-9.+-]{1,40})?(?:;[a-z0-9=.+-]{1,40}){0,3};base64,", re.IGNORECASE)


def read_data_url(url: str, *, max_pixels: int, name: str, param: str, longest_side: int | None = None) -> ServedImage:
    """Decode a data URL and check the image in it.

    Args:
        name: of the image in errors. param: of OpenAI's error object.
        longest_side: in pixels, of the decoded image that goes with it; None: none does.

    Raises:
        Refused: it is another address, no base64, or an image that is damaged or has too many pixels by its header.
    """
    data = _read_base64(url, name=name, param=param, expected="data:image/png;base64,...", kind="image")
    try:
        if longest_side is None:
            info, decoded = check(data, max_pixels=max_pixels), None
        else:
            decoded = decode_with_info(data, longest_side=longest_side, max_pixels=max_pixels)
            info = decoded.info
    except BadImage as problem:
        raise Refused(f"{name}: {problem}", param=param, code="invalid_image") from None
    return ServedImage(data, info.width, info.height, decoded)


def read_clip_url(url: str, *, max_pixels: int, max_frames: int, name: str, param: str) -> Source:
    """Open the clip of a data URL, and judge its header; its frames are not decoded.

    Args:
        max_pixels: of a frame. name, param: see `read_data_url`.

    Raises:
        Refused: it is another address, no base64, no clip, or its frames are too many or too large.
    """
    data = _read_base64(url, name=name, param=param, expected="data:video/mp4;base64,...", kind="video")
    try:
        _check_container(data)
        source = open_source(data)
        width, height = source.size
        if width * height > max_pixels:
            raise UserError(f"clip: frames of {width} x {height} pixels; expected at most {max_pixels:,}")
        # A header may promise fewer frames than there are packets, whose number the size of the request limits.
        count = source.header_frames
        count = count if count > max_frames else max(count, len(source.predict_times()))
        if count > max_frames:
            raise UserError(f"clip: {count:,} frames; expected at most {max_frames:,}")
    except UserError as problem:
        raise Refused(f"{name}: {problem}", param=param, code="invalid_video") from None
    return source


def _check_container(data: bytes) -> None:
    """Raise UserError for what FFmpeg shall not see: rare containers, and an MP4 whose index would fill the memory."""
    if not data or data.startswith(_EBML):
        return
    if data[4:8] != b"ftyp":
        # By the whole signature, as `open_source` does: what it takes for no image goes to FFmpeg.
        with contextlib.suppress(BadImage):
            if detect_format(data) in ("GIF", "WEBP", "PNG"):
                return
        raise UserError(f"clip: not a video (got {data[:8]!r}); expected MP4, WebM, GIF, WebP or PNG")
    num_samples = count_samples(data, max_samples=_MAX_SAMPLES)
    if num_samples > _MAX_SAMPLES:
        raise UserError(f"clip: its index has {num_samples:,} samples or is packed; expected at most {_MAX_SAMPLES:,}")


def _read_base64(url: str, *, name: str, param: str, expected: str, kind: str) -> bytes:
    match = _HEAD.match(url)
    if match is None:
        text = f"{name}: nothing is fetched (got '{url[:24]}'); expected {expected}"
        raise Refused(text, param=param, code=f"invalid_{kind}_url")
    try:
        return decode_base64(memoryview(url.encode("ascii"))[match.end() :])
    except (binascii.Error, UnicodeEncodeError):
        raise Refused(f"{name}: the data URL is not base64", param=param, code="invalid_base64") from None


def decode_base64(letters: memoryview) -> bytes:
    """Decode base64 strictly, and let other threads run in between.

    Raises:
        binascii.Error: letters outside the alphabet, or padding that is missing or not at the end.
    """
    # The decoder holds the interpreter's lock: 24 MB at once would stop the event loop for 0.1 s.
    parts = [
        base64.b64decode(letters[start : start + _DECODED_LETTERS], validate=True)
        for start in range(0, len(letters), _DECODED_LETTERS)
    ]
    if any(len(part) != _DECODED_LETTERS // 4 * 3 for part in parts[:-1]):
        raise binascii.Error("padding before the end")
    return b"".join(parts)


class ImageDecoder:
    """Threads that decode the images of requests, so that the event loop never does."""

    def __init__(self, *, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="decoder")

    async def read(self, urls: Sequence[str], *, param: str, longest_side: int | None = None) -> list[ServedImage]:
        """Decode the images of a request, in their order.

        Args:
            longest_side: in pixels, of the decoded image that goes with the only one of a request.

        Raises:
            Refused: for the first image that cannot be used; the others are decoded no more.
        """
        loop, images = asyncio.get_running_loop(), []
        # One after the other: a request with many images takes one thread from the other clients, not all.
        for number, url in enumerate(urls):
            name = f"{param}: image {number + 1}" if len(urls) > 1 else param
            read = functools.partial(
                read_data_url,
                url,
                max_pixels=self.max_pixels,
                name=name,
                param=param,
                longest_side=longest_side if len(urls) == 1 else None,
            )
            images.append(await loop.run_in_executor(self.pool, read))
        return images

    async def read_clips(self, urls: Sequence[str], *, param: str, max_frames: int) -> list[Source]:
        """Open the clips of a request, in their order; see `read_clip_url`."""
        loop, clips = asyncio.get_running_loop(), []
        options = {"max_pixels": self.max_pixels, "max_frames": max_frames, "name": f"{param}: video_url"}
        for url in urls:
            read = functools.partial(read_clip_url, url, param=param, **options)
            clips.append(await loop.run_in_executor(self.pool, read))
        return clips

    def close(self) -> None:
        """End the threads once they are idle."""
        self.pool.shutdown(wait=False)
