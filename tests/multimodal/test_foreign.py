"""Models of transformers: their own greedy answers, boxes in the unit of each family, unusable folders."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.language.generate import GenerationSettings
from foveate.multimodal.answers import Answer
from foveate.multimodal.choose import to_probabilities
from foveate.multimodal.foreign import BATCHED, ForeignMllm, open_foreign
from foveate.multimodal.foreign_boxes import UNITS, read_boxes
from foveate.multimodal.foreign_turns import score_texts
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import Dialog
from foveate.multimodal.settings import OpeningOptions
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Turn
from foveate.records.importers.coordinates import CoordinateFrame
from foveate.vision.registry import seeded
from multimodal.foreign_models import BUILDERS, MARKS, save
from naming import raises_naming

QUESTION = "what is in the image"
# PaliGemma and Kosmos-2 answer single questions about images.
TALKING = sorted(BUILDERS.keys() - {"kosmos-2", "paligemma"})
# Gemma's windows forget what lies before them, so it reads each question anew.
KEEPING = sorted(set(TALKING) - {"gemma3"})


def draw(width: int, height: int, *, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    return {family: save(family, root / family) for family in BUILDERS}


def open_varied(folder: Path) -> ForeignMllm:
    """Open a model whose words differ from question to question: a head without what all its states have in common.

    Random models that share their embeddings with the head repeat the last word whatever is asked.
    """
    model, states = open_foreign(str(folder)), list[torch.Tensor]()
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, inputs, __: states.append(inputs[0][:, -1]))
    for seed, text in enumerate([QUESTION, "red", "is the disc big", "no"]):
        model.ask(draw(50, 40, seed=seed), text, max_tokens=4)
    hook.remove()
    common_D = torch.nn.functional.normalize(torch.cat(states).mean(dim=0), dim=0)
    with seeded(1):
        weight_VD = torch.randn(head.weight.shape)
    head.weight = torch.nn.Parameter(weight_VD - (weight_VD @ common_D)[:, None] * common_D)
    return model


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("count", [1, 2])
def test_answers_are_those_of_the_class_itself(family: str, count: int, folders: dict[str, Path]) -> None:
    ours = open_mllm(folders[family], device="cpu")
    assert isinstance(ours, ForeignMllm)
    images = [draw(50, 40), draw(30, 60, seed=1)][:count]
    if (family, count) == ("kosmos-2", 2):
        with raises_naming(UserError, folders[family], "image"):
            ours.ask(images, QUESTION, max_tokens=6)
        return
    answer = ours.ask(images, QUESTION, max_tokens=6)
    marks = " ".join([MARKS.get(family, "<image>")] * count)
    prompt = f"user : {marks} {QUESTION} assistant : "
    if family == "paligemma":
        prompt = "<image>" * count + QUESTION
    if family == "kosmos-2":
        prompt = f"<grounding> Question: {QUESTION} Answer:"
    inputs = ours.processor(images=images, text=prompt, return_tensors="pt")
    with torch.no_grad():
        ids = ours.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    written = ours.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    # Random answers of Kosmos-2 are full of places, which are read as boxes.
    assert answer.text == (read_boxes(written, CoordinateFrame("0-1", 50, 40))[0] if family == "kosmos-2" else written)
    assert answer.tokens == len(ids)
    assert answer.finished == (int(ids[-1]) == 1)
    assert "".join(ours.stream(images, QUESTION, max_tokens=6)) == answer.text
    placed = "<image>\n" * count + QUESTION
    assert ours.ask_all([(images, placed), (images, QUESTION, ())], max_tokens=6) == [answer, answer]


class Observer:
    """Notes how often a row is seen, and its answer; stops rows after a number of tokens."""

    def __init__(self, stops: dict[int, int]) -> None:
        self.stops, self.steps, self.answers = stops, dict[int, int](), dict[int, Answer]()

    def step(self, number: int, read: Any) -> bool:
        assert number not in self.answers
        self.steps[number] = self.steps.get(number, 0) + 1
        assert read().tokens == self.steps[number]
        return self.steps[number] != self.stops.get(number)

    def end(self, number: int, answer: Answer) -> None:
        self.answers[number] = answer


@pytest.mark.parametrize("family", TALKING)
def test_a_batch_has_the_answers_of_its_rows(family: str, folders: dict[str, Path]) -> None:
    ours = open_foreign(str(folders[family]))
    images = [draw(50, 40), draw(30, 60, seed=1), draw(48, 48, seed=2)]
    dialogs = [
        Dialog(images[:1], [Turn("user", f"<image>\n{QUESTION}")]),
        Dialog(images[1:], [Turn("user", "<image> red <image> disc")]),
        Dialog([], [Turn("user", "red disc")]),
        Dialog(images[1:2], [Turn("user", "<image> red"), Turn("assistant", "yes"), Turn("user", f"{QUESTION} two")]),
        Dialog([], [Turn("user", "what is the red disc in the image")]),
    ]
    settings = [GenerationSettings(max_new_tokens=5 + row, temperature=row % 2, seed=row) for row in range(5)]
    observer = Observer({3: 2})
    answers = ours.answer_dialogs(dialogs, generation=settings, observer=observer)
    assert observer.answers == dict(enumerate(answers))
    assert (observer.steps[3], answers[3].tokens, answers[3].finished) == (2, 2, False)
    for row, (dialog, setting) in enumerate(zip(dialogs, settings, strict=True)):
        (alone,) = ours.answer_dialogs([dialog], generation=[setting], observer=Observer({0: 2} if row == 3 else {}))
        assert alone == answers[row]
    assert answers[0] == replace(ours.ask(images[0], QUESTION, max_tokens=5), unboxed=())


@pytest.mark.parametrize("family", KEEPING)
def test_options_are_compared_behind_images_that_are_encoded_once(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = open_foreign(str(folders[family]))
    images, options = [draw(50, 40), draw(30, 60, seed=1)], ["red", "disc", "blue disc"]
    alone = score_texts(ours, images, QUESTION, options)
    encode, calls = ours.model.model.get_image_features, []

    @functools.wraps(encode)  # generate reads its signature
    def count(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return encode(*args, **named)

    monkeypatch.setattr(ours.model.model, "get_image_features", count)
    assert ours.choose(images, QUESTION, options) == to_probabilities(alone, per_token=False)
    assert len(calls) == 1
    # Nothing is reused for other images, nor outside of a comparison.
    other = [draw(50, 40, seed=2), images[1]]
    assert ours.choose(other, QUESTION, options) != ours.choose(images, QUESTION, options)
    ours.ask(images, QUESTION, max_tokens=1)
    assert len(calls) == 4


@pytest.mark.parametrize("family", BUILDERS)
def test_answers_depend_on_question_and_image(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, tests that compare answers would also pass with another question's, or another image's."""
    model, ids = open_foreign(str(folders[family])), list[tuple[int, ...]]()
    read = model._read
    monkeypatch.setattr(
        model, "_read", lambda ids_T, *rest, **named: ids.append(tuple(ids_T.tolist())) or read(ids_T, *rest, **named)
    )

    def ask(image: Image.Image, question: str) -> tuple[int, ...]:
        model.ask(image, question, max_tokens=5)
        return ids[-1]

    questions = [QUESTION, "where is the red disc", "no", "is the disc big"]
    assert len({ask(draw(50, 40), question) for question in questions}) > 1
    assert len({ask(draw(50, 40, seed=seed), QUESTION) for seed in range(4)}) > 1


# 50 x 40 pixels become 48 x 40 in patches of 4 pixels, two by two.
WRITTEN = {
    "qwen2_vl": ("the disc (100,250),(500,750)", PixelBox(5.0, 10.0, 25.0, 30.0)),
    "qwen2_5_vl": ('[{"bbox_2d": [12, 10, 24, 30], "label": "disc"}]', PixelBox(12.5, 10.0, 25.0, 30.0)),
    "qwen3_vl": ('[{"bbox_2d": [100, 250, 500, 750]}]', PixelBox(5.0, 10.0, 25.0, 30.0)),
    # Its processor cuts the 40 x 40 pixels in the middle out.
    "llava": ("the disc [0.0, 0.25, 0.5, 0.75]", PixelBox(5.0, 10.0, 25.0, 30.0)),
    "smolvlm": ("the disc [0.1, 0.25, 0.5, 0.75]", None),
}


@pytest.mark.parametrize("family", WRITTEN)
def test_boxes_are_in_pixels_of_the_image(family: str, folders: dict[str, Path], monkeypatch: Any) -> None:
    model = open_foreign(str(folders[family]))
    written, expected = WRITTEN[family]
    monkeypatch.setattr(type(model.processor.tokenizer), "decode", lambda *_, **__: written)
    answer = model.ask(draw(50, 40), QUESTION, max_tokens=2)
    if expected is None:
        assert (answer.text, answer.boxes) == (written, ())
        with_unit = open_foreign(str(folders[family]), unit="0-1").ask(draw(50, 40), QUESTION, max_tokens=2)
        assert with_unit.boxes == (PixelBox(5.0, 10.0, 25.0, 30.0),)
        return
    assert answer.boxes == (pytest.approx(expected),) or answer.boxes == (expected,)
    assert answer.images == (0,)
    corners = ", ".join(str(round(edge)) for edge in (expected.x1, expected.y1, expected.x2, expected.y2))
    assert f"[{corners}]" in answer.text
    # With two images nobody knows which one is meant.
    assert model.ask([draw(50, 40), draw(40, 50)], QUESTION, max_tokens=2).boxes == ()
    # A conversation goes on with what the model wrote.
    chat = model.chat(draw(50, 40))
    chat.ask(QUESTION, max_tokens=2)
    assert chat.turns == [("user", QUESTION), ("assistant", written)]


def test_a_family_that_is_not_known_needs_a_unit(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(UNITS, "idefics3")
    image = draw(50, 40)
    model = open_mllm(folders["idefics3"], device="cpu")
    assert model.ask(image, QUESTION, max_tokens=2).text is not None
    for ask in (
        lambda: model.locate(image, "disc"),
        lambda: model.ask_all([(image, QUESTION)], ground=True),
        lambda: model.ask(image, "what is <1>", regions=[PixelBox(0, 0, 9, 9)]),
    ):
        with raises_naming(UserError, "idefics3", "--unit-of-boxes", "0-1000-yx"):
            ask()
    stated = open_mllm(folders["idefics3"], device="cpu", unit_of_boxes="0-1000-yx")
    monkeypatch.setattr(type(stated.processor.tokenizer), "decode", lambda *_, **__: '{"box_2d": [250, 100, 750, 500]}')
    assert stated.locate(image, "disc").boxes == (PixelBox(5.0, 10.0, 25.0, 30.0),)
    with raises_naming(UserError, "unit of boxes", "mini"):
        open_mllm("mini", unit_of_boxes="0-1")


def test_paligemma_is_asked_for_a_place_as_it_was_taught(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["paligemma"]))
    image = draw(50, 40)
    answer = model.locate(image, "the red disc.")
    assert answer.read_as == "detect red disc"
    assert answer.tokens == model.ask(image, "detect red disc").tokens


def test_paligemma_answers_single_questions(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["paligemma"]))
    image = draw(50, 40)
    chat = model.chat(image)
    assert chat.ask(QUESTION, max_tokens=4) == model.ask(image, QUESTION, max_tokens=4)
    with raises_naming(UserError, "single questions"):
        chat.ask("red", max_tokens=4)
    assert len(chat.turns) == 2


def test_numbers_that_are_no_boxes_stay() -> None:
    frame = CoordinateFrame("0-1000", 200, 100)
    text, boxes = read_boxes("[500, 1000, 0, 0] [1, 2, 3] [0, 0, 0, 9] (900,900),(1020,1000) [0, 0, 4000, 9]", frame)
    assert boxes == (PixelBox(0, 0, 100, 100), PixelBox(180, 90, 200, 100))
    assert text == "[0, 0, 100, 100] [1, 2, 3] [0, 0, 0, 9] [180, 90, 200, 100] [0, 0, 4000, 9]"


def test_a_conversation_holds_its_turns(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["qwen2_vl"]))
    chat = model.chat(draw(40, 40))
    first = chat.ask("where is the red disc", max_tokens=4)
    assert first == model.ask(draw(40, 40), "where is the red disc", max_tokens=4)
    chat.ask("is the disc big", max_tokens=4)
    assert [role for role, _ in chat.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("family", TALKING)
@pytest.mark.parametrize("count", [1, 2])
def test_further_questions_read_nothing_twice(
    family: str, count: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token for token what a conversation answers that reads everything anew, without processor and tower."""
    model = open_varied(folders[family])
    images = [draw(50, 40), draw(30, 60, seed=1)][:count]
    questions = [QUESTION, "where is the red disc", "is the disc big", "no"]
    # The tokens themselves: those of a tiny model are often marks that its text leaves out.
    ids: list[list[int]] = []
    read = model._read
    monkeypatch.setattr(
        model, "_read", lambda ids_T, *rest, **named: ids.append(ids_T.tolist()) or read(ids_T, *rest, **named)
    )
    turns: list[tuple[str, str]] = []
    expected = []
    for question in questions:
        turns.append(("user", question))
        answer, written = model.answer_turns(images, turns, GenerationSettings(max_new_tokens=5))
        expected.append(replace(answer, unboxed=()))
        turns.append(("assistant", written))
    anew = ids.copy()
    assert len({tuple(each) for each in anew}) > 1
    ids.clear()
    chat = model.chat(images)
    assert chat.ask(questions[0], max_tokens=5) == expected[0]
    if family in KEEPING:
        monkeypatch.setattr(model, "_batch_inputs", lambda *_: pytest.fail("the processor runs again"))
    # Another question in between changes what Qwen keeps of positions in the model itself.
    other = open_foreign(str(folders[family]))
    other.model = model.model
    for question, answer in zip(questions[1:], expected[1:], strict=True):
        other.ask(draw(64, 30, seed=3), "what is in the image", max_tokens=3)
        assert chat.ask(question, max_tokens=5) == answer
    assert chat.turns == turns
    assert ids == anew


@pytest.mark.parametrize("family", KEEPING)
def test_questions_about_one_image_share_it(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_foreign(str(folders[family]))
    image, other = draw(50, 40), draw(30, 60, seed=1)
    questions: list[tuple[Any, ...]] = [
        (image, QUESTION), (other, QUESTION), (image, "where is the red disc"), ([], "red"), (image, "no"),
        (draw(48, 48, seed=2), "is the disc big"), (image, "what is the big blue disc in the image a user"),
    ]  # fmt: skip
    expected = [model.ask(*question, max_tokens=5) for question in questions]
    read, batches = model._batch_inputs, list[int]()
    monkeypatch.setattr(model, "_batch_inputs", lambda rows: batches.append(len(rows)) or read(rows))
    assert model.ask_all(questions, max_tokens=5) == expected
    # One reading for the four questions about one image, one batch of two other images, one text.
    assert batches == ([1, 2, 1] if family in BATCHED else [1, 1, 1, 1])


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("count", [1, 2])
def test_questions_together_have_the_tokens_that_they_have_alone(
    family: str, count: int, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten questions about the same images, more than one batch, and ten about images of their own."""
    if (family, count) == ("kosmos-2", 2):
        pytest.skip("its processor takes one image for a question")
    model = open_varied(folders[family])
    read = model._read

    # The tokens themselves as text: those of a tiny model are often marks that its text leaves out.
    def write_tokens(ids_T: torch.Tensor, *rest: Any, **named: Any) -> tuple[Answer, str]:
        answer, written = read(ids_T, *rest, **named)
        return replace(answer, text=" ".join(map(str, ids_T.tolist()))), written

    monkeypatch.setattr(model, "_read", write_tokens)
    texts = [
        QUESTION,
        "where is the red disc",
        "no",
        "is the disc big",
        "what is the big blue disc in the image a user",
    ]
    texts += [f"{text} two" for text in texts]
    shared = [draw(50, 40), draw(30, 60, seed=1)][:count]
    questions: list[tuple[Any, ...]] = [(shared, text) for text in texts]
    for seed, text in enumerate(texts, start=2):
        questions.append(([draw(30 + 4 * seed, 60 - 3 * seed, seed=seed), draw(40, 40, seed=seed + 50)][:count], text))
    alone = [model.ask(*question, max_tokens=8) for question in questions]
    assert model.ask_all(questions, max_tokens=8) == alone
    assert all(len(answer.text.split()) == answer.tokens for answer in alone)
    assert len({answer.text for answer in alone}) > 4


def test_a_reading_that_cannot_be_continued_is_done_anew(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["qwen2_vl"]))
    chat = model.chat(draw(50, 40))
    first = chat.ask(QUESTION, max_tokens=4)
    prefix = chat._prefix
    # Given away while an answer is generated: after an interruption nothing half-read is left.
    prompt = model.write_prompt([("user", QUESTION), ("assistant", "red"), ("user", "no")], 1)
    assert prefix.continue_inputs(model.model, model.processor, prompt) is not None
    assert prefix.continue_inputs(model.model, model.processor, prompt) is None
    chat.turns.clear()
    assert chat.ask(QUESTION, max_tokens=4) == first
    assert prefix.continue_inputs(model.model, model.processor, "user : another beginning") is None
    # A cache that has lost what lies before, as windows do.
    chat.turns.clear()
    chat.ask(QUESTION, max_tokens=4)
    prefix._cache.crop = lambda _: (_ for _ in ()).throw(ValueError("a window"))
    chat.turns.clear()
    assert chat.ask(QUESTION, max_tokens=4) == first


def test_answers_come_in_pieces_and_can_be_stopped(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["idefics3"]))
    image = draw(50, 40, seed=2)
    whole = model.ask(image, QUESTION, max_tokens=12)
    assert whole.tokens == 12
    steps: list[int] = []
    read = model._read
    model._read = lambda ids_T, *rest, **named: steps.append(len(ids_T)) or read(ids_T, *rest, **named)  # type: ignore[method-assign]
    pieces = list(model.stream(image, QUESTION, max_tokens=12))
    assert len(pieces) > 3
    assert "".join(pieces) == whole.text
    steps.clear()
    stream = model.stream(image, QUESTION, max_tokens=12)
    next(stream)
    stream.close()
    # It ends soon after: only what was under way is still generated.
    assert max(steps) < 12
    with raises_naming(UserError, 400, "context"):
        list(model.stream(image, "disc " * 390))


@pytest.mark.parametrize("error", [ArithmeticError, IndexError, TypeError, ValueError, KeyError])
def test_an_error_of_an_observer_is_not_told_as_one_of_the_model(
    error: type[Exception], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are raised within `generate`, which calls the observer."""
    model, dialog = open_foreign(str(folders["llava"])), Dialog([draw(50, 40)], [Turn("user", QUESTION)])
    raised = error("of ours")

    class Faulty(Observer):
        def __init__(self, name: str) -> None:
            super().__init__({})
            self.name = name

        def step(self, number: int, read: Any) -> bool:
            if self.name == "step":
                raise raised
            return super().step(number, read)

        def end(self, number: int, answer: Answer) -> None:
            raise raised

    for name in ("step", "end"):
        with pytest.raises(error, match="of ours") as caught:
            model.answer_dialogs([dialog], generation=[GenerationSettings(max_new_tokens=3)], observer=Faulty(name))
        assert caught.value is raised
    sampled = GenerationSettings(max_new_tokens=3, temperature=1.0)

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr("foveate.multimodal.foreign_turns.draw_token", fail)
        with pytest.raises(error) as caught:
            model.answer_dialogs([dialog], generation=[sampled])
        assert caught.value is raised
    with monkeypatch.context() as patched:
        patched.setattr("foveate.multimodal.foreign_turns.certain_text", fail)
        with pytest.raises(error) as caught:
            list(model.stream(dialog.images, QUESTION, max_tokens=3))
        assert caught.value is raised
    # Such an error of a layer of the model is told as a sentence about its files. A new one: frames stay with an error.
    raised = error("of ours")
    monkeypatch.setattr(type(model.model.model.language_model), "forward", fail)
    expected = KeyError if error is KeyError else UserError
    for ask in (model.ask, lambda *question: model.choose(*question, ["red", "disc"])):
        with pytest.raises(expected, match="of ours") as caught:
            ask(dialog.images, QUESTION)
        assert error is KeyError or "do not fit one another" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "text", "box"),
    [
        ("<ref>the disc</ref><box>[[100, 250, 500, 750]]</box>", "the disc[[5, 10, 25, 30]]", (5, 10, 25, 30)),
        ("the disc <|begin_of_box|>[[100,250,500,750]]<|end_of_box|>", "the disc [[5, 10, 25, 30]]", (5, 10, 25, 30)),
        ("<loc0256><loc0102><loc0768><loc0512> disc", "[5, 10, 25, 30] disc", (4.98, 10, 25, 30)),
    ],
)
def test_other_ways_to_write_a_box(written: str, text: str, box: tuple[float, ...]) -> None:
    found, boxes = read_boxes(written, CoordinateFrame("0-1000", 50, 40))
    assert found == text
    (one,) = boxes
    assert (one.x1, one.y1, one.x2, one.y2) == pytest.approx(box, abs=0.01)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("smolvlm", "[4, 10, 20, 30]"),
        ("llava", "[0.10, 0.12, 0.50, 0.62]"),
        ("qwen2_vl", "<|box_start|>(100,200),(500,600)<|box_end|>"),
        ("qwen3_vl", "[100, 200, 500, 600]"),
        ("internvl", "<box>[[100, 200, 500, 600]]</box>"),
        ("paligemma", "<loc0204><loc0102><loc0614><loc0512>"),
    ],
)
def test_regions_are_written_as_coordinates_and_it_says_so(
    family: str, text: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_foreign(str(folders[family]))
    asked: list[str] = []
    monkeypatch.setattr(
        model, "answer_turns", lambda _, turns, __, **___: asked.append(turns[-1][1]) or (Answer(""), "")
    )
    with pytest.warns(UserWarning, match="coordinates"):
        model.ask(draw(40, 50), "what is <1>, and again <1>", regions=[PixelBox(4, 10, 20, 30)])
    assert asked == [f"what is {text}, and again {text}"]


def test_options_are_compared_by_the_likelihood_of_their_tokens(folders: dict[str, Path]) -> None:
    model = open_foreign(str(folders["llava"]))
    image = draw(40, 40)
    options = ["red", "a red disc", "disc"]
    inputs = model._inputs([image], [("user", QUESTION)])
    length = inputs["input_ids"].shape[1]
    expected = []
    for option in options:
        whole = model._inputs([image], [("user", QUESTION), ("assistant", option)])
        assert whole["input_ids"][0, :length].tolist() == inputs["input_ids"][0].tolist()
        ids, total = whole["input_ids"][0], 0.0
        for end in range(length, len(ids)):
            part = {**whole, "input_ids": ids[None, :end], "attention_mask": whole["attention_mask"][:, :end]}
            total += float(model.model(**part).logits[0, -1].log_softmax(dim=-1)[ids[end]])
        expected.append(total)
    shares = model.choose(image, QUESTION, options)
    assert shares == pytest.approx(torch.tensor(expected, dtype=torch.float64).softmax(dim=0).tolist(), abs=1e-4)
    assert model.choose_all([(image, QUESTION)], [options]) == [shares]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "smolvlm"])
def test_bfloat16_answers_are_those_of_the_class_in_bfloat16(family: str, folders: dict[str, Path]) -> None:
    ours = open_mllm(folders[family], device="cpu", opening=OpeningOptions(dtype="bfloat16"))
    assert isinstance(ours, ForeignMllm)
    assert ours.model.dtype == torch.bfloat16
    image = draw(50, 40)
    inputs = ours._inputs([image], [("user", QUESTION)])
    theirs = type(ours.model).from_pretrained(folders[family], dtype=torch.bfloat16).eval()
    with torch.no_grad():
        ids = theirs.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert ours.ask(image, QUESTION, max_tokens=6).text == ours.processor.tokenizer.decode(
        ids, skip_special_tokens=True
    )
    assert sum(ours.choose(image, QUESTION, ["red", "disc"])) == pytest.approx(1)
    # Whole on the one device there is.
    mapped = open_mllm(folders[family], opening=OpeningOptions(dtype="float32", device_map="auto"))
    assert mapped.ask(image, QUESTION, max_tokens=6) == open_mllm(folders[family]).ask(image, QUESTION, max_tokens=6)


def test_openings_that_this_machine_or_model_does_not_take_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with raises_naming(UserError, "4bit", "GPU", "cpu"):
        open_foreign(str(folders["llava"]), opening=OpeningOptions(quantize="4bit"))
    with raises_naming(UserError, "mini", "bfloat16"):
        open_mllm("mini", opening=OpeningOptions(dtype="bfloat16"))
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda _: None)
        with raises_naming(UserError, "device map", "accelerate", "foveate[gpu]"):
            open_foreign(str(folders["llava"]), opening=OpeningOptions(device_map="auto"))


def test_unusable_questions_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    model = open_foreign(str(folders["llava"]))
    with raises_naming(UserError, "question", "empty"):
        model.ask(draw(9, 9), "  ")
    with raises_naming(UserError, "region 1", "<1>"):
        model.ask(draw(9, 9), "what is this", regions=[PixelBox(0, 0, 3, 3)])
    with pytest.warns(UserWarning, match="coordinates"), raises_naming(UserError, "region 1", "9 x 9"):
        model.ask(draw(9, 9), "what is <1>", regions=[PixelBox(0, 0, 30, 3)])
    with raises_naming(UserError, 2, "<image>", 1):
        model.ask(draw(9, 9), "<image> or <image>")
    with raises_naming(UserError, 400, "context"):
        model.ask(draw(9, 9), "disc " * 390)
    with raises_naming(UserError, 400, "context"):
        model.choose(draw(9, 9), "disc " * 390, ["red", "disc " * 9])
    # As templates of models that think do: the answer of a conversation has no thought in front.
    template = model.processor.chat_template
    model.processor.chat_template = template + "{% if add_generation_prompt %}thought{% endif %}"
    with raises_naming(UserError, "chat template"):
        model.choose(draw(9, 9), "what is this", ["red", "disc"])
    model.processor.chat_template = template
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with raises_naming(UserError, bad):
        model.ask(bad, QUESTION)


def test_unusable_folders_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    with raises_naming(UserError, "resized-pixels", "llava"):
        open_foreign(str(folders["llava"]), unit="resized-pixels")
    with raises_naming(UserError, "unit", "0-100", "0-1000"):
        open_foreign(str(folders["llava"]), unit="0-100")
    with raises_naming(UserError, tmp_path, "config.json"):
        open_foreign(str(tmp_path))
    for model_type, name in (("moondream1", "Moondream"), ("deepseek_vl_v2", "DeepSeek-VL2")):
        folder = tmp_path / model_type
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        with raises_naming(UserError, folder, name, "code of a repository"):
            open_mllm(folder, device="cpu")
    no_template = shutil.copytree(folders["llava"], tmp_path / "a")
    (no_template / "chat_template.jinja").unlink()
    with raises_naming(UserError, no_template, "chat template"):
        open_foreign(str(no_template))
    other = shutil.copytree(folders["llava"], tmp_path / "b")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with raises_naming(UserError, other):
        open_mllm(other, device="cpu")
    pickle = shutil.copytree(folders["llava"], tmp_path / "c")
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    with raises_naming(UserError, "pytorch_model.bin", "pickle"):
        open_foreign(str(pickle))
