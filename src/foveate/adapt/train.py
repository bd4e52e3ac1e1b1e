"""`foveate adapt train`: backbone, method and labeled images in; adapter, page and accuracies out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import nn

from foveate.adapt.adapter import group_names
from foveate.adapt.data import load_images
from foveate.adapt.fit import FrozenCache, fit_adapted, original_features
from foveate.adapt.folder import find_adapter_folder, read_adapter_config, read_head, save_adapter
from foveate.adapt.load_backbone import LoadedBackbone, load_backbone
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.recipe import AdaptRecipe
from foveate.adapt.results import AdaptResult, ProbeResult, TrainedParameters, TuningGain
from foveate.core.errors import UserError
from foveate.core.files import write_text_atomically
from foveate.core.progress import say, silent
from foveate.core.recipes import dump
from foveate.core.results import Column, Evaluation, Row, Value
from foveate.core.runs import RunFolder
from foveate.core.version import code_revision
from foveate.metrics.classification import class_accuracies
from foveate.metrics.intervals import accuracy_interval, paired_difference
from foveate.training.classification import LabeledImages, Predictions, Rows, predict
from foveate.training.linear_probe import SolvedHead
from foveate.training.logit_files import write_logits
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


def warn_of_untested_classes(recipe: AdaptRecipe, images: LabeledImages) -> None:
    """Print that classes have no test image although they have enough images for one."""
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
        saves = run.saves(outcome)
        measured = Measured()
        if saves and evaluate:
            if probe is None and not missing:
                probe = cache.probe(adapted, rows, training)
            # A solved adapter is the probe itself.
            alone = None if fitted.solved else probe
            measured = measure_splits(adapted.eval(), recipe, network, images, run.path, alone=alone)
            if missing:
                # What `foveate calibrate` needs to bring these classes back.
                write_predictions(adapted, network, images, rows, run.path / "logits-training.npz", "training images")
                seen = [name for name in images.classes if name not in missing]
                write_text_atomically(run.path / "seen.txt", "".join(f"{name}\n" for name in seen))
        folder = run.path / "adapter"
        if saves and measured.kept == "features":
            assert probe is not None, "compared with the tuned model"
            save_adapter(adapted, run.path / TUNED)
            save_probe(adapted, probe, folder)
        elif saves:
            save_adapter(adapted, folder)
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
            adapter="adapter/" if saves else "",
            kept=measured.kept,
            tuned=f"{TUNED}/" if measured.kept == "features" else "",
            evaluation=measured.evaluation,
            gains=measured.gains,
        )
        run.write_result(result)
    return AdaptRun(run.folder, result, folder if saves else None, here.is_main)


def save_probe(adapted: AdaptedModel, probe: SolvedHead, folder: Path) -> None:
    """Write the solved head on the untuned features as an adapter of the method linear."""
    before, name = adapted.active, "features"
    with silent():
        adapted.add("linear", classes=len(probe.bias_K), name=name)
    try:
        assert isinstance(adapted.head, nn.Linear), "a new head is linear"
        probe.copy_to(adapted.head)
        adapted.info[name] = adapted.info[before]
        save_adapter(adapted, folder)
    finally:
        adapted.remove(name, use=before)


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


# Accuracies of an adapted model on held-out splits, beside a probe of the untuned features, and their logits.


def predict_adapted(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, rows: Rows, *, description: str
) -> Predictions:
    """Return the logits of `rows`, on the device that the backbone is on."""
    device = adapted.backbone.device
    return predict(
        lambda pixels: adapted(network.normalize(pixels)), images, rows, device=device, description=description
    )


def evaluate_split(
    adapted: AdaptedModel, network: LoadedBackbone, images: LabeledImages, split: str
) -> dict[str, float]:
    """Return accuracy and cross-entropy of a split, during training."""
    with silent():  # inside the progress bar of the training
        description = f"measuring {split}"
        return predict_adapted(adapted, network, images, images.rows(split), description=description).metrics


def write_predictions(
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


@dataclass
class Measured:
    """Accuracies on held-out splits.

    Attributes:
        evaluation: the table; None where nothing was measured.
        gains: of each split, what tuning gained over the untuned features; none where these were not measured.
        kept: the better of tuned model and untuned features on validation images, the tuned one of equals.
    """

    evaluation: Evaluation | None = None
    gains: list[TuningGain] = field(default_factory=list)
    kept: Literal["tuned", "features"] = "tuned"


def measure_splits(
    adapted: AdaptedModel,
    recipe: AdaptRecipe,
    network: LoadedBackbone,
    images: LabeledImages,
    folder: Path,
    *,
    alone: SolvedHead | None,
) -> Measured:
    """Measure the held-out splits that exist; write the logits of the kept model into the run folder.

    Args:
        alone: a head on the features of the network as it came, for the column beside the adapter's.
    """
    table: list[Row] = []
    measured = Measured()
    # One split for both would choose on test images.
    chooses = recipe.keep == "better" and recipe.data.validation != recipe.data.test
    # Validation comes first, so that what is kept is known before the logits of the test images are written.
    for split in held_out_splits(recipe, images):
        rows = images.rows(split)
        predictions = predict_adapted(adapted, network, images, rows, description=f"measuring {split}")
        labels, kept_NK = predictions.labels, predictions.logits
        predicted = {"adapted": predictions.logits.argmax(axis=1)}
        if alone is not None:
            features_ND, _ = original_features(adapted, network, images, rows, f"features of {split}")
            features_NK = alone.logits(features_ND)
            predicted["features"] = features_NK.argmax(axis=1)
            gain = measure_gain(split, predicted["adapted"] == labels, predicted["features"] == labels)
            measured.gains.append(gain)
            if chooses and split == recipe.data.validation and gain.gain < 0:
                measured.kept = "features"
            kept_NK = features_NK if measured.kept == "features" else kept_NK
        write_logits(folder / f"logits-{split}.npz", logits=kept_NK, labels=labels, class_names=list(images.classes))
        # Chance of the accuracy is the largest class; with each class counted alike it is one of K.
        largest_class = float(np.bincount(labels).max() / len(labels))
        accuracies, means = dict[str, Value](), dict[str, Value]()
        for way, predicted_N in predicted.items():
            accuracies[way] = accuracy_interval(predicted_N == labels).to_value()
            means[way] = Value(value=float(class_accuracies(predicted_N, labels).accuracy_C.mean()))
        for question, chance, values in (
            ("Which class? (accuracy)", largest_class, accuracies),
            ("Which class, each class alike? (mean of classes)", 1 / len(images.classes), means),
        ):
            table.append(Row(question=question, data=split, n=len(labels), chance=chance, values=dict(values)))
    columns = [Column(key="adapted", title="adapted", what="the last epoch's model", role="ours")]
    if alone is not None:
        what = "logistic regression on the features of the network as it came"
        columns.append(Column(key="features", title="features alone", what=what, role="baseline"))
    measured.evaluation = Evaluation(columns=columns, table=table)
    return measured


def measure_gain(split: str, tuned_N: NDArray[np.bool_], features_N: NDArray[np.bool_]) -> TuningGain:
    """Return what tuning gained on a split.

    Args:
        tuned_N, features_N: whether each image is classified correctly.
    """
    difference = paired_difference(tuned_N.astype(float), features_N.astype(float), seed=("adapt", split))
    # A bootstrap cannot tell how certain it is where all images have the same difference.
    varies = difference.low != difference.high
    return TuningGain(
        split=split,
        tuned=float(tuned_N.mean()),
        features=float(features_N.mean()),
        gain=difference.value,
        low=difference.low if varies else None,
        high=difference.high if varies else None,
        n=difference.n,
    )
