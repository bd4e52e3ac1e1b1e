"""Ask a model the questions of a suite, with two controls: no image, and another question's image.

A score means something only above its controls: what a model gets right without the image comes from the question. Each
answer is a row of `rows.jsonl` in the run folder, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from foveate.chat.batching import run_in_halves
from foveate.chat.judge import check_judge_address
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.plugins import load_row
from foveate.language.forbidden_words import split_words
from foveate.mllm.results import SuiteResult
from foveate.mllm.settings import SuiteSettings
from foveate.mllm.suite import LETTER_ANSWER, Suite, SuiteData, SuiteJudge, SuiteQuestion, move_answer
from foveate.mllm.suite_summary import CONDITIONS, pair_scores, pick_samples, summarize
from foveate.multimodal.answers import AskableModel, ModelAnswer, WordLimitedModel
from foveate.multimodal.evaluation import AnswerRow, EvaluationRun, cut_batches
from foveate.multimodal.pointing import prompt_regions
from foveate.multimodal.prepare import Question
from foveate.multimodal.settings import RegionPrompt
from foveate.records.boxes import PixelBox
from foveate.records.conversations import IMAGE, REGION, Conversation, Turn, locate_regions
from foveate.records.images import BadImage, check, read_image_info
from foveate.records.shapes import Point, Shape, enclosing_box

ROWS = "rows.jsonl"
NO_VERDICT = "no verdict"


class _Trial(NamedTuple):
    """A question under a condition; `others` are its images under "another image"."""

    question: SuiteQuestion
    condition: str
    others: tuple[str, ...] | None = None


def load_suite(name: str) -> Suite:
    """Load a suite by its name; raise UserError with the nearest name.

    Example:
        >>> load_suite("pope").metric
        'accuracy'
    """
    return load_row("foveate.mllm.suites", name.replace("-", "_"), "SUITES", label="evaluation suite")


def evaluate(
    model: AskableModel,
    suite: str,
    data: str | Path,
    *,
    run: str | Path,
    settings: SuiteSettings | None = None,
    name: str = "model",
    weights: str = "",
    command: list[str] | None = None,
) -> SuiteResult:
    """Ask a model all questions of a suite under each condition, and write rows and `result.json` into the run folder.

    Args:
        data: folder of the suite's data, a collection for most.
        run: folder; the same arguments go on where a stopped run was, if `data` is still at the same place from it.
        name: of the model, and a hash of its `weights`, which a repeated run must have, too.

    Raises:
        UserError: unknown suite, unusable data, or a run folder of another evaluation.

    Example:
        >>> settings = SuiteSettings(limit=2, training_words="never")
        >>> result = evaluate_suite(open_mllm("mini"), "conversations", asked_folder, run=new_folder, settings=settings)
        >>> result.questions
        2
    """
    settings = settings or SuiteSettings()
    plugin = load_suite(suite)
    if settings.official and plugin.official is None:
        warnings.warn(f"official: no effect with suite '{suite}': it has no second, published score", stacklevel=2)
    if settings.judge:
        check_judge_address(settings.judge)
    # The batch size is not part of the identity: answers do not depend on it, so a run may resume with a smaller one.
    identity = {"suite": suite, "model": name, "data": _locate(data, Path(run)), **_identify(settings)}
    # Answers from before the model was trained further or calibrated are not valid for it.
    identity |= {"weights": weights} if weights else {}
    with EvaluationRun(run, identity, rows=ROWS, command=command, free=("batch_size",)) as evaluation:
        contents = plugin.read(Path(data), settings.split)
        try:
            questions = draw_questions(contents.questions, limit=settings.limit, seed=settings.seed)
            rows = _ask_all(model, plugin, contents, questions, evaluation, settings)
            result = summarize(plugin, questions, rows, seed=settings.seed)
            result = result.model_copy(
                update={"suite": suite, "model": name, "data": str(data), "split": settings.split}
                | {"official": pair_scores(plugin, result.further.get("image", {})) if settings.official else []}
                | {"samples": pick_samples(questions, rows, contents, evaluation.path), "command": command or ""}
            )
            evaluation.write_result(result)
        finally:
            contents.close()
    return result


def _locate(data: str | Path, run: Path) -> str:
    """Return the path of data from the run folder on: another command may write it otherwise, or both may move."""
    saved = run / "recipe.yaml"
    recipe = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.is_file() else None
    # Folders of earlier versions have it as it was given.
    is_as_given = isinstance(recipe, dict) and recipe.get("data") == str(data)
    return str(data) if is_as_given else os.path.relpath(data, run)


def _identify(settings: SuiteSettings) -> dict[str, Any]:
    # Which scores are printed decides no answer.
    # Without a judge its settings decide nothing; runs of earlier versions have no rule for words.
    default = SuiteSettings.model_fields["training_words"].default
    left_out = {"official"} | ({"training_words"} if settings.training_words == default else set())
    left_out |= {"region_prompt"} if settings.region_prompt is None else set[str]()
    values = settings.model_dump(exclude=left_out)
    return {name: value for name, value in values.items() if value or not name.startswith("judge")}


def draw_questions(questions: Sequence[SuiteQuestion], *, limit: int | None, seed: int) -> list[SuiteQuestion]:
    """Draw at most `limit` questions, in their order.

    Raises:
        UserError: two questions have one id, by which rows are found again.
    """
    rows = seeds.draw([question.id for question in questions], limit, "suite", seed, what="question")
    return [questions[row] for row in rows]


def swap_images(questions: Sequence[SuiteQuestion], *, seed: int) -> list[tuple[str, ...] | None]:
    """Choose other images for each question: as many, and none of its own; None where there are no such.

    Sets of images with the same number are laid in a random circle, and each question takes the next one that has none
    of its images.
    """
    circles: dict[int, list[tuple[str, ...]]] = {}
    for images in dict.fromkeys(question.images for question in questions):
        circles.setdefault(len(images), []).append(images)
    for circle in circles.values():
        circle.sort(key=lambda images: seeds.uniform("other-images", seed, *images))
    position = {images: index for circle in circles.values() for index, images in enumerate(circle)}

    def find(question: SuiteQuestion) -> tuple[str, ...] | None:
        circle, start = circles[len(question.images)], position[question.images]
        following = (circle[(start + step) % len(circle)] for step in range(1, len(circle)))
        return next((images for images in following if not set(images) & set(question.images)), None)

    others = {question.images: question for question in questions if question.images}
    partners = {images: find(question) for images, question in others.items()}
    return [partners.get(question.images) for question in questions]


def _ask_all(
    model: AskableModel,
    suite: Suite,
    data: SuiteData,
    questions: Sequence[SuiteQuestion],
    run: EvaluationRun,
    settings: SuiteSettings,
) -> list[AnswerRow]:
    """Ask what has no row yet, and return the rows of all questions and conditions."""
    # A row with an error is asked again: an image may be back, a judge may answer. Such rows would pile up beside
    # their successors.
    stored = run.read_rows(lambda row: (row["condition"], row["id"]))
    finished = {key: row for key, row in stored.items() if "error" not in row}
    run.replace_rows(finished.values())
    trials = _list_trials(suite, questions, seed=settings.seed)
    pending = [trial for trial in trials if (trial.condition, trial.question.id) not in finished]
    judge = None if suite.judge is None else suite.judge(settings)
    # What needs no model is computed in one batch.
    size = settings.batch_size if suite.answer is None else max(1, len(pending))
    by_condition = ([trial for trial in pending if trial.condition == condition] for condition in CONDITIONS)
    batches = [batch for part in by_condition for batch in cut_batches(part, size)]
    return run.answer(
        batches,
        lambda batch: _ask_batch(
            model, suite, data, batch, judge=judge, words=settings.training_words, prompt=settings.region_prompt
        ),
        finished=finished.values(),
    )


def _list_trials(suite: Suite, questions: Sequence[SuiteQuestion], *, seed: int) -> list[_Trial]:
    """List the questions under each condition that they have."""
    trials = [_Trial(question, "image") for question in questions]
    if suite.answer is not None:
        return trials
    others = swap_images(questions, seed=seed)
    if all(images is None for images in others):
        warnings.warn("no other image to show: the control 'another image' is left out", stacklevel=4)
    # Without images there is none to leave out or to change.
    trials += [_Trial(question, "no image") for question in questions if question.images]
    return trials + [
        _Trial(question, "another image", images)
        for question, images in zip(questions, others, strict=True)
        if question.images and images is not None
    ]


def _ask_batch(
    model: AskableModel,
    suite: Suite,
    data: SuiteData,
    batch: Sequence[_Trial],
    *,
    judge: SuiteJudge | None = None,
    words: str = "never",
    prompt: RegionPrompt | None = None,
) -> list[AnswerRow]:
    """Ask questions under one condition, and return their rows."""
    empty_rows: list[AnswerRow] = [{"condition": trial.condition, "id": trial.question.id} for trial in batch]
    pairs = list(zip(batch, empty_rows, strict=True))
    if suite.answer is not None:
        return _score(suite, [(trial.question, row, suite.answer(trial.question)) for trial, row in pairs], None)
    rows: list[AnswerRow] = []
    requests, answerable, images_of = [], [], []
    for trial, row in pairs:
        try:
            request = _write_request(suite, data, trial.question, trial.others, trial.condition)
        except (BadImage, OSError) as error:
            rows.append(row | {"error": str(error)})
            continue
        images_of.append(request[0])
        requests.append(prompt_regions(model, *request, prompt))
        answerable.append((trial.question, row))
    # One question that the model refuses, such as a long one, must not end an evaluation.
    answers = _ask_by_words(model, [q for q, _ in answerable], requests, max_tokens=suite.max_tokens, words=words)
    answered = []
    for (question, row), shown, answer in zip(answerable, images_of, answers, strict=True):
        if isinstance(answer, UserError):
            rows.append(row | {"error": str(answer)})
        elif row["condition"] == "another image":
            answered.append((question, row, _move_back(answer, data, question, shown)))
        else:
            answered.append((question, row, answer))
    rows += _score(suite, answered, judge)
    return _choose(model, suite, rows, [question for question, _ in answerable], requests)


def _ask_by_words(
    model: AskableModel,
    questions: Sequence[SuiteQuestion],
    requests: Sequence[Question],
    *,
    max_tokens: int,
    words: str,
) -> list[ModelAnswer | UserError]:
    """Answer requests, those whose right answer is a word of training by a model that may write it."""
    groups: list[tuple[AskableModel, list[int]]] = [(model, list(range(len(requests))))]
    if words == "reference" and isinstance(model, WordLimitedModel):
        known = frozenset(model.training_words)
        is_invented = [not known.isdisjoint(split_words((*q.references, *q.choices))) for q in questions]
        groups = [
            (speaker, [row for row, value in enumerate(is_invented) if value is may_invent])
            for speaker, may_invent in ((model, False), (model.allow_training_words(), True))
        ]
    answers: dict[int, ModelAnswer | UserError] = {}
    for speaker, rows in groups:
        replies = run_in_halves(
            lambda part, speaker=speaker: speaker.ask_all(part, max_tokens=max_tokens),
            [requests[row] for row in rows],
            errors=UserError,
        )
        answers |= zip(rows, replies, strict=True)
    return [answers[row] for row in range(len(requests))]


def _move_back(answer: ModelAnswer, data: SuiteData, question: SuiteQuestion, images: Sequence[bytes]) -> ModelAnswer:
    """Return an answer about the other `images` in pixels of the question's image, where the true boxes are."""
    if len(images) != 1 or not answer.boxes:
        return answer
    info, other = (read_image_info(image)[0] for image in (data.read_image(question.images[0]), images[0]))
    if (info.width, info.height) == (other.width, other.height):
        return answer
    return move_answer(answer, (other.width, other.height), (info.width, info.height))


def _score(
    suite: Suite, answered: Sequence[tuple[SuiteQuestion, AnswerRow, ModelAnswer]], judge: SuiteJudge | None
) -> list[AnswerRow]:
    """Return the rows of answers with their scores, by the suite or its judge, and why an answer misses."""
    if judge is None:
        verdicts = [{"score": suite.score(question, answer)} for question, _, answer in answered]
    else:
        replies = judge([(question, answer) for question, _, answer in answered])
        # Without a verdict there is no score; the question is left out of all columns and counted.
        verdicts = [
            ({"error": NO_VERDICT} if score is None else {"score": score}) | {"judged": judged}
            for score, judged in replies
        ]
    if suite.explain is not None:
        verdicts = [
            verdict | {"miss": suite.explain(question, answer)}
            for verdict, (question, _, answer) in zip(verdicts, answered, strict=True)
        ]
    return [row | _describe(a) | verdict for verdict, (_, row, a) in zip(verdicts, answered, strict=True)]


def _choose(
    model: AskableModel,
    suite: Suite,
    rows: list[AnswerRow],
    questions: Sequence[SuiteQuestion],
    requests: Sequence[Question],
) -> list[AnswerRow]:
    """Add to the rows of answered questions with choices the likeliest of them, and whether it is right."""
    answered = {row["id"]: row for row in rows if "error" not in row}
    # Equal choices have equal likelihoods, and none of them is the likeliest.
    pairs = [
        (question, request)
        for question, request in zip(questions, requests, strict=True)
        if question.id in answered and len(set(question.choices)) == len(question.choices) > 1
    ]
    # If the instruction requests a letter, compare the letters, as in evaluations of MMLU.
    letters = suite.instruction == LETTER_ANSWER
    options = [
        [chr(ord("A") + index) for index in range(len(question.choices))] if letters else list(question.choices)
        for question, _ in pairs
    ]
    probabilities = run_in_halves(
        lambda part: model.choose_all(*zip(*part, strict=True)),
        [(request, texts) for (_, request), texts in zip(pairs, options, strict=True)],
        errors=UserError,
    )
    for (question, _), shares in zip(pairs, probabilities, strict=True):
        # If the question just fits but its choices do not, only the written answer counts.
        if not isinstance(shares, UserError):
            choice = question.choices[int(np.argmax(shares))]
            answered[question.id] |= {"choice": choice, "choice_score": float(choice in question.references)}
    return rows


def _describe(answer: ModelAnswer) -> AnswerRow:
    row = {"answer": answer.text, "boxes": [_list_corners(box) for box in answer.boxes], "finished": answer.finished}
    # Only models with a box head and digits have both.
    digits = [box and _list_corners(box) for box in getattr(answer, "digits", ())]
    return row | ({"digits": digits} if digits else {})


def _list_corners(box: PixelBox) -> list[float]:
    return [box.x1, box.y1, box.x2, box.y2]


def _write_request(
    suite: Suite, data: SuiteData, question: SuiteQuestion, others: tuple[str, ...] | None, condition: str
) -> tuple[list[bytes], str, tuple[Shape, ...]]:
    text = "\n".join(part for part in (question.text, suite.instruction) if part)
    # Read images under every condition: a question whose image is damaged then has no row to compare.
    images = [_read_whole(data, name) for name in question.images]
    if condition == "image":
        return images, text, question.regions
    if condition == "no image":
        # A placeholder needs a region, and a region needs an image; the words keep the sentence readable.
        text = text.replace(IMAGE, "").replace(REGION, "the region").strip()
        return [], text, ()
    assert others is not None
    swapped = [_read_whole(data, name) for name in others]
    regions = question.regions
    if regions:
        # Placeholders of images come first if the text has none.
        placed = text if IMAGE in text else IMAGE * len(images) + text
        (indices,) = locate_regions(Conversation("", (), (Turn("user", placed, regions),)))
        regions = tuple(
            _scale_region(region, images[index], swapped[index]) for region, index in zip(regions, indices, strict=True)
        )
    return swapped, text, regions


def _read_whole(data: SuiteData, name: str) -> bytes:
    encoded = data.read_image(name)
    check(encoded)
    return encoded


def _scale_region(region: Shape, image: bytes, other: bytes) -> Shape:
    """Move a region to the same place of an image of another size; a shape that is no point becomes its box."""
    old, new = read_image_info(image)[0], read_image_info(other)[0]
    if (old.width, old.height) == (new.width, new.height):
        return region
    across, down = new.width / old.width, new.height / old.height
    # Rounding must not put an edge beyond the image, where no model takes it.
    if isinstance(region, Point):
        return Point(min(region.x * across, new.width), min(region.y * down, new.height))
    box = enclosing_box(region)
    assert box is not None, "the question was imported with an empty region"
    x2, y2 = min(box.x2 * across, new.width), min(box.y2 * down, new.height)
    return PixelBox(box.x1 * across, box.y1 * down, x2, y2)
