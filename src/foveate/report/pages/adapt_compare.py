"""The page of a comparison of methods: accuracy and its cost, how alike they are, ensembles, what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.core.results import ResultModel, parse_result
from foveate.report import numbers
from foveate.report.charts import plot
from foveate.report.compared import Point, amount, cost_chart, matrix_chart
from foveate.report.forest import ForestRow, forest
from foveate.report.page import Page, command_text

MOST_TASKS = 4  # in the table; with more, means of groups stand there
RULES = {
    "logits": "logits",
    "probabilities": "probabilities",
    "log_probabilities": "their logarithms",
    "votes": "votes",
}


class ComparedEntry(ResultModel):
    chosen: str
    validation: float | None = None
    tried: int = 1
    tied: int = 1
    diverged: int = 0
    failed: int = 0
    seeds: list[float] = []
    best_epoch: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None


class ComparedLine(ResultModel):
    variant: str
    method: str
    mergeable: bool = False
    tasks: dict[str, ComparedEntry]
    means: dict[str, float] = {}
    trained: float | None = None
    head: float | None = None
    update_bytes: float | None = None
    training_seconds: float | None = None
    unbeaten: bool = False


class ComparedAgreement(ResultModel):
    names: list[str]
    matrix: list[list[float]]
    disagreement: float | None = None


class ComparedRegions(ResultModel):
    names: list[str]
    most: int
    right: dict[str, int] = {}
    wrong: dict[str, int] = {}


class ComparedEnsemble(ResultModel):
    members: list[str] = []
    count: int
    member: dict[str, float]
    ensemble: dict[str, float]
    any_right: float
    gain: dict[str, float | None]
    disagreement: float | None = None


class ComparedTask(ResultModel):
    key: str
    title: str
    group: str = ""
    data: str = ""
    classes: int = 0
    images: int = 0
    tested: int = 0
    chance: float | None = None
    how: str = ""
    agreement: ComparedAgreement | None = None
    regions: ComparedRegions | None = None
    ensembles: ComparedEnsemble | None = None
    seeds: dict[str, ComparedEnsemble] = {}


class ComparedGrid(ResultModel):
    name: str
    what: str = ""
    candidates: dict[str, int] = {}
    left_out: list[dict[str, str]] = []


class ComparedResult(ResultModel):
    kind: str
    title: str = ""
    grid: ComparedGrid
    seeds: int = 1
    tasks: list[ComparedTask]
    lines: list[ComparedLine]
    spread: float | None = None
    seconds: float | None = None
    backbone: dict[str, Any] = {}
    command: str | list[str] | None = None


def lead(r: ComparedResult) -> str:
    """The answer in one or two sentences."""
    whole = [line for line in r.lines if line.means]
    if not whole:
        return "No method finished on all tasks."
    best = max(whole, key=lambda line: line.means["mean"])
    front = [line.variant for line in whole if line.unbeaten]
    said = f"Highest mean accuracy: {best.variant}, {numbers.percent(best.means['mean'])}, with "
    said += f"{amount(best.trained or 0)} numbers trained in the network. " + _overlap(r, best)
    if len(front) < 2:
        return said + "It is also the smallest."
    return said + f"Nothing is both smaller and better than {', '.join(front[:-1])} or {front[-1]}."


def _overlap(r: ComparedResult, best: ComparedLine) -> str:
    """Whether intervals tell the best from the others; nothing where several tasks have one each."""
    if len(r.tasks) != 1:
        return ""
    key = r.tasks[0].key
    others = [line.tasks[key] for line in r.lines if line is not best and key in line.tasks]
    low = best.tasks[key].low
    near = sum(low is None or one.high is None or one.high >= low for one in others)
    if not near:
        return ""
    which = (
        "the other"
        if len(others) == 1
        else f"all {len(others)} others"
        if near == len(others)
        else f"{near} of {len(others)} others"
    )
    return f"Intervals do not tell it from {which}. "


def columns(r: ComparedResult) -> list[tuple[str, str]]:
    """Keys and titles of the columns of accuracy: tasks where they are few, else groups; and the mean."""
    if len(r.tasks) <= MOST_TASKS:
        shown = [(task.key, task.title) for task in r.tasks]
    else:
        shown = [(group, group) for group in dict.fromkeys(task.group for task in r.tasks) if group]
    groups = [("mean of groups", "mean of groups")] if len({task.group for task in r.tasks if task.group}) > 1 else []
    return shown + groups + ([("mean", "mean of tasks")] if len(r.tasks) > 1 else [])


def _alike(entry: ComparedEntry) -> str:
    """ "both seeds equal" where several seeds gave the same accuracy, which gives no interval; else nothing."""
    if len(entry.seeds) < 2 or len(set(entry.seeds)) > 1:
        return ""
    return "both seeds equal" if len(entry.seeds) == 2 else f"all {len(entry.seeds)} seeds equal"


def _sureness(entry: ComparedEntry, seeds: int) -> str:
    """What stands below an accuracy: its interval, and of what where that is not the page's kind."""
    if alike := _alike(entry):
        return alike
    span = numbers.interval(entry.low, entry.high)
    return f"{span}, of one seed over images" if span and len(entry.seeds) < 2 <= seeds else span


def interval_text(r: ComparedResult) -> str:
    """What the intervals are."""
    if r.seeds < 2:
        return "95 % interval over test images, of one seed"
    none = "none where all gave the same accuracy, which shows no spread to compute one from"
    return f"95 % t-interval over {r.seeds} seeds; {none}"


def table(r: ComparedResult) -> list[dict[str, Any]]:
    """A line of cells for each method, best mean first; those that did not finish last."""
    ordered = sorted(r.lines, key=lambda line: -line.means.get("mean", -1.0))
    found = []
    for line in ordered:
        cells = []
        for key, _ in columns(r):
            entry = line.tasks.get(key)
            value = line.means.get(key) if entry is None else entry.value
            span = "" if entry is None else _sureness(entry, r.seeds)
            cells.append({"value": numbers.percent(value), "span": span})
        found.append(
            {
                "name": line.variant,
                "unbeaten": line.unbeaten,
                "cells": cells,
                "trained": "–" if line.trained is None else numbers.count(line.trained),
                "memory": "–" if line.update_bytes is None else f"{line.update_bytes / 2**20:,.1f} MiB",
                "time": numbers.duration(line.training_seconds),
                "merges": "yes" if line.mergeable else "no",
            }
        )
    return found


def charts(r: ComparedResult) -> list[Markup]:
    """Size, memory and time against accuracy, and the accuracies of each task with their intervals."""
    whole = [line for line in r.lines if line.means]
    drawn = []
    for field, title, label in (
        ("trained", "Mean accuracy (%) by size", "numbers trained in the network, without the head"),
        ("update_bytes", "Mean accuracy (%) by memory", "bytes that one update holds"),
        ("training_seconds", "Mean accuracy (%) by time", "seconds of one training"),
    ):
        values = [(line, getattr(line, field)) for line in whole if getattr(line, field) is not None]
        points = [
            Point(line.variant, cost, 100 * line.means["mean"], not _beaten(cost, line.means["mean"], values))
            for line, cost in values
        ]
        if len(points) > 1:
            drawn.append(plot(title, cost_chart(points, title=title, x_label=label)))
    return drawn


def _beaten(cost: float, value: float, others: Sequence[tuple[ComparedLine, float]]) -> bool:
    return any(
        other <= cost and line.means["mean"] >= value and (other < cost or line.means["mean"] > value)
        for line, other in others
    )


def forests(r: ComparedResult) -> list[Markup]:
    """One chart a task: methods with their intervals, chance as the line through all."""
    drawn = []
    for task in r.tasks:
        rows = [
            ForestRow(
                line.variant,
                100 * entry.value,
                None if entry.low is None or _alike(entry) else 100 * entry.low,
                None if entry.high is None or _alike(entry) else 100 * entry.high,
                "control" if line.method in ("linear", "full") else "variant",
                without=_alike(entry) or "no interval",
            )
            for line in r.lines
            if (entry := line.tasks.get(task.key)) is not None and entry.value is not None
        ]
        chance = None if task.chance is None else 100 * task.chance
        title = f"{task.title}: accuracy (%), {numbers.count(task.tested)} test images"
        drawn.append(plot(title, forest(rows, title=title, zero=False, line=chance)))
    return drawn


def ensembles(task: ComparedTask) -> list[dict[str, Any]]:
    """Lines of the table of ensembles: all methods, then each method's own seeds."""
    several = []
    if task.ensembles:
        left_out = [
            name for name in (task.agreement.names if task.agreement else []) if name not in task.ensembles.members
        ]
        several.append((f"all but {' and '.join(left_out)}" if left_out else "all methods", task.ensembles))
    several += [(f"{name}, {one.count} seeds", one) for name, one in task.seeds.items()]
    return [
        {
            "name": name,
            "count": one.count,
            "cells": [numbers.percent(one.member["mean"]), numbers.percent(one.member["best"])]
            + [numbers.percent(one.ensemble.get(rule)) for rule in RULES],
            "gain": _signed(one.gain["mean"]),
            "span": _span(one.gain.get("low"), one.gain.get("high")),
            "any": numbers.percent(one.any_right),
            "disagree": numbers.percent(one.disagreement),
        }
        for name, one in several
    ]


def regions(found: ComparedRegions) -> list[tuple[str, int, int]]:
    """Who shares how many confident right and unconfident wrong answers; regions of one first, of all last."""
    keys = sorted(set(found.right) | set(found.wrong), key=lambda key: (key.count("1"), key[::-1]))
    lines = []
    for key in keys:
        inside = [name for name, flag in zip(found.names, key, strict=True) if flag == "1"]
        who = "all of them" if len(inside) == len(found.names) else " and ".join(inside)
        said = f"only {who}" if len(inside) == 1 else who
        lines.append((said, found.right.get(key, 0), found.wrong.get(key, 0)))
    return lines


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """The page of a comparison's result.json (`ComparedResult`)."""
    r = parse_result(ComparedResult, result)
    trainings = sum(count * len(r.tasks) for count in r.grid.candidates.values() if count > 1)
    facts = [
        ("Network", f"{amount(r.backbone.get('numbers', 0))} numbers"),
        ("Grid", f"{r.grid.name}: {numbers.count(sum(r.grid.candidates.values()))} candidates a task"),
        ("Tried", f"{numbers.count(trainings)} on validation images"),
        ("Seeds of the last training", str(r.seeds)),
    ]
    if r.spread is not None:
        facts.append(("Spread between methods", f"{numbers.percent(r.spread)} of their mean, without linear and full"))
    shown = []
    for task in r.tasks:
        alike = task.agreement
        title = f"{task.title}: same answer (% of test images)"
        chart = Markup("")
        if alike is not None and len(alike.names) > 1:
            chart = matrix_chart(alike.names, alike.matrix, title=title)
        shown.append({"task": task, "title": title, "matrix": chart, "ensembles": ensembles(task),
                      "regions": [] if task.regions is None else regions(task.regions)})  # fmt: skip
    choices = [
        {
            "task": task,
            "lines": [
                {
                    "name": line.variant,
                    "entry": entry,
                    "validation": numbers.percent(entry.validation),
                    "test": numbers.percent(entry.value),
                    "best": numbers.percent(entry.best_epoch),
                    "state": "did not converge" if entry.value is None else "",
                }
                for line in r.lines
                if (entry := line.tasks.get(task.key)) is not None
            ],
        }
        for task in r.tasks
    ]
    context = {
        "r": r,
        "lead": lead(r),
        "facts": facts,
        "columns": columns(r),
        "table": table(r),
        "charts": charts(r),
        "forests": forests(r),
        "shown": shown,
        "choices": choices,
        "rules": list(RULES.values()),
        "peeked": any(entry.best_epoch is not None for line in r.lines for entry in line.tasks.values()),
        "interval": interval_text(r),
        "command": command_text(r.command or ""),
    }
    return Page("adapt_compare.html.j2", r.title or "Methods compared", context)
