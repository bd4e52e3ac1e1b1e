"""Import questions about images with their answers: the files of VQA v2, TextVQA, DocVQA, InfographicVQA and ChartQA.

Each question becomes a conversation. It answers with VQA's `multiple_choice_answer`, TextVQA's most frequent answer, or
the first; all answers are kept for the metrics. Questions without an answer, as in test sets, are quarantined.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError
from foveate.records.conversations import IMAGE, Turn
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.conversation_file import (
    Draft,
    FileImage,
    MalformedEntryError,
    import_conversations,
    make_drafts,
    read_entries,
)
from foveate.records.importers.files import get_integer, get_list, read_annotations, read_head
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import check_source

_FOLDERS = ("train2014", "val2014", "train_images", "png", "documents", "infographics")


def import_vqa(
    source: str | Path, target: str | Path, *, answers: str | Path | None = None, **options: Any
) -> ImportSummary:
    """Import questions, answers and images into the collection `target`.

    Args:
        source: the file of questions; the layout is that of its fields.
        answers: VQA's annotations; by default the file beside the questions with `annotations` in its name.
        options: see `import_conversations`; `data_group` is by default general for VQA, text-rich for the others.

    Raises:
        UserError: a file is missing or damaged, or no image is found.
    """
    path = check_source(Path(source))
    if b'"questions"' in read_head(str(path), ".json"):
        drafts = _read_vqa(path, None if answers is None else Path(answers))
    elif answers is not None:
        raise UserError(f"--answers has no effect: {path} has its answers itself")
    else:
        drafts = make_drafts(read_entries(path), _parse_entry)
    return import_conversations(path, target, drafts, folders=_FOLDERS, **options)


def _read_vqa(path: Path, answers: Path | None) -> list[Draft]:
    content = read_annotations(path)
    questions = get_list(content, "questions", path)
    subtype = str(content.get("data_subtype", ""))
    answers = answers or _find_annotations(path)
    annotations = get_list(read_annotations(check_source(answers)), "annotations", answers)
    # Key by text: JSON allows a list as an id, which no dict takes as a key.
    by_question = {str(entry.get("question_id")): entry for entry in annotations if isinstance(entry, Mapping)}

    def parse(entry: Mapping[str, Any]) -> Draft:
        image, annotation = get_integer(entry, "image_id"), by_question.get(str(entry.get("question_id")), {})
        if image is None or not isinstance(entry.get("question"), str):
            raise MalformedEntryError("a question needs an integer 'image_id' and a text 'question'")
        listed = annotation.get("answers")
        texts = [_get_answer(answer) for answer in listed] if isinstance(listed, list) else []
        best = annotation.get("multiple_choice_answer")
        # The name in COCO 2014 comes first; other copies have its folder, the name in COCO 2017, or a bare number.
        name = f"COCO_{subtype}_{image:012d}.jpg"
        names = (name, f"{subtype}/{name}", f"{image:012d}.jpg", f"{image}.jpg")
        draft = _make_draft(names, entry["question"], texts, best=best if isinstance(best, str) else None)
        draft.group = "general"
        return draft

    return make_drafts(((str(number), question) for number, question in enumerate(questions)), parse)


def _find_annotations(path: Path) -> Path:
    """Return the file of annotations beside the questions: the same name without the task and with `annotations`."""
    # v2_OpenEnded_mscoco_val2014_questions.json beside v2_mscoco_val2014_annotations.json.
    name = re.sub(r"(OpenEnded|MultipleChoice)_", "", path.name).replace("questions", "annotations")
    if name == path.name or not (path.parent / name).is_file():
        raise UserError(f"{path}: no file {name!r} beside it; give the annotations with --answers")
    return path.parent / name


def _get_answer(answer: object) -> str:
    if isinstance(answer, Mapping):
        answer = answer.get("answer")
    return answer if isinstance(answer, str) else ""


def _parse_entry(entry: Mapping[str, Any]) -> Draft:
    for name, make in _LAYOUTS.items():
        if name in entry:
            names, question, answers = make(entry)
            if not isinstance(question, str) or not all(isinstance(part, str) for part in names):
                raise MalformedEntryError(f"field {name!r}: the entry lacks the name of its image, or its question")
            texts = answers if isinstance(answers, list) else [answers]
            texts = [text if isinstance(text, str) else "" for text in texts]
            # Ten people answered each question of TextVQA; elsewhere all answers are right, and the first is usual.
            best = Counter(texts).most_common(1)[0][0] if name == "image_id" and texts else None
            draft = _make_draft(names, question, texts, best=best)
            draft.group = "text-rich"
            return draft
    raise MalformedEntryError(f"none of the fields {', '.join(_LAYOUTS)}, which name the image")


def _make_draft(names: tuple[str, ...], question: str, answers: list[str], *, best: str | None) -> Draft:
    answer = best if best is not None else next(iter(answers), "")
    turns = [Turn("user", f"{IMAGE}\n{question}"), Turn("assistant", answer)]
    return Draft("", [FileImage(names)], turns, answers=tuple(text for text in answers if text.strip()))


def _below(folder: str, name: object) -> tuple[Any, ...]:
    return (f"{folder}/{name}", name) if isinstance(name, str) else (name,)


# Field that only this layout has -> names of the image, question, answers; InfographicVQA before DocVQA and TextVQA,
# whose fields its entries may have, too.
_LAYOUTS: dict[str, Callable[[Mapping[str, Any]], tuple[tuple[Any, ...], object, Any]]] = {
    "image_local_name": lambda e: ((e["image_local_name"],), e.get("question"), e.get("answers")),
    "imgname": lambda e: (_below("png", e["imgname"])[::-1], e.get("query"), e.get("label")),
    "image_id": lambda e: (
        (f"{e['image_id']}.jpg", f"train_images/{e['image_id']}.jpg"),
        e.get("question"),
        e.get("answers"),
    ),
    "image": lambda e: ((e["image"], str(e["image"]).rpartition("/")[2]), e.get("question"), e.get("answers")),
}


def _recognize(source: str) -> str | None:
    head = read_head(source, ".json")
    if b'"questions"' in head and b'"question_id"' in head:
        return "VQA's questions"
    for mark, name in (
        (b'"image_local_name"', "InfographicVQA"),
        (b'"imgname"', "ChartQA"),
        (b'"questionId"', "DocVQA"),
        (b'"flickr_original_url"', "TextVQA"),
    ):
        if mark in head:
            return f"questions of {name}"
    return None


FORMATS = (
    Format(
        name="vqa",
        run=import_vqa,
        recognize=_recognize,
        options=("images", "answers", "data_group", "reference"),
    ),
)
