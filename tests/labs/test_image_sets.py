"""Questions on several scenes: true of the scenes, balanced, functions of their numbers."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.records.conversations import check_conversation
from foveate_labs.worlds.questions import to_conversation
from foveate_labs.worlds.scenes.image_sets import ORDINALS, SETS, ImageSet, draw_image_set
from foveate_labs.worlds.scenes.language import add_article, pluralize
from naming import raises_naming

SIZE = 96
COUNT = 24


@pytest.fixture(scope="module")
def sets() -> dict[str, list[ImageSet]]:
    return {
        form: [
            draw_image_set(form, seed=2, split="test" if i % 3 == 0 else "train", index=i, size=SIZE)
            for i in range(COUNT)
        ]
        for form in SETS
    }


def _shows(prompt: str, name: str) -> bool:
    return re.search(rf"{re.escape(add_article(name))}( |,|\?|\.)", prompt) is not None


@pytest.mark.parametrize("form", ["compare", "which image"])
def test_the_chosen_image_alone_shows_the_thing(sets: dict[str, list[ImageSet]], form: str) -> None:
    for image_set in sets[form]:
        question = image_set.question
        showing = [any(_shows(question.prompt, name) for name in scene.counts) for scene in image_set.scenes]
        assert [ORDINALS[i] for i, shows in enumerate(showing) if shows] == [question.short]
        assert question.choices is not None
        assert len(question.choices) == len(image_set.scenes)


def test_both_images_show_the_thing_if_the_answer_is_yes(sets: dict[str, list[ImageSet]]) -> None:
    for image_set in sets["compare: both"]:
        question = image_set.question
        showing = [any(_shows(question.prompt, name) for name in scene.counts) for scene in image_set.scenes]
        assert any(showing)
        assert all(showing) == (question.short == "yes")


def test_numbers_are_compared_as_counted(sets: dict[str, list[ImageSet]]) -> None:
    for image_set in [*sets["compare: more"], *sets["compare: same number"]]:
        question = image_set.question
        (name,) = {
            n for s in image_set.scenes for n in s.counts if re.search(rf" {pluralize(n)}( |,|\?)", question.prompt)
        }
        first, second = (scene.counts[name] for scene in image_set.scenes)
        if question.form == "compare: more":
            assert question.short == ("first" if first > second else "second")
        else:
            assert question.short == ("yes" if first == second else "no")


def test_new_words_mean_what_their_examples_show(sets: dict[str, list[ImageSet]]) -> None:
    for image_set in sets["episode"]:
        question = image_set.question
        labels = [answer for _, answer in question.examples]
        assert sorted(Counter(labels).values()) == [2, 2]
        by_label = {
            label: set.intersection(
                *(set(s.counts) for s, other in zip(image_set.scenes, labels, strict=False) if other == label)
            )
            for label in labels
        }
        assert by_label[question.answer] & set(image_set.scenes[-1].counts)
    control = [
        draw_image_set("episode", seed=2, split="train", index=i, size=SIZE, shuffled_labels=True) for i in (1, 2)
    ]
    for shuffled, image_set in zip(control, sets["episode"][1:3], strict=True):
        assert shuffled.question.answer == image_set.question.answer
        assert [s.image.tobytes() for s in shuffled.scenes] == [s.image.tobytes() for s in image_set.scenes]
    assert any(s.question != i.question for s, i in zip(control, sets["episode"][1:3], strict=True))


def test_answers_are_balanced(sets: dict[str, list[ImageSet]]) -> None:
    first = []
    for form in SETS:
        for image_set in sets[form]:
            question = image_set.question
            assert question.choices is not None
            if len(question.choices) == 2:
                first.append(question.short == question.choices[0])
    assert abs(np.mean(first) - 0.5) < 0.15, (np.mean(first), len(first))
    assert set(Counter(s.question.short for s in sets["which image"])) == set(ORDINALS)


def test_conversations_of_several_images_are_usable(sets: dict[str, list[ImageSet]]) -> None:
    for form in SETS:
        image_set = sets[form][0]
        keys = tuple(f"scene-{i}" for i in range(len(image_set.scenes)))
        conversation = to_conversation(image_set.question, id="s", images=keys)
        assert check_conversation(conversation, dict.fromkeys(keys, (SIZE, SIZE))).group == "multi-image"


def test_sets_are_functions_of_their_numbers() -> None:
    first, again = (draw_image_set("compare", seed=5, split="test", index=3, size=SIZE) for _ in range(2))
    assert first.question == again.question
    assert [s.image.tobytes() for s in first.scenes] == [s.image.tobytes() for s in again.scenes]
    with raises_naming(UserError, "form", "contrast"):
        draw_image_set("contrast", seed=5, split="test", index=3)
