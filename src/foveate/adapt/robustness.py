"""`foveate adapt wise`: accuracy along the line from the network that came to the tuned one, on own and shifted data.

The alpha that is recommended is the smallest whose accuracy on *validation* images is at most one standard error
below the best: as near to the network that came as the own data allow. Test and shifted images take no part in it;
points that are best on them are shown, and peek.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.adapt.compare.recipe import CompareTask
from foveate.adapt.data import Labeled, labeled
from foveate.adapt.export import open_adapted
from foveate.adapt.folder import adapter_folder
from foveate.adapt.load_backbone import Opened
from foveate.adapt.model import AdaptedModel
from foveate.adapt.recipe import AdaptData
from foveate.adapt.registry import method
from foveate.adapt.train import batches
from foveate.adapt.wise import check, interpolated, save_at
from foveate.core.errors import UserError, nearest
from foveate.core.progress import say
from foveate.core.runs import RunFolder
from foveate.metrics.comparison import operating_points
from foveate.metrics.intervals import bootstrap_interval
from foveate.training.distributed import start

RULES = {
    "weights": "tuned tensors are interpolated",
    "branch": "the branch is multiplied by alpha",
    "merged": "merged weights are interpolated",
}
RULE = (
    "the smallest alpha whose accuracy on validation images is at most one standard error below the best; test and "
    "shifted images took no part"
)


@dataclass(frozen=True)
class Measured:
    """One set of images on which the curve is measured.

    Attributes:
        columns: of the logits, the adapter's classes that the set has; only these are answers there.
        left_out: images whose class is none of the adapter's.
    """

    key: str
    title: str
    role: str
    data: Labeled
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    left_out: int = 0


def smallest_near_best(alphas: Sequence[float], accuracies: Sequence[float], count: int) -> tuple[float, float]:
    """The alpha of `RULE`, and the standard error sqrt(p (1 - p) / count) of the best accuracy p."""
    best = max(accuracies)
    error = math.sqrt(best * (1 - best) / count)
    near = [alpha for alpha, value in zip(alphas, accuracies, strict=True) if value >= best - error]
    return min(near), error


def robustness(
    path: Path,
    data: CompareTask,
    run_path: Path,
    *,
    shifted: Sequence[CompareTask] = (),
    validation: str = "validation",
    test: str = "test",
    points: int = 11,
    head: str = "auto",
    at: float | None = None,
    to: Path | None = None,
    backbone: str | None = None,
    device: str | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Measures the curve of a saved adapter and writes the run folder's result.json.

    Args:
        data: own data, with splits to choose by and to test on. shifted: further sets; of each its split `test`, or
            all where it has none.
        points: values of alpha from 0 to 1. head: interpolate, keep, or auto (interpolate where it can be).
        at: the alpha of the model that is written; the recommended one by default. to: where it is written.

    Raises:
        UserError: an adapter without models in between, data without its classes, a split that is missing or that the
            adapter was trained on.
    """
    adapted, opened, info = open_adapted(path, backbone=backbone)
    adapter = check(adapted, 0.0 if at is None else at)
    keep = head == "keep" or (head == "auto" and adapted.active not in adapted.first_heads)
    if keep and head == "auto":
        say("the head started afresh: it is kept as tuned at every alpha (adapt train --head-from makes another kind)")
    classes = [str(name) for name in info.get("classes", [])]
    own = _own(data, opened, classes, path, validation=validation, test=test)
    _check_unseen(info.get("trained_on"), own[0].data.name, path, validation, test)
    sets = [
        *own,
        *(_shifted(task, opened, classes) for task in shifted),
    ]
    run = RunFolder.create(run_path, command=command)
    alphas = [round(number / (points - 1), 6) for number in range(points)]
    with start(device or "auto") as here:
        adapted.to(here.device).eval()
        curves = _curves(adapted, opened, sets, alphas, keep=keep, device=here.device)
        adapted.to("cpu")
    chosen = curves["validation"]
    alpha, error = smallest_near_best(alphas, [one["value"] for one in chosen["accuracy"]], chosen["n"])
    result: dict[str, Any] = {
        "kind": "adapt_wise",
        "title": f"{adapter.settings.method} between the network that came and the tuned one",
        "command": command,
        "adapter": str(adapter_folder(path)),
        "method": adapter.settings.method,
        "place": method(adapter.settings.method).place,
        "rule": RULES[adapter.wise],
        "head": "kept as tuned" if keep else "interpolated with the head that it started from",
        "alphas": alphas,
        "sets": list(curves.values()),
        "recommended": {"alpha": alpha, "rule": RULE, "standard_error": error},
        "peeking": _peeking(alphas, curves),
        "saved": None,
    }
    if to is not None:
        written = alpha if at is None else at
        result["saved"] = {"alpha": written, "path": str(save_at(adapted, written, to, keep_head=keep))}
    run.write_result(result)
    return result


def _own(
    task: CompareTask, opened: Opened, classes: list[str], path: Path, *, validation: str, test: str
) -> list[Measured]:
    """The own data's splits: one to choose by, one to test on."""
    data = labeled(task.path, AdaptData(field=task.field, classes=classes or None), opened.preprocess)
    if not classes:
        raise UserError(f"{path}: does not name its classes; only adapters of `foveate adapt train` do")
    if validation == test:
        raise UserError(f"split '{test}': alpha is not chosen on the images that it is tested on")
    columns = np.arange(len(classes))
    return [
        Measured("validation", f"{data.name}, {validation}", "validation", data, data.rows(validation), columns),
        Measured("test", f"{data.name}, {test}", "test", data, data.rows(test), columns),
    ]


def _check_unseen(trained_on: list[dict[str, Any]] | None, name: str, path: Path, validation: str, test: str) -> None:
    """Refuses splits that the adapter was trained on: on those more tuning always looks better.

    Data are told apart by their names; adapters of earlier versions do not say what they were trained on.
    """
    if trained_on is None:
        say(f"{path}: does not say which splits it was trained on; '{validation}' and '{test}' must not be among them")
        return
    for one in trained_on:
        for split, option, what in ((validation, "--validation", "alpha is chosen"), (test, "--test", "it is tested")):
            if split not in one["splits"]:
                continue
            if one["data"] == name:
                raise UserError(
                    f"{path}: split '{split}' of {name} was trained on, and {what} on images that were not; give "
                    f"another with {option}, or train without it"
                )
            say(f"{path}: was trained on the split '{split}' of {one['data']}; {name} is taken for other images")


def _shifted(task: CompareTask, opened: Opened, classes: list[str]) -> Measured:
    """A shifted set: classes that it lacks are no answers there, images of other classes are left out."""
    whole = labeled(task.path, AdaptData(field=task.field), opened.preprocess)
    known = [name for name in classes if name in whole.classes]
    if not known:
        near = nearest(whole.classes[0], classes)
        raise UserError(
            f"shifted set '{task.name}': none of its classes ({whole.classes[0]}, ...) is the adapter's{near}"
        )
    if len(known) < 2:
        raise UserError(f"shifted set '{task.name}': only the class '{known[0]}' is the adapter's; wanted are two")
    data = labeled(task.path, AdaptData(field=task.field, classes=known), opened.preprocess)
    rows = data.rows("test") if data.has("test") else np.flatnonzero(data.labels_N >= 0)
    candidates = whole.rows("test") if data.has("test") else np.flatnonzero(whole.labels_N >= 0)
    columns = np.array([classes.index(name) for name in known])
    key = f"shifted-{task.name}"
    return Measured(key, task.name, "shifted", data, rows, columns, left_out=len(candidates) - len(rows))


@torch.no_grad()
def _curves(
    adapted: AdaptedModel,
    opened: Opened,
    sets: Sequence[Measured],
    alphas: Sequence[float],
    *,
    keep: bool,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Accuracy of every set at every alpha; each batch of images is read once for all alphas."""
    found: dict[str, dict[str, Any]] = {}
    for one in sets:
        bad: dict[int, str] = {}
        right: list[list[NDArray[np.bool_]]] = [[] for _ in alphas]
        for rows, pixels in batches(opened, one.data, one.rows, device, bad, what=f"measuring {one.title}"):
            labels = one.data.labels_N[np.array(rows)]
            for number, alpha in enumerate(alphas):
                logits = _logits(adapted, alpha, pixels, keep=keep)[:, one.columns]
                right[number].append(logits.argmax(axis=1) == labels)
        if not right[0]:
            raise UserError(f"{one.title}: no image could be read")
        whole = [np.concatenate(parts).astype(float) for parts in right]
        labels_N = one.data.labels_N[one.rows]
        found[one.key] = {
            "key": one.key,
            "title": one.title,
            "role": one.role,
            "n": len(whole[0]),
            "classes": len(one.columns),
            "left_out": one.left_out,
            "unreadable": len(bad),
            "chance": float(np.bincount(labels_N).max() / len(labels_N)),
            "accuracy": [_interval(values, one.key) for values in whole],
        }
    return found


def _logits(adapted: AdaptedModel, alpha: float, pixels: Tensor, *, keep: bool) -> NDArray[np.float32]:
    with interpolated(adapted, alpha, head="keep" if keep else "interpolate") as model:
        return model(pixels).float().cpu().numpy()


def _interval(right_N: NDArray[np.float64], key: str) -> dict[str, float | None]:
    found = bootstrap_interval(right_N, seed=("wise", key))
    return {"value": found.value, "low": found.low, "high": found.high}


def _peeking(alphas: Sequence[float], curves: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The points that are best on test images and on the mean of shifted sets; None without shifted sets."""
    outside = [[one["value"] for one in curve["accuracy"]] for curve in curves.values() if curve["role"] == "shifted"]
    if not outside:
        return None
    inside = [one["value"] for one in curves["test"]["accuracy"]]
    return operating_points(list(alphas), inside, np.mean(outside, axis=0).tolist())
