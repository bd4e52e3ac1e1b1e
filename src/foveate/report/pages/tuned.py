"""Pages of one tuned model: what `adapt train` measured and where it is wrong, and the answers of `adapt predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from foveate.adapt.results import AdaptResult, ClassScore, PredictResult, ProbeResult, SplitDetails
from foveate.core.results import parse_result
from foveate.metrics.intervals import wilson_interval
from foveate.report import numbers, parts, sections
from foveate.report.blocks import (
    Block,
    Charts,
    Drawn,
    Facts,
    Section,
    Table,
    Text,
    block_page,
    charts_of,
    columns_of,
)
from foveate.report.charts import ForestRow, Series, forest, line_chart, plot
from foveate.report.compared import confusion_chart, value_chart
from foveate.report.images import RunImages
from foveate.report.page import Page, draw

MAX_NAMES = 6
MAX_CONFUSED = 25  # classes of a matrix; of more the pairs are listed
MAX_ROWS = 40  # classes of a chart; of more the worst are shown
MAX_PAIRS = 10
MAX_NAME = 16  # letters of a class beside a chart


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _describe_probe(probe: ProbeResult, task: str) -> str:
    how = f"chosen by {probe.folds}-fold cross-validation" if probe.folds else "not cross-validated"
    return f"{'ridge' if task in ('regression', 'ordinal') else 'logistic'} regression, C {probe.C:g}, {how}"


def _describe_labels(r: AdaptResult) -> str:
    if r.task == "regression":
        return f"a value{f' in {r.unit}' if r.unit else ''}"
    if r.task == "multi-label":
        return f"{len(r.classes)} labels, any number per image"
    return f"{len(r.classes)} {'ordered ' if r.task == 'ordinal' else ''}classes"


def build_adapt(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of an adapter's result.json (`AdaptResult`)."""
    r = parse_result(AdaptResult, result)
    counts = r.parameters
    share = counts.trained / max(counts.backbone, 1)
    facts = [
        ("Data", f"{r.data}: {numbers.count(r.images)} training images, {_describe_labels(r)}"),
        *([("Task", r.task)] if r.task != "single-label" else []),
        ("Trained in the backbone", f"{counts.trained:,} of {counts.backbone:,} parameters ({share:.2%})"),
        *([("Where", _list_names(r.matched))] if r.matched else []),
        ("Trained in the head", f"{counts.head:,} parameters"),
        ("Cached", r.cached),
        ("Steps", numbers.count(r.steps) if r.steps else "none: the head is solved"),
        *([("Linear probe", _describe_probe(r.probe, r.task))] if r.probe else []),
        ("Time", numbers.duration(r.seconds)),
    ]
    rows = {"this run": parts.read_metrics(run_folder, r.curves)} if r.curves else {}
    return block_page(
        r.title or "An adapted model",
        eyebrow="Adaptation",
        top=[
            # The terminal begins with it: whoever reads no further must not take the tuned model for the better one.
            *([Text(f"{r.loss[0].upper()}{r.loss[1:]}.", "strong")] if r.loss else []),
            *([Text(f"{r.choice}.", "strong")] if r.choice else []),
            Text("Measured on images that took no part in training; test images decide nothing."),
            Facts(facts),
        ],
        sections=[
            sections.numbers_section(r.evaluation),
            *([] if r.details is None else _details(r, r.details, RunImages(run_folder))),
            sections.charts_section(parts.curves(rows)),
            sections.recipe_section(r.recipe),
        ],
        command=r.command,
    )


def _details(r: AdaptResult, details: SplitDetails, images: RunImages) -> list[Section]:
    """Return the sections on one split: by class, confused classes, calibration, mistakes."""
    where = f"{numbers.count(details.n)} images of the split {details.split}, answered by the saved model."
    by_class, lead = "By class", where
    if r.task == "multi-label":
        by_class = "By label"
        lead += (
            " A label counts from its threshold on, which has the highest F1 on validation images; F1 on these is "
            "therefore a little too high."
        )
    return [
        Section("classes", by_class, _by_class(r, details), lead),
        Section("values", "Predicted and true", _values(r, details), where),
        Section("confusion", "Mistaken for each other", _confusion(details), _CONFUSION_LEAD, "Confusion"),
        Section("calibration", "Can its confidence be believed?", _calibration(r, details), link="Calibration"),
        Section(
            "mistakes",
            "Largest errors" if r.task in ("regression", "ordinal") else "Most confident mistakes",
            _mistakes(details, images),
            "Look here first: such a mistake is often a wrong label, or a kind of image that training lacked.",
            "Mistakes",
        ),
    ]


_CONFUSION_LEAD = "Rows are the true classes, columns the answers; the darker, the larger the share of a row."


def _by_class(r: AdaptResult, details: SplitDetails) -> list[Block]:
    if r.task == "multi-label":
        return [*_average_precisions(details), _label_table(details)]
    rows, left_out = [], 0
    for score in details.classes:
        interval = wilson_interval(score.right, score.n)
        if interval is None:
            left_out += 1
            continue
        assert interval.low is not None, "Wilson's interval always has ends"
        assert interval.high is not None, "Wilson's interval always has ends"
        rows.append(ForestRow(_row_name(score), 100 * interval.value, 100 * interval.low, 100 * interval.high))
    if not rows:
        return []
    # The worst first: of many classes these are the ones to look at.
    rows.sort(key=lambda row: row.value)
    title = "Accuracy (%) by class, with 95% intervals (images)"
    drawn = [plot(title, forest(rows[:MAX_ROWS], title=title))]
    notes = [f"{len(rows) - MAX_ROWS} classes with a higher accuracy are not drawn"] if len(rows) > MAX_ROWS else []
    notes += [f"{left_out} classes have no image in this split"] if left_out else []
    return [*charts_of(drawn), *([Text(f"{'; '.join(notes)}.", "note")] if notes else [])]


def _row_name(score: ClassScore) -> str:
    name = score.name if len(score.name) <= MAX_NAME else f"{score.name[: MAX_NAME - 1]}…"
    return f"{name} ({score.n})"


def _average_precisions(details: SplitDetails) -> list[Block]:
    known = [score for score in details.classes if score.precision is not None]
    known.sort(key=lambda score: score.precision or 0.0)
    rows = [
        ForestRow(_row_name(score), 100 * (score.precision or 0.0), None, None, without="no interval")
        for score in known[:MAX_ROWS]
    ]
    title = "Average precision (%) by label (images)"
    return charts_of([plot(title, forest(rows, title=title))]) if rows else []


def _label_table(details: SplitDetails) -> Table:
    def share(part: int, whole: int) -> str:
        return numbers.percent(part / whole) if whole else "–"

    def f1(score: ClassScore) -> str:
        return share(2 * score.right, score.n + score.predicted)

    return columns_of(
        details.classes,
        [
            ("Label", lambda score: score.name),
            ("Images", lambda score: numbers.count(score.n)),
            ("Average precision", lambda score: numbers.percent(score.precision)),
            ("F1", f1),
            ("Precision", lambda score: share(score.right, score.predicted)),
            ("Recall", lambda score: share(score.right, score.n)),
            ("Threshold", lambda score: numbers.decimal(score.threshold)),
        ],
    )


def _values(r: AdaptResult, details: SplitDetails) -> list[Block]:
    title = f"Predicted against true value{f' ({r.unit})' if r.unit else ''}"
    chart = value_chart(details.points, title=title, unit=r.unit)
    return charts_of([plot(title, chart)]) if chart else []


def _confusion(details: SplitDetails) -> list[Block]:
    if not details.confused:
        # No matrix either: all that it could show is its diagonal.
        return [Text("No image got a wrong answer.", "note")] if details.confusion else []
    sizes = {score.name: score.n for score in details.classes}
    table = columns_of(
        details.confused[:MAX_PAIRS],
        [
            ("True class", lambda pair: pair.truth),
            ("Answer", lambda pair: pair.answer),
            ("Images", lambda pair: numbers.count(pair.count)),
            ("Of the class", lambda pair: numbers.percent(pair.count / sizes[pair.truth])),
        ],
        left=(1,),
        title="Most frequent mistakes",
    )
    names = list(sizes)
    if len(names) > MAX_CONFUSED:
        return [table]
    title = "Images by true class and answer"
    return [Charts([confusion_chart(names, details.confusion, title=title)], "wide", title), table]


def _calibration(r: AdaptResult, details: SplitDetails) -> list[Block]:
    if not details.bins or details.calibration_error is None:
        return []
    measured = [(100 * entry.confidence, 100 * entry.right) for entry in details.bins]
    series = [Series("answers", measured, 1), Series("exact", [(0.0, 0.0), (100.0, 100.0)], 2)]
    of = "labels that are there" if r.task == "multi-label" else "answers that are right"
    title = f"Share of {of} (%) by probability"
    chart = line_chart(series, title=title, x_label="probability (%)", height=330, from_zero=True, end_values=False)
    error = numbers.percent(details.calibration_error)
    text = (
        f"Expected calibration error {error}: the mean distance of the two lines, weighted by images. Below the "
        "straight line the model is too sure."
    )
    return [Text(text, "note"), *charts_of([plot(title, chart)])]


def _mistakes(details: SplitDetails, images: RunImages) -> list[Block]:
    items = []
    for mistake in details.mistakes:
        sure = "" if mistake.confidence is None else f", {numbers.percent(mistake.confidence, digits=0)} sure"
        text = Markup("{}<br>true: {}<br><small>{}</small>").format(
            f"{mistake.answer}{sure}", mistake.truth, mistake.key
        )
        if mistake.image:
            items.append((mistake.image, f"{mistake.answer} instead of {mistake.truth}", text))
    return [Drawn(draw("sheet", images, items))] if items else []


# Page of `adapt predict`: a contact sheet by class.


def build_adapt_predict(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of predictions (`PredictResult`)."""
    r = parse_result(PredictResult, result)
    images = RunImages(run_folder)
    facts = [
        ("Images", numbers.count(r.images)),
        ("Model", r.model),
        ("Task", r.task),
        *([("Unreadable", numbers.count(len(r.unreadable)))] if r.unreadable else []),
        ("Table", r.table),
    ]
    order = "from the lowest to the highest value." if r.task == "regression" else "from the surest to the least sure."
    shown = sum(len(group.images) for group in r.sheet)
    blocks: list[Block] = []
    for group in r.sheet:
        items = [(entry.image, f"{entry.key}: {entry.text}", _under(entry.text, entry.key)) for entry in group.images]
        head = Markup('<h3>{} <span class="score">{}</span></h3>').format(
            group.title, f"{numbers.count(group.count)} images"
        )
        blocks.append(Drawn(head + draw("sheet", images, items)))
    return block_page(
        r.title or "Answers",
        eyebrow="Predictions",
        top=[Facts(facts)],
        sections=[
            Section(
                "sheet",
                "The images by answer" if r.task != "regression" else "The images by value",
                blocks,
                f"{shown:,} of {numbers.count(r.images)} images, at most {r.per_group} of a group, {order}",
                "Images",
            ),
            Section("unreadable", "Cannot be read", _unreadable(r.unreadable)),
        ],
        command=r.command,
    )


def _under(text: str, key: str) -> Markup:
    return Markup("{}<br><small>{}</small>").format(text, key)


def _unreadable(reasons: Mapping[str, str]) -> Sequence[Block]:
    rows = [[name, reason] for name, reason in list(reasons.items())[:MAX_PAIRS]]
    return [Table(["Image", "Why"], rows, left=(1,))] if rows else []


PAGES: Mapping[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "adapt": build_adapt,
    "adapt_predict": build_adapt_predict,
}
