"""Suites of Ferret: Ferret-Bench, whose answers a judge scores, and Ferret-UI's elementary tasks on screens.

The judge of Ferret-Bench's published scores is retired. Scores of another judge are not comparable with them, so each
one bears the name of its judge and the date.

Ferret-UI's paper gives the scores (exact match of texts, accuracy of icon and widget classes, boxes with an IoU above
.5, and their means by platform); its test questions are not released. "as published" in the results takes these
sentences to the letter, with Ferret's own parser of boxes.

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

from foveate.chat.judge import JudgeReply, ServerJudge
from foveate.chat.protocol import ChatMessage, ChatRequest
from foveate.core.errors import UserError
from foveate.core.json_fields import get_field, read_lines, read_table
from foveate.metrics.grounding import IOU_THRESHOLD
from foveate.metrics.referring import Mode, ferret_bench_score, parse_judge
from foveate.metrics.text_answers import normalize_vqa
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.suite import (
    ModelAnswer,
    StoredAnswer,
    Suite,
    SuiteData,
    SuiteQuestion,
    SuiteVerdict,
    ask_collection,
    folder_reader,
    score_by,
    score_first_boxes,
    share_misses,
    write_bins,
)
from foveate.records.box_text import parse_boxes
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.records.conversations import IMAGE, REGION
from foveate.records.images import BadImage, read_image_info
from foveate.records.importers.conversation_file import MalformedEntryError, read_entries
from foveate.records.importers.conversations import parse_ferret
from foveate.records.layout import DESCRIPTION, annotation_kinds

# Ferret-Bench: three tasks whose answers a judge scores beside references, by an OpenAI-compatible server.

_BENCH_TASKS = {
    "refer_desc": ("refer_desc", "refer_caption"),
    "refer_reason": ("refer_reason",),
    "ground_conv": ("ground_conv",),
}
_LIST = re.compile(r"\[([\s\d,.]*)\]")
_NUMBER = re.compile(r"\s*\d+(?:\.\d*)?\s*", re.ASCII)
ANSWER = "<answer>"
_SYSTEM = "You compare the quality of two answers. You are precise and fair."
_MAX_TOKENS = 1024


def read_bench(path: Path, split: str) -> SuiteData:
    """Read the folders `refer_desc` (or `refer_caption`), `refer_reason` and `ground_conv` of apple/ml-ferret.

    Each has `question.jsonl`, `answer.jsonl` and `context.jsonl`; `rule.json` and COCO's images in `val2017` are beside
    them. There are no splits.
    """
    rules = read_table(path / "rule.json")
    read_image = folder_reader(path / "val2017")
    questions = []
    for task, names in _BENCH_TASKS.items():
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is None:
            raise UserError(f"{path}: no folder '{names[0]}'; expected the tasks {', '.join(_BENCH_TASKS)}")
        rule = get_field(rules, task, dict, where=str(path / "rule.json"))
        contexts, answers = (
            {get_field(entry, name, kind, where=str(folder / file)): entry for entry in read_lines(folder / file)}
            for file, name, kind in (("context.jsonl", "image", str), ("answer.jsonl", "question_id", int))
        )
        for number, entry in enumerate(read_lines(folder / "question.jsonl"), 1):
            where = f"{folder / 'question.jsonl'}, line {number}"
            image = get_field(entry, "image", str, where=where)
            size = _read_size(read_image, image, where)
            text, regions = _place_regions(get_field(entry, "text", str, where=where), size)
            id = get_field(entry, "question_id", int, where=where)
            if id not in answers or image not in contexts:
                raise UserError(f"{where}: question {id} has no reference in answer.jsonl or no context.jsonl")
            role, instruction = (
                get_field(rule, name, str, where=str(path / "rule.json")) for name in ("role", "prompt")
            )
            context = get_field(contexts[image], "text", str, where=where)
            reference = get_field(answers[id], "text", str, where=where)
            # The judge reads the question as published, with coordinates; the model gets `<region>` instead of them.
            prompt = (
                f"[Context]\n{context}\n\n[Question]\n{entry['text']}\n\n"
                f"[{role} 1]\n{reference}\n\n[End of {role} 1]\n\n"
                f"[{role} 2]\n{ANSWER}\n\n[End of {role} 2]\n\n[System]\n{instruction}\n\n"
            )
            questions.append(
                SuiteQuestion(
                    id=f"{task}/{id}",
                    images=(str(image),),
                    text=text,
                    references=(reference,),
                    regions=regions,
                    judge_prompt=prompt,
                    slices=(task,),
                    size=size,
                )
            )
    return SuiteData(questions, read_image)


def _read_size(read_image: Any, name: str, where: str) -> tuple[int, int]:
    try:
        info = read_image_info(read_image(name))[0]
    except (BadImage, OSError) as error:
        raise UserError(f"{where}: image {name} cannot be read ({error})") from error
    return info.width, info.height


def _place_regions(text: str, size: tuple[int, int]) -> tuple[str, tuple[PixelBox, ...]]:
    """Replace the boxes of a question, fractions of the image, by `<region>`."""
    boxes: list[PixelBox] = []

    def collect(match: re.Match[str]) -> str:
        parts = match[1].split(",")
        # Dots in brackets are text, such as "[...]".
        if len(parts) != 4 or not all(_NUMBER.fullmatch(part) for part in parts):
            return match[0]
        values = [float(part) for part in parts]
        sides = (*size, *size)
        boxes.append(PixelBox(*(value * side for value, side in zip(values, sides, strict=True))))
        return REGION

    return _LIST.sub(collect, text), tuple(boxes)


def prepare_answer(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return an answer as the judge reads it: without boxes in referring, with fractions of 3 digits in grounding."""
    text = write_bins(answer, question.size)
    if question.slices[0] != "ground_conv":
        return re.sub(r" ?\[[^\[\]]*\]", "", text)

    def convert(match: re.Match[str]) -> str:
        parts = [part.strip() for part in match[1].split(",")]
        if len(parts) != 4 or not all(part.isdigit() for part in parts):
            return match[0]
        return f"[{', '.join(f'{int(part) / 1000:.3f}' for part in parts)}]"

    return _LIST.sub(convert, text)


class FerretBenchJudge:
    """Ask a server to score answers beside their references."""

    def __init__(self, settings: SuiteSettings) -> None:
        self.judge = ServerJudge(settings.judge, settings.judge_model, key_env=settings.judge_key_env)

    def __call__(self, answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> list[SuiteVerdict]:
        """Return the verdicts; a reply without two scores from 0 to 10 is none."""
        return [
            _read_verdict(reply)
            for reply in self.judge.ask([_write_judge_request(question, answer) for question, answer in answered])
        ]


def _write_judge_request(question: SuiteQuestion, answer: ModelAnswer) -> ChatRequest:
    text = question.judge_prompt.replace(ANSWER, prepare_answer(question, answer))
    # Temperature as in the published evaluation.
    messages = (ChatMessage(_SYSTEM, role="system"), ChatMessage(text))
    return ChatRequest(messages, max_tokens=_MAX_TOKENS, temperature=0.2)


def _read_verdict(reply: JudgeReply) -> SuiteVerdict:
    scores = None if reply.error else parse_judge(reply.text)
    judged = {"judge": reply.judge, "date": reply.date, "reply": reply.text, "error": reply.error, "scores": scores}
    # A judge scores the reference first and the model's answer second.
    return SuiteVerdict(None if scores is None else scores[1] / 10, judged)


def summarize_bench(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
    """Score of each task, 100 x the model's mean over the reference's, and their mean, by judge and date."""
    pairs: dict[tuple[str, str], list[Sequence[float]]] = defaultdict(list)
    dates: dict[str, set[str]] = defaultdict(set)
    for question, answer in answered:
        judged = answer.judged or {}
        if judged.get("scores"):
            pairs[judged["judge"], question.slices[0]].append(judged["scores"])
            dates[judged["judge"]].add(judged["date"])
    further: dict[str, float | None] = {}
    for judge, days in dates.items():
        by = f"by {judge}, {' to '.join(dict.fromkeys((min(days), max(days))))}"
        scores = {task: ferret_bench_score(pairs[judge, task]) for task in _BENCH_TASKS if pairs[judge, task]}
        further |= {f"{task} {by}": score for task, score in scores.items()}
        further[f"mean {by}"] = sum(scores.values()) / len(scores)
    return further


def _refuse_to_score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    raise AssertionError("Ferret-Bench is scored by its judge")


# Ferret-UI: name texts, icons and widgets of a screen, and find them.

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


def read_ui(path: Path, split: str) -> SuiteData:
    """Read annotation files, which have no splits, or one split of a collection of generated screens.

    The files are in the layout of apple/ml-ferret (`ferretui/playground/sample_data`), each with a task in its name
    (`ocr_iphone.json`); the screens are in `images` or beside them. Tasks without a published score, or with a judge
    whose prompt is not published, are left out with a warning.
    """
    if (path / DESCRIPTION).is_file():
        collection = Collection.open(path)
        questions = list(_ask_screens(collection, split)) if "screens" in annotation_kinds(path) else []
        missing = f"split '{split}' has no screens; expected a collection of `foveate collect screens`"
        return ask_collection(collection, questions, missing=missing)
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


def score_all(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]], mode: str) -> tuple[list[bool], list[str]]:
    """Return whether each answer is right ("as published" or "corrected"), and why it is not ("" if it is)."""
    scores = score_first_boxes([pair for pair in answered if pair[0].boxes], _MODES[mode])
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


def _explain_ui(question: SuiteQuestion, answer: ModelAnswer) -> str:
    """Return the reason of a miss, "" for a hit."""
    return score_all([(question, answer)], "corrected")[1][0]


def summarize_ui(answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> dict[str, float | None]:
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
            further |= share_misses(misses)
    return further


SUITES = {
    "ferret_bench": Suite(
        "Ferret-Bench",
        "the judge's score of the answer, of 10",
        read_bench,
        _refuse_to_score,
        max_tokens=512,
        summarize=summarize_bench,
        judge=FerretBenchJudge,
    ),
    "ferret_ui": Suite(
        "Ferret-UI, elementary tasks",
        "accuracy, corrected",
        read_ui,
        score_by(_explain_ui),
        max_tokens=64,
        summarize=summarize_ui,
        official="as published ",
        explain=_explain_ui,
    ),
}
