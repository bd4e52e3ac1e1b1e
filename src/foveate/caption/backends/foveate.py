"""The `foveate` backend: Foveate's own captioner, run in this process, offline.

Its model folder comes from `foveate captioner train`.
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import Field

from foveate.caption.captioner import Backend, CaptionRequest, CaptionResponse
from foveate.caption.chat_format import EDGES
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.response_parser import serialize
from foveate.caption.small.batched import BatchedCaptioner
from foveate.caption.small.folder import load_captioner
from foveate.caption.small.generate import CaptionTask, GeneratedCaption
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.images import BadImage


class FoveateSettings(Settings):
    """Model folder, device and batch size."""

    model: Path = Field(description="model folder of `foveate captioner train`")
    device: str | None = Field(None, description="cpu, cuda, cuda:1 or mps; by default CUDA if available")
    batch: int = Field(32, ge=1, le=4096, description="captions that are written together, at most")


class FoveateCaptioner:
    """See `foveate.caption.captioner.Captioner`; calls in flight together share a batch."""

    name = "foveate"

    def __init__(self, settings: FoveateSettings, collection: Collection | None = None) -> None:
        self._captioner = load_captioner(settings.model, device=settings.device)
        self._batched = BatchedCaptioner(self._captioner, batch=settings.batch)
        self.model = f"foveate-captioner-{self._captioner.revision[:8]}"
        self.revision = self._captioner.revision
        # Enough calls in flight that the next batches fill while one is written.
        self.concurrency = 4 * settings.batch

    async def caption(self, request: CaptionRequest) -> CaptionResponse:
        """Write one caption as the JSON object that prompts ask for.

        A caption that reached `max_tokens` is cut off.
        """
        if request.kind not in CAPTION_KINDS:
            return CaptionResponse(error="unknown_format", final=True)
        # Without a usable alt-text afc is written as dsc: no training row of afc lacks one.
        kind = "dsc" if request.kind == "afc" and not request.alt else request.kind
        ask = CaptionTask(
            kind=kind,
            alt=request.alt if kind == "afc" else "",
            length=requested_length(self._captioner.lengths[kind], request.prompt_id),
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,  # of this image and format, as over HTTP
        )
        began = time.monotonic()
        try:
            written = await self._batched.write(request.image, ask)
        except BadImage as problem:
            return CaptionResponse(error=f"bad_image: {problem.reason}", final=True)
        return CaptionResponse(
            format_response(written),
            latency_ms=1000 * (time.monotonic() - began),
            tokens_in=written.tokens_in,
            tokens_out=written.tokens_out,
            score=written.score,
        )

    async def close(self) -> None:
        """Wait for the last batch."""
        await self._batched.close()


def requested_length(usual: int, prompt_id: str) -> int:
    """Return the usual length class, or the next shorter or longer one for a retry."""
    change = {"shorten": -1, "lengthen": 1}.get(prompt_id.rpartition("-")[0], 0)
    return min(max(usual + change, 0), len(EDGES))


def format_response(written: GeneratedCaption) -> str:
    """Write a response as a JSON object, without its end where the caption has none."""
    whole = serialize(written.text)
    # As any model that ran out of tokens: the pipeline then counts it as truncated.
    return whole if written.finished else whole[: -len('"}')]


BACKEND = Backend(
    settings=FoveateSettings,
    open=FoveateCaptioner,
    note="Foveate's own small captioner, trained by `foveate captioner train`; runs here, offline",
)
