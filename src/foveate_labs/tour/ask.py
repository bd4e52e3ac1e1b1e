"""The tour's questions: the shipped model asked about held-out scenes, and half a minute of the training behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.errors import UserError
from foveate.core.files import read_json_lines
from foveate.core.recipes import load
from foveate.core.runs import RunFolder
from foveate.metrics.text_answers import normalize_vqa
from foveate.mllm.evaluate import ROWS, evaluate, load_suite
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.suite import SuiteQuestion
from foveate.mllm.suite_summary import CONDITIONS
from foveate.mllm.suites.scenes import KINDS
from foveate.mllm.train import MllmTraining, train_mllm
from foveate.multimodal.answers import AskableModel
from foveate.multimodal.opening import open_mllm
from foveate.records.boxes import PixelBox, normalize_box
from foveate.records.collection import Collection
from foveate.records.images import read_image_info, save_thumbnail
from foveate.records.shapes import enclosing_box
from foveate_labs.studies.mllm_measures import score_nearest_names
from foveate_labs.studies.results import (
    AskedQuestion,
    AskedScene,
    AskedTally,
    Control,
    LearningCurve,
    NamedRegion,
    TourAsk,
)
from foveate_labs.worlds.scenes.question_collection import build_questions

MODEL, SUITE, RECIPE = "mini", "scenes", "mllm-tour"
FOLDER = "ask"
NAME_QUESTION = "What is <1>?"
NUM_SCENES = 8
NUM_MEASURED = 128  # held-out scenes of the curve: more would take as long as the training
EVALUATE_EVERY = 26


def ask_shipped(run: RunFolder, *, device: str | None = None) -> dict[str, Any]:
    """Ask the shipped model about the first test scenes; return the result for the page, without a training."""
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    model = open_mllm(MODEL, device=device)
    questions = folder / "questions"
    # The first test scenes as they come, whatever the model answers about them.
    build_questions(questions, train=0, test=NUM_SCENES)
    evaluate(model, SUITE, questions, run=folder / "answers", name=MODEL)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_json_lines(folder / "answers" / ROWS):
        rows.setdefault(row["id"], {})[row["condition"]] = row
    data = load_suite(SUITE).read(questions, "test")
    try:
        regions = _name_regions(model, questions, data.read_image)
        scenes = _collect_scenes(data.questions, rows, data.read_image, run.path, regions)
    finally:
        data.close()
    return TourAsk(
        model=MODEL, description=model.describe(), scenes=scenes, tallies=_tally(data.questions, rows)
    ).to_json()


def _name_regions(model: AskableModel, questions: Path, read_image: Any) -> dict[str, list[NamedRegion]]:
    """Ask what each region of each scene is; return the answers by the key of the scene."""
    named: dict[str, list[NamedRegion]] = {}
    with Collection.open(questions) as collection:
        for row in collection.rows("test").tolist():
            key, index = collection.keys[row], collection.index
            size = int(index["width"][row]), int(index["height"][row])
            regions, image = collection.read_regions(row), read_image(key)
            requests = [(image, NAME_QUESTION, [region.box.to_pixels(*size)]) for region in regions]
            answers = model.ask_all(requests, max_tokens=16) if requests else []
            named[key] = [
                NamedRegion(
                    box=normalize_box(region.box.to_pixels(*size), *size),
                    answer=answer.text,
                    truth=region.phrase,
                    # As the suite scores short answers, so that both count alike.
                    right=normalize_vqa(answer.text) == normalize_vqa(region.phrase),
                )
                for region, answer in zip(regions, answers, strict=True)
            ]
    return named


def _collect_scenes(
    questions: Sequence[SuiteQuestion],
    rows: Mapping[str, Any],
    read_image: Any,
    run: Path,
    regions: Mapping[str, list[NamedRegion]],
) -> list[AskedScene]:
    """Put the first question of each kind about each scene together, whatever was answered."""
    scenes = []
    for (key,) in dict.fromkeys(question.images for question in questions):
        encoded = read_image(key)
        info = read_image_info(encoded)[0]
        path = run / "images" / f"ask-{key}.webp"
        save_thumbnail(encoded, path, longest_side=448)
        of_scene = [question for question in questions if question.images == (key,)]
        # Reversed, so that the first question of a kind wins.
        first = {question.slices[0]: question for question in reversed(of_scene)}
        descriptions = [
            _describe(first[kind], rows[first[kind].id], (info.width, info.height)) for kind in KINDS if kind in first
        ]
        scenes.append(
            AskedScene(image=str(path.relative_to(run)), questions=descriptions, regions=regions.get(key, []))
        )
    return scenes


def _describe(question: SuiteQuestion, rows: Mapping[str, Any], size: tuple[int, int]) -> AskedQuestion:
    row = rows[CONDITIONS[0]]
    regions = [enclosing_box(shape) for shape in question.regions]
    return AskedQuestion(
        kind=question.slices[0],
        question=question.text,
        answer=row["answer"],
        right=row["score"] == 1,
        truth="" if question.boxes else question.references[0],
        unseen_name=_has_unseen_name(question),
        region=normalize_box(regions[0], *size) if regions and regions[0] else None,
        box=normalize_box(PixelBox(*row["boxes"][0]), *size) if row["boxes"] else None,
        true_box=normalize_box(question.boxes[0], *size) if question.boxes else None,
        controls={
            condition: Control(answer=rows[condition]["answer"], right=rows[condition]["score"] == 1)
            for condition in CONDITIONS[1:]
        },
    )


def _has_unseen_name(question: SuiteQuestion) -> bool:
    return question.slices[-1].endswith("unseen names")


def _tally(questions: Sequence[SuiteQuestion], rows: Mapping[str, Any]) -> list[AskedTally]:
    """Count right answers to all questions under each condition, names of no training scene apart."""
    tallies = []
    for unseen in (False, True):
        part = [question.id for question in questions if _has_unseen_name(question) == unseen]
        right = {condition: sum(rows[id][condition]["score"] == 1 for id in part) for condition in CONDITIONS}
        tallies.append(AskedTally(unseen_names=unseen, n=len(part), right=right))
    return tallies


def train_briefly(
    collection: Collection,
    run: RunFolder,
    *,
    seed: int,
    device: str | None = None,
    steps: int | None = None,
    image_size: int = 224,
) -> dict[str, Any]:
    """Train such a model for half a minute on the tour's scenes; return its curve for the page.

    Args:
        steps: of the training; the recipe's by default.
        image_size: side of the images, so that the tour's frozen features are read instead of computed once more.
    """
    folder = run.path / FOLDER / "training"
    # Tokens of the connector are squares of 32 pixels, at any size of the image.
    recipe = load(
        MllmRecipe, RECIPE, [f"model.tower.image_size={image_size}", f"model.connector.side={image_size // 32}"]
    )
    (stage,) = recipe.stages
    steps = min(steps or stage.training.steps, stage.training.steps)
    recipe = recipe.with_training(
        seed=seed, steps=steps, warmup_steps=min(stage.training.warmup_steps, steps // 2), evaluate_every=EVALUATE_EVERY
    )
    rows = np.sort(collection.rows("test", where={"source": "scenes"})[:NUM_MEASURED])

    def measure(training: MllmTraining) -> dict[str, float]:
        return score_nearest_names(training.model, training.prompts, training.names, collection, stage.training, rows)

    trained = train_mllm(recipe, collection, folder, device=device, measure=measure)
    if trained.model_folder is None:
        raise UserError(f"{folder}: stopped; run the same command to resume")
    (result,) = trained.result.stages
    points = RunFolder(folder / Path(result.curves).parent).read_metrics()
    return LearningCurve(
        recipe=RECIPE,
        steps=result.steps,
        seconds=result.seconds,
        processor_seconds=result.processor_seconds,
        train_scenes=result.samples,
        test_scenes=len(rows),
        names=trained.result.names,
        points=[
            (row["step"], row["eval_nearest"], row["eval_another_image/nearest"])
            for row in points
            if row.get("eval_nearest") is not None
        ],
    ).to_json()
