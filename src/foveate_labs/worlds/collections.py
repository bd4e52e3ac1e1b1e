"""Built-in collections by name, for `foveate collect NAME`: shipped drawings, and worlds that are drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foveate.records.importers.formats import Builder

PEOPLE_SHARE = 0.7


def _clipart(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.builtin import build_clipart

    build_clipart(target)


def _emoji(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.builtin import build_emoji

    build_emoji(target)


def _scenes(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.scenes import build_scenes

    build_scenes(target, train=2000, validation=200, test=400, seed=seed, workers=workers)


def _questions(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.scenes.question_collection import build_questions

    build_questions(target, train=14_000, validation=400, test=1_600, seed=seed, workers=workers)


def _wordings(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.scenes.image_sets import build_image_sets
    from foveate_labs.worlds.scenes.question_collection import build_questions

    # Most are people's wordings; the others keep a model from unlearning those that it knows.
    build_questions(target, train=4000, validation=200, test=800, seed=seed, workers=workers, people=PEOPLE_SHARE)
    build_image_sets(target, train=300, validation=40, test=120, seed=seed, workers=workers, people=PEOPLE_SHARE)


def _referring(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.scenes.question_collection import build_region_questions

    build_region_questions(target, train=6000, validation=200, test=800, seed=seed, workers=workers)


def _image_sets(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.scenes.image_sets import build_image_sets

    build_image_sets(target, train=2000, validation=200, test=400, seed=seed, workers=workers)


def _documents(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.documents import build_documents

    build_documents(target, train=2000, validation=200, test=400, seed=seed, workers=workers)


def _words(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.words import build_words

    build_words(target, train=10_000, validation=800, test=1_600, seed=seed, workers=workers)


def _screens(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.screens import build_screens

    build_screens(target, train=2000, validation=200, test=400, seed=seed, workers=workers)


def _traps(target: Path, workers: int, seed: int) -> None:
    from foveate_labs.worlds.traps import build_traps

    build_traps(target, train=4000, validation=500, test=1500, seed=seed, workers=workers)


BUILDERS: Mapping[str, Builder] = {
    "clipart": Builder(_clipart, is_drawn=False),
    "emoji": Builder(_emoji, is_drawn=False),
    "scenes": Builder(_scenes),
    "questions": Builder(_questions),
    "wordings": Builder(_wordings),
    "referring": Builder(_referring),
    "image-sets": Builder(_image_sets),
    "documents": Builder(_documents),
    "screens": Builder(_screens),
    "words": Builder(_words),
    "traps": Builder(_traps),
}
