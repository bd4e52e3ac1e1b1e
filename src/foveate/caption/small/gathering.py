"""Requests that come one by one, gathered into batches for the captioner; used by the backend and by the server.

Whoever asks first waits a moment for others; while a batch is written the next one gathers. Images that were asked
about lately keep their features, so that four formats of one image cost one look at it.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.caption.small import see
from foveate.caption.small.folder import SmallCaptioner
from foveate.caption.small.generate import Ask, Written, write
from foveate.core.errors import UserError
from foveate.records.images import BadImage

_WAIT_SECONDS = 0.01
_KEPT_IMAGES = 1024
_DECODERS = 2


@dataclass
class _Waiting:
    image: bytes
    ask: Ask
    answer: asyncio.Future[Written]


class Gatherer:
    """Writes captions for callers of one event loop; `batch` is the most requests that are written together."""

    def __init__(self, captioner: SmallCaptioner, *, batch: int) -> None:
        self.captioner, self.batch = captioner, batch
        self._device = next(captioner.model.parameters()).device
        self._waiting: list[_Waiting] = []
        self._running: asyncio.Task[None] | None = None
        self._prefixes: OrderedDict[bytes, Tensor] = OrderedDict()
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._lock = threading.Lock()

    async def write(self, image: bytes, ask: Ask) -> Written:
        """The caption of an image.

        Raises:
            BadImage: when the bytes are none that can be shown to the captioner.
        """
        waiting = _Waiting(image, ask, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work())
        return await waiting.answer

    async def close(self) -> None:
        """Waits for what is being written, and ends the threads."""
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)
        self._decoders.shutdown()

    async def _work(self) -> None:
        await asyncio.sleep(_WAIT_SECONDS)
        while self._waiting:
            batch, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
            try:
                answers: Sequence[Written | Exception] = await asyncio.to_thread(self._answers, batch)
            except (RuntimeError, ValueError, TypeError, IndexError, MemoryError, UserError) as error:
                answers = [RuntimeError(f"{type(error).__name__}: {error}")] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():  # the caller has gone
                    continue
                if isinstance(answer, Exception):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)

    def _answers(self, batch: list[_Waiting]) -> Sequence[Written | Exception]:
        with self._lock:
            prefixes = self._look([waiting.image for waiting in batch])
            good = [place for place, prefix in enumerate(prefixes) if isinstance(prefix, Tensor)]
            answers: list[Written | BadImage] = [one for one in prefixes if isinstance(one, BadImage)]
            if not good:
                return answers
            stacked_BPD = torch.stack([prefixes[place] for place in good])  # pyrefly: ignore
            written = iter(write(self.captioner, stacked_BPD, [batch[place].ask for place in good], batch=self.batch))
            return [one if isinstance(one, BadImage) else next(written) for one in prefixes]

    def _look(self, images: list[bytes]) -> list[Tensor | BadImage]:
        """The prefix [P, D] of each image, or why it has none."""
        encoder = self.captioner.model.image_encoder
        names = [hashlib.sha256(image).digest() for image in images]
        new = {name: image for name, image in zip(names, images, strict=True) if name not in self._prefixes}
        bad: dict[bytes, BadImage] = {}

        def decoded(image: bytes) -> Tensor | BadImage:
            try:
                return see.pixels(image, encoder.preprocess)
            except BadImage as problem:
                return problem

        pixels = dict(zip(new, self._decoders.map(decoded, new.values()), strict=True))
        bad = {name: found for name, found in pixels.items() if isinstance(found, BadImage)}
        good = {name: found for name, found in pixels.items() if isinstance(found, Tensor)}
        if good:
            with torch.inference_mode():
                seen = see.features(list(good.values()), encoder, self._device)
                for name, prefix_PD in zip(good, self.captioner.model.prefix(seen), strict=True):
                    self._prefixes[name] = prefix_PD
        found = [bad[name] if name in bad else self._prefixes[name] for name in names]
        while len(self._prefixes) > _KEPT_IMAGES:
            self._prefixes.popitem(last=False)
        return found
