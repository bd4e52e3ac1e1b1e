"""Score the same answers by the suites of `foveate mllm evaluate` and by the tasks of lmms-eval that have their names.

pip install lmms-eval==0.7.3
python tools/compare_lmms_eval.py --out differences.jsonl

Answers are made of true ones, from a seed: as they are, in other letters, with marks, numbers, slips or text around
them. Nothing is downloaded: tasks are called at the functions that score one answer.
"""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from foveate.mllm.evaluate import load_suite
from foveate.mllm.suite import StoredAnswer, SuiteQuestion

LETTERS = "ABCD"
# True answers as those of the sets: short words, phrases, numbers, years, percentages and amounts of money.
TRUTHS = (
    *("yes", "no", "red", "two dogs", "a stop sign", "skateboarding", "the left one", "black and white", "don't walk"),
    *(
        "coca-cola",
        "New York",
        "John O'Neil",
        "room B12",
        "3",
        "0",
        "12%",
        "45.5",
        "1,200",
        "1987",
        "$3.50",
        "10:15 am",
    ),
)
OTHERS = ("cat", "blue", "7", "London", "on the table", "2.5%")


def vary(rng: random.Random, truth: str) -> str:
    """Turn a true answer into one that a model could have written."""
    position = rng.randrange(len(truth))
    number = truth.rstrip("%").replace(",", "").lstrip("$")
    forms: list[Callable[[], str]] = [
        lambda: truth,
        lambda: rng.choice((truth.upper(), truth.lower(), truth.capitalize())),
        lambda: truth + ".",
        lambda: f" {truth}\n",
        lambda: f"{rng.choice(('the', 'a', 'The'))} {truth}",
        lambda: f"It is {truth}.",
        lambda: f"{truth}, {rng.choice(OTHERS)}",
        lambda: truth[:position] + truth[position + 1 :],
        lambda: truth[:position] + rng.choice("abcxyz19") + truth[position + 1 :],
        lambda: truth.replace(" ", rng.choice(("-", "  ", ""))),
        lambda: rng.choice(OTHERS),
        lambda: str(round(float(number) * rng.uniform(0.9, 1.1), 2)) if _is_number(number) else truth,
        lambda: "",
    ]
    return rng.choice(forms)()


def vary_choice(rng: random.Random, letter: str, choices: tuple[str, ...]) -> str:
    """Turn the letter of a choice into an answer that a model could have written."""
    letter = letter if rng.random() < 0.7 else rng.choice(LETTERS)
    choice = choices[LETTERS.index(letter)]
    forms = (letter, letter.lower(), f"{letter}.", f"({letter})", f"{letter}. {choice}", f"{letter} {choice}", choice)
    longer = (
        f"The answer is {letter}.",
        f"Answer: {letter}",
        f" {letter}\n",
        choice.capitalize() + ".",
        "",
        "I see it",
    )
    return rng.choice(forms + longer)


def _is_number(text: str) -> bool:
    try:
        return bool(float(text))
    except ValueError:
        return False


def _task(name: str) -> Any:
    return importlib.import_module(f"lmms_eval.tasks.{name}.utils")


def _score_people(name: str, question: SuiteQuestion, answer: str) -> float:
    people: list[Any] = list(question.references)
    if name == "vqav2":
        # Their numbers tell people apart: without them, all who agree would be taken for one.
        people = [{"answer_id": index, "answer": text} for index, text in enumerate(people, 1)]
    score = getattr(_task(name), f"{name}_process_results")
    return score({"answers": people, "question_id": 0}, [answer])["exact_match"]


def _score_anls(question: SuiteQuestion, answer: str) -> float:
    metrics: Any = importlib.import_module("lmms_eval.api.metrics")
    # The filter of tasks without a list of their own, "take_first", gives the answer as it is.
    return metrics.anls(references=list(question.references), predictions=[answer])["anls"]


def _score_chartqa(question: SuiteQuestion, answer: str) -> float:
    doc = {"type": "human_test", "answer": question.references[0]}
    return _task("chartqa").chartqa_process_results(doc, [answer])["relaxed_overall"]


def _score_scienceqa(question: SuiteQuestion, answer: str) -> float:
    doc = {"choices": question.choices, "answer": question.choices.index(question.references[0])}
    return _task("scienceqa").sqa_process_results(doc, [answer])["exact_match"]


def _score_ai2d(question: SuiteQuestion, answer: str) -> float:
    metrics: Any = importlib.import_module("lmms_eval.api.metrics")
    doc = {"options": question.choices, "answer": question.choices.index(question.references[0])}
    (filtered,) = _task("ai2d").MultiChoiceRegexFilter(r"([A-Z])\.").apply([[answer]], [doc])
    target = _task("ai2d").ai2d_doc_to_target(doc, "mcq")
    exact = metrics.exact_match_fn(
        predictions=[filtered], references=[target], ignore_case=True, ignore_punctuation=True
    )
    return float(exact["exact_match"])


def _score_pope(question: SuiteQuestion, answer: str) -> float:
    doc = {"answer": question.references[0], "question_id": 0}
    return _task("pope").pope_process_results(doc, [answer])["pope_accuracy"]["score"]


# Suite -> the task's score.
TASKS: dict[str, Callable[[SuiteQuestion, str], float]] = {
    "vqa": lambda question, answer: _score_people("vqav2", question, answer),
    "textvqa": lambda question, answer: _score_people("textvqa", question, answer),
    "docvqa": _score_anls,
    "infovqa": _score_anls,
    "chartqa": _score_chartqa,
    "scienceqa": _score_scienceqa,
    "ai2d": _score_ai2d,
    "pope": _score_pope,
}


def draw(rng: random.Random, suite: str, index: int) -> tuple[SuiteQuestion, str]:
    """Draw a question of a suite and an answer to it."""
    if suite in ("scienceqa", "ai2d"):
        choices = tuple(rng.sample(TRUTHS, len(LETTERS)))
        letter = rng.choice(LETTERS)
        question = SuiteQuestion(str(index), (), "", (choices[LETTERS.index(letter)],), choices)
        return question, vary_choice(rng, letter, choices)
    truth = rng.choice(TRUTHS[:2] if suite == "pope" else TRUTHS)
    references = (truth,)
    if suite in ("vqa", "textvqa"):
        # Of ten people some agree.
        agree = rng.choice((0, 1, 2, 3, 4, 7, 10))
        references = (truth,) * agree + tuple(rng.choice(TRUTHS) for _ in range(10 - agree))
    elif suite in ("docvqa", "infovqa") and rng.random() < 0.5:
        references = (truth, truth.replace(" ", ""), rng.choice(OTHERS))
    return SuiteQuestion(str(index), (), "", references), vary(rng, truth)


@click.command()
@click.option("--answers", default=300, show_default=True, help="Answers of each suite.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File for the answers that differ.")
def main(answers: int, seed: int, out: Path) -> None:
    """Print a table of agreement, and write what differs."""
    lines = []
    print("| suite | equal scores | mean, Foveate | mean, lmms-eval |\n|---|---|---|---|")
    for suite, theirs in TASKS.items():
        rng, ours = random.Random(f"{seed} {suite}"), load_suite(suite)
        pairs = []
        for index in range(answers):
            question, answer = draw(rng, suite, index)
            # The model `foveate` of lmms-eval strips its answers, and so does every model of ours.
            answer = answer.strip()
            pair = float(ours.score(question, StoredAnswer(answer))), float(theirs(question, answer))
            pairs.append(pair)
            if abs(pair[0] - pair[1]) > 1e-9:
                row = {"suite": suite, "answer": answer, "references": question.references, "choices": question.choices}
                lines.append(json.dumps(row | {"foveate": pair[0], "lmms-eval": pair[1]}))
        equal = sum(abs(first - second) <= 1e-9 for first, second in pairs)
        means = (sum(column) / answers for column in zip(*pairs, strict=True))
        print(f"| `{suite}` | {equal} of {answers} | {' | '.join(f'{mean:.3f}'.removeprefix('0') for mean in means)} |")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
