"""Exact questions on generated documents: read, find, look up, compare.

As in `scenes.questions`, a question with two answers is decided by a coin, or by values that are drawn alike, so that
guessing is right half of the time.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foveate.core.errors import choose
from foveate.core.seeds import generator, pick
from foveate.records.record import Caption
from foveate_labs.worlds import questions as lexicon
from foveate_labs.worlds.asked_images import AskedImage, Position, make_conversations, write_asked_images
from foveate_labs.worlds.builtin import jpeg
from foveate_labs.worlds.documents.document import Document, Receipt, Table, Text, draw_document
from foveate_labs.worlds.questions import Form, Question, QuestionWriter
from foveate_labs.worlds.scenes.language import NUMERALS
from foveate_labs.worlds.scenes.pools import SPLITS
from foveate_labs.worlds.sheets import Word, enclose

# "yes" comes first because the index is a negation: `_YES_NO[not true]`.
_YES_NO = ("yes", "no")
# Held-out wordings use only words that training wordings have; a test asserts this.
FORMS: dict[str, Form] = {
    "read": Form(
        ("What is written in <region>?", "Read the text in <region>.", "What does <region> say?"),
        ("Read <region>.", "What text is in <region>?"),
        'It says "{text}".',
    ),
    "find": Form(
        ('Where does it say "{text}"?', 'Find the text "{text}".', 'Where is "{text}" written?'),
        ('Where is the text "{text}"?', 'Find where "{text}" is written.'),
        '"{text}" is written in <region>.',
    ),
    "title": Form(
        ("What is the title?", "Which title does the page have?", "Read the title."),
        ("What title does the page have?", "What does the title say?"),
        'The title is "{text}".',
    ),
    "next word": Form(
        ('Which word comes after "{text}"?', 'What is the next word after "{text}"?'),
        ('Which is the next word after "{text}"?', 'What word comes after "{text}"?'),
        'The next word is "{answer}".',
    ),
    "look up": Form(
        ("What is the {column} of {row}?", "Which {column} does {row} have?", "Read the {column} of {row}."),
        ("What {column} does {row} have?", "Which is the {column} of {row}?"),
        "The {column} of {row} is {answer}.",
    ),
    "look up: yes or no": Form(
        ("Is the {column} of {row} {stated}?", "Does {row} have the {column} {stated}?"),
        ("Is {stated} the {column} of {row}?", "For {row}, is the {column} {stated}?"),
        {"yes": "Yes, the {column} of {row} is {value}.", "no": "No, the {column} of {row} is {value}."},
    ),
    "highest": Form(
        ("Which has the highest {column}?", "What is the one with the highest {column}?"),
        ("Which is the one with the highest {column}?", "What has the highest {column}?"),
        "{answer} has the highest {column}.",
    ),
    "compare": Form(
        ("Which has the higher {column}, {first} or {second}?", "Is the {column} of {first} or of {second} higher?"),
        (
            "Does {first} or {second} have the higher {column}?",
            "Which of {first} or {second} has the higher {column}?",
        ),
        "{answer} has the higher {column}.",
    ),
    "compare: yes or no": Form(
        (
            "Is the {column} of {first} higher than that of {second}?",
            "Does {first} have a higher {column} than {second}?",
        ),
        ("Is the {column} higher for {first} than for {second}?", "Has {first} a higher {column} than {second}?"),
        {"yes": "Yes, {higher} has the higher {column}.", "no": "No, {higher} has the higher {column}."},
    ),
    "trend": Form(
        ("Does the line rise or fall from {first} to {second}?", "From {first} to {second}, does it rise or fall?"),
        ("Does it rise or fall from {first} to {second}?", "From {first} to {second}, does the line rise or fall?"),
        "From {first} to {second} the line {answer}s.",
    ),
    "total": Form(
        ("What is the total?", "How much is to be paid?", "Read the total."),
        ("How much is the total?", "What is to be paid?"),
        "The total is {answer}.",
    ),
    "price": Form(
        ("How much is the {row}?", "What is the price of the {row}?", "Read the price of the {row}."),
        ("How much is to be paid for the {row}?", "Which is the price of the {row}?"),
        "The price of the {row} is {answer}.",
    ),
    "date": Form(
        ("What is the date?", "Which date does the receipt have?", "Read the date."),
        ("What date does the receipt have?", "Which is the date?"),
        "The date is {answer}.",
    ),
    "shop": Form(
        ("Which shop is the receipt from?", "What is the name of the shop?", "Read the name of the shop."),
        ("What shop is the receipt from?", "Which is the name of the shop?"),
        "The shop is {answer}.",
    ),
    "number of items": Form(
        ("How many items are on the receipt?", "How many items does the receipt have?", "What is the number of items?"),
        ("How many items are there on the receipt?", "Which is the number of items on the receipt?"),
        "There are {answer} items.",
    ),
    "is there": Form(
        (
            "Is there a price for the {stated}?",
            "Does the receipt have the {stated}?",
            "Is the {stated} on the receipt?",
        ),
        ("Is the price of the {stated} on the receipt?", "Does the receipt have a price for the {stated}?"),
        {"yes": "Yes, the {stated} is on it.", "no": "No, the {stated} is not on it."},
    ),
}


def ask_document(document: Document, rng: np.random.Generator, *, split: str, num_reads: int = 2) -> list[Question]:
    """Ask about a document: what is written where, then what its contents say.

    Args:
        rng: decides wording, choice and which of two answers is true.
        split: "test" takes the wordings that no training question has.
        num_reads: texts to read and texts to find, of each.

    Raises:
        UserError: the split is unknown.
    """
    choose(split, SPLITS, "split")
    asker = _Asker(document, rng, held_out=split == "test")
    asker.ask_texts(num_reads)
    content = document.content
    if isinstance(content, Text):
        asker.ask_page(content)
    elif isinstance(content, Receipt):
        asker.ask_receipt(content)
    else:
        asker.ask_table(content)
    return asker.questions


class _Asker(QuestionWriter):
    def __init__(self, document: Document, rng: np.random.Generator, *, held_out: bool) -> None:
        super().__init__(FORMS, rng, held_out=held_out)
        self.document = document
        self.lines: dict[int, list[Word]] = {}
        for word in document.word_boxes:
            self.lines.setdefault(word.line, []).append(word)

    def ask_texts(self, count: int) -> None:
        """Ask to read words or lines, and to find words and lines that are written only once."""
        lines = list(self.lines.values())
        parts = [self._draw_part(lines) for _ in range(2 * count)]
        # Only a text that is written once, whether a line or a word, has a single right place.
        times = Counter(" ".join(word.text for word in line) for line in lines)
        word_counts = Counter(word.text for word in self.document.word_boxes)
        for number, part in enumerate(parts):
            text, region = " ".join(word.text for word in part), (enclose(part),)
            if number < count:
                self.ask("read", text, regions=region, text=text)
            elif times[text] <= 1 and (len(part) > 1 or word_counts[text] == 1):
                self.ask("find", "<region>", regions=region, text=text)

    def _draw_part(self, lines: Sequence[list[Word]]) -> list[Word]:
        line = lines[int(self.rng.integers(len(lines)))]
        return line if self.coin() else [line[int(self.rng.integers(len(line)))]]

    def ask_page(self, content: Text) -> None:
        self.ask("title", content.title, text=content.title)
        word_counts = Counter(word.text for word in self.document.word_boxes)
        pairs = [(a, b) for line in content.lines for a, b in zip(line.split(), line.split()[1:], strict=False)]
        # A word that is written twice may have two successors.
        pairs = [(a, b) for a, b in pairs if word_counts[a] == 1]
        if pairs:
            first, following = pairs[int(self.rng.integers(len(pairs)))]
            self.ask("next word", following, text=first)

    def ask_receipt(self, content: Receipt) -> None:
        self.ask("total", content.total)
        self.ask("date", content.date)
        self.ask("shop", content.shop)
        item, price = content.items[int(self.rng.integers(len(content.items)))]
        self.ask("price", price, row=item)
        # Answers are number words, which end at six; receipts have up to twelve items.
        if len(content.items) < len(NUMERALS):
            self.ask("number of items", NUMERALS[len(content.items)])
        nouns = lexicon.list_nouns(held_out=self.held_out)
        item, other = pick(self.rng, [name for name, _ in content.items]), pick(self.rng, nouns)
        if all(other != name for name, _ in content.items):
            present = self.coin()
            self.ask("is there", _YES_NO[not present], choices=_YES_NO, stated=item if present else other)
        self._ask_comparison("price", [(name, float(price)) for name, price in content.items])

    def ask_table(self, content: Table) -> None:
        self.ask("title", content.title, text=content.title)
        column = int(self.rng.integers(len(content.columns)))
        name = content.columns[column]
        values = [row[column] for row in content.values]
        row = int(self.rng.integers(len(values)))
        # The bars of a chart without written values say what is higher, not by how much.
        if self.document.kind == "table" or self.document.layout.endswith("values"):
            self.ask("look up", values[row], column=name, row=content.rows[row])
            # False values come from other cells, so that a number's presence on the page proves nothing.
            others = [value for cells in content.values for value in cells if value != values[row]]
            if others:
                true = self.coin()
                self.ask(
                    "look up: yes or no",
                    _YES_NO[not true],
                    choices=_YES_NO,
                    column=name,
                    row=content.rows[row],
                    stated=values[row] if true else pick(self.rng, others),
                    value=values[row],
                )
        heights = [(row_name, float(value)) for row_name, value in zip(content.rows, values, strict=True)]
        ordered = sorted(heights, key=lambda pair: -pair[1])
        # Two equal highest values have no single answer.
        if ordered[0][1] > ordered[1][1]:
            self.ask("highest", ordered[0][0], column=name)
        self._ask_comparison(name, heights)
        if self.document.kind == "line chart":
            # All values of a chart differ (see `_draw_values`), so the line either rises or falls.
            start = int(self.rng.integers(len(heights) - 1))
            (first, low), (second, high) = heights[start : start + 2]
            choices = ("rise", "fall")
            self.ask("trend", choices[low > high], choices=choices, first=first, second=second)

    def _ask_comparison(self, column: str, heights: Sequence[tuple[str, float]]) -> None:
        first, second = (heights[int(i)] for i in self.rng.permutation(len(heights))[:2])
        if first[1] == second[1]:
            return
        higher = first[0] if first[1] > second[1] else second[0]
        fields = {"column": column, "first": first[0], "second": second[0]}
        if self.coin():
            self.ask("compare", higher, choices=(first[0], second[0]), **fields)
        else:
            short = _YES_NO[higher != first[0]]
            self.ask("compare: yes or no", short, choices=_YES_NO, higher=higher, **fields)


# Write documents with their words and questions into a collection.


LICENSE = "generated; letters of DejaVu (Bitstream Vera license) and Aileron (CC0)"


def build_documents(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 448,
    workers: int = 1,
) -> None:
    """Write documents into the collection at `target`; existing ones are not drawn again.

    Each has a caption of kind "text" (all that is written), the annotation kinds "words" (text, pixel edges x1, y1, x2,
    y2, letter_height and line of each word) and "conversations", and the labels document, layout, font and
    letter_height.

    Args:
        train, validation, test: number of documents of each split.
        seed: seed of the series.
        size: the longer side in pixels.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number is out of range, or matplotlib's fonts are missing.
    """
    write_asked_images(
        target,
        functools.partial(draw_asked_document, seed=seed, size=size),
        functools.partial(_make_key, seed=seed),
        counts={"train": train, "validation": validation, "test": test},
        source="documents",
        license=LICENSE,
        workers=workers,
    )


def _make_key(position: Position, *, seed: int) -> str:
    return f"document-{position[0]}-{seed}-{position[1]:06d}"


def draw_asked_document(position: Position, *, seed: int, size: int) -> list[AskedImage]:
    """Draw document number `position[1]` of split `position[0]` and ask about it."""
    split, index = position
    document = draw_document(seed=seed, split=split, index=index, size=size)
    key = _make_key(position, seed=seed)
    # Questions draw from a random stream of their own, so changes to them leave the pixels alone.
    questions = ask_document(document, generator("document questions", seed, split, index), split=split)
    labels = {"document": document.kind, "layout": document.layout, "font": document.font}
    image = AskedImage(
        key,
        jpeg(document.image),
        captions=(Caption(document.transcript, "text", "documents"),),
        labels={**labels, "letter_height": str(document.letter_height)},
        extra={"words": [word_row(word) for word in document.word_boxes]},
        conversations=make_conversations(questions, key=key, group="text-rich", source="documents"),
    )
    return [image]


def word_row(word: Word) -> dict[str, object]:
    """Return the row of a word in the annotation kind "words"."""
    edges = {"x1": word.box.x1, "y1": word.box.y1, "x2": word.box.x2, "y2": word.box.y2}
    return {"text": word.text, **edges, "letter_height": word.letter_height, "line": word.line}
