"""Scores of answers about videos: multiple choice, a judge's replies, and whether the frames held the evidence.

Every reader comes twice. The official one repeats the evaluator that published numbers come from, slips included, so
that numbers can be compared; the strict one guesses nothing. Neither leaves a question out: what cannot be read is
counted, and wrong.
"""

from __future__ import annotations

import ast
import json
import math
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from foveate.core.errors import UserError, choose

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LEADING_LETTER = re.compile(r"""^[\s"'`*(\[{<]*([A-Za-z])(?=$|[)\]}>.:,;*"'`\n]|\s*$|\s+[-–—]\s)""")
_LETTER_PHRASE = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be))?\s*[:=]?\s*(?:(?:option|choice)\s*)?"
    r"""[*"'`]*\(?([A-Z])(?=$|[)\]}.:,;*"'`]|\s*$)""",
    re.IGNORECASE,
)
_FENCE_START, _FENCE_END = re.compile(r"^```[^\S\n]*\w*[^\S\n]*\n"), re.compile(r"\n[^\S\n]*```$")
# What a literal that is none raises: also one that is nested too deep, or has too many digits.
_NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
VCGBENCH_ASPECTS = ("CI", "DO", "CU", "TU", "CO")


def parse_letter(answer: str, candidates: Sequence[str] | int) -> int | None:
    """Read which candidate an answer names, counted from 0; None if it names none or several.

    In this order: a letter in front ("B", "(b)", "B) run", "B - run"); the text of one candidate alone; upper-case
    letters behind "answer", "option" or "choice", if all name the same candidate. A letter beyond the candidates names
    none. `text_answers.parse_choice` follows other evaluators and reads some answers differently.

    Args:
        candidates: their texts, or their number where the texts are not known.

    Raises:
        UserError: no candidates, or more than letters.

    >>> parse_letter("The answer is (B).", ["run", "sit"]), parse_letter("A man is running", ["run", "sit"])
    (1, None)
    """
    texts = () if isinstance(candidates, int) else candidates
    count = candidates if isinstance(candidates, int) else len(candidates)
    if not 1 <= count <= len(_LETTERS):
        raise UserError(f"candidates: cannot be lettered (got {count}); expected 1 to {len(_LETTERS)}")
    letters = _LETTERS[:count]
    # Judged by form before text: "B" may also be the text of a candidate.
    leading = _LEADING_LETTER.match(answer)
    if leading and leading[1].lower() in letters:
        return letters.index(leading[1].lower())
    normalized = _normalize_text(answer)
    # Equal, not contained: "A man is running" names "run" only to a reader who guesses.
    matches = [index for index, text in enumerate(texts) if _normalize_text(text) == normalized]
    if len(matches) == 1:
        return matches[0]
    # Upper case only: the pattern ignores case for "Answer is", but "option a" may begin words.
    named = {match[1].lower() for match in _LETTER_PHRASE.finditer(answer) if match[1].isupper()}
    return letters.index(named.pop()) if len(named) == 1 and named <= set(letters) else None


def _normalize_text(text: str) -> str:
    return " ".join(text.strip().strip(".").split()).casefold()


def parse_letter_official(answer: str) -> int | None:
    """Read an answer as the official evaluator does: 0 to 4, or None.

    The first of "A:", "A)", "B:", ... anywhere in the text overrides the first letter: "C) run; not A) sit" is 0, and
    "Apple pie" too. An empty answer, which ends that evaluator with an error, is None here.

    Source: apple/ml-slowfast-llava, eval/eval_multiple_choice_qa.py at bea0f73.
    """
    # `find` returns 0 for an empty text: an empty answer would be read as A.
    index = "abcde".find(answer[:1].lower()) if answer else -1
    start = answer.find("answer is ")
    text = answer[start:] if start >= 0 else answer
    marked = [i for i, letter in enumerate("ABCDE") if f"{letter}:" in text or f"{letter})" in text]
    if marked:
        return marked[0]
    return index if index >= 0 else None


@dataclass(frozen=True)
class TaskAccuracy:
    """Answers of one task.

    Args:
        unparsed: how many name no candidate; they are wrong.
    """

    correct: int
    unparsed: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def choice_accuracy(
    predicted: Sequence[int | None], true: Sequence[int], tasks: Sequence[str] | None = None
) -> tuple[float, dict[str, TaskAccuracy]]:
    """Return the accuracy of choices, and that of each task; several tasks weigh the same, whatever their size.

    Args:
        predicted: read by `parse_letter` or `parse_letter_official`; None is wrong.
        true: the right candidates, counted from 0.
        tasks: the task of each question; by default all are of one task "".

    Raises:
        UserError: no questions, or not as many predictions and tasks as questions.
    """
    tasks = [""] * len(true) if tasks is None else tasks
    if not true or not len(predicted) == len(true) == len(tasks):
        raise UserError(
            f"choices: {len(predicted)} answers and {len(tasks)} tasks for {len(true)} questions; expected one for each"
        )
    rows: dict[str, list[tuple[int | None, int]]] = {}
    for task, answer, truth in zip(tasks, predicted, true, strict=True):
        rows.setdefault(task, []).append((answer, truth))
    per_task = {
        task: TaskAccuracy(sum(a == t for a, t in pairs), sum(a is None for a, _ in pairs), len(pairs))
        for task, pairs in rows.items()
    }
    return statistics.fmean(task.accuracy for task in per_task.values()), per_task


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on an answer.

    Args:
        yes: whether the answer is right; None where only a score was requested.
        score: from 0 to 5.
    """

    yes: bool | None
    score: float


def parse_verdict(reply: str, *, score_only: bool = False) -> Verdict | None:
    """Read a judge's reply, a dictionary such as {'pred': 'yes', 'score': 4.5}; None if it is nothing of the kind.

    A code fence around it and a full stop behind it are accepted. `pred` must be yes or no, in any case; the score a
    number from 0 to 5, or the text of one.

    Args:
        score_only: expect a score without `pred`, as VCGBench's judge gives.

    >>> parse_verdict("{'pred': 'Yes', 'score': '4'}"), parse_verdict("{'pred': 'not sure', 'score': 2}")
    (Verdict(yes=True, score=4.0), None)
    """
    text = _FENCE_END.sub("", _FENCE_START.sub("", reply.strip())).strip()
    try:
        # Judges answer in Python's spelling with single quotes, which JSON refuses; a literal runs no code.
        value = ast.literal_eval(text[:-1] if text.endswith("}.") else text)
    except _NO_LITERAL:
        return None
    score = _read_score(value.get("score")) if isinstance(value, dict) else None
    if score is None or score_only:
        return None if score is None else Verdict(None, score)
    prediction = value.get("pred")
    prediction = prediction.strip().lower() if isinstance(prediction, str) else ""
    return Verdict(prediction == "yes", score) if prediction in ("yes", "no") else None


def _read_score(value: Any) -> float | None:
    # bool is an int: True would be a score of 1.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    # NaN fails both comparisons.
    return score if 0 <= score <= 5 else None


@dataclass(frozen=True)
class VerdictScores:
    """Scores of a judged test set; what needs a readable reply is None where there is none.

    Args:
        accuracy: share of yes among all questions, the headline; None where only scores were requested.
        parsed_accuracy: share of yes among the readable replies.
        mean_score: of the readable replies.
        mean_truncated_score: of the same without decimals, as the official evaluator counts; for comparison only.
        unparsed: replies that are no verdict.
        failed: requests without a reply.
    """

    total: int
    unparsed: int
    failed: int
    accuracy: float | None
    parsed_accuracy: float | None
    mean_score: float | None
    mean_truncated_score: float | None


def score_verdicts(replies: Sequence[str | None], *, score_only: bool = False) -> VerdictScores:
    """Score a judge's replies, one for each question; None is a request that failed. None is left out.

    Args:
        score_only: as for `parse_verdict`.

    Raises:
        UserError: no replies.
    """
    if not replies:
        raise UserError("judge: no replies; expected one for each question")
    verdicts = [None if reply is None else parse_verdict(reply, score_only=score_only) for reply in replies]
    parsed = [verdict for verdict in verdicts if verdict is not None]
    failed = sum(reply is None for reply in replies)
    hits = sum(verdict.yes is True for verdict in parsed)
    return VerdictScores(
        total=len(replies),
        unparsed=len(replies) - len(parsed) - failed,
        failed=failed,
        # Over all questions: failed requests and unreadable replies must not raise the accuracy.
        accuracy=None if score_only else hits / len(replies),
        parsed_accuracy=None if score_only or not parsed else hits / len(parsed),
        mean_score=statistics.fmean(verdict.score for verdict in parsed) if parsed else None,
        mean_truncated_score=statistics.fmean(int(verdict.score) for verdict in parsed) if parsed else None,
    )


@dataclass(frozen=True)
class OfficialVerdictScores:
    """What the official evaluator prints: `accuracy` is of yes among yes and no, None where only scores count.

    Args:
        num_scored: replies that count for the mean score; the others are in no denominator.
    """

    accuracy: float | None
    mean_score: float
    yes: int
    no: int
    num_scored: int


def score_verdicts_official(replies: Sequence[str | None], *, score_only: bool = False) -> OfficialVerdictScores | None:
    """Score a judge's replies as the official evaluators do; None where they end with an error and print nothing.

    They look for "yes", then for "no", anywhere in `pred` ("not sure" is a no), cut decimals off scores, count a reply
    without a readable score as 0, and forget failed requests and replies that are no literal of Python. They end with
    an error if nothing is left to divide by, or if a literal has no form in JSON (a set).

    Source: apple/ml-slowfast-llava, eval/eval_video_qa.py and eval/eval_generative_qa.py at bea0f73.
    """
    values = []
    for reply in replies:
        try:
            values.append(ast.literal_eval(reply or ""))
        except _NO_LITERAL:
            continue
    yes = no = total = 0
    for value in values:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            return None
        try:
            # Before `pred` is read: a reply without one still counts in the mean score there.
            total += int(value["score"])
            prediction = "" if score_only else value["pred"].lower()
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError):
            continue
        yes += "yes" in prediction
        no += "yes" not in prediction and "no" in prediction
    if not values or not (score_only or yes + no):
        return None
    return OfficialVerdictScores(None if score_only else yes / (yes + no), total / len(values), yes, no, len(values))


def vcgbench_mean(scores: Mapping[str, float]) -> float:
    """Return the mean of VCGBench's five scores: correctness, detail, context, time, consistency.

    Raises:
        UserError: an aspect is missing or unknown.

    >>> round(vcgbench_mean({"CI": 3.09, "DO": 2.7, "CU": 3.57, "TU": 2.52, "CO": 3.35}), 3)
    3.046
    """
    for aspect in scores:
        choose(aspect, VCGBENCH_ASPECTS, "aspect of VCGBench")
    missing = [aspect for aspect in VCGBENCH_ASPECTS if aspect not in scores]
    if missing:
        raise UserError(f"VCGBench: no score of {', '.join(missing)}; expected {', '.join(VCGBENCH_ASPECTS)}")
    return statistics.fmean(scores.values())


def evidence_recall(evidence: Sequence[Sequence[Collection[int]]], frames: Sequence[Collection[int]]) -> float:
    """Return the share of questions whose evidence is among the frames that a model was given.

    Args:
        evidence: of each question, groups of frames: one frame of every group is needed. An event of a single frame is
            a group of one; a sign that is long in sight is one group of many; the order of two events is two groups.
        frames: of each question, the numbers of the frames that were given; repeats do not matter.

    Raises:
        UserError: no questions, a question or a group without frames, or not as many `frames` as questions.

    >>> evidence_recall([[{3}], [{0, 1}, {7}]], [[0, 3], [1, 2]])
    0.5
    """
    if not evidence or len(evidence) != len(frames):
        raise UserError(f"evidence: of {len(evidence)} questions for {len(frames)} lists of frames; expected as many")
    for index, groups in enumerate(evidence):
        if not groups or not all(groups):
            raise UserError(f"evidence: question {index} has no frames or an empty group; expected at least one frame")
    return statistics.fmean(
        all(not set(group).isdisjoint(indices) for group in groups)
        for groups, indices in zip(evidence, frames, strict=True)
    )


# Category means and MMBase of MM1.5, from raw scores of benchmarks.


CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "general": ("MME", "SEED-I", "POPE", "LLaVA-W", "MM-Vet", "RealWorldQA"),
        "text_rich": ("WTQ", "TabFact", "OCRBench", "ChartQA", "TextVQA", "DocVQA", "InfoVQA"),
        "knowledge": ("AI2D", "ScienceQA", "MathVista", "MMMU"),
        "refer_ground": ("RefCOCO", "Flickr30k", "LVIS-Ref", "Ferret-Bench"),
        "multi_image": ("QBench2", "Mantis", "NLVR2", "BLINK", "MVBench", "MuirBench"),
    }
)
MMBASE = ("general", "text_rich", "knowledge")
_BENCHMARKS = tuple(name for names in CATEGORIES.values() for name in names)
_MME_PARTS = ("perception", "cognition")
# Highest raw scores, which the paper divides by to bring a benchmark to 0..100. MME: 2000 points of perception and 800
# of cognition. LLaVA-W is relative to a reference model and may pass 100, so nothing bounds the others from above.
_SCALES = {"MME": 28.0, "OCRBench": 10.0}

Raw = float | Mapping[str, float]


@dataclass(frozen=True)
class CategoryScores:
    """Means of MM1.5's categories; None where a benchmark of the category has no score.

    Attributes:
        benchmarks: normalized to 0..100.
        categories: plain mean of a category's benchmarks.
        mmbase: mean of general, text_rich and knowledge.
        five_category_mean: mean of all five.
        missing: benchmarks without a score.
    """

    benchmarks: dict[str, float]
    categories: dict[str, float | None]
    mmbase: float | None
    five_category_mean: float | None
    missing: tuple[str, ...]


def normalize_benchmark(name: str, raw: Raw) -> float:
    """Bring a benchmark's raw score to 0..100 as MM1.5 does.

    MME is (perception + cognition) / 28 and OCRBench its points / 10; all others are percentages already. A share in
    0..1 is not recognized: it would count as less than one percent.

    Args:
        raw: a number, for MME a mapping with `perception` and `cognition`.

    Raises:
        UserError: for an unknown benchmark, or a score that is negative or no finite number.
    """
    choose(name, _BENCHMARKS, "benchmark")
    parts: Mapping[str, float] = raw if isinstance(raw, Mapping) else {name: raw}
    expected = _MME_PARTS if name == "MME" else (name,)
    if set(parts) != set(expected):
        raise UserError(f"benchmark {name}: expected {' and '.join(expected)} (got {raw!r})")
    for value in parts.values():
        # A bool is an int in Python, but as a score it is a mistake.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise UserError(f"benchmark {name}: not a score (got {value!r}); expected a number >= 0")
    return math.fsum(parts.values()) / _SCALES.get(name, 1.0)


def category_scores(raw: Mapping[str, Raw]) -> CategoryScores:
    """Compute category means and MMBase; a category with a missing benchmark has none, rather than another mean.

    Args:
        raw: benchmark -> raw score, see `normalize_benchmark`.

    Source: MM1.5 (arXiv 2409.20566), evaluation.

    Raises:
        UserError: as `normalize_benchmark`.

    Example:
        >>> scores = category_scores({"MME": {"perception": 1500.0, "cognition": 320.0}})
        >>> round(scores.benchmarks["MME"], 1), scores.mmbase  # a mean needs all of its benchmarks
        (65.0, None)
    """
    benchmarks = {name: normalize_benchmark(name, value) for name, value in raw.items()}
    categories = {category: _mean([benchmarks.get(name) for name in names]) for category, names in CATEGORIES.items()}
    return CategoryScores(
        benchmarks=benchmarks,
        categories=categories,
        mmbase=_mean([categories[name] for name in MMBASE]),
        five_category_mean=_mean(list(categories.values())),
        missing=tuple(name for name in _BENCHMARKS if name not in benchmarks),
    )


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    # All or nothing: a mean without the hard benchmark would look like progress.
    return sum(present) / len(present) if len(present) == len(values) else None
