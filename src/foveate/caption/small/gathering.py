"""Requests that come one by one, gathered into batches for the captioner; used by the backend and by the server.

Whoever asks first waits a moment for others; while a batch is written the next one gathers. Pictures that were asked
about lately keep their features, so that four formats of one picture cost one look at it.
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
from foveate.records.pictures import BadPicture
from foveate.settings.errors import UserError

_WAIT_SECONDS = 0.01
_KEPT_PICTURES = 1024
_DECODERS = 2


@dataclass
class _Waiting:
    picture: bytes
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

    async def write(self, picture: bytes, ask: Ask) -> Written:
        """The caption of a picture.

        Raises:
            BadPicture: when the bytes are none that can be shown to the captioner.
        """
        waiting = _Waiting(picture, ask, asyncio.get_running_loop().create_future())
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
            prefixes = self._look([waiting.picture for waiting in batch])
            good = [place for place, prefix in enumerate(prefixes) if isinstance(prefix, Tensor)]
            answers: list[Written | BadPicture] = [one for one in prefixes if isinstance(one, BadPicture)]
            if not good:
                return answers
            stacked_BPD = torch.stack([prefixes[place] for place in good])  # pyrefly: ignore
            written = iter(write(self.captioner, stacked_BPD, [batch[place].ask for place in good], batch=self.batch))
            return [one if isinstance(one, BadPicture) else next(written) for one in prefixes]

    def _look(self, pictures: list[bytes]) -> list[Tensor | BadPicture]:
        """The prefix [P, D] of each picture, or why it has none."""
        encoder = self.captioner.model.image_encoder
        names = [hashlib.sha256(picture).digest() for picture in pictures]
        new = {name: picture for name, picture in zip(names, pictures, strict=True) if name not in self._prefixes}
        bad: dict[bytes, BadPicture] = {}

        def decoded(picture: bytes) -> Tensor | BadPicture:
            try:
                return see.pixels(picture, encoder.preprocess)
            except BadPicture as problem:
                return problem

        pixels = dict(zip(new, self._decoders.map(decoded, new.values()), strict=True))
        bad = {name: found for name, found in pixels.items() if isinstance(found, BadPicture)}
        good = {name: found for name, found in pixels.items() if isinstance(found, Tensor)}
        if good:
            with torch.inference_mode():
                seen = see.features(list(good.values()), encoder, self._device)
                for name, prefix_PD in zip(good, self.captioner.model.prefix(seen), strict=True):
                    self._prefixes[name] = prefix_PD
        found = [bad[name] if name in bad else self._prefixes[name] for name in names]
        while len(self._prefixes) > _KEPT_PICTURES:
            self._prefixes.popitem(last=False)
        return found
