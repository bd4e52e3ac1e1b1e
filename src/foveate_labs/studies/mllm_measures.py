"""Measures of the study `mllm`: scores by kind of question, what guessing reaches, and the nearest name of a region."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.files import read_json
from foveate.mllm.recipe import MllmRecipe
from foveate.mllm.results import StageResult
from foveate.mllm.suite import Suite, SuiteQuestion
from foveate.mllm.suite_summary import CONDITIONS
from foveate.multimodal.answers import Answer
from foveate.multimodal.ask import Mllm
from foveate.records.boxes import PixelBox, intersection_over_union
from foveate.records.collection import Collection

if TYPE_CHECKING:
    from foveate.mllm.train import Trained
    from foveate.multimodal.model import MultimodalModel
    from foveate.multimodal.names import NameTable
    from foveate.multimodal.prompts import PromptWriter
    from foveate.training.settings import TrainingSettings

TWO_ANSWERS = ("is_there", "position")
SIZES = ("small", "large")
_BATCH = 32


def measures_of(question: SuiteQuestion) -> list[str]:
    """List the measures that a question counts for, by its id.

    >>> measures_of(SuiteQuestion("is_there/two-answers/all/scene-1/0", ("a",), "Is there a cat?", ("yes",)))
    ['is_there', 'two_answers']
    >>> measures_of(SuiteQuestion("shown/open/small/page-1/0", ("a",), "What is shown?", ("cat",)))
    ['shown', 'shown_small']
    """
    kind, _, part, *_ = question.id.split("/")
    sized = [f"{kind}_{part}"] if part in SIZES else []
    return [kind, *sized, *(["two_answers"] if kind in TWO_ANSWERS else [])]


def suite_scores(questions: Iterable[SuiteQuestion], rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Average the scores of a suite's rows by measure; those of a control have its name in front.

    Args:
        rows: of `rows.jsonl` of an evaluation.
    """
    by_id = {question.id: question for question in questions}
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        # A question that could not be answered has an error instead.
        if "score" not in row:
            continue
        prefix = "" if row["condition"] == CONDITIONS[0] else f"{row['condition'].replace(' ', '_')}/"
        question = by_id[row["id"]]
        for measure in measures_of(question):
            scores[prefix + measure].append(row["score"])
        if question.boxes:
            scores[f"{prefix}{measures_of(question)[0]}_iou"].append(_overlap(row["boxes"], question.boxes[0]))
    return {measure: float(np.mean(values)) for measure, values in scores.items()}


def _overlap(boxes: Sequence[Sequence[float]], truth: PixelBox) -> float:
    """Return the IoU of the first box of an answer, 0 without one."""
    if not boxes:
        return 0.0
    (x1, x2), (y1, y2) = sorted(boxes[0][::2]), sorted(boxes[0][1::2])
    (iou,) = intersection_over_union([[x1, y1, x2, y2]], [[truth.x1, truth.y1, truth.x2, truth.y2]])
    return float(iou)


def guess_scores(suite: Suite, questions: Sequence[SuiteQuestion]) -> dict[str, float]:
    """Score the best that one answer to all questions of a kind reaches: `guess/` and the measure.

    The most frequent answer; for a box the median of all boxes; the chance of a question that has one.
    """
    by_measure: dict[str, list[SuiteQuestion]] = defaultdict(list)
    for question in questions:
        for measure in measures_of(question):
            by_measure[measure].append(question)
    scores: dict[str, float] = {}
    # Each measure has its own constant answer: the best one for small things may not be that for all.
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

    The features of the control are another image's. Regions with names that no training scene has are left out.

    Args:
        recipe: of the model's training. names_path: file with the names of its training regions.

    Returns:
        nearest, another_image/nearest.
    """
    from foveate.multimodal.names import NameTable

    loaded = model.loaded
    names = NameTable.create(read_json(names_path), loaded.tokenizer)
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

    from foveate.mllm.data import ImageSet
    from foveate.mllm.recipe import StageSettings
    from foveate.mllm.samples import MllmSamples
    from foveate.mllm.task import MllmTask
    from foveate.vision.feature_cache import FeatureCache

    device = network.visual_gain.device
    features = FeatureCache.of_whole_images(
        network.tower, collection, rows, folder=collection.path / "cache", device=device
    )
    # `MllmTask` refuses a stage that evaluates without a function to measure with.
    quiet = training.model_copy(update={"evaluate_every": None})
    stage = StageSettings(name="nearest", texts=False, alignment_weight=1.0, training=quiet)
    # No conversations: alignment reads only regions and their names.
    samples = MllmSamples(
        [ImageSet((int(row),), ()) for row in rows],
        collection,
        prompts,
        names,
        preprocess=network.tower.preprocess,
        max_conversations=0,
        max_positions=network.max_positions,
        tokens_of_view=network.connector.num_tokens,
        settings=network.settings,
    )
    samples.features = features
    task = MllmTask(network, names=names, stage=stage).to(device)
    right, total = {"nearest": 0.0, "another_image/nearest": 0.0}, 0.0
    with torch.inference_mode():
        # In parts of like size: in a last batch of one image, "another image" would be the image itself.
        for part in np.array_split(samples.rows, -(-len(samples.rows) // _BATCH)):
            rows = part.tolist()
            # An evaluation within a training runs under autocast, which on CPUs cannot join float16 tensors.
            with torch.autocast(device.type, enabled=False):
                batch = samples.collate([samples.sample(row, 0, 0) for row in rows])
                views = {"nearest": batch["features"], "another_image/nearest": batch["features"].roll(1, dims=0)}
            batch = {name: value.to(device) for name, value in batch.items()}
            # The report is a mean over the named regions of a batch, whose number differs from batch to batch.
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


def with_tiles(model: Mllm, *, min_tiles: int) -> Mllm:
    """Return a model that cuts images into as few tiles as `min_tiles`; weights and all else are shared."""
    network = copy.copy(model.loaded.model)
    assembly = network.settings.assembly
    assert assembly is not None
    tiling = assembly.tiling.model_copy(update={"min_tiles": min_tiles})
    assembly = assembly.model_copy(update={"tiling": tiling})
    network.settings = network.settings.model_copy(update={"assembly": assembly})
    return Mllm(replace(model.loaded, model=network))


def train_on_tower(
    recipe: MllmRecipe, collection: Collection, run: Path, *, tower: Path, device: str | None
) -> Trained:
    """Train as `train_mllm` does, on the image encoder of a localizer's folder, which stays as it is."""
    import torch

    from foveate.mllm.train import Trained, prepare_training
    from foveate.training.distributed import start
    from foveate.vision.localizer.folder import load_model

    with start(device or "auto") as here:
        training = prepare_training(recipe, collection, run)
        encoder = training.model.tower
        encoder.load_state_dict(load_model(tower, device=str(here.device)).image_encoder.state_dict())
        # No gradient reaches its weights, and the optimizer leaves alone what has none.
        encoder.forward = torch.no_grad()(encoder.forward)  # type: ignore[method-assign]
        status = training.run_all()
        folder = training.save() if status == "finished" else None
        return Trained(training.run.folder, training.result(status), folder, here.is_main)
