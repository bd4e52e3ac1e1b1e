"""POPE: `coco_pope_random|popular|adversarial.json` (JSON Lines) beside COCO's images in `val2014`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.json_fields import get_field, read_lines
from foveate.metrics.referring import score_presence
from foveate.metrics.text_answers import parse_pope
from foveate.mllm.suite import SHORT_ANSWER, ModelAnswer, StoredAnswer, Suite, SuiteData, SuiteQuestion, folder_reader


def read(path: Path, split: str) -> SuiteData:
    """Read all three kinds of negatives; POPE has no splits."""
    files = sorted(path.glob("*pope_*.json"))
    if not files:
        raise UserError(f"{path}: no files coco_pope_*.json; expected the folder of POPE")
    questions = [
        _read(entry, file.stem.rpartition("pope_")[2], where=f"{file}, line {number}")
        for file in files
        for number, entry in enumerate(read_lines(file), 1)
    ]
    return SuiteData(questions, folder_reader(path / "val2014"))


def _read(entry: dict, kind: str, *, where: str) -> SuiteQuestion:
    label = get_field(entry, "label", str, where=where)
    if label not in ("yes", "no"):
        raise UserError(f"{where}: label '{label}'; expected yes or no")
    return SuiteQuestion(
        # The three files use the same question numbers.
        id=f"{kind}/{entry.get('question_id', where)}",
        images=(get_field(entry, "image", str, where=where),),
        text=get_field(entry, "text", str, where=where),
        references=(label,),
        slices=(kind,),
        chance=0.5,
    )


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Accuracy by POPE's reading of the answer."""
    return float(parse_pope(answer.text) == (question.references[0] == "yes"))


def summarize(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
    """Precision, recall, F1 of "yes" and the share of yes; the same for answers parsed by meaning."""
    truth = [question.references[0] == "yes" for question, _ in answered]
    texts = [answer.text for _, answer in answered]
    corrected = score_presence(texts, truth)
    return score_presence(texts, truth, mode="official") | {f"corrected {name}": v for name, v in corrected.items()}


SUITE = Suite("POPE", "accuracy", read, score, instruction=SHORT_ANSWER, summarize=summarize)
