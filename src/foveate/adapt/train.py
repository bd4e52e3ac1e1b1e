"""`foveate adapt train`: backbone, method and labeled images in; adapter, page and accuracies out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from foveate.adapt.adapter import group_names
from foveate.adapt.data import load_images
from foveate.adapt.fit import FrozenCache, fit_adapted
from foveate.adapt.folder import find_adapter_folder, read_adapter_config, read_head, save_adapter
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.recipe import AdaptData, AdaptRecipe, AdaptTraining
from foveate.adapt.results import AdaptResult, ProbeResult, TrainedParameters
from foveate.adapt.scores import Measured, evaluate_split, measure_splits, write_predictions
from foveate.adapt.tasks import Answers, LabelTask, open_task
from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import say, silent
from foveate.core.recipes import dump
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.training.classification import LabeledImages, Rows
from foveate.training.linear_probe import SolvedHead
from foveate.training.run import Run

TUNED = "tuned"  # folder of the tuned adapter in the run folder, where the untuned features are kept


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
        head = read_head(folder, images.classes, task=images.task)
        # The head has seen the images of its own training: `adapt wise` refuses to select on any of them.
        before = read_adapter_config(folder)["info"].get("trained_on")
        sources = None if before is None else [own_source, *(entry for entry in before if entry != own_source)]
    adapted = adapt(
        network.model,
        recipe.method,
        classes=open_task(images, rows).num_outputs,
        head=head,
        seed=recipe.training.seed,
        modules=network.modules,
    )
    adapted.info["default"] = describe_training(network, images, sources)
    return adapted


def describe_training(
    network: LoadedBackbone, images: LabeledImages, trained_on: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return what is saved with an adapter: its labels, how its backbone is loaded again, what it was trained on.

    Args:
        trained_on: see `LabeledImages.provenance`; None where it is not known.
    """
    return {
        "classes": list(images.classes),
        "backbone": network.settings,
        "model_args": network.model_args,
        "preprocess": network.preprocess.to_dict(),
        **Answers(task=images.task, unit=images.unit).to_info(),
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


def warn_of_untested_classes(recipe: AdaptRecipe, images: LabeledImages) -> None:
    """Print that classes have no test image although they have enough images for one."""
    if images.task not in ("single-label", "ordinal"):
        return
    test = np.flatnonzero((images.splits == recipe.data.test) & (images.labels_N >= 0))
    counts_K = np.bincount(images.labels_N[images.labels_N >= 0], minlength=len(images.classes))
    untested = [name for name in images.missing_classes(test) if counts_K[images.classes.index(name)] > 2]
    if untested:
        say(
            f"{images.name}: {len(untested)} of {len(images.classes)} classes have no image in the split "
            f"'{recipe.data.test}' (first '{untested[0]}'), so its accuracy says little; data without splits are "
            "divided class by class: a folder per class, a CSV table, or a collection of `foveate collect --split none`"
        )


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
    # What is saved in the end changes nothing of the training: a stopped run may go on with another `keep`.
    with Run(recipe, run_path, device=device, command=command, text=recipe_text, free=("keep",)) as run:
        here, training = run.here, recipe.training
        network = load_backbone(recipe.backbone, seed=training.seed, drop_path=training.drop_path)
        images = load_images(data, recipe.data, network.preprocess)
        rows = select_training_rows(recipe, images)
        warn_of_untested_classes(recipe, images)
        missing = images.missing_classes(rows)
        task = open_task(images, rows)
        # Before a folder is made: an option that has no meaning for these labels is a mistake in the command.
        task.check(training)
        adapted = build_adapted(recipe, network, images, rows)
        # A solved head never reaches the training loop, which compares the rows of its checkpoint only.
        run.open(images.identify(rows) if here.is_main else None)
        adapted.to(here.device)
        cache = FrozenCache(network, images)

        def evaluate_validation() -> dict[str, float]:
            return evaluate_split(adapted, task, network, images, recipe.data.validation)

        fitted = fit_adapted(
            adapted,
            rows,
            training,
            cache=cache,
            loop=run.train,
            evaluate=None if training.evaluate_every is None else evaluate_validation,
        )
        outcome, probe = fitted.outcome, fitted.probe
        saves = run.saves(outcome)
        measured = Measured()
        if saves and evaluate:
            if probe is None and not missing:
                probe = cache.probe(adapted, rows, training)
            # A solved adapter is the probe itself.
            alone = None if fitted.solved else probe
            measured = measure_splits(adapted.eval(), task, recipe, network, images, run.path, alone=alone)
            if missing and images.task == "single-label":
                # What `foveate calibrate` needs to bring these classes back.
                write_predictions(adapted, network, images, rows, run.path / "logits-training.npz", "training images")
                seen = [name for name in images.classes if name not in missing]
                write_text_atomically(run.path / "seen.txt", "".join(f"{name}\n" for name in seen))
        folder = run.path / "adapter"
        if saves and measured.kept == "features":
            assert probe is not None, "compared with the tuned model"
            name_thresholds(adapted, images, measured.thresholds["adapted"])
            save_adapter(adapted, run.path / TUNED)
            save_probe(adapted, probe, task, folder, measured.thresholds["features"])
        elif saves:
            name_thresholds(adapted, images, measured.thresholds["adapted"])
            save_adapter(adapted, folder)
        result = AdaptResult(
            **run.describe(outcome),
            title=f"{recipe.method['method']} on {network.title}",
            data=images.name,
            task=images.task,
            unit=images.unit,
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
            adapter="adapter/" if saves else "",
            kept=measured.kept,
            tuned=f"{TUNED}/" if measured.kept == "features" else "",
            evaluation=measured.evaluation,
            gains=measured.gains,
            details=measured.details,
        )
        run.write_result(result)
    return AdaptRun(run.folder, result, folder if saves else None, here.is_main)


def name_thresholds(adapted: AdaptedModel, images: LabeledImages, thresholds: tuple[float, ...]) -> None:
    """Add the thresholds of several labels to what is saved with the adapter in use."""
    answers = Answers(task=images.task, thresholds=thresholds, unit=images.unit)
    adapted.info[adapted.active] = {**adapted.info[adapted.active], **answers.to_info()}


def save_probe(
    adapted: AdaptedModel,
    probe: SolvedHead,
    task: LabelTask,
    folder: Path,
    thresholds: tuple[float, ...],
) -> None:
    """Write the solved head on the untuned features as an adapter of the method linear."""
    before, name = adapted.active, "features"
    with silent():
        adapted.add("linear", classes=len(probe.bias_K), name=name)
    try:
        assert isinstance(adapted.head, nn.Linear), "a new head is linear"
        probe.copy_to(adapted.head)
        task.to_units(adapted.head)
        adapted.info[name] = adapted.info[before]
        name_thresholds(adapted, task.images, thresholds)
        save_adapter(adapted, folder)
    finally:
        adapted.remove(name, use=before)


def match_earlier_run(recipe: AdaptRecipe, run_path: Path) -> tuple[AdaptRecipe, str]:
    """Return the recipe to run, and its text for the run folder, which may be of a run of an earlier version.

    A field that did not exist then, and has its default now, is left out of the text: the run's recipe would be another
    one, and could not resume. A run begun without `head_init` keeps its random head, the default of that time.
    """
    saved = run_path / "recipe.yaml"
    if not saved.is_file():
        return recipe, dump(recipe)
    try:
        before = yaml.safe_load(saved.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return recipe, dump(recipe)  # `RunFolder.create` refuses the folder, with its reason
    recorded = before.get("training") if isinstance(before, dict) else None
    if not isinstance(recorded, dict):
        return recipe, dump(recipe)
    if "head_init" not in recorded and "head_init" not in recipe.training.model_fields_set:
        if recipe.head is None and not (recipe.method["method"] == "linear" and recipe.training.head_solver == "lbfgs"):
            say(
                f"{run_path}: begun before training.head_init existed; its head starts from random values, as it did "
                "then"
            )
        training = recipe.training.model_copy(update={"head_init": "random"})
        recipe = recipe.model_copy(update={"training": training})
    content = recipe.model_dump(mode="json")
    for section, fields in (("data", AdaptData), ("training", AdaptTraining)):
        known = before.get(section)
        defaults = {"head_init": "random"}
        for name in [name for name in content[section] if isinstance(known, dict) and name not in known]:
            if content[section][name] == defaults.get(name, fields.model_fields[name].get_default()):
                del content[section][name]
    return recipe, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
