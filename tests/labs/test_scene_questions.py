"""Questions on scenes: true, exact, balanced whatever they say, and worded apart for training and tests."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.multimodal.wordings import load_wordings
from foveate.records.conversations import check_conversation
from foveate.records.text import split_words
from foveate_labs.worlds.builtin import SEEN, mentions_unseen
from foveate_labs.worlds.questions import Question, to_conversation
from foveate_labs.worlds.scenes import draw_scene
from foveate_labs.worlds.scenes.contrasts import excludes, list_shown_words
from foveate_labs.worlds.scenes.counting import MAX_COPIES, draw_counting_scene, load_countable
from foveate_labs.worlds.scenes.grounds import list_ground_names
from foveate_labs.worlds.scenes.language import NUMERALS, is_countable, pluralize
from foveate_labs.worlds.scenes.questions import FORMS, KINDS, ask_scene
from foveate_labs.worlds.scenes.scene import Scene
from foveate_labs.worlds.scenes.shapes import COLORS, SHAPES, load_shapes
from naming import raises_naming

SIZE = 96
Asked = list[tuple[Scene, Question]]


def _draw(split: str, count: int) -> Iterator[tuple[Scene, int]]:
    for index in range(count):
        draw = draw_counting_scene if index % 2 else draw_scene
        yield draw(seed=11, split=split, index=index, size=SIZE), index


@pytest.fixture(scope="module")
def asked() -> dict[str, Asked]:
    return {
        split: [
            (scene, question)
            for scene, index in _draw(split, count)
            # A scene is asked several times, with other coins: drawing is what costs time.
            for question in (q for t in range(3) for q in ask_scene(scene, generator("q", index, t), split=split))
        ]
        for split, count in (("train", 120), ("test", 60))
    }


def test_questions_are_functions_of_scene_and_seed() -> None:
    scene = draw_counting_scene(seed=3, split="test", index=4, size=SIZE)
    first, again = (ask_scene(scene, generator("same"), split="test") for _ in range(2))
    assert first == again
    assert first != ask_scene(scene, generator("other"), split="test")


def test_unknown_splits_and_kinds_are_refused() -> None:
    scene = draw_counting_scene(seed=3, split="test", index=4, size=SIZE)
    with raises_naming(UserError, "split", "exam"):
        ask_scene(scene, generator("x"), split="exam")
    with raises_naming(UserError, "kind", "colour"):
        ask_scene(scene, generator("x"), split="test", kinds=["colour"])
    with raises_naming(UserError, "size", "64"):
        draw_counting_scene(seed=0, split="train", index=0, size=64)


def test_every_form_is_asked(asked: dict[str, Asked]) -> None:
    for questions in asked.values():
        assert {question.form for _, question in questions} == {form for form in FORMS if form.split(":")[0] in KINDS}
        assert {question.kind for _, question in questions} == set(KINDS)


def _state(question: Question) -> str:
    """Return the prompt without the wish for a form of answer."""
    return re.match(r"[^?.]*[?.]", question.prompt.replace("-", " "))[0]  # type: ignore[index]


def test_guessing_an_answer_is_right_half_of_the_time(asked: dict[str, Asked]) -> None:
    answers: dict[str, list[bool]] = defaultdict(list)
    for _, question in asked["train"]:
        if question.choices:
            answers[question.form].append(question.short == question.choices[0])
            if question.choices[0] != "yes":
                answers[f"{question.form}, by the alphabet"].append(question.short == min(question.choices))
    pooled = [answer for form in answers.values() for answer in form]
    assert abs(np.mean(pooled) - 0.5) < 0.02
    for form, of_form in answers.items():
        # Within three standard errors, which for the rarer forms are more than .03.
        assert abs(np.mean(of_form) - 0.5) < max(0.03, 1.5 / np.sqrt(len(of_form))), form


def test_answers_cannot_be_guessed_from_the_wording(asked: dict[str, Asked]) -> None:
    """Naive Bayes over the words of half of the scenes guesses the other half no better than a coin."""
    questions = [(scene, q) for scene, q in asked["train"] if q.choices and q.choices[0] in ("yes", "no")]
    middle = len(questions) // 2
    counts: dict[str, Counter[str]] = {"yes": Counter(), "no": Counter()}
    for _, question in questions[:middle]:
        counts[question.short].update({question.form, *split_words(_state(question))})
    right = []
    for scene, question in questions[middle:]:
        if any(scene is other for other, _ in questions[:middle]):
            continue
        tokens = {question.form, *split_words(_state(question))}
        odds = sum(np.log((counts["yes"][token] + 1) / (counts["no"][token] + 1)) for token in tokens)
        right.append((odds > 0) == (question.short == "yes"))
    assert abs(np.mean(right) - 0.5) < 0.05, (np.mean(right), len(right))


def test_statements_are_true(asked: dict[str, Asked]) -> None:
    for scene, question in (pair for split in asked.values() for pair in split):
        names = {placed.phrase for placed in scene.objects if placed.kind == "thing"}
        if question.kind == "name" and question.choices is None:
            (placed,) = _at(scene, question)
            assert question.short == placed.phrase
        if question.kind == "is there" and question.short == "no":
            assert not [name for name in names if re.search(rf"\b{re.escape(name)}\b", _state(question))]
        if question.form == "count":
            (name,) = (name for name in scene.counts if f" {pluralize(name)}" in question.prompt)
            assert question.short == NUMERALS[scene.counts[name]]
        if question.form == "where":
            (placed,) = _at(scene, question)
            assert f"the {placed.phrase}" in question.prompt.replace("The ", "the ", 1)
        if question.form == "color: region":
            (placed,) = _at(scene, question)
            assert placed.phrase.startswith(f"{question.short} ")
        if question.form == "position: yes or no" and question.short == "yes":
            (placed,) = (p for p in scene.regions if re.search(rf"[Tt]he {p.phrase}( |\?|:)", question.prompt))
            x, y = placed.box.center if placed.box else (0.5, 0.5)
            sides = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
            assert [sides[word] for word in split_words(question.prompt) if word in sides][0], question


def _at(scene: Scene, question: Question):
    (region,) = question.regions
    return [
        placed
        for placed in scene.objects
        if placed.box and np.allclose(placed.box.to_array() * SIZE, (region.x1, region.y1, region.x2, region.y2))
    ]


def test_absent_names_are_on_no_ground_and_call_nothing_in_the_scene() -> None:
    assert excludes("red apple", "green apple")
    assert excludes("wine glass", "cocktail glass")
    assert not excludes("heart", "red heart")
    assert not excludes("automobile", "car"), "synonyms"
    assert not excludes("woman", "woman farmer")
    for index in range(20):
        scene = draw_scene(seed=2, split="train", index=index, size=SIZE)
        for question in ask_scene(scene, generator("g", index), split="train", kinds=["is there"]):
            if question.short == "no":
                words = set(split_words(_state(question), style="letters"))
                assert not words & list_shown_words(scene)


def test_held_out_prompts_have_new_wordings_of_known_words(asked: dict[str, Asked]) -> None:
    prompts = {split: Counter(q.form for _, q in pairs) for split, pairs in asked.items()}
    assert set(prompts["train"]) == set(prompts["test"])
    known = {word for form in FORMS.values() for text in form.training for word in split_words(_blank(text))}
    for name, form in FORMS.items():
        assert len(form.training) >= 2
        assert len(form.held_out) >= 2, name
        assert set(form.training).isdisjoint(form.held_out)
        assert {word for text in form.held_out for word in split_words(_blank(text))} <= known, name
    texts = {split: {q.prompt for _, q in pairs if q.form == "name"} for split, pairs in asked.items()}
    assert texts["train"].isdisjoint(texts["test"])


def _blank(template: str) -> str:
    return re.sub(r"\{\w+\}", " ", template)


def test_training_questions_name_nothing_unseen(asked: dict[str, Asked]) -> None:
    unseen = {name for name, cutout in load_shapes().items() if cutout.slice != SEEN}
    assert 8 < len(unseen) < 25
    unseen |= {pluralize(name) for name in unseen}
    for _, question in asked["train"]:
        text = f"{question.prompt} {question.answer}"
        assert not [name for name in unseen if name in text]
        # Name by name: two of them together may have the words of a third by accident.
        names = question.choices if question.form in ("name: which", "count: more") else [_state(question)]
        if question.form not in ("position: further", "count: more, yes or no") and "relation" not in question.form:
            assert not [name for name in names or () if mentions_unseen(name)], question.prompt
    assert any(mentions_unseen(_state(question)) for _, question in asked["test"])


def test_counting_scenes_show_each_number_as_often() -> None:
    numbers = Counter()
    for index in range(100):
        scene = draw_counting_scene(seed=8, split="train", index=index, size=SIZE)
        assert scene.kind == "counting"
        assert scene.ground in list_ground_names(held_out=False)
        assert 1 <= len(scene.counts) <= 2
        things = [placed for placed in scene.objects if placed.kind == "thing"]
        assert Counter(placed.phrase for placed in things) == scene.counts
        assert min(placed.visible for placed in things) > 0.97, "no copy covers another"
        assert {placed.slice for placed in things} == {SEEN}
        numbers.update(scene.counts.values())
    assert set(numbers) == set(range(1, MAX_COPIES + 1))
    assert min(numbers.values()) > 0.6 * sum(numbers.values()) / MAX_COPIES


def test_counting_scenes_are_functions_of_their_numbers() -> None:
    first, again = (draw_counting_scene(seed=3, split="test", index=17, size=SIZE) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    other = draw_counting_scene(seed=4, split="test", index=17, size=SIZE)
    assert first.image.tobytes() != other.image.tobytes()


def test_shapes_have_their_color_and_outline() -> None:
    assert len(load_shapes()) == len(COLORS) * len(SHAPES)
    filled = {}
    for name, cutout in load_shapes().items():
        color, shape = name.split()
        rgba = np.asarray(cutout.image())
        inside = rgba[rgba[..., 3] > 250][:, :3]
        assert np.abs(inside.mean(0) - COLORS[color]).max() < 1
        filled[shape] = round(cutout.covered, 2)
    assert len(set(filled.values())) > 6
    assert filled["ring"] < filled["circle"] < filled["square"]


@pytest.mark.parametrize(
    ("phrase", "plural"),
    [
        ("slice of pizza", "slices of pizza"),
        ("red berry", "red berries"),
        ("monkey", "monkeys"),
        ("snowman", "snowmen"),
        ("maple leaf", "maple leaves"),
        ("red cross", "red crosses"),
    ],
)
def test_plurals(phrase: str, plural: str) -> None:
    assert is_countable(phrase)
    assert pluralize(phrase) == plural


def test_names_that_are_not_one_thing_are_not_counted() -> None:
    assert not [name for name in ("carrots", "bread", "nut and bolt", "people hugging") if is_countable(name)]
    names = {concept[0].name for family in load_countable(SEEN).families for concept in family}
    assert not [name for name in names if "woman" in split_words(name)]
    assert len(names) > 700


def test_conversations_hold_as_many_regions_as_their_texts(asked: dict[str, Asked]) -> None:
    for _, question in asked["train"][:400]:
        conversation = to_conversation(question, id="c", images=("scene",))
        assert check_conversation(conversation, {"scene": (SIZE, SIZE)}) == conversation
        assert [turn.role for turn in conversation.turns] == ["user", "assistant"]
        assert sum(turn.text.count("<image>") for turn in conversation.turns) == 1
        for turn in conversation.turns:
            assert turn.text.count("<region>") == len(turn.regions)
        assert sum(len(turn.regions) for turn in conversation.turns) == len(question.regions)


def _to_patterns(half: str) -> dict[str, list[re.Pattern[str]]]:
    return {
        form: [re.compile(".+".join(map(re.escape, re.split(r"\{\w+\}", text)))) for text in halves[half]]
        for form, halves in load_wordings().items()
    }


@pytest.mark.parametrize(("split", "half"), [("train", "seen"), ("test", "unseen")])
def test_people_word_questions_of_training_and_tests_apart(split: str, half: str) -> None:
    patterns = _to_patterns(half)
    forms, whole = set(), []
    for scene, index in _draw(split, 16):
        for question in ask_scene(scene, generator("people", index), split=split, people=1.0):
            forms.add(question.form)
            whole.append(any(pattern.fullmatch(question.prompt) for pattern in patterns[question.form]))
            if split == "test":
                assert question.answer == question.short
    # Wordings of training are varied, those of tests are not.
    assert all(whole) == (split == "test")
    assert np.mean(whole) > 0.5
    assert forms > {"name", "where", "is there", "position", "count"}


def test_a_share_of_none_changes_no_question() -> None:
    for scene, index in _draw("train", 4):
        plain = ask_scene(scene, generator("people", index), split="train")
        assert plain == ask_scene(scene, generator("people", index), split="train", people=0.0)


def test_who_names_no_side_means_left_and_right() -> None:
    for split in ("train", "test"):
        for scene, index in _draw(split, 24):
            questions = ask_scene(scene, generator("sides", index), split=split, kinds=("position",), people=1.0)
            for question in questions:
                if question.form == "position" and not re.search(r"\b(left|right|top|bottom)\b", question.prompt):
                    assert set(question.choices or ()) == {"left", "right"}
