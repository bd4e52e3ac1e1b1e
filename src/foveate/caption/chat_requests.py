"""Read OpenAI-style chat requests for captions, or refuse them with an error of that API.

The format comes from the request's own field `foveate` ({"format": "dsc", "alt": "...", "length": 5}; `extra_body` in
the openai package) or from the prompt, where it is one of Foveate's templates: no free instructions are read.
Images come as data URLs; nothing is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from foveate.caption.captioner import CaptionRequest
from foveate.caption.chat_format import EDGES
from foveate.caption.length_filters import RETRY_WORDS
from foveate.caption.prompts import CAPTION_KINDS, MAX_ALT_LETTERS, MAX_TOKENS, Prompt, find_prompt, prompt_ids

_LANGUAGE = "Qlanguageq"
_FIELDS = ("alt", "caption", "words", "sentences")
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+);base64,(.*)", re.DOTALL | re.IGNORECASE)
_ALLOWED = "a chat request with one image as data URL (data:image/...;base64,...)"


class Refused(Exception):
    """A request that gets an error. status: of HTTP; code, param: of the error object."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI's API words it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def read_request(body: object, *, model: str) -> CaptionRequest:
    """Check a request and return what it asks for.

    Raises:
        Refused: with one sentence on the field that is wrong and what is allowed.
    """
    if not isinstance(body, dict):
        raise Refused(f"the body must be a JSON object: {_ALLOWED}")
    if body.get("model") != model:
        requested_model = str(body.get("model"))[:80]
        raise Refused(
            f"the model '{requested_model}' is not served here, allowed is '{model}'",
            status=404,
            code="model_not_found",
            param="model",
        )
    if body.get("stream"):
        raise Refused("answers are not streamed: leave 'stream' out", param="stream", code="unsupported_value")
    if body.get("n") not in (None, 1):
        raise Refused("one answer a request: allowed is n=1", param="n", code="unsupported_value")
    text, image = _content(body.get("messages"))
    prompt_id, kind, alt, length = _format(body.get("foveate"), text)
    _check_unicode(text, "messages")
    _check_unicode(alt, "foveate.alt")
    alt = alt[:MAX_ALT_LETTERS] if kind == "afc" else ""
    if body.get("foveate") is not None:
        prompt = find_prompt(kind if alt else "dsc" if kind == "afc" else kind)
        prompt_id, text = prompt.id, prompt.fill(alt=alt) if alt else prompt.fill()
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"), MAX_TOKENS[kind])
    token_limit = next(limit for limit in limits if limit is not None)
    return CaptionRequest(
        key="",
        kind=kind,
        prompt_id=prompt_id,
        prompt=text.strip(),
        image=image,
        media_type="",
        alt=alt,
        length=length,
        max_tokens=int(_number(token_limit, "max_tokens", 1, 100_000, whole=True)),
        temperature=_number(body.get("temperature", 0.0), "temperature", 0, 2),
        seed=int(_number(body.get("seed", 0), "seed", -(2**63), 2**63, whole=True)),
    )


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can escape one, tokenizers cannot read it.
        raise Refused(f"'{name}' has a lone surrogate, which is no character", param=name) from None


def _number(value: object, name: str, low: float, high: float, *, whole: bool = False) -> float:
    if value is None:
        return max(low, 0)
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # pyrefly: ignore
        kind = "a whole number" if whole else "a number"
        raise Refused(f"'{name}' must be {kind} from {low} to {high}", param=name, code="invalid_value")
    return value  # pyrefly: ignore


def _content(messages: object) -> tuple[str, bytes]:
    """Return text and image of the last user message."""
    if not isinstance(messages, list):
        raise Refused(f"'messages' must be a list: {_ALLOWED}", param="messages")
    users = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    if not users:
        raise Refused("there is no message with the role 'user'", param="messages")
    parts = users[-1].get("content")
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Refused("the user's 'content' must be a text or a list of parts", param="messages")
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    image_urls = [part.get("image_url") for part in parts if part.get("type") == "image_url"]
    if not all(isinstance(text, str) for text in texts):
        raise Refused("a part of the type 'text' has no text", param="messages")
    if len(image_urls) != 1:
        raise Refused(f"one image a request, there are {len(image_urls)}: {_ALLOWED}", param="messages")
    url = image_urls[0].get("url") if isinstance(image_urls[0], dict) else image_urls[0]
    return " ".join(str(text) for text in texts), _image(url)


def _image(url: object) -> bytes:
    match = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise Refused(f"the image must be a data URL, nothing is fetched: {_ALLOWED}", param="messages")
    try:
        return base64.b64decode(match[2], validate=True)
    except (binascii.Error, ValueError):
        raise Refused("the image's data URL is not base64", param="messages") from None


def _format(options: object, text: str) -> tuple[str, str, str, int | None]:
    """Return template id ("" where the format is a field), kind, AltText and length class."""
    if options is None:
        return *_read_prompt(text), None
    if not isinstance(options, Mapping) or not set(options) <= {"format", "alt", "length"}:
        raise Refused("'foveate' must be an object with the fields format, alt, length", param="foveate")
    kind = str(options.get("format", "")).replace("dsc+", "dsc_plus")
    if kind not in CAPTION_KINDS:
        raise Refused(f"'foveate.format' must be one of {', '.join(CAPTION_KINDS)}", param="foveate.format")
    alt, length = options.get("alt", ""), options.get("length")
    if not isinstance(alt, str):
        raise Refused("'foveate.alt' must be a text", param="foveate.alt")
    if length is not None:
        length = int(_number(length, "foveate.length", 0, len(EDGES), whole=True))
    return "", kind, alt, length


@functools.cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Map each template id to a pattern of its prompts, in any language and with any text put in."""
    patterns = {}
    for name in prompt_ids():
        kind = name.rpartition("-")[0]
        if kind not in (*CAPTION_KINDS, "shorten", "lengthen"):
            continue
        pattern = re.escape(Prompt(name, _LANGUAGE).text.replace("{{", "\0").replace("}}", "\1"))
        for field in _FIELDS:
            pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>.*?)")
        pattern = pattern.replace(re.escape(_LANGUAGE), r"[\w -]{1,80}")
        patterns[name] = re.compile(pattern.replace("\0", "{").replace("\1", "}"), re.DOTALL)
    return patterns


def _read_prompt(text: str) -> tuple[str, str, str]:
    """Return template id, kind and AltText of a prompt."""
    for name, pattern in _patterns().items():
        match = pattern.fullmatch(text.strip())
        if match is None:
            continue
        kind, values = name.rpartition("-")[0], match.groupdict()
        if kind in CAPTION_KINDS:
            return name, kind, _unquoted(values.get("alt"))
        kind_of_count = {str(number): kind for kind, number in reversed(list(RETRY_WORDS.items()))}
        return name, kind_of_count.get(values["words"], "dsc"), ""
    raise Refused(
        "the prompt is none of Foveate's templates, and this captioner reads no others: give the field 'foveate' "
        f'(extra_body) with a format, for example {{"format": "dsc"}}; allowed are {", ".join(CAPTION_KINDS)}',
        param="messages",
        code="unknown_prompt",
    )


def _unquoted(value: str | None) -> str:
    try:
        text = json.loads(value or '""')
    except json.JSONDecodeError:
        return ""
    return text if isinstance(text, str) else ""
