"""Self-check: true boxes are written as text of 0..999 and read back; no model is asked.

It shows what the form of boxes itself costs: all boxes of 32 pixels and more must come back at IoU .5, with the robust
parser and with the official one. Data are a collection with regions, or a file or folder of RefCOCO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foveate.core.errors import UserError
from foveate.metrics.referring import MISSES, BoxScores, Mode, score_boxes
from foveate.mllm.suite import ModelAnswer, StoredAnswer, Suite, SuiteData, SuiteQuestion
from foveate.mllm.suites import refcoco
from foveate.records.box_text import format_region
from foveate.records.collection import Collection
from foveate.records.layout import DESCRIPTION

MIN_SIDE = 32


def read(path: Path, split: str) -> SuiteData:
    """Read the regions of one split of a collection, or RefCOCO's expressions."""
    if not (path / DESCRIPTION).is_file():
        data = refcoco.read(path, split)
        return SuiteData([_slice(question) for question in data.questions], data.read_image, data.close)
    collection = Collection.open(path)
    questions = [
        SuiteQuestion(
            id=f"{record.key}/{number}",
            images=(record.key,),
            text=f"Where is the {region.phrase}?",
            references=(region.phrase,),
            boxes=(region.box.to_pixels(record.width, record.height),),
            size=(record.width, record.height),
        )
        for record in (collection.record(row) for row in collection.rows(split))
        for number, region in enumerate(record.regions)
    ]
    if not questions:
        collection.close()
        raise UserError(f"{path}: split '{split}' has no regions; expected a collection with boxes")
    return SuiteData(
        [_slice(question) for question in questions],
        lambda key: collection.image_bytes(collection.find_row(key)),
        collection.close,
    )


def _slice(question: SuiteQuestion) -> SuiteQuestion:
    (box,) = question.boxes
    large = min(box.x2 - box.x1, box.y2 - box.y1) >= MIN_SIDE
    return replace(question, slices=(f"{MIN_SIDE} pixels and more" if large else f"below {MIN_SIDE} pixels",))


def answer(question: SuiteQuestion) -> StoredAnswer:
    """Write the true box as a model would."""
    assert question.size is not None
    width, height = question.size
    return StoredAnswer(f"{question.references[0]} {format_region(question.boxes[0], width=width, height=height)}.")


def _score(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: Mode) -> BoxScores:
    return score_boxes(
        # Pass only the text: boxes given beside it would pass without being written and parsed.
        [answer.text for _, answer in answered],
        [[box.x1, box.y1, box.x2, box.y2] for question, _ in answered for box in question.boxes],
        [question.size or (0, 0) for question, _ in answered],
        [question.references[0] for question, _ in answered],
        mode=mode,
    )


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Whether the box comes back at IoU .5."""
    return float(_score([(question, answer)], "corrected").first_N[0])


def explain(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the reason of a miss, "" for a hit."""
    return _score([(question, answer)], "corrected").misses[0]


def summarize(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
    """The same of the official parser, by size, and the share of each reason."""
    sizes = [question.slices[0] for question, _ in answered]
    further: dict[str, float | None] = {}
    for mode in ("official", "corrected"):
        scores = _score(answered, mode)
        further |= {f"{mode}, {name}": values["k=1"] for name, values in scores.summarize(sizes).items()}
        if mode == "corrected":
            further |= {f"missed, {reason}": scores.misses.count(reason) / len(sizes) for reason in MISSES}
    return further


SUITE = Suite(
    "Self-check of boxes as text",
    "accuracy at IoU .5",
    read,
    score,
    summarize=summarize,
    explain=explain,
    answer=answer,
)
