"""Heads of adapters: a solved probe, the start of a new head, classes without images, and what tuning lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from adapt.test_adapt_train import _few_penalties as _few_penalties  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import data as data  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import run, train
from foveate.adapt.export import open_adapted
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.progress import configure
from foveate.training.logit_files import read_logits


def test_classes_without_training_images_come_back(backbone: Path, data: Path, tmp_path: Path) -> None:
    """From a head that knows them: a linear probe of all classes, tuning on two of them, then the third again."""
    train(backbone, data, tmp_path / "before", "--method", "linear", "--epochs", 30, "training.learning_rate=0.05")
    arrays = dict(np.load(data))
    kept = (arrays["split"] != "train") | (arrays["labels"] != "low")
    np.savez(tmp_path / "some.npz", **{name: value[kept] for name, value in arrays.items()})
    options = (
        "--backbone",
        backbone,
        "--collection",
        tmp_path / "some.npz",
        "--method",
        "full",
        "--device",
        "cpu",
        "--quiet",
    )
    done = run("train", *options, "--out", tmp_path / "never")
    assert "class 'low' has no training image (1 such classes); leave them out with data.classes" in str(done.exception)
    after = tmp_path / "after"
    done = run("train", *options, "--head-from", tmp_path / "before", "--out", after, "--epochs", 20)
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads((after / "result.json").read_text())["absent"] == ["low"]
    assert (after / "seen.txt").read_text() == "middle\ntop\n"
    line = next(line for line in done.output.splitlines() if "bring them back: foveate " in line)
    given = line.partition("bring them back: foveate ")[2].split()
    found = CliRunner().invoke(cli, [*given, "--out", str(tmp_path / "calibrated"), "--json"])
    assert found.exit_code == 0, (found.output, found.exception)
    said = json.loads(found.stdout.splitlines()[-1])
    rows = {row["key"]: row["accuracies"] for row in said["rows"]}
    assert said["gammas"]["alg"]["gamma"] > 0
    assert rows["alg"]["U/Y"] >= rows["after"]["U/Y"]
    assert not (tmp_path / "before" / "logits-training.npz").exists()


def test_a_linear_probe_is_solved_and_stands_beside_other_methods(backbone: Path, data: Path, tmp_path: Path) -> None:
    """The column "features alone" of any method is what `linear` itself reaches."""
    linear = train(backbone, data, tmp_path / "linear", "--method", "linear")
    assert linear["steps"] == 0
    assert linear["probe"]["C"] > 0
    other = train(backbone, data, tmp_path / "bitfit", "--method", "bitfit")
    assert other["steps"] > 0
    assert other["probe"] == linear["probe"]
    for probe, beside in zip(linear["evaluation"]["table"], other["evaluation"]["table"], strict=True):
        assert beside["values"]["features"] == probe["values"]["adapted"]
        assert list(probe["values"]) == ["adapted"]
    page = (tmp_path / "bitfit" / "report.html").read_text(encoding="utf-8")
    assert "features alone" in page
    weaker = train(backbone, data, tmp_path / "weaker", "--method", "linear", "training.head_c=0.0001")
    assert weaker["probe"] == {"C": 0.0001, "folds": 0, "accuracies": {}}


def accuracies(result: dict[str, Any], split: str) -> dict[str, float]:
    """The accuracy of each column on a split."""
    rows = result["evaluation"]["table"]
    values = next(row["values"] for row in rows if row["data"] == split and "(accuracy)" in row["question"])
    return {column: value["value"] for column, value in values.items()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each digit to train on: enough for a linear probe, few for a random head and 4 epochs."""
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    train = np.concatenate([order[source.target[order] == number][:10] for number in range(10)])
    rows = np.concatenate([train, np.setdiff1d(order, train)[:300]])
    large = [Image.fromarray((15.9 * source.images[row]).astype(np.uint8)).resize((32, 32)) for row in rows]
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    split = np.array(["train"] * 100 + ["test"] * 300)
    np.savez(path, images=np.stack([np.asarray(image) for image in large]), labels=source.target[rows], split=split)
    return path


# Methods that change nothing at their first values, through a cached prefix, pixels, and blocks of the network's own.
@pytest.mark.parametrize("options", [("lora",), ("lora", "last_blocks=1"), ("bitfit",), ("subset", "blocks=[-1]")])
def test_before_any_step_the_model_answers_as_the_linear_probe(
    backbone: Path, digits: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    train(backbone, digits, tmp_path / "probe", "--method", "linear")
    # So small a rate changes no float32 weight but those that are 0, which stay too small to change an output.
    still = ("training.learning_rate=1e-30", "training.weight_decay=0", "--epochs", 1)
    result = train(backbone, digits, tmp_path / "start", "--method", *options, *still)
    assert result["steps"] > 0
    probe, start = (read_logits(tmp_path / name / "logits-test.npz").logits for name in ("probe", "start"))
    assert np.array_equal(probe, start)
    assert result["gains"][0]["gain"] == 0
    adapted, _, _ = open_adapted(tmp_path / "start")
    first = dict(adapted.first_heads["default"].named_parameters())
    assert all(torch.equal(value, first[name]) for name, value in adapted.head.named_parameters())


def test_both_accuracies_are_printed_and_a_loss_comes_first(backbone: Path, digits: Path, tmp_path: Path) -> None:
    arguments = (
        "train", "--backbone", backbone, "--collection", digits, "--epochs", 4, "--device", "cpu", "--quiet",
        "--method", "lora",
    )  # fmt: skip
    lost = run(*arguments, "--out", tmp_path / "random", "--head-init", "random")
    assert lost.exit_code == 0, (lost.output, lost.exception)
    lines = lost.stdout.splitlines()
    result = json.loads((tmp_path / "random" / "result.json").read_text(encoding="utf-8"))
    (gain,) = result["gains"]
    both = accuracies(result, "test")
    assert (gain["tuned"], gain["features"]) == (both["adapted"], both["features"])
    assert gain["gain"] == pytest.approx(both["adapted"] - both["features"])
    assert gain["low"] <= gain["gain"] <= gain["high"] < 0
    assert lines[0].startswith(
        f"Tuning lost {-gain['gain']:.3f} on test: {both['adapted']:.3f} tuned, {both['features']:.3f} for the untuned"
    )
    assert lines[0].endswith(
        "try --head-init solved, more images or epochs, a lower training.learning_rate, or --method linear."
    )
    page = (tmp_path / "random" / "report.html").read_text(encoding="utf-8")
    assert f"Tuning lost {-gain['gain']:.3f} on test" in page
    question = next(number for number, line in enumerate(lines) if line.startswith("Which class? (accuracy)"))
    assert "features alone" in lines[question + 1]
    assert lines[question + 2].startswith("test ")
    assert f"{both['adapted']:.1%} (" in lines[question + 2]
    assert f"{both['features']:.1%} (" in lines[question + 2]
    # A rate at which nothing changes loses nothing, so no line says so.
    same = run(*arguments, "--out", tmp_path / "same", "training.learning_rate=1e-30", "training.weight_decay=0")
    assert "lost" not in same.stdout
    assert f"{both['features']:.1%} (" in same.stdout


def test_a_run_begun_without_the_field_resumes_with_its_random_head(
    backbone: Path, digits: Path, tmp_path: Path
) -> None:
    import yaml

    common = ("--method", "bitfit", "training.batch_size=10", "training.checkpoint_every=5")
    train(backbone, digits, tmp_path / "random", *common, "--head-init", "random")
    old = tmp_path / "old"
    train(backbone, digits, old, *common, "--head-init", "random")
    # As a run of an earlier version that was stopped: no such field, and no result yet.
    recipe = yaml.safe_load((old / "recipe.yaml").read_text(encoding="utf-8"))
    del recipe["training"]["head_init"]
    (old / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    (old / "result.json").unlink()
    result = train(backbone, digits, old, *common)
    assert result["recipe"]["training"]["head_init"] == "random"
    one, other = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (tmp_path / "random", old))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    train(backbone, digits, old, *common)  # and again: its recipe still is the one that it was begun with
    refused = run(
        "train", "--backbone", backbone, "--collection", digits, "--epochs", 4, "--out", old, "--device", "cpu",
        *common, "--head-init", "solved",
    )  # fmt: skip
    assert isinstance(refused.exception, UserError)
    assert "holds a run of another recipe" in str(refused.exception)
    refused = run(
        "train", "--backbone", backbone, "--collection", digits, "--epochs", 4, "--out", tmp_path / "random",
        "--device", "cpu", *common,
    )  # fmt: skip
    assert "holds a run of another recipe" in str(refused.exception), "a new run's head is part of its identity"


def test_a_head_that_is_given_or_solved_makes_the_option_useless(backbone: Path, digits: Path, tmp_path: Path) -> None:
    configure(quiet=False)
    arguments = ("train", "--backbone", backbone, "--collection", digits, "--epochs", 1, "--device", "cpu")
    done = run(*arguments, "--method", "linear", "--out", tmp_path / "linear", "--head-init", "random")
    assert "training.head_init has no effect: this run solves its head" in done.output
    done = run(
        *arguments, "--method", "bitfit", "--out", tmp_path / "bitfit", "--head-from", tmp_path / "linear",
        "--head-init", "solved",
    )  # fmt: skip
    assert "training.head_init has no effect: this run starts from the head of --head-from" in done.output


@pytest.fixture(scope="module")
def split_digits(digits: Path) -> Path:
    """The same digits with half of the test images as validation images."""
    arrays = dict(np.load(digits))
    arrays["split"] = np.array(["train"] * 100 + ["validation", "test"] * 150)
    path = digits.parent / "split-digits.npz"
    np.savez(path, **arrays)
    return path


def test_the_better_of_tuned_model_and_features_is_saved(backbone: Path, split_digits: Path, tmp_path: Path) -> None:
    probe = train(backbone, split_digits, tmp_path / "linear", "--method", "linear")
    assert (probe["kept"], probe["tuned"]) == ("tuned", "")
    folder = tmp_path / "lost"
    arguments = (
        "train", "--backbone", backbone, "--collection", split_digits, "--epochs", 4, "--device", "cpu", "--quiet",
        "--method", "lora", "--head-init", "random",
    )  # fmt: skip
    done = run(*arguments, "--out", folder)
    assert done.exit_code == 0, (done.output, done.exception)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    validation, test = result["gains"]
    assert (validation["split"], test["split"]) == ("validation", "test")
    assert validation["gain"] < 0
    sentence = (
        f"Saved: the untuned features with the solved head, better on validation ({validation['features']:.3f} for the "
        f"untuned features, {validation['tuned']:.3f} tuned); the tuned adapter is in tuned/."
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Tuning lost ")
    assert lines[1] == sentence
    assert sentence in (folder / "report.html").read_text(encoding="utf-8")
    assert (result["kept"], result["adapter"], result["tuned"]) == ("features", "adapter/", "tuned/")
    methods = {name: open_adapted(folder / name)[0].adapter().settings.method for name in ("adapter", "tuned")}
    assert methods == {"adapter": "linear", "tuned": "lora"}
    # The logits on disk are those of the saved model, which is the one that `linear` trains.
    for split in ("validation", "test"):
        name = f"logits-{split}.npz"
        expected, saved = (read_logits(path / name).logits for path in (tmp_path / "linear", folder))
        assert np.allclose(saved, expected, atol=0.01)
    expected, saved = (load_file(path / "adapter" / "adapter.safetensors") for path in (tmp_path / "linear", folder))
    assert expected.keys() == saved.keys()
    # A stopped run may go on with another choice; nothing is trained anew.
    again = run(*arguments, "--out", folder, "--keep", "tuned")
    assert again.exit_code == 0, (again.output, again.exception)
    assert "Saved" not in again.stdout
    assert open_adapted(folder)[0].adapter().settings.method == "lora"


def test_validation_alone_decides_what_is_saved(backbone: Path, split_digits: Path, tmp_path: Path) -> None:
    """Wrong labels of the test images change nothing; a split that is both gives no choice."""
    arrays = dict(np.load(split_digits))
    is_test = arrays["split"] == "test"
    arrays["labels"] = np.where(is_test, (arrays["labels"] + 1) % 10, arrays["labels"])
    np.savez(tmp_path / "wrong.npz", **arrays)
    options = ("--keep", "better", "--method", "lora", "--head-init", "random")
    assert train(backbone, tmp_path / "wrong.npz", tmp_path / "wrong", *options)["kept"] == "features"
    both = train(backbone, split_digits, tmp_path / "both", *options, "data.validation=test")
    assert both["kept"] == "tuned"
    assert "no validation images decide" in (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    # Equal accuracies: the tuned model, which was asked for.
    still = ("training.learning_rate=1e-30", "training.weight_decay=0")
    same = train(backbone, split_digits, tmp_path / "same", "--keep", "better", "--method", "lora", *still)
    assert same["kept"] == "tuned"
    page = (tmp_path / "same" / "report.html").read_text(encoding="utf-8")
    assert "Saved: the tuned model, as good on validation" in page
