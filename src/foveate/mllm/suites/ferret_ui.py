"""Ferret-UI's elementary tasks: name texts, icons and widgets of a screen, and find them.

Data are a folder of annotation files in the layout of apple/ml-ferret (`ferretui/playground/sample_data`), each with a
task in its name (`ocr_iphone.json`), and the screens in `images` or beside them, or a collection of generated screens.

The paper gives the scores (exact match of texts, accuracy of icon and widget classes, boxes with an IoU above .5, and
their means by platform); its test questions are not released. "as published" in the results takes these sentences to
the letter, with Ferret's own parser of boxes. Tasks without a published score, or with a judge whose prompt is not
published, are left out with a warning.

Source: Ferret-UI (arXiv 2404.05719), sections 4.2 and 5.1, appendix A; names of tasks: `ferretui/eval/model_UI.py` at
3c9e5c9.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.metrics.grounding import IOU_THRESHOLD
from foveate.metrics.referring import MISSES, BoxScores, Mode, score_boxes
from foveate.metrics.text_answers import normalize_vqa
from foveate.mllm.suite import ModelAnswer, Suite, SuiteData, SuiteQuestion, folder_reader, write_bins
from foveate.records.box_text import parse_boxes
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, REGION
from foveate.records.importers.conversation_file import MalformedEntryError, read_entries
from foveate.records.importers.conversations import parse_ferret
from foveate.records.layout import DESCRIPTION, annotation_kinds

OCR, ICON, CLASS = REFERRING = ("ocr", "icon recognition", "widget classification")
GROUNDING = ("find text", "find icons", "find widget")
MEANS = {"referring": REFERRING, "grounding": GROUNDING}
_NO_SCORE = "the paper counts it in no mean and gives no score"
_NO_PROMPT = "GPT-4 scores it, and its prompt is not published"
_SPOTLIGHT = "a task of Spotlight with a score of its own"
UNSCORED = {
    "widget listing": _NO_SCORE,
    **dict.fromkeys(("detailed description", "conversation perception", "conversation interaction"), _NO_PROMPT),
    "function inference": _NO_PROMPT,
    **dict.fromkeys(("screen2words", "widgetcaptions", "taperception"), _SPOTLIGHT),
}
# Wordings that training on generated screens holds out (`foveate_labs.worlds.screens.questions`); a test compares them.
_FIND = 'Show where the {type} "{text}" is.'
_WIDGET_TYPE = "Which type of widget is <region>?"
PLATFORMS = ("iphone", "android")
_MODES: dict[str, Mode] = {"as published": "official", "corrected": "corrected"}
_MAX_TOKENS_OF_TEXT = 10
# The box of a widget of these types shows its text and nothing else.
_TEXT_TYPES = ("title", "button", "tab")


def read(path: Path, split: str) -> SuiteData:
    """Read annotation files, which have no splits, or one split of a collection of screens."""
    if (path / DESCRIPTION).is_file():
        collection = Collection.open(path)
        questions = list(_ask_screens(collection, split)) if "screens" in annotation_kinds(path) else []
        if not questions:
            collection.close()
            raise UserError(
                f"{path}: split '{split}' has no screens; expected a collection of `foveate collect screens`"
            )
        return SuiteData(questions, lambda key: collection.image_bytes(collection.find_row(key)), collection.close)
    files = sorted(path.glob("*.json"))
    tasks = {file: _find_task(file) for file in files}
    for file, task in tasks.items():
        if task in UNSCORED:
            warnings.warn(f"{file}: the task '{task}' is left out: {UNSCORED[task]}", stacklevel=2)
    questions = [
        question for file in files if tasks[file] not in UNSCORED for question in _read_file(file, tasks[file])
    ]
    if not questions:
        raise UserError(f"{path}: no questions to score; expected files named after {', '.join(REFERRING + GROUNDING)}")
    images = path / "images"
    return SuiteData(questions, folder_reader(images if images.is_dir() else path))


def _find_task(file: Path) -> str:
    """Return the task that the name of a file holds, as in the published code."""
    name = _squeeze(file.stem)
    tasks = (*REFERRING, *GROUNDING, *UNSCORED)
    task = next((task for task in tasks if _squeeze(task).removesuffix("s") in name), None)
    if task is None:
        raise UserError(f"{file}: its name has no task; expected one of {', '.join(REFERRING + GROUNDING)}")
    return task


def _squeeze(name: str) -> str:
    return re.sub(r"[_\W]+", "", name.casefold())


def _read_file(file: Path, task: str) -> Iterator[SuiteQuestion]:
    platform = next((name for name in PLATFORMS if name in _squeeze(file.stem)), "")
    for number, entry in read_entries(file):
        where = f"{file}, entry {number}"
        try:
            yield _read_entry(entry, task, platform, id=f"{file.stem}/{number}")
        except MalformedEntryError as error:
            raise UserError(f"{where}: {error}") from error


def _read_entry(entry: object, task: str, platform: str, *, id: str) -> SuiteQuestion:
    if not isinstance(entry, Mapping):
        raise MalformedEntryError(f"expected an object with 'conversations' (got {str(entry)[:60]})")
    draft = parse_ferret(entry)
    if not draft.images or not draft.images[0].names or draft.stated is None:
        raise MalformedEntryError("expected 'image', 'image_w' and 'image_h'")
    if not draft.turns:
        raise MalformedEntryError("'conversations' is empty")
    question, *answers = draft.turns
    label = answers[0].text if answers else str(entry.get("label") or "")
    if not label.strip():
        raise MalformedEntryError("no answer; expected a second turn or 'label' (the released samples have none)")
    boxes: tuple[PixelBox, ...] = ()
    if task in GROUNDING:
        # Boxes of a turn were parsed with it; those of a `label` are still text.
        written = answers[0].regions if answers else ()
        boxes = tuple(box for box in written if isinstance(box, PixelBox)) or parse_boxes(label, draft.stated).boxes
        if not boxes:
            raise MalformedEntryError(f"no box in the answer {label[:60]!r}")
        label = _strip_boxes(label)
    # The published code reads screens by the last part of their names.
    image = draft.images[0].names[0].rpartition("/")[2]
    text = question.text.replace(IMAGE, "").strip()
    # One box per question: boxes are scored in one table, where a second one would shift all that follow.
    return _make(id, image, text, task, label, platform, regions=question.regions, boxes=boxes[:1], size=draft.stated)


def _strip_boxes(text: str) -> str:
    return re.sub(r"\[[\s\d,.]*\]", "", text.replace(REGION, "")).strip(" .")


def _make(
    id: str, image: str, text: str, task: str, label: str, platform: str, *, size: tuple[int, int], **shapes: Any
) -> SuiteQuestion:
    slices = (task, f"{platform}, {task}") if platform else (task,)
    return SuiteQuestion(
        id=id, images=(image,), text=text, references=(label.strip(),), slices=slices, size=size, **shapes
    )


def _ask_screens(collection: Collection, split: str) -> Iterator[SuiteQuestion]:
    """Ask about each element as the paper's data do: once to name it, and once to find it if it is unique."""
    table = collection.grouped("screens")
    for row in collection.rows(split).tolist():
        record = collection.record(row)
        for tree in table.texts("tree", *table.bounds(row)):
            yield from _ask_screen(record.key, (record.width, record.height), json.loads(tree))


def _ask_screen(key: str, size: tuple[int, int], tree: Mapping[str, Any]) -> Iterator[SuiteQuestion]:
    # Without the root, which is the screen itself.
    elements = list(_walk(tree))[1:]
    counts = Counter((element["type"], element["text"]) for element in elements)
    texts = Counter(element["text"].casefold() for element in elements)
    counter = count()

    def make(task: str, text: str, label: str, **shapes: Any) -> SuiteQuestion:
        return _make(f"{key}/{task}/{next(counter)}", key, text, task, label, "", size=size, **shapes)

    for element in elements:
        kind, text, box = element["type"], element["text"], PixelBox(*element["box"])
        find = _FIND.format(type=kind, text=text)
        unique = bool(text) and counts[kind, text] == 1
        if kind in _TEXT_TYPES and len(text) > 1 and len(text.split()) < _MAX_TOKENS_OF_TEXT:
            yield make(OCR, f"What text does {REGION} show?", text, regions=(box,))
            if texts[text.casefold()] == 1:
                yield make("find text", f'Where is the text "{text}"?', text, boxes=(box,))
        if kind == "icon":
            yield make(ICON, f"Which icon is {REGION}?", text, regions=(box,))
            if unique:
                yield make("find icons", find, text, boxes=(box,))
        elif kind != "title":
            yield make(CLASS, _WIDGET_TYPE, kind, regions=(box,))
            if unique:
                yield make("find widget", find, f"{kind} {text}", boxes=(box,))


def _walk(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield tree
    for child in tree["children"]:
        yield from _walk(child)


def _fold_text(text: str) -> str:
    """Fold what does not belong to a text on a screen: white space, quotes around it, a full stop behind it."""
    return " ".join(text.split()).rstrip(".").strip("\"'“”‘’ ").rstrip(".")


def _fold_class(text: str) -> str:
    return re.sub(r"^(it|this) is ", "", normalize_vqa(text))


def is_right_text(question: SuiteQuestion, text: str, mode: str) -> bool:
    """Compare a text or class with its label: as published to the letter, corrected without case and marks of a class.

    The case of a text on a screen counts in both.
    """
    label = question.references[0]
    if mode == "as published":
        return text.strip() == label
    fold = _fold_text if question.slices[0] == OCR else _fold_class
    return fold(text) == fold(label)


def _score_boxes(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: str) -> BoxScores:
    return score_boxes(
        [write_bins(answer, question.size) for question, answer in answered],
        [[box.x1, box.y1, box.x2, box.y2] for question, _ in answered for box in question.boxes],
        [question.size or (0, 0) for question, _ in answered],
        [question.references[0] for question, _ in answered],
        mode=_MODES[mode],
    )


def score_all(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: str) -> tuple[list[bool], list[str]]:
    """Return whether each answer is right ("as published" or "corrected"), and why it is not ("" if it is)."""
    scores = _score_boxes([pair for pair in answered if pair[0].boxes], mode)
    # The paper asks for more than the threshold; the corrected score counts the threshold, as all of this package do.
    hits = scores.first_ious_N > IOU_THRESHOLD if mode == "as published" else scores.first_N
    boxes = iter(zip(hits.tolist(), scores.misses, strict=True))
    right, misses = [], []
    for question, answer in answered:
        if question.boxes:
            hit, miss = next(boxes)
        else:
            hit = is_right_text(question, answer.text, mode)
            miss = "wrong phrase" if answer.text.strip() else "unparsable"
        right.append(hit)
        misses.append("" if hit else miss)
    return right, misses


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Corrected accuracy."""
    return float(score_all([(question, answer)], "corrected")[0][0])


def explain(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the reason of a miss, "" for a hit."""
    return score_all([(question, answer)], "corrected")[1][0]


def summarize(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
    """Both accuracies of each task, their means over tasks as the paper has them, and the share of each reason."""
    further: dict[str, float | None] = {}
    for mode in _MODES:
        right, misses = score_all(answered, mode)
        parts: dict[str, list[bool]] = defaultdict(list)
        for (question, _), hit in zip(answered, right, strict=True):
            for name in question.slices:
                parts[name].append(hit)
        accuracies = {name: float(np.mean(hits)) for name, hits in parts.items()}
        further |= {f"{mode} {name}": value for name, value in accuracies.items()}
        for platform in ("", *(f"{name}, " for name in PLATFORMS)):
            for mean, tasks in MEANS.items():
                values = [accuracies[platform + task] for task in tasks if platform + task in accuracies]
                # A mean of fewer tasks would be another number.
                if len(values) == len(tasks):
                    further[f"{mode} {platform}mean of {mean}"] = float(np.mean(values))
        if mode == "corrected":
            further |= {f"missed, {reason}": misses.count(reason) / len(misses) for reason in MISSES}
    return further


SUITE = Suite(
    "Ferret-UI, elementary tasks",
    "accuracy, corrected",
    read,
    score,
    max_tokens=64,
    summarize=summarize,
    explain=explain,
)
