"""The results of a study as a Markdown table, written into a page between two marks: nobody types numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically

START, END = "<!-- results -->", "<!-- end of results -->"


def _number(value: float) -> str:
    """`0.466` -> `.466`; a minus sign stays."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"


def _cell(found: Mapping[str, Any] | None, *, seeds: int) -> str:
    if found is None:
        return ""
    fewer = "" if found["n"] == seeds else f" (n {found['n']})"
    if found["low"] is None:
        return _number(found["value"]) + fewer
    return f"{_number(found['value'])} ± {_number((found['high'] - found['low']) / 2)}{fewer}"


def results_table(result: Mapping[str, Any]) -> str:
    """The run's own words, a table per condition, and every claim with its difference and verdict."""
    command = " ".join(result["command"])
    lines = [
        f"`{command}`, Foveate {result['version']}: {len(result['seeds'])} seeds, "
        f"{result['trainings']} of {result.get('planned', result['trainings'])} trainings, "
        f"{', '.join(_sizes(result['scale']))}. Mean and half of the 95 % "
        "t-interval over seeds; n where a variant has fewer seeds than there are.",
        "",
    ]
    for real in result["real"]:
        state = "used" if real["used"] else f"not installed (package `{real['package']}`), so not measured"
        lines.append(f"- {real['name']}: {state}.")
    for condition in result["conditions"]:
        lines += ["", f"### {condition['title']}", "", f"{condition['what'][:1].upper()}{condition['what'][1:]}.", ""]
        lines += _condition_table(result, condition["key"])
        claims = [claim for claim in result["claims"] if claim["condition"] == condition["key"]]
        if claims:
            lines += ["", "| claim | difference, 95 % interval | must hold | verdict |", "|---|---|---|---|"]
            lines += [_claim_line(claim, seeds=len(result["seeds"])) for claim in claims]
    for one in result.get("beside", []):
        lines += ["", f"### {one['title']}", "", one["note"], "", f"| {' | '.join(one['columns'])} |"]
        lines += [f"|{'---|' * len(one['columns'])}", *(f"| {' | '.join(line)} |" for line in one["lines"])]
    return "\n".join(lines)


def _condition_table(result: Mapping[str, Any], condition: str) -> list[str]:
    entries = {entry["row"]: entry for entry in result["table"] if entry["condition"] == condition}
    seeds = len(result["seeds"])
    measured = {key for entry in entries.values() for key in entry["values"]}
    measures = [one for one in result["measures"] if one["key"] in measured]
    lines = [f"| variant | {' | '.join(one['title'] for one in measures)} |", f"|---|{'---|' * len(measures)}"]
    for row in result["rows"]:
        if row["key"] in entries:
            values = (_cell(entries[row["key"]]["values"].get(one["key"]), seeds=seeds) for one in measures)
            lines.append(f"| {row['title']} | {' | '.join(values)} |")
    return lines


def _claim_line(claim: Mapping[str, Any], *, seeds: int) -> str:
    found = claim["difference"]
    span = f"{found['value']:+.3f}" + (
        "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
    )
    more = f", more than {claim['margin']:+.2f}" if claim["margin"] else ""
    source = f" ({claim['source']})" if claim["source"] else ""
    span += "" if found["n"] == seeds else f", n {found['n']}"
    return f"| {claim['text']}{source} | {span} | {'yes' + more if claim['asserted'] else 'no'} | {claim['verdict']} |"


def fill(page: Path, result: Mapping[str, Any]) -> None:
    """Replaces what stands between the marks of a Markdown page.

    Raises:
        UserError: when the page lacks the marks.
    """
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise UserError(f"{page}: has no place for results: write {START} and {END}")
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    write_text_atomically(page, f"{before}{START}\n\n{results_table(result)}\n\n{END}{after}")


def _sizes(scale: dict[str, Any]) -> list[str]:
    """Name and number; of a list (the conditions of a study) how many there are."""
    return [f"{name} {len(value) if isinstance(value, list) else value}" for name, value in scale.items()]
