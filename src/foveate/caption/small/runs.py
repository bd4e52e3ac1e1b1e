"""Runs of `foveate captioner train` and `evaluate`: a run folder with a result that the page renders."""

from __future__ import annotations

import os
from pathlib import Path

from foveate.caption.small.evaluate import evaluate
from foveate.caption.small.folder import card, load_captioner
from foveate.caption.small.recipe import CaptionerRecipe
from foveate.caption.small.results import CaptionerResult
from foveate.caption.small.settings import EvaluationSettings, HeldOutSettings
from foveate.caption.small.train import Trained, train_captioner
from foveate.core.files import write_json_atomically, write_text_atomically
from foveate.core.model_folder import CARD, METRICS
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.records.collection import Collection

_HELD_OUT = ("test", "validation")


def train_and_evaluate(
    recipe: CaptionerRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    held_out: HeldOutSettings | None = None,
) -> Trained:
    """Train, then evaluate on held-out images if there are any; both go into result.json and the model card."""
    held_out = held_out or HeldOutSettings()
    trained = train_captioner(recipe, collection, run_path, device=device, command=command)
    if trained.model_folder is None or not held_out.evaluation:
        return trained
    splits = set(collection.splits.tolist())
    split = held_out.split or next((name for name in _HELD_OUT if name in splits), None)
    if split is None:
        say(f"collection {collection.path} has neither a split test nor validation: not evaluated (use --split)")
        return trained
    opened = load_captioner(trained.model_folder, device=device)
    evaluation = evaluate(
        opened,
        collection,
        split=split,
        run=run_path,
        cache=choose_cache(collection, run_path),
        limit=held_out.limit,
        seed=recipe.training.seed,
    )
    metrics = evaluation.to_json()
    write_json_atomically(
        trained.model_folder / METRICS, {name: value for name, value in metrics.items() if name != "samples"}
    )
    parameters = sum(value.numel() for value in opened.model.parameters())
    # The card is written again, now with what was measured.
    write_text_atomically(trained.model_folder / CARD, card(recipe, parameters, metrics, opened.provenance))
    trained.result = trained.result.model_copy(update={"evaluation": evaluation})
    trained.run.write_result(trained.result.to_json())
    return trained


def evaluate_folder(
    model: Path,
    collection: Collection,
    run_path: Path,
    settings: EvaluationSettings,
    *,
    seed: int,
    device: str | None,
    command: list[str] | None,
) -> CaptionerResult:
    """Evaluate a model folder, in a run folder of its own.

    Raises:
        UserError: the folder holds no captioner, or the split is empty.
    """
    opened = load_captioner(model, device=device)
    run = RunFolder.create(run_path, command=command)
    evaluation = evaluate(
        opened,
        collection,
        split=settings.split,
        run=run_path,
        cache=choose_cache(collection, run_path),
        limit=settings.limit,
        seed=seed,
        shuffled=settings.shuffled,
    )
    result = CaptionerResult(
        title=f"A captioner on {collection.name}" + (", images shuffled: a control" if settings.shuffled else ""),
        model=str(model),
        revision=opened.revision,
        collection=collection.name,
        command=command or "",
        evaluation=evaluation,
    )
    run.write_result(result.to_json())
    return result


def choose_cache(collection: Collection, run_path: Path) -> Path:
    """Return the folder of cached features: in the collection, or in the run folder if the collection is read-only."""
    return (collection.path if os.access(collection.path, os.W_OK) else run_path) / "cache"
