"""Draw phone screens with exact widget trees: settings, forms, lists and grids of icons.

`draw_screen` is a pure function of its arguments. Test screens have layouts and words that no training screen has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator, pick
from foveate.records.boxes import PixelBox
from foveate_labs.worlds import questions
from foveate_labs.worlds.builtin import SEEN, Cutout
from foveate_labs.worlds.questions import pick_some
from foveate_labs.worlds.scenes.pools import SPLITS, load_pool
from foveate_labs.worlds.sheets import FONTS, Color, Sheet, Word, as_color, enclose, find_font_size, mix

# Layouts of training, and those that only test screens have.
LAYOUTS = {
    "settings": (("switches right",), ("switches left",)),
    "form": (("labels above",), ("labels left",)),
    "list": (("lines", "stripes"), ("cards",)),
    "grid": (("three columns",), ("two columns",)),
}
KINDS = tuple(LAYOUTS)
TYPES = ("screen", "title", "list item", "switch", "check box", "text field", "button", "icon", "tab bar", "tab")
_LETTERS = (7, 11)  # heights of ordinary capitals in pixels at a side of 448


@dataclass(frozen=True)
class Widget:
    """A widget and what it holds.

    Args:
        type: one of TYPES.
        text: what names it for a reader: its label, or its content if it has none.
        box: in pixels of the screen.
        state: "on", "off", "checked", "unchecked", "filled", "empty", "selected" or "".
    """

    type: str
    text: str
    box: PixelBox
    state: str = ""
    children: tuple[Widget, ...] = ()

    def walk(self) -> Iterator[Widget]:
        """Yield the widget and all that it holds, from the top of the screen down."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, object]:
        """Return the tree as JSON values; boxes are [x1, y1, x2, y2] in pixels."""
        box = [self.box.x1, self.box.y1, self.box.x2, self.box.y2]
        children = [child.to_dict() for child in self.children]
        return {"type": self.type, "text": self.text, "box": box, "state": self.state, "children": children}


@dataclass(frozen=True)
class Screen:
    """A drawn screen.

    Args:
        kind: one of KINDS.
        layout: one of LAYOUTS[kind].
        letter_height: of capitals of ordinary text, in pixels.
        root: the widget tree; its root is of type "screen".
        word_boxes: everything written.
    """

    image: Image.Image
    kind: str
    layout: str
    font: str
    letter_height: int
    root: Widget
    word_boxes: tuple[Word, ...]

    @property
    def widgets(self) -> tuple[Widget, ...]:
        return tuple(self.root.walk())[1:]


def draw_screen(
    *, seed: int, split: str, index: int, kind: str | None = None, size: int = 448, letter_height: int | None = None
) -> Screen:
    """Draw screen number `index` of a split.

    Args:
        seed: seed of the series.
        split: "train", "validation" or "test".
        index: number in the series.
        kind: one of KINDS; in turn by default.
        size: height in pixels, at least 320; screens are half as wide, rounded up to 9 : 16.
        letter_height: of capitals of ordinary text in pixels; by default drawn from 7 to 11 at a size of 448.

    Raises:
        UserError: the split or kind is unknown, a size is out of range, or matplotlib's fonts are missing.
    """
    choose(split, SPLITS, "split")
    kind = KINDS[index % len(KINDS)] if kind is None else choose(kind, KINDS, "kind")
    if size < 320:
        raise UserError(f"size: screens must be at least 320 pixels high (got {size})")
    rng = generator("screen", seed, split, index, kind)
    low, high = (round(letters * size / 448) for letters in _LETTERS)
    # Drawn even if the height is given, so that all later draws are the same as without it.
    letters = int(rng.integers(low, high + 1))
    if letter_height is not None:
        if not 4 <= letter_height <= size // 32:
            raise UserError(
                f"letter_height: expected 4 to {size // 32} pixels at a size of {size} (got {letter_height})"
            )
        letters = letter_height
    dark = rng.random() < 0.3
    paper = as_color(rng.integers(10, 45, 3) if dark else rng.integers(236, 256, 3))
    ink = as_color(rng.integers(215, 256, 3) if dark else rng.integers(0, 60, 3))
    font = pick(rng, tuple(FONTS))
    width = -(-size * 9 // 16)
    sheet = Sheet(width, size, font=font, size=find_font_size(font, letters), paper=paper, ink=ink)
    builder = _Builder(rng, sheet, held_out=split == "test", layout=pick(rng, LAYOUTS[kind][split == "test"]))
    builder.draw_bar()
    _DRAWERS[kind](builder)
    root = Widget("screen", builder.title, PixelBox(0.0, 0.0, float(width), float(size)), "", tuple(builder.widgets))
    image = sheet.finish(rng, noise=float(rng.uniform(0, 2)))
    return Screen(image, kind, builder.layout, font, letters, root, tuple(sheet.word_boxes))


@functools.cache
def load_icons(*, held_out: bool) -> dict[str, Cutout]:
    """Return {word: cut-out} for the nouns that a cut-out shows."""
    nouns = set(questions.list_nouns(held_out=held_out))
    # Tests use seen cut-outs as well: what test screens hold out are words of the lexicon.
    concepts = [concept for family in load_pool(SEEN).families for concept in family]
    return {concept[0].name: concept[0] for concept in concepts if concept[0].name in nouns}


class _Builder:
    """Draws widgets from the top of the screen down; `y` is where the next begins."""

    def __init__(self, rng: np.random.Generator, sheet: Sheet, *, held_out: bool, layout: str) -> None:
        self.rng, self.sheet, self.layout, self.held_out = rng, sheet, layout, held_out
        self.width, self.height = sheet.image.size
        self.unit = sheet.size
        # Dark on light paper and light on dark, so that a selected tab can be read.
        self.accent = as_color(rng.integers(20, 150, 3) if sum(sheet.paper) > 380 else rng.integers(90, 200, 3))
        self.rule = mix(sheet.paper, sheet.ink, 0.25)
        self.margin = round(0.05 * self.width)
        self.widgets: list[Widget] = []
        nouns = questions.list_nouns(held_out=held_out)
        adjectives = questions.split_names(questions.ADJECTIVES, held_out=held_out)
        labels = [noun.capitalize() for noun in pick_some(rng, nouns, 60)]
        # Two words at times; a noun is used once, so that every text is on the screen once.
        self.labels = [f"{pick(rng, adjectives).capitalize()} {n.lower()}" if rng.random() < 0.3 else n for n in labels]
        self.title = ""
        self.y = 0.0

    def coin(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def next_label(self, room: float) -> str:
        """Take the next label that fits into `room` pixels."""
        index = next((i for i, label in enumerate(self.labels) if self.sheet.measure(label) <= room), None)
        # Nothing fits only if letters are huge: then the shortest.
        index = min(range(len(self.labels)), key=lambda i: len(self.labels[i])) if index is None else index
        return self.labels.pop(index)

    def box(self, x1: float, y1: float, x2: float, y2: float) -> PixelBox:
        return PixelBox(*(float(round(edge)) for edge in (x1, y1, x2, y2)))

    def rectangle(
        self, box: PixelBox, *, fill: Color | None = None, outline: Color | None = None, round_by: float = 0
    ) -> None:
        # The lower right corner of Pillow is inside: a box of pixels ends one before.
        corners = (box.x1, box.y1, box.x2 - 1, box.y2 - 1)
        self.sheet.pen.rounded_rectangle(corners, radius=round_by, fill=fill, outline=outline)

    def draw_bar(self) -> None:
        """Draw the status line with the time, and the title."""
        time = f"{int(self.rng.integers(0, 24))}:{int(self.rng.integers(0, 60)):02d}"
        self.sheet.write(self.width - self.margin, 1.2 * self.unit, time, align="right", scale=0.8)
        # The title is written 1.3 times as large as a label is measured.
        self.title = self.next_label((self.width - 2 * self.margin) / 1.3)
        title = self.sheet.write(self.margin, 3.0 * self.unit, self.title, bold=True, scale=1.3)
        self.widgets.append(Widget("title", self.title, enclose(title)))
        self.y = 3.8 * self.unit
        self.sheet.pen.line((0, self.y, self.width, self.y), fill=self.rule)

    def has_room(self, height: float) -> bool:
        # The bar of tabs takes 2.6 units at the lower edge.
        return self.y + height <= self.height - 3.2 * self.unit

    def draw_switch(self, x: float, y: float, text: str) -> Widget:
        """Draw a switch at its left upper corner."""
        is_on, height = self.coin(), round(1.2 * self.unit)
        box = self.box(x, y, x + 1.9 * height, y + height)
        self.rectangle(
            box, fill=self.accent if is_on else mix(self.sheet.paper, self.sheet.ink, 0.35), round_by=height / 2
        )
        left = box.x2 - height + 1 if is_on else box.x1 + 1
        self.sheet.pen.ellipse((left, box.y1 + 1, left + height - 3, box.y2 - 2), fill=(250, 250, 250))
        return Widget("switch", text, box, "on" if is_on else "off")

    def draw_check_box(self, x: float, y: float, text: str) -> Widget:
        is_checked, side = self.coin(), round(1.2 * self.unit)
        box = self.box(x, y, x + side, y + side)
        self.rectangle(box, fill=self.accent if is_checked else None, outline=self.sheet.ink, round_by=2)
        if is_checked:
            mark = [(0.22, 0.52), (0.42, 0.72), (0.8, 0.26)]
            points = [(box.x1 + side * u, box.y1 + side * v) for u, v in mark]
            self.sheet.pen.line(points, fill=(250, 250, 250), width=max(2, side // 7))
        return Widget("check box", text, box, "checked" if is_checked else "unchecked")

    def draw_button(self, text: str, y: float) -> Widget:
        width = self.sheet.measure(text, bold=True) + 2.4 * self.unit
        box = self.box((self.width - width) / 2, y, (self.width + width) / 2, y + 2.2 * self.unit)
        self.rectangle(box, fill=self.accent, round_by=self.unit * float(self.rng.choice([0.3, 1.1])))
        self.sheet.write(self.width / 2, y + 1.5 * self.unit, text, align="center", bold=True, color=(250, 250, 250))
        return Widget("button", text, box)

    def draw_tabs(self) -> None:
        """Draw the bar at the lower edge; one tab is selected."""
        top, count = self.height - 2.6 * self.unit, 3
        selected, step = int(self.rng.integers(count)), self.width / count
        self.sheet.pen.line((0, top, self.width, top), fill=self.rule)
        tabs = []
        for i in range(count):
            text = self.next_label(step - 0.8 * self.unit)
            box = self.box(step * i, top, step * (i + 1), self.height)
            color = self.accent if i == selected else mix(self.sheet.paper, self.sheet.ink, 0.7)
            if i == selected:
                self.rectangle(replace(box, y2=float(round(top + 0.35 * self.unit))), fill=self.accent)
            self.sheet.write(
                step * (i + 0.5), top + 1.7 * self.unit, text, align="center", bold=i == selected, color=color
            )
            tabs.append(Widget("tab", text, box, "selected" if i == selected else ""))
        box = self.box(0, top, self.width, self.height)
        self.widgets.append(Widget("tab bar", "", box, "", tuple(tabs)))


def _draw_settings(builder: _Builder) -> None:
    row, unit, right = 2.8 * builder.unit, builder.unit, builder.layout == "switches right"
    draw = builder.draw_switch if builder.rng.random() < 0.7 else builder.draw_check_box
    count = int(builder.rng.integers(3, 9))
    while count and builder.has_room(row):
        text = builder.next_label(builder.width - 2 * builder.margin - 3.5 * unit)
        x = builder.width - builder.margin - 2.4 * unit if right else builder.margin
        control = draw(x, builder.y + 0.8 * unit, text)
        builder.sheet.write(builder.margin if right else builder.margin + 3.2 * unit, builder.y + 1.8 * unit, text)
        box = builder.box(0, builder.y, builder.width, builder.y + row)
        # A row and its control have one text; their types tell them apart.
        builder.widgets.append(Widget("list item", text, box, "", (control,)))
        builder.y += row
        builder.sheet.pen.line(
            (builder.margin, builder.y, builder.width - builder.margin, builder.y), fill=builder.rule
        )
        count -= 1
    builder.draw_tabs()


def _draw_form(builder: _Builder) -> None:
    unit, left = builder.unit, builder.layout == "labels left"
    names = questions.split_names(questions.FIRST_NAMES, held_out=builder.held_out)
    count = int(builder.rng.integers(2, 6))
    start = builder.margin + (7.5 * unit if left else 0)
    step = 3.4 * unit if left else 4.8 * unit
    while count and builder.has_room(step + 3 * unit):
        text = builder.next_label(7 * unit if left else builder.width - 2 * builder.margin)
        builder.sheet.write(builder.margin, builder.y + (2.1 if left else 1.5) * unit, text)
        top = builder.y + (0.8 if left else 2.0) * unit
        box = builder.box(start, top, builder.width - builder.margin, top + 2.2 * unit)
        builder.rectangle(box, outline=builder.sheet.ink, round_by=3)
        filled = builder.coin()
        if filled:
            builder.sheet.write(box.x1 + 0.6 * unit, top + 1.5 * unit, pick(builder.rng, names))
        # The field is named by its label; what is written in it only fills it.
        builder.widgets.append(Widget("text field", text, box, "filled" if filled else "empty"))
        builder.y += step
        count -= 1
    if builder.has_room(2.4 * unit):
        text = builder.next_label(builder.width - 2 * builder.margin - 2 * unit)
        box = builder.draw_check_box(builder.margin, builder.y + unit, text)
        builder.sheet.write(builder.margin + 1.9 * unit, builder.y + 2.0 * unit, text)
        builder.widgets.append(box)
        builder.y += 2.4 * unit
    text = builder.next_label(0.6 * builder.width)
    builder.widgets.append(builder.draw_button(text, max(builder.y + 0.6 * unit, builder.height - 2.8 * unit)))


def _draw_list(builder: _Builder) -> None:
    unit, row = builder.unit, 3.4 * builder.unit
    icons = load_icons(held_out=builder.held_out)
    count, number = int(builder.rng.integers(3, 9)), 0
    while count and builder.has_room(row):
        text = builder.next_label(builder.width - 2 * builder.margin - 4.5 * unit)
        box = builder.box(0, builder.y, builder.width, builder.y + row)
        if builder.layout == "cards":
            box = builder.box(
                builder.margin / 2, builder.y + 0.2 * unit, builder.width - builder.margin / 2, builder.y + row
            )
            builder.rectangle(
                box, fill=mix(builder.sheet.paper, builder.sheet.ink, 0.08), outline=builder.rule, round_by=6
            )
        elif builder.layout == "stripes" and number % 2:
            builder.rectangle(box, fill=mix(builder.sheet.paper, builder.sheet.ink, 0.08))
        # Icons may repeat: only a widget that is there once is asked for by its name.
        name = pick(builder.rng, list(icons))
        icon = _paste_icon(builder, icons[name], builder.margin, builder.y + 0.6 * unit, round(2.4 * unit), name)
        builder.sheet.write(builder.margin + 3.4 * unit, builder.y + 2.2 * unit, text)
        builder.widgets.append(Widget("list item", text, box, "", (icon,)))
        builder.y += row
        if builder.layout == "lines":
            builder.sheet.pen.line((builder.margin, builder.y, builder.width, builder.y), fill=builder.rule)
        count, number = count - 1, number + 1
    builder.draw_tabs()


def _draw_grid(builder: _Builder) -> None:
    columns = 3 if builder.layout == "three columns" else 2
    step, unit = builder.width / columns, builder.unit
    side = round(min(0.5 * step, 5 * unit))
    icons = load_icons(held_out=builder.held_out)
    # Icons avoid the words of the title, and tabs those of the icons: each text is on the screen once.
    free = [name for name in icons if name not in builder.title.lower().split()]
    names = [name for name in pick_some(builder.rng, free, 40) if builder.sheet.measure(name) < step - 0.5 * unit]
    number, count = 0, int(builder.rng.integers(3, 4 * columns + 1))
    while number < min(count, len(names)) and builder.has_room(side + 3 * unit):
        for column in range(columns):
            if number == min(count, len(names)):
                break
            x = step * (column + 0.5)
            icon = _paste_icon(
                builder, icons[names[number]], x - side / 2, builder.y + unit, side, names[number].capitalize()
            )
            builder.sheet.write(x, builder.y + side + 2.2 * unit, names[number].capitalize(), align="center")
            builder.widgets.append(icon)
            number += 1
        builder.y += side + 3 * unit
    builder.labels = [label for label in builder.labels if label.lower() not in names]
    builder.draw_tabs()


def _paste_icon(builder: _Builder, cutout: Cutout, x: float, y: float, side: int, text: str) -> Widget:
    image = cutout.image()
    scale = side / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, top = round(x + (side - image.width) / 2), round(y + (side - image.height) / 2)
    builder.sheet.image.paste(image, (left, top), image)
    return Widget("icon", text, builder.box(left, top, left + image.width, top + image.height))


_DRAWERS: dict[str, Callable[[_Builder], None]] = {
    "settings": _draw_settings,
    "form": _draw_form,
    "list": _draw_list,
    "grid": _draw_grid,
}
