"""Batches of caption requests that come one by one; used by the backend `foveate` and by the server.

Images that were asked about lately keep their features, so that four formats of one image cost one pass of the encoder.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from foveate.caption.small import encode_image
from foveate.caption.small.folder import SmallCaptioner
from foveate.caption.small.generate import CaptionTask, GeneratedCaption, generate_captions
from foveate.chat.batching import DynamicBatcher
from foveate.core.errors import UserError
from foveate.records.images import BadImage

_MAX_WAIT_SECONDS = 0.01
_CACHED_IMAGES = 1024
_DECODERS = 2
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, MemoryError, UserError)


class BatchedCaptioner:
    """Writes captions for callers of one event loop, at most `batch` together."""

    def __init__(self, captioner: SmallCaptioner, *, batch: int) -> None:
        self.captioner, self.batch = captioner, batch
        self._device = next(captioner.model.parameters()).device
        self._prefixes: OrderedDict[bytes, Tensor] = OrderedDict()
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._batcher: DynamicBatcher[tuple[bytes, CaptionTask], GeneratedCaption] = DynamicBatcher(
            self._write, max_batch=batch, max_wait_seconds=_MAX_WAIT_SECONDS
        )

    async def write(self, image: bytes, ask: CaptionTask) -> GeneratedCaption:
        """Write the caption of an image.

        Raises:
            BadImage: the bytes cannot be shown to the captioner.
            RuntimeError: the captioner failed on the batch.
        """
        return await self._batcher.submit((image, ask))

    async def close(self) -> None:
        """Finish what was asked for, and end the threads."""
        await self._batcher.close()
        self._decoders.shutdown()

    def _write(self, requests: Sequence[tuple[bytes, CaptionTask]]) -> Sequence[GeneratedCaption | Exception]:
        try:
            prefixes = self._look([image for image, _ in requests])
            readable = [index for index, prefix in enumerate(prefixes) if isinstance(prefix, Tensor)]
            if not readable:
                return [prefix for prefix in prefixes if isinstance(prefix, BadImage)]
            stacked_BPD = torch.stack([prefixes[index] for index in readable])  # pyrefly: ignore
            asks = [requests[index][1] for index in readable]
            written = iter(generate_captions(self.captioner, stacked_BPD, asks, batch=self.batch))
            return [prefix if isinstance(prefix, BadImage) else next(written) for prefix in prefixes]
        except _FAILURES as error:
            # One type for callers, who answer with an error and go on with the next batch.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def _look(self, images: list[bytes]) -> list[Tensor | BadImage]:
        """The prefix [P, D] of each image, or why it has none."""
        encoder = self.captioner.model.image_encoder
        names = [hashlib.sha256(image).digest() for image in images]
        new = {name: image for name, image in zip(names, images, strict=True) if name not in self._prefixes}
        bad: dict[bytes, BadImage] = {}

        def decoded(image: bytes) -> Tensor | BadImage:
            try:
                return encode_image.pixels(image, encoder.preprocess)
            except BadImage as problem:
                return problem

        pixels = dict(zip(new, self._decoders.map(decoded, new.values()), strict=True))
        bad = {name: result for name, result in pixels.items() if isinstance(result, BadImage)}
        good = {name: result for name, result in pixels.items() if isinstance(result, Tensor)}
        if good:
            with torch.inference_mode():
                seen = encode_image.features(list(good.values()), encoder, self._device)
                for name, prefix_PD in zip(good, self.captioner.model.prefix(seen), strict=True):
                    self._prefixes[name] = prefix_PD
        result = [bad[name] if name in bad else self._prefixes[name] for name in names]
        while len(self._prefixes) > _CACHED_IMAGES:
            self._prefixes.popitem(last=False)
        return result
