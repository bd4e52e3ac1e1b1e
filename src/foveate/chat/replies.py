"""Parse one HTTP response: a text, a reason to try again, or a final error."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a gateway says while the server behind it is away.
UNAVAILABLE = (502, 503, 504)
_RETRIED = (408, 409, 425, 429, 500, 529, *UNAVAILABLE)
# A wrong key, model or address: no request of the run can succeed.
_FATAL = (401, 403, 404)
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|guided|structured|grammar", re.IGNORECASE)
_MAX_WAIT_SECONDS = 600.0
_MAX_ERROR_BYTES = 2000
_MAX_TOKEN_COUNT = 2**40  # larger counts are nonsense, and would not fit the sums that are reported


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one try.

    `error` is "" where `text` is the response. `retry`: a later try may help. `overload`: the server has too much to
    do. `unreachable`: no server answers. `fatal`: no request can succeed. `schema`: the server may not take the JSON
    schema. `wait`: seconds after which the server asked to be tried again.
    """

    text: str = ""
    error: str = ""
    retry: bool = False
    overload: bool = False
    unreachable: bool = False
    fatal: bool = False
    schema: bool = False
    wait: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


def parse_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """Parse an HTTP response; anything that is no chat completion is an error."""
    if status != 200:
        message = _decode(body)
        # Servers without structured output refuse the schema with a client error; some crash on it instead (500), and
        # then only the message tells.
        about_schema = status == 500 and bool(_SCHEMA_WORDS.search(message))
        return Reply(
            text=message,
            error=f"http_{status}",
            retry=status in _RETRIED,
            overload=status in (429, 529, 503),
            unreachable=status in UNAVAILABLE,
            fatal=status in _FATAL,
            schema=status in (400, 415, 422, 501) or about_schema,
            wait=parse_retry_after(headers.get("retry-after", "")),
        )
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        message = choice["message"]
        usage = content.get("usage") or {}
        spent = {
            "tokens_in": _token_count(usage, "prompt_tokens"),
            "tokens_out": _token_count(usage, "completion_tokens"),
        }
        text = message.get("content")
        refusal = message.get("refusal")
        reason = choice.get("finish_reason")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        # Cut off on its way, or no chat completion at all.
        return Reply(text=_decode(body), error="bad_response", retry=True)
    if isinstance(text, list):  # content parts instead of a string
        parts = [part.get("text") or "" for part in text if isinstance(part, dict)]
        if not all(isinstance(part, str) for part in parts):
            return Reply(text=_decode(body), error="bad_response", retry=True)
        text = "".join(parts)
    if (isinstance(refusal, str) and refusal) or reason == "content_filter":
        return Reply(text=str(refusal or text or ""), error="refused", **spent)
    return Reply(text=text if isinstance(text, str) else "", **spent)


def _decode(body: bytes) -> str:
    return body[:_MAX_ERROR_BYTES].decode("utf-8", "replace")


def _token_count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_TOKEN_COUNT else 0


def parse_retry_after(value: str) -> float:
    """Parse a Retry-After header (a number or a date) to seconds, at most ten minutes; 0 for none."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return min(float(value), _MAX_WAIT_SECONDS)
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(when - time.time(), 0.0), _MAX_WAIT_SECONDS)
