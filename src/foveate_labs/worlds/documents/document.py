"""Draw documents with exact contents: pages of text, tables, bar and line charts, receipts.

`draw_document` is a pure function of its arguments. Test documents have layouts and words that training lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.core.errors import UserError, choose
from foveate.core.seeds import generator, pick
from foveate_labs.worlds import questions
from foveate_labs.worlds.questions import pick_some
from foveate_labs.worlds.scenes.pools import SPLITS
from foveate_labs.worlds.sheets import FONTS, Sheet, Word, as_color, draw_colors, find_font_size, mix

# Layouts of training, and those that only test documents have.
LAYOUTS = {
    "page": (("left", "justified"), ("two columns",)),
    "table": (("lines", "stripes"), ("open",)),
    "bar chart": (("vertical", "vertical with values"), ("horizontal with values",)),
    "line chart": (("marks", "plain"), ("filled",)),
    "receipt": (("dots", "spaces"), ("boxed",)),
}
KINDS = tuple(LAYOUTS)
_ASPECTS = {"page": 1.25, "table": 0.75, "bar chart": 0.75, "line chart": 0.75, "receipt": 1.4}  # height to width
_LETTERS = (7, 14)  # heights of ordinary capitals in pixels at a side of 448


@dataclass(frozen=True)
class Text:
    """A page: its title and its lines, each with the words as drawn."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table or a chart: `values[i][j]` belongs to rows[i] and columns[j]; a chart has one column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Receipt:
    """A receipt: prices are written in units with two decimals."""

    shop: str
    date: str
    items: tuple[tuple[str, str], ...]
    total: str


Content = Text | Table | Receipt


@dataclass(frozen=True)
class Document:
    """A drawn document.

    Args:
        kind: one of KINDS.
        layout: one of LAYOUTS[kind].
        letter_height: of capitals of ordinary text, in pixels.
        word_boxes: everything written, in the order of drawing.
    """

    image: Image.Image
    kind: str
    layout: str
    font: str
    letter_height: int
    content: Content
    word_boxes: tuple[Word, ...]

    @property
    def transcript(self) -> str:
        """The text of the document, line by line."""
        lines: dict[int, list[str]] = {}
        for word in self.word_boxes:
            lines.setdefault(word.line, []).append(word.text)
        return "\n".join(" ".join(line) for line in lines.values())


def draw_document(
    *, seed: int, split: str, index: int, kind: str | None = None, size: int = 448, letter_height: int | None = None
) -> Document:
    """Draw document number `index` of a split.

    Args:
        seed: seed of the series.
        split: "train", "validation" or "test".
        index: number in the series.
        kind: one of KINDS; in turn by default.
        size: the longer side in pixels, at least 224.
        letter_height: of capitals of ordinary text in pixels; by default drawn from 7 to 14 at a size of 448, as many
            of each. The number of lines and rows follows from it.

    Raises:
        UserError: the split or kind is unknown, a size is out of range, or matplotlib's fonts are missing.
    """
    choose(split, SPLITS, "split")
    kind = KINDS[index % len(KINDS)] if kind is None else choose(kind, KINDS, "kind")
    if size < 224:
        raise UserError(f"size: documents must be at least 224 pixels long (got {size})")
    rng = generator("document", seed, split, index, kind)
    held_out = split == "test"
    low, high = (round(letters * size / 448) for letters in _LETTERS)
    # Drawn also where the height is given: what follows is then the same as without it.
    letters = int(rng.integers(low, high + 1))
    if letter_height is not None:
        if not 4 <= letter_height <= size // 16:
            raise UserError(
                f"letter_height: expected 4 to {size // 16} pixels at a size of {size} (got {letter_height})"
            )
        letters = letter_height
    aspect = _ASPECTS[kind]
    width, height = (size, round(size * aspect)) if aspect < 1 else (round(size / aspect), size)
    paper, ink = draw_colors(rng)
    font = pick(rng, tuple(FONTS))
    sheet = Sheet(width, height, font=font, size=find_font_size(font, letters), paper=paper, ink=ink)
    layout = pick(rng, LAYOUTS[kind][held_out])
    content = _DRAWERS[kind](rng, sheet, layout, held_out)
    image = sheet.finish(rng, noise=float(rng.uniform(0, 5)))
    return Document(image, kind, layout, font, letters, content, tuple(sheet.word_boxes))


def _draw_page(rng: np.random.Generator, sheet: Sheet, layout: str, held_out: bool) -> Text:
    nouns = questions.list_nouns(held_out=held_out)
    width, height = sheet.image.size
    margin = round(0.06 * width)
    title = " ".join(word.capitalize() for word in [pick(rng, questions.ADJECTIVES), pick(rng, nouns)])
    y = margin + 1.6 * sheet.size
    sheet.write(
        width / 2 if layout == "two columns" else margin,
        y,
        title,
        scale=1.5,
        bold=True,
        align="center" if layout == "two columns" else "left",
    )
    columns = 2 if layout == "two columns" else 1
    gap = margin if columns == 2 else 0
    room = (width - 2 * margin - gap) / columns
    lines: list[str] = []
    for column in range(columns):
        left, base = margin + column * (room + gap), y + 1.2 * sheet.leading
        while base < height - margin:
            sentence = _fill_line(rng, sheet, nouns, room)
            if layout == "justified":
                free = room - sheet.measure(" ".join(sentence))
                _write_spread(sheet, left, base, sentence, free)
            else:
                sheet.write(left, base, " ".join(sentence))
            lines.append(" ".join(sentence))
            base += sheet.leading
    return Text(title, tuple(lines))


def _fill_line(rng: np.random.Generator, sheet: Sheet, nouns: tuple[str, ...], room: float) -> list[str]:
    """Draw the words of one sentence that fit a line, at least one."""
    sentence = [pick(rng, ["the", "every", "no", "this"]), pick(rng, questions.ADJECTIVES), pick(rng, nouns)]
    sentence += [pick(rng, questions.VERBS), pick(rng, ["the", "one", "some"]), pick(rng, questions.ADJECTIVES)]
    sentence += [pick(rng, nouns), pick(rng, ["near", "behind", "for", "with"]), "the", pick(rng, nouns)]
    while len(sentence) > 1 and sheet.measure(" ".join(sentence)) > room:
        sentence.pop()
    return sentence


def _write_spread(sheet: Sheet, left: float, base: float, sentence: list[str], free: float) -> None:
    """Write a sentence over the whole width, as one line."""
    # `write` counts every call as a line; resetting the number keeps the words in one line of the transcript.
    line, gap = sheet.lines, sheet.measure(" ") + free / max(1, len(sentence) - 1)
    for word in sentence:
        sheet.lines = line
        sheet.write(left, base, word)
        left += sheet.measure(word) + gap


def _draw_table(rng: np.random.Generator, sheet: Sheet, layout: str, held_out: bool) -> Table:
    width, height = sheet.image.size
    margin, step = round(0.04 * width), round(1.9 * sheet.size)
    names = pick_some(rng, questions.split_names(questions.FIRST_NAMES, held_out=held_out), 99)
    heads = pick_some(rng, [noun.capitalize() for noun in questions.list_nouns(held_out=held_out) if len(noun) <= 6], 5)
    # Measured over all names, because the number of rows is decided further down.
    first = max(sheet.measure(name) for name in names) + 2 * sheet.size
    cell = max(sheet.measure(head, bold=True) for head in heads) + 1.2 * sheet.size
    num_columns = min(len(heads), int((width - 2 * margin - first) // cell))
    num_rows = min(len(names), int((height - 2 * margin - 2.4 * sheet.size) // step) - 1, 12)
    # At least two rows, however large the letters are: questions compare two of them.
    columns, rows = heads[: max(1, num_columns)], names[: max(2, num_rows)]
    rows = rows[: int(rng.integers(min(3, len(rows)), len(rows) + 1))]
    values = [[str(int(rng.integers(1, 1000))) for _ in columns] for _ in rows]
    title = f"{pick(rng, questions.PLACES)} {pick(rng, ['results', 'stock', 'orders', 'points'])}"
    y = margin + 1.2 * sheet.size
    sheet.write(margin, y, title, bold=True, scale=1.2)
    rule = mix(sheet.paper, sheet.ink, 0.45)
    right = margin + first + cell * len(columns)
    top = y + 0.8 * sheet.size
    for number in range(len(rows) + 1):
        base = top + step * number + 0.68 * step
        if layout == "stripes" and number % 2:
            box = (margin, top + step * number, right, top + step * (number + 1))
            sheet.pen.rectangle(box, fill=mix(sheet.paper, sheet.ink, 0.12))
        cells = columns if number == 0 else values[number - 1]
        if number:
            sheet.write(margin + 0.4 * sheet.size, base, rows[number - 1])
        for j, text in enumerate(cells):
            sheet.write(margin + first + cell * (j + 1) - 0.4 * sheet.size, base, text, align="right", bold=number == 0)
        if layout == "lines" or (layout == "open" and number in (0, len(rows))):
            sheet.pen.line((margin, top + step * (number + 1), right, top + step * (number + 1)), fill=rule)
    if layout == "lines":
        for x in (margin, margin + first, *(margin + first + cell * (j + 1) for j in range(len(columns)))):
            sheet.pen.line((x, top, x, top + step * (len(rows) + 1)), fill=rule)
    return Table(title, tuple(columns), tuple(rows), tuple(map(tuple, values)))


def _draw_values(rng: np.random.Generator, count: int) -> list[int]:
    """Draw different multiples of 5 from 5 to 100, so that bars differ visibly."""
    return [5 * (int(step) + 1) for step in rng.permutation(20)[:count]]


def _draw_bars(rng: np.random.Generator, sheet: Sheet, layout: str, held_out: bool) -> Table:
    names = [n for n in questions.list_nouns(held_out=held_out) if len(n) <= 7]
    horizontal, with_values = layout.startswith("horizontal"), layout.endswith("values")
    width, height = sheet.image.size
    margin = round(0.05 * width)
    title = f"{pick(rng, questions.PLACES)} {pick(rng, ['sales', 'visits', 'deliveries'])}"
    sheet.write(width / 2, margin + sheet.size, title, align="center", bold=True, scale=1.2)
    labels = pick_some(rng, names, int(rng.integers(3, 7)))
    widest = max(sheet.measure(label) for label in labels)
    left = margin + (widest if horizontal else sheet.measure("100")) + 0.8 * sheet.size
    box = (
        left,
        margin + 2.4 * sheet.size,
        width - margin - 2 * sheet.size * horizontal,
        height - margin - 1.6 * sheet.size,
    )
    room = (box[3] - box[1]) / (1.4 * sheet.size) if horizontal else (box[2] - box[0]) / (widest + 0.6 * sheet.size)
    # At least two bars: questions compare two of them.
    labels = labels[: max(2, int(room))]
    values = _draw_values(rng, len(labels))
    _draw_axis(sheet, box, horizontal=horizontal)
    fill = as_color(rng.integers(40, 215, 3))
    step = ((box[3] - box[1]) if horizontal else (box[2] - box[0])) / len(labels)
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        if horizontal:
            middle, end = box[1] + step * (i + 0.5), box[0] + (box[2] - box[0]) * value / 100
            sheet.pen.rectangle((box[0], middle - 0.32 * step, end, middle + 0.32 * step), fill=fill)
            sheet.write(box[0] - 0.5 * sheet.size, middle + 0.35 * sheet.size, label, align="right")
            sheet.write(end + 0.3 * sheet.size, middle + 0.35 * sheet.size, str(value))
        else:
            middle, end = box[0] + step * (i + 0.5), box[3] - (box[3] - box[1]) * value / 100
            sheet.pen.rectangle((middle - 0.32 * step, end, middle + 0.32 * step, box[3]), fill=fill)
            sheet.write(middle, box[3] + 1.3 * sheet.size, label, align="center")
            if with_values:
                sheet.write(middle, end - 0.3 * sheet.size, str(value), align="center")
    return Table(title, ("value",), tuple(labels), tuple((str(value),) for value in values))


def _draw_axis(sheet: Sheet, box: tuple[float, float, float, float], *, horizontal: bool) -> None:
    left, top, right, bottom = box
    grid = mix(sheet.paper, sheet.ink, 0.2)
    for value in (0, 20, 40, 60, 80, 100):
        if horizontal:
            x = left + (right - left) * value / 100
            sheet.pen.line((x, top, x, bottom), fill=grid)
            sheet.write(x, bottom + 1.3 * sheet.size, str(value), align="center")
        else:
            y = bottom - (bottom - top) * value / 100
            sheet.pen.line((left, y, right, y), fill=grid)
            sheet.write(left - 0.4 * sheet.size, y + 0.35 * sheet.size, str(value), align="right")
    sheet.pen.line((left, bottom, right, bottom) if not horizontal else (left, top, left, bottom), fill=sheet.ink)


def _draw_line(rng: np.random.Generator, sheet: Sheet, layout: str, held_out: bool) -> Table:
    width, height = sheet.image.size
    margin = round(0.05 * width)
    title = f"{pick(rng, questions.PLACES)} {pick(rng, ['visitors', 'temperature', 'orders'])}"
    sheet.write(width / 2, margin + sheet.size, title, align="center", bold=True, scale=1.2)
    left = margin + sheet.measure("100") + 0.8 * sheet.size
    box = (left, margin + 2.4 * sheet.size, width - margin - sheet.size, height - margin - 1.6 * sheet.size)
    first = int(rng.integers(1950, 1985)) if held_out else int(rng.integers(1990, 2018))
    count = min(int(rng.integers(4, 8)), int((box[2] - box[0]) / (sheet.measure("2000") + 0.8 * sheet.size)) + 1)
    count = max(3, count)
    years = [str(first + i) for i in range(count)]
    # The axis always ends at 100, the largest value that is drawn.
    values = _draw_values(rng, count)
    _draw_axis(sheet, box, horizontal=False)
    color = as_color(rng.integers(30, 200, 3))
    xs = [box[0] + (box[2] - box[0]) * (i + 0.5) / count for i in range(count)]
    ys = [box[3] - (box[3] - box[1]) * value / 100 for value in values]
    if layout == "filled":
        outline = [(xs[0], box[3]), *zip(xs, ys, strict=True), (xs[-1], box[3])]
        sheet.pen.polygon(outline, fill=mix(sheet.paper, color, 0.4))
    thickness = max(2, math.ceil(sheet.size / 8))
    sheet.pen.line(list(zip(xs, ys, strict=True)), fill=color, width=thickness)
    for x, y, year in zip(xs, ys, years, strict=True):
        if layout == "marks":
            radius = 1.6 * thickness
            sheet.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        sheet.write(x, box[3] + 1.3 * sheet.size, year, align="center")
    return Table(title, ("value",), tuple(years), tuple((str(value),) for value in values))


def _draw_receipt(rng: np.random.Generator, sheet: Sheet, layout: str, held_out: bool) -> Receipt:
    width, height = sheet.image.size
    margin = round(0.07 * width)
    names = questions.split_names(questions.LAST_NAMES, held_out=held_out)
    shop = f"{pick(rng, names)} {pick(rng, questions.PLACES)}"
    # Days up to 28, which every month has.
    date = f"{int(rng.integers(1, 29)):02d} {pick(rng, questions.MONTHS)} {int(rng.integers(2005, 2026))}"
    y = margin + 1.3 * sheet.size
    sheet.write(width / 2, y, shop, align="center", bold=True, scale=1.3)
    sheet.write(width / 2, y + sheet.leading, date, align="center")
    y += 2.6 * sheet.leading
    # Three lines are left for the total and the gaps around it.
    num_rows = max(2, int((height - margin - y) // sheet.leading) - 3)
    num_items = min(int(rng.integers(2, 13)), num_rows)
    # Whole cents: sums of decimal fractions would not end at two decimals.
    cents = [int(price) for price in rng.integers(50, 10_000, num_items)]
    room = width - 2 * margin - sheet.measure("1000.00") - 2 * sheet.size
    nouns = [noun for noun in questions.list_nouns(held_out=held_out) if sheet.measure(noun) <= room]
    items = list(zip(pick_some(rng, nouns, num_items), cents, strict=False))
    total = sum(price for _, price in items)
    top = y - sheet.leading
    for name, price in [*items, ("total", total)]:
        last = name == "total"
        y += 0.6 * sheet.leading * last
        text = f"{price // 100}.{price % 100:02d}"
        sheet.write(margin + sheet.size / 2, y, name.upper() if last else name, bold=last)
        sheet.write(width - margin - sheet.size / 2, y, text, align="right", bold=last)
        if layout == "dots":
            start = margin + sheet.size + sheet.measure(name.upper() if last else name, bold=last)
            end = width - margin - sheet.size - sheet.measure(text, bold=last)
            for x in np.arange(start, end, max(3, sheet.size / 3)):
                sheet.pen.point((x, y - 1), fill=sheet.ink)
        y += sheet.leading
    if layout == "boxed":
        sheet.pen.rectangle((margin, top, width - margin, y - 0.5 * sheet.leading), outline=sheet.ink)
    items_text = tuple((name, f"{price // 100}.{price % 100:02d}") for name, price in items)
    return Receipt(shop, date, items_text, f"{total // 100}.{total % 100:02d}")


_DRAWERS: dict[str, Callable[[np.random.Generator, Sheet, str, bool], Content]] = {
    "page": _draw_page,
    "table": _draw_table,
    "bar chart": _draw_bars,
    "line chart": _draw_line,
    "receipt": _draw_receipt,
}
