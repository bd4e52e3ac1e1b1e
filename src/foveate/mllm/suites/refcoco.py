"""RefCOCO, RefCOCO+ and RefCOCOg: the JSON files that `foveate collect` reads, and COCO's images in `train2014`.

The table has the corrected accuracy at k = 1. Beside it stand the official ones, and the shares of misses by reason;
see `foveate.metrics.referring.score_boxes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveate.core.errors import UserError
from foveate.metrics.referring import MISSES, BoxScores, Mode, score_boxes
from foveate.mllm.suite import ModelAnswer, Suite, SuiteData, SuiteQuestion, folder_reader, write_bins
from foveate.records.importers.grounded import Expression, read_expressions


def read(path: Path, split: str) -> SuiteData:
    """Read the expressions of one split ("val", "testA", "testB", "test") of all files of a folder, or of one file."""
    files = [path] if path.is_file() else sorted((*path.glob("*refcoco*.json"), *path.glob("refs*.json")))
    if not files:
        raise UserError(f"{path}: no files *refcoco*.json or refs*.json; expected RefCOCO as JSON")
    questions = []
    for file in files:
        for expression in read_expressions(file):
            # The files of MDETR and Ferret have one split each, given by their names.
            if split == (expression.split or file.stem.rpartition("_")[2]):
                questions.append(_make(expression, file))
    if not questions:
        raise UserError(f"{path}: no expressions of the split '{split}'; expected val, testA, testB or test")
    root = path if path.is_dir() else path.parent
    images = root / "train2014"
    return SuiteData(questions, folder_reader(images if images.is_dir() else root))


def _make(expression: Expression, file: Path) -> SuiteQuestion:
    if expression.problem or expression.box is None or expression.size is None:
        raise UserError(f"{file}: {expression.problem or f'{expression.id}: no width and height of its image'}")
    # The official question has no commas. The reference keeps them: phrases are compared without punctuation.
    phrase = expression.phrase.replace(",", "").strip()
    name = expression.dataset or file.stem
    return SuiteQuestion(
        id=f"{name}/{expression.id}",
        images=(expression.names[-1],),
        text=f"Where is {phrase} in the image?",
        references=(expression.phrase,),
        boxes=(expression.box,),
        slices=(name,),
        size=expression.size,
    )


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Corrected accuracy at k = 1."""
    return float(_score([(question, answer)], "corrected").first_N[0])


def _score(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: Mode) -> BoxScores:
    questions = [question for question, _ in answered]
    return score_boxes(
        [write_bins(answer, question.size) for question, answer in answered],
        [[box.x1, box.y1, box.x2, box.y2] for question in questions for box in question.boxes],
        [question.size or (0, 0) for question in questions],
        [question.references[0] for question in questions],
        mode=mode,
    )


def explain(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the reason of a miss, "" for a hit."""
    return _score([(question, answer)], "corrected").misses[0]


def summarize(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Official and corrected accuracies, of each data set too, and the share of each reason among all answers."""
    sets = [question.slices[0] for question, _ in answered]
    further: dict[str, float | None] = {}
    for mode in ("official", "corrected"):
        scores = _score(answered, mode)
        parts = scores.summarize()
        if len(set(sets)) > 1:
            parts |= scores.summarize(sets)
        for name, values in parts.items():
            further |= {" ".join(filter(None, (mode, key, str(name)))): value for key, value in values.items()}
        if mode == "corrected":
            further |= {f"missed, {reason}": scores.misses.count(reason) / len(sets) for reason in MISSES}
    return further


SUITE = Suite(
    "RefCOCO", "accuracy at IoU .5, corrected", read, score, max_tokens=64, summarize=summarize, explain=explain
)
