"""Measures of the study `mllm`: scores by kind of question, what guessing reaches, and the nearest name of a region."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.files import read_json
from foveate.mllm.evaluate import CONDITIONS
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.results import StageResult
from foveate.mllm.suite import Suite, SuiteQuestion
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection

if TYPE_CHECKING:
    from foveate.mllm.samples import NameTable
    from foveate.multimodal.model import MultimodalModel
    from foveate.multimodal.prompts import PromptWriter
    from foveate.training.settings import TrainingSettings

KINDS = ("name", "where", "is_there", "color", "position", "count")
UNSEEN = ("name", "where")  # kinds that are also reported for names that no training scene has
_BATCH = 32


def measures_of(question: SuiteQuestion) -> list[str]:
    """List the measures that a question counts for; names that no training scene has count for theirs alone.

    >>> seen = SuiteQuestion("1", ("a",), "Is there a cat?", ("yes",), slices=("is there",), chance=0.5)
    >>> measures_of(seen)
    ['is_there', 'two_answers']
    """
    kind = question.slices[0].replace(" ", "_")
    if question.slices[-1].endswith("unseen names"):
        return [f"unseen_{kind}"] if kind in UNSEEN else []
    return [*([kind] if kind in KINDS else []), *(["two_answers"] if question.chance == 0.5 else [])]


def suite_scores(questions: Iterable[SuiteQuestion], rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Average the scores of a suite's rows by measure; those of a control have its name in front.

    Args:
        rows: of `rows.jsonl` of an evaluation.
    """
    measures = {question.id: measures_of(question) for question in questions}
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        prefix = "" if row["condition"] == CONDITIONS[0] else f"{row['condition'].replace(' ', '_')}/"
        for measure in measures[row["id"]] if "score" in row else ():
            scores[prefix + measure].append(row["score"])
    return {measure: float(np.mean(values)) for measure, values in scores.items()}


def guess_scores(suite: Suite, questions: Sequence[SuiteQuestion]) -> dict[str, float]:
    """Score the best that one answer to all questions of a kind reaches: `guess/` and the measure.

    The most frequent answer; for a box the median of all boxes; the chance of a question that has one.
    """
    by_measure: dict[str, list[SuiteQuestion]] = defaultdict(list)
    for question in questions:
        for measure in measures_of(question):
            by_measure[measure].append(question)
    scores: dict[str, float] = {}
    for measure, group in by_measure.items():
        answer = _constant_answer(group)
        points = [suite.score(question, answer) if question.chance is None else question.chance for question in group]
        scores[f"guess/{measure}"] = float(np.mean(points))
    return scores


def _constant_answer(questions: Sequence[SuiteQuestion]) -> Answer:
    boxes = [[box.x1, box.y1, box.x2, box.y2] for question in questions for box in question.boxes]
    if boxes:
        return Answer("", (PixelBox(*np.median(boxes, axis=0).tolist()),))
    ((text, _),) = Counter(question.references[0] for question in questions).most_common(1)
    return Answer(text)


def nearest_names(model: Mllm, collection: Collection, recipe: MllmRecipe, names_path: Path) -> dict[str, float]:
    """Measure how often the embedding nearest to a region of the test split is that of its name.

    The features of the control are those of the next image. Regions with names that no training scene has are left out.

    Args:
        recipe: of the model's training. names_path: file with the names of its training regions.

    Returns:
        nearest, another_image/nearest.
    """
    from foveate.mllm.samples import NameTable

    loaded = model.loaded
    names = NameTable.create(read_json(names_path), loaded.prompts)
    rows = np.sort(collection.rows("test"))
    return score_nearest_names(loaded.model, loaded.prompts, names, collection, recipe.stages[-1].training, rows)


def score_nearest_names(
    network: MultimodalModel,
    prompts: PromptWriter,
    names: NameTable,
    collection: Collection,
    training: TrainingSettings,
    rows: NDArray[np.int64],
) -> dict[str, float]:
    """Measure how often the embedding nearest to a region is that of its name; see `nearest_names`.

    Args:
        rows: of the collection, ascending.
    """
    import torch

    from foveate.mllm.recipe import StageSettings
    from foveate.mllm.samples import ImageSet, MllmSamples
    from foveate.mllm.task import MllmTask
    from foveate.records.geometry import View
    from foveate.vision.feature_cache import FeatureCache

    device = network.visual_gain.device
    features = FeatureCache(
        network.tower,
        collection,
        rows,
        folder=collection.path / "cache",
        views=1,
        view_of=lambda row, view: View(),
        device=device,
    )
    features.fill()
    quiet = training.model_copy(update={"evaluate_every": None})
    stage = StageSettings(name="nearest", texts=False, alignment_weight=1.0, training=quiet)
    samples = MllmSamples(
        [ImageSet((int(row),), ()) for row in rows],
        features,
        prompts,
        names,
        max_conversations=0,
        max_positions=network.max_positions,
        tokens_of_view=network.connector.num_tokens,
        settings=network.settings,
    )
    task = MllmTask(network, names=names, stage=stage).to(device)
    right, total = {"nearest": 0.0, "another_image/nearest": 0.0}, 0.0
    with torch.inference_mode():
        for start in range(0, len(samples.rows), _BATCH):
            numbers = samples.rows[start : start + _BATCH].tolist()
            # An evaluation within a training runs under autocast, which on CPUs cannot join float16 tensors.
            with torch.autocast(device.type, enabled=False):
                batch = samples.collate([samples.sample(number, 0, 0) for number in numbers])
                views = {"nearest": batch["features"], "another_image/nearest": batch["features"].roll(1, dims=0)}
            batch = {name: value.to(device) for name, value in batch.items()}
            count = task.count_targets(batch)["nearest_name"]
            for key, features in views.items():
                _, report = task.losses({**batch, "features": features.to(device)})
                right[key] += float(report["nearest_name"]) * count
            total += count
    return {key: value / total for key, value in right.items()} if total else {}


def step_seconds(stages: Sequence[StageResult], *, name: str) -> float:
    """Return the processor seconds of a step, from a short and a long stage of a kind.

    What a stage costs besides its steps (start, checkpoint) is the same in both and cancels out.
    """
    short, long = (next(s for s in stages if s.name == f"{name}-{length}") for length in ("short", "long"))
    # Two stages of a few milliseconds may come out equal on a clock that is not fine enough.
    return max((long.processor_seconds - short.processor_seconds) / (long.steps - short.steps), 1e-3)
