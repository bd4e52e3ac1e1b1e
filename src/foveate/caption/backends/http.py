"""The `http` backend: captions from an OpenAI-compatible server, by chat completions."""

from __future__ import annotations

import dataclasses

from foveate.caption.captioner import JPEG, Backend, CaptionRequest, CaptionResponse, encode_jpeg
from foveate.caption.prompts import response_schema
from foveate.chat.client import ChatClient, ChatSettings
from foveate.chat.protocol import ChatImage, ChatMessage, ChatRequest, ResponseSchema
from foveate.records.collection import Collection


class HttpCaptioner:
    """See `foveate.caption.captioner.Captioner`."""

    name = "http"

    def __init__(self, settings: ChatSettings) -> None:
        self.client = ChatClient(settings)
        self.model, self.revision, self.concurrency = settings.model, settings.revision, self.client.concurrency

    async def caption(self, request: CaptionRequest) -> CaptionResponse:
        """Request one caption.

        Raises:
            UserError: no request of the run can succeed, see `foveate.chat.client.ChatClient.complete`.
        """
        # `shorten` and `lengthen` have prompts, and so responses, of their own; the format is that of the caption.
        purpose = request.prompt_id.rpartition("-")[0]
        # Prompts that are only about texts have no image.
        images = (ChatImage(request.image, request.media_type),) if request.image else ()
        chat_request = ChatRequest(
            (ChatMessage(request.prompt, images),),
            request.max_tokens,
            request.temperature,
            request.seed,
            ResponseSchema(purpose, response_schema(purpose)),
        )
        response = await self.client.complete(chat_request)
        if response.error == "http_400" and images and request.media_type != JPEG:
            # llama.cpp refuses WebP, others PNG with 16 bits: every server that takes images reads JPEG.
            as_jpeg = ChatMessage(request.prompt, (ChatImage(encode_jpeg(request.image), JPEG),))
            second = await self.client.complete(dataclasses.replace(chat_request, messages=(as_jpeg,)))
            response = dataclasses.replace(second, attempts=response.attempts + second.attempts)
        return CaptionResponse(
            text=response.text,
            error=response.error,
            final=response.final,
            attempts=response.attempts,
            latency_ms=response.latency_ms,
            tokens_in=response.tokens_in,
            tokens_out=response.tokens_out,
            model=response.model,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()


def open_http(settings: ChatSettings, collection: Collection) -> HttpCaptioner:
    """Create the captioner; nothing is sent yet."""
    return HttpCaptioner(settings)


BACKEND = Backend(ChatSettings, open_http, note="an OpenAI-compatible server: vLLM, SGLang, llama.cpp or a vendor")
