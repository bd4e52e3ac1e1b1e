"""Suites with short answers or lettered choices: VQA v2, TextVQA, DocVQA, InfoVQA, ChartQA, ScienceQA, AI2D, POPE.

Data of the first five are collections with the questions and all accepted answers, as `foveate collect` imports the
official files; ScienceQA, AI2D and POPE are read as they are published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.core.json_fields import get_field, read_lines, read_table
from foveate.metrics.referring import score_presence
from foveate.metrics.text_answers import anls, normalize_textvqa, parse_pope, relaxed_accuracy, vqa_accuracy
from foveate.mllm.suite import (
    CORRECTED,
    LETTER_ANSWER,
    OFFICIAL,
    SHORT_ANSWER,
    ModelAnswer,
    StoredAnswer,
    Suite,
    SuiteData,
    SuiteQuestion,
    folder_reader,
    letter_choices,
    read_conversations,
    score_choice,
)

_AI2D_TEST_IDS = "ai2d_test_ids.csv"
_AI2D_LABELED = "abc_images"


def _ask_for_words(
    title: str,
    metric: str,
    score: Callable[[str, Sequence[str]], float],
    official: Callable[[str, Sequence[str]], float] | None = None,
) -> Suite:
    """Return the suite of a collection whose answers are compared with all accepted ones.

    Args:
        official: the published evaluator's score of a raw answer, where ours reads it otherwise.
    """

    def summarize(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
        pairs = [(answer.text, question.references) for question, answer in answered]
        scores = {CORRECTED: score, OFFICIAL: official or score}
        return {mode + metric: fmean(read(*pair) for pair in pairs) for mode, read in scores.items()}

    return Suite(
        title,
        metric,
        read_conversations,
        lambda question, answer: score(answer.text, question.references),
        instruction=SHORT_ANSWER,
        summarize=summarize if official else None,
        official=OFFICIAL if official else None,
    )


def _score_vqa(text: str, references: Sequence[str]) -> float:
    # Submissions are normalized before they are scored, and so is the answer here.
    return vqa_accuracy(normalize_textvqa(text), references)


def _score_chartqa(text: str, references: Sequence[str]) -> float:
    # The full stop at the end is removed, because "12." already reads as the number 12, whereas "Yes." would not equal
    # "Yes".
    return relaxed_accuracy(text.strip().removesuffix("."), references)


def read_scienceqa(path: Path, split: str) -> SuiteData:
    """Read ScienceQA: `problems.json`, `pid_splits.json`, and images in `images/SPLIT/ID/image.png`.

    Questions without an image are a slice of their own.
    """
    problems, splits = read_table(path / "problems.json"), read_table(path / "pid_splits.json")
    choose(split, splits, f"split of {path}")
    return SuiteData([_read_problem(problems, pid, path) for pid in splits[split]], folder_reader(path / "images"))


def _read_problem(problems: dict, pid: str, path: Path) -> SuiteQuestion:
    where = f"{path / 'problems.json'}: problem {pid}"
    problem = get_field(problems, pid, dict, where=where)
    image = problem.get("image")
    return SuiteQuestion(
        id=str(pid),
        images=(f"{problem.get('split', '')}/{pid}/{image}",) if image else (),
        slices=("with image" if image else "text only",),
        **_read_choices(
            problem, ("choices", "answer"), where,
            text=get_field(problem, "question", str, where=where), hint=problem.get("hint", ""),
        ),
    )  # fmt: skip


def read_ai2d(path: Path, split: str) -> SuiteData:
    """Read AI2D: `questions/NAME.json` and `images/NAME`; `ai2d_test_ids.csv` lists the test images.

    Questions about a letter in the diagram (`abcLabel`) need the images with drawn letters, `abc_images`; without that
    folder they are left out.
    """
    if split not in ("train", "test"):
        raise UserError(f"split of {path}: unknown (got '{split}'); expected train or test")
    files = sorted((path / "questions").glob("*.json"))
    if not files:
        raise UserError(f"{path}: no files questions/*.json; expected the folder of AI2D")
    listed = path / _AI2D_TEST_IDS
    if not listed.is_file():
        raise UserError(f"{listed}: no such file; it lists the numbers of the test images, which AI2D's archive lacks")
    test = {line.strip() for line in listed.read_text(encoding="utf-8").splitlines()}
    labeled = (path / _AI2D_LABELED).is_dir()
    questions: list[SuiteQuestion] = []
    for file in files:
        table = read_table(file)
        image = get_field(table, "imageName", str, where=str(file))
        if (image.split(".")[0] in test) == (split == "test"):
            for text, entry in get_field(table, "questions", dict, where=str(file)).items():
                if labeled or not entry.get("abcLabel"):
                    questions.append(_read_diagram(text, entry, image, where=f"{file}: question '{text}'"))
    # Called only for its error: image names include their folder, and labeled images are in another folder.
    folder_reader(path / "images")
    return SuiteData(questions, folder_reader(path))


def _read_diagram(text: str, entry: dict[str, Any], image: str, *, where: str) -> SuiteQuestion:
    return SuiteQuestion(
        id=str(entry.get("questionId", text)),
        images=(f"{_AI2D_LABELED if entry.get('abcLabel') else 'images'}/{image}",),
        slices=("labels" if entry.get("abcLabel") else "texts",),
        **_read_choices(entry, ("answerTexts", "correctAnswer"), where, text=text),
    )


def _read_choices(
    entry: dict[str, Any], fields: tuple[str, str], where: str, *, text: str, hint: str = ""
) -> dict[str, Any]:
    """Return what a question with lettered choices has, from the `fields` with the choices and the right number."""
    choices = tuple(map(str, get_field(entry, fields[0], list, where=where)))
    answer = get_field(entry, fields[1], int, where=where)
    if not 0 <= answer < len(choices):
        raise UserError(f"{where}: {fields[1]} {answer} is not one of {len(choices)} choices")
    return {
        "text": letter_choices(text, choices, hint=hint),
        "references": (choices[answer],),
        "choices": choices,
        "chance": 1 / len(choices),
    }


def read_pope(path: Path, split: str) -> SuiteData:
    """Read POPE: `coco_pope_random|popular|adversarial.json` (JSON Lines) beside COCO's images in `val2014`.

    The three files are three kinds of negatives; there are no splits.
    """
    files = sorted(path.glob("*pope_*.json"))
    if not files:
        raise UserError(f"{path}: no files coco_pope_*.json; expected the folder of POPE")
    questions = [
        _read_presence(entry, file.stem.rpartition("pope_")[2], where=f"{file}, line {number}")
        for file in files
        for number, entry in enumerate(read_lines(file), 1)
    ]
    return SuiteData(questions, folder_reader(path / "val2014"))


def _read_presence(entry: dict, kind: str, *, where: str) -> SuiteQuestion:
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


def _score_pope(question: SuiteQuestion, answer: ModelAnswer) -> float:
    """Accuracy by POPE's reading of the answer."""
    return float(parse_pope(answer.text) == (question.references[0] == "yes"))


def summarize_pope(answered: Sequence[tuple[SuiteQuestion, StoredAnswer]]) -> dict[str, float | None]:
    """Precision, recall, F1 of "yes" and the share of yes; the same for answers parsed by meaning."""
    truth = [question.references[0] == "yes" for question, _ in answered]
    texts = [answer.text for _, answer in answered]
    corrected = score_presence(texts, truth)
    return score_presence(texts, truth, mode="official") | {CORRECTED + name: v for name, v in corrected.items()}


SUITES = {
    "vqa": _ask_for_words("VQA v2", "VQA accuracy", _score_vqa, official=vqa_accuracy),
    "textvqa": _ask_for_words("TextVQA", "VQA accuracy", partial(vqa_accuracy, rule="textvqa")),
    "docvqa": _ask_for_words("DocVQA", "ANLS", anls),
    "infovqa": _ask_for_words("InfoVQA", "ANLS", anls),
    "chartqa": _ask_for_words("ChartQA", "relaxed accuracy", _score_chartqa, official=relaxed_accuracy),
    "scienceqa": Suite("ScienceQA", "accuracy", read_scienceqa, score_choice, instruction=LETTER_ANSWER),
    "ai2d": Suite("AI2D", "accuracy", read_ai2d, score_choice, instruction=LETTER_ANSWER),
    "pope": Suite(
        "POPE",
        "accuracy",
        read_pope,
        _score_pope,
        instruction=SHORT_ANSWER,
        summarize=summarize_pope,
        # POPE's own scores stand in our table, too, under their own names.
        official="",
    ),
}
