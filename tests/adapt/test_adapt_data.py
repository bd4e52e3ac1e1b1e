"""Images as people have them: a folder per class, a table of paths, and splits drawn class by class."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.test_adapt_train import HALF, run
from adapt.test_adapt_train import _few_penalties as _few_penalties  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from foveate.adapt.data import load_images
from foveate.adapt.recipe import AdaptData
from foveate.core.errors import UserError
from foveate.core.progress import configure
from foveate.records.geometry import View
from foveate.training.classification import LabeledImages
from naming import raises_naming

# A newcomer's 21 images in 4 classes.
COUNTS = {"ash": 3, "beech": 4, "elm": 6, "oak": 8}


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """A folder per class, with what lies around in such folders."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "trees"
    for position, (name, count) in enumerate(COUNTS.items()):
        # The second half of each class lies deeper, which ImageFolder reads, too.
        for number in range(count):
            path = folder / name / ("more" if number > 2 else "") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 60, (32, 32, 3)) + 50 * position
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    (folder / "oak" / "notes.txt").write_text("old trees", encoding="utf-8")
    (folder / ".cache").mkdir()
    shutil.copy(folder / "oak" / "0.png", folder / ".cache" / "0.png")
    return folder


def counts(images: LabeledImages, split: str) -> dict[str, int]:
    labels = images.labels_N[images.splits == split].tolist()
    return {images.classes[number]: count for number, count in sorted(Counter(labels).items())}


def test_a_folder_per_class_is_divided_class_by_class(trees: Path, tmp_path: Path) -> None:
    images = load_images(trees, AdaptData(), HALF)
    assert images.classes == tuple(COUNTS)
    assert Counter(images.labels_N.tolist()) == dict(enumerate(COUNTS.values()))
    assert counts(images, "test") == dict.fromkeys(COUNTS, 1)
    assert counts(images, "validation") == {"beech": 1, "elm": 1, "oak": 1}, "3 images are too few for both"
    assert sum(counts(images, "train").values()) == 21 - 4 - 3
    assert images.load(0, View()).shape == (3, 32, 32)
    # Another place and other names change nothing; what an image is decides.
    shutil.copytree(trees, tmp_path / "copy" / "trees")
    (tmp_path / "copy" / "trees" / "oak" / "0.png").rename(tmp_path / "copy" / "trees" / "oak" / "zz.png")
    again = load_images(tmp_path / "copy" / "trees", AdaptData(), HALF)
    splits = [
        {images.content(row): str(images.splits[row]) for row in range(21) if images.content}
        for images in (images, again)
    ]
    assert splits[0] == splits[1]
    # Images of other classes do not move those of a class.
    few = load_images(trees, AdaptData(classes=["oak", "elm"]), HALF)
    assert counts(few, "test") == {"oak": 1, "elm": 1}
    assert [few.splits[row] for row in few.labeled_rows()] == [images.splits[row] for row in few.labeled_rows()]


def test_copies_of_an_image_share_a_split(trees: Path) -> None:
    for number in range(40):
        shutil.copy(trees / "oak" / "1.png", trees / "oak" / f"copy-{number}.png")
    images = load_images(trees, AdaptData(), HALF)
    assert images.content is not None
    content = (trees / "oak" / "1.png").read_bytes()
    copies = {str(images.splits[row]) for row, key in enumerate(images.keys) if images.content(row) == content}
    assert len(copies) == 1


def test_a_class_behind_a_link_is_said_to_be_left_out(
    trees: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(quiet=False)
    (trees / "oak").rename(tmp_path / "elsewhere")
    (trees / "oak").symlink_to(tmp_path / "elsewhere")
    assert load_images(trees, AdaptData(), HALF).classes == ("ash", "beech", "elm")
    assert "1 links to folders are not followed, such as 'oak'" in " ".join(capsys.readouterr().err.split())


def test_folders_of_splits_are_taken_as_they_are(trees: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(trees, tmp_path / "all" / split)
    images = load_images(tmp_path / "all", AdaptData(), HALF)
    assert images.classes == tuple(COUNTS)
    assert Counter(images.splits.tolist()) == {"train": 21, "validation": 21}
    # A class of the name of a split beside others is a class.
    (trees / "ash").rename(trees / "test")
    assert load_images(trees, AdaptData(), HALF).classes == ("beech", "elm", "oak", "test")


def write_table(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_of_paths(trees: Path) -> None:
    names = sorted(
        path.relative_to(trees).as_posix() for path in trees.rglob("[0-9].png") if ".cache" not in path.parts
    )
    rows = [["image", "label"], *([name, name.split("/")[0]] for name in names)]
    images = load_images(write_table(trees / "mine.csv", rows), AdaptData(), HALF)
    folder = load_images(trees, AdaptData(), HALF)
    assert images.classes == folder.classes
    assert list(images.keys) == list(folder.keys)
    assert images.splits.tolist() == folder.splits.tolist()
    # A column of splits holds; one without a label takes part in nothing; another column may hold the labels.
    rows = [
        ["path", "split", "kind"],
        *([name, "train" if "0" in name else "val", name.split("/")[0]] for name in names),
    ]
    rows[1][2] = ""
    images = load_images(write_table(trees / "mine.csv", rows), AdaptData(field="kind"), HALF)
    assert Counter(images.splits.tolist()) == {"train": 4, "validation": 17}
    assert len(images.labeled_rows()) == 20


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["image", "label"], ["no.png", "oak"]], ["line 2", "no.png"]),
        ([["image", "labl"], ["oak/0.png", "oak"]], ["label", "'labl'"]),
        ([["image", "label"], ["oak/0.png", "oak"], ["oak/0.png", "elm"]], ["line 3", "oak/0.png"]),
        ([["image", "label"], ["oak/0.png", "oak"]], ["two classes"]),
    ],
)
def test_mistakes_in_a_table_are_named(trees: Path, rows: list[list[str]], words: list[str]) -> None:
    with raises_naming(UserError, trees / "mine.csv" if words != ["two classes"] else "mine.csv", *words):
        load_images(write_table(trees / "mine.csv", rows), AdaptData(), HALF)


def test_a_folder_without_classes_is_refused(trees: Path, tmp_path: Path) -> None:
    with raises_naming(UserError, trees / "oak" / "more", "folder per class"):
        load_images(trees / "oak" / "more", AdaptData(), HALF)
    with raises_naming(UserError, tmp_path / "none"):
        load_images(tmp_path / "none", AdaptData(), HALF)
    with raises_naming(UserError, "data.field", trees):
        load_images(trees, AdaptData(field="kind"), HALF)


def test_few_images_are_tested_in_every_class(backbone: Path, trees: Path, tmp_path: Path) -> None:
    """From a folder to predictions in two commands; intervals of few images are not of zero width."""
    configure(quiet=False)
    done = run(
        "train",
        "--backbone",
        backbone,
        "--collection",
        trees,
        "--method",
        "linear",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "trees has no splits; drawn by class: 4 test, 14 train, 3 validation images" in done.output
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    row = next(row for row in result["evaluation"]["table"] if row["data"] == "test")
    assert (row["n"], row["chance"]) == (4, 0.25)
    value = row["values"]["adapted"]
    assert value["high"] - value["low"] > 0.4
    done = run("predict", tmp_path / "run", trees / "oak", "--out", tmp_path / "answers.csv", "--device", "cpu")
    assert done.exit_code == 0, (done.output, done.exception)
    # A test split that lacks classes is said to.
    arrays = {"images": np.zeros((8, 32, 32, 3), np.uint8), "labels": np.array(list("ab") * 4)}
    arrays["images"][::2] += 200
    np.savez(tmp_path / "some.npz", **arrays, split=np.array(["train"] * 6 + ["test", ""]))
    done = run(
        "train",
        "--backbone",
        backbone,
        "--collection",
        tmp_path / "some.npz",
        "--method",
        "linear",
        "--out",
        tmp_path / "some",
        "--device",
        "cpu",
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "1 of 2 classes have no image in the split 'test' (first 'b')" in " ".join(done.output.split())
