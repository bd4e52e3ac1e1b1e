"""The tour's questions to the shipped models: about photographs first, then about test scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.files import read_json_lines
from foveate.core.results import BoxValues
from foveate.core.runs import RunFolder
from foveate.metrics.text_answers import normalize_vqa
from foveate.mllm.evaluate import ROWS, evaluate, load_suite
from foveate.mllm.suite import SuiteQuestion
from foveate.mllm.suite_summary import CONDITIONS
from foveate.mllm.suites.scenes import KINDS
from foveate.multimodal.answers import AskableModel
from foveate.multimodal.opening import open_mllm
from foveate.multimodal.recognition import add_article
from foveate.records.boxes import PixelBox, intersection_over_union, normalize_box
from foveate.records.collection import Collection
from foveate.records.images import read_image_info, save_thumbnail
from foveate.records.shapes import enclosing_box
from foveate.records.text import split_words
from foveate.report.parts import RIGHT_FROM
from foveate_labs.studies.results import (
    AskedQuestion,
    AskedScene,
    AskedTally,
    Control,
    NamedRegion,
    PhotographTally,
    TourAsk,
)
from foveate_labs.tour.pictures import PHOTOGRAPHS, Photograph, other_query
from foveate_labs.worlds.scenes.question_collection import build_questions

SUITE = "scenes"
FOLDER = "ask"
NAME_QUESTION = "What is <1>?"


def ask_shipped(
    run: RunFolder, name: str, *, scenes: int, photographs: int | None = None, device: str | None = None
) -> dict[str, Any]:
    """Ask a shipped model about photographs and about the first test scenes; return the result for the page.

    Args:
        photographs: how many of them, in their order; all by default.
    """
    folder = run.path / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    model = open_mllm(name, device=device)
    asked, tallies = ask_photographs(model, name, run.path, PHOTOGRAPHS[:photographs])
    questions = folder / "questions"
    # The first test scenes as they come, whatever the model answers about them.
    build_questions(questions, train=0, test=scenes)
    evaluate(model, SUITE, questions, run=folder / "answers", name=name)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_json_lines(folder / "answers" / ROWS):
        rows.setdefault(row["id"], {})[row["condition"]] = row
    data = load_suite(SUITE).read(questions, "test")
    try:
        regions = _name_regions(model, questions, data.read_image)
        about_scenes = _collect_scenes(data.questions, rows, data.read_image, run.path, regions)
    finally:
        data.close()
    return TourAsk(
        model=name,
        description=model.describe(),
        photographs=asked,
        photograph_tallies=tallies,
        scenes=about_scenes,
        tallies=_tally(data.questions, rows),
    ).to_json()


def ask_photographs(
    model: AskableModel, name: str, run: Path, photographs: Sequence[Photograph]
) -> tuple[list[AskedScene], list[PhotographTally]]:
    """Ask what each photograph shows, where it is, and whether it and what the next one shows are there."""
    scenes = []
    for number, photograph in enumerate(photographs):
        encoded = photograph.encode()
        info = read_image_info(encoded)[0]
        path = run / "images" / f"photograph-{photograph.name}.webp"
        save_thumbnail(encoded, path, longest_side=448)
        other = other_query(number)
        texts = {
            "what": "What is in the image?",
            "where": f"Where is the {photograph.query}?",
            "is there": f"Is there {add_article(photograph.query)}?",
            "is there, absent": f"Is there {add_article(other)}?",
        }
        if photograph.box is None:
            del texts["where"]
        answers = model.ask_all([([encoded], text, []) for text in texts.values()], max_tokens=32)
        questions = []
        for (kind, text), answer in zip(texts.items(), answers, strict=True):
            box = normalize_box(answer.boxes[0], info.width, info.height) if answer.boxes else None
            questions.append(
                AskedQuestion(
                    kind=kind,
                    question=text,
                    answer=answer.text,
                    right=_is_right(kind, photograph, answer.text, box),
                    truth={"what": photograph.names[0], "is there": "yes", "is there, absent": "no"}.get(kind, ""),
                    box=box if kind in ("what", "where") else None,
                    true_box=tuple(photograph.box.to_array().tolist()) if photograph.box and kind == "where" else None,
                )
            )
        scenes.append(AskedScene(image=path.relative_to(run).as_posix(), questions=questions))
    asked = [question for scene in scenes for question in scene.questions]
    return scenes, [
        PhotographTally(kind=kind, n=len(group), right=sum(question.right for question in group))
        for kind in dict.fromkeys(question.kind for question in asked)
        for group in [[question for question in asked if question.kind == kind]]
    ]


def _is_right(kind: str, photograph: Photograph, answer: str, box: BoxValues | None) -> bool:
    words = split_words(answer)
    if kind == "what":
        return bool(set(words) & set(photograph.names))
    if kind == "where":
        assert photograph.box is not None
        truth_14 = photograph.box.to_array()[None]
        return box is not None and bool(intersection_over_union(np.array([box]), truth_14)[0] >= RIGHT_FROM)
    return words[:1] == (["no"] if kind.endswith("absent") else ["yes"])


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
            AskedScene(image=path.relative_to(run).as_posix(), questions=descriptions, regions=regions.get(key, []))
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
