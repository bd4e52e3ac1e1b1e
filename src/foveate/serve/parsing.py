"""From a request's JSON to the call that a model answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from foveate.core.recipes import describe_problem
from foveate.records.boxes import Box, find_box_problem
from foveate.serve.bodies import Body, ChatBody, ClassifyBody, ClipPart, EmbeddingsBody, ImagePart, LocateBody, TextPart
from foveate.serve.calls import (
    Call,
    ChatCall,
    ChatTurn,
    ClassifyCall,
    EmbeddingsCall,
    LocateCall,
    Refused,
    SearchCall,
    ServedImage,
)
from foveate.vision.video.sources.source import Source

IMAGE_MARK = "<image>"
_MAX_PROBLEMS = 3
# More take longer to read than their body: for seconds no other thread would run.
_MAX_READ_PROBLEMS = 1000
_MAX_PARAM_LETTERS = 100
# The name of an unknown field may be as long as the body.
_MAX_SENTENCE_LETTERS = 1000
# All but images and clips. More JSON than this takes so long to read that other requests notice.
MAX_TEXT_BYTES = 2**20
MAX_DEPTH = 16
# By the sign that each costs: above what the limits of fields in `bodies` let pass together, below what takes 0.1 s.
_MAX_SIGNS = {b"{": (8192, "objects"), b"[": (17_000, "lists"), b":": (17_000, "fields"), b",": (85_000, "values")}
_MAX_STRINGS = 70_000
_BASE64 = re.compile(rb";base64,", re.IGNORECASE)
# A string without an end is read to the end of the body: to try again at each of its quotes would take quadratic time.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
B = TypeVar("B", bound=Body)


def check_bounds(data: bytes) -> None:
    """Refuse a body that would take long to read, by its bytes alone and in linear time.

    pydantic holds the interpreter's lock while it reads and checks a body, so even in a thread it would stop the event
    loop: 3.5 MB of `[[],[],...]` did for more than 3 s.

    Raises:
        Refused: more than `MAX_TEXT_BYTES` beside what data URLs hold, or too many values, fields or levels.
    """
    outside = cut_data_urls(data)
    # Counted first: of many short strings, cutting them out takes longest.
    num_strings = outside.count(b'"') // 2
    structure = b"" if num_strings > _MAX_STRINGS else _STRING.sub(b"", outside)
    counts = [("strings", num_strings, _MAX_STRINGS)]
    counts += [(name, structure.count(sign), limit) for sign, (limit, name) in _MAX_SIGNS.items()]
    for name, number, limit in counts:
        if number > limit:
            raise Refused(f"body: {number:,} {name}; expected at most {limit:,}", status=413, code="too_large")
    brackets = structure.translate(None, _ALL_BUT_BRACKETS)
    # Each turn takes away the innermost level. Brackets that do not match are left for the parser, which names them.
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets and brackets.count(b"[") + brackets.count(b"{") == brackets.count(b"]") + brackets.count(b"}"):
        raise Refused(f"body: expected at most {MAX_DEPTH} levels of lists and objects", code="invalid_json")


def cut_data_urls(data: bytes) -> bytes:
    """Return a body without what its data URLs hold, as which it is JSON if and only if the body is.

    Raises:
        Refused: more than `MAX_TEXT_BYTES` are left.
    """
    parts, length, start = list[bytes](), 0, 0
    while start < len(data):
        match = _BASE64.search(data, start, start + MAX_TEXT_BYTES - length + 1)
        end = len(data) if match is None else match.end()
        length += end - start
        if length > MAX_TEXT_BYTES:
            raise Refused(
                f"body: more than {MAX_TEXT_BYTES:,} bytes beside the images; send it in several requests",
                status=413,
                code="too_large",
            )
        parts.append(data[start:end])
        if match is None:
            break
        # Outside a string the semicolon would be no JSON, and what follows would never be read; inside it, everything
        # up to the next quote belongs to the string. A backslash before the quote is kept: the string goes on then.
        quote = data.find(b'"', end)
        quote = len(data) if quote < 0 else quote
        start = end + len(data[end:quote].rstrip(b"\\"))
    return b"".join(parts)


def parse_body(model: type[B], data: bytes) -> B:
    """Read a request's JSON.

    Raises:
        Refused: it is too large, no JSON, or a field is wrong or unknown; `param` is the first of them.
    """
    check_bounds(data)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        if (count := error.error_count()) > _MAX_READ_PROBLEMS:
            raise Refused(f"body: {count:,} fields are wrong or unknown", code="invalid_value") from None
        problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        raise Refused(f"body: expected JSON (got {first['ctx']['error']})", code="invalid_json") from None
    sentences = [describe_problem(model, dict(problem))[:_MAX_SENTENCE_LETTERS] for problem in problems[:_MAX_PROBLEMS]]
    # A body of a thousand wrong parts must not be answered with a thousand sentences.
    more = [f"{len(problems) - _MAX_PROBLEMS} more problems"] if len(problems) > _MAX_PROBLEMS else []
    # The path may hold a key of the request, which is as long as its sender likes.
    param = ".".join(str(part) for part in first["loc"])[:_MAX_PARAM_LETTERS] or None
    raise Refused("; and ".join([*sentences, *more]), param=param, code="invalid_value")


def image_urls(body: Body) -> list[str]:
    """List the data URLs of a request, in its order."""
    if isinstance(body, ChatBody):
        parts = [part for message in body.messages for part in message.content]
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    if isinstance(body, EmbeddingsBody):
        return body.images
    return [body.image] if body.image is not None else []


def clip_urls(body: Body) -> list[str]:
    """List the data URLs of the clips of a request, in its order."""
    parts = [part for message in body.messages for part in message.content] if isinstance(body, ChatBody) else []
    return [part.video_url.url for part in parts if isinstance(part, ClipPart)]


def without_images(body: Body) -> dict[str, Any]:
    """Return a request for the log, without the images in it."""
    content = body.model_dump(exclude={"image", "images"}, exclude_defaults=True)
    for message in content.get("messages", ()):
        # Keeps only text, so that a new kind of part stays out of the log by default.
        message["content"] = [part for part in message["content"] if part["type"] == "text"]
    return content


def make_call(body: Body, images: Sequence[ServedImage], clips: Sequence[Source] = ()) -> Call:
    """Turn a request, its decoded images and its clips into a call.

    Raises:
        Refused: fields that contradict each other, or a box that is none.
    """
    if isinstance(body, ChatBody):
        return _make_chat_call(body, images, clips)
    if isinstance(body, LocateBody):
        return LocateCall(images[0], tuple(body.phrases))
    if isinstance(body, ClassifyBody):
        return ClassifyCall(images[0], body.count)
    if isinstance(body, EmbeddingsBody):
        if bool(body.input) == bool(images):
            raise Refused("input: expected texts here, or data URLs in 'images', and not both", param="input")
        if body.boxes and len(images) != 1:
            raise Refused(f"boxes: expected one image (got {len(images)})", param="boxes")
        return EmbeddingsCall(tuple(body.input), tuple(images), _read_boxes(body.boxes, "boxes"))
    if body.text is None and not images:
        raise Refused("text: expected 'text', 'image' or both", param="text")
    if body.box is not None and not images:
        raise Refused("box: expected the 'image' that it is a part of", param="box")
    box = _read_boxes([body.box], "box")[0] if body.box is not None else None
    return SearchCall(body.text, next(iter(images), None), box, body.negative, body.count, body.kind)


def _make_chat_call(body: ChatBody, images: Sequence[ServedImage], clips: Sequence[Source]) -> ChatCall:
    iterator, clip_iterator, turns = iter(images), iter(clips), []
    for number, message in enumerate(body.messages):
        param, parts, turn_images, turn_clips = f"messages.{number}.content", [], [], []
        for part in message.content:
            # A mark in a text would count as an image that nobody sent.
            if isinstance(part, TextPart):
                if IMAGE_MARK in part.text:
                    raise Refused(f"{param}: '{IMAGE_MARK}' stands for an image; send it as a part", param=param)
                parts.append(part.text)
            elif message.role != "user":
                raise Refused(f"{param}: only messages of the user have images (got {message.role})", param=param)
            elif isinstance(part, ClipPart):
                turn_clips.append(next(clip_iterator))
            else:
                parts.append(IMAGE_MARK)
                turn_images.append(next(iterator))
        # OpenAI renamed the role; both mean the same to a chat template.
        role = "system" if message.role == "developer" else message.role
        turns.append(ChatTurn(role, "\n".join(parts), tuple(turn_images), tuple(turn_clips)))
    if turns[-1].role != "user":
        raise Refused(f"messages: the last one must be the user's (got {turns[-1].role})", param="messages")
    boxes, last = _read_boxes(body.foveate.boxes, "foveate.boxes"), next(reversed(images), None)
    if boxes and last is None:
        raise Refused("foveate.boxes: there is no image that they are parts of", param="foveate.boxes")
    return ChatCall(
        tuple(turns),
        # OpenAI's newer name goes before the older one, which clients still send.
        max_tokens=body.max_completion_tokens or body.max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed or 0,
        stop=tuple(body.stop or ()),
        regions=tuple(box.to_pixels(last.width, last.height) for box in boxes) if last else (),
        caption=body.foveate.caption(),
        is_json=body.response_format is not None and body.response_format.type == "json_object",
        frame_images=body.foveate.frame_images,
    )


def _read_boxes(boxes: Sequence[Sequence[float]], param: str) -> tuple[Box, ...]:
    for number, corners in enumerate(boxes):
        if (problem := find_box_problem(*corners)) is not None:
            raise Refused(f"{param}: box {number} {corners}: {problem}", param=param, code="invalid_box")
    return tuple(Box(*corners) for corners in boxes)
