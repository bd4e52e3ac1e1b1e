"""Suites of collections with exact questions: generated scenes, by kind, and any conversations.

The first parts of the id of a scene's conversation say its kind, whether it has two possible answers, and whether it
names things that no training scene shows: "count/two answers/seen/...". An answer may be short or a sentence, as the
question asks for. Where several boxes are asked for, the score is the share of them that one of the answer's hits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foveate.metrics.grounding import IOU_THRESHOLD
from foveate.metrics.text_answers import normalize_vqa, parse_yes_no
from foveate.mllm.suite import (
    ModelAnswer,
    StoredAnswer,
    Suite,
    SuiteData,
    SuiteQuestion,
    collect_questions,
    make_question,
    read_conversations,
)
from foveate.records.boxes import PixelBox, pairwise_iou
from foveate.records.conversations import Conversation

KINDS = (
    *("name", "where", "is there", "color", "count", "position", "compare", "which image", "episode"),
    *("refer", "relation", "ground", "ground all", "detect", "read"),
)
_SETS = "image-sets: "
_YES_NO = {"yes": True, "no": False}


def read(path: Path, split: str) -> SuiteData:
    """Read the questions of one split by kind."""
    return collect_questions(path, split, _make)


def _make(conversation: Conversation) -> SuiteQuestion:
    question = make_question(_last_question(conversation))
    kind, *more = (part.replace("-", " ").replace("_", " ") for part in conversation.id.split("/"))
    if kind not in KINDS and conversation.source.startswith(_SETS):
        # Ids of image sets are keys of images; the kind is in their source, such as "image-sets: compare: more".
        kind = conversation.source.removeprefix(_SETS).partition(":")[0]
        more = ["two answers" if len(conversation.choices) == 2 else "open", "seen", *more, conversation.id]
    kind = kind if kind in KINDS else "where" if question.boxes else "other"
    two_answers, unseen = more[:1] == ["two answers"], more[1:2] == ["unseen"]
    people = ["people's wordings"] if more[2:3] == ["people"] else []
    part = ", ".join([kind, *more[:1], *(["unseen names"] if unseen else []), *people]) if len(more) > 2 else kind
    sentence = conversation.turns[-1].text
    # Yes or no is decided by its first word, a sentence by its words.
    references = tuple(dict.fromkeys((*question.references, sentence)))
    chance = 0.5 if two_answers or question.references[0].casefold() in _YES_NO else None
    return replace(question, references=references, slices=tuple(dict.fromkeys((kind, part))), chance=chance)


def _last_question(conversation: Conversation) -> Conversation:
    """Join the turns before the last answer to one question, with the examples first."""
    *before, answer = conversation.turns
    if len(before) == 1:
        return conversation
    text = "\n".join(turn.text for turn in before)
    regions = tuple(region for turn in before for region in turn.regions)
    return replace(conversation, turns=(replace(before[-1], text=text, regions=regions), answer))


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Exact answer up to articles, numerals and punctuation; for a box, an IoU of at least .5."""
    truth = _YES_NO.get(question.references[0].casefold())
    if truth is not None:
        return float(parse_yes_no(answer.text) is truth)
    if question.boxes:
        # One box is asked for: the first one counts, or naming all places would be right.
        boxes = answer.boxes[:1] if len(question.boxes) == 1 else answer.boxes
        if not boxes:
            return 0.0
        ious = pairwise_iou(*([_corners(box) for box in side] for side in (question.boxes, boxes)))
        return float((ious.max(axis=1) >= IOU_THRESHOLD).mean())
    return float(normalize_vqa(answer.text) in {normalize_vqa(reference) for reference in question.references})


def _corners(box: PixelBox) -> list[float]:
    # A model may write corners in any order.
    (x1, x2), (y1, y2) = sorted((box.x1, box.x2)), sorted((box.y1, box.y2))
    return [x1, y1, x2, y2]


def summarize(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
    """Score the digits of boxes in place of the boxes, by part, of models that write both."""
    if not any(answer.digits for _, answer in answered):
        return {}
    scores: dict[str, list[float]] = defaultdict(list)
    for question, answer in answered:
        # Yes and no are scored by their word, whatever box follows them.
        if question.boxes and question.references[0].casefold() not in _YES_NO:
            digits = tuple(box for box in answer.digits if box is not None)
            # Without digits an answer misses, whatever its boxes.
            hit = score(question, replace(answer, boxes=digits))
            for part in question.slices:
                scores[f"boxes by their digits: {part}"].append(hit)
    return {name: sum(hits) / len(hits) for name, hits in sorted(scores.items())}


SUITES = {
    "scenes": Suite("Generated scenes", "accuracy", read, score, summarize=summarize),
    # Any collection with conversations: exact answers, and boxes with an IoU of at least .5.
    "conversations": Suite("Conversations", "accuracy", read_conversations, score),
}
