"""Labels are one class per image: refused by shape and type wherever they enter, before they become class names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from foveate.adapt.data import load_images
from foveate.adapt.recipe import AdaptData
from foveate.calibrate.estimator import AbsentClassCalibrator, Calibrator
from foveate.core.errors import UserError
from foveate.core.labels import as_class_labels
from foveate.records.importers.table import import_table
from foveate.records.rows import label_row
from foveate.training.classification import LabeledImages, array_images
from foveate.training.logit_files import read_logits
from foveate.vision.preprocess import Preprocess
from naming import raises_naming

NUMBERS = np.array([0, 2, 1, 0, 1, 2])
ONE_HOT = np.eye(3, dtype=int)[NUMBERS]
MULTI_HOT = np.maximum(ONE_HOT, [1, 0, 0])
# What is refused, with what the sentence must name: type and shape, and the remedy where there is one.
REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "one-hot": (ONE_HOT, ("int64 of shape [6, 3]", "labels.argmax(1)")),
    "one-hot floats": (ONE_HOT.astype(np.float32), ("float32 of shape [6, 3]", "labels.argmax(1)")),
    "multi-hot": (MULTI_HOT, ("int64 of shape [6, 3]", "multi-hot")),
    "texts in rows": (np.array([["a", "b"]] * 6), ("<U1 of shape [6, 2]",)),
    "column": (NUMBERS[:, None], ("int64 of shape [6, 1]", "labels[:, 0]")),
    "whole floats": (NUMBERS.astype(float), ("float64 of shape [6]", "labels.astype(int)")),
    "fractions": (NUMBERS + 0.5, ("float64 of shape [6]", "fractions")),
    "missing": (np.array([0, 1, np.nan, 0, 1, 2]), ("float64 of shape [6]", "NaN")),
    "one label": (np.array("a"), ("shape []",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_labels_than_one_class_per_image_are_refused(case: str) -> None:
    labels, names = REFUSED[case]
    with raises_naming(UserError, "mine: not class labels", "strings or integers of shape [N]", *names) as caught:
        as_class_labels(labels, what="mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([["a"], ["b", "c"]], ("lists of different lengths",)),
        ([["a"], ["b"]], ("shape [2, 1]",)),
        (np.array(["a", ["b", "c"]], dtype=object), ("object of shape [2]", "['b', 'c']")),
        (np.array(["a", float("nan")], dtype=object), ("object of shape [2]", "nan")),
        (np.array(["a", None], dtype=object), ("None",)),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), ("datetime64",)),
    ],
)
def test_lists_and_objects_are_refused(labels: Any, names: tuple[str, ...]) -> None:
    with raises_naming(UserError, "mine", *names):
        as_class_labels(labels, what="mine")


@pytest.mark.parametrize(
    "labels",
    [
        ["a", "b"], ["1.0", "2.0"], [0, 5], np.array([3, 4], dtype=np.uint8), np.array([b"a", b"b"]), [True, False],
        np.array(["a", 1], dtype=object), torch.tensor([1, 0]), [],
    ],
)  # fmt: skip
def test_texts_and_integers_stay_as_they_are(labels: Any) -> None:
    array = as_class_labels(labels, what="mine")
    assert array.tolist() == np.asarray(labels).tolist()


# `adapt` learns several labels and values, and refuses what may be meant in two ways.
@pytest.mark.parametrize("case", sorted(set(REFUSED) - {"one label", "multi-hot", "fractions"}))
def test_npz_files_of_images(tmp_path: Path, case: str) -> None:
    labels, names = REFUSED[case]
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.zeros((6, 8, 8), np.uint8), labels=labels, split=["train"] * 6)
    with raises_naming(UserError, path, "'labels'", *names):
        load_images(path, AdaptData(), Preprocess(size=8, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_in_memory(case: str) -> None:
    labels, names = REFUSED[case]
    with raises_naming(UserError, "arrays", *names):
        array_images(np.zeros((6, 4)), labels)
    with raises_naming(UserError, "mine", *names):
        LabeledImages(
            "mine", ("0", "1", "2"), list("abcdef"), labels, np.full(6, "train"), lambda row, _: torch.zeros(1)
        )
    with raises_naming(UserError, "labels", *names):
        Calibrator().fit(np.zeros((6, 4)), labels)


def test_names_are_no_class_numbers() -> None:
    with raises_naming(UserError, "arrays", "<U1", "class numbers"):
        array_images(np.zeros((2, 4)), np.array(["a", "b"]))


def test_one_hot_labels_of_a_classifier() -> None:
    from sklearn.linear_model import LogisticRegression

    points = np.random.default_rng(0).standard_normal((6, 2))
    fitted = LogisticRegression().fit(points, NUMBERS)
    with raises_naming(UserError, "y", "int64 of shape [6, 3]", "labels.argmax(1)"):
        AbsentClassCalibrator(fitted).fit(points, ONE_HOT)


def test_files_of_logits(tmp_path: Path) -> None:
    logits = np.zeros((6, 3), np.float32)
    for labels, names in (
        (ONE_HOT, ("int64 of shape [6, 3]", "labels.argmax(1)")),
        (NUMBERS + 0.5, ("float64 of shape [6]",)),
        (np.array([["a", "b"]] * 6), ("shape [6, 2]",)),
    ):
        np.savez(tmp_path / "logits.npz", logits=logits, labels=labels)
        with raises_naming(UserError, tmp_path / "logits.npz", "labels", *names):
            read_logits(tmp_path / "logits.npz")
    for cells in (ONE_HOT.tolist(), [["a"], ["b", "c"], [], ["a"], ["a"], ["a"]]):
        pq.write_table(pa.table({"label": cells, "a": [0.0] * 6, "b": [1.0] * 6}), tmp_path / "logits.parquet")
        with raises_naming(UserError, tmp_path / "logits.parquet", "'label'", "list<", "one label per row"):
            read_logits(tmp_path / "logits.parquet")


def test_columns_of_lists_in_a_table_of_images(tmp_path: Path) -> None:
    table = pa.table({"path": ["a.png", "b.png"], "text": ["an ant", "a bee"], "kinds": [["0", "1"], ["1"]]})
    pq.write_table(table, tmp_path / "mine.parquet")
    with raises_naming(UserError, tmp_path / "mine.parquet", "'kinds'", "list<", "one label per image"):
        import_table(tmp_path / "mine.parquet", tmp_path / "collection", label_column=["kinds"])
    assert not (tmp_path / "collection").exists()


def test_labels_of_a_collection_in_python() -> None:
    assert label_row("a", "species", "ant")["value"] == "ant"
    assert label_row("a", "count", np.int64(3))["value"] == "3"
    for value in (["0", "1"], np.array([0, 1]), None):
        with raises_naming(UserError, "'a'", "'species'", type(value).__name__):
            label_row("a", "species", value)
