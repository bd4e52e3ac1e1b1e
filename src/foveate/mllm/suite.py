"""Evaluation suites: questions about images, how answers are scored, and what their data look like on disk.

A suite is a row of `SUITES` in a module of `foveate.mllm.suites`; `foveate.mllm.evaluate` asks and counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from foveate.core.errors import UserError
from foveate.metrics.referring import MISSES, BoxScores, Mode, TruePhrase, score_boxes
from foveate.metrics.text_answers import parse_choice
from foveate.mllm.settings import SuiteSettings
from foveate.multimodal.answers import ModelAnswer, write_corners
from foveate.records.box_text import NUM_BINS
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, Conversation, Conversations
from foveate.records.shapes import Shape

SHORT_ANSWER = "Answer the question using a single word or phrase."
# How the names of our scores and of a published evaluator's begin in what a suite summarizes.
CORRECTED, OFFICIAL = "corrected ", "official "
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class StoredAnswer:
    """A `ModelAnswer` from a row.

    Attributes:
        judged: what a judge replied.
        digits: what the digits behind each box say, of models that write both; see `Answer.digits`.
    """

    text: str
    boxes: tuple[PixelBox, ...] = ()
    finished: bool = True
    judged: Mapping[str, Any] | None = None
    digits: tuple[PixelBox | None, ...] = ()


@dataclass(frozen=True)
class SuiteQuestion:
    """One question of a suite.

    Attributes:
        images: names for `SuiteData.read_image`, in the order of the text's `<image>`.
        text: with `<image>` for each image or none at all, and `<region>` for each region.
        references: accepted answers.
        choices: of a multiple choice; the references are then one of them.
        regions: of the text, in pixels of the image. boxes: of the answer.
        phrases: of a grounded caption, with their true boxes.
        judge_prompt: what a judge is asked, with `<answer>` where the answer stands.
        size: width and height of the image in pixels, where answers are scored by their boxes.
        slices: parts of the suite that are also reported by themselves.
        chance: probability of guessing right, where it is known.
    """

    id: str
    images: tuple[str, ...]
    text: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    regions: tuple[Shape, ...] = ()
    boxes: tuple[PixelBox, ...] = ()
    phrases: tuple[TruePhrase, ...] = ()
    judge_prompt: str = ""
    size: tuple[int, int] | None = None
    slices: tuple[str, ...] = ()
    chance: float | None = None


@dataclass(frozen=True)
class SuiteData:
    """Questions of a suite, and its images by name; `close` ends the reading of images."""

    questions: list[SuiteQuestion]
    read_image: Callable[[str], bytes]
    close: Callable[[], None] = lambda: None


class SuiteVerdict(NamedTuple):
    """Score in [0, 1] of an answer, and what the judge replied, for the row; a score of None is no verdict."""

    score: float | None
    judged: dict[str, Any]


class SuiteJudge(Protocol):
    """Judge of the answers of a suite."""

    def __call__(self, answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> Sequence[SuiteVerdict]: ...


@dataclass(frozen=True)
class Suite:
    """Evaluation suite.

    Attributes:
        title: of its benchmark. metric: name of the score.
        read: data path and split -> questions.
        score: question and answer -> score in [0, 1].
        instruction: behind every question. max_tokens: longest answer.
        summarize: further metrics of questions with their answers.
        explain: why an answer misses, "" for a hit.
        answer: answers in the place of the model, which then is not asked; there are no controls.
        judge: settings -> a judge, whose verdict replaces `score`.
        official: how the names of the published evaluator's scores begin in `summarize`, where ours, which begin with
            "corrected ", deviate on purpose; None where there is no such score.
    """

    title: str
    metric: str
    read: Callable[[Path, str], SuiteData]
    score: Callable[[SuiteQuestion, ModelAnswer], float]
    instruction: str = ""
    max_tokens: int = 32
    summarize: Callable[[Sequence[tuple[SuiteQuestion, StoredAnswer]]], dict[str, float | None]] | None = None
    explain: Callable[[SuiteQuestion, ModelAnswer], str] | None = None
    answer: Callable[[SuiteQuestion], ModelAnswer] | None = None
    judge: Callable[[SuiteSettings], SuiteJudge] | None = None
    official: str | None = None


def read_conversations(path: Path, split: str) -> SuiteData:
    """Read the questions of a collection: of each conversation the first question and its accepted answers.

    `foveate collect` imports the files of VQA, TextVQA, DocVQA, InfographicVQA and ChartQA.

    Raises:
        UserError: it is no collection, or the split has no conversation.
    """
    return collect_questions(path, split, make_question)


def collect_questions(path: Path, split: str, make: Callable[[Conversation], SuiteQuestion]) -> SuiteData:
    """Read the conversations of one split of a collection as questions; see `read_conversations`."""
    collection = Collection.open(path)
    questions = [make(conversation) for conversation in Conversations(collection, split=split)]
    return ask_collection(
        collection, questions, missing=f"split '{split}' has no conversations to ask; `foveate collect` imports them"
    )


def ask_collection(collection: Collection, questions: list[SuiteQuestion], *, missing: str) -> SuiteData:
    """Return questions about images of a collection, which stays open until `SuiteData.close`.

    Args:
        missing: the error where there are no questions.
    """
    if not questions:
        collection.close()
        raise UserError(f"{collection.path}: {missing}")
    return SuiteData(questions, lambda key: collection.image_bytes(collection.find_row(key)), collection.close)


def make_question(conversation: Conversation) -> SuiteQuestion:
    """Turn the first question of a conversation into one of a suite."""
    first = next(index for index, turn in enumerate(conversation.turns) if turn.role == "user")
    question, answer = conversation.turns[first : first + 2]
    several = len(conversation.images) > 1
    return SuiteQuestion(
        id=conversation.id,
        images=conversation.images,
        # A model puts a single image where it was trained to have it.
        text=question.text if several else question.text.replace(IMAGE, "").strip(),
        references=conversation.answers or (answer.text,),
        regions=question.regions,
        choices=conversation.choices,
        boxes=tuple(region for region in answer.regions if isinstance(region, PixelBox)),
    )


_LIST = re.compile(r"\[[\s\d,.+-]+\]")


def write_bins(answer: ModelAnswer, size: tuple[int, int] | None) -> str:
    """Return the text of an answer with its boxes as integers 0..999, as evaluators of Ferret read them.

    The text of an answer contains its boxes in pixels, one list each. Other lists of numbers, such as points, stay as
    they are. If a box is missing from the text, all lists are removed, and the boxes are appended.

    Args:
        size: width and height of the image; without it the text stays as it is.
    """
    if size is None or not answer.boxes:
        return answer.text
    boxes = [_write_box(box, size) for box in answer.boxes]
    lists = _find_box_lists(answer)
    if lists is None:
        return f"{_LIST.sub('', answer.text).rstrip(' .')} {', '.join(boxes)}."
    pieces, start = [], 0
    for match, box in zip(lists, boxes, strict=True):
        pieces += [answer.text[start : match.start()], box]
        start = match.end()
    return "".join([*pieces, answer.text[start:]])


def score_first_boxes(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: Mode) -> BoxScores:
    """Score answers to questions that ask for one box, as evaluators of Ferret read them."""
    questions = [question for question, _ in answered]
    return score_boxes(
        [write_bins(answer, question.size) for question, answer in answered],
        [[box.x1, box.y1, box.x2, box.y2] for question in questions for box in question.boxes],
        [question.size or (0, 0) for question in questions],
        [question.references[0] for question in questions],
        mode=mode,
    )


def score_by(explain: Callable[[SuiteQuestion, ModelAnswer], str]) -> Callable[[SuiteQuestion, ModelAnswer], float]:
    """Return the score that is 1 where `explain` has no reason of a miss."""
    return lambda question, answer: float(explain(question, answer) == "")


def explain_box(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return why the first box of an answer misses, corrected; "" for a hit."""
    return score_first_boxes([(question, answer)], "corrected").misses[0]


def share_misses(misses: Sequence[str]) -> dict[str, float | None]:
    """Return the share of each reason of a miss among all answers."""
    return {f"missed, {reason}": misses.count(reason) / len(misses) for reason in MISSES}


def _find_box_lists(answer: ModelAnswer) -> list[re.Match[str]] | None:
    """Return the list in the text of each box, None if a box has none."""
    lists = list(_LIST.finditer(answer.text))
    if len(lists) == len(answer.boxes):
        return lists
    # One iterator for all boxes: each list is used once, so two equal boxes find two lists.
    chosen, rest = [], iter(lists)
    for box in answer.boxes:
        match = next((match for match in rest if match[0] == write_corners(box)), None)
        if match is None:
            return None
        chosen.append(match)
    return chosen


def move_answer(answer: ModelAnswer, size: tuple[int, int], target: tuple[int, int]) -> StoredAnswer:
    """Move the boxes of an answer, also those in its text, to the same place of an image of another size.

    Args:
        size: width and height in pixels of the image that the answer is about. target: those of the other image.
    """
    across, down = (new / old for new, old in zip(target, size, strict=True))

    def move(box: PixelBox) -> PixelBox:
        return PixelBox(box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)

    boxes, text = tuple(move(box) for box in answer.boxes), answer.text
    # From the end, so that the places of earlier lists do not change.
    for match, box in reversed(list(zip(_find_box_lists(answer) or (), boxes, strict=False))):
        text = text[: match.start()] + write_corners(box) + text[match.end() :]
    digits = tuple(box and move(box) for box in getattr(answer, "digits", ()))
    return StoredAnswer(text, boxes, answer.finished, digits=digits)


def _write_box(box: PixelBox, size: tuple[int, int]) -> str:
    """Write a box as bins; those that a model wrote come back, also at the far edge, which `format_region` moves."""
    (x1, x2), (y1, y2) = sorted((box.x1, box.x2)), sorted((box.y1, box.y2))
    # Truncated, so that a box that was decoded at the centers of its bins gets them back; the far edge of an image
    # would be bin 1000, which no text has.
    bins = (int(NUM_BINS * value / side) for value, side in zip((x1, y1, x2, y2), (*size, *size), strict=True))
    return f"[{', '.join(str(min(max(number, 0), NUM_BINS - 1)) for number in bins)}]"


def folder_reader(folder: Path) -> Callable[[str], bytes]:
    """Return a reader of image files below `folder`.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the suite's images")
    return lambda name: (folder / name).read_bytes()


def letter_choices(question: str, choices: Iterable[str], *, hint: str = "") -> str:
    """Write a question with lettered choices, each on a line: LLaVA's form of ScienceQA and AI2D."""
    lines = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(choices)]
    return "\n".join([*([f"Context: {hint}"] if hint else []), question, *lines])


def score_choice(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Score 1 if the answer names the right choice, by letter or text; nothing is guessed."""
    index = parse_choice(answer.text, question.choices)
    return float(index is not None and question.choices[index] in question.references)
