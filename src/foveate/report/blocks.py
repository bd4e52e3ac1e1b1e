"""Blocks that a result is told in (facts, tables, charts, notes): the page draws them, the terminal prints them.

A page made of blocks needs no template of its own:

```python
block_page(
    "Methods compared",
    eyebrow="Comparison",
    top=[Text("Highest mean accuracy: lora."), Facts([("Seeds", "3")])],
    sections=[Section("numbers", "Accuracy", [Table(["Method", "Accuracy"], [["lora", "61.2 %"]])])],
)
```

Every number of the terminal is a cell or a fact of the page, so the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from markupsafe import Markup

from foveate.core.results import Column, Row
from foveate.report import numbers
from foveate.report.page import Page, command_text
from foveate.report.parts import TableGroup, TableLine, table_groups

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `kind` is "lead" or "strong", which the terminal prints, or a class of the style sheet."""

    text: str | Markup
    kind: str = "lead"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with their values; pairs without a value are left out. `of`: what the terminal calls their section."""

    pairs: Sequence[tuple[str, str]]
    of: str = ""


@dataclass(frozen=True, slots=True)
class Warnings:
    """Sentences that a reader must know before anything else."""

    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Notes:
    """A list of sentences."""

    sentences: Sequence[str]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table, with a second line in small print."""

    text: str
    note: str = ""
    strong: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first cell of a row is its name.

    Attributes:
        left: columns that hold words, by number; the first always does.
        meanings: what the heads mean, listed below the table.
        printed: whether the terminal shows it; details are for the page alone.
        max_printed: rows that the terminal shows; None: all.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    note: str = ""
    left: Sequence[int] = ()
    meanings: Sequence[tuple[str, str]] = ()
    printed: bool = False
    max_printed: int | None = None


@dataclass(frozen=True, slots=True)
class Charts:
    """Drawings side by side; `kind` is "plots", "maps", "cards", "wide", or "list" for one below the other."""

    drawings: Sequence[Markup]
    kind: str = "plots"
    title: str = ""
    legend: Markup = Markup("")


@dataclass(frozen=True, slots=True)
class Chips:
    """Short texts side by side, such as names of classes."""

    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are folded away behind a summary."""

    summary: str
    blocks: Sequence[Block]
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Measures:
    """Values with their intervals by question, see `measures_of`; `meanings` of the columns stand below."""

    groups: Sequence[TableGroup]
    interval: str
    meanings: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """HTML that no other block draws, such as images beside marked texts, and the lines that the terminal prints."""

    html: Markup
    lines: Sequence[str] = ()


Block: TypeAlias = Text | Facts | Warnings | Notes | Table | Charts | Chips | Fold | Measures | Drawn


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading that the bar on top links to; left out where it has no blocks."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""
    link: str = ""


def block_page(
    title: str,
    *,
    eyebrow: str,
    top: Sequence[Block],
    sections: Sequence[Section],
    heading: str | Markup = "",
    command: str | list[str] = "",
) -> Page:
    """Return a page of blocks.

    Args:
        title: of the window, and of the page unless there is a `heading`.
        top: blocks below the heading, warnings above it.
    """
    context: dict[str, Any] = {
        "eyebrow": eyebrow,
        "heading": heading or title,
        "top": top,
        "sections": [section for section in sections if section.blocks],
        "command": command_text(command),
    }
    return Page("blocks.html.j2", title, context)


def table_of(
    names: Sequence[str],
    measures: Mapping[str, tuple[str, str]],
    rows: Sequence[tuple[Sequence[str], Mapping[str, str]]],
) -> Table:
    """Return a table with a column for each of `measures` that any row has.

    Args:
        names: heads of the columns around the measures: the first stands before them, the others behind.
        measures: key -> head and meaning.
        rows: the cells of `names`, and the measured cells by key; a dash stands where one is missing.
    """
    keys = [key for key in measures if any(key in cells for _, cells in rows)]
    return Table(
        [names[0], *(measures[key][0] for key in keys), *names[1:]],
        [[first, *(cells.get(key, "–") for key in keys), *others] for (first, *others), cells in rows],
        meanings=[measures[key] for key in keys],
        printed=True,
    )


def columns_of(items: Sequence[T], columns: Iterable[tuple[str, Callable[[T], str | Cell]]], **options: Any) -> Table:
    """Return a table with a row for each item, from the heads of its columns and how their cells are made."""
    heads, makers = zip(*columns, strict=True)
    return Table(list(heads), [[make(item) for make in makers] for item in items], **options)


def charts_of(drawings: Sequence[Markup], kind: str = "plots", title: str = "") -> list[Block]:
    """Return a block of drawings; nothing without any."""
    return [Charts(drawings, kind, title)] if drawings else []


def measures_of(rows: Sequence[Row], columns: Sequence[Column], interval: str) -> list[Block]:
    """Return the table of measured rows with the meanings of its columns; nothing without rows."""
    meanings = [(column.title, column.what) for column in columns if column.what]
    return [Measures(table_groups(rows, columns), interval, meanings)] if rows else []


def print_lines(page: Page) -> list[str]:
    """Return the lines of a page of blocks for a terminal: warnings, title, what stands on top, printed tables."""
    blocks = [*page.context["top"], *(block for section in page.context["sections"] for block in section.blocks)]
    # Warnings and strong texts come first, wherever they stand: whoever reads no further must know them.
    urgent, others = (
        [line for block in blocks if _is_urgent(block) is first for line in _lines(block)] for first in (True, False)
    )
    return [*urgent, page.title, *others]


def _is_urgent(block: Block) -> bool:
    return isinstance(block, Warnings) or (isinstance(block, Text) and block.kind == "strong")


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Warnings):
        yield from (f"warning: {sentence}" for sentence in block.sentences)
    elif isinstance(block, Text) and block.kind in ("lead", "strong") and block.text:
        yield _plain(block.text)
    elif isinstance(block, Facts):
        facts = " · ".join(f"{name}: {value}" for name, value in block.pairs if value)
        if facts:
            yield f"{block.of}: {facts}" if block.of else facts
    elif isinstance(block, Notes):
        yield from (f"note: {_plain(sentence)}" for sentence in block.sentences)
    elif isinstance(block, Table) and block.printed and block.rows:
        rest = 0 if block.max_printed is None else len(block.rows) - block.max_printed
        yield from _align([block.heads, *block.rows[: block.max_printed]], {0, *block.left})
        yield from [f"and {rest:,} more, see the page"] if rest > 0 else []
    elif isinstance(block, Drawn):
        yield from block.lines
    elif isinstance(block, Fold) and (inside := [line for inner in block.blocks for line in _lines(inner)]):
        yield from (block.summary, *inside)
    elif isinstance(block, Measures):
        for group in block.groups:
            yield f"{group.question} ({group.detail})" if group.detail else group.question
            rows = [["", *(column.title for column in group.columns), "n", "chance"], *map(_measured, group.lines)]
            known = any(line.chance is not None for line in group.lines)
            yield from _align(rows if known else [row[:-1] for row in rows], {0})


def _measured(line: TableLine) -> list[str]:
    values = [numbers.measure(cell.value, unit=line.unit) for cell in line.cells]
    spans = [numbers.interval(cell.low, cell.high, unit=line.unit) for cell in line.cells]
    cells = [f"{value} ({span})" if span else value for value, span in zip(values, spans, strict=True)]
    return [line.data, *cells, numbers.count(line.n), numbers.measure(line.chance, unit=line.unit)]


def _plain(text: str | Cell) -> str:
    return text.striptags() if isinstance(text, Markup) else str(text)


def _align(rows: Sequence[Sequence[str | Cell]], left: set[int]) -> Iterator[str]:
    texts = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
