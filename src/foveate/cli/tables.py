"""Tables of numbers as plain aligned text, one block a question."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_UNLIMITED = 400  # columns; a narrow terminal breaks the lines itself, and files keep them whole


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    if value["low"] is None:
        return f"{value['value']:.3f}"
    # ".83-.91": intervals without the leading zero leave room for twice as many columns.
    low, high = (f"{value[end]:.2f}".removeprefix("0") for end in ("low", "high"))
    return f"{value['value']:.3f} ({low}-{high})"


def measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format measurements as lines: for each question the data, n, each value with its interval, and chance if known.

    Args:
        rows: rows of a result's table as JSON values, see `foveate.core.results.Row`.
    """
    # Here, as verbs that print tables are imported for their line of help, too.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    questions: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        questions.setdefault(str(row["question"]), []).append(row)
    lines: list[str] = []
    for question, question_rows in questions.items():
        # A dictionary keeps the order in which columns first appear; rows of one question may have different ones.
        columns = list(dict.fromkeys(name for row in question_rows for name in row["values"]))
        chances = [row.get("chance") for row in question_rows]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        table.add_column("")
        table.add_column("n", justify="right")
        for name in columns:
            table.add_column(name)
        if any(chance is not None for chance in chances):
            table.add_column("chance", justify="right")
        for row, chance in zip(question_rows, chances, strict=True):
            cells = [_cell(row["values"].get(name)) for name in columns]
            table.add_row(str(row["data"]), str(row["n"]), *cells, *([f"{chance:.3f}"] if chance is not None else []))
        # Through a string, without colors: the lines also go into JSON, files and pipes.
        printed = io.StringIO()
        Console(file=printed, width=_UNLIMITED, no_color=True).print(table)
        lines += [question, *(line.rstrip() for line in printed.getvalue().splitlines()), ""]
    return lines
