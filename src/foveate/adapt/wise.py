"""WiSE: models between a network and its tuned one, theta(a) = (1 - a) theta_0 + a theta_tuned.

Wortsman et al. 2022, arXiv 2109.01903, section 3; for adapters as in arXiv 2409.16434. What the rule means depends on
the method:

- tuned tensors of the network itself (full, bitfit, layernorm, subset) are interpolated;
- an added branch (lora, adaptformer, pfeiffer, houlsby, convpass, repadapter, FacT) is multiplied by a. For branches
  that merge this is the interpolation of merged weights; scaling both factors of a low-rank product would give a^2;
- difffit and ssf are merged first, then merged weights are interpolated;
- prompts have no counterpart in the original network: not defined.

The head is interpolated with the one that it started from. a = 0 and a = 1 are these two models bit for bit. With
`layerscale: official` a sublayer passes LayerScale twice even where the branch is 0, as in the study's code, so there
a = 0 is not the original network.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.adapt.adapter import Adapter, MethodSettings, NativeAdapter, ParameterSwap, upcast
from foveate.adapt.compare.recipe import CompareTask
from foveate.adapt.data import load_images
from foveate.adapt.export import check_empty, open_adapted
from foveate.adapt.folder import adapter_tensors, find_adapter_folder, save_adapter
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.methods.lora import LoraAdapter
from foveate.adapt.methods.subsets import SubsetSettings
from foveate.adapt.model import AdaptedModel
from foveate.adapt.recipe import AdaptData, WiseSettings
from foveate.adapt.registry import get_method
from foveate.adapt.results import SavedModel, WisePoint, WiseRecommendation, WiseResult, WiseSet
from foveate.adapt.tasks import SINGLE_LABEL, Answers, single_label_only
from foveate.core.errors import UserError, nearest
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.metrics.agreement import operating_points
from foveate.metrics.intervals import accuracy_interval
from foveate.training.classification import LabeledImages, Rows, readable_batches
from foveate.training.distributed import start


@contextlib.contextmanager
def interpolated(
    adapted: AdaptedModel, alpha: float, *, head: Literal["interpolate", "keep"] = "interpolate"
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from pixels to logits of the model at `alpha`; the model itself stays as it is.

    Args:
        alpha: 0 (the original network) to 1 (the tuned one).
        head: keep = the tuned head at every alpha, for one that started from random values.

    Raises:
        UserError: a method without a rule, an alpha out of range, a merged model, or a head that started from random
            values.

    Example:
        >>> with interpolated(adapted_model, 0.5, head="keep") as model:
        ...     model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 3])
    """
    adapter = check_alpha(adapted, alpha)
    classify = head_at(adapted, alpha, keep=head == "keep")
    with_gradients = torch.is_grad_enabled()
    # Not a mixture with weight 1: that would round, and alpha 1 must be the tuned model bit for bit.
    if alpha == 1:
        yield lambda pixels: classify(adapted.backbone.features(pixels))
    # With official LayerScale a branch of strength 0 still differs from the original network, so it takes the way
    # below.
    elif alpha == 0 and getattr(adapter.settings, "layerscale", "once") == "once":
        with adapted._original():
            yield lambda pixels: classify(adapted.backbone.features(pixels))
    elif adapter.interpolation == "branch" and not isinstance(adapter, NativeAdapter):
        # Times the adapter's own strength: a saved model may be scaled already.
        before, adapter.strength = adapter.strength, adapter.strength * alpha
        try:
            yield lambda pixels: classify(adapted.backbone.features(pixels))
        finally:
            adapter.strength = before
    else:
        tuned = adapted.merged_weights()
        with adapted._original(), torch.no_grad():
            store = ParameterSwap(interpolate_weights(adapted.model, tuned, alpha), trained=False)
            store.swap(adapted.model)
            try:
                # Only the weights are made without gradient; a caller may want the one of the pixels.
                with torch.set_grad_enabled(with_gradients):
                    yield lambda pixels: classify(adapted.backbone.features(pixels))
            finally:
                store.swap(adapted.model)


def check_alpha(adapted: AdaptedModel, alpha: float) -> Adapter[Any]:
    """Return the adapter in use.

    Raises:
        UserError: it has no model at `alpha`.
    """
    adapter = adapted.adapter()
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must lie in [0, 1] (got {alpha})")
    if not adapter.interpolation:
        raise UserError(f"method '{adapter.settings.method}' has no models in between: {adapter.why_not_mergeable}")
    if adapted.is_merged:
        raise UserError("the model is merged: unmerge it first")
    return adapter


def interpolate_weights(model: nn.Module, tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - a) of the model's tensors and a of the tuned ones, where they differ."""
    return {
        name: ((1 - alpha) * upcast(value) + alpha * upcast(tuned[name])).to(value.dtype)
        for name, value in model.named_parameters(remove_duplicate=False)
        # (1 - a) x + a x is not x in floating point, so equal tensors are left out.
        if not torch.equal(value, tuned[name])
    }


def head_at(adapted: AdaptedModel, alpha: float, *, keep: bool) -> nn.Module:
    """Return the head between the one that it started from and the tuned one; `keep` = the tuned one.

    Raises:
        UserError: it started from random values.
    """
    if keep or alpha == 1:
        return adapted.head
    if adapted.active not in adapted.first_heads:
        raise UserError(
            "the head started from random values, so there is no model at alpha 0: adapt with head=..., from zero-shot "
            'weights or a linear probe, or keep the tuned head with head="keep"'
        )
    first = adapted.first_heads[adapted.active]
    if alpha == 0:
        return first
    # A copy: the first head and the tuned one stay as they are.
    mixed = copy.deepcopy(first)
    tuned = dict(adapted.head.named_parameters())
    with torch.no_grad():
        for name, value in mixed.named_parameters():
            value.copy_((1 - alpha) * upcast(value) + alpha * upcast(tuned[name]))
    return mixed


def save_at(adapted: AdaptedModel, alpha: float, folder: Path, *, keep_head: bool = False) -> Path:
    """Write the model at `alpha` as an adapter folder, which every verb opens like any adapter.

    A branch keeps its method with a scaled output, tuned tensors keep theirs with interpolated values; difffit and
    ssf, whose merged weights are interpolated, become the tuned tensors that these are (method `subset`).

    Args:
        keep_head: the tuned head instead of the interpolated one.

    Raises:
        UserError: a method without a rule, a head that started from random values, or a folder that is not empty.

    Example:
        >>> save_at(adapted_model, 0.5, new_folder, keep_head=True) == new_folder
        True
    """
    check_empty(folder)
    adapter = check_alpha(adapted, alpha)
    tensors = {key: value.detach().clone() for key, value in adapter_tensors(adapted, adapted.active).items()}
    head = head_at(adapted, alpha, keep=keep_head)
    tensors |= {f"head.{key}": value.detach().clone() for key, value in head.named_parameters()}
    settings: MethodSettings = adapter.settings
    if adapter.interpolation == "branch" and not isinstance(adapter, NativeAdapter):
        settings = _scale_branch(adapter, alpha * adapter.strength, tensors)
    else:
        tuned = adapted.merged_weights()
        # Inside `_original`, so that the model's tensors are those of alpha 0.
        with adapted._original(), torch.no_grad():
            values = interpolate_weights(adapted.model, tuned, alpha)
            if adapter.interpolation == "weights":
                start = dict(adapted.model.named_parameters(remove_duplicate=False))
                for key in [key for key in tensors if key.startswith("adapter.backbone.")]:
                    name = key.removeprefix("adapter.backbone.")
                    tensors[key] = values.get(name, start[name]).detach().clone()
            else:
                tensors = {key: value for key, value in tensors.items() if not key.startswith("adapter.")}
                tensors |= {f"adapter.backbone.{name}": value for name, value in values.items()}
                # Equal tensors were left out above; a pattern over none of them would select nothing.
                if not values:
                    raise UserError(
                        f"method '{adapter.settings.method}' at alpha {alpha:g} changes no weight: nothing to write"
                    )
                settings = SubsetSettings(pattern="|".join(re.escape(name) for name in sorted(values)))
    return save_adapter(adapted, folder, settings=settings, tensors=tensors, strength=1.0)


def _scale_branch(adapter: object, alpha: float, tensors: dict[str, Tensor]) -> MethodSettings:
    """Return the settings of a branch that is multiplied by alpha; scale its last linear map in `tensors`."""
    settings: MethodSettings = adapter.settings  # pyrefly: ignore[missing-attribute]
    if isinstance(adapter, LoraAdapter):
        # LoRA's scale is alpha / rank of its settings, which PEFT reads too; its B is scaled instead.
        for key in [key for key in tensors if key.startswith("adapter.") and key.endswith(".b.weight")]:
            tensors[key] = alpha * tensors[key]
        return settings
    scale = getattr(settings, "scale", None)
    if scale is None:  # linear: there is the head alone
        return settings
    if scale == "learnable":
        for key in [key for key in tensors if key.endswith(".learnt_scale")]:
            tensors[key] = alpha * tensors[key]
        return settings
    return settings.model_copy(update={"scale": alpha * float(scale)})


# `foveate adapt wise`: accuracy along the line from a network to its tuned one, on the user's own and shifted data.
#
# The recommended alpha is the smallest whose accuracy on *validation* images is at most one standard error below the
# best: as near to the original network as these images allow. Test and shifted images take no part in it; points that
# are best on them are shown, and peek.


RULES = {
    "weights": "tuned tensors are interpolated",
    "branch": "the branch is multiplied by alpha",
    "merged": "merged weights are interpolated",
}
WISE = "foveate adapt wise"
RULE = (
    "the smallest alpha whose accuracy on validation images is at most one standard error below the best; test and "
    "shifted images took no part"
)


@dataclass(frozen=True)
class CurveImages:
    """One set of images on which the curve is measured.

    Attributes:
        key, title: for results and tables.
        role: "validation", "test" or "shifted".
        images, rows: what is measured.
        columns: of the logits, the adapter's classes that the set has; only these are answers there.
        left_out: number of images whose class is none of the adapter's.
    """

    key: str
    title: str
    role: str
    images: LabeledImages
    rows: Rows
    columns: NDArray[np.int64]
    left_out: int = 0


def smallest_near_best(alphas: Sequence[float], accuracies: Sequence[float], count: int) -> tuple[float, float]:
    """Return the alpha of `RULE`, and the standard error sqrt(p (1 - p) / count) of the best accuracy p."""
    best = max(accuracies)
    # Standard deviation of a mean of `count` right-or-wrong answers of probability p.
    error = math.sqrt(best * (1 - best) / count)
    near = [alpha for alpha, value in zip(alphas, accuracies, strict=True) if value >= best - error]
    return min(near), error


def measure_robustness(
    path: Path,
    data: CompareTask,
    run_path: Path,
    settings: WiseSettings | None = None,
    *,
    shifted: Sequence[CompareTask] = (),
    to: Path | None = None,
    backbone: str | None = None,
    device: str | None = None,
    command: list[str] | None = None,
) -> WiseResult:
    """Measure the curve of a saved adapter and write the run folder's result.json.

    Args:
        path: adapter folder, or the run folder of `adapt train`.
        data: the user's own data.
        run_path: run folder.
        settings: splits of `data`, alphas, and what becomes of the head.
        shifted: further data; of each its split `test`, or all where it has none.
        to: folder that it is written to.
        backbone: where the backbone is now, if it moved.
        device: such as "cuda".
        command: command line, for the page.

    Raises:
        UserError: an adapter without models in between, data without its classes, a split that is missing or that the
            adapter was trained on.
    """
    settings = settings or WiseSettings()
    validation, test = settings.validation, settings.test
    adapted, network, info = open_adapted(path, backbone=backbone)
    single_label_only(Answers.from_info(info).task, WISE)
    adapter = check_alpha(adapted, settings.at or 0.0)
    keep = settings.head == "keep" or (settings.head == "auto" and adapted.active not in adapted.first_heads)
    if keep and settings.head == "auto":
        say("the head started from random values: the tuned one is used at every alpha (see adapt train --head-from)")
    classes = [str(name) for name in info.get("classes", [])]
    splits = _open_splits(data, network, classes, path, validation=validation, test=test)
    _check_unseen(info.get("trained_on"), splits[0].images.name, path, validation, test)
    sets = [*splits, *(_open_shifted(task, network, classes) for task in shifted)]
    run = RunFolder.create(run_path, command=command)
    # Rounded: 0.30000000000000004 would be a new alpha in tables and file names.
    alphas = [round(number / (settings.points - 1), 6) for number in range(settings.points)]
    with start(device or "auto") as here:
        adapted.to(here.device).eval()
        curves = _measure_curves(adapted, network, sets, alphas, keep=keep, device=here.device)
        # Back on the CPU before the model is written: the saved tensors do not depend on the device.
        adapted.to("cpu")
    selecting = curves["validation"]
    alpha, error = smallest_near_best(alphas, [point.value for point in selecting.accuracy], selecting.n)
    saved = None
    if to is not None:
        saved_alpha = alpha if settings.at is None else settings.at
        saved = SavedModel(alpha=saved_alpha, path=str(save_at(adapted, saved_alpha, to, keep_head=keep)))
    result = WiseResult(
        title=f"{adapter.settings.method} between the original network and the tuned one",
        command=command or "",
        adapter=str(find_adapter_folder(path)),
        method=adapter.settings.method,
        location=get_method(adapter.settings.method).location,
        rule=RULES[adapter.interpolation],
        head="the tuned one" if keep else "interpolated with the one that it started from",
        alphas=alphas,
        sets=list(curves.values()),
        recommended=WiseRecommendation(alpha=alpha, rule=RULE, standard_error=error),
        peeking=_find_peeking_points(alphas, curves),
        saved=saved,
    )
    run.write_result(result.to_json())
    return result


def _open_splits(
    task: CompareTask, network: LoadedBackbone, classes: list[str], path: Path, *, validation: str, test: str
) -> list[CurveImages]:
    """Open the splits of the user's own data: one to select by, one to test on."""
    fields = AdaptData(field=task.field, task=SINGLE_LABEL, classes=classes or None)
    images = load_images(task.path, fields, network.preprocess, single_label_for=WISE)
    if not classes:
        raise UserError(f"{path} does not name its classes; only adapters of `foveate adapt train` do")
    if validation == test:
        raise UserError(f"split '{test}': alpha cannot be selected on the images that it is tested on")
    columns = np.arange(len(classes))
    return [
        CurveImages(
            "validation", f"{images.name}, {validation}", "validation", images, images.rows(validation), columns
        ),
        CurveImages("test", f"{images.name}, {test}", "test", images, images.rows(test), columns),
    ]


def _check_unseen(trained_on: list[dict[str, Any]] | None, name: str, path: Path, validation: str, test: str) -> None:
    """Raise UserError for splits that the adapter was trained on: on those more tuning always looks better."""
    if trained_on is None:  # built in Python, without `adapt train`
        say(f"{path} does not say which splits it was trained on; '{validation}' and '{test}' must not be among them")
        return
    for entry in trained_on:
        for split, option, what in (
            (validation, "--validation", "alpha is selected"),
            (test, "--test", "it is tested"),
        ):
            if split not in entry["splits"]:
                continue
            # Data are told apart by their names, which is all that an adapter remembers.
            if entry["data"] == name:
                raise UserError(
                    f"{path}: split '{split}' of {name} was trained on, but {what} on images that were not; give "
                    f"another with {option}, or train without it"
                )
            say(f"{path} was trained on the split '{split}' of {entry['data']}; {name} is taken for other images")


def _open_shifted(task: CompareTask, network: LoadedBackbone, classes: list[str]) -> CurveImages:
    """Open a shifted set: classes that it lacks are no answers there, images of other classes are left out."""
    # Opened twice: first with all its classes, to see which ones the adapter knows; then with these alone.
    fields = AdaptData(field=task.field, task=SINGLE_LABEL)
    whole = load_images(task.path, fields, network.preprocess, draw_splits=False, single_label_for=WISE)
    known = [name for name in classes if name in whole.classes]
    if not known:
        hint = nearest(whole.classes[0], classes)
        raise UserError(
            f"shifted set '{task.name}': none of its classes ({whole.classes[0]}, ...) is one of the adapter's{hint}"
        )
    if len(known) < 2:
        raise UserError(f"shifted set '{task.name}': only the class '{known[0]}' is one of the adapter's; expected two")
    selected = AdaptData(field=task.field, task=SINGLE_LABEL, classes=known)
    # A shifted set without splits was seen by no training, so all its images are tested.
    images = load_images(task.path, selected, network.preprocess, draw_splits=False, single_label_for=WISE)
    has_test = images.has_split("test")
    rows = images.rows("test") if has_test else images.labeled_rows()
    candidates = whole.rows("test") if has_test else whole.labeled_rows()
    columns = np.array([classes.index(name) for name in known])
    left_out = len(candidates) - len(rows)
    return CurveImages(f"shifted-{task.name}", task.name, "shifted", images, rows, columns, left_out=left_out)


@torch.no_grad()
def _measure_curves(
    adapted: AdaptedModel,
    network: LoadedBackbone,
    sets: Sequence[CurveImages],
    alphas: Sequence[float],
    *,
    keep: bool,
    device: torch.device,
) -> dict[str, WiseSet]:
    """Return the accuracy of every set at every alpha."""
    curves: dict[str, WiseSet] = {}
    for image_set in sets:
        unreadable: dict[int, str] = {}
        correct: list[list[NDArray[np.bool_]]] = [[] for _ in alphas]
        description = f"measuring {image_set.title}"
        # Each batch is read once for all alphas: decoding takes longer than changing weights.
        for rows, pixels in readable_batches(image_set.images, image_set.rows, unreadable, description=description):
            inputs = network.normalize(pixels.to(device))
            labels = image_set.images.labels_N[np.array(rows)]
            for number, alpha in enumerate(alphas):
                # Answers are limited to the classes of the set, as for ImageNet-R and -A: the others cannot be right
                # there.
                logits = _predict(adapted, alpha, inputs, keep=keep)[:, image_set.columns]
                correct[number].append(logits.argmax(axis=1) == labels)
        if not correct[0]:
            raise UserError(f"{image_set.title}: no image can be read")
        whole = [np.concatenate(parts).astype(float) for parts in correct]
        labels_N = image_set.images.labels_N[image_set.rows]
        curves[image_set.key] = WiseSet(
            key=image_set.key,
            title=image_set.title,
            role=image_set.role,
            n=len(whole[0]),
            classes=len(image_set.columns),
            left_out=image_set.left_out,
            unreadable=len(unreadable),
            # A model that always names the largest class is right this often.
            chance=float(np.bincount(labels_N).max() / len(labels_N)),
            accuracy=[accuracy_interval(values).to_value() for values in whole],
        )
    return curves


def _predict(adapted: AdaptedModel, alpha: float, inputs: Tensor, *, keep: bool) -> NDArray[np.float32]:
    with interpolated(adapted, alpha, head="keep" if keep else "interpolate") as model:
        return model(inputs).float().cpu().numpy()


def _find_peeking_points(alphas: Sequence[float], curves: Mapping[str, WiseSet]) -> dict[str, WisePoint] | None:
    """Return the best points on test images and on the mean of shifted sets; None without shifted sets."""
    outside = [[point.value for point in curve.accuracy] for curve in curves.values() if curve.role == "shifted"]
    if not outside:
        return None
    inside = [point.value for point in curves["test"].accuracy]
    best = operating_points(list(alphas), inside, np.mean(outside, axis=0).tolist())
    return {name: WisePoint(**point) for name, point in best.items()}
