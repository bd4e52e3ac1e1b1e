"""The `foveate` backend: a multimodal model, run in this process, offline.

A folder that was trained on caption requests (recipe `captioner` of `foveate mllm train`) gets such requests; any other
multimodal folder gets the long prompts that servers get. A folder of transformers is opened by the backend
`transformers`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from foveate.caption.backends.transformers import TransformersCaptioner, TransformersSettings, describe_failure
from foveate.caption.captioner import Backend, BatchingCaptioner, Captioner, CaptionRequest, CaptionResponse
from foveate.caption.chat_requests import EDGES, caption_request, writes_captions
from foveate.caption.prompts import CAPTION_KINDS
from foveate.caption.response_parser import serialize
from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.model_folder import CONFIG
from foveate.core.progress import say
from foveate.core.recipes import Settings
from foveate.language.generate import GenerationSettings
from foveate.multimodal.answers import NOT_FOUND, Answer
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import hash_model
from foveate.multimodal.opening import find_native_folder, open_mllm
from foveate.multimodal.recognition import SOURCE
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.collection import Collection
from foveate.records.images import BadImage
from foveate.records.region_prompts import mute_placeholders

_MAX_NEW_TOKENS = 65_536
# Flag of captions that no language model wrote.
RECOGNIZED = "recognized"


class FoveateSettings(Settings):
    """Model folder, device and batch size."""

    model: str = Field(
        "mini", min_length=1, description="mini (shipped), a folder of `foveate mllm train`, or one of transformers"
    )
    device: str | None = Field(None, description="cpu, cuda, cuda:1 or mps; by default CUDA if available")
    batch: int = Field(32, ge=1, le=4096, description="captions that are written together, at most")


class MllmCaptioner(BatchingCaptioner):
    """See `foveate.caption.captioner.Captioner`.

    Attributes:
        reads_requests: it was trained on caption requests; else it gets the long prompts.
    """

    name = "foveate"
    failures = (UserError, *BatchingCaptioner.failures)

    def __init__(self, model: Mllm, folder: Path, *, batch: int = 32) -> None:
        super().__init__(batch)
        self._mllm = model
        self.reads_requests = writes_captions(read_json(folder / CONFIG))
        self.revision = hash_model(folder)[:16]
        self.model = f"foveate-{'captioner' if self.reads_requests else 'mllm'}-{self.revision[:8]}"

    async def caption(self, request: CaptionRequest) -> CaptionResponse:
        """Write one caption as the JSON object that prompts ask for.

        A caption that reached `max_tokens` is cut off.
        """
        if request.kind not in CAPTION_KINDS:
            return CaptionResponse(error="unknown_format", final=True)
        return await super().caption(request)

    def respond(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """Caption a batch; an image that cannot be read fails only its own requests."""
        began = time.monotonic()
        # Equal bytes become one object, which the model encodes once for all formats.
        images = {request.image: request.image for request in requests}
        answers = self._mllm.ask_all(
            [(images[request.image], self.write_question(request)) for request in requests],
            generation=[limit_generation(request) for request in requests],
            # Small decoders fall into loops.
            ends_repeats=True,
            batch=self.batch,
        )
        # "Not found" says that the model recognizes nothing in the image, which is no caption of it.
        texts = [self._read(request, answer) for request, answer in zip(requests, answers, strict=True)]
        latency = 1000 * (time.monotonic() - began)
        return [
            CaptionResponse(
                text or "",
                error="not_found" if text is None else "",
                final=text is None,
                flags=(RECOGNIZED,) if answer.source == SOURCE else (),
                latency_ms=latency,
                tokens_in=answer.num_prompt_tokens,
                tokens_out=answer.tokens,
                score=answer.score,
                finished=answer.finished,
            )
            for text, answer in zip(texts, answers, strict=True)
        ]

    def _read(self, request: CaptionRequest, answer: Answer) -> str | None:
        if answer.source == SOURCE:
            return self.recognize(request) or None
        return None if answer.text == NOT_FOUND else self.read_answer(answer.text, finished=answer.finished)

    def recognize(self, request: CaptionRequest) -> str:
        """Return the caption of a photograph that states only what was recognized, as a JSON object; "" for none."""
        assert self._mllm.pictures is not None
        caption = self._mllm.pictures.caption(request.image, request.kind, alt=request.alt)
        return serialize(caption) if caption else ""

    def describe_failure(self, error: Exception) -> CaptionResponse:
        """Return the response to a request that the model failed on, or whose image cannot be read."""
        if isinstance(error.__cause__, BadImage):
            return CaptionResponse(error=f"bad_image: {error.__cause__.reason}", final=True)
        return describe_failure(error)

    def read_answer(self, text: str, *, finished: bool) -> str:
        """Return the caption as the JSON object that prompts ask for."""
        # A model that got a prompt may have written the object itself.
        if not self.reads_requests and (finished or "{" in text):
            return text
        return format_caption(text, finished=finished)

    def write_question(self, request: CaptionRequest) -> str:
        """Return the question that asks this model for a caption."""
        if not self.reads_requests:
            # It quotes an AltText, which may hold anything.
            return mute_placeholders(request.prompt)
        # Without a usable alt-text afc is written as dsc: no training row of afc lacks one.
        kind = request.kind if request.alt else CAPTION_FORMATS[request.kind].without_alt or request.kind
        usual = CAPTION_FORMATS[kind].length_class if request.length is None else request.length
        length = requested_length(usual, request.prompt_id)
        return caption_request(kind, length=length, alt=request.alt)


def limit_generation(request: CaptionRequest) -> GenerationSettings:
    """Return how the caption of a request is generated."""
    return GenerationSettings(
        max_new_tokens=min(request.max_tokens, _MAX_NEW_TOKENS),
        temperature=request.temperature,
        seed=request.seed % 2**63,  # the seed of this image and format, as over HTTP
    )


def requested_length(usual: int, prompt_id: str) -> int:
    """Return the usual length class, or the next shorter or longer one for a retry."""
    change = {"shorten": -1, "lengthen": 1}.get(prompt_id.rpartition("-")[0], 0)
    return min(max(usual + change, 0), len(EDGES))


def format_caption(text: str, *, finished: bool) -> str:
    """Write a caption as a JSON object, without its end where the caption has none."""
    whole = serialize(text)
    # Cut the end like any model that ran out of tokens, so that the pipeline counts the caption as truncated.
    return whole if finished else whole[: -len('"}')]


def open_captioner(settings: FoveateSettings, collection: Collection | None = None) -> Captioner:
    """Open a multimodal model for captions.

    Raises:
        UserError: there is no such model, or the folder is incomplete or damaged.
    """
    folder = find_native_folder(settings.model)
    if folder is None:
        say(f"{settings.model}: a model of transformers, asked with prompts")
        device = settings.device or "auto"
        return TransformersCaptioner(
            TransformersSettings(model=settings.model, device=device, batch_size=min(settings.batch, 1024))
        )
    model = open_mllm(folder, device=settings.device)
    assert isinstance(model, Mllm)
    captioner = MllmCaptioner(model, folder, batch=settings.batch)
    if not captioner.reads_requests:
        say(f"{settings.model}: not trained on caption requests, asked with prompts instead")
    return captioner


BACKEND = Backend(
    settings=FoveateSettings,
    open=open_captioner,
    note="a multimodal model of `foveate mllm train`, such as its recipe `captioner`; runs here, offline",
)
