"""Exact questions on generated screens: name a widget, find it, read it, tell its state."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np

from foveate.core.errors import choose
from foveate.core.seeds import generator, pick
from foveate.records.boxes import Box
from foveate.records.record import Region
from foveate_labs.worlds import questions as lexicon
from foveate_labs.worlds.asked_images import AskedImage, Position, make_conversations, write_asked_images
from foveate_labs.worlds.builtin import jpeg
from foveate_labs.worlds.documents.questions import word_row
from foveate_labs.worlds.questions import Form, Question, QuestionWriter
from foveate_labs.worlds.scenes.language import NUMERALS
from foveate_labs.worlds.scenes.pools import SPLITS
from foveate_labs.worlds.screens.screen import Screen, Widget, draw_screen

# "yes" comes first because the index is a negation: `_YES_NO[not present]`.
_YES_NO = ("yes", "no")
_STATES = {
    "switch": ("on", "off"),
    "check box": ("checked", "unchecked"),
    "text field": ("filled", "empty"),
}
_ACTS = {"on": "switch off", "off": "switch on", "checked": "clear", "unchecked": "check"}
# Held-out wordings use only words that training wordings have; a test asserts this.
FORMS: dict[str, Form] = {
    "name widget": Form(
        ("What is the widget in <region>?", "Name the widget in <region>.", "Which widget is <region>?"),
        ("Which widget is in <region>?", "Name <region>.", "What widget is <region>?"),
        "It is the {answer}.",
    ),
    "widget type": Form(
        ("What type of widget is <region>?", "Which type of widget is in <region>?", "Name the type of <region>."),
        ("Which type of widget is <region>?", "What is the type of <region>?"),
        "It is a widget of the type {answer}.",
    ),
    "find widget": Form(
        ('Where is the {type} "{text}"?', 'Find the {type} "{text}".', 'Show the {type} "{text}".'),
        ('Show where the {type} "{text}" is.', 'Where do I find the {type} "{text}"?'),
        'The {type} "{text}" is at <region>.',
    ),
    "tap": Form(
        ('Where do I tap to {act} "{text}"?', 'Show where to tap to {act} "{text}".'),
        ('Where to tap to {act} "{text}"?', 'Find where I tap to {act} "{text}".'),
        "Tap <region>.",
    ),
    "state": Form(
        ('Is the {type} "{text}" {first} or {second}?', 'What is the state of "{text}", {first} or {second}?'),
        ('Which is the state of "{text}", {first} or {second}?', 'The {type} "{text}": is it {first} or {second}?'),
        'The {type} "{text}" is {answer}.',
    ),
    "state: yes or no": Form(
        (
            'Is the {type} "{text}" {stated}?',
            'Is it {stated}, the {type} "{text}"?',
            'Is the state of "{text}" {stated}?',
        ),
        ('The {type} "{text}": is it {stated}?', 'Is {stated} the state of "{text}"?'),
        {"yes": 'Yes, the {type} "{text}" is {state}.', "no": 'No, the {type} "{text}" is {state}.'},
    ),
    "how many": Form(
        ("How many widgets of the type {type} are {state}?", "What number of the type {type} is {state}?"),
        ("How many of the type {type} are {state}?", "What number of widgets of the type {type} is {state}?"),
        "It is {answer}.",
    ),
    "selected tab": Form(
        ("Which tab is selected?", "Name the selected tab.", "What is the selected tab?"),
        ("Which is the selected tab?", "What tab is selected?"),
        'The tab "{answer}" is selected.',
    ),
    "is there": Form(
        ('Is there a {type} "{stated}"?', 'Do I find a {type} "{stated}"?', 'Can I tap a {type} "{stated}"?'),
        ('Can I find a {type} "{stated}"?', 'Is a {type} "{stated}" there?'),
        {"yes": 'Yes, there is a {type} "{stated}".', "no": 'No, there is no {type} "{stated}".'},
    ),
}


def ask_screen(screen: Screen, rng: np.random.Generator, *, split: str, num_widgets: int = 4) -> list[Question]:
    """Ask about widgets of a screen: which they are, where they are, and in which state.

    Args:
        rng: decides wording, choice and which of two answers is true.
        split: "test" takes the wordings that no training question has.
        num_widgets: widgets that are asked about.

    Raises:
        UserError: the split is unknown.
    """
    choose(split, SPLITS, "split")
    asker = _Asker(screen, rng, held_out=split == "test")
    named = [widget for widget in screen.widgets if widget.text]
    for index in rng.permutation(len(named))[:num_widgets]:
        asker.ask_widget(named[int(index)])
    asker.ask_states()
    asker.ask_presence()
    return asker.questions


class _Asker(QuestionWriter):
    def __init__(self, screen: Screen, rng: np.random.Generator, *, held_out: bool) -> None:
        super().__init__(FORMS, rng, held_out=held_out)
        self.screen = screen
        self.times = Counter((widget.type, widget.text) for widget in screen.widgets)

    def ask_widget(self, widget: Widget) -> None:
        fields, regions = {"type": widget.type, "text": widget.text}, (widget.box,)
        share = self.rng.random()
        unique = self.times[widget.type, widget.text] == 1
        # Where two widgets have one type and text, "where is it" has no single answer.
        if share < 0.4 and unique:
            self.ask("find widget", "<region>", regions=regions, **fields)
        elif share < 0.75:
            self.ask("name widget", f'{widget.type} "{widget.text}"', regions=regions)
        else:
            self.ask("widget type", widget.type, regions=regions)

    def ask_states(self) -> None:
        """Ask about the state of one widget, what to tap to change another, and how many are in a state."""
        stateful = [widget for widget in self.screen.widgets if widget.type in _STATES]
        if stateful:
            widget = stateful[int(self.rng.integers(len(stateful)))]
            fields = {"type": widget.type, "text": widget.text, "state": widget.state}
            states = _STATES[widget.type]
            first, second = states if self.coin() else states[::-1]
            if self.coin():
                self.ask("state", widget.state, choices=(first, second), first=first, second=second, **fields)
            else:
                self.ask("state: yes or no", _YES_NO[first != widget.state], choices=_YES_NO, stated=first, **fields)
            # Zero is possible, too: `first` need not be the state of any widget.
            same = sum(other.type == widget.type and other.state == first for other in stateful)
            if same < len(NUMERALS):
                self.ask("how many", NUMERALS[same], type=widget.type, state=first)
        # Text fields are left out: no tap changes whether one is filled.
        active = [widget for widget in stateful if widget.state in _ACTS]
        if active:
            widget = active[int(self.rng.integers(len(active)))]
            self.ask("tap", "<region>", regions=(widget.box,), act=_ACTS[widget.state], text=widget.text)
        for widget in self.screen.widgets:
            if widget.type == "tab" and widget.state == "selected":
                self.ask("selected tab", widget.text)

    def ask_presence(self) -> None:
        """Ask whether there is a widget, of a name on the screen or of another noun."""
        nouns = [noun.capitalize() for noun in lexicon.list_nouns(held_out=self.held_out)]
        # Names of one noun only: other names would tell by their form that they are on the screen.
        simple = [w for w in self.screen.widgets if w.text in set(nouns) and w.type not in ("title", "icon")]
        if not simple:
            return
        widget, other = simple[int(self.rng.integers(len(simple)))], pick(self.rng, nouns)
        if any(other.lower() in w.text.lower().split() for w in self.screen.widgets):
            return
        present = self.coin()
        stated = widget.text if present else other
        self.ask("is there", _YES_NO[not present], choices=_YES_NO, type=widget.type, stated=stated)


# Write screens with their widget trees and questions into a collection.


LICENSE = (
    "generated from Open Clip Art (public domain), Noto Emoji (Apache-2.0) and Twemoji (CC-BY-4.0); letters of DejaVu "
    "(Bitstream Vera license) and Aileron (CC0)"
)


def build_screens(
    target: Path,
    *,
    train: int,
    validation: int = 0,
    test: int = 0,
    seed: int = 0,
    size: int = 448,
    workers: int = 1,
) -> None:
    """Write screens into the collection at `target`; existing ones are not drawn again.

    Each has its widgets as regions (label: type, phrase: type and text), and the annotation kinds "screens" (tree: JSON
    of `Widget.to_dict`), "words" and "conversations".

    Args:
        train, validation, test: number of screens of each split.
        seed: seed of the series.
        size: height in pixels.
        workers: processes that draw; the result does not depend on it.

    Raises:
        UserError: a number is out of range, or matplotlib's fonts are missing.
    """
    write_asked_images(
        target,
        functools.partial(draw_asked_screen, seed=seed, size=size),
        functools.partial(_make_key, seed=seed),
        counts={"train": train, "validation": validation, "test": test},
        source="screens",
        license=LICENSE,
        workers=workers,
    )


def _make_key(position: Position, *, seed: int) -> str:
    return f"screen-{position[0]}-{seed}-{position[1]:06d}"


def draw_asked_screen(position: Position, *, seed: int, size: int) -> list[AskedImage]:
    """Draw screen number `position[1]` of split `position[0]` and ask about it."""
    split, index = position
    screen = draw_screen(seed=seed, split=split, index=index, size=size)
    key = _make_key(position, seed=seed)
    # Questions draw from a random stream of their own, so changes to them leave the pixels alone.
    questions = ask_screen(screen, generator("screen questions", seed, split, index), split=split)
    regions = tuple(
        Region(
            Box.from_pixels(widget.box, *screen.image.size), f"{widget.type} {widget.text}".strip(), label=widget.type
        )
        for widget in screen.widgets
    )
    labels = {"screen": screen.kind, "layout": screen.layout, "font": screen.font}
    image = AskedImage(
        key,
        jpeg(screen.image),
        regions=regions,
        labels={**labels, "letter_height": str(screen.letter_height)},
        extra={
            "screens": [{"tree": json.dumps(screen.root.to_dict())}],
            "words": [word_row(word) for word in screen.word_boxes],
        },
        conversations=make_conversations(questions, key=key, group="text-rich", source="screens"),
    )
    return [image]
