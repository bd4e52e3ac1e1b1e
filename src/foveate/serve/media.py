"""Data URLs to checked images and clips, in a few threads; nothing is fetched, no path opened, no header believed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from foveate.core.errors import UserError
from foveate.records.images import BadImage, check, decode_with_info, detect_format
from foveate.serve.calls import Refused, ServedImage
from foveate.vision.video.sources import Source, open_source

# Count the samples that FFmpeg would list for an MP4 file, before it opens the file.
#
# It writes a row for each sample that the index promises: two kB of file become gigabytes, where all samples have one
# size.
#
# Source: ISO/IEC 14496-12 (boxes); FFmpeg's libavformat/mov.c (which of them it reads, and where).


# FFmpeg lists one sample per PCM chunk, for every 160 or more samples in the file.
_PCM_SAMPLES = 160
_SAMPLE_BYTES = 24
# A fragment for each frame of the longest clips has fewer; millions would take seconds.
_MAX_BOXES = 100_000
_KINDS = (b"stsz", b"stz2", b"stsc", b"stco", b"co64", b"elst")
_UNKNOWN = 2**32


def count_samples(data: bytes, *, max_samples: int) -> int:
    """Return an upper bound of the samples of an MP4; the first above `max_samples` ends the count.

    FFmpeg reads its index boxes wherever they stand, within descriptions of codecs and texts as well. So their tags are
    searched for at every byte but the media's, instead of in the boxes where they belong, and not told apart by track.
    """
    index = _cut_media(data)
    if b"cmov" in index:
        return _UNKNOWN  # packed
    # Fragments can be addressed from an index of their own, to lie within the media.
    fragments = data if b"sidx" in index or b"tfra" in index else index
    if fragments.count(b"trun") + sum(index.count(kind) for kind in _KINDS) > _MAX_BOXES:
        return _UNKNOWN
    total = 0
    for boxes, kind, offset in ((index, b"stsz", 12), (index, b"stz2", 12), (fragments, b"trun", 8)):
        for number in _read_numbers(boxes, kind, offset):
            # It refuses fragments of so many, which are rather words such as "trunk".
            is_text = kind == b"trun" and number * _SAMPLE_BYTES >= 2**32
            total += 1 if is_text else max(1, number)
            if total > max_samples:
                return total
    # The lists of PCM follow from its chunks alone.
    chunks = sum(number for kind in (b"stco", b"co64") for number in _read_numbers(index, kind, 8))
    total = max(total, chunks * -(-_find_largest_chunk(index, max_samples) // _PCM_SAMPLES))
    # Each entry of an edit list may show all samples again.
    return total * max((1, *(_count_edits(index, start) for start in _find(index, b"elst"))))


def _cut_media(data: bytes) -> bytes:
    """Return a file without its media, by the sizes of its outer boxes."""
    start, num_boxes, parts = 0, 0, list[bytes]()
    while start < len(data):
        size, kind, head = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16]), 16
        elif size == 0:
            size = len(data) - start
        num_boxes += 1
        # Behind a broken size everything is searched.
        is_broken = not head <= size <= len(data) - start or num_boxes > _MAX_BOXES
        end = len(data) if is_broken else start + size
        parts += [data[start:end]] if is_broken or kind != b"mdat" else []
        start = end
    return b"".join(parts)


def _find(index: bytes, kind: bytes) -> Iterator[int]:
    position = index.find(kind)
    while position >= 0:
        yield position
        position = index.find(kind, position + 1)


def _read_numbers(index: bytes, kind: bytes, offset: int) -> Iterator[int]:
    return (int.from_bytes(index[start + offset : start + offset + 4]) for start in _find(index, kind))


def _count_edits(index: bytes, start: int) -> int:
    """Return how many edits FFmpeg reads behind a tag: as many as the box can hold, whatever number it names.

    Of a box that is larger than its parent it reads what there is. A title with the letters of the tag ("Edelstahl") is
    such a box, too, and has little behind it.
    """
    size = int.from_bytes(index[start - 4 : start])
    num_bytes = len(index) - start + 4
    entry = 20 if index[start + 4 : start + 5] == b"\1" else 12
    return ((size if 16 <= size <= num_bytes else num_bytes) - 16) // entry


def _find_largest_chunk(index: bytes, max_entries: int) -> int:
    """Return the largest number of samples in a chunk; of tables with more than `max_entries` the largest possible."""
    largest = num_entries = 0
    for start in _find(index, b"stsc"):
        count = min(int.from_bytes(index[start + 8 : start + 12]), max(0, len(index) - start - 12) // 12)
        num_entries += max(1, count)
        if num_entries > max_entries:
            return _UNKNOWN
        if count:
            entries = np.frombuffer(index, ">u4", 3 * count, start + 12)
            largest = max(largest, int(entries[1::3].max()))
    return largest


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
