"""Questions about regions of scenes: strokes inside masks, true answers, near misses, wordings, small things."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.multimodal.questions import expand
from foveate.records.boxes import PixelBox, intersection_over_union
from foveate.records.collection import Collection
from foveate.records.conversations import Conversations, check_conversation, find_shape_problem
from foveate.records.shapes import Mask, Point, Shape, Stroke, enclosing_box, encode_mask
from foveate_labs.worlds.questions import Question, to_conversation
from foveate_labs.worlds.scenes import draw_scene
from foveate_labs.worlds.scenes.question_collection import build_region_questions
from foveate_labs.worlds.scenes.region_questions import FORMS, KINDS, ask_regions, mark_phrases
from foveate_labs.worlds.scenes.scene import Scene
from foveate_labs.worlds.scenes.strokes import draw_point, draw_stroke, is_inside
from naming import raises_naming

_MASKS = st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=9).map(np.array)


@given(_MASKS, st.integers(0, 2**32 - 1))
def test_strokes_and_points_stay_inside_the_mask(mask: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if not mask.any():
        for draw in (draw_point, draw_stroke):
            with raises_naming(UserError, "mask", "empty"):
                draw(mask, rng)
        return
    stroke = draw_stroke(mask, rng)
    assert 2 <= len(stroke.points) <= 24
    for start, end in zip(stroke.points, stroke.points[1:], strict=False):
        assert is_inside(mask, start, end)
        assert start != end
    for mode in ("uniform", "center"):
        point = draw_point(mask, rng, mode=mode)
        assert mask[int(point.y), int(point.x)]


def test_strokes_cover_more_than_a_point() -> None:
    mask = np.zeros((200, 200), bool)
    mask[20:180, 60:140] = True
    boxes = [enclosing_box(draw_stroke(mask, np.random.default_rng(seed))) for seed in range(50)]
    spans = [max(box.x2 - box.x1, box.y2 - box.y1) for box in boxes if box]
    assert np.median(spans) > 60
    assert draw_stroke(mask, np.random.default_rng(3)) == draw_stroke(mask, np.random.default_rng(3))
    point = draw_point(mask, np.random.default_rng(0), mode="center")
    assert (point.x, point.y) == pytest.approx((100, 100), abs=8)
    with raises_naming(UserError, "max_points", 1):
        draw_stroke(mask, np.random.default_rng(0), max_points=1)


def split_words(prompt: str) -> list[str]:
    return re.findall(r"[\w<>{}]+", prompt.lower())


def test_wordings_are_kept_apart_and_made_of_the_same_words() -> None:
    trained = {word for form in FORMS.values() for prompt in form.training for word in split_words(prompt)}
    for form in FORMS.values():
        assert not set(form.training) & set(form.held_out)
        assert len(form.held_out) >= 2
        assert len(form.training) >= 3 * len(form.held_out)
        assert {word for prompt in form.held_out for word in split_words(prompt)} <= trained
    # A name stands at the beginning, in the middle and at the end.
    places = {prompt.index("{x}") / len(prompt) for prompt in FORMS["ground"].training}
    assert min(places) == 0
    assert max(places) > 0.7
    assert len({round(place, 1) for place in places}) >= 5
    assert expand("(find|show( me)) it(!|.)") == ("Find it!", "Find it.", "Show me it!", "Show me it.")


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, str, Question]]:
    questions = []
    for split in ("train", "test"):
        for index in range(24):
            scene = draw_scene(seed=5, split=split, index=index, size=96)
            for turn in range(4):
                rng = generator("regions", index, turn)
                questions += [(scene, split, question) for question in ask_regions(scene, rng, split=split)]
    return questions


def _find(scene: Scene, shape: Shape) -> set[str]:
    """Return the names of the things that a shape of a question lies on."""
    names = set()
    for placed in scene.objects:
        if placed.kind != "thing" or placed.box is None:
            continue
        if isinstance(shape, Point):
            hit = bool(placed.mask_HW[int(shape.y), int(shape.x)])
        elif isinstance(shape, Stroke):
            hit = all(placed.mask_HW[int(point.y), int(point.x)] for point in shape.points)
        elif isinstance(shape, Mask):
            hit = tuple(encode_mask(placed.mask_HW)["counts"]) == shape.counts
        else:
            box = placed.box.to_pixels(*scene.image.size)
            corners = ([[b.x1, b.y1, b.x2, b.y2]] for b in (box, shape))
            hit = intersection_over_union(*corners)[0] > 0.8
        if hit:
            names.add(placed.phrase)
    return names


def test_answers_are_true(asked: list[tuple[Scene, str, Question]]) -> None:
    assert {question.kind for _, _, question in asked} == set(KINDS)
    assert {question.form for _, _, question in asked} == set(FORMS)
    for scene, _, question in asked:
        check_conversation(to_conversation(question, id="q", images=("a",)), {"a": scene.image.size})
        width, height = scene.image.size
        assert all(find_shape_problem(shape, width=width, height=height) is None for shape in question.regions)
        if question.form in ("refer", "refer: which"):
            assert question.short in _find(scene, question.regions[0])
        elif question.form == "refer: first or second":
            position = ("first", "second").index(question.short)
            assert any(name in question.prompt for name in _find(scene, question.regions[position]))
        elif question.form == "ground: yes or no":
            assert question.answer.startswith("Yes" if question.short == "yes" else "No, but there")
            assert any(name in question.answer for name in _find(scene, question.regions[0]))
            assert (question.short == "yes") == any(
                re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question.prompt)
                for name in _find(scene, question.regions[0])
            )
        elif question.form == "ground all":
            assert question.answer.replace(" <region>", "").lower() in question.prompt.lower()
        elif question.form == "detect":
            tops = [(box.y1, box.x1) for box in question.regions if isinstance(box, PixelBox)]
            assert tops == sorted(tops)
            assert len(tops) == question.answer.count("<region>")


def test_two_answers_are_balanced_and_wordings_held_out(asked: list[tuple[Scene, str, Question]]) -> None:
    for form in ("refer: yes or no", "ground: yes or no", "relation: yes or no", "refer: first or second"):
        answers = Counter(question.short for _, _, question in asked if question.form == form)
        assert len(answers) == 2
        assert min(answers.values()) / answers.total() > 0.3, (form, answers)
    for _, split, question in asked:
        if question.form == "refer":
            wordings = FORMS["refer"].held_out if split == "test" else FORMS["refer"].training
            assert any(question.prompt.startswith(prompt) for prompt in wordings)


def test_questions_point_in_every_way(asked: list[tuple[Scene, str, Question]]) -> None:
    kinds = Counter(type(question.regions[0]).__name__ for _, _, question in asked if question.kind == "refer")
    assert min(kinds[name] for name in ("PixelBox", "Point", "Stroke", "Mask")) > 0.1 * kinds.total()
    answered = [question for _, _, question in asked if question.kind in ("ground", "ground all", "detect")]
    assert all(isinstance(shape, PixelBox) for question in answered for shape in question.regions)


def test_longer_names_are_marked_first() -> None:
    text, phrases = mark_phrases("A cat toy above a cat and the catalog", ("a cat", "a cat toy"))
    assert text == "A cat toy <region> above a cat <region> and the catalog"
    assert phrases == ["a cat toy", "a cat"]


def test_unknown_splits_and_kinds_are_refused(asked: list[tuple[Scene, str, Question]]) -> None:
    scene = asked[0][0]
    with raises_naming(UserError, "split", "exam"):
        ask_regions(scene, generator("x"), split="exam")
    with raises_naming(UserError, "kind", "refers", "refer"):
        ask_regions(scene, generator("x"), split="test", kinds=["refers"])


def test_small_things() -> None:
    scenes = [draw_scene(seed=2, split="train", index=index, size=448, small=True) for index in range(4)]
    sides = np.array([max(p.box.width, p.box.height) for s in scenes for p in s.regions if p.box])
    assert 0.5 < np.mean(sides <= 0.075) < 1
    assert sides.min() * 448 >= 6
    plain = draw_scene(seed=2, split="train", index=0, size=448)
    assert plain.image.tobytes() != scenes[0].image.tobytes()
    with raises_naming(UserError, "size", 224, 448):
        draw_scene(seed=2, split="train", index=0, size=224, small=True)


def test_a_collection_of_region_questions(tmp_path: Path) -> None:
    build_region_questions(tmp_path / "c", train=2, test=2, seed=1)
    with Collection.open(tmp_path / "c") as collection:
        conversations = list(Conversations(collection, split="train"))
        keys = set(collection.keys)
    assert {key.split("-train")[0].split("-test")[0] for key in keys} == {"regions", "small-regions"}
    assert {conversation.group for conversation in conversations} == {"refer-ground"}
    assert {conversation.id.split("/")[0] for conversation in conversations} <= set(KINDS)
    rows = {path: path.read_bytes() for path in (tmp_path / "c" / "annotations").rglob("*.parquet")}
    build_region_questions(tmp_path / "c", train=2, test=2, seed=1)
    assert rows == {path: path.read_bytes() for path in (tmp_path / "c" / "annotations").rglob("*.parquet")}
