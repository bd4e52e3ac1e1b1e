"""`foveate adapt train`: backbone, method and labeled images in; adapter, page and accuracies out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foveate.adapt.data import load_images
from foveate.adapt.fit import FrozenCache, fit_adapted
from foveate.adapt.folder import find_adapter_folder, read_adapter_config, read_head, save_adapter
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.measure import evaluate_split, measure_splits, write_predictions
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.parameter_summary import group_names
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.results import AdaptResult, ProbeResult, TrainedParameters, TuningGain
from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import say
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.training.classification import LabeledImages, Rows
from foveate.training.run import Run


@dataclass
class AdaptRun:
    """Outcome of `train_adapter`; `folder` is None where the run was stopped, and on other ranks."""

    run: RunFolder
    result: AdaptResult
    folder: Path | None
    is_main: bool = True


def build_adapted(recipe: AdaptRecipe, network: LoadedBackbone, images: LabeledImages, rows: Rows) -> AdaptedModel:
    """Build the adapted model before training on `rows`; the same seed gives the same initial values."""
    for sentence in recipe.training.unused_fields(recipe.training.model_fields_set):
        say(sentence)
    head = None
    own_source = images.provenance(rows)
    sources: list[dict[str, Any]] | None = [own_source]
    if recipe.head is not None:
        folder = find_adapter_folder(Path(recipe.head))
        head = read_head(folder, images.classes)
        # The head has seen the images of its own training: `adapt wise` refuses to select on any of them.
        before = read_adapter_config(folder)["info"].get("trained_on")
        sources = None if before is None else [own_source, *(entry for entry in before if entry != own_source)]
    adapted = adapt(
        network.model,
        recipe.method,
        classes=len(images.classes),
        head=head,
        seed=recipe.training.seed,
        modules=network.modules,
    )
    adapted.info["default"] = describe_training(network, images, sources)
    return adapted


def describe_training(
    network: LoadedBackbone, images: LabeledImages, trained_on: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return what is saved with an adapter: classes, how its backbone is loaded again, and what it was trained on.

    Args:
        trained_on: see `LabeledImages.provenance`; None where it is not known.
    """
    return {
        "classes": list(images.classes),
        "backbone": network.settings,
        "model_args": network.model_args,
        "preprocess": network.preprocess.to_dict(),
        **({} if trained_on is None else {"trained_on": trained_on}),
    }


def select_training_rows(recipe: AdaptRecipe, images: LabeledImages) -> Rows:
    """Return the images to train on.

    Raises:
        UserError: a class has no image, and no trained head knows it either.
    """
    pool = images.rows(*recipe.data.train)
    missing = images.missing_classes(pool)
    if missing and recipe.head is None:
        raise UserError(
            f"{images.name}: class '{missing[0]}' has no training image ({len(missing)} such classes); leave them out "
            "with data.classes, or start from a head that knows them with --head-from"
        )
    if missing:
        say(
            f"{len(missing)} of {len(images.classes)} classes have no training image (first '{missing[0]}'): tuning "
            "lowers their logits; `foveate calibrate` measures by how much"
        )
    # Missing classes were handled above: either refused or known to the head that training starts from.
    return images.draw_shots(pool, recipe.data.shots, seed=recipe.training.seed, allow_missing=True)


def train_adapter(
    recipe: AdaptRecipe,
    data: str | Path,
    run_path: Path,
    *,
    device: str | None = None,
    command: list[str] | None = None,
    evaluate: bool = True,
) -> AdaptRun:
    """Train an adapter and write its folder and result.json; the same call again resumes a stopped run.

    Args:
        data: collection folder, npz file or VTAB-1K task.
        run_path: run folder.
        device: such as "cuda"; CUDA where there is one by default.
        command: command line, for the page.
        evaluate: measure the held-out splits at the end.

    Raises:
        UserError: recipe, backbone and data do not fit, or the run folder holds another run, or one on other data.
    """
    recipe, recipe_text = match_earlier_run(recipe, run_path)
    with Run(recipe, run_path, device=device, command=command, text=recipe_text) as run:
        here, training = run.here, recipe.training
        network = load_backbone(recipe.backbone, seed=training.seed, drop_path=training.drop_path)
        images = load_images(data, recipe.data, network.preprocess)
        rows = select_training_rows(recipe, images)
        missing = images.missing_classes(rows)
        adapted = build_adapted(recipe, network, images, rows)
        # A solved head never reaches the training loop, which compares the rows of its checkpoint only.
        run.open(images.identify(rows) if here.is_main else None)
        adapted.to(here.device)
        cache = FrozenCache(network, images)

        def evaluate_validation() -> dict[str, float]:
            return evaluate_split(adapted, network, images, recipe.data.validation)

        fitted = fit_adapted(
            adapted,
            rows,
            training,
            cache=cache,
            loop=run.train,
            evaluate=None if training.evaluate_every is None else evaluate_validation,
        )
        outcome, probe = fitted.outcome, fitted.probe
        folder = save_adapter(adapted, run.path / "adapter") if run.saves(outcome) else None
        evaluation, gains = None, list[TuningGain]()
        if folder is not None and evaluate:
            if probe is None and not missing:
                probe = cache.probe(adapted, rows, training)
            # A solved adapter is the probe itself.
            alone = None if fitted.solved else probe
            evaluation, gains = measure_splits(adapted.eval(), recipe, network, images, run.path, alone=alone)
            if missing:
                # What `foveate calibrate` needs to bring these classes back.
                write_predictions(adapted, network, images, rows, run.path / "logits-training.npz", "training images")
                seen = [name for name in images.classes if name not in missing]
                write_text_atomically(run.path / "seen.txt", "".join(f"{name}\n" for name in seen))
        result = AdaptResult(
            **run.describe(outcome),
            title=f"{recipe.method['method']} on {network.title}",
            data=images.name,
            classes=list(images.classes),
            absent=missing,
            images=len(rows),
            cached=fitted.cached,
            curves="metrics.jsonl" if outcome.step else "",  # a solved head has no steps to log
            parameters=TrainedParameters(**adapted.count_parameters()._asdict()),
            matched=group_names(adapted.adapter().matched_names(adapted.backbone)),
            probe=None
            if probe is None
            else ProbeResult(
                C=probe.C, folds=probe.folds, accuracies={f"{C:g}": value for C, value in probe.accuracies.items()}
            ),
            revision=code_revision(),
            adapter="" if folder is None else "adapter/",
            evaluation=evaluation,
            gains=gains,
        )
        run.write_result(result)
    return AdaptRun(run.folder, result, folder, here.is_main)


def match_earlier_run(recipe: AdaptRecipe, run_path: Path) -> tuple[AdaptRecipe, str]:
    """Return the recipe to run, and its text for the run folder; a run begun without `head_init` keeps its random head.

    Without this, no run that was begun before the field existed could resume: its recipe would be another one.
    """
    saved = run_path / "recipe.yaml"
    if "head_init" in recipe.training.model_fields_set or not saved.is_file():
        return recipe, dump(recipe)
    try:
        before = yaml.safe_load(saved.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return recipe, dump(recipe)  # `RunFolder.create` refuses the folder, with its reason
    recorded = before.get("training") if isinstance(before, dict) else None
    if not isinstance(recorded, dict) or "head_init" in recorded:
        return recipe, dump(recipe)
    if recipe.head is None and not (recipe.method["method"] == "linear" and recipe.training.head_solver == "lbfgs"):
        say(f"{run_path}: begun before training.head_init existed; its head starts from random values, as it did then")
    training = recipe.training.model_copy(update={"head_init": "random"})
    recipe = recipe.model_copy(update={"training": training})
    content = recipe.model_dump(mode="json")
    # Left out as in the saved recipe, so that the same command finds its own folder.
    del content["training"]["head_init"]
    return recipe, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
