"""Replies and errors as JSON: OpenAI's objects where it has them, chunks of a stream among them."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from foveate.records.boxes import normalize_box
from foveate.serve.calls import (
    ChatBox,
    ChatReply,
    Classified,
    Located,
    Refused,
    SearchReply,
    ServedImage,
    TokenLogprob,
)

if TYPE_CHECKING:
    from foveate.search.search import Verdict

_MAX_MESSAGE_LETTERS = 600
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(refusal: Refused) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = _KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    # Messages quote what a client sent, which may be long, or no Unicode.
    message = str(refusal)[:_MAX_MESSAGE_LETTERS].encode(errors="replace").decode()
    return {"error": {"message": message, "type": kind, "param": refusal.param, "code": refusal.code}}


def error_headers(refusal: Refused) -> dict[str, str]:
    """Return the headers of an error's reply: when to come back, and how to send a key."""
    headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
    if refusal.retry_after is not None:
        # HTTP allows whole seconds only; 0 would ask the client to come back at once.
        headers["retry-after"] = str(max(1, round(refusal.retry_after)))
    return headers


class ChatWriter:
    """Write one answer as OpenAI's object, or as the chunks of its stream.

    Attributes:
        is_named: events of the stream have names and numbers, and no mark ends it.

    Args:
        images: of the call, by which boxes in pixels become fractions. request_id: as in the log.
    """

    is_named = False

    def __init__(
        self, model: str, images: Sequence[ServedImage], *, request_id: str, include_usage: bool = False
    ) -> None:
        self.id, self.created = f"chatcmpl-{request_id}", int(time.time())
        self.model, self.images, self.include_usage = model, images, include_usage

    def completion(self, reply: ChatReply) -> dict[str, Any]:
        """Return a whole answer."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": _logprobs(reply), "finish_reason": finish_reason(reply)}
        return self._object("chat.completion", [choice], usage=usage_body(reply), foveate=self.extras(reply))

    def start(self) -> list[dict[str, Any]]:
        """Return the first chunk, without text."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with text."""
        return self._chunk({"content": text})

    def end(self, reply: ChatReply) -> list[dict[str, Any]]:
        """Return the last chunks: reason, probabilities, boxes and frames, and the usage where the client wants it."""
        chunks = [self._chunk({}, finish_reason(reply), _logprobs(reply)) | {"foveate": self.extras(reply)}]
        if self.include_usage:
            # As in OpenAI: the usage comes in a further chunk without choices.
            chunks.append(self._object("chat.completion.chunk", [], usage=usage_body(reply)))
        return chunks

    def fail(self, refusal: Refused) -> dict[str, Any]:
        """Return the event of an error in the middle of a stream."""
        return error_body(refusal)

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        # As in OpenAI: if usage was requested, every other chunk has the field as null.
        return self._object("chat.completion.chunk", [choice], **({"usage": None} if self.include_usage else {}))

    def _object(self, kind: str, choices: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": choices, **fields}

    def extras(self, reply: ChatReply) -> dict[str, Any]:
        """Return the field `foveate`."""
        clip = {} if reply.clip is None else {"clip": reply.clip}
        boxes = [_chat_box(box, self.images[box.image]) for box in reply.boxes]
        return {"boxes": boxes, "source": reply.source, **clip}


def finish_reason(reply: ChatReply) -> str:
    """Return "stop", or "length" for an answer that was cut."""
    return "stop" if reply.finished else "length"


def token_bodies(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return tokens with their probabilities; `bytes` is null for a part of a character."""
    return [
        _token_body(token.text, token.logprob) | {"top_logprobs": [_token_body(*each) for each in token.likeliest]}
        for token in logprobs
    ]


def _token_body(text: str, logprob: float) -> dict[str, Any]:
    is_whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_whole else None}


def _logprobs(reply: ChatReply) -> dict[str, Any] | None:
    return None if reply.logprobs is None else {"content": token_bodies(reply.logprobs), "refusal": None}


def usage_body(reply: ChatReply) -> dict[str, int]:
    """Return the numbers of tokens."""
    total = reply.num_prompt_tokens + reply.num_tokens
    return {"prompt_tokens": reply.num_prompt_tokens, "completion_tokens": reply.num_tokens, "total_tokens": total}


def _chat_box(box: ChatBox, image: ServedImage) -> dict[str, Any]:
    # A model may write corners in any order, and beyond the image.
    corners = [min(max(value, 0.0), 1.0) for value in normalize_box(box.box, image.width, image.height)]
    pixels = [value * side for value, side in zip(corners, (image.width, image.height) * 2, strict=True)]
    return {"box": corners, "pixels": pixels, "image": box.image, "phrase": box.phrase, "score": box.score}


def embeddings_body(model: str, vectors_NE: NDArray[np.float32], num_tokens: int, encoding: str) -> dict[str, Any]:
    """Return vectors as OpenAI's list; base64 holds float32 in little-endian order."""
    rows = np.ascontiguousarray(vectors_NE, dtype="<f4")
    values = rows.tolist() if encoding == "float" else [base64.b64encode(row.tobytes()).decode() for row in rows]
    data = [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def located_body(model: str, image: ServedImage, boxes: Sequence[Located]) -> dict[str, Any]:
    """Return phrases with their boxes, as fractions and in pixels of the image, and their verdicts."""
    data = [
        {
            "phrase": located.phrase,
            "box": astuple(located.box) if located.box else None,
            "pixels": astuple(located.box.to_pixels(image.width, image.height)) if located.box else None,
            "score": located.score,
            "scores": located.scores,
            **_verdict(located.verdict),
        }
        for located in boxes
    ]
    return {"object": "list", "data": data, "model": model, "width": image.width, "height": image.height}


def hits_body(model: str, reply: SearchReply) -> dict[str, Any]:
    """Return hits of an index without their paths on the server, with the address of each image, and the verdict."""
    data = [
        {
            "key": hit.key,
            "kind": hit.kind,
            "score": hit.score,
            "z": hit.z,
            "box": astuple(hit.box) if hit.box else None,
            "phrase": hit.phrase,
            "caption": hit.caption,
            # Slashes of the key stay, because the route takes a path; the name is a query value, where all is escaped.
            "image": f"/images/{quote(hit.key)}?model={quote(model, safe='')}",
        }
        for hit in reply.hits
    ]
    return {"object": "list", "data": data, "model": model, **_verdict(reply.verdict), "floor": reply.floor}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {name: getattr(verdict, name) for name in ("has_match", "reason", "floor", "unknown_words")}


def classes_body(model: str, classes: Sequence[Classified]) -> dict[str, Any]:
    """Return classes with their probabilities, the most probable first."""
    return {"object": "list", "data": [asdict(item) for item in classes], "model": model}
