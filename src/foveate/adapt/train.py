"""`foveate adapt train`: backbone, method and labeled images in; adapter, page and accuracies out."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.data import load_images
from foveate.adapt.folder import find_adapter_folder, read_adapter_config, read_head, save_adapter
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.parameter_summary import group_names
from foveate.adapt.prefix import FrozenPrefix
from foveate.adapt.recipe import AdaptRecipe, AdaptTraining
from foveate.adapt.results import AdaptResult, ProbeResult, TrainedParameters, TuningGain
from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import say, silent
from foveate.core.recipes import dump
from foveate.core.results import Column, Evaluation, Row, Value
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.metrics.classification import class_accuracies
from foveate.metrics.intervals import bootstrap_interval, paired_difference
from foveate.training.augment import augment_images
from foveate.training.classification import (
    ClassificationTask,
    LabeledImages,
    Predictions,
    Rows,
    load_cached,
    predict,
    readable_batches,
    train_classifier,
    training_loader,
)
from foveate.training.distributed import barrier, start
from foveate.training.linear_probe import SolvedHead, solve_head
from foveate.training.logit_files import write_logits
from foveate.training.loop import TrainingOutcome
from foveate.training.optimizer import ParameterRule

# Of all cached training images together; more would crowd out the page cache that images are read through.
MAX_CACHE_BYTES = 4 * 2**30
# Fields that a resumed run may change: they decide nothing about the result.
_FREE = ("training.log_every", "training.checkpoint_every", "training.workers")


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


def build_task(
    adapted: AdaptedModel,
    network: LoadedBackbone,
    training: AdaptTraining,
    *,
    prefix: FrozenPrefix | None,
    num_images: int,
) -> ClassificationTask:
    """Build the task of the training loop.

    Args:
        prefix: batches hold what it cached; None: they hold pixels.
        num_images: of an epoch.
    """
    logits = prefix.logits if prefix is not None else (lambda pixels: adapted(network.normalize(pixels)))
    # One rule for everything: biases and norms too, which the loop's own rule leaves without decay.
    rules = (ParameterRule(".*", weight_decay=training.weight_decay),) if training.decay == "all" else ()
    return ClassificationTask(
        adapted,
        logits=logits,
        label_smoothing=training.label_smoothing,
        rules=rules,
        shard_units=[block.module for block in adapted.backbone.blocks],
        schedule=training.step_schedule(num_images),
        save=lambda folder: save_adapter(adapted, folder),
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
    with start(device or "auto") as here:
        recipe, recipe_text = match_earlier_run(recipe, run_path)
        training = recipe.training
        network = load_backbone(recipe.backbone, seed=training.seed, drop_path=training.drop_path)
        images = load_images(data, recipe.data, network.preprocess)
        rows = select_training_rows(recipe, images)
        missing = images.missing_classes(rows)
        settings = training.resolve(len(rows))
        adapted = build_adapted(recipe, network, images, rows)
        run = RunFolder(run_path)
        if here.is_main:
            # A solved head never reaches the training loop, which compares the rows of its checkpoint only.
            identity = images.identify(rows)
            run = RunFolder.create(run_path, command=command, recipe=recipe_text, free=_FREE, data=identity)
        # The main rank creates the folder before the others use it.
        barrier()
        adapted.to(here.device)
        unreadable: dict[int, str] = {}
        prefix, cache = _cache_frozen_parts(adapted, network, images, rows, training, here.device, unreadable)
        cached = "nothing" if prefix is None else prefix.describe()
        if prefix is not None:
            say(f"cached: {cached}")
        probe = None
        solved = is_solved(adapted, recipe.method, training, missing=missing, cached=cache is not None)
        if "head_init" in training.model_fields_set and (solved or adapted.active in adapted.first_heads):
            reason = "solves its head" if solved else "starts from the head of --head-from"
            say(f"training.head_init has no effect: this run {reason}")
        if solved and cache is not None:
            probe, seconds = solve_cached_head(adapted, cache, images, training)
            bad = {images.keys[row]: reason for row, reason in unreadable.items()}
            outcome = TrainingOutcome("finished", 0, seconds, model=adapted, ema=None, bad_samples=bad)
        else:
            if starts_solved(adapted, training):
                # On every rank: each needs the same head, and the features of the others are not sent.
                probe = probe_features(adapted, network, images, rows, training)
                start_head(adapted, probe)
            augmented = augment_images(images, training.augmentation)
            loader = training_loader(
                images,
                rows,
                settings,
                load=augmented if cache is None else load_cached(cache, unreadable),
                mixup=training.mixup,
                balanced=training.balanced,
                rank=here.rank,
                world_size=here.size,
            )
            task = build_task(adapted, network, training, prefix=prefix, num_images=len(rows))
            if settings.evaluate_every is not None:
                task.evaluate_with(lambda: _evaluate_split(adapted, network, images, recipe.data.validation))
            outcome = train_classifier(task, loader, settings, run)
        finished = outcome.status == "finished" and here.is_main
        folder = save_adapter(adapted, run.path / "adapter") if finished else None
        evaluation, gains = None, list[TuningGain]()
        if folder is not None and evaluate:
            if probe is None and not missing:
                probe = probe_features(adapted, network, images, rows, training)
            # A solved adapter is the probe itself.
            alone = None if solved else probe
            evaluation, gains = _measure_splits(adapted.eval(), recipe, network, images, run.path, alone=alone)
            if missing:
                # What `foveate calibrate` needs to bring these classes back.
                _write_predictions(adapted, network, images, rows, run.path / "logits-training.npz", "training images")
                seen = [name for name in images.classes if name not in missing]
                write_text_atomically(run.path / "seen.txt", "".join(f"{name}\n" for name in seen))
        result = AdaptResult(
            title=f"{recipe.method['method']} on {network.title}",
            status=outcome.status,
            recipe=recipe.model_dump(mode="json"),
            command=command or "",
            data=images.name,
            classes=list(images.classes),
            absent=missing,
            images=len(rows),
            cached=cached,
            steps=outcome.step,
            seconds=round(outcome.seconds, 1),
            curves="metrics.jsonl" if outcome.step else "",  # a solved head has no steps to log
            parameters=TrainedParameters(**adapted.count_parameters()._asdict()),
            matched=group_names(adapted.adapter().matched_names(adapted.backbone)),
            bad_samples=outcome.bad_samples,
            probe=None if probe is None else _describe_probe(probe),
            revision=code_revision(),
            adapter="" if folder is None else "adapter/",
            evaluation=evaluation,
            gains=gains,
        )
        if here.is_main:
            run.write_result(result.to_json())
    return AdaptRun(run, result, folder, here.is_main)


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


def starts_solved(adapted: AdaptedModel, training: AdaptTraining) -> bool:
    """Whether the head starts from the linear probe: by default, unless it was trained before."""
    return training.head_init == "solved" and adapted.active not in adapted.first_heads


def start_head(adapted: AdaptedModel, probe: SolvedHead) -> None:
    """Set the new head of `adapted` to a probe; before any step, an unchanged network answers as the probe does."""
    assert isinstance(adapted.head, nn.Linear), "a new head is linear"
    probe.copy_to(adapted.head)
    # As of any head that was trained before: `adapt wise` needs it for the model at alpha 0.
    adapted.first_heads[adapted.active] = copy.deepcopy(adapted.head).requires_grad_(False)


def _cache_frozen_parts(
    adapted: AdaptedModel,
    network: LoadedBackbone,
    images: LabeledImages,
    rows: Rows,
    training: AdaptTraining,
    device: torch.device,
    unreadable: dict[int, str],
) -> tuple[FrozenPrefix | None, dict[int, Tensor] | None]:
    """Return the frozen part in front of what is trained, and its outputs by image; two None where not cached."""
    if not training.cache or training.varies_images:  # a mirrored image has other tokens
        return None, None
    prefix = FrozenPrefix(adapted)
    if prefix.kind == "nothing":
        return None, None
    cache = cache_frozen(prefix, network, images, rows, device, unreadable)
    return (None, None) if cache is None else (prefix, cache)


def cache_frozen(
    prefix: FrozenPrefix,
    network: LoadedBackbone,
    images: LabeledImages,
    rows: Rows,
    device: torch.device,
    unreadable: dict[int, str],
) -> dict[int, Tensor] | None:
    """Compute what `prefix` caches of each image, on the CPU; None where it would not fit `MAX_CACHE_BYTES`."""
    cache: dict[int, Tensor] = {}
    for part, pixels in readable_batches(images, rows, unreadable, description="computing frozen parts"):
        # On the CPU: on the device the cache of all images would take the memory that the training needs.
        outputs = prefix.compute(network.normalize(pixels.to(device))).cpu()
        # From the first batch, before the cache has grown: all images have outputs of one size.
        num_bytes = outputs[0].numel() * outputs.element_size() * len(rows)
        if num_bytes > MAX_CACHE_BYTES:
            say(f"frozen parts would take {num_bytes / 2**30:.0f} GiB: they are computed in every epoch instead")
            return None
        cache.update(zip(part, outputs, strict=True))
    return cache


def is_solved(
    adapted: AdaptedModel,
    method: Mapping[str, Any],
    training: AdaptTraining,
    *,
    missing: Sequence[str] = (),
    cached: bool = True,
) -> bool:
    """Whether the head is solved: of method linear, on cached features, if it is new and every class has an image."""
    if method["method"] != "linear" or training.head_solver != "lbfgs":
        return False
    if adapted.active in adapted.first_heads or missing:
        # A solved head would forget what the given one knows, of classes without an image above all.
        say("linear: the head was trained before, so it is trained on by steps instead of solved")
        return False
    if training.balanced or training.label_smoothing:
        say("linear: balanced and label_smoothing belong to steps, so the head is trained by steps instead of solved")
        return False
    if not cached:
        say("linear: features are not cached, so the head is trained by steps instead of solved")
    return cached


def solve_cached_head(
    adapted: AdaptedModel, cache: Mapping[int, Tensor], images: LabeledImages, training: AdaptTraining
) -> tuple[SolvedHead, float]:
    """Solve the head of `adapted` on cached features (row -> [D]); return it, and the seconds it took."""
    began = time.monotonic()
    # Sorted, because the cross-validation folds depend on row order, and the cache has the order it was filled in.
    rows = sorted(cache)
    features_ND = torch.stack([cache[row] for row in rows]).float().numpy()
    solved = solve_head(
        features_ND,
        images.labels_N[rows],
        num_classes=len(images.classes),
        C=training.head_c,
        seed=training.seed,
    )
    assert isinstance(adapted.head, nn.Linear), "a new head is linear"
    solved.copy_to(adapted.head)
    return solved, time.monotonic() - began


def probe_features(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, training: AdaptTraining
) -> SolvedHead:
    """Solve a head on the features of the network as it came: what any tuning has to beat.

    Raises:
        UserError: no image of a class can be read, or a feature is not finite.
    """
    features_ND, labels_N = _original_features(adapted, network, images, rows, "features alone")
    missing = sorted(set(range(len(images.classes))) - set(labels_N.tolist()))
    if missing:
        raise UserError(f"{images.name}: no training image of class '{images.classes[missing[0]]}' can be read")
    return solve_head(features_ND, labels_N, num_classes=len(images.classes), C=training.head_c, seed=training.seed)


@torch.no_grad()
def _original_features(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, description: str
) -> tuple[NDArray[np.float32], Rows]:
    """Return features [N, D] of the network without the adapter, and labels, of the rows that can be read."""
    device, readable, features = adapted.backbone.device, list[int](), list[NDArray[np.float32]]()
    adapted.eval()
    with adapted.disable():
        for part, pixels in readable_batches(images, rows, {}, description=description):
            readable += part
            features.append(adapted.backbone.features(network.normalize(pixels.to(device))).float().cpu().numpy())
    if not features:
        raise UserError(f"{images.name}: none of {len(rows)} images can be read")
    return np.concatenate(features), images.labels_N[readable]


def _describe_probe(probe: SolvedHead) -> ProbeResult:
    accuracies = {f"{C:g}": accuracy for C, accuracy in probe.accuracies.items()}
    return ProbeResult(C=probe.C, folds=probe.folds, accuracies=accuracies)


def predict_adapted(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, *, description: str
) -> Predictions:
    """Return the logits of `rows`, on the device that the backbone is on."""
    device = adapted.backbone.device
    return predict(
        lambda pixels: adapted(network.normalize(pixels)), images, rows, device=device, description=description
    )


def _evaluate_split(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, split: str
) -> dict[str, float]:
    """Return accuracy and cross-entropy of a split, during training."""
    with silent():  # inside the progress bar of the training
        predictions = predict_adapted(adapted, network, images, images.rows(split), description=f"measuring {split}")
    return {"accuracy": predictions.accuracy, "loss": predictions.loss}


def _write_predictions(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, path: Path, what: str
) -> Predictions:
    """Return the logits of `rows`, and write them as a file that `foveate calibrate` reads."""
    predictions = predict_adapted(adapted, network, images, rows, description=f"measuring {what}")
    write_logits(path, logits=predictions.logits, labels=predictions.labels, class_names=list(images.classes))
    return predictions


def held_out_splits(recipe: AdaptRecipe, images: LabeledImages) -> list[str]:
    """Return the splits that are measured at the end; none that was trained on."""
    # `dict.fromkeys`: one split may serve as validation and test, and is measured once.
    splits = dict.fromkeys((recipe.data.validation, recipe.data.test))
    # Accuracy on training images is no answer to how good a model is.
    return [split for split in splits if images.has_split(split) and split not in recipe.data.train]


def _measure_splits(
    adapted: AdaptedModel,
    recipe: AdaptRecipe,
    network: LoadedBackbone,
    images: LabeledImages,
    folder: Path,
    *,
    alone: SolvedHead | None,
) -> tuple[Evaluation, list[TuningGain]]:
    """Measure the held-out splits that exist; their logits are written into the run folder.

    Args:
        alone: a head on the features of the network as it came, for the column beside the adapter's.

    Returns:
        The table, and for each split what tuning gained over `alone`; none without it.
    """
    table: list[Row] = []
    gains: list[TuningGain] = []
    for split in held_out_splits(recipe, images):
        path = folder / f"logits-{split}.npz"
        predictions = _write_predictions(adapted, network, images, images.rows(split), path, split)
        labels = predictions.labels
        predicted = {"adapted": predictions.logits.argmax(axis=1)}
        if alone is not None:
            features_ND, _ = _original_features(adapted, network, images, images.rows(split), f"features of {split}")
            predicted["features"] = alone.logits(features_ND).argmax(axis=1)
        # Chance of the accuracy is the largest class; with each class counted alike it is one of K.
        largest_class = float(np.bincount(labels).max() / len(labels))
        accuracies, means = dict[str, Value](), dict[str, Value]()
        for way, predicted_N in predicted.items():
            correct_N = (predicted_N == labels).astype(float)
            accuracies[way] = bootstrap_interval(correct_N, seed=("adapt", split)).to_value()
            means[way] = Value(value=float(class_accuracies(predicted_N, labels).accuracy_C.mean()))
        if alone is not None:
            correct = [(predicted[way] == labels).astype(float) for way in ("adapted", "features")]
            difference = paired_difference(*correct, seed=("adapt", split))
            tuned, untuned = accuracies["adapted"].value, accuracies["features"].value
            gains.append(
                TuningGain(
                    split=split, tuned=tuned, features=untuned, gain=difference.value, low=difference.low,
                    high=difference.high, n=difference.n,
                )
            )  # fmt: skip
        for question, chance, values in (
            ("Which class? (accuracy)", largest_class, accuracies),
            ("Which class, each class alike? (mean of classes)", 1 / len(images.classes), means),
        ):
            table.append(Row(question=question, data=split, n=len(labels), chance=chance, values=dict(values)))
    columns = [Column(key="adapted", title="adapted", what="the last epoch's model", role="ours")]
    if alone is not None:
        what = "logistic regression on the features of the network as it came"
        columns.append(Column(key="features", title="features alone", what=what, role="baseline"))
    return Evaluation(columns=columns, table=table), gains
