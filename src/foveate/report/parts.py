"""Tables, curves, answers and examples, prepared for several pages, and the sections that these share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from foveate.core.errors import UserError
from foveate.core.results import BoxChoice, Column, Example, LocatedPhrase, Row
from foveate.report import words
from foveate.report.charts import Series, line_chart, plot
from foveate.report.images import Overlay, resolve_inside

RIGHT_FROM = 0.5
"""A box is right from this intersection over union on (the field's convention)."""

RULE_ORDER = ("head", "candidates", "center", "random")
# Axes and schedules, whose curves say nothing about how well a training goes.
_NO_CURVES = {"step", "seconds", "time", "learning_rate", "lr", "epoch"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the table; `value` is None where nothing was measured."""

    column: Column
    value: float | None
    low: float | None
    high: float | None
    best: bool
    ours: bool


@dataclass(frozen=True, slots=True)
class TableLine:
    data: str
    n: int | None
    chance: float | None
    unit: str
    maximum: float
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class TableGroup:
    """The rows of one question, with the columns that any of them measures."""

    question: str
    detail: str
    columns: list[Column]
    lines: list[TableLine]


def role(column: Column) -> str:
    """Return `ours`, `baseline` or `control`: the role of the column, else guessed from its key."""
    if column.role:
        return column.role
    if "shuffled" in column.key:
        return "control"
    return "ours" if column.key.startswith("cloc") or column.key in ("head", "candidates") else "baseline"


def split_question(text: str) -> tuple[str, str]:
    """Split `Which phrase? (region -> text R@1)` into the question and the measure."""
    head, bracket, tail = text.rpartition("(")
    if bracket and tail.rstrip().endswith(")"):
        return head.strip(), tail.rstrip()[:-1].replace("->", "→").replace(">=", "≥").strip()
    return text.strip(), ""


def table_groups(rows: Sequence[Row], columns: Sequence[Column]) -> list[TableGroup]:
    """Group rows by question in their order, without the columns that a question does not measure.

    Raises:
        UserError: a value has no column; nothing measured may vanish from the page.
    """
    known = {column.key for column in columns}
    for row in rows:
        stray = sorted(set(row.values) - known)
        if stray:
            raise UserError(f"result.json, field 'columns': the table's '{stray[0]}' is not among them")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.question, []).append(row)
    table = []
    for question, members in groups.items():
        used = [c for c in columns if any(row.values.get(c.key) is not None for row in members)]
        head, detail = split_question(question)
        table.append(TableGroup(head, detail, used, [_table_line(row, used) for row in members]))
    return table


def _table_line(row: Row, columns: Sequence[Column]) -> TableLine:
    values = {column.key: row.values.get(column.key) for column in columns}
    measured = [value.value for value in values.values() if value is not None]
    best = (max if row.best == "highest" else min)(measured, default=None)
    # The bars of a row share a scale, which must hold the ends of intervals and chance as well as the values.
    highs = [v.high if v.high is not None else v.value for v in values.values() if v is not None]
    # Never 0: bars are drawn as shares of it.
    maximum = 1.0 if row.unit == "fraction" else max([*highs, row.chance or 0.0, 1e-12])
    cells = [
        Cell(
            column=column,
            value=None if (entry := values[column.key]) is None else entry.value,
            low=None if entry is None else entry.low,
            high=None if entry is None else entry.high,
            # A value without a rival is not marked as the best.
            best=entry is not None and len(measured) > 1 and entry.value == best,
            ours=role(column) == "ours",
        )
        for column in columns
    ]
    return TableLine(row.data, row.n, row.chance, row.unit, maximum, cells)


def read_metrics(run_folder: Path, relative: str) -> list[dict[str, Any]]:
    """Read a metrics.jsonl; a last line that a crash cut off is left out."""
    path = resolve_inside(run_folder, relative)
    if not path.is_file():
        raise UserError(f"result.json, field 'curves': the file '{relative}' is missing from {run_folder}")
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}, line {number}: this is not valid JSON") from None
    return rows


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], *, max_charts: int = 6) -> list[Markup]:
    """Draw a chart per logged value with a line per run: losses first, then what most runs share."""
    keys: dict[str, int] = {}
    for rows in runs.values():
        for key in {k for row in rows for k, v in row.items() if _is_number(v)}:
            keys[key] = keys.get(key, 0) + 1
    ranks = {key: rank for rank, key in enumerate(words.LOSSES)}
    order = sorted(
        (key for key in keys if key not in _NO_CURVES),
        key=lambda key: (ranks.get(key, len(ranks)), -keys[key], key),
    )
    drawn = []
    for key in order[:max_charts]:
        series = [
            Series(name, [(float(r["step"]), float(r[key])) for r in rows if _has(r, key)], style)
            # Style 1 is the accent color: a single run gets it; of several, the first is the plain line (style 0).
            for style, (name, rows) in enumerate(runs.items(), start=int(len(runs) == 1))
        ]
        chart = line_chart(series, title=words.loss(key))
        if chart:
            drawn.append(plot(words.loss(key), chart))
    return drawn


def _is_number(value: object) -> bool:
    # In Python a bool is an int, but a flag is not a curve.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has(row: Mapping[str, Any], key: str) -> bool:
    return _is_number(row.get(key)) and _is_number(row.get("step"))


T = TypeVar("T", LocatedPhrase, BoxChoice)


def group_answers(answers: Iterable[T]) -> dict[tuple[str, str], list[T]]:
    """Group answers by (data, slice) in order of appearance; seen and unseen are never mixed."""
    groups: dict[tuple[str, str], list[T]] = {}
    for answer in answers:
        groups.setdefault((answer.data, answer.slice), []).append(answer)
    return groups


def locate_card(answer: LocatedPhrase, default: str) -> dict[str, Any]:
    """Prepare a 'where is' answer: overlays by rule with the default rule's box on top, IoU per rule."""
    rule = answer.default or default
    if rule not in answer.boxes:
        raise UserError(f"result.json: '{answer.phrase}' has no box of the default rule '{rule}'")
    # Drawn in this order: the truth at the bottom, the default rule on top.
    names = sorted(answer.boxes, key=lambda k: (k == rule, -_rank(k)))
    overlays = [Overlay(answer.boxes[name], "default" if name == rule else f"rule-{name}") for name in names]
    if answer.truth is not None:
        overlays.insert(0, Overlay(answer.truth, "truth"))
    iou = answer.iou.get(rule)
    return {
        "answer": answer,
        "rule": rule,
        "overlays": overlays,
        "iou": iou,
        "right": None if iou is None else iou >= RIGHT_FROM,
        "rules": sorted(answer.boxes, key=lambda k: (k != rule, _rank(k))),
    }


def _rank(rule: str) -> int:
    return RULE_ORDER.index(rule) if rule in RULE_ORDER else len(RULE_ORDER)


def choice_card(answer: BoxChoice) -> dict[str, Any]:
    """Prepare a 'which of these boxes' answer: overlays, and scores as shares of their range."""
    size = len(answer.boxes)
    if len(answer.scores) != size or not (0 <= answer.right < size and 0 <= answer.predicted < size):
        raise UserError(f"result.json, 'choose', '{answer.phrase}': scores or numbers do not match its {size} boxes")
    low, high = min(answer.scores), max(answer.scores)
    span = (high - low) or 1.0  # all scores may be equal
    boxes = []
    for number, (box, score) in enumerate(zip(answer.boxes, answer.scores, strict=True)):
        style = "chosen" if number == answer.predicted else "right" if number == answer.right else "other"
        boxes.append(
            {
                "number": number + 1,
                "overlay": Overlay(box, style, str(number + 1)),
                "style": style,
                "score": score,
                # The worst box still has a visible bar.
                "share": 0.04 + 0.96 * (score - low) / span,
                "right": number == answer.right,
                "chosen": number == answer.predicted,
            }
        )
    return {"answer": answer, "boxes": boxes, "right": answer.right == answer.predicted}


# Group the examples of a run for its page: regions with their names, phrases with their boxes.


def region_overlays(example: Example) -> list[Overlay]:
    """Return the boxes of a record, without one that is the whole image."""
    # A box around the whole image locates nothing, and its outline would look like a frame.
    return [Overlay(r.box, "region") for r in example.regions if min(r.box[2:]) < 0.99 or max(r.box[:2]) > 0.01]


def example_groups(examples: list[Example]) -> list[dict[str, Any]]:
    """Group records by source, with their overlays."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        entry = {"example": example, "overlays": region_overlays(example)}
        groups.setdefault(words.data(example.source) if example.source else "", []).append(entry)
    return [{"title": title, "members": members} for title, members in groups.items()]


def group_title(data: str, slice_: str) -> str:
    """Format data and slice as a heading, such as "Generated scenes: concepts it has seen"."""
    pieces = [words.data(data)] if data else []
    if slice_:
        pieces.append(words.slice_name(slice_))
    title = ": ".join(pieces) or "All"
    return title[:1].upper() + title[1:]


def where_groups(answers: list[Any], default: str) -> list[dict[str, Any]]:
    """Group 'where is' answers by data and slice, with the number of right boxes."""
    groups = []
    for (data, slice_), members in group_answers(answers).items():
        items = [locate_card(answer, default) for answer in members]
        # Without a true box an answer is neither right nor wrong.
        judged = [item for item in items if item["right"] is not None]
        right = sum(item["right"] for item in judged)
        groups.append({"title": group_title(data, slice_), "members": items, "right": right, "n": len(judged)})
    return groups


def which_groups(answers: list[Any]) -> list[dict[str, Any]]:
    """Group 'which of these boxes' answers by data and slice, with the number of right ones."""
    groups = []
    for (data, slice_), members in group_answers(answers).items():
        items = [choice_card(answer) for answer in members]
        right = sum(item["right"] for item in items)
        groups.append({"title": group_title(data, slice_), "members": items, "right": right, "n": len(items)})
    return groups


def rules_of(answers: list[Any], default: str) -> list[str]:
    """List all rules that answered, the default first."""
    names = {name for answer in answers for name in answer.boxes}
    order = {name: number for number, name in enumerate(RULE_ORDER)}
    # 99 puts rules that the page does not know last.
    return sorted(names, key=lambda name: (name != default, order.get(name, 99), name))
