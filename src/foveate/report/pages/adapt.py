"""Pages of `foveate adapt`: a comparison of methods, a line between two models; see `tuned` for one model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.adapt.results import (
    ComparedEnsemble,
    ComparedEntry,
    ComparedLine,
    ComparedResult,
    ComparedTask,
    WiseResult,
    WiseSet,
)
from foveate.core.results import parse_result
from foveate.report import numbers
from foveate.report.blocks import (
    Block,
    Cell,
    Charts,
    Facts,
    Fold,
    Notes,
    Section,
    Table,
    Text,
    block_page,
    columns_of,
)
from foveate.report.charts import ForestRow, Mark, Series, forest, line_chart, plot, tradeoff_chart
from foveate.report.compared import Point, amount, cost_chart, matrix_chart
from foveate.report.page import Page

# Page of a comparison of methods: accuracy and its cost, how alike they are, ensembles, what was selected.


MAX_TASKS = 4  # in the table; of more tasks, means of groups are shown
RULES = {
    "logits": "logits",
    "probabilities": "probabilities",
    "log_probabilities": "their logarithms",
    "votes": "votes",
}


def compare_lead(r: ComparedResult) -> str:
    """Return the result in one or two sentences."""
    complete = [line for line in r.lines if line.means]
    if not complete:
        return "No method finished on all tasks."
    best = max(complete, key=lambda line: line.means["mean"])
    front = [line.variant for line in complete if line.unbeaten]
    text = f"Highest mean accuracy: {best.variant}, {numbers.percent(best.means['mean'])}, with "
    text += f"{amount(best.trained or 0)} parameters trained in the network. " + _overlap(r, best)
    if len(front) < 2:
        return text + "It is also the smallest."
    return text + f"Nothing is both smaller and better than {', '.join(front[:-1])} or {front[-1]}."


def _overlap(r: ComparedResult, best: ComparedLine) -> str:
    """Return which methods the intervals do not tell from the best; "" where several tasks have one each."""
    if len(r.tasks) != 1:
        return ""
    key = r.tasks[0].key
    others = [line.tasks[key] for line in r.lines if line is not best and key in line.tasks]
    low = best.tasks[key].low
    # Without an interval nothing can be told apart, so such a method counts as near.
    near = sum(low is None or entry.high is None or entry.high >= low for entry in others)
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
    """Return keys and titles of the columns of accuracy: tasks where they are few, else groups; and the mean."""
    if len(r.tasks) <= MAX_TASKS:
        columns = [(task.key, task.title) for task in r.tasks]
    else:
        columns = [(group, group) for group in dict.fromkeys(task.group for task in r.tasks) if group]
    groups = [("mean of groups", "mean of groups")] if len({task.group for task in r.tasks if task.group}) > 1 else []
    return columns + groups + ([("mean", "mean of tasks")] if len(r.tasks) > 1 else [])


def _alike(entry: ComparedEntry) -> str:
    """Return a note where several seeds have the same accuracy, which gives no interval; else ""."""
    if len(entry.seeds) < 2 or len(set(entry.seeds)) > 1:
        return ""
    return "both seeds equal" if len(entry.seeds) == 2 else f"all {len(entry.seeds)} seeds equal"


def _uncertainty(entry: ComparedEntry, seeds: int) -> str:
    """Return the line below an accuracy: its interval, and of what where it is not the page's kind."""
    if alike := _alike(entry):
        return alike
    span = numbers.interval(entry.low, entry.high)
    return f"{span}, of one seed over images" if span and len(entry.seeds) < 2 <= seeds else span


def interval_text(r: ComparedResult) -> str:
    """Return what the intervals of the page are."""
    if r.seeds < 2:
        return "95 % interval over test images, of one seed"
    none = "none where all gave the same accuracy, which shows no spread to compute one from"
    return f"95 % t-interval over {r.seeds} seeds; {none}"


def compare_table(r: ComparedResult) -> Table:
    """Build the table of methods, best mean first; those that did not finish last."""

    def accuracy(line: ComparedLine, key: str) -> Cell:
        entry = line.tasks.get(key)
        if entry is None:
            return Cell(numbers.percent(line.means.get(key)))
        return Cell(numbers.percent(entry.value), _uncertainty(entry, r.seeds))

    return columns_of(
        # A method without a mean did not finish all tasks; a mean over the others would not be comparable.
        sorted(r.lines, key=lambda line: -line.means.get("mean", -1.0)),
        [
            ("Method", lambda line: Cell(line.variant, strong=line.unbeaten)),
            # Two tasks may have one title, so that heads cannot be keys.
            *((title, functools.partial(accuracy, key=key)) for key, title in columns(r)),
            ("Parameters trained", lambda line: "–" if line.trained is None else numbers.count(line.trained)),
            (
                "Memory of a step",
                lambda line: "–" if line.step_bytes is None else f"{line.step_bytes / 2**20:,.1f} MiB",
            ),
            ("One training", lambda line: numbers.duration(line.training_seconds)),
            ("Merges", lambda line: "yes" if line.mergeable else "no"),
        ],
        note=f"{interval_text(r)}. Bold: no other method is both smaller and better. Parameters are without the head; "
        "the memory of a step is weights, gradients, AdamW’s moments and what the forward pass saves.",
        printed=True,
    )


def compare_charts(r: ComparedResult) -> list[Markup]:
    """Draw size, memory and time against accuracy."""
    complete = [line for line in r.lines if line.means]
    drawn = []
    for field, title, label in (
        ("trained", "Mean accuracy (%) by size", "parameters trained in the network, without the head"),
        ("step_bytes", "Mean accuracy (%) by memory", "bytes that one step holds"),
        ("training_seconds", "Mean accuracy (%) by time", "seconds of one training"),
    ):
        values = [(line, getattr(line, field)) for line in complete if getattr(line, field) is not None]
        points = [
            # Computed for this cost: `line.unbeaten` is about size alone.
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
    """Draw one chart per task: methods with their intervals, chance as the line through all."""
    drawn = []
    for task in r.tasks:
        rows = [
            ForestRow(
                line.variant,
                100 * entry.value,
                # Seeds that agree to the last digit have an interval of zero width, which would look like certainty.
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
        # The axis need not start at zero: methods that differ by a few points would overlap.
        drawn.append(plot(title, forest(rows, title=title, zero=False, line=chance)))
    return drawn


def ensembles(task: ComparedTask) -> list[Block]:
    """Build the table of ensembles: all methods, then the seeds of each method."""
    several = []
    if task.ensembles:
        left_out = [
            name for name in (task.agreement.names if task.agreement else []) if name not in task.ensembles.members
        ]
        several.append((f"all but {' and '.join(left_out)}" if left_out else "all methods", task.ensembles))
    several += [(f"{name}, {ensemble.count} seeds", ensemble) for name, ensemble in task.seeds.items()]
    if not several:
        return []

    def rule(entry: tuple[str, ComparedEnsemble], key: str) -> str:
        return numbers.percent(entry[1].ensemble.get(key))

    def gain(values: Mapping[str, float | None]) -> Cell:
        return Cell(_signed(values["mean"]), _span(values.get("low"), values.get("high")))

    note = ""
    if task.ensembles:
        note = (
            f"The first line is of {', '.join(task.ensembles.members)}, each with its first seed. Two disagree: on how "
            "many test images two of the models answer differently, mean over pairs. Ensembles average logits, "
            "probabilities or their logarithms, or vote. Gain: by logits, minus the mean member, with an interval over "
            "test images."
        )
    first, *others = RULES
    table = columns_of(
        several,
        [
            (f"{task.title}: ensemble of", lambda entry: entry[0]),
            ("Models", lambda entry: str(entry[1].count)),
            ("Mean member", lambda entry: numbers.percent(entry[1].member["mean"])),
            ("Best member", lambda entry: numbers.percent(entry[1].member["best"])),
            ("Two disagree", lambda entry: numbers.percent(entry[1].disagreement)),
            (f"By {RULES[first]}", functools.partial(rule, key=first)),
            ("Gain", lambda entry: gain(entry[1].gain)),
            *((f"By {RULES[key]}", functools.partial(rule, key=key)) for key in others),
            ("Any right", lambda entry: numbers.percent(entry[1].any_right)),
        ],
        note=note,
        printed=True,
    )
    return [table]


def regions(task: ComparedTask) -> list[Block]:
    """Build the table of who shares how many confident correct and unconfident wrong answers; regions of one first."""
    counts = task.regions
    if counts is None:
        return []
    rows = []
    # Reversed, so that "100", the first method alone, comes before "010" and "001".
    for key in sorted(set(counts.right) | set(counts.wrong), key=lambda key: (key.count("1"), key[::-1])):
        inside = [name for name, flag in zip(counts.names, key, strict=True) if flag == "1"]
        who = "all of them" if len(inside) == len(counts.names) else " and ".join(inside)
        label = f"only {who}" if len(inside) == 1 else who
        rows.append([label, *(numbers.count(side.get(key, 0)) for side in (counts.right, counts.wrong))])
    confident = numbers.count(counts.num_confident)
    note = (
        f"Of each of the {len(counts.names)} most accurate methods the {confident} most confident test images that are "
        f"right, and the {confident} least confident ones that are wrong."
    )
    return [Table([f"{task.title}: answers of", "confident and right", "unconfident and wrong"], rows, note=note)]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def build_adapt_compare(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a comparison's result.json (`ComparedResult`)."""
    r = parse_result(ComparedResult, result)
    # A single candidate is not tried on validation images: there is nothing to choose.
    trainings = sum(count * len(r.tasks) for count in r.grid.candidates.values() if count > 1)
    facts = [
        ("Network", f"{amount(r.backbone.parameters)} parameters"),
        ("Grid", f"{r.grid.name}: {numbers.count(sum(r.grid.candidates.values()))} candidates a task"),
        ("Tried", f"{numbers.count(trainings)} on validation images"),
        ("Seeds of the last training", str(r.seeds)),
    ]
    if r.spread is not None:
        facts.append(
            (
                "Spread between methods",
                f"{numbers.percent(r.spread)} of their mean, without linear, full and vpt-shallow",
            )
        )
    alike: list[Block] = []
    for task in r.tasks:
        agreement = task.agreement
        if agreement is not None and len(agreement.names) > 1:
            title = f"{task.title}: same answer (% of test images)"
            alike.append(Charts([matrix_chart(agreement.names, agreement.matrix, title=title)], "wide", title))
        alike += [*regions(task), *ensembles(task)]
    drawings = [*compare_charts(r), *forests(r)]
    refused = [[row.variant, row.options, row.reason] for row in r.grid.refused]
    left_out = Table(["Method", "Options", "Why"], refused, left=(1, 2))
    return block_page(
        r.title or "Methods compared",
        eyebrow="Comparison",
        top=[Text(compare_lead(r)), Facts(facts)],
        sections=[
            Section(
                "numbers",
                "Accuracy and cost",
                [compare_table(r)],
                "Selected on validation images, trained again on all of them, tested once after the last epoch. No "
                "test image took part in any selection.",
                "Numbers",
            ),
            Section(
                "charts",
                "What accuracy costs",
                [Charts(drawings)] if drawings else [],
                "The line joins those that no other beats; the others are named where there is room.",
                "Charts",
            ),
            Section(
                "alike",
                "Do they make the same mistakes?",
                alike,
                "Methods of one accuracy may answer differently; then an ensemble gains. Several seeds of one method "
                "are the control: what other initial values alone do.",
                "Alike?",
            ),
            Section(
                "selected",
                "What was selected",
                [selected(r, task, is_open=number == 0) for number, task in enumerate(r.tasks)],
                "The highest validation accuracy after the last epoch; of equal candidates the last of the grid.",
                "Selected",
            ),
            Section(
                "left-out",
                "Left out",
                [Fold(f"{len(refused)} candidates", [left_out])] if refused else [],
                "Candidates that this network or the budget does not allow.",
            ),
        ],
        command=r.command,
    )


def selected(r: ComparedResult, task: ComparedTask, *, is_open: bool) -> Fold:
    """Build the table of the candidates that were selected on a task."""
    peeked = any(entry.best_epoch is not None for line in r.lines for entry in line.tasks.values())

    def options(entry: ComparedEntry) -> str:
        state = " (did not converge)" if entry.value is None else ""
        return f"{entry.candidate or 'its defaults'}{state}"

    table = columns_of(
        [(line.variant, line.tasks[task.key]) for line in r.lines if task.key in line.tasks],
        [
            ("Method", lambda row: row[0]),
            ("Options", lambda row: options(row[1])),
            ("Validation", lambda row: numbers.percent(row[1].validation)),
            ("Test", lambda row: numbers.percent(row[1].value)),
            *([("Best epoch on test (peeks)", lambda row: numbers.percent(row[1].best_epoch))] if peeked else []),
            ("Tried", lambda row: str(row[1].tried)),
            ("Equal", lambda row: str(row[1].tied)),
            ("Diverged", lambda row: str(row[1].diverged)),
        ],
        left=(1,),
        printed=True,
    )
    learned = f"{task.title}: {task.classes} classes, {numbers.count(task.images)} images to learn from"
    tested = f"{numbers.count(task.tested)} to test on, chance {numbers.percent(task.chance)}"
    return Fold(f"{learned}, {tested}; selected by {task.selection}", [table], is_open)


# Page of models between a network and its tuned one: the curve over alpha and the recommendation.


def percents(image_set: WiseSet) -> list[float]:
    """Return the curve in percent."""
    return [100 * value.value for value in image_set.accuracy]


def mean_of_shifted(r: WiseResult) -> list[float]:
    """Return the mean over shifted sets at each alpha; empty without any."""
    # Each set counts equally, whatever its size, so that a large one does not dominate the mean.
    shifted = [percents(image_set) for image_set in r.sets if image_set.role == "shifted"]
    return [sum(values) / len(values) for values in zip(*shifted, strict=True)]


def wise_charts(r: WiseResult) -> list[Markup]:
    """Draw accuracy by alpha, and shifted against test images as alpha grows."""
    test = next((image_set for image_set in r.sets if image_set.role == "test"), None)
    validation = next((image_set for image_set in r.sets if image_set.role == "validation"), None)
    outside = mean_of_shifted(r)
    lines = []
    if test is not None:
        lines.append(Series("test", list(zip(r.alphas, percents(test), strict=True)), 1))
    if outside:
        lines.append(Series("shifted", list(zip(r.alphas, outside, strict=True)), 2))
    if validation is not None:
        lines.append(Series("validation", list(zip(r.alphas, percents(validation), strict=True)), 3))
    title = "Accuracy (%) from the original network (0) to the tuned one (1)"
    drawn = [plot(title, line_chart(lines, title=title, x_label="alpha", height=330))]
    if test is not None and outside:
        inside = percents(test)
        index = r.alphas.index(r.recommended.alpha)
        marks = [Mark("alpha 0", inside[0], outside[0], 0), Mark("alpha 1", inside[-1], outside[-1], 0)]
        marks.append(Mark(f"recommended, {r.recommended.alpha:g}", inside[index], outside[index], 1))
        title = "Shifted against own test images (%), as alpha grows"
        series = [Series(r.method, list(zip(inside, outside, strict=True)), 1)]
        labels = ("accuracy on own test images (%)", "own", "shifted")
        drawn.append(plot(title, tradeoff_chart(series, marks, title=title, labels=labels)))
    return drawn


def wise_lead(r: WiseResult) -> str:
    """Return the recommendation in one or two sentences."""
    index = r.alphas.index(r.recommended.alpha)
    accuracies = []
    for image_set in r.sets:
        if image_set.role != "validation":
            tuned, recommended = image_set.accuracy[-1].value, image_set.accuracy[index].value
            accuracies.append(
                f"{image_set.title} {numbers.percent(recommended)} (tuned alone {numbers.percent(tuned)})"
            )
    return f"Recommended: alpha {r.recommended.alpha:g}. There: {'; '.join(accuracies)}."


def build_adapt_wise(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a curve's result.json (`WiseResult`)."""
    r = parse_result(WiseResult, result)
    facts = [("Method", f"{r.method}: {r.rule}"), ("Head", r.head)]
    if r.saved:
        facts.append(("Written", f"the model at alpha {r.saved.alpha:g}"))
    titles = {"inside": "best on own test images", "outside": "best on shifted images"}

    def accuracy(row: tuple[int, float], of: WiseSet) -> Cell:
        value = of.accuracy[row[0]]
        return Cell(numbers.percent(value.value), numbers.interval(value.low, value.high))

    def alpha(row: tuple[int, float]) -> Cell:
        is_best = row[1] == r.recommended.alpha
        return Cell(f"{row[1]:g}, recommended" if is_best else f"{row[1]:g}", strong=is_best)

    table = columns_of(
        list(enumerate(r.alphas)),
        [
            ("alpha", alpha),
            *((f"{of.title}, {numbers.count(of.n)} images", functools.partial(accuracy, of=of)) for of in r.sets),
        ],
        printed=True,
    )
    limits = []
    for image_set in r.sets:
        if image_set.left_out or image_set.role == "shifted":
            left_out = f"; {numbers.count(image_set.left_out)} images of other classes are left out"
            took_part = f"{image_set.title}: {image_set.classes} classes take part"
            limits.append(f"{took_part}{left_out if image_set.left_out else ''}.")
    # Chosen with test labels, so shown as what could have been reached, never as a result.
    limits += [
        f"alpha {point.alpha:g} is {titles[key]}: own {numbers.percent(point.inside)}, shifted "
        f"{numbers.percent(point.outside)}. It was found with the labels of these images: it peeks."
        for key, point in (r.peeking or {}).items()
        if key in titles
    ]
    error = r.recommended.standard_error
    rule = f"{r.recommended.rule[:1].upper()}{r.recommended.rule[1:]}."
    return block_page(
        r.title or "Between a network and its tuned one",
        eyebrow="Between two models",
        heading=Markup("alpha <em>{}</em>").format(f"{r.recommended.alpha:g}"),
        top=[Text(wise_lead(r)), Facts(facts)],
        sections=[
            Section(
                "curve",
                "The curve",
                [Charts(wise_charts(r))],
                "alpha 0 is the original network, alpha 1 the tuned one. What tuning gains on your own images it may "
                "lose on others; models in between often keep both.",
                "Curve",
            ),
            Section(
                "numbers",
                "The numbers",
                [table],
                "Accuracy in percent with 95 % intervals, bootstrap over images.",
                "Numbers",
            ),
            Section(
                "how",
                "How alpha was selected",
                [
                    Text(rule if error is None else f"{rule} One standard error is {numbers.percent(error)}."),
                    Notes(limits),
                ],
                link="How it was selected",
            ),
        ],
        command=r.command,
    )


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "adapt_compare": build_adapt_compare,
    "adapt_wise": build_adapt_wise,
}
