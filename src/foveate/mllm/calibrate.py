"""Calibrate the minimum box score on held-out images; below it the answer is "not found".

A box head returns a box for every phrase. Its best match scores higher if the image shows the phrase, so a threshold
separates the two cases. It belongs to the weights and is measured again after every training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from foveate.core import seeds
from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import read_json, write_json_atomically, write_text_atomically
from foveate.core.model_folder import CARD, CONFIG, METRICS
from foveate.core.progress import say
from foveate.metrics.confidence import separate
from foveate.mllm.card import put_box_scores
from foveate.mllm.results import BoxScoreResult
from foveate.mllm.settings import CalibrateSettings
from foveate.multimodal.ask import Mllm
from foveate.multimodal.folder import MIN_BOX_SCORE, load_model
from foveate.multimodal.opening import SHIPPED
from foveate.multimodal.questions import ask_where
from foveate.records.collection import Collection
from foveate.records.images import BadImage, decode
from foveate.records.region_sources import SelectedRegions

# An answer begins with its box; a sentence with one is not much longer.
_MAX_TOKENS = 16


class PhrasePair(NamedTuple):
    """A phrase that the image of a row shows, and one that only other images show."""

    row: int
    present: str
    absent: str


def draw_pairs(collection: Collection, settings: CalibrateSettings, *, seed: int = 0) -> list[PhrasePair]:
    """Draw images with named regions, and for each a phrase of its regions and one of another image's.

    Raises:
        UserError: the split does not exist, or its regions do not have two phrases.
    """
    # Leave out pseudo-labels, which may name things that the image does not show.
    selected = SelectedRegions(collection)
    phrases = {
        row: sorted({region.phrase for region in selected.read(row) if region.phrase})
        for row in collection.rows(settings.split).tolist()
    }
    every = sorted({phrase for of_row in phrases.values() for phrase in of_row})
    pairs = []
    # The order follows from a hash of each key, so that images that are added or removed leave the draw of the others
    # alone.
    for row in sorted(phrases, key=lambda row: seeds.uniform("calibrate", seed, collection.keys[row])):
        if len(pairs) == settings.limit:
            break
        # "Dog" and "dog" are one name: asked under the other spelling, a right box would count as a false alarm.
        known = {phrase.casefold() for phrase in phrases[row]}
        others = [phrase for phrase in every if phrase.casefold() not in known]
        if phrases[row] and others:
            rng = seeds.generator("calibrate", seed, collection.keys[row])
            pairs.append(PhrasePair(row, str(rng.choice(phrases[row])), str(rng.choice(others))))
    if not pairs:
        raise UserError(
            f"collection {collection.path}: split '{settings.split}' has no image with named regions beside one of "
            f"other names (got {len(every)} names); expected at least two"
        )
    return pairs


def measure_box_scores(
    model: Mllm, collection: Collection, settings: CalibrateSettings | None = None, *, seed: int = 0
) -> BoxScoreResult:
    """Ask where phrases are that images show and do not show, and separate their scores.

    Raises:
        UserError: as `draw_pairs`; or no image can be read, or the model has no box head, or answers without boxes.
    """
    settings = settings or CalibrateSettings()
    if model.loaded.model.box_head is None:
        raise UserError("box_head: this model has none, and no score of a box; it writes coordinates as text")
    # Every phrase gets its box and score, whatever threshold the folder had.
    model = Mllm(replace(model.loaded, min_box_score=None))
    pairs = draw_pairs(collection, settings, seed=seed)
    questions, problems = [], []
    for pair in pairs:
        try:
            image = collection.image_bytes(pair.row)
            # Decoded only for its error: a truncated file must not end the measurement of all others.
            decode(image)
        except BadImage as problem:
            problems.append(problem)
            continue
        questions += [(image, ask_where(phrase)) for phrase in (pair.present, pair.absent)]
    if not questions:
        raise UserError(f"collection {collection.path}: none of {len(pairs)} images can be read ({problems[0]})")
    if problems:
        say(f"left out: {len(problems)} of {len(pairs)} images, which cannot be read ({problems[0]})")
    answers = model.ask_all(questions, max_tokens=_MAX_TOKENS)
    scores = [answer.box_scores[0] if answer.box_scores else None for answer in answers]
    # Questions alternate between a phrase that the image shows and one that it does not.
    present, absent = ([score for score in scores[start::2] if score is not None] for start in (0, 1))
    if not present or not absent:
        raise UserError(f"model: answers to 'Where is ...?' have no box (got {len(present) + len(absent)} boxes)")
    return BoxScoreResult(
        collection=collection.name,
        split=settings.split,
        images=len(pairs) - len(problems),
        unreadable=len(problems),
        present=len(present),
        absent=len(absent),
        without_box=scores.count(None),
        **_describe(present, absent),
    )


def _describe(present: Sequence[float], absent: Sequence[float]) -> dict[str, float]:
    separation = separate(present, absent)
    return {
        # Fewer digits than a score has in any two orders of summation.
        "min_box_score": round(separation.threshold, 4),
        "auc": round(separation.auc, 4),
        "hit_rate": round(separation.hit_rate, 4),
        "false_alarm_rate": round(separation.false_alarm_rate, 4),
    }


def calibrate(
    source: str, collection: Collection, settings: CalibrateSettings, *, seed: int = 0, device: str | None = None
) -> BoxScoreResult:
    """Measure the threshold of a model folder and store it in its config, metrics and card.

    Raises:
        UserError: as `measure_box_scores`; or the model is part of the package.
    """
    if source in SHIPPED:
        raise UserError(f"model: '{source}' is part of the package and has its threshold; expected a model folder")
    folder = Path(source)
    model = Mllm(load_model(folder, device=choose_device(device or "auto")))
    result = measure_box_scores(model, collection, settings, seed=seed)
    metrics, card = folder / METRICS, folder / CARD
    write_json_atomically(metrics, (read_json(metrics) if metrics.is_file() else {}) | result.to_metrics())
    if card.is_file():
        write_text_atomically(card, put_box_scores(card.read_text(encoding="utf-8"), result))
    # Last, so that no folder has a threshold whose measurement is missing.
    write_json_atomically(folder / CONFIG, read_json(folder / CONFIG) | {MIN_BOX_SCORE: result.min_box_score})
    return result
