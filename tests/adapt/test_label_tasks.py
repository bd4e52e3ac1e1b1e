"""Labels as people have them: several per image, values, ordered classes; read, learned, measured and predicted."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn import metrics as oracle

from adapt.drawn import SHAPES, write_tables
from adapt.test_adapt_train import HALF, run, train
from adapt.test_adapt_train import _few_penalties as _few_penalties  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from foveate.adapt.data import load_images
from foveate.adapt.labels import read_label_array, read_text_labels, split_groups
from foveate.adapt.recipe import AdaptData, AdaptTraining
from foveate.adapt.tasks import Answers, open_task
from foveate.core.errors import UserError
from foveate.training.classification import LabeledImages
from naming import raises_naming


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("drawn") / "data")


def texts(*labels: str) -> np.ndarray:
    return np.array(labels, dtype=object)


# Reading.


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (("oak", "beech", ""), "single-label", ("beech", "oak")),
        (("3", "10", "9"), "single-label", ("3", "9", "10")),
        (("oak;beech", "oak", "ash|oak"), "multi-label", ("ash", "beech", "oak")),
        (('["oak", "beech"]', "[]", '["oak"]'), "multi-label", ("beech", "oak")),
        (("1.5", "2", "-3e1"), "regression", ()),
    ],
)
def test_the_task_is_what_the_labels_look_like(labels: tuple[str, ...], task: str, classes: tuple[str, ...]) -> None:
    read = read_text_labels(texts(*labels), AdaptData(), "mine.csv")
    assert (read.task, read.classes) == (task, classes)
    assert task in read.describe()


def test_a_task_that_is_given_beats_the_looks() -> None:
    cells = texts("a;b", "a;c", "a;b")
    single = read_text_labels(cells, AdaptData(task="single-label"), "mine.csv")
    assert single.classes == ("a;b", "a;c")
    assert read_text_labels(cells, AdaptData(), "folder", infer=False).task == "single-label"
    counts = read_text_labels(texts("3", "0", "", "7"), AdaptData(task="regression"), "mine.csv")
    assert counts.targets_NT is not None
    assert counts.targets_NT[counts.labels_N >= 0, 0].tolist() == [3, 0, 7]
    ordered = read_text_labels(
        texts("low", "high", "mid"), AdaptData(task="ordinal", classes=["low", "mid", "high"]), ""
    )
    assert ordered.labels_N.tolist() == [0, 2, 1]
    assert read_text_labels(texts("10", "9", "9"), AdaptData(task="ordinal"), "").classes == ("9", "10")


def test_an_empty_list_is_an_image_without_labels_and_an_empty_cell_one_that_nobody_labeled() -> None:
    read = read_text_labels(texts("a;b", "[]", "", "b"), AdaptData(), "mine.csv")
    assert read.targets_NT is not None
    assert read.labels_N.tolist() == [0, 0, -1, 0]
    assert read.targets_NT.tolist() == [[1, 1], [0, 0], [0, 0], [0, 1]]
    some = read_text_labels(texts("a;b", "c", "b"), AdaptData(classes=["b", "c"]), "mine.csv")
    assert some.targets_NT is not None
    assert some.targets_NT.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_arrays_of_several_labels_and_of_values() -> None:
    hot = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    read = read_label_array(hot, AdaptData(), "a.npz", what="labels", names=["x", "y", "z"])
    assert (read.task, read.classes) == ("multi-label", ("x", "y", "z"))
    assert read.targets_NT is not None
    assert read.targets_NT.tolist() == hot.tolist()
    values = read_label_array(np.array([0.5, 2.0]), AdaptData(), "a.npz", what="labels")
    assert values.task == "regression"
    whole = read_label_array(np.array([3.0, 2.0]), AdaptData(task="regression"), "a.npz", what="labels")
    assert whole.targets_NT is not None
    assert whole.targets_NT.tolist() == [[3], [2]]


@pytest.mark.parametrize(
    ("array", "data", "named"),
    [
        # One-hot rows may be classes or labels, whole floats classes or values.
        (np.eye(3), {}, "--task multi-label"),
        (np.array([1.0, 2.0]), {}, "--task regression"),
        (np.array([[0.2, 0.8]]), {"task": "multi-label"}, "multi-hot"),
        (np.array([0.5, np.nan]), {}, "NaN"),
        (np.array(["a", "b"]), {"task": "regression"}, "values"),
        (np.array([[1, 1], [0, 1]]), {"names": ["x"]}, "classes"),
    ],
)
def test_arrays_that_are_none_or_two_things_are_refused(array: np.ndarray, data: dict[str, Any], named: str) -> None:
    names = data.pop("names", None)
    with raises_naming(UserError, named):
        read_label_array(array, AdaptData(**data), "a.npz", what="labels", names=names)


@pytest.mark.parametrize(
    ("labels", "data", "named"),
    [
        (("low", "high"), {"task": "ordinal"}, "data.classes"),
        (("1", "many"), {"task": "regression"}, "many"),
        (("1.5", "2"), {"classes": ["a", "b"]}, "data.classes"),
        (("a;b", "a"), {"classes": ["a", "c"]}, "'c'"),
        (('["a;b", "c"]', "[]", "a;c"), {}, "a;b"),
    ],
)
def test_texts_that_do_not_fit_a_task_are_refused(labels: tuple[str, ...], data: dict[str, Any], named: str) -> None:
    with raises_naming(UserError, named):
        read_text_labels(texts(*labels), AdaptData(**data), "mine.csv")


def test_splits_are_drawn_by_the_rarest_label_and_by_value() -> None:
    read = read_text_labels(texts("a;b", "a", "a", "[]", "", "b"), AdaptData(), "mine.csv")
    assert split_groups(read).tolist() == [1, 0, 0, 2, -1, 1]
    values = read_text_labels(texts(*(f"{value}.5" for value in range(10))), AdaptData(), "mine.csv")
    assert np.bincount(split_groups(values)).tolist() == [2, 2, 2, 2, 2]


# Learning.


def images_of(task: str, targets: np.ndarray, classes: tuple[str, ...] = ()) -> LabeledImages:
    count = len(targets)
    labels = targets[:, 0].astype(np.int64) if task == "ordinal" else np.zeros(count, dtype=np.int64)
    return LabeledImages(
        "mine", classes, [str(row) for row in range(count)], labels, np.full(count, "train"),
        lambda row, view: torch.zeros(3, 8, 8), task=task, targets_NT=targets.astype(np.float32),
    )  # fmt: skip


def test_the_loss_of_several_labels_with_weights_and_focus() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    task, rows = open_task(images_of("multi-label", targets, ("a", "b")), np.arange(4)), np.arange(4)
    logits, truth = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(targets).float()
    plain, report = task.criterion(AdaptTraining(), rows)(logits, truth)
    assert_allclose(plain, torch.nn.BCEWithLogitsLoss()(logits, truth))
    assert 0 <= float(report["right_labels"]) <= 1
    # Three images with the first label to one without, one with the second to three without.
    weighted, _ = task.criterion(AdaptTraining(class_weights="balanced"), rows)(logits, truth)
    assert_allclose(weighted, torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1 / 3, 3.0]))(logits, truth))
    from torchvision.ops import sigmoid_focal_loss

    focal, _ = task.criterion(AdaptTraining(focal_gamma=2.0), rows)(logits, truth)
    assert_allclose(focal, sigmoid_focal_loss(logits, truth, alpha=-1, gamma=2, reduction="mean"), rtol=1e-5)


def test_the_loss_of_classes_with_weights_and_focus() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    images = LabeledImages(
        "mine", ("a", "b", "c"), list("uvwxyz"), labels, np.full(6, "train"), lambda row, view: torch.zeros(3, 8, 8)
    )
    task, rows = open_task(images, np.arange(6)), np.arange(6)
    logits, truth = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(labels)
    weights = torch.tensor([6 / 9, 2.0, 1.0])  # N / (K n), as scikit-learn's "balanced"
    weighted, report = task.criterion(AdaptTraining(class_weights="balanced"), rows)(logits, truth)
    assert_allclose(weighted, torch.nn.CrossEntropyLoss(weight=weights)(logits, truth), rtol=1e-5)
    assert_allclose(report["accuracy"], (logits.argmax(1) == truth).float().mean())
    focal, _ = task.criterion(AdaptTraining(focal_gamma=2.0), rows)(logits, truth)
    right = logits.softmax(1)[torch.arange(6), truth]
    assert_allclose(focal, (-((1 - right) ** 2) * right.log()).mean(), rtol=1e-5)
    both, _ = task.criterion(AdaptTraining(focal_gamma=2.0, class_weights="balanced"), rows)(logits, truth)
    each = -((1 - right) ** 2) * right.log() * weights[truth]
    assert_allclose(both, each.sum() / weights[truth].sum(), rtol=1e-5)


def test_the_rate_falls_from_block_to_block_towards_the_input() -> None:
    from adapt.towers import tower
    from foveate.adapt.fit import _layer_rules
    from foveate.adapt.model import adapt
    from foveate.training.optimizer import parameter_table

    class Holder(torch.nn.Module):  # a task has the adapted model as its `model`
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

    adapted = adapt(tower("timm"), "full", classes=3)
    rules = _layer_rules(adapted, 0.5, 1e-4)
    table = parameter_table(Holder(adapted), rules=rules, settings=AdaptTraining(epochs=1).resolve(10))
    scales = {row.name.removeprefix("model.model."): row.learning_rate_scale for row in table if not row.frozen}
    assert scales["blocks.2.mlp.fc1.weight"] == 0.5
    assert scales["blocks.0.norm1.bias"] == scales["patch_embed.proj.weight"] == 0.125
    assert scales["norm.weight"] == scales["model.heads.default.weight"] == 1
    with raises_naming(UserError, "training.layer_decay", "lora"):
        _layer_rules(adapt(tower("timm"), "lora", classes=3), 0.5, 1e-4)


def test_a_head_of_values_learns_standardized_ones_and_answers_in_their_unit() -> None:
    targets = np.array([[100.0], [300.0], [200.0], [400.0]])
    rows = np.arange(4)
    task = open_task(images_of("regression", targets), rows)
    head = torch.nn.Linear(5, 1)
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        standard = head(features)
        error, report = task.criterion(AdaptTraining(), rows)(standard, torch.tensor(targets).float())
        expected = task.in_units(standard.numpy())
        task.to_units(head)
        assert_allclose(head(features), expected, rtol=1e-4)
        assert_allclose(error, np.square((expected - targets) / targets.std()).mean(), rtol=1e-4)
        assert_allclose(report["mean_absolute_error"], np.abs(expected - targets).mean(), rtol=1e-4)
        task.from_units(head)
        assert_allclose(head(features), standard, atol=1e-4)
    huber, _ = task.criterion(AdaptTraining(loss="huber"), rows)(standard, torch.tensor(targets).float())
    values = (torch.tensor(targets).float() - 250) / float(targets.std())
    assert_allclose(huber, torch.nn.HuberLoss()(standard, values), rtol=1e-4)


def test_equal_values_have_nothing_to_learn() -> None:
    with raises_naming(UserError, "mine", "2.5", "two different"):
        open_task(images_of("regression", np.full((4, 1), 2.5)), np.arange(4))


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("multi-label", "mixup", 0.2),
        ("multi-label", "balanced", True),
        ("multi-label", "loss", "huber"),
        ("regression", "label_smoothing", 0.1),
        ("regression", "class_weights", "balanced"),
        ("ordinal", "focal_gamma", 2.0),
    ],
)
def test_training_options_without_a_meaning_are_refused(task: str, field: str, value: Any) -> None:
    images = images_of(task, np.array([[0.0], [1.0]]), ("a", "b") if task == "ordinal" else ())
    with raises_naming(UserError, f"training.{field}"):
        open_task(images, np.arange(2)).check(AdaptTraining(**{field: value}))


def test_shots_of_several_labels_and_of_values_are_refused() -> None:
    images = images_of("regression", np.array([[0.5], [1.5]]))
    with raises_naming(UserError, "data.shots"):
        images.draw_shots(np.arange(2), 1, seed=0)


# The whole way through the command line.


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predict(folder: Path, images: Path, out: Path, *more: object) -> dict[str, Any]:
    done = run("predict", folder, images, "--out", out, "--device", "cpu", "--json", "--quiet", *more)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout.splitlines()[-1])


def test_several_labels_from_a_table_to_predictions(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = train(backbone, drawn / "tags.csv", folder, "--method", "lora", "rank=2", "training.class_weights=balanced")
    assert (said["task"], said["classes"]) == ("multi-label", list(SHAPES))
    assert said["gains"][0]["score"] == "mAP"
    questions = {row["question"] for row in said["evaluation"]["table"]}
    assert questions == {
        "Which labels, ranked? (mean average precision)",
        "Which labels, decided? (F1 of all decisions)",
        "Which labels, each label alike? (mean of F1)",
    }
    assert not (folder / "logits-test.npz").exists()
    answers = predict(folder, drawn / "images", tmp_path / "answers.csv")
    rows = {Path(row["image"]).name: row for row in read_csv(tmp_path / "answers.csv")}
    assert list(rows["tag1.png"]) == ["image", "labels", *(f"probability_{name}" for name in SHAPES), "error"]
    assert answers["counts"].keys() == set(SHAPES)
    # The scores of the run are scikit-learn's of what is predicted.
    table = [row for row in read_csv(drawn / "tags.csv") if row["split"] == "test"]
    truth = np.array([[name in row["labels"].split(";") for name in SHAPES] for row in table])
    mine = [rows[Path(row["image"]).name] for row in table]
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in SHAPES] for row in mine])
    decided = np.array([[name in row["labels"].split(";") for name in SHAPES] for row in mine])
    measured = {
        row["question"].rpartition("(")[2]: row["values"]["adapted"]["value"]
        for row in said["evaluation"]["table"]
        if row["data"] == "test"
    }
    assert_allclose(
        measured["mean average precision)"], oracle.average_precision_score(truth, probabilities), atol=1e-4
    )
    f1 = [oracle.f1_score(truth, decided, average=kind, zero_division=0) for kind in ("micro", "macro")]
    assert_allclose([measured["F1 of all decisions)"], measured["mean of F1)"]], f1, atol=1e-4)
    details = said["details"]
    each = [oracle.average_precision_score(truth[:, k], probabilities[:, k]) for k in range(3)]
    assert_allclose([score["precision"] for score in details["classes"]], each, atol=1e-4)
    assert (folder / details["mistakes"][0]["image"]).is_file()


def test_values_from_a_table_to_predictions(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = train(
        backbone, drawn / "angles.csv", folder, "--field", "degrees", "--method", "full", "data.unit=degrees",
        "training.loss=huber", "training.layer_decay=0.7", "training.evaluate_every=2", "--epochs", 4,
    )  # fmt: skip
    assert (said["task"], said["unit"], said["classes"]) == ("regression", "degrees", [])
    answers = predict(folder, drawn / "images", tmp_path / "answers.csv")
    rows = {Path(row["image"]).name: row for row in read_csv(tmp_path / "answers.csv")}
    assert list(rows["angle0.png"]) == ["image", "value", "unit", "error"]
    assert rows["angle0.png"]["unit"] == "degrees"
    assert answers["values"][0] <= answers["values"][1] <= answers["values"][2]
    table = [row for row in read_csv(drawn / "angles.csv") if row["split"] == "test"]
    truth = [float(row["degrees"]) for row in table]
    predicted = [float(rows[Path(row["image"]).name]["value"]) for row in table]
    measured = {row["question"]: row for row in said["evaluation"]["table"] if row["data"] == "test"}
    error = measured["How far off? (mean absolute error)"]
    assert (error["unit"], error["best"]) == ("degrees", "lowest")
    assert_allclose(error["values"]["adapted"]["value"], oracle.mean_absolute_error(truth, predicted), rtol=1e-3)
    share = measured["How much of the differences is told? (R2)"]["values"]["adapted"]["value"]
    assert_allclose(share, oracle.r2_score(truth, predicted), atol=1e-3)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    # The log says errors in degrees, too, although the head learns standardized values.
    errors = [row[key] for row in logged for key in row if key.endswith("mean_absolute_error")]
    assert errors
    assert max(errors) > 5


def test_ordered_classes_and_a_head_that_is_trained_on(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    options = ("--field", "count", "--task", "ordinal")
    first = train(backbone, drawn / "tags.csv", tmp_path / "first", "--method", "linear", *options)
    assert (first["task"], first["classes"]) == ("ordinal", ["0", "1", "2", "3"])
    kappa = next(row for row in first["evaluation"]["table"] if "kappa" in row["question"] and row["data"] == "test")
    predict(tmp_path / "first", drawn / "images", tmp_path / "a.csv")
    rows = {Path(row["image"]).name: row for row in read_csv(tmp_path / "a.csv")}
    table = [row for row in read_csv(drawn / "tags.csv") if row["split"] == "test"]
    truth = [int(row["count"]) for row in table]
    answers = [int(rows[Path(row["image"]).name]["class"]) for row in table]
    expected = oracle.cohen_kappa_score(truth, answers, weights="quadratic", labels=range(4))
    assert_allclose(kappa["values"]["adapted"]["value"], expected, atol=1e-4)
    # From its own values the head starts where it was: no step at rate 0 moves it.
    more = ("--head-from", tmp_path / "first", "training.learning_rate=1e-12", "--epochs", 1)
    train(backbone, drawn / "tags.csv", tmp_path / "second", "--method", "bitfit", *options, *more)
    predict(tmp_path / "second", drawn / "images", tmp_path / "b.csv")
    again = {Path(row["image"]).name: row for row in read_csv(tmp_path / "b.csv")}
    assert_allclose(
        [float(again[name]["value"]) for name in rows], [float(rows[name]["value"]) for name in rows], atol=1e-3
    )
    refused = run(
        "train", "--backbone", backbone, "--collection", drawn / "tags.csv", "--method", "bitfit", "--head-from",
        tmp_path / "first", "--out", tmp_path / "third", "--quiet", "--field", "count", "--task", "regression",
    )  # fmt: skip
    assert "ordinal" in str(refused.exception)


def test_what_takes_one_class_per_image_refuses_other_models_by_name(
    backbone: Path, drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(backbone, drawn / "tags.csv", folder, "--method", "linear", "--epochs", 1)
    refusals = {
        "wise": run("wise", folder, "--data", drawn / "tags.csv", "--out", tmp_path / "wise"),
        "compare": run(
            "compare", "--backbone", backbone, "--tasks", drawn / "tags.csv", "--methods", "linear", "--out",
            tmp_path / "compare",
        ),
        "peft": run("merge", folder, "--out", tmp_path / "peft", "--format", "peft"),
        "gamma": run("predict", folder, drawn / "images", "--out", tmp_path / "a.csv", "--gamma", 1.0),
        "top": run("predict", folder, drawn / "images", "--out", tmp_path / "a.csv", "--top", 2),
    }  # fmt: skip
    for name, refused in refusals.items():
        assert refused.exit_code != 0, name
        assert "multi-label" in str(refused.exception), (name, refused.exception)
    # Merged weights keep what their outputs are.
    merged = run("merge", folder, "--out", tmp_path / "merged", "--quiet")
    assert merged.exit_code == 0, merged.exception
    predict(folder, drawn / "images", tmp_path / "one.csv")
    predict(tmp_path / "merged", drawn / "images", tmp_path / "other.csv")
    one, other = read_csv(tmp_path / "one.csv"), read_csv(tmp_path / "other.csv")
    assert [row["labels"] for row in one] == [row["labels"] for row in other]
    from foveate.vision.classifier import open_classifier

    with raises_naming(UserError, "labels.json"):
        open_classifier(tmp_path / "merged")


def test_images_of_a_folder_of_classes_are_no_lists_of_names(drawn: Path, tmp_path: Path) -> None:
    for name in ("a;b", "c|d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes((drawn / "images" / "tag0.png").read_bytes())
    images = load_images(tmp_path, AdaptData(), HALF)
    assert (images.task, images.classes) == ("single-label", ("a;b", "c|d"))


def test_adapters_without_a_task_are_of_one_class() -> None:
    assert Answers.from_info({"classes": ["a", "b"]}) == Answers(classes=("a", "b"))
    answers = Answers("multi-label", ("a", "b"), (0.2, 0.7))
    assert Answers.from_info({"classes": ["a", "b"], **answers.to_info()}) == answers
    assert answers.decide(np.array([[0.0, 0.0], [-9.0, -9.0]])) == [("a",), ()]


# Pages.


def read_page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("table", "options", "headings"),
    [
        ("tags.csv", (), ("By label", "Can its confidence be believed?", "Most confident mistakes")),
        ("tags.csv", ("--field", "count"), ("By class", "Mistaken for each other", "Most confident mistakes")),
        (
            "tags.csv",
            ("--field", "count", "--task", "ordinal"),
            ("By class", "Mistaken for each other", "Largest errors"),
        ),
        ("angles.csv", ("--field", "degrees"), ("Predicted and true", "Largest errors")),
    ],
)
def test_the_page_says_where_the_model_is_wrong(
    table: str, options: tuple[str, ...], headings: tuple[str, ...], backbone: Path, drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    said = train(backbone, drawn / table, folder, "--method", "linear", *options)
    page = read_page(folder)
    for heading in headings:
        assert f">{heading}</h2>" in page
    details = said["details"]
    assert details["split"] == "test"
    # Every mistake that is counted has its picture inside the page, which loads nothing else.
    assert page.count('src="data:image/webp') >= len(details["mistakes"]) > 0
    if details["confusion"]:
        confusion = np.array(details["confusion"])
        assert confusion.sum() == details["n"]
        assert confusion.diagonal().tolist() == [score["right"] for score in details["classes"]]
        assert confusion.sum(axis=1).tolist() == [score["n"] for score in details["classes"]]
        assert len(details["mistakes"]) == min(12, details["n"] - confusion.trace())
        assert sum(pair["count"] for pair in details["confused"]) == details["n"] - confusion.trace()
    if details["bins"]:
        total = sum(entry["count"] for entry in details["bins"])
        error = sum(entry["count"] * abs(entry["confidence"] - entry["right"]) for entry in details["bins"]) / total
        # Fewer bins than the error has, which can only cancel some of it.
        assert error <= details["calibration_error"] + 1e-9
    if details["points"]:
        assert len(details["points"]) == details["n"]


def test_many_classes_have_a_list_instead_of_a_matrix() -> None:
    from foveate.adapt.results import ClassScore, ConfusedClasses, SplitDetails
    from foveate.report.blocks import Charts, Table
    from foveate.report.pages.tuned import MAX_CONFUSED, MAX_PAIRS, _confusion

    def blocks(count: int) -> list[Any]:
        confusion = np.eye(count, dtype=int) + np.eye(count, k=1, dtype=int)
        scores = [ClassScore(name=f"c{k}", n=2, predicted=2, right=1) for k in range(count)]
        pairs = [ConfusedClasses(truth=f"c{k}", answer=f"c{k + 1}", count=1) for k in range(count - 1)]
        details = SplitDetails(split="test", n=2 * count, classes=scores, confusion=confusion.tolist(), confused=pairs)
        return _confusion(details)

    few, many = blocks(MAX_CONFUSED), blocks(MAX_CONFUSED + 1)
    assert isinstance(few[0], Charts)
    assert [type(block) for block in many] == [Table]
    assert len(many[0].rows) == MAX_PAIRS


def test_the_page_of_predictions_shows_a_bounded_number_of_each_answer(
    backbone: Path, drawn: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(backbone, drawn / "tags.csv", folder, "--method", "linear")
    said = predict(folder, drawn / "images", tmp_path / "a.csv", "--page", tmp_path / "sheet")
    page = (tmp_path / "sheet" / "report.html").read_text(encoding="utf-8")
    rows = read_csv(tmp_path / "a.csv")
    counts = {name: sum(name in row["labels"].split(";") for row in rows) for name in SHAPES}
    counts["none of the labels"] = sum(not row["labels"] for row in rows)
    groups = {group["title"]: group for group in said["sheet"]}
    assert {title: group["count"] for title, group in groups.items()} == {k: v for k, v in counts.items() if v}
    shown = [image for group in groups.values() for image in group["images"]]
    assert all(len(group["images"]) == min(12, group["count"]) for group in groups.values())
    assert page.count('src="data:image/webp') == len(shown)
    # From the surest to the least sure.
    for name in set(groups) - {"none of the labels"}:
        texts = [float(image["text"]) for image in groups[name]["images"]]
        assert texts == sorted(texts, reverse=True)
    # A folder of another run is not overwritten, and without --page there is none.
    assert run("predict", folder, drawn / "images", "--out", tmp_path / "b.csv", "--page", folder).exit_code != 0


def test_what_is_served_is_one_class_per_image(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    from foveate.serve.adapters.classifier import open_adapter as serve

    train(backbone, drawn / "angles.csv", tmp_path / "run", "--method", "linear", "--field", "degrees")
    with raises_naming(UserError, "regression"):
        serve(tmp_path / "run", name="a", device="cpu", precision="auto", max_tokens=1)


def test_a_run_of_an_earlier_version_resumes(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    """Its recipe has no fields of labels, losses and layers, and its adapter no task."""
    import yaml

    folder, data = tmp_path / "run", drawn / "tags.csv"
    train(backbone, data, folder, "--method", "bitfit", "--field", "count", "--epochs", 1)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    for section, names in {
        "data": ("task", "unit"), "training": ("loss", "class_weights", "focal_gamma", "layer_decay"),
    }.items():  # fmt: skip
        for name in names:
            del recipe[section][name]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    assert "labels" not in json.loads((folder / "adapter" / "adapter.json").read_text(encoding="utf-8"))["info"]
    train(backbone, data, folder, "--method", "bitfit", "--field", "count", "--epochs", 1)
    other = run(
        "train", "--backbone", backbone, "--collection", data, "--out", folder, "--method", "bitfit", "--field",
        "count", "--epochs", 1, "--keep", "tuned", "training.focal_gamma=2", "--quiet",
    )  # fmt: skip
    assert "run of another recipe" in str(other.exception)
