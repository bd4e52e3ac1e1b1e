"""Models that write about images: of `foveate mllm train`, captioners among them, and of transformers."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from foveate.caption.backends.foveate import MllmCaptioner, limit_generation
from foveate.caption.captioner import CaptionRequest
from foveate.caption.chat_requests import read_request
from foveate.core.errors import UserError
from foveate.core.hub import fetch
from foveate.language.generate import GenerationSettings
from foveate.language.grammar import ANY_OBJECT, GrammarCompiler
from foveate.language.positions import find_context
from foveate.language.tokenizer import write_token
from foveate.multimodal.answer_writer import limit_tokens
from foveate.multimodal.answers import NOT_FOUND, Answer, certain_text, write_corners
from foveate.multimodal.ask import Mllm
from foveate.multimodal.foreign import ForeignMllm
from foveate.multimodal.opening import find_native_folder, is_multimodal, open_mllm
from foveate.multimodal.prepare import Dialog
from foveate.multimodal.questions import ask_turns, ask_where, find_phrase
from foveate.multimodal.recognition import SOURCE
from foveate.multimodal.settings import OpeningOptions
from foveate.records.boxes import Box, PixelBox
from foveate.records.conversations import IMAGE, REGION, Turn, find_shape_problem, find_turn_problem
from foveate.records.images import make_thumbnail
from foveate.records.region_prompts import mute_placeholders
from foveate.records.rows import clean_text
from foveate.search.search import Verdict
from foveate.serve.adapters import check_letters, count_bytes, use_precision
from foveate.serve.calls import (
    Call,
    ChatBox,
    ChatCall,
    ChatReply,
    ChatTurn,
    Endpoint,
    Listener,
    LocateCall,
    Located,
    Refused,
    ServedImage,
    TokenLogprob,
)
from foveate.video.adapter import Network, wrap_native
from foveate.video.networks import wrap_foreign
from foveate.video.prompts import check_question
from foveate.video.viewing import MAX_TOKENS, Viewing
from foveate.video.watching import count_text, watch
from foveate.vision.video.sources import Frame, Source

# Conversations of clients as models are trained on them, and answers as far as they may be sent.


# From the first blank on: tried at each of them, a text of blanks alone would take the square of its length.
_CORNERS = re.compile(r"(?<!\s)\s*\[(\d+), (\d+), (\d+), (\d+)\]")


def cut_text(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to the first of the stop texts in it, and whether there is one.

    >>> cut_text("one two three", ("three", "two"))
    ('one ', True)
    """
    ends = [position for position in (text.find(each) for each in stop if each) if position >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def hold_back(text: str, stop: Sequence[str]) -> str:
    """Return a text without an end that may become a stop text.

    >>> hold_back("one th", ("three",))
    'one '
    """
    # Only proper prefixes of a stop text: at a whole one `cut_text` has cut already.
    sizes = ((each, size) for each in stop for size in range(1, min(len(each), len(text) + 1)))
    lengths = [size for each, size in sizes if text.endswith(each[:size])]
    return text[: len(text) - max(lengths, default=0)]


def read_dialog(call: ChatCall, images: Mapping[bytes, bytes] | None = None) -> Dialog:
    """Return the conversation of a call as models are trained on it: boxes in earlier answers are regions again.

    Args:
        images: bytes -> the object that stands for equal ones.

    Raises:
        UserError: turns do not alternate, a text is empty, or its placeholders do not fit.
    """
    turns: list[Turn] = []
    images_of_call = [image for turn in call.turns for image in turn.images]
    for turn in call.turns:
        if turn.role == "user":
            # `<1>` and `<2>` refer to the boxes of the last question only.
            regions = call.regions if turn is call.turns[-1] else ()
            turns += ask_turns(turn.text, regions, images=len(turn.images))
        elif turn.role == "system":
            turns.append(Turn("system", mute_placeholders(clean_text(turn.text))))
        else:
            turns.append(_read_answer(turn, images_of_call))
    finding = find_turn_problem(turns, answered=False)
    if finding is not None:
        raise UserError(f"messages: {finding.reason}: {finding.detail}")
    data = [(images or {}).get(image.data, image.data) for image in images_of_call]
    return Dialog(data, turns, call.regions)


def _read_answer(turn: ChatTurn, images: Sequence[ServedImage]) -> Turn:
    """Return an earlier answer with `<region>` for each box in pixels that lies in the one image."""
    text, regions = mute_placeholders(clean_text(turn.text)), list[PixelBox]()

    def replace(match: re.Match[str]) -> str:
        box = PixelBox(*(float(edge) for edge in match.groups()))
        # With several images nothing says which one the corners are in.
        if len(images) != 1 or find_shape_problem(box, width=images[0].width, height=images[0].height):
            return match[0]
        regions.append(box)
        return f" {REGION}"

    return Turn("assistant", _CORNERS.sub(replace, text).strip(), tuple(regions))


def list_boxes(answer: Answer, text: str, *, phrase: str = "") -> tuple[ChatBox, ...]:
    """Return the boxes of an answer whose corners stand in the text that is left of it.

    Args:
        phrase: of the question, for boxes that the answer has no phrase for.
    """
    boxes, start = list[ChatBox](), 0
    scores = answer.box_scores if len(answer.box_scores) == len(answer.boxes) else (None,) * len(answer.boxes)
    for box, image, name, score in zip(answer.boxes, answer.images, answer.phrases, scores, strict=True):
        position = text.find(write_corners(box), start)
        # The text was cut at a stop: of what follows nothing was sent.
        if position < 0:
            break
        boxes.append(ChatBox(box, image, name or phrase, score))
        start = position + 1
    return tuple(boxes)


# Questions about clips: which models answer them, and the frames that they saw (SlowFast-LLaVA).


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
        elif call.is_json or call.json_schema:
            param, problem = "response_format", "response_format: answers about clips are text"
        elif call.top_logprobs is not None:
            param, problem = "logprobs", "logprobs: answers about clips have none; expected false"
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


# More than any vocabulary packs into a token, but for blanks.
_LETTERS_PER_TOKEN = 32


class MultimodalAdapter:
    """See `foveate.serve.calls.ChatAdapter`; what of a batch models of transformers share, `ForeignMllm` says."""

    kind = "multimodal"
    decode_side: int | None = None
    endpoints: frozenset[Endpoint] = frozenset({"chat", "locate"})

    def __init__(
        self,
        model: Mllm | ForeignMllm,
        *,
        name: str,
        captioner: MllmCaptioner | None = None,
        network: Network | UserError | None = None,
        precision: str = "auto",
        max_tokens: int = 1024,
    ) -> None:
        self.model, self.name, self.captioner = model, name, captioner
        network = network or UserError(f"{name}: was opened for images alone")
        self.clips, self.answers_clips = ClipWriter(network, max_tokens=max_tokens), isinstance(network, Network)
        self.precision, self.max_tokens = precision, max_tokens
        self._network: Any = model.loaded.model if isinstance(model, Mllm) else model.model
        self.max_images = model.loaded.model.settings.max_images if isinstance(model, Mllm) else None
        positions = self._network.max_positions if isinstance(model, Mllm) else find_context(self._network)
        self._max_letters = _LETTERS_PER_TOKEN * (positions or 1 << 20)
        self.num_bytes = count_bytes(self._network)

    def check(self, call: Call) -> None:
        """Raise `Refused` for too many images or tokens, turns out of order, and JSON that nothing guarantees."""
        if isinstance(call, LocateCall):
            check_letters(call.phrases, param="phrases")
        if not isinstance(call, ChatCall):
            return
        num_images = sum(len(turn.images) for turn in call.turns)
        if self.max_images is not None and num_images > self.max_images:
            text = f"messages: {num_images} images; {self.name} takes at most {self.max_images}"
            raise Refused(text, param="messages", code="too_many_images")
        if call.max_tokens is not None and call.max_tokens > self.max_tokens:
            text = f"max_tokens: too many (got {call.max_tokens}); expected at most {self.max_tokens}"
            raise Refused(text, param="max_tokens", code="too_many_tokens")
        # Before anything reads them: what can never fit must not hold up others.
        if (num_letters := sum(len(turn.text) for turn in call.turns)) > self._max_letters:
            text = f"messages: {num_letters:,} letters; {self.name} takes at most {self._max_letters:,}"
            raise Refused(text, param="messages", code="context_length_exceeded")
        if call.has_clips:
            self.clips.check(call)
            return
        try:
            request = self._read_caption(call)
            if request is None:
                read_dialog(call)
        except UserError as error:
            param = "messages" if call.caption is None else "foveate"
            raise Refused(str(error), param=param, code="invalid_value") from error
        if request is None or self.captioner is None:
            return
        # Captions are written by rules of their own, as text or as the JSON object that a captioner was trained on.
        if call.json_schema or (call.is_json and not self.captioner.reads_requests):
            text = f"response_format: captions of {self.name} follow no schema; expected "
            text += "'json_object' or 'text'" if self.captioner.reads_requests else "'text'"
            raise Refused(text, param="response_format", code="unsupported_value")
        if call.top_logprobs is not None:
            raise Refused("logprobs: captions have none; expected false", param="logprobs", code="unsupported_value")

    def compile(self, call: ChatCall) -> None:
        """Raise `Refused` for JSON that the answer cannot follow."""
        if schema := self._find_schema(call):
            try:
                self._grammars.check(schema)
            except UserError as error:
                raise Refused(str(error), param="response_format", code="invalid_value") from None

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        return self.model.loaded.grammars if isinstance(self.model, Mllm) else self.model.grammars

    def _find_schema(self, call: ChatCall) -> str:
        """Return the schema that an answer follows, "" for text and for captions, which have their own JSON."""
        is_caption = self.captioner is not None and call.is_json and self._read_caption(call) is not None
        return call.json_schema or (ANY_OBJECT if call.is_json and not is_caption else "")

    def group(self, call: Call) -> Hashable:
        """Return whether a clip is asked about, or a caption is asked for, which ends before it repeats itself."""
        if isinstance(call, ChatCall) and call.has_clips:
            return "clip"
        return isinstance(call, ChatCall) and self.captioner is not None and self._read_caption(call) is not None

    def answer(self, calls: Sequence[Call]) -> list[Any]:
        """Ask where phrases are, those of all calls together."""
        requests = [call for call in calls if isinstance(call, LocateCall)]
        pairs = [(call.image.data, ask_where(phrase)) for call in requests for phrase in call.phrases]
        # A model whose names are tokens locates them by itself; any other is asked to write boxes.
        ground = not (isinstance(self.model, Mllm) and self.model.loaded.name_ids)
        with use_precision(self.precision, self._network):
            answers = iter(self.model.ask_all(pairs, ground=ground))
        floor = self.model.loaded.min_box_score if isinstance(self.model, Mllm) else None
        return [
            tuple(_read_location(phrase, next(answers), call, floor=floor) for phrase in call.phrases)
            for call in requests
        ]

    def write(self, calls: Sequence[ChatCall], listener: Listener) -> None:
        """Write answers together, captions together, or answers about clips one after another."""
        if calls[0].has_clips:
            with use_precision(self.precision, self._network):
                for number, call in enumerate(calls):
                    self.clips.write(number, call, listener)
            return
        # Equal bytes become one object, which the model encodes once.
        images = {image.data: image.data for call in calls for turn in call.turns for image in turn.images}
        requests = [self._read_caption(call) for call in calls]
        captions = [request for request in requests if request is not None]
        rows = _Rows(calls, listener, self._write_token)
        with use_precision(self.precision, self._network):
            if isinstance(self.model, Mllm) and self.captioner is not None and captions:
                rows.captioner, rows.captions = self.captioner, captions
                self.model.answer_dialogs(
                    [_ask_for_caption(self.captioner.write_question(each), images[each.image]) for each in captions],
                    generation=[limit_generation(request) for request in captions],
                    ends_repeats=True,
                    observer=rows,
                )
                return
            dialogs = [
                read_dialog(call, images) if request is None else _ask_for_caption(request.prompt, request.image)
                for call, request in zip(calls, requests, strict=True)
            ]
            self.model.answer_dialogs(dialogs, generation=[self._limit(call) for call in calls], observer=rows)

    def _limit(self, call: ChatCall) -> GenerationSettings:
        options = {"temperature": call.temperature, "top_p": call.top_p, "seed": call.seed % 2**63}
        options |= {"json_schema": self._find_schema(call), "top_logprobs": call.top_logprobs}
        # JSON may hold the same number many times.
        options |= {"max_repeats": 0} if options["json_schema"] else {}
        return limit_tokens(call.max_tokens or self.max_tokens, **options)

    def _write_token(self, token: int) -> str:
        if isinstance(self.model, Mllm):
            return write_token(self.model.loaded.backend, token)
        return write_token(self.model.processor.tokenizer.backend_tokenizer, token)

    def _read_caption(self, call: ChatCall) -> CaptionRequest | None:
        """Return the caption that a call asks for: by the field `foveate`, or by a prompt of Foveate's."""
        last = call.turns[-1]
        if len(call.turns) > 1 or len(last.images) != 1 or call.regions:
            if call.caption is not None:
                raise UserError("foveate: a caption is of one message with one image")
            return None
        request = read_request(
            last.text.replace(IMAGE, ""),
            last.images[0].data,
            call.caption,
            max_tokens=call.max_tokens,
            temperature=call.temperature,
            seed=call.seed,
        )
        # The usual length of a format may be above the limit of the server.
        return request and replace(request, max_tokens=min(request.max_tokens, self.max_tokens))


@dataclass
class _Rows:
    """See `foveate.multimodal.answers.AnswerObserver`: cuts answers at stop texts and sends them to a listener."""

    calls: Sequence[ChatCall]
    listener: Listener
    write_token: Callable[[int], str]
    captioner: MllmCaptioner | None = None
    captions: Sequence[CaptionRequest] = ()
    sent: dict[int, str] = field(default_factory=dict)

    def step(self, number: int, read: Callable[[], Answer]) -> bool:
        if self.listener.is_gone(number):
            return False
        stop = self.calls[number].stop
        # A caption is written as a JSON object, once it is whole.
        if self.captioner is not None or not (stop or self.listener.is_streamed(number)):
            return True
        answer, call = read(), self.calls[number]
        # What follows a schema has no boxes that may still change.
        is_plain = call.is_json or call.json_schema
        text = answer.text.rstrip("\N{REPLACEMENT CHARACTER}") if is_plain else certain_text(answer.text)
        whole, is_cut = cut_text(text, stop)
        self._push(number, whole if is_cut else hold_back(whole, stop))
        return not is_cut

    def end(self, number: int, answer: Answer) -> None:
        text = answer.text
        if self.captioner is not None:
            recognized = self.captioner.recognize(self.captions[number]) if answer.source == SOURCE else ""
            text = NOT_FOUND if answer.source == SOURCE else text
            text = recognized or self.captioner.read_answer(text, finished=answer.finished)
        text, is_cut = cut_text(text, self.calls[number].stop)
        self._push(number, text)
        phrase = find_phrase(self.calls[number].turns[-1].text)
        boxes = list_boxes(answer, text, phrase=phrase)
        logprobs = None
        if self.calls[number].top_logprobs is not None:
            logprobs = tuple(
                TokenLogprob(
                    self.write_token(score.id),
                    score.logprob,
                    tuple((self.write_token(id), logprob) for id, logprob in score.likeliest),
                )
                for score in answer.token_scores
            )
        reply = ChatReply(
            text,
            answer.finished or is_cut,
            answer.num_prompt_tokens,
            answer.tokens,
            boxes,
            answer.source,
            logprobs=logprobs,
        )
        self.listener.end(number, reply)

    def _push(self, number: int, text: str) -> None:
        sent = self.sent.get(number, "")
        if len(text) > len(sent) and text.startswith(sent):
            self.listener.push(number, text[len(sent) :])
            self.sent[number] = text


def _ask_for_caption(question: str, image: bytes) -> Dialog:
    return Dialog([image], ask_turns(question, (), images=1))


def _read_location(phrase: str, answer: Answer, call: LocateCall, *, floor: float | None) -> Located:
    if not answer.boxes:
        return Located(phrase, None, max(answer.rejected, default=None), Verdict(False, answer.reason, floor))
    score = answer.box_scores[0] if answer.box_scores else None
    box = Box.from_pixels(answer.boxes[0], call.image.width, call.image.height)
    return Located(phrase, box, score, Verdict(True, floor=floor))


def matches(folder: Path) -> bool:
    """Return whether a folder holds a multimodal model of Foveate or transformers."""
    return is_multimodal(folder)


def open_adapter(
    folder: Path,
    *,
    name: str,
    device: str | None,
    precision: str,
    max_tokens: int,
    opening: OpeningOptions | None = None,
) -> MultimodalAdapter:
    """Open the model of a folder; one of Foveate also answers requests for captions."""
    model, native = open_mllm(folder, device=device, opening=opening), find_native_folder(folder)
    captioner = MllmCaptioner(model, native) if isinstance(model, Mllm) and native is not None else None
    if isinstance(model, ForeignMllm):
        # Its errors begin with it, and a folder of the server is nothing for clients.
        model.name = name
    network = wrap_model(model, folder, name=name)
    return MultimodalAdapter(
        model, name=name, captioner=captioner, network=network, precision=precision, max_tokens=max_tokens
    )
