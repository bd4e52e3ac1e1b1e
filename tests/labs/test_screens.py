"""Generated screens: exact widget trees and answers; layouts and words of tests are apart."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.records.conversations import check_conversation
from foveate.records.text import split_words
from foveate_labs.worlds import questions
from foveate_labs.worlds.questions import Question, to_conversation
from foveate_labs.worlds.screens import Screen, ask_screen, draw_screen
from foveate_labs.worlds.screens.questions import FORMS
from foveate_labs.worlds.screens.screen import KINDS, LAYOUTS, TYPES
from naming import raises_naming

COUNT = 60
Asked = dict[str, list[tuple[Screen, Question]]]


@pytest.fixture(scope="module")
def screens() -> dict[str, list[Screen]]:
    return {split: [draw_screen(seed=4, split=split, index=i) for i in range(COUNT)] for split in ("train", "test")}


@pytest.fixture(scope="module")
def asked(screens: dict[str, list[Screen]]) -> Asked:
    return {
        split: [
            (screen, question)
            for number, screen in enumerate(group)
            for turn in range(6)
            for question in ask_screen(screen, generator("s", number, turn), split=split)
        ]
        for split, group in screens.items()
    }


def test_widgets_are_inside_and_hold_their_children(screens: dict[str, list[Screen]]) -> None:
    types = set()
    for screen in (s for group in screens.values() for s in group):
        width, height = screen.image.size
        assert (screen.root.type, screen.root.box.x2, screen.root.box.y2) == ("screen", width, height)
        for parent in screen.root.walk():
            types.add(parent.type)
            for child in parent.children:
                inner, outer = child.box, parent.box
                assert outer.x1 <= inner.x1 < inner.x2 <= outer.x2, (screen.layout, child.type)
                assert outer.y1 <= inner.y1 < inner.y2 <= outer.y2, (screen.layout, child.type)
    assert types == set(TYPES)


def test_siblings_do_not_cover_one_another(screens: dict[str, list[Screen]]) -> None:
    for screen in (s for group in screens.values() for s in group):
        boxes = np.array([(w.box.x1, w.box.y1, w.box.x2, w.box.y2) for w in screen.root.children])
        sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        overlap = sides.clip(0).prod(-1)
        np.fill_diagonal(overlap, 0)
        assert overlap.max() <= 1.01 * screen.image.width, (screen.kind, screen.layout)


def test_states_are_seen(screens: dict[str, list[Screen]]) -> None:
    for screen in screens["train"]:
        pixels = np.asarray(screen.image, int)
        for widget in screen.widgets:
            if widget.type == "switch":
                x1, y1, x2, y2 = (int(edge) for edge in (widget.box.x1, widget.box.y1, widget.box.x2, widget.box.y2))
                # The knob is nearly white: it stands right if the switch is on.
                white = (pixels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min(-1) > 235).mean(0)
                middle = len(white) // 2
                assert (white[middle:].mean() > white[:middle].mean()) == (widget.state == "on")
        tabs = [widget.state for widget in screen.widgets if widget.type == "tab"]
        assert tabs.count("selected") == (1 if tabs else 0)


def test_texts_are_written_once(screens: dict[str, list[Screen]]) -> None:
    for screen in (s for group in screens.values() for s in group):
        lines = defaultdict(list)
        for word in screen.word_boxes:
            lines[word.line].append(word.text)
        written = [" ".join(line) for line in lines.values()]
        for widget in screen.widgets:
            if widget.text and not (screen.kind == "list" and widget.type == "icon"):
                assert written.count(widget.text) == 1, (screen.kind, widget)


def test_tests_have_layouts_and_words_of_their_own(screens: dict[str, list[Screen]]) -> None:
    for number, split in enumerate(("train", "test")):
        layouts = {(s.kind, s.layout) for s in screens[split]}
        assert layouts == {(kind, layout) for kind in KINDS for layout in LAYOUTS[kind][number]}
    words = {split: {word.text.lower() for s in group for word in s.word_boxes} for split, group in screens.items()}
    assert not words["train"] & set(questions.list_nouns(held_out=True))
    assert not words["test"] & set(questions.list_nouns(held_out=False))


def test_screens_are_functions_of_their_numbers() -> None:
    first, again = (draw_screen(seed=2, split="train", index=5) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.root == again.root
    assert first.image.tobytes() != draw_screen(seed=3, split="train", index=5).image.tobytes()
    assert draw_screen(seed=2, split="train", index=5, letter_height=9).letter_height == 9


def test_bad_numbers_are_refused() -> None:
    with raises_naming(UserError, "kind", "desktop"):
        draw_screen(seed=0, split="train", index=0, kind="desktop")
    with raises_naming(UserError, "size", "100"):
        draw_screen(seed=0, split="train", index=0, size=100)
    with raises_naming(UserError, "letter_height", "90"):
        draw_screen(seed=0, split="train", index=0, letter_height=90)


def test_answers_follow_from_the_tree(asked: Asked) -> None:
    assert {q.form for pairs in asked.values() for _, q in pairs} == set(FORMS)
    for screen, question in (pair for pairs in asked.values() for pair in pairs):
        at = [w for w in screen.widgets if question.regions and w.box == question.regions[0]]
        if question.form == "name widget":
            assert question.short in [f'{w.type} "{w.text}"' for w in at]
        if question.form == "widget type":
            assert question.short in [w.type for w in at]
        if question.form == "find widget":
            assert any(f'{w.type} "{w.text}"' in question.prompt for w in at)
        if question.form == "tap":
            (widget,) = at
            act = {"on": "switch off", "off": "switch on", "checked": "clear", "unchecked": "check"}[widget.state]
            assert f'{act} "{widget.text}"' in question.prompt
        if question.form in ("state", "state: yes or no"):
            text = question.prompt.split('"')[1]
            (widget,) = (w for w in screen.widgets if w.text == text and w.state and w.type != "tab")
            if question.form == "state":
                assert question.short == widget.state
            else:
                assert (question.short == "yes") == (widget.state in split_words(question.prompt))
        if question.form == "is there":
            stated = question.prompt.split('"')[1]
            assert (question.short == "yes") == any(w.text == stated for w in screen.widgets)


def test_two_way_answers_are_balanced(asked: Asked) -> None:
    first = defaultdict(list)
    for _, question in (pair for pairs in asked.values() for pair in pairs):
        if question.choices:
            first[question.form].append(question.short == question.choices[0])
            if question.form == "state":
                first["state, the word"].append(question.short in ("on", "checked", "filled"))
    pooled = [value for values in first.values() for value in values]
    assert abs(np.mean(pooled) - 0.5) < 0.04, np.mean(pooled)
    for form, values in first.items():
        assert abs(np.mean(values) - 0.5) < max(0.03, 2.5 / np.sqrt(len(values))), (form, np.mean(values), len(values))


def test_held_out_prompts_have_new_wordings_of_known_words() -> None:
    def list_words(texts: tuple[str, ...]) -> set[str]:
        return {word for text in texts for word in split_words(text.replace("{", " ").replace("}", " "))}

    known = list_words(tuple(text for form in FORMS.values() for text in form.training))
    for name, form in FORMS.items():
        assert set(form.training).isdisjoint(form.held_out)
        assert min(len(form.training), len(form.held_out)) >= 2
        assert list_words(form.held_out) <= known, (name, list_words(form.held_out) - known)


def test_conversations_are_usable(asked: Asked) -> None:
    for screen, question in asked["test"][:300]:
        conversation = to_conversation(question, id="s", images=("screen",), group="text-rich", source="screens")
        assert check_conversation(conversation, {"screen": screen.image.size}).group == "text-rich"
