"""Questions about clips: which models answer them, and the frames that they saw (SlowFast-LLaVA)."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.hub import fetch
from foveate.multimodal.ask import Mllm
from foveate.multimodal.foreign import ForeignMllm
from foveate.records.images import make_thumbnail
from foveate.serve.calls import ChatCall, ChatReply, Listener, Refused
from foveate.serve.dialogs import cut_text, hold_back
from foveate.video.adapter import Network, wrap_native
from foveate.video.networks import wrap_foreign
from foveate.video.prompts import check_question
from foveate.video.viewing import MAX_TOKENS, Viewing
from foveate.video.watch import count_text, watch
from foveate.vision.video.sources.source import Frame, Source

# Longest side in pixels of the frames of a reply: fifty of them are 150 kB.
_SIDE = 160


def wrap_model(model: Mllm | ForeignMllm, folder: Path, *, name: str) -> Network | UserError:
    """Return a served model as one that reads video, or why it cannot; its weights are shared."""
    try:
        with warnings.catch_warnings():
            # That phrase maps and boxes are of single images: docs/verbs/serve.md says so.
            warnings.simplefilter("ignore")
            if isinstance(model, Mllm):
                return wrap_native(model.loaded, name=name)
            return wrap_foreign(model.model, fetch(str(folder), field="model"), name=name)
    except UserError as error:
        return UserError(str(error).replace(str(folder), name))


class ClipWriter:
    """Answers questions about clips, one after another, as `foveate.watch` with `fit` does.

    Args:
        network: see `wrap_model`.
        max_tokens: longest answer.
    """

    def __init__(self, network: Network | UserError, *, max_tokens: int) -> None:
        self.network, self.max_tokens = network, max_tokens

    def check(self, call: ChatCall) -> None:
        """Raise `Refused` for a clip that the model cannot read, or fields that have no effect on one."""
        turn = call.turns[-1]
        alone = (len(call.turns), len(turn.images), len(turn.clips)) == (1, 0, 1)
        param = problem = ""
        if isinstance(self.network, UserError):
            param, problem = "messages", f"video_url: {self.network}"
        elif not alone:
            param, problem = "messages", "video_url: a clip is asked about alone; expected one message with one clip"
        elif call.regions or call.caption is not None:
            param, problem = "foveate", "foveate: boxes and captions are of images (got a clip)"
        elif call.temperature > 0:
            param, problem = "temperature", "temperature: answers about clips are greedy; expected 0"
        elif call.is_json:
            param, problem = "response_format", "response_format: JSON is certain for captions of images only"
        if problem:
            raise Refused(problem, param=param, code="unsupported_value")
        try:
            check_question(turn.text)
        except UserError as error:
            raise Refused(f"messages: {error}", param="messages", code="invalid_value") from None

    def write(self, number: int, call: ChatCall, listener: Listener) -> None:
        """Answer a call, and send its text and its reply to the listener."""
        try:
            reply: ChatReply | Refused = self._answer(number, call, listener)
        except _GoneError:
            reply = Refused("the client has gone", status=499)
        except UserError as error:
            # What follows is for the command line.
            sentence = str(error).partition(": --allow-damaged")[0]
            reply = Refused(f"video_url: {sentence}", param="messages", code="invalid_video")
        listener.end(number, reply)

    def _answer(self, number: int, call: ChatCall, listener: Listener) -> ChatReply:
        assert isinstance(self.network, Network), "calls are checked"
        turn, max_tokens = call.turns[-1], call.max_tokens or min(MAX_TOKENS, self.max_tokens)

        def check_gone() -> None:
            if listener.is_gone(number):
                raise _GoneError

        # Tokens for question and answer are set aside first; frames share what is left of the context.
        room = count_text(self.network, [(turn.text, ())], max_tokens=max_tokens)
        clip = _CheckedSource(turn.clips[0], check_gone)
        viewing = watch(self.network, clip, fit=True, text_tokens=room)
        seen = _describe(viewing, with_images=call.frame_images)
        pieces, text, sent = viewing.stream(turn.text, max_tokens=max_tokens), "", ""
        while True:
            try:
                text += next(pieces)
            # The generator's return value is the whole answer with its token counts.
            except StopIteration as end:
                answer = end.value
                break
            check_gone()
            # Stripped like the final answer, so that the text already sent is always its beginning.
            whole, is_cut = cut_text(text.strip(), call.stop)
            safe = whole if is_cut else hold_back(whole, call.stop)
            if len(safe) > len(sent):
                listener.push(number, safe[len(sent) :])
                sent = safe
        text, is_cut = cut_text(answer.text, call.stop)
        if text[len(sent) :]:
            listener.push(number, text[len(sent) :])
        return ChatReply(text, answer.finished or is_cut, answer.num_prompt_tokens, answer.tokens, clip=seen)


class _GoneError(Exception):
    pass


@dataclass
class _CheckedSource:
    """A source that calls `check` at each frame: nobody waits for a clip whose client has gone, or timed out."""

    source: Source
    check: Callable[[], None]

    def __post_init__(self) -> None:
        self.name, self.header_frames, self.size = self.source.name, self.source.header_frames, self.source.size
        self.damage: list[str] = []

    def predict_times(self) -> list[float]:
        return self.source.predict_times()

    def decode(self, indices: Container[int]) -> Iterator[Frame]:
        for frame in self.source.decode(indices):
            self.check()
            yield frame
        # The damage is known only once all frames are decoded.
        self.damage = self.source.damage


def _describe(viewing: Viewing, *, with_images: bool) -> dict[str, Any]:
    """Return what `foveate video ask --json` has of the frames that are read."""
    record = viewing.record
    frames: list[dict[str, Any]] = [
        {"index": index, "time": time, "is_slow": row in record["slow"]}
        for row, (index, time) in enumerate(zip(record["indices"], record["times"], strict=True))
    ]
    if with_images:
        images = viewing.read_frames(lambda seen: [make_thumbnail(each.image, longest_side=_SIDE) for each in seen])
        for frame, image in zip(frames, images, strict=True):
            frame["image"] = f"data:image/webp;base64,{base64.b64encode(image).decode()}"
    names = ("num_decoded", "fitted", "tokens", "warnings")
    return {"how": viewing.how.kind, "frames": frames, **{name: record[name] for name in names}}
