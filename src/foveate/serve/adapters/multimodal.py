"""Models that write about images: of `foveate mllm train`, captioners among them, and of transformers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foveate.caption.backends.foveate import MllmCaptioner, limit_generation
from foveate.caption.captioner import CaptionRequest
from foveate.caption.chat_requests import read_request
from foveate.core.errors import UserError
from foveate.language.generate import GenerationSettings
from foveate.language.positions import find_context
from foveate.multimodal.answers import Answer, certain_text
from foveate.multimodal.ask import Mllm
from foveate.multimodal.foreign import ForeignMllm
from foveate.multimodal.opening import find_native_folder, is_multimodal, open_mllm
from foveate.multimodal.prepare import Dialog
from foveate.multimodal.questions import ask_turns, ask_where, find_phrase
from foveate.records.boxes import Box
from foveate.records.conversations import IMAGE
from foveate.search.search import Verdict
from foveate.serve.adapters import check_letters, count_bytes, use_precision
from foveate.serve.calls import Call, ChatCall, ChatReply, Endpoint, Listener, LocateCall, Located, Refused
from foveate.serve.clips import ClipWriter, wrap_model
from foveate.serve.dialogs import cut_text, hold_back, list_boxes, read_dialog
from foveate.video.adapter import Network

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
        if call.is_json and (request is None or self.captioner is None or not self.captioner.reads_requests):
            text = f"response_format: {self.name} writes text; JSON is certain for captions of a captioner only"
            raise Refused(text, param="response_format", code="unsupported_value")

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
        rows = _Rows(calls, listener)
        with use_precision(self.precision, self._network):
            if isinstance(self.model, Mllm) and self.captioner is not None and captions:
                rows.captioner = self.captioner
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
        return GenerationSettings(
            max_new_tokens=call.max_tokens or self.max_tokens,
            temperature=call.temperature,
            top_p=call.top_p,
            seed=call.seed % 2**63,
        )

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
    captioner: MllmCaptioner | None = None
    sent: dict[int, str] = field(default_factory=dict)

    def step(self, number: int, read: Callable[[], Answer]) -> bool:
        if self.listener.is_gone(number):
            return False
        stop = self.calls[number].stop
        # A caption is written as a JSON object, once it is whole.
        if self.captioner is not None or not (stop or self.listener.is_streamed(number)):
            return True
        text = certain_text(read().text)
        whole, is_cut = cut_text(text, stop)
        self._push(number, whole if is_cut else hold_back(whole, stop))
        return not is_cut

    def end(self, number: int, answer: Answer) -> None:
        text = answer.text
        if self.captioner is not None:
            text = self.captioner.read_answer(text, finished=answer.finished)
        text, is_cut = cut_text(text, self.calls[number].stop)
        self._push(number, text)
        phrase = find_phrase(self.calls[number].turns[-1].text)
        boxes = list_boxes(answer, text, phrase=phrase)
        reply = ChatReply(text, answer.finished or is_cut, answer.num_prompt_tokens, answer.tokens, boxes)
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


def open_adapter(folder: Path, *, name: str, device: str | None, precision: str, max_tokens: int) -> MultimodalAdapter:
    """Open the model of a folder; one of Foveate also answers requests for captions."""
    model, native = open_mllm(folder, device=device), find_native_folder(folder)
    captioner = MllmCaptioner(model, native) if isinstance(model, Mllm) and native is not None else None
    if isinstance(model, ForeignMllm):
        # Its errors begin with it, and a folder of the server is nothing for clients.
        model.name = name
    network = wrap_model(model, folder, name=name)
    return MultimodalAdapter(
        model, name=name, captioner=captioner, network=network, precision=precision, max_tokens=max_tokens
    )
