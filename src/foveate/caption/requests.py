"""Request one caption: ask, parse, filter by length, ask once more if need be, flag.

Every backend and every executor goes through here, so that rows do not depend on who called.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from foveate.caption.captioner import Captioner, CaptionRequest, CaptionResponse, PreparedImage
from foveate.caption.lengths import (
    OtherTokenizer,
    apply_length_filter,
    choose_retry,
    find_content_flags,
    measure_lengths,
    pick_better,
)
from foveate.caption.pending_requests import PendingRequest, RequestConfig, hash_alt
from foveate.caption.prompts import Prompt
from foveate.caption.response_parser import OK, REPAIRED, ParsedCaption, parse_caption
from foveate.core.version import __version__
from foveate.records.caption_formats import CAPTION_FORMATS
from foveate.records.images import BadImage
from foveate.records.rows import clean_text, storable

ERROR, SKIPPED = "error", "skipped"
# Enough to see what went wrong; whole responses of failed requests would fill the table.
_MAX_RAW_BYTES = 2000


@dataclass(frozen=True, slots=True)
class CaptionResult:
    """The result of one request.

    Attributes:
        status: "ok", "repaired", "error" or "skipped" (the image could not be read).
        error: code of an error, or reason of a skipped image.
        final: no later attempt can help.
        raw: the start of a response that gave no caption, or a sentence about a skipped image.
        details: provenance that has no column of its own.
    """

    key: str
    kind: str
    request: str
    status: str
    text: str = ""
    flags: tuple[str, ...] = ()
    score: float | None = None
    error: str = ""
    final: bool = False
    raw: str = ""
    recipe_hash: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Usage:
    """Sums over all responses to one request."""

    attempts: int = 0
    latency_ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, response: CaptionResponse) -> None:
        self.attempts += response.attempts
        self.latency_ms += response.latency_ms
        self.tokens_in += response.tokens_in
        self.tokens_out += response.tokens_out


async def request_caption(
    captioner: Captioner,
    config: RequestConfig,
    pending: PendingRequest,
    kind: str,
    image: PreparedImage,
    *,
    run_id: str,
    other: OtherTokenizer | None = None,
) -> CaptionResult:
    """Request one caption. Backend errors are returned as a `CaptionResult`.

    Args:
        other: a tokenizer whose counts are stored beside those of CLIP.

    Raises:
        UserError: no request of this run can succeed.
    """
    prompt, alt = config.select_prompt(kind, pending.alt)
    parameters = config.parameters(kind)
    request = CaptionRequest(
        key=pending.key,
        kind=kind,
        prompt_id=prompt.id,
        prompt=prompt.fill(alt=alt) if alt else prompt.fill(),
        image=image.data,
        media_type=image.media_type,
        alt=alt,
        max_tokens=int(parameters["max_tokens"]),
        temperature=float(parameters["temperature"]),
        seed=config.sampling_seed(pending.key, kind),
    )
    usage = _Usage()
    response = await captioner.caption(request)
    usage.add(response)
    details = {
        "backend": config.backend,
        "revision": config.revision,
        "prompt_id": prompt.id,
        "prompt_hash": prompt.sha256,
        "params": parameters,
        "seed": request.seed,
        # Hash it only for formats that read the AltText.
        "alt_hash": hash_alt(pending.alt) if CAPTION_FORMATS[kind].without_alt else "",
        "language": config.settings.language,
    }
    result = CaptionResult(
        pending.key,
        kind,
        config.request_key(pending.key, pending.sha256, kind, pending.alt),
        ERROR,
        recipe_hash=config.recipe_hash(kind, prompt),
        details=details,
    )
    try:
        if response.error:
            return replace(result, error=response.error, final=response.final, raw=_cut_raw(response.text))
        parsed = _parse(response.text)
        if parsed.caption is None:
            # Final: another attempt costs as much as this one did, and only --retry-errors requests it.
            return replace(result, error=parsed.error, final=True, raw=_cut_raw(response.text))
        purpose = choose_retry(kind, parsed.caption)
        if purpose:
            details["retry"] = purpose
            second_response = await captioner.caption(
                _retry_request(request, config.prompts[purpose], kind, parsed.caption)
            )
            usage.add(second_response)
            second = ParsedCaption("error:backend") if second_response.error else _parse(second_response.text)
            # A retry may be worse than the first version, or fail: then the first one is filtered and stored.
            if second.caption is not None and pick_better(kind, parsed.caption, second.caption) == second.caption:
                parsed, response = second, second_response
        assert parsed.caption is not None
        filtered = apply_length_filter(kind, parsed.caption)
        if filtered.error:
            return replace(result, error=filtered.error, final=True, raw=_cut_raw(response.text))
        # The unfilled prompt: a caption that repeats the alt-text is "copied_alt", not a leak of the prompt.
        content_flags = find_content_flags(
            filtered.caption, prompt=prompt.text, alt=pending.alt, english=config.settings.language == "English"
        )
        unusable_alt = ("alt_unusable",) if CAPTION_FORMATS[kind].without_alt and not alt else ()
        lengths = measure_lengths(filtered.caption, other)
        details |= {"n_words": lengths.num_words, "n_clip": lengths.clip_tokens, "n_other": lengths.other_tokens}
        return replace(
            result,
            status=REPAIRED if parsed.status == REPAIRED else OK,
            text=filtered.caption,
            # Parser and filters may set the same flag.
            flags=tuple(
                dict.fromkeys((*response.flags, *parsed.flags, *filtered.flags, *content_flags, *unusable_alt))
            ),
            score=response.score,
        )
    finally:
        # `details` is shared with the result that is returned: it gets the usage of all responses, errors included.
        details |= {
            "answered_by": response.model,
            "attempts": usage.attempts,
            "latency_ms": round(usage.latency_ms, 1),
            "tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out,
            "run_id": run_id,
            "code_version": __version__,
        }


def skip_unreadable(config: RequestConfig, pending: PendingRequest, kind: str, problem: BadImage) -> CaptionResult:
    """Build the result of an image that cannot be read."""
    request = config.request_key(pending.key, pending.sha256, kind, pending.alt)
    return CaptionResult(pending.key, kind, request, SKIPPED, error=problem.reason, raw=str(problem))


def caption_row(result: CaptionResult, details: str) -> dict[str, object]:
    """Build the row of the table `captions`; `details` are the result's as JSON."""
    return {
        "key": result.key,
        "kind": result.kind,
        "text": result.text,
        "request": result.request,
        "status": result.status,
        "flags": " ".join(result.flags),
        "score": result.score,
        "details": details,
        "recipe_hash": result.recipe_hash,
    }


def error_row(result: CaptionResult, details: str) -> dict[str, object]:
    """Build the row of the table `caption_errors`."""
    return {
        "key": result.key,
        "request": result.request,
        "kind": result.kind,
        "error": result.error,
        "final": result.final,
        "raw": result.raw,
        "attempts": result.details.get("attempts", 0),
        "details": details,
        "recipe_hash": result.recipe_hash,
    }


def _retry_request(request: CaptionRequest, prompt: Prompt, kind: str, caption: str) -> CaptionRequest:
    sentences = "one sentence" if CAPTION_FORMATS[kind].lengths.max_sentences == 1 else "complete sentences"
    values = {"caption": caption, "words": CAPTION_FORMATS[kind].retry_words}
    # Only `shorten` names the sentences; a template refuses values that it has no field for.
    filled = prompt.fill(**values, sentences=sentences) if prompt.id.startswith("shorten") else prompt.fill(**values)
    return replace(request, prompt_id=prompt.id, prompt=filled)


def _parse(text: str) -> ParsedCaption:
    """Parse a caption and take out control characters, which no table stores."""
    parsed = parse_caption(text)
    if parsed.caption is None:
        return parsed
    cleaned = " ".join(clean_text(parsed.caption).split())
    return replace(parsed, caption=cleaned) if cleaned else ParsedCaption("error:empty")


def _cut_raw(text: str) -> str:
    """Return the first 2 kB of a response, as text that can be stored."""
    # Cut in bytes, where a character may be cut in two; "ignore" drops its first half.
    return storable(text).encode()[:_MAX_RAW_BYTES].decode("utf-8", "ignore")
