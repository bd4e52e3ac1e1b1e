"""Models that write, behind the server: the text of the model itself, alone or in a batch, streamed or whole."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from caption.tiny_captioner import save_captioner
from foveate.caption.backends.foveate import FoveateSettings, open_captioner
from foveate.caption.captioner import CaptionRequest
from foveate.caption.chat_requests import read_request
from foveate.caption.prompts import find_prompt
from foveate.core.errors import UserError
from foveate.language.forbidden_words import INVENTED_WORDS
from foveate.language.generate import GenerationSettings
from foveate.multimodal import answer_writer
from foveate.multimodal.answers import LANGUAGE_MODEL, Answer, certain_text
from foveate.multimodal.ask import Mllm
from foveate.multimodal.foreign import ForeignMllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prompts import _BLANKS
from foveate.multimodal.questions import ask_where, find_phrase
from foveate.multimodal.recognition import SOURCE
from foveate.records.boxes import PixelBox
from foveate.serve.adapters import open_served
from foveate.serve.adapters.multimodal import MultimodalAdapter, cut_text, hold_back, list_boxes, read_dialog
from foveate.serve.calls import Call, ChatCall, ChatReply, ChatTurn, LocateCall, Refused, ServedImage
from multimodal.foreign_models import save
from naming import raises_naming


class Recorder:
    """Notes what a batch sends, in order."""

    def __init__(self, *, is_streamed: bool = True, gone_after: dict[int, int] | None = None) -> None:
        self.streamed, self.gone_after = is_streamed, gone_after or {}
        self.pieces: dict[int, list[str]] = {}
        self.replies: dict[int, Any] = {}
        self.num_checks: dict[int, int] = {}

    def is_streamed(self, row: int) -> bool:
        return self.streamed

    def push(self, row: int, piece: str) -> None:
        assert piece
        assert row not in self.replies
        self.pieces.setdefault(row, []).append(piece)

    def end(self, row: int, reply: ChatReply | Exception) -> None:
        assert row not in self.replies
        self.replies[row] = reply

    def is_gone(self, row: int) -> bool:
        self.num_checks[row] = self.num_checks.get(row, 0) + 1
        return self.num_checks[row] > self.gone_after.get(row, 10**9)


def draw(seed: int, *, width: int = 64, height: int = 48) -> ServedImage:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ServedImage(buffer.getvalue(), width, height)


IMAGES = [draw(0), draw(1, width=40)]


def ask(text: str, *images: ServedImage, **changes: Any) -> ChatCall:
    return ChatCall((ChatTurn("user", text, images),), **{"max_tokens": 12, **changes})


def write(adapter: Any, *calls: ChatCall, **options: Any) -> Recorder:
    for call in calls:
        adapter.check(call)
    recorder = Recorder(**options)
    adapter.write(calls, recorder)
    assert set(recorder.replies) == set(range(len(calls)))
    return recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("served") / "captioner")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> MultimodalAdapter:
    opened = open_served(folder, device="cpu", max_tokens=40)
    assert isinstance(opened, MultimodalAdapter)
    return opened


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> MultimodalAdapter:
    opened = open_served(save("qwen2_vl", tmp_path_factory.mktemp("served") / "qwen"), device="cpu", name="qwen")
    assert isinstance(opened, MultimodalAdapter)
    return opened


CALLS = [
    ask("<image>\nWhat is left of a dog?", IMAGES[0]),
    ask("Where is the dog?", IMAGES[1], max_tokens=40),
    ask("Where is the dog?", IMAGES[0], max_tokens=20, temperature=1.5, top_p=0.9, seed=3),
    ask("Is it gray?", max_tokens=30, temperature=1.0, seed=4),
    ask("What is at <1>?", IMAGES[0], regions=(PixelBox(4, 4, 30, 40),)),
    ChatCall(
        (
            ChatTurn("system", "Be short."),
            ChatTurn("user", "Where is the dog?", (IMAGES[0],)),
            ChatTurn("assistant", "The dog is at [4, 4, 30, 40]."),
            ChatTurn("user", "Is it left of a square?"),
        ),
        max_tokens=25,
    ),
]


def test_a_row_has_the_text_of_the_model_whatever_its_batch_and_streamed_or_not(
    adapter: MultimodalAdapter, folder: Path
) -> None:
    together, whole = write(adapter, *CALLS), write(adapter, *CALLS, is_streamed=False)
    for row, call in enumerate(CALLS):
        reply = together.replies[row]
        assert "".join(together.pieces[row]) == reply.text == whole.replies[row].text
        assert write(adapter, call).replies[0].text == reply.text
    assert max(len(pieces) for pieces in together.pieces.values()) > 10
    assert all(len(pieces) == 1 for pieces in whole.pieces.values())
    # Rows end one by one, not with their batch.
    assert list(together.replies) != list(CALLS)
    model = open_mllm(folder, device="cpu")
    for row in (0, 1, 4):
        call, reply = CALLS[row], together.replies[row]
        answer = model.ask(
            [image.data for image in call.turns[0].images],
            call.turns[0].text,
            regions=call.regions,
            max_tokens=call.max_tokens or 0,
        )
        assert (reply.text, reply.finished, reply.num_tokens) == (answer.text, answer.finished, answer.tokens)
        assert [box.box for box in reply.boxes] == list(answer.boxes)
        assert reply.num_prompt_tokens == answer.num_prompt_tokens > 10


def test_a_loop_ends_an_answer_as_in_the_process(
    adapter: MultimodalAdapter, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights seldom loop: a single token counts as a loop here.
    monkeypatch.setattr(answer_writer, "MAX_REPEATS", 1)
    expected = open_mllm(folder, device="cpu").ask(IMAGES[1].data, "Where is the dog?", max_tokens=40)
    reply = write(adapter, ask("Where is the dog?", IMAGES[1], max_tokens=40)).replies[0]
    assert (reply.text, reply.num_tokens, reply.finished) == (expected.text, expected.tokens, expected.finished)
    assert reply.num_tokens < 40
    assert reply.source == LANGUAGE_MODEL


@pytest.mark.slow
def test_a_conversation_is_answered_as_within_the_process() -> None:
    """By a trained model: what random weights write is no text that is read again as the same tokens."""
    model, served = open_mllm("mini", device="cpu"), open_served("mini", device="cpu")
    assert isinstance(model, Mllm)
    chat, turns = model.chat(IMAGES[0].data), list[ChatTurn]()
    for number, question in enumerate(("Describe the image.", "Is there a red disc?", "What is in the image?")):
        answer = chat.ask(question, max_tokens=40)
        turns.append(ChatTurn("user", question, () if number else (IMAGES[0],)))
        assert write(served, ChatCall(tuple(turns), max_tokens=40)).replies[0].text == answer.text
        turns.append(ChatTurn("assistant", answer.text))


def test_boxes_have_the_phrase_of_the_answer_or_of_the_question() -> None:
    box = PixelBox(4, 5, 30, 40)
    named = Answer("a cat [4, 5, 30, 40]", boxes=(box,), images=(0,), phrases=("a cat",))
    assert [each.phrase for each in list_boxes(named, named.text, phrase="dog")] == ["a cat"]
    bare = replace(named, phrases=("",))
    for question, phrase in {"<image>\nWhere is the red disc?": "red disc", "what is it?": "", "": ""}.items():
        assert [each.phrase for each in list_boxes(bare, bare.text, phrase=find_phrase(question))] == [phrase]
    assert find_phrase(ask_where("a boat")) == "boat"


def test_boxes_of_earlier_answers_are_regions_again() -> None:
    dialog = read_dialog(CALLS[-1])
    assert [(turn.role, turn.text) for turn in dialog.turns][:3] == [
        ("system", "Be short."),
        ("user", "<image>\nWhere is the dog?"),
        ("assistant", "The dog is at <region>."),
    ]
    assert dialog.turns[2].regions == (PixelBox(4, 4, 30, 40),)
    outside = replace(CALLS[-1].turns[2], text="at [4, 4, 300, 40] <image> <1>")
    turns = (CALLS[-1].turns[1], outside, CALLS[-1].turns[3])
    assert read_dialog(ChatCall(turns)).turns[1].text == "at [4, 4, 300, 40]  image   1"


def test_a_box_beside_those_of_earlier_answers(adapter: MultimodalAdapter, foreign: MultimodalAdapter) -> None:
    last = ChatTurn("user", "What is left of <1>?")
    call = replace(CALLS[-1], turns=(*CALLS[-1].turns[:-1], last), regions=(PixelBox(1, 1, 20, 20),), max_tokens=2)
    assert write(adapter, call).replies[0].num_tokens
    with pytest.warns(UserWarning, match="coordinates"):
        assert write(foreign, call).replies[0].num_tokens


@pytest.mark.parametrize("row", [0, 1, 2])
def test_stop_texts_end_a_row_and_are_no_part_of_it(adapter: MultimodalAdapter, row: int) -> None:
    whole = write(adapter, CALLS[row]).replies[0].text
    # Longer than a piece, so that its beginning must be held back.
    middle = whole[len(whole) // 3 : len(whole) // 3 + 4]
    stopped = write(adapter, replace(CALLS[row], stop=(middle, "nowhere")), CALLS[0])
    reply = stopped.replies[0]
    assert reply.text == whole[: whole.find(middle)] == "".join(stopped.pieces.get(0, []))
    assert reply.finished
    assert reply.num_tokens < write(adapter, CALLS[row]).replies[0].num_tokens
    assert stopped.replies[1] == write(adapter, CALLS[0]).replies[0]


def test_a_row_that_nobody_waits_for_stops_at_the_next_token(adapter: MultimodalAdapter) -> None:
    recorder = write(adapter, CALLS[1], CALLS[0], gone_after={0: 3})
    assert recorder.replies[0].num_tokens == 4
    assert recorder.replies[1] == write(adapter, CALLS[0]).replies[0]


def test_texts_are_held_back_until_they_are_certain() -> None:
    assert certain_text("at [1, 2, 3, 4] and [5") == "at [1, 2, 3, 4] and"
    assert certain_text("caf\N{REPLACEMENT CHARACTER}") == "caf"
    assert cut_text("a stop b end", ("end", "stop")) == ("a ", True)
    assert cut_text("a", ("", "b")) == ("a", False)
    assert hold_back("a st", ("stop", "tz")) == "a "
    assert hold_back("a stop", ()) == "a stop"


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (ask("x", IMAGES[0], draw(2), draw(3)), ("3 images", "2")),
        (ask("x", max_tokens=41), ("41", "40")),
        (ask("x", IMAGES[0], caption={"format": "dsc"}, json_schema="{}"), ("response_format", "captions")),
        (ask("x", IMAGES[0], caption={"format": "dsc"}, top_logprobs=1), ("logprobs", "captions")),
        (ask(" "), ("question", "empty")),
        (ask("x" * 33_000), ("33,000", "32,768")),
        (ask("<image> is <image>", IMAGES[0]), ("2 <image>",)),
        (ask("What is <1>?", IMAGES[0]), ("<1>",)),
        (ChatCall((ChatTurn("user", "a"), ChatTurn("user", "b"))), ("alternate",)),
        (ChatCall((ChatTurn("user", "a"), ChatTurn("assistant", "b"))), ("question",)),
        (ask("x", IMAGES[0], caption={"format": "dcs"}), ("dcs", "dsc")),
        (ask("x", IMAGES[0], caption={"length": 1, "formt": "dsc"}), ("formt", "format")),
        (ask("x", IMAGES[0], caption={"format": "dsc", "length": 99}), ("length", 99)),
        (ask("x", caption={"format": "dsc"}), ("image",)),
        (LocateCall(IMAGES[0], ("x" * 6000, "y" * 6000)), ("phrases", "12,000", "10,000")),
    ],
)
def test_calls_that_can_never_be_answered(adapter: MultimodalAdapter, call: Call, names: tuple[object]) -> None:
    with raises_naming(Refused, *names):
        adapter.check(call)


def test_the_least_surprising_errors_come_from_the_batch(adapter: MultimodalAdapter) -> None:
    with raises_naming(ValueError, "too long"):
        adapter.write([ask("dog " * 2000, IMAGES[0])], Recorder())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_captions_are_those_of_the_backend_in_the_process(
    adapter: MultimodalAdapter, folder: Path, temperature: float
) -> None:
    local = open_captioner(FoveateSettings(model=str(folder), device="cpu"))
    dsc, afc = find_prompt("dsc").fill(), find_prompt("afc").fill(alt='A chair, "Port" {1908}')
    changes: dict[str, Any] = {"temperature": temperature, "seed": 5, "is_json": True, "max_tokens": 20}
    calls = [
        ask(dsc, IMAGES[0], **changes),
        ask(f"<image>{afc}", IMAGES[1], **changes),
        ask("", IMAGES[1], caption={"format": "afc", "alt": 'A chair, "Port" {1908}'}, **changes),
        ask("", IMAGES[0], caption={"format": "ssc", "length": 3}, **changes),
    ]
    assert {adapter.group(call) for call in calls} == {True}
    recorder = write(adapter, *calls)
    requests = [
        read_request(text, call.turns[0].images[0].data, call.caption, max_tokens=20, temperature=temperature, seed=5)
        for call, text in zip(calls, [dsc, afc, "", ""], strict=True)
    ]
    assert all(isinstance(request, CaptionRequest) for request in requests)
    expected = local.caption_batch(requests)  # type: ignore[attr-defined]
    for row, response in enumerate(expected):
        reply = recorder.replies[row]
        assert (reply.text, reply.finished, reply.num_tokens) == (response.text, response.finished, response.tokens_out)
        assert recorder.pieces[row] == [reply.text]
    assert recorder.replies[1].text == recorder.replies[2].text
    assert not adapter.group(ask("Write a poem.", IMAGES[0]))


def test_captions_are_no_longer_than_any_answer(adapter: MultimodalAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[GenerationSettings] = []
    monkeypatch.setattr(
        type(adapter.model), "answer_dialogs", lambda *arguments, **named: settings.extend(named["generation"])
    )
    for max_tokens in (None, 7):
        call = ask("", IMAGES[0], caption={"format": "dsc_plus"}, max_tokens=max_tokens)
        adapter.check(call)
        adapter.write([call], Recorder())
    assert [each.max_new_tokens for each in settings] == [adapter.max_tokens, 7]


@pytest.mark.parametrize("text", [" " * 100_000 + "x", "<" * 100_000])
def test_a_long_run_of_one_letter_is_read_at_once(text: str) -> None:
    """Not in the square of its length, which would take seconds of all clients."""
    answer = (ChatTurn("user", "a"), ChatTurn("assistant", f"x{text}"), ChatTurn("user", "b"))
    start = time.perf_counter()
    read_dialog(ChatCall((ChatTurn("system", f"x{text}"), *answer)))
    assert find_phrase(f"where is{text}?{text}") == ""
    assert _BLANKS.sub("", f"x{text}") == f"x{text}"
    assert time.perf_counter() - start < 1


def test_phrases_are_located_by_questions(adapter: MultimodalAdapter, folder: Path) -> None:
    model = open_mllm(folder, device="cpu")
    calls = [LocateCall(IMAGES[0], ("dog", "square")), LocateCall(IMAGES[1], ("dog",))]
    replies = adapter.answer(calls)
    assert [[each.phrase for each in reply] for reply in replies] == [["dog", "square"], ["dog"]]
    for call, reply in zip(calls, replies, strict=True):
        for located in reply:
            answer = model.locate(call.image.data, located.phrase)
            pixels = None if located.box is None else located.box.to_pixels(call.image.width, call.image.height)
            expected = answer.boxes[0] if answer.boxes else None
            assert (pixels is None) == (expected is None)
            if pixels is not None and expected is not None:
                assert np.allclose(
                    [pixels.x1, pixels.y1, pixels.x2, pixels.y2],
                    [expected.x1, expected.y1, expected.x2, expected.y2],
                    atol=1e-3,
                )


@pytest.mark.parametrize("floor", [None, 1e9])
def test_a_phrase_below_the_floor_of_the_model_is_not_found(folder: Path, floor: float | None) -> None:
    model = open_mllm(folder, device="cpu")
    assert isinstance(model, Mllm)
    model.loaded = replace(model.loaded, min_box_score=floor)
    ((located,),) = MultimodalAdapter(model, name="tiny").answer([LocateCall(IMAGES[0], ("dog",))])
    answer = model.locate(IMAGES[0].data, "dog")
    assert (located.verdict.has_match, located.verdict.floor) == (bool(answer.boxes), floor)
    if not answer.boxes:
        assert located.box is None
        assert located.verdict.reason == answer.reason
        assert answer.reason.endswith("and gave no box")


def test_models_of_transformers_stream_draw_and_stop(foreign: MultimodalAdapter) -> None:
    assert isinstance(foreign.model, ForeignMllm)
    assert (foreign.name, foreign.captioner) == ("qwen", None)
    call = next(
        ask("what is in the image", image)
        for image in map(draw, range(40))
        if len(foreign.model.ask(image.data, "what is in the image", max_tokens=12).text.split()) > 5
    )
    image = call.turns[0].images[0]
    sampled = [replace(call, temperature=2.0, seed=seed) for seed in range(3)]
    recorder = write(foreign, call, *sampled, call, gone_after={4: 2})
    answer = foreign.model.ask(image.data, "what is in the image", max_tokens=12)
    assert recorder.replies[0].text == answer.text == "".join(recorder.pieces[0])
    assert len(recorder.pieces[0]) > 1
    assert len({recorder.replies[row].text for row in (1, 2, 3)}) > 1
    assert write(foreign, sampled[1]).replies[0].text == recorder.replies[2].text
    assert recorder.replies[4].num_tokens == 3
    middle = answer.text.split()[3]
    stopped = write(foreign, replace(call, stop=(middle,))).replies[0]
    assert (stopped.text, stopped.finished) == (answer.text[: answer.text.find(middle)], True)
    # What does not fit behind a question is cut at the context's end, not refused.
    assert write(foreign, replace(call, max_tokens=1024)).replies[0].num_tokens < 400


def test_images_of_a_conversation_stand_in_their_own_turns(
    foreign: MultimodalAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (
        ChatTurn("user", "what is it", (IMAGES[0],)),
        ChatTurn("assistant", "a disc [10, 10, 20, 20]"),
        ChatTurn("user", "and <image> this", (IMAGES[1],)),
    )
    prompts: list[str] = []
    process = type(foreign.model.processor).__call__  # type: ignore[union-attr]
    monkeypatch.setattr(
        type(foreign.model.processor),  # type: ignore[union-attr]
        "__call__",
        lambda *arguments, **named: prompts.append(named["text"]) or process(*arguments, **named),
    )
    write(foreign, ChatCall(turns, max_tokens=1))
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompts == [
        f"user : {mark} what is it assistant : a disc [10, 10, 20, 20] user : and {mark} this assistant : "
    ]
    # In the unit of the family, where one image says what it is of.
    one = (turns[0], replace(turns[1], text="a disc [32, 12, 64, 24]"), ChatTurn("user", "is it big"))
    write(foreign, ChatCall(one, max_tokens=1))
    assert "a disc <|box_start|>(500,250),(1000,500)<|box_end|>" in prompts[-1]


def test_errors_of_a_model_of_transformers_name_no_folder(foreign: MultimodalAdapter) -> None:
    with pytest.raises(UserError) as too_long:
        write(foreign, ask("dog " * 2000, IMAGES[0]))
    assert "qwen;" in str(too_long.value)
    assert "/" not in str(too_long.value)


@pytest.mark.parametrize("name", ["mini", "mini-ferret"])
def test_shipped_models_never_write_invented_words(name: str) -> None:
    """About photographs, at whatever temperature, whole or as a stream; a yes without a box is none."""
    pixels = [skimage.data.cat(), skimage.data.coins(), skimage.data.horse() * np.uint8(255)]
    images = []
    for each in pixels:
        buffer = io.BytesIO()
        Image.fromarray(each).convert("RGB").save(buffer, "PNG")
        images.append(ServedImage(buffer.getvalue(), each.shape[1], each.shape[0]))
    texts = ("What is in the image?", "What is this?", "Is there a deer in the image? If so, where is it?")
    calls = [ask(text, image, temperature=heat, seed=3) for image in images for text in texts for heat in (0.0, 2.0)]
    adapter: Any = open_served(name, device="cpu")
    for has_stage in (True, False):
        if not has_stage:
            # The model alone, without what answers about photographs in its place.
            adapter.model.pictures = None
        recorder = write(adapter, *calls)
        for row, reply in recorder.replies.items():
            assert not re.search(rf"(?<![a-z])({'|'.join(INVENTED_WORDS)})(?![a-z])", reply.text, re.IGNORECASE)
            assert "".join(recorder.pieces[row]) == reply.text
            assert not re.match(r"(?i)yes\W.*not found", reply.text)
        assert {reply.source for reply in recorder.replies.values()} == {SOURCE if has_stage else LANGUAGE_MODEL}
        replies = {reply.text for reply in recorder.replies.values()}
        assert any(text.startswith("probably: ") for text in replies) if has_stage else "not found" in replies
