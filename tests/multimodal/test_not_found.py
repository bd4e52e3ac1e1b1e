"""A phrase that the image does not show has no box; others in the same answer or batch keep theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_multimodal_model import loaded
from test_referring import load as load_hybrid

from foveate.multimodal.answer_writer import AnswerWriter, PointedBox
from foveate.multimodal.answers import Answer, write_corners
from foveate.multimodal.ask import Mllm
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.prepare import prepare_questions
from foveate.multimodal.questions import ask_where
from foveate.records.boxes import PixelBox
from foveate_labs.worlds.scenes import draw_scene

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 64, 3), dtype=np.uint8)
LEFT, RIGHT = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]


def write(ids: list[int], scores: list[float], *, ground: bool = False, min_box_score: float = 2.0) -> Answer:
    """Put together an answer of tokens whose boxes have these scores."""
    one = replace(loaded(), min_box_score=min_box_score)
    visual, (pending,) = prepare_questions(one, [(IMAGE, "What is there?")])
    pending.answer = ids
    pending.boxes = [PointedBox(0, LEFT if number else RIGHT, score) for number, score in enumerate(scores)]
    return AnswerWriter(one, visual, [pending]).answer(0, ground=ground)


def test_what_is_below_the_threshold_is_not_found() -> None:
    one = loaded()
    region, encode = one.prompts.region_id, one.tokenizer.encode
    alone = write([region], [1.0])
    assert (alone.text, alone.boxes, alone.rejected) == ("not found", (), (1.0,))
    ids = [*encode(" A red disc at"), region, *encode(" and a blue square at"), region, *encode(".")]
    both = write(ids, [2.0, 3.0])
    assert both.box_scores == (2.0, 3.0)
    assert both.rejected == ()
    first, second = write(ids, [2.0, 1.0]), write(ids, [1.0, 2.0])
    assert first.boxes == both.boxes[:1]
    assert second.boxes == both.boxes[1:]
    assert second.phrases == both.phrases[1:]
    assert second.text == both.text.replace("[32, 25, 64, 50]", "(not found)")
    grounded = write(ids, [1.0, 2.0], ground=True, min_box_score=-9.0)
    assert len(grounded.boxes) == 2
    assert grounded.unboxed == ()


@pytest.mark.parametrize(
    ("parts", "scores", "text"),
    [
        ((" Yes, a red disc is at", "."), [1.0], "not found"),
        ((" Yes. A red disc is at", "."), [1.0], "not found"),
        ((" Yes, it is. A red disc is at", "."), [1.0], "not found"),
        ((" Yes, a red disc is at", ". A blue square is at", "."), [1.0, 3.0], "not found"),
        ((" No, but a red disc is at", "."), [1.0], "No."),
        ((" No, but a red disc is at", ". It is red."), [1.0], "No. It is red."),
    ],
)
def test_no_answer_says_that_something_is_at_a_place_that_is_not_found(
    parts: tuple[str, ...], scores: list[float], text: str
) -> None:
    one = loaded()
    ids = one.tokenizer.encode(parts[0])
    for part in parts[1:]:
        ids += [one.prompts.region_id, *one.tokenizer.encode(part)]
    answer = write(ids, scores)
    assert answer.text.casefold() == text.casefold()
    assert answer.boxes == ()
    assert answer.rejected
    seen = write(ids, [3.0] * len(scores))
    assert len(seen.boxes) == len(scores)
    assert "not found" not in seen.text


def test_an_answer_without_a_box_says_why() -> None:
    box = PixelBox(0, 0, 9, 9)
    assert Answer("[0, 0, 9, 9] (not found)", boxes=(box,), rejected=(1.0,)).reason == ""
    assert Answer("not found and not found", rejected=(1.0, 1.254)).reason == "its best match scores 1.25"
    assert Answer("no").reason == "the model answered 'no' and gave no box"
    assert Answer("").reason == "the model answered nothing and gave no box"
    long = Answer("There is\nno red boat " * 20).reason
    assert long.startswith("the model answered 'There is no red boat ")
    assert long.endswith(" ...' and gave no box")
    assert len(long) < 130


def test_a_name_that_is_not_found_is_listed_without_a_box() -> None:
    one = loaded()
    region, encode = one.prompts.region_id, one.tokenizer.encode
    answer = write([*encode(" A red disc at"), region], [1.0], ground=True)
    assert answer.unboxed == ("A red disc at",)
    # No similarity of the random patches reaches 99.
    named = write([*encode(" A"), *encode(" red disc")], [], ground=True, min_box_score=99.0)
    assert named.boxes == ()
    assert named.unboxed == ("A red disc",)


def test_digits_behind_a_box_that_is_not_found_are_left_out() -> None:
    hybrid = replace(load_hybrid(box_head=True, phrase_maps=True)[0], min_box_score=2.0)
    visual, (pending,) = prepare_questions(hybrid, [(IMAGE, "What is it?")])
    digits = hybrid.tokenizer.encode("[100, 100, 400, 500].")
    pending.answer = [hybrid.prompts.region_id, *digits, hybrid.prompts.region_id, *digits]
    pending.boxes = [PointedBox(0, LEFT, 1.0), PointedBox(0, RIGHT, 3.0)]
    answer = AnswerWriter(hybrid, visual, [pending]).answer(0)
    assert len(answer.boxes) == len(answer.digits) == 1
    assert answer.text.startswith("not found. [")


@pytest.mark.parametrize("cut", range(1, 10))
def test_digits_that_are_not_complete_are_left_out(cut: int) -> None:
    """A stream meets each of these beginnings, and so does an answer that `max_tokens` ends."""
    hybrid, _ = load_hybrid(box_head=True, phrase_maps=True)
    visual, (pending,) = prepare_questions(hybrid, [(IMAGE, "What is it?")])
    digits = hybrid.tokenizer.encode("[100, 100, 400, 500]")
    assert len(digits) > 9
    pending.answer = [hybrid.prompts.region_id, *digits[:cut]]
    pending.boxes = [PointedBox(0, LEFT, 1.0)]
    answer = AnswerWriter(hybrid, visual, [pending]).answer(0, ground=True)
    assert answer.text == write_corners(answer.boxes[0])
    assert answer.unboxed == ()
    assert answer.digits == (None,)


@pytest.fixture(scope="module")
def mini() -> Mllm:
    model = open_mllm("mini")
    assert isinstance(model, Mllm)
    return model


def test_absent_phrases_change_no_answer_about_present_ones(mini: Mllm) -> None:
    """On scenes: most things get their box as without a threshold, and few others get one."""
    assert mini.loaded.min_box_score is not None
    scenes = [draw_scene(seed=7, split="validation", index=index) for index in range(12)]
    present, absent = [], []
    for number, scene in enumerate(scenes):
        others = {region.phrase for region in scenes[number - 1].regions} - {region.phrase for region in scene.regions}
        present.append((scene.image, ask_where(scene.regions[0].phrase)))
        absent.append((scene.image, ask_where(min(others))))
    mixed = mini.ask_all([question for pair in zip(present, absent, strict=True) for question in pair], max_tokens=8)
    without = Mllm(replace(mini.loaded, min_box_score=None)).ask_all(present, max_tokens=8)
    assert mini.ask_all(present, max_tokens=8) == mixed[::2]
    for answer, expected in zip(mixed[::2], without, strict=True):
        assert answer == expected or answer.rejected
    assert sum(bool(answer.boxes) for answer in mixed[::2]) >= 9
    assert sum(bool(answer.boxes) for answer in mixed[1::2]) <= 3
    rejected = next(question for question, answer in zip(absent, mixed[1::2], strict=True) if answer.rejected)
    assert mini.ask(*rejected).text == "not found"
    assert "".join(mini.stream(*rejected)) == mini.chat(rejected[0]).ask(rejected[1]).text == "not found"
