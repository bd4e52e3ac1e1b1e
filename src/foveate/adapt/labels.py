"""Read labels as people have them: class names, several names in a cell, multi-hot arrays, or values.

| labels | task, unless `data.task` says otherwise |
|---|---|
| texts, such as names of classes or of folders; integers | single-label |
| texts of which one has `;` or `|` between names, or is a JSON list of names | multi-label |
| an array [N, K] of 0 and 1 with another number of ones than one in some row | multi-label |
| numbers as text, or floats, of which one is not whole | regression |

Ordered classes look like any others, so `ordinal` is never inferred. What can be meant in two ways is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.adapt.recipe import AdaptData
from foveate.adapt.tasks import SINGLE_LABEL
from foveate.core.errors import UserError, nearest
from foveate.core.labels import as_class_labels
from foveate.training.classification import TaskName
from foveate.training.labeled_images import number_labels

SEPARATORS = (";", "|")


@dataclass(frozen=True)
class Labels:
    """Labels of N images.

    Attributes:
        task: their kind. reason: why this one, for the line that says so.
        classes: names, none of a regression.
        labels_N, targets_NT: see `foveate.training.classification.LabeledImages`.
    """

    task: TaskName
    reason: str
    classes: tuple[str, ...]
    labels_N: NDArray[np.int64]
    targets_NT: NDArray[np.float32] | None = None

    def describe(self) -> str:
        """Describe task and labels in a few words, such as "multi-label, 5 labels (cells have several names)"."""
        if self.task == "regression":
            values_N = self.targets_NT[self.labels_N >= 0] if self.targets_NT is not None else np.zeros(0)
            span = f"{len(values_N):,} values from {values_N.min():g} to {values_N.max():g}"
        else:
            span = f"{len(self.classes):,} {'labels' if self.task == 'multi-label' else 'classes'}"
        order = f", in this order: {', '.join(self.classes[:8])}" if self.task == "ordinal" else ""
        return f"{self.task}, {span}{order} ({self.reason})"


def read_text_labels(values: NDArray[Any], data: AdaptData, name: str, *, infer: bool = True) -> Labels:
    """Read one text per image, "" where it has no label.

    Args:
        values: texts [N].
        name: of the data, for errors.
        infer: whether texts may be several names or numbers where `data.task` is "auto"; names of folders are not.

    Raises:
        UserError: texts that are none of the task, a class of `data.classes` without an image, or too few classes.
    """
    texts = [str(value).strip() for value in values.tolist()]
    known = [text for text in texts if text]
    task, reason = data.task, "as given"
    if task == "auto":
        task, reason = _infer(known) if infer else (SINGLE_LABEL, "a folder per class")
    if task == "multi-label":
        # An empty list is an image without any of the labels, an empty cell one that nobody has labeled.
        has_label = np.array([bool(text) for text in texts])
        return _read_names([_split_names(text) for text in texts], data, name, reason, has_label=has_label)
    if task == "regression":
        return _read_values(np.array([_parse_value(text, name) for text in texts]), data, name, reason)
    return _read_classes(np.array(texts, dtype=object), data, name, reason, ordered=task == "ordinal")


def read_label_array(
    array: NDArray[Any], data: AdaptData, name: str, *, what: str, names: Sequence[str] | None = None
) -> Labels:
    """Read an array of labels: names or integers [N], 0 and 1 of several labels [N, K], or values [N].

    Args:
        what: the file and its array, for errors.
        names: of the K labels; their numbers by default.

    Raises:
        UserError: an array that is none of these or fits two, and as `read_text_labels`.
    """
    task = data.task
    is_hot = array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "iubf" and np.isin(array, (0, 1)).all()
    is_one_hot = is_hot and (array.sum(axis=1) == 1).all()
    if task == "multi-label" or (task == "auto" and is_hot and not is_one_hot):
        if not is_hot:
            raise UserError(
                f"{what}: not multi-hot (got {array.dtype} of shape {list(array.shape)}); expected 0 and 1 of shape "
                "[N, K], or texts with ; between names in a table"
            )
        columns = [str(number) for number in range(array.shape[1])] if names is None else [str(n) for n in names]
        if len(columns) != array.shape[1] or len(set(columns)) < len(columns):
            raise UserError(
                f"{what}: has {array.shape[1]} columns; expected as many different names in the array 'classes' "
                f"(got {len(set(columns))})"
            )
        reason = "as given" if task == "multi-label" else "rows of 0 and 1, not one 1 in each"
        rows = [[columns[k] for k in np.flatnonzero(row)] for row in array]
        return _read_names(rows, data, name, reason, order=columns, has_label=np.ones(len(array), dtype=bool))
    is_float = array.ndim == 1 and array.dtype.kind == "f"
    fractions = is_float and bool((array != np.floor(array))[np.isfinite(array)].any())
    if task == "regression" or (task == "auto" and fractions):
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1 or array.dtype.kind not in "iuf":
            raise UserError(
                f"{what}: no values (got {array.dtype} of shape {list(array.shape)}); expected one number per image"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{what}: {int((~np.isfinite(array)).sum())} values are NaN or infinite; leave them out")
        reason = "as given" if task == "regression" else "floats with fractions"
        return _read_values(array.astype(np.float64), data, name, reason)
    try:
        texts = as_class_labels(array, what=what).astype(str)
    except UserError as problem:
        hint = "; or say what they are: --task regression" if is_float else ""
        hint = "; or say what they are: --task multi-label" if is_one_hot else hint
        raise UserError(f"{problem}{hint}") from None
    reason = "one name or number per image" if task == "auto" else "as given"
    return _read_classes(texts.astype(object), data, name, reason, ordered=task == "ordinal")


def _infer(texts: Sequence[str]) -> tuple[TaskName, str]:
    several = max((text for text in texts if len(_split_names(text)) > 1), key=len, default=None)
    if several is not None:
        return "multi-label", f"several names, such as {several[:60]!r}"
    try:
        values = [float(text) for text in texts]
    except ValueError:
        return SINGLE_LABEL, "one name per image"
    fraction = next((text for text, value in zip(texts, values, strict=True) if not value.is_integer()), None)
    # Numbers without fractions may be classes or values; as classes they were read before there was anything else.
    if fraction is None or not all(map(math.isfinite, values)):
        return SINGLE_LABEL, "one name or number per image"
    return "regression", f"numbers with fractions, such as {fraction}"


def _split_names(text: str) -> list[str]:
    """Return the names of a cell: a JSON list, as columns of lists are read, or texts between separators."""
    if text.startswith("["):
        try:
            names = json.loads(text)
        except json.JSONDecodeError:
            names = None
        if isinstance(names, list):
            return list(dict.fromkeys(str(name).strip() for name in names if str(name).strip()))
    for separator in SEPARATORS[1:]:
        text = text.replace(separator, SEPARATORS[0])
    return list(dict.fromkeys(part.strip() for part in text.split(SEPARATORS[0]) if part.strip()))


def _parse_value(text: str, name: str) -> float:
    if not text:
        return math.nan  # without a label
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name}: label {text!r} is no finite number, which task 'regression' needs")
    return value


def _read_classes(texts: NDArray[Any], data: AdaptData, name: str, reason: str, *, ordered: bool) -> Labels:
    known = sorted({str(value) for value in texts.tolist()} - {""}, key=_sort_key)
    if ordered and data.classes is None and not all(text.isdecimal() for text in known):
        raise UserError(
            f"{name}: the order of the classes is not known ({', '.join(known[:5])}); give data.classes="
            f"[{','.join(known[:2])},...] from the lowest to the highest"
        )
    classes = select_classes(known, data.classes, name)
    labels_N = number_labels(texts, classes)
    targets = labels_N.astype(np.float32)[:, None] if ordered else None
    return Labels("ordinal" if ordered else "single-label", reason, tuple(classes), labels_N, targets)


def _read_names(
    rows: Sequence[Sequence[str]],
    data: AdaptData,
    name: str,
    reason: str,
    *,
    has_label: NDArray[np.bool_],
    order: Sequence[str] | None = None,
) -> Labels:
    """Read the names of each image.

    Args:
        has_label: whether the labels of an image are known, be they none.
        order: of all names; sorted by default.
    """
    known = sorted({label for row in rows for label in row}, key=_sort_key) if order is None else list(order)
    ambiguous = next((label for label in known if any(sign in label for sign in SEPARATORS)), None)
    if ambiguous is not None:
        # Predictions are written with a separator between the names, too.
        raise UserError(
            f"{name}: label {ambiguous!r} has a {' or '.join(SEPARATORS)} in it, which stands between names"
        )
    classes = select_classes(known, data.classes, name)
    numbers = {label: number for number, label in enumerate(classes)}
    targets_NK = np.zeros((len(rows), len(classes)), dtype=np.float32)
    for row, labels in enumerate(rows):
        targets_NK[row, [numbers[label] for label in labels if label in numbers]] = 1
    return Labels("multi-label", reason, tuple(classes), np.where(has_label, 0, -1).astype(np.int64), targets_NK)


def _read_values(values_N: NDArray[np.float64], data: AdaptData, name: str, reason: str) -> Labels:
    if data.classes is not None:
        raise UserError(f"data.classes has no effect on {name}, whose labels are values")
    is_labeled = np.isfinite(values_N)
    if not is_labeled.any():
        raise UserError(f"{name}: no image has a value")
    targets = np.where(is_labeled, values_N, 0).astype(np.float32)[:, None]
    return Labels("regression", reason, (), np.where(is_labeled, 0, -1).astype(np.int64), targets)


def select_classes(known: Sequence[str], requested: Sequence[str] | None, name: str) -> list[str]:
    """Return the classes to learn: all that labels have, or those requested.

    Raises:
        UserError: a requested class has no image or is named twice, or there are fewer than two classes.
    """
    classes = list(known) if requested is None else list(requested)
    for label in classes:
        if label not in known:
            raise UserError(f"class '{label}' has no image in {name}{nearest(label, known)}")
    if len(set(classes)) < len(classes):
        raise UserError("data.classes names a class twice")
    if len(classes) < 2:
        raise UserError(f"{name}: expected at least two classes (got {len(classes)})")
    return classes


def split_groups(labels: Labels) -> NDArray[np.int64]:
    """Return a group for each image, -1 without a label, so that splits drawn group by group are alike.

    The class; of several labels the rarest one of the image (images without any are a group, too); of values one of
    five groups of as many images.
    """
    if labels.targets_NT is None or labels.task == "ordinal":
        return labels.labels_N
    is_labeled = labels.labels_N >= 0
    if labels.task == "multi-label":
        counts_K = labels.targets_NT[is_labeled].sum(axis=0)
        rarest_N = np.where(labels.targets_NT > 0, counts_K, np.inf).argmin(axis=1)
        groups_N = np.where(labels.targets_NT.any(axis=1), rarest_N, len(labels.classes))
    else:
        values_N = labels.targets_NT[:, 0]
        groups_N = np.searchsorted(np.quantile(values_N[is_labeled], (0.2, 0.4, 0.6, 0.8)), values_N, side="left")
    return np.where(is_labeled, groups_N, -1).astype(np.int64)


def count_names(decisions: Sequence[Sequence[str]], classes: Sequence[str]) -> dict[str, int]:
    """Count how many images have each class, in the order of `classes`."""
    counts = Counter(label for labels in decisions for label in labels)
    return {label: counts[label] for label in classes}


def _sort_key(name: str) -> tuple[int, str]:
    # Numbers by value, so that class "10" follows "9"; names before them, by letters.
    return (int(name), name) if name.isdecimal() else (-1, name)
