"""Generated documents: exact words, contents and answers; layouts and words of tests are apart."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from foveate.core.errors import UserError
from foveate.core.seeds import generator
from foveate.records.conversations import check_conversation
from foveate.records.text import split_words
from foveate_labs.worlds import questions
from foveate_labs.worlds.documents import Document, ask_document, draw_document
from foveate_labs.worlds.documents.document import KINDS, LAYOUTS, Receipt, Table, Text
from foveate_labs.worlds.documents.questions import FORMS
from foveate_labs.worlds.questions import Question, to_conversation
from foveate_labs.worlds.sheets import Sheet, find_font_size, measure_letters
from naming import raises_naming

COUNT = 60


@pytest.fixture(scope="module")
def documents() -> dict[str, list[Document]]:
    return {
        split: [draw_document(seed=4, split=split, index=i, size=320) for i in range(COUNT)]
        for split in ("train", "test")
    }


@pytest.fixture(scope="module")
def asked(documents: dict[str, list[Document]]) -> dict[str, list[tuple[Document, Question]]]:
    return {
        split: [
            (document, question)
            for number, document in enumerate(group)
            for turn in range(8)
            for question in ask_document(document, generator("d", number, turn), split=split)
        ]
        for split, group in documents.items()
    }


def test_boxes_are_the_bounds_of_the_ink() -> None:
    for font in ("sans", "serif", "mono", "pillow"):
        sheet = Sheet(300, 60, font=font, size=20, paper=(255, 255, 255), ink=(0, 0, 0))
        (word,) = sheet.write(20, 40, "Harbor")
        ink = np.asarray(sheet.image).min(-1) < 128
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        bounds = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(bounds, (word.box.x1, word.box.y1, word.box.x2, word.box.y2))).max() <= 1
        assert word.letter_height == measure_letters(font, 20)


def test_letters_have_the_requested_height(documents: dict[str, list[Document]]) -> None:
    for height in (6, 11, 18):
        document = draw_document(seed=1, split="train", index=1, letter_height=height)
        assert document.letter_height == height
        assert min(word.letter_height for word in document.word_boxes) >= height
        assert measure_letters(document.font, find_font_size(document.font, height)) <= height + 1
    heights = {document.letter_height for document in documents["train"]}
    assert len(heights) > 4


def test_words_are_inside_and_do_not_cover_one_another(documents: dict[str, list[Document]]) -> None:
    for document in (d for group in documents.values() for d in group):
        width, height = document.image.size
        boxes = np.array([(w.box.x1, w.box.y1, w.box.x2, w.box.y2) for w in document.word_boxes])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (width, height)).all(), (document.kind, document.layout)
        if document.kind in ("page", "table", "receipt"):
            sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
                boxes[:, None, :2], boxes[None, :, :2]
            )
            overlap = sides.clip(0).prod(-1)
            np.fill_diagonal(overlap, 0)
            assert overlap.max() <= 0.15 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).max(), document.kind


def test_contents_are_written(documents: dict[str, list[Document]]) -> None:
    for document in (d for group in documents.values() for d in group):
        content, lines = document.content, document.transcript.split("\n")
        if isinstance(content, Receipt):
            assert [lines.count(text) > 0 for text in (content.shop, content.date, content.total)] == [True] * 3
            assert f"{sum(float(price) for _, price in content.items):.2f}" == content.total
            expected = [text for item in content.items for text in item]
        elif isinstance(content, Table):
            expected = [content.title, *content.rows]
            if document.kind == "table":
                expected += [*content.columns, *(value for row in content.values for value in row)]
        else:
            assert isinstance(content, Text)
            expected = [content.title, *content.lines]
        assert not [text for text in expected if text not in lines]


def test_tests_have_layouts_and_words_of_their_own(documents: dict[str, list[Document]]) -> None:
    layouts = {split: {(d.kind, d.layout) for d in group} for split, group in documents.items()}
    for number, split in enumerate(("train", "test")):
        assert layouts[split] == {(kind, layout) for kind in KINDS for layout in LAYOUTS[kind][number]}
    words = {split: {w.text.lower() for d in group for w in d.word_boxes} for split, group in documents.items()}
    nouns = {held_out: set(questions.list_nouns(held_out=held_out)) for held_out in (False, True)}
    assert not words["train"] & nouns[True]
    assert not words["test"] & (nouns[False] - set(" ".join(questions.PLACES).lower().split()))
    assert min(map(len, nouns.values())) > 60


def test_documents_are_functions_of_their_numbers() -> None:
    first, again = (draw_document(seed=2, split="train", index=8) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.word_boxes == again.word_boxes
    assert first.image.tobytes() != draw_document(seed=3, split="train", index=8).image.tobytes()


def test_bad_numbers_are_refused() -> None:
    with raises_naming(UserError, "kind", "poster"):
        draw_document(seed=0, split="train", index=0, kind="poster")
    with raises_naming(UserError, "letter_height", "200"):
        draw_document(seed=0, split="train", index=0, letter_height=200)
    with raises_naming(UserError, "letter_height", "300"):
        draw_document(seed=0, split="train", index=0, size=4800, letter_height=300)
    with raises_naming(UserError, "size", "100"):
        draw_document(seed=0, split="train", index=0, size=100)


def test_answers_follow_from_contents(asked: dict[str, list[tuple[Document, Question]]]) -> None:
    assert {q.form for pairs in asked.values() for _, q in pairs} == set(FORMS)
    for document, question in (pair for pairs in asked.values() for pair in pairs):
        content = document.content
        if question.form == "read":
            (region,) = question.regions
            inside = [
                w.text
                for w in document.word_boxes
                if region.x1 <= w.box.x1 and w.box.x2 <= region.x2 and region.y1 <= w.box.y1 and w.box.y2 <= region.y2
            ]
            assert question.short == " ".join(inside)
        if question.form == "find":
            assert question.prompt.split('"')[1] in document.transcript
        if question.form == "price":
            assert isinstance(content, Receipt)
            (price,) = [price for name, price in content.items if name in split_words_kept(question.prompt)]
            assert question.short == price
        if question.form.startswith("compare") and document.kind != "receipt":
            assert isinstance(content, Table)
            (column,) = [i for i, name in enumerate(content.columns) if name in question.prompt]
            values = {n: float(r[column]) for n, r in zip(content.rows, content.values, strict=True)}
            named = sorted((n for n in values if n in split_words_kept(question.prompt)), key=question.prompt.index)
            higher = max(named, key=values.__getitem__)
            assert question.short == (higher if question.form == "compare" else ("yes" if higher == named[0] else "no"))


def split_words_kept(text: str) -> list[str]:
    return text.replace("?", " ").replace(",", " ").replace(".", " ").split()


def test_two_way_answers_are_balanced(asked: dict[str, list[tuple[Document, Question]]]) -> None:
    first = defaultdict(list)
    for _, question in asked["train"]:
        if question.choices:
            first[question.form].append(question.short == question.choices[0])
    pooled = [value for values in first.values() for value in values]
    assert abs(np.mean(pooled) - 0.5) < 0.03, np.mean(pooled)
    for form, values in first.items():
        assert abs(np.mean(values) - 0.5) < max(0.03, 2.0 / np.sqrt(len(values))), (form, np.mean(values), len(values))


def test_held_out_prompts_have_new_wordings_of_known_words() -> None:
    def list_words(texts: tuple[str, ...]) -> set[str]:
        blank = [text.replace("{", " ").replace("}", " ") for text in texts]
        return {word for text in blank for word in split_words(text)}

    known = list_words(tuple(text for form in FORMS.values() for text in form.training)) | {"a"}
    for name, form in FORMS.items():
        assert set(form.training).isdisjoint(form.held_out)
        assert min(len(form.training), len(form.held_out)) >= 2
        assert list_words(form.held_out) <= known, (name, list_words(form.held_out) - known)


def test_conversations_are_usable(asked: dict[str, list[tuple[Document, Question]]]) -> None:
    for document, question in asked["test"][:300]:
        conversation = to_conversation(question, id="d", images=("page",), group="text-rich", source="documents")
        assert check_conversation(conversation, {"page": document.image.size}).group == "text-rich"
