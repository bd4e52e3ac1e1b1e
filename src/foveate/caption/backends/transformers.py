"""The `transformers` backend: an image-text-to-text model on this machine, in batches.

The model is opened by `AutoModelForImageTextToText` and `AutoProcessor`, from a folder or from the hub at one commit.
Prompts are padded on the left, and every row draws with its own generator, so that a row's text does not depend on the
rows beside it. A server (see `http`) is several times faster on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from foveate.caption.captioner import Backend, BatchingCaptioner, CaptionRequest, CaptionResponse
from foveate.core.devices import choose_device, precision_of
from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading
from foveate.core.recipes import Settings
from foveate.records.collection import Collection
from foveate.records.images import decode


class TransformersSettings(Settings):
    """Model, device, precision and batch size."""

    model: str = Field(min_length=1, description="A folder, or OWNER/NAME on the hub.")
    revision: str | None = Field(None, description="Commit, tag or branch of a hub repository.")
    offline: bool = Field(False, description="Look into the hub's cache only.")
    device: str = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    batch_size: int = Field(8, ge=1, le=1024)
    wait_seconds: float = Field(0.02, ge=0, description="How long a batch that is not full waits for more.")


class TransformersCaptioner(BatchingCaptioner):
    """See `foveate.caption.captioner.Captioner`."""

    name = "transformers"

    def __init__(self, settings: TransformersSettings) -> None:
        super().__init__(settings.batch_size)
        self.settings, self.wait_seconds = settings, settings.wait_seconds
        checkpoint = fetch(
            settings.model, revision=settings.revision, offline=settings.offline, field="--model of 'transformers'"
        )
        self.device = choose_device(settings.device)
        self.dtype = precision_of(settings.precision, self.device)
        self.network, self.processor = _load(checkpoint, self.dtype)
        self.network.to(self.device).eval()
        self.model = settings.model if checkpoint.commit else Path(settings.model).resolve().name
        self.revision = checkpoint.commit or checkpoint.digest()

    def group_of(self, request: CaptionRequest) -> Hashable:
        """Return the format of a request, and whether it is sampled."""
        return request.prompt_id, request.temperature > 0

    def describe_failure(self, error: Exception) -> CaptionResponse:
        """Return the response to a request that the model failed on."""
        return describe_failure(error)

    def respond(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """Caption a batch; one that does not fit into memory is halved."""
        began = time.monotonic()
        try:
            generated = self._generate(requests)
        except torch.OutOfMemoryError:
            # Only then can the halves use the memory that the failed batch has left reserved.
            torch.cuda.empty_cache()
            raise
        latency = 1000 * (time.monotonic() - began)
        return [
            CaptionResponse(text=text, latency_ms=latency, tokens_in=read, tokens_out=written)
            for text, read, written in generated
        ]

    @torch.inference_mode()
    def _generate(self, requests: Sequence[CaptionRequest]) -> list[tuple[str, int, int]]:
        """Generate text; return it with the numbers of tokens read and written, for each request."""
        from transformers import LogitsProcessorList

        inputs = self.processor(
            text=[self._prompt(request.prompt) for request in requests],
            images=[[decode(request.image)] for request in requests],
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        # The processor returns float32 pixels; the network's weights may be bfloat16.
        inputs = {
            name: value.to(self.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        length = inputs["input_ids"].shape[1]
        # `group_of` puts greedy and sampled requests into different batches.
        sampler = LogitsProcessorList([GumbelSampler(requests)] if requests[0].temperature > 0 else [])
        written_BT = self.network.generate(
            **inputs,
            max_new_tokens=max(request.max_tokens for request in requests),
            # Greedy: `sample` of transformers draws all rows from one generator, so that a row's text would depend on
            # its batch. The model's own defaults for sampling are switched off, because it warns about them.
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            logits_processor=sampler,
            pad_token_id=self._padding,
        )[:, length:].cpu()
        read = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            self._text(row, request, int(tokens))
            for row, request, tokens in zip(written_BT, requests, read, strict=True)
        ]

    def _text(self, ids: Tensor, request: CaptionRequest, read: int) -> tuple[str, int, int]:
        # The batch continued to the largest `max_tokens` of its rows; cut this row where it would end by itself.
        tokens = [int(token) for token in ids.tolist()][: request.max_tokens]
        ends = [index for index, token in enumerate(tokens) if token in self._ends]
        tokens = tokens[: ends[0]] if ends else tokens
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(), read, len(tokens)

    @property
    def _ends(self) -> set[int]:
        # Some models end a response with one of several tokens.
        ends = self.network.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    @property
    def _padding(self) -> int | None:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _prompt(self, text: str) -> str:
        """Write a prompt with an image in the model's chat template, or behind its image token."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": text}]
            messages = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(messages, add_generation_prompt=True)
        token = getattr(self.processor, "image_token", None)
        if not isinstance(token, str):
            raise UserError(f"{self.model}: its processor has neither a chat template nor an image token")
        return f"{token}\n{text}\n"


def describe_failure(error: Exception) -> CaptionResponse:
    """Return the response to a request that a model on this machine failed on."""
    if isinstance(error, torch.OutOfMemoryError):
        return CaptionResponse(error="out_of_memory")
    return CaptionResponse(text=" ".join(str(error).split())[:500], error="model_error", final=True)


class GumbelSampler:
    """Makes greedy decoding sample from the softmax.

    The largest of logits / temperature + Gumbel noise is a draw from the softmax of logits / temperature.

    Each row has a generator of its own, from its request's seed, so that its text does not depend on its batch.
    """

    def __init__(self, requests: Sequence[CaptionRequest]) -> None:
        self._temperatures = [request.temperature for request in requests]
        # Draw on the CPU: a generator there gives the same numbers whatever device the model is on.
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        noise_BV = torch.stack([torch.rand(scores_BV.shape[1], generator=generator) for generator in self._generators])
        # Clamped at both ends, where one of the two logarithms would be infinite.
        gumbel_BV = -torch.log(-torch.log(noise_BV.clamp(1e-20, 1 - 1e-7))).to(scores_BV.device)
        temperatures_B1 = torch.tensor(self._temperatures, device=scores_BV.device).unsqueeze(1)
        return scores_BV.float() / temperatures_B1 + gumbel_BV


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load network and processor of a folder.

    Raises:
        UserError: they are missing or do not fit.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    # Both are called only for their errors: the config is missing, or the weights are pickles.
    checkpoint.config()
    checkpoint.weights()
    with loading(checkpoint.name, kind="an image-text-to-text model from it"):
        processor = AutoProcessor.from_pretrained(str(checkpoint.folder))
        network, report = AutoModelForImageTextToText.from_pretrained(
            str(checkpoint.folder), use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    check_loaded(report, name=checkpoint.name)
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UserError(f"{checkpoint.name}: its processor has no image processor or no tokenizer")
    # Generation continues at the right end of each row, so padding must be on the left.
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return network, processor


def open_transformers(settings: TransformersSettings, collection: Collection) -> TransformersCaptioner:
    """Load the captioner's weights."""
    return TransformersCaptioner(settings)


BACKEND = Backend(
    TransformersSettings, open_transformers, note="an image-text-to-text model of transformers, on this machine"
)
