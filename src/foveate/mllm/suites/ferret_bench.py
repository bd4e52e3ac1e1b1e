"""Ferret-Bench: three tasks whose answers a judge scores beside references, by an OpenAI-compatible server.

Data are the folders `refer_desc` (or `refer_caption`), `refer_reason` and `ground_conv` of apple/ml-ferret, each with
`question.jsonl`, `answer.jsonl` and `context.jsonl`, `rule.json` beside them, and COCO's images in `val2017`. The judge
of the published scores is retired. Scores of another judge are not comparable with them, so each one bears the name of
its judge and the date.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.chat.judge import JudgeReply, ServerJudge
from foveate.chat.protocol import ChatMessage, ChatRequest
from foveate.core.errors import UserError
from foveate.core.json_fields import get_field, read_lines, read_table
from foveate.metrics.referring import ferret_bench_score, parse_judge
from foveate.mllm.suite import (
    ModelAnswer,
    StoredAnswer,
    Suite,
    SuiteData,
    SuiteQuestion,
    Verdict,
    folder_reader,
    write_bins,
)
from foveate.mllm.suite_settings import SuiteSettings
from foveate.records.boxes import PixelBox
from foveate.records.conversations import REGION
from foveate.records.images import BadImage, read_image_info

_TASKS = {
    "refer_desc": ("refer_desc", "refer_caption"),
    "refer_reason": ("refer_reason",),
    "ground_conv": ("ground_conv",),
}
_LIST = re.compile(r"\[([\s\d,.]*)\]")
_NUMBER = re.compile(r"\s*\d+(?:\.\d*)?\s*", re.ASCII)
ANSWER = "<answer>"
_SYSTEM = "You compare the quality of two answers. You are precise and fair."
_MAX_TOKENS = 1024


def read(path: Path, split: str) -> SuiteData:
    """Read the three tasks; there are no splits."""
    rules = read_table(path / "rule.json")
    read_image = folder_reader(path / "val2017")
    questions = []
    for task, names in _TASKS.items():
        folder = next((path / name for name in names if (path / name).is_dir()), None)
        if folder is None:
            raise UserError(f"{path}: no folder '{names[0]}'; expected the tasks {', '.join(_TASKS)}")
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

    def __call__(self, answered: Sequence[tuple[SuiteQuestion, ModelAnswer]]) -> list[Verdict]:
        """Return the verdicts; a reply without two scores from 0 to 10 is none."""
        return [_read(reply) for reply in self.judge.ask([_write(question, answer) for question, answer in answered])]


def _write(question: SuiteQuestion, answer: ModelAnswer) -> ChatRequest:
    text = question.judge_prompt.replace(ANSWER, prepare_answer(question, answer))
    # Temperature as in the published evaluation.
    messages = (ChatMessage(_SYSTEM, role="system"), ChatMessage(text))
    return ChatRequest(messages, max_tokens=_MAX_TOKENS, temperature=0.2)


def _read(reply: JudgeReply) -> Verdict:
    scores = None if reply.error else parse_judge(reply.text)
    judged = {"judge": reply.judge, "date": reply.date, "reply": reply.text, "error": reply.error, "scores": scores}
    # A judge scores the reference first and the model's answer second.
    return Verdict(None if scores is None else scores[1] / 10, judged)


def summarize(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
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
        scores = {task: ferret_bench_score(pairs[judge, task]) for task in _TASKS if pairs[judge, task]}
        further |= {f"{task} {by}": score for task, score in scores.items()}
        further[f"mean {by}"] = sum(scores.values()) / len(scores)
    return further


def score(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Return no score: only the judge scores these answers."""
    raise AssertionError("Ferret-Bench is scored by its judge")


SUITE = Suite(
    "Ferret-Bench",
    "the judge's score of the answer, of 10",
    read,
    score,
    max_tokens=512,
    summarize=summarize,
    judge=FerretBenchJudge,
)
