"""`foveate pretrain`: train a recipe on a collection; write a run folder with a model folder in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.pretrain.dataset import PretrainDataset, count_texts, describe_no_regions
from foveate.pretrain.embed import embed_collection
from foveate.pretrain.evaluate import Validation, choose_locate_rule, evaluate
from foveate.pretrain.initialization import TABLE, resolve_initial, start_from
from foveate.pretrain.recipe import PretrainRecipe
from foveate.pretrain.results import PretrainResult, SplitEvaluation
from foveate.pretrain.settings import EvaluateSettings
from foveate.pretrain.task import PretrainTask
from foveate.records.collection import Collection
from foveate.training.distributed import World, barrier
from foveate.training.loader import Loader, MixtureLoader, Source
from foveate.training.run import Run
from foveate.vision.feature_cache import FeatureCache, choose_cache_folder
from foveate.vision.feature_store import Share
from foveate.vision.localizer.folder import save_model
from foveate.vision.localizer.model import LocalizingModel, empty_copy

VALIDATION = "validation"


@dataclass
class PretrainRun:
    """A finished or stopped training run; `model_folder` is None if it was stopped, and on ranks other than 0."""

    run: RunFolder
    status: str
    result: PretrainResult
    model_folder: Path | None
    is_main: bool = True


@contextlib.contextmanager
def seeded_initialization(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block and restore it afterwards."""
    # torch.nn.init takes no generator, and the user's random state must stay as it was.
    # No devices: by default the states of all GPUs would be saved as well, and weights are drawn on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seeds.integer("initial weights", seed))
        yield


def build_model(recipe: PretrainRecipe) -> LocalizingModel:
    """Build the model of a recipe before training; the same seed gives the same weights.

    Towers of a trained checkpoint have its weights. A model folder of Foveate that the recipe starts from is not
    loaded yet; `pretrain` does that.

    Example:
        >>> from foveate.core import load_recipe
        >>> model = build_model(load_recipe(PretrainRecipe, str(recipe_file)))  # a torch module, not trained yet
        >>> model.recipe.embed_dim
        32
    """
    with seeded_initialization(recipe.training.seed):
        return LocalizingModel(resolve_initial(recipe))


def build_dataset(
    recipe: PretrainRecipe,
    collection: Collection,
    model: LocalizingModel,
    *,
    device: torch.device,
    cache: Path,
    share: Share = (0, 1),
    mixed_with: Sequence[PretrainDataset] = (),
    collates: bool = True,
) -> PretrainDataset:
    """Build the training samples of a collection; the model's image encoder moves to `device`.

    Args:
        device: where the frozen features of images are computed.
        cache: folder of the frozen features.
        share: rank and number of the processes that compute these features together.
        mixed_with, collates: see `PretrainDataset`.
    """
    # Only the image encoder: the cache sends pixels to `device`, while the cached texts are computed on the CPU.
    model.image_encoder.to(device)
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
        mixed_with=mixed_with,
        collates=collates,
    )


def pretrain(
    recipe: PretrainRecipe,
    collection: Collection,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    evaluate_split: str | None = "test",
) -> PretrainRun:
    """Train the recipe's model on the collection; the same call resumes a stopped run.

    Args:
        evaluate_split: split of the collection to evaluate a finished run on; None for no evaluation.

    Raises:
        UserError: when the recipe does not fit the collection, or the run folder holds a run of another recipe, or one
            that was trained on other images, texts or regions.
        TrainingError: when loss or gradient are not finite.

    Example:
        >>> from foveate.core import load_recipe
        >>> recipe = load_recipe(PretrainRecipe, str(recipe_file), ["training.steps=2"])
        >>> run = pretrain(recipe, Collection.open(collection_folder), new_folder, device="cpu", evaluate_split=None)
        >>> run.status, run.model_folder.name
        ('finished', 'model')
    """
    with Run(recipe, run_path, device=device, command=command, prepared=(TABLE,)) as run:
        here = run.here
        model = build_model(recipe)
        run.open()
        assert isinstance(model.recipe, PretrainRecipe)
        localizes = False
        if model.recipe.initial is not None:
            table = start_from(model, model.recipe.initial, run=run.path if here.is_main else None)
            localizes = table["localizes"]
        # A copy for the end: FSDP takes the model itself apart, and files it was built from may be gone by then.
        final = empty_copy(model)
        cache = choose_cache_folder(collection, run.path)
        datasets = _build_datasets(recipe, collection, model, run.path, here, cache=cache)
        regions = sum(data.num_regions for data in datasets)
        # The Prompter of a run without any region stays random: what it says of a box would be noise.
        final.localizes = final.localizes and (regions > 0 or localizes)
        if recipe.regions.method != "none" and not regions and here.is_main:
            say(describe_no_regions(collection.path, recipe.data.split))
        loader = _build_loader(recipe, datasets, here)
        images, skipped = (
            sum(counts) for counts in zip(*((len(data.rows), data.skipped) for data in datasets), strict=True)
        )
        if skipped:
            say(f"skipped {skipped} images of the split: no text of the kinds in data.captions")
        # Before training: a missing split must not be noticed at the first evaluation, hours later.
        task = PretrainTask(model, validation=_validation(recipe, model, collection, cache, here))
        content = {data.collection.name: data.hash_content() for data in datasets}
        outcome = run.train(task, loader, recipe.training, content=content)
        weights = run.gather(task, outcome)
        folder, evaluation = None, None
        if run.saves(outcome):
            # assign: the empty copy has no storage, so the gathered tensors become its parameters.
            final.load_state_dict(weights, assign=True)
            final.to(here.device).eval()
            split = evaluate_split if evaluate_split and _has_split(collection, evaluate_split) else None
            evaluation = _evaluate(final, collection, run.path, recipe, split=split, cache=cache)
            folder = _save(run, final, datasets, recipe, evaluation)
        result = PretrainResult(
            **run.describe(outcome),
            collection=" + ".join(data.collection.name for data in datasets),
            images=images,
            images_without_text=skipped,
            regions=regions,
            localizes=final.localizes,
            texts=count_texts(datasets, loader, steps=outcome.step, seed=recipe.training.seed),
            parameters={"trained": sum(value.numel() for value in weights.values())},
            frozen=model.image_encoder.fingerprint() or "",
            evaluation=evaluation,
            locate_rule=None if folder is None else final.locate_rule,
            model="" if folder is None else "model/",
        )
        run.write_result(result)
    return PretrainRun(run.folder, outcome.status, result, folder, here.is_main)


def _build_datasets(
    recipe: PretrainRecipe,
    collection: Collection,
    model: LocalizingModel,
    run_path: Path,
    here: World,
    *,
    cache: Path,
) -> list[PretrainDataset]:
    """Build the datasets of `collection`, which collates, and of the recipe's further collections.

    Raises:
        UserError: when two collections have the same name, by which the order of their samples is drawn.
    """
    share = (here.rank, here.size)
    others: list[PretrainDataset] = []
    names = {collection.name}
    for path in recipe.data.collections:
        other = Collection.open(path)
        if other.name in names:
            raise UserError(
                f"field data.collections: '{path}' is a second collection with the name '{other.name}'; names of mixed "
                "collections must differ"
            )
        names.add(other.name)
        folder = choose_cache_folder(other, run_path)
        others.append(
            build_dataset(recipe, other, model, device=here.device, cache=folder, share=share, collates=False)
        )
    # Built last, because it collates the samples of all datasets and encodes all their texts once.
    first = build_dataset(recipe, collection, model, device=here.device, cache=cache, share=share, mixed_with=others)
    return [first, *others]


def _build_loader(recipe: PretrainRecipe, datasets: list[PretrainDataset], here: World) -> Loader:
    settings = recipe.training
    options: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "workers": settings.workers,
        "rank": here.rank,
        "world_size": here.size,
        # data.missing=skip leaves out images on purpose: they are no sign of a damaged collection.
        "max_bad_fraction": 1.0 if recipe.data.missing == "skip" else 0.1,
    }
    if len(datasets) == 1:
        return Loader(datasets[0], rows=datasets[0].rows, **options)
    # The order of the sources is that of the recipe; their samples follow from names and weights alone.
    # The collection on the command line has weight 1; the recipe gives the others weights relative to it.
    weights = [1.0, *recipe.data.collections.values()]
    sources = [
        Source(data.collection.name, data, data.rows, weight) for data, weight in zip(datasets, weights, strict=True)
    ]
    return MixtureLoader(sources, **options)


def _validation(
    recipe: PretrainRecipe, model: LocalizingModel, collection: Collection, cache: Path, here: World
) -> Validation | None:
    """Prepare the evaluations during training, if the recipe has any.

    Raises:
        UserError: when the collection has no images to validate on.
    """
    if recipe.training.evaluate_every is None:
        return None
    validation = Validation.of(
        collection,
        split=recipe.data.validation_split,
        max_images=recipe.data.validation_images,
        seed=recipe.training.seed,
        cache=cache,
    )
    if model.image_encoder.fingerprint():
        # Computed once by rank 0: two processes must not write the same part of a cache.
        if here.is_main:
            FeatureCache.of_whole_images(
                model.to(here.device).image_encoder, collection, validation.rows, folder=cache, device=model.device
            )
        barrier()
    return validation


def _evaluate(
    model: LocalizingModel,
    collection: Collection,
    run_path: Path,
    recipe: PretrainRecipe,
    *,
    split: str | None,
    cache: Path,
) -> SplitEvaluation | None:
    """Choose the model's locate rule on the validation split, then evaluate it on `split`."""
    # Frozen weights take the kernels that a loaded model uses, so its metrics can be reproduced bit for bit.
    model.requires_grad_(False)
    validation = recipe.data.validation_split
    if not model.localizes:
        model.locate_rule = "candidates"
    elif model.prompter is not None and _has_split(collection, validation):  # other models have one rule only
        embeddings = embed_collection(model, collection, collection.rows(validation), cache=cache)
        model.locate_rule = choose_locate_rule(embeddings)
    if split is None:
        return None
    name = {"none": "clip", "prompter": "cloc", "roi": "cloc_roi"}[model.recipe.regions.method]
    seed, samples = recipe.training.seed, run_path / "samples"
    settings = EvaluateSettings(split=split)
    evaluation, _ = evaluate(model, collection, settings, name=name, seed=seed, samples_to=samples, cache=cache)
    return evaluation


def _save(
    run: Run,
    model: LocalizingModel,
    datasets: Sequence[PretrainDataset],
    recipe: PretrainRecipe,
    evaluation: SplitEvaluation | None,
) -> Path:
    provenance = run.provenance(
        collection=" + ".join(data.collection.name for data in datasets),
        license=" + ".join(dict.fromkeys(data.collection.license for data in datasets)),
        split=recipe.data.split,
        images=sum(len(data.rows) for data in datasets),
        regions=sum(data.num_regions for data in datasets),
    )
    metrics = None if evaluation is None else evaluation.to_json()
    return save_model(model, run.path / "model", metrics=metrics, provenance=provenance)


def _has_split(collection: Collection, split: str) -> bool:
    try:
        return len(collection.rows(split)) > 0
    except UserError:
        return False
