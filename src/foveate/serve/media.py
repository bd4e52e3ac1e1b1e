"""Data URLs to checked images, in a few threads: nothing is fetched, no path is opened, no header is believed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from foveate.records.images import BadImage, check, decode_with_info
from foveate.serve.calls import Refused, ServedImage

# Each decodes one image at a time: with them the memory that pixels take is bounded.
_MAX_THREADS = 4
_HEAD = re.compile(r"data:(?:image/[a-z0-9.+-]{1,40})?(?:;[a-z0-9=.+-]{1,40}){0,3};base64,", re.IGNORECASE)


def read_data_url(url: str, *, max_pixels: int, name: str, param: str, longest_side: int | None = None) -> ServedImage:
    """Decode a data URL and check the image in it.

    Args:
        name: of the image in errors. param: of OpenAI's error object.
        longest_side: in pixels, of the decoded image that goes with it; None: none does.

    Raises:
        Refused: it is another address, no base64, or an image that is damaged or has too many pixels by its header.
    """
    match = _HEAD.match(url)
    if match is None:
        raise Refused(
            f"{name}: nothing is fetched (got '{url[:24]}'); expected data:image/png;base64,...",
            param=param,
            code="invalid_image_url",
        )
    try:
        data = base64.b64decode(memoryview(url.encode("ascii"))[match.end() :], validate=True)
        if longest_side is None:
            info, decoded = check(data, max_pixels=max_pixels), None
        else:
            decoded = decode_with_info(data, longest_side=longest_side, max_pixels=max_pixels)
            info = decoded.info
    except (binascii.Error, UnicodeEncodeError):
        raise Refused(f"{name}: the data URL is not base64", param=param, code="invalid_base64") from None
    except BadImage as problem:
        raise Refused(f"{name}: {problem}", param=param, code="invalid_image") from None
    return ServedImage(data, info.width, info.height, decoded)


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

    def close(self) -> None:
        """End the threads once they are idle."""
        self.pool.shutdown(wait=False)
