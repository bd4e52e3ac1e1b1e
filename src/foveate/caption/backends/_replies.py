"""What came back over HTTP from an OpenAI-compatible server: an answer, a reason to try again, or an end."""

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
_HOPELESS = (401, 403, 404)
_ABOUT_SCHEMA = re.compile(r"response_format|json_schema|guided|structured|grammar", re.IGNORECASE)
_LONGEST_WAIT = 600.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One try. `error` is "" where `text` is an answer. `retry` says that a later try may mend it, `overload` that the
    server has too much to do, `away` that it cannot be reached, `hopeless` that no request can succeed, `schema` that
    it may be the JSON schema that the server does not take. `wait` are seconds after which it asked to be tried."""

    text: str = ""
    error: str = ""
    retry: bool = False
    overload: bool = False
    away: bool = False
    hopeless: bool = False
    schema: bool = False
    wait: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


def read_reply(status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """The reply in an HTTP response."""
    if status != 200:
        said = body[:2000].decode("utf-8", "replace")
        return Reply(
            text=said,
            error=f"http_{status}",
            retry=status in _RETRIED,
            overload=status in (429, 529, 503),
            away=status in UNAVAILABLE,
            hopeless=status in _HOPELESS,
            schema=status in (400, 415, 422, 501) or (status == 500 and bool(_ABOUT_SCHEMA.search(said))),
            wait=retry_after(headers.get("retry-after", "")),
        )
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        message = choice["message"]
        usage = content.get("usage") or {}
        spent = {"tokens_in": _count(usage, "prompt_tokens"), "tokens_out": _count(usage, "completion_tokens")}
        said = message.get("content")
        refusal = message.get("refusal")
        reason = choice.get("finish_reason")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        # Cut off on its way, or no chat completion at all.
        return Reply(text=body[:2000].decode("utf-8", "replace"), error="bad_response", retry=True)
    if isinstance(said, list):
        said = "".join(part.get("text") or "" for part in said if isinstance(part, dict))
    if (isinstance(refusal, str) and refusal) or reason == "content_filter":
        return Reply(text=str(refusal or said or ""), error="refused", **spent)
    return Reply(text=said if isinstance(said, str) else "", **spent)


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0


def retry_after(value: str) -> float:
    """Seconds of a Retry-After header (a number or a date), at most ten minutes; 0 for none."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return min(float(value), _LONGEST_WAIT)
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(when - time.time(), 0.0), _LONGEST_WAIT)
