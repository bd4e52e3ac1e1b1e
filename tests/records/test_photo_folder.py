"""A folder of photographs with useless alt-texts, and the truth of its test photographs in a collection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.collection import Collection
from foveate.records.importers.folder import import_folder
from foveate_labs.worlds.scenes import add_truth, draw_scene, write_photo_folder
from naming import raises_naming

NAMES = "accordion banana bicycle bus camera guitar hammer key octopus penguin rocket teapot".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    written = write_photo_folder(folder, names=NAMES, train=14, test=6, size=96, subjects=NAMES[:6])
    assert written.splits == {"train": 14, "test": 6}
    assert written.alt_texts == {"missing": 6, "of another photograph": 6, "file name": 4, "": 4}
    return folder


def test_names_labels_and_the_shares_of_alt_texts(folder: Path) -> None:
    keys = [f"IMG_{number:04d}" for number in range(1, 21)]
    assert sorted(path.stem for path in folder.glob("*.PNG")) == keys
    truth = [json.loads(line) for line in folder.with_name("photos-truth.jsonl").read_text().splitlines()]
    fields = {key: json.loads((folder / f"{key}.json").read_text()) for key in keys}
    assert [fields[row["key"]]["split"] for row in truth] == ["test"] * 6 + ["train"] * 14
    subjects = {key: fields[key]["labels"]["subject"] for key in keys}
    assert {subjects[key] for key in keys[6:]} <= set(NAMES[:6])
    shown = {row["key"]: {region["phrase"] for region in row["regions"]} for row in truth}
    assert all(subjects[key] in shown[key] and shown[key] <= set(NAMES) for key in keys)
    texts = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert len(texts) == 14
    assert sum(text == key for key, text in texts.items()) == 4
    assert sum(text == subjects[key] for key, text in texts.items()) >= 4


def test_the_truth_is_added_for_one_split_alone(folder: Path, tmp_path: Path) -> None:
    collection = tmp_path / "images"
    import_folder(folder, collection)
    truth = folder.with_name("photos-truth.jsonl")
    assert add_truth(collection, truth) == 6
    add_truth(collection, truth)
    with Collection.open(collection) as opened:
        for record in opened:
            exact = [caption.text for caption in record.captions if caption.kind == "exact"]
            assert len(exact) == (record.split == "test")
            assert bool(record.regions) == (record.split == "test")
        assert opened.table("scenes").num_rows == 6
    with raises_naming(UserError, "validation"):
        add_truth(collection, truth, split="validation")


def test_gray_photographs_and_the_same_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo_folder(tmp_path / name, names=NAMES, train=2, test=0, size=96, seed=3, gray=True)
    first, again = ((tmp_path / name / "IMG_0001.PNG").read_bytes() for name in ("a", "b"))
    assert first == again
    pixels = np.asarray(Image.open(tmp_path / "a" / "IMG_0001.PNG"))
    assert (pixels == pixels[..., :1]).all()
    with raises_naming(UserError, str(tmp_path / "a")):
        write_photo_folder(tmp_path / "a", names=NAMES, train=1, test=0)


def test_names_that_cannot_be_drawn_are_refused() -> None:
    with raises_naming(UserError, "names", "bananna", "banana"):
        draw_scene(seed=0, split="train", index=0, names=frozenset({*NAMES, "bananna"}))
    with raises_naming(UserError, "names", "3", "10"):
        draw_scene(seed=0, split="train", index=0, names=frozenset(NAMES[:3]))
