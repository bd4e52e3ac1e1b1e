"""The results of a suite from its rows: a table with intervals over images, and samples for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.files import write_bytes_atomically
from foveate.core.results import BoxValues, Column, Row, Value
from foveate.mllm.results import ScorePair, SuiteResult, SuiteSample
from foveate.mllm.suite import CORRECTED, StoredAnswer, Suite, SuiteData, SuiteQuestion
from foveate.multimodal.evaluation import AnswerRow, average
from foveate.records.boxes import PixelBox, normalize_box
from foveate.records.conversations import IMAGE
from foveate.records.images import read_image_info
from foveate.records.shapes import enclosing_box

CONDITIONS = ("image", "no image", "another image")
_COLUMNS = (
    Column(key="image", title="With the image", role="ours"),
    Column(key="no_image", title="No image", what="the question alone", role="control"),
    Column(key="another_image", title="Another image", what="the image of another question", role="control"),
)
_SAMPLES = 24


def _restore(row: AnswerRow) -> StoredAnswer:
    boxes = tuple(PixelBox(*corners) for corners in row["boxes"])
    digits = tuple(PixelBox(*corners) if corners else None for corners in row.get("digits", ()))
    return StoredAnswer(row["answer"], boxes, row["finished"], row.get("judged"), digits)


def summarize(suite: Suite, questions: Sequence[SuiteQuestion], rows: Sequence[AnswerRow], *, seed: int) -> SuiteResult:
    """Compute the table of a suite from its rows: mean scores with bootstrap intervals over images.

    A question with an image that could not be read counts under no condition, so that all columns have the same
    questions.
    """
    damaged = {row["id"] for row in rows if "error" in row}
    counted = [question for question in questions if question.id not in damaged]
    if not counted:
        raise UserError(f"{suite.title}: no question can be asked, the images of all {len(questions)} cannot be read")
    by_condition = {
        condition: {row["id"]: row for row in rows if row["condition"] == condition} for condition in CONDITIONS
    }
    slices = sorted({name for question in counted for name in question.slices})
    parts = [("", counted)]
    # A single slice would only repeat the row of the whole suite.
    if len(slices) > 1:
        parts += [(name, [question for question in counted if name in question.slices]) for name in slices]
    table = [_row(suite, name, part, by_condition, seed=seed) for name, part in parts]
    # Beside the written answers and not in their place: a model may know the answer and not the form that is scored.
    for name, part in parts:
        choices = [question for question in part if "choice_score" in by_condition["image"].get(question.id, {})]
        if choices:
            table.append(_row(suite, name, choices, by_condition, seed=seed, by_likelihood=True))
    further = {}
    for condition, answered in by_condition.items():
        pairs = [(question, _restore(answered[question.id])) for question in counted if question.id in answered]
        if suite.summarize is not None and pairs:
            further[condition] = suite.summarize(pairs)
    return SuiteResult(
        title=suite.title,
        metric=suite.metric,
        columns=list(_COLUMNS),
        table=table,
        questions=len(counted),
        images=len({name for question in counted for name in question.images}),
        unreadable=len(questions) - len(counted),
        unfinished=sum(not row["finished"] for row in by_condition["image"].values() if row["id"] not in damaged),
        further=further,
    )


def pair_scores(suite: Suite, further: Mapping[str, float | None]) -> list[ScorePair]:
    """Pair our scores in `further` with the published evaluator's; see `Suite.official`."""
    if suite.official is None:
        return []
    names = [name.removeprefix(CORRECTED) for name in further if name.startswith(CORRECTED)]
    return [
        ScorePair(name=name, ours=further[CORRECTED + name], official=further[suite.official + name])
        for name in names
        if suite.official + name in further
    ]


def _row(
    suite: Suite,
    name: str,
    questions: Sequence[SuiteQuestion],
    by_condition: dict[str, dict[str, AnswerRow]],
    *,
    seed: int,
    by_likelihood: bool = False,
) -> Row:
    """Return the row of some questions: of the written answers, or of the likeliest choices."""
    field = "choice_score" if by_likelihood else "score"
    values: dict[str, Value | None] = {}
    for column, condition in zip(_COLUMNS, CONDITIONS, strict=True):
        answered = [question for question in questions if field in by_condition[condition].get(question.id, {})]
        scores = [by_condition[condition][question.id][field] for question in answered]
        # Questions about one image are not independent, so the bootstrap draws images with all their questions.
        values[column.key] = average(scores, [question.images or question.id for question in answered], seed=seed)
    chances = [1 / len(question.choices) if by_likelihood else question.chance for question in questions]
    known = [chance for chance in chances if chance is not None]
    return Row(
        question=(f"{suite.title}: {name}" if name else suite.title) + (", by likelihood" if by_likelihood else ""),
        data="accuracy of the likeliest choice" if by_likelihood else suite.metric,
        # A mean over some of the questions would look like the chance of all of them.
        chance=float(np.mean(known)) if len(known) == len(chances) else None,
        n=len(questions),
        values=values,
    )


def pick_samples(
    questions: Sequence[SuiteQuestion], rows: Sequence[AnswerRow], data: SuiteData, folder: Path
) -> list[SuiteSample]:
    """Pick questions that were answered best and worst, as many of each, and write their first image."""
    answered: dict[str, dict[str, AnswerRow]] = {}
    for row in rows:
        if "error" not in row:
            answered.setdefault(row["id"], {})[row["condition"]] = row
    damaged = {row["id"] for row in rows if "error" in row}
    usable = [question for question in questions if question.id not in damaged]
    # Among equally good answers drawn by their ids: the first questions are all about the first images.
    ranked = sorted(
        usable, key=lambda question: (-answered[question.id]["image"]["score"], seeds.uniform("samples", question.id))
    )
    half = min(_SAMPLES, len(ranked)) // 2
    samples = []
    for number, question in enumerate([*ranked[: len(ranked[:_SAMPLES]) - half], *ranked[len(ranked) - half :]]):
        image = ""
        row = answered[question.id]["image"]
        drawn: dict[str, list[BoxValues]] = {}
        if question.images:
            encoded = data.read_image(question.images[0])
            info = read_image_info(encoded)[0]
            image = f"images/{number:02}.{info.format.lower()}"
            # With several images a region may lie in another one.
            if len(question.images) == 1:
                boxes = {
                    "regions": [enclosing_box(shape) for shape in question.regions],
                    "boxes": [PixelBox(*corners) for corners in row["boxes"]],
                    "true_boxes": question.boxes,
                }
                drawn = {
                    name: [normalize_box(box, info.width, info.height) for box in values if box]
                    for name, values in boxes.items()
                }
            write_bytes_atomically(folder / image, encoded)
        samples.append(
            SuiteSample(
                image=image,
                **drawn,
                # The image is shown beside it.
                question=" ".join(question.text.replace(IMAGE, " ").split()),
                references=list(dict.fromkeys(question.references)),
                answers={condition: row["answer"] for condition, row in answered[question.id].items()},
                miss=row.get("miss", ""),
                score=row["score"],
                slice=question.slices[0] if question.slices else "",
            )
        )
    return samples
