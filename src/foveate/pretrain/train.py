"""`foveate pretrain`: a recipe and a collection in, a run folder with a model folder out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.pretrain.dataset import PretrainDataset
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.evaluate import better_rule, evaluate
from foveate.pretrain.initialization import resolved, start_from
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.task import PretrainTask
from foveate.records.collection import Collection
from foveate.training import checkpoint
from foveate.training.distributed import World, barrier, start
from foveate.training.loader import Loader
from foveate.training.loop import WITHOUT_INFLUENCE, TrainingOutcome, train
from foveate.vision.localizer.folder import save_model
from foveate.vision.localizer.model import LocalizingModel, empty_copy
from foveate.vision.store import Share

CACHE = "cache"
VALIDATION = "validation"


# Fields that may change from one session to the next: they have no influence on the weights.
_FREE = tuple(f"training.{name}" for name in WITHOUT_INFLUENCE)


@dataclass
class Pretrained:
    """What `pretrain` leaves; `model_folder` is None where the run was stopped before its end, and on other ranks."""

    run: RunFolder
    status: str
    result: dict[str, Any]
    model_folder: Path | None
    is_main: bool = True


@contextlib.contextmanager
def initial_weights_of(seed: int) -> Iterator[None]:
    """Torch's initializers take the global generator: it is set for the block and then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seeds.integer("initial weights", seed))
        yield


def build_model(recipe: PretrainRecipe) -> LocalizingModel:
    """The model of a recipe before training; the same seed gives the same weights. Towers over trained weights have
    these; a model folder that the recipe starts from is not loaded yet (`foveate.pretrain.initialization.start_from`)."""
    with initial_weights_of(recipe.training.seed):
        return LocalizingModel(resolved(recipe))


def build_dataset(
    recipe: PretrainRecipe,
    collection: Collection,
    model: LocalizingModel,
    *,
    device: torch.device,
    cache: Path,
    share: Share = (0, 1),
) -> PretrainDataset:
    """The training samples of a collection, frozen features kept in the folder `cache`; `share` is the rank and the
    number of the processes that compute them together."""
    return PretrainDataset(
        collection,
        recipe.data,
        model.image_encoder,
        model.text_encoder,
        seed=recipe.training.seed,
        cache=cache,
        device=device,
        with_regions=recipe.regions.method != "none",
        share=share,
    )


def pretrain(
    recipe: PretrainRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    evaluate_split: str | None = "test",
) -> Pretrained:
    """Trains the recipe's model on the collection; the same call again goes on where it was stopped.

    Raises:
        UserError: when the recipe does not fit the collection, or the run folder holds another run.
    """
    with start(device or "auto") as here:
        model = build_model(recipe)
        run = RunFolder(run_path)
        if here.is_main:
            run = RunFolder.create(run_path, command=command, recipe=dump(recipe), free=_FREE)
        barrier()  # the run folder is there
        assert isinstance(model.recipe, PretrainRecipe)
        if model.recipe.initial is not None:
            start_from(model, model.recipe.initial, run=run.path if here.is_main else None)
        # For the end: sharded training takes the model itself apart, and its sources may be gone by then.
        final = empty_copy(model)
        cache = _cache_folder(collection, run)
        share = (here.rank, here.size)
        dataset = build_dataset(recipe, collection, model, device=here.device, cache=cache, share=share)
        if dataset.skipped:
            say(f"{dataset.skipped} images of the split have no text of the wanted kinds: left out")
        outcome, weights = _fit(recipe, model, dataset, run, here)
        result: dict[str, Any] = {
            "kind": "pretrain",
            "status": outcome.status,
            "recipe": recipe.model_dump(mode="json"),
            "command": command,
            "collection": collection.name,
            "images": len(dataset.rows),
            "images_without_text": dataset.skipped,
            "texts": dataset.texts_of_first_epoch(outcome.step * recipe.training.batch_size, recipe.training.seed),
            "steps": outcome.step,
            "seconds": round(outcome.seconds, 1),
            "curves": "metrics.jsonl",
            "parameters": {"trained": sum(value.numel() for value in weights.values())},
            "frozen": model.image_encoder.fingerprint() or "",
            "bad_samples": outcome.bad_samples,
            "evaluation": None,
        }
        folder = None
        if outcome.status == "finished" and here.is_main:
            final.load_state_dict(weights, assign=True)
            final.to(here.device).eval()
            folder = _finish(final, collection, run, result, evaluate_split, recipe, cache)
        if here.is_main:
            run.write_result(result)
    return Pretrained(run, outcome.status, result, folder, here.is_main)


def _cache_folder(collection: Collection, run: RunFolder) -> Path:
    """Beside the images, so that runs share it; in the run folder where the collection cannot be written."""
    if os.access(collection.path, os.W_OK):
        return collection.path / CACHE
    say(f"{collection.path} cannot be written: frozen features go into {run.path / CACHE}")
    return run.path / CACHE


def _fit(
    recipe: PretrainRecipe, model: LocalizingModel, dataset: PretrainDataset, run: RunFolder, here: World
) -> tuple[TrainingOutcome, dict[str, Tensor]]:
    """Trains, and gathers the whole final weights (averaged ones where the recipe has an EMA) on rank 0."""
    settings = recipe.training
    loader = Loader(
        dataset,
        rows=dataset.rows,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=settings.workers,
        rank=here.rank,
        world_size=here.size,
        # "skip" leaves images out on purpose.
        max_bad_fraction=1.0 if recipe.data.missing == "skip" else 0.1,
    )
    task = PretrainTask(model)
    outcome = train(task, loader, settings, run)
    weights = checkpoint.gather_weights(task, ema=outcome.ema)
    return outcome, {name.removeprefix("model."): value for name, value in weights.items()}


def _finish(
    model: LocalizingModel,
    collection: Collection,
    run: RunFolder,
    result: dict[str, Any],
    split: str | None,
    recipe: PretrainRecipe,
    cache: Path,
) -> Path:
    folder = run.path / "model"
    model.requires_grad_(False)
    if model.prompter is not None and _has_split(collection, VALIDATION):  # others have one rule only
        model.locate_rule = better_rule(embed_collection(model, collection, collection.rows(VALIDATION), cache=cache))
    if split is not None and _has_split(collection, split):
        seed, samples = recipe.training.seed, run.path / "samples"
        result["evaluation"], _ = evaluate(
            model, collection, split=split, name=_column(model), seed=seed, samples_to=samples, cache=cache
        )
    result["locate_rule"] = model.locate_rule
    result["model"] = "model/"
    provenance = {
        "collection": collection.name,
        "license": collection.license,
        "split": recipe.data.split,
        "images": result["images"],
        "command": result["command"],
        "revision": code_revision(),
    }
    return save_model(model, folder, metrics=result["evaluation"], provenance=provenance)


def _column(model: LocalizingModel) -> str:
    return {"none": "clip", "prompter": "cloc", "roi": "cloc_roi"}[model.recipe.regions.method]


def _has_split(collection: Collection, split: str) -> bool:
    try:
        return len(collection.rows(split)) > 0
    except UserError:
        return False
