"""Evaluation suites: questions about images, how answers are scored, and what their data look like on disk.

A suite is a module of `foveate.mllm.suites` with a `SUITE`; `foveate.mllm.evaluate` asks and counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.metrics.text_answers import parse_choice
from foveate.multimodal.askable import ModelAnswer
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, Conversation, Conversations
from foveate.records.shapes import Shape

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class SuiteQuestion:
    """One question of a suite.

    Attributes:
        images: names for `SuiteData.read_image`, in the order of the text's `<image>`.
        text: with `<image>` for each image or none at all, and `<region>` for each region.
        references: accepted answers.
        choices: of a multiple choice; the references are then one of them.
        regions: of the text, in pixels of the image. boxes: of the answer.
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
    slices: tuple[str, ...] = ()
    chance: float | None = None


@dataclass(frozen=True)
class SuiteData:
    """Questions of a suite, and its images by name; `close` ends the reading of images."""

    questions: list[SuiteQuestion]
    read_image: Callable[[str], bytes]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Suite:
    """Evaluation suite.

    Attributes:
        title: of its benchmark. metric: name of the score.
        read: data path and split -> questions.
        score: question and answer -> score in [0, 1].
        instruction: behind every question. max_tokens: longest answer.
        summarize: further metrics of (question, answer's text) pairs.
    """

    title: str
    metric: str
    read: Callable[[Path, str], SuiteData]
    score: Callable[[SuiteQuestion, ModelAnswer], float]
    instruction: str = ""
    max_tokens: int = 32
    summarize: Callable[[Sequence[tuple[SuiteQuestion, str]]], dict[str, float | None]] | None = None


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
    if not questions:
        collection.close()
        raise UserError(f"{path}: split '{split}' has no conversations to ask; `foveate collect` imports them")
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


def folder_reader(folder: Path) -> Callable[[str], bytes]:
    """Return a reader of image files below `folder`.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the suite's images")
    return lambda name: (folder / name).read_bytes()


def read_table(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise UserError if the file is none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object (got {type(content).__name__})")
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON Lines; raise UserError with the number of a line that is no object."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(entry, dict):
            raise UserError(f"{path}, line {number}: expected an object (got {type(entry).__name__})")
        entries.append(entry)
    return entries


def get_field(entry: Mapping[str, Any], name: str, kind: type, *, where: str) -> Any:
    """Return a field of an entry; raise UserError if it is absent or of another type."""
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) and kind is int:
        raise UserError(f"{where}: field '{name}' must be of type {kind.__name__} (got {value!r:.60})")
    return value


def letter_choices(question: str, choices: Iterable[str], *, hint: str = "") -> str:
    """Write a question with lettered choices, each on a line: LLaVA's form of ScienceQA and AI2D."""
    lines = [f"{chr(ord('A') + index)}. {choice}" for index, choice in enumerate(choices)]
    return "\n".join([*([f"Context: {hint}"] if hint else []), question, *lines])


def score_choice(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Score 1 if the answer names the right choice, by letter or text; nothing is guessed."""
    index = parse_choice(answer.text, question.choices)
    return float(index is not None and question.choices[index] in question.references)
