"""Training a character head: what is learned and measured, resuming, and the model folder that reads."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.recipes import load
from foveate.mllm.reader import (
    ReadImage,
    ReadingRecipe,
    ReadingTask,
    WrittenImages,
    choose_min_score,
    cover_cells,
    move_box,
    score_reading,
    train_reader,
)
from foveate.multimodal.folder import hash_model, load_model
from foveate.multimodal.opening import find_folder
from foveate.records.boxes import PixelBox
from foveate.records.collection import Collection
from foveate.vision.text_reader import CharacterHead, ReadWord, load_network
from foveate_labs.worlds.words import build_words
from naming import raises_naming

BOX = PixelBox(0, 0, 9, 9)
SMALL = ["head.width=8", "head.hidden=16", "training.steps=4", "training.batch_size=2", "training.warmup_steps=1"]
SMALL += ["training.checkpoint_every=2", "training.evaluate_every=4", "training.workers=0"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "words"
    build_words(folder, train=6, validation=4)
    return folder


def read(truth: str, *words: tuple[str, float]) -> ReadImage:
    return ReadImage(tuple(truth.split()), tuple(ReadWord(text, BOX, score) for text, score in words))


IMAGES = [
    read("stop", ("stop", 0.9), ("il", 0.2)),
    read("old mill", ("old", 0.8), ("mill", 0.7)),
    read("gate", ("date", 0.6)),
    read("harbor"),
    read("", ("i", 0.5)),
    read(""),
]


def test_words_are_exact_only_if_nothing_else_is_read() -> None:
    low, high = (score_reading(IMAGES, score) for score in (0.0, 0.3))
    assert (low.exact, high.exact) == (0.25, 0.5)
    assert (low.false_rate, score_reading(IMAGES, 0.6).false_rate) == (0.5, 0.0)
    assert low.another_image == high.another_image == 0.0
    assert (low.num_written, low.num_empty) == (4, 2)
    # The control is right where the next image has the same word.
    assert score_reading([read("stop", ("stop", 1.0))] * 2, 0.5).another_image == 1.0
    assert math.isnan(score_reading(IMAGES[:4], 0.0).false_rate)


@pytest.mark.parametrize(
    ("max_false_rate", "max_lost", "expected"),
    [(0.0, 0.0, 0.7), (0.0, 0.34, 0.8), (0.0, 0.99, 0.9), (0.49, 0.0, 0.7), (0.5, 0.0, 0.7)],
)
def test_the_lowest_score_loses_few_words(max_false_rate: float, max_lost: float, expected: float) -> None:
    score = choose_min_score(IMAGES, max_false_rate, max_lost=max_lost)
    assert score == pytest.approx(expected)
    assert score_reading(IMAGES, score).false_rate <= max_false_rate


def test_the_lowest_score_lets_few_empty_images_through() -> None:
    images = [*IMAGES, read("", ("ill", 0.95))]
    # Two of three empty images have no word of so high a score, whatever that loses.
    assert choose_min_score(images, 0.0) == pytest.approx(0.9501)
    assert choose_min_score(images, 0.34) == pytest.approx(0.7)
    assert choose_min_score([read("")], 0.0) == pytest.approx(0.0001)


def test_a_score_needs_images_without_words() -> None:
    with raises_naming(UserError, "without a word"):
        choose_min_score(IMAGES[:4], 0.1)


def test_cells_and_moved_boxes() -> None:
    half = cover_cells([np.array([12.0, 8.0, 16.0, 16.0]) / 224])
    assert half.sum() == half[1, 1] == 0.5
    box = np.array([0.2, 0.3, 0.6, 0.4])
    moved = np.array([move_box(np.random.default_rng(seed), box) for seed in range(200)])
    assert np.abs(moved - box).max() <= (4 + 6) / 224 + 1e-9
    # Grown more often than shrunk.
    assert (moved[:, 2] - moved[:, 0]).mean() > 0.4


def test_the_loss_counts_images_and_words(words: Path) -> None:
    torch.manual_seed(0)
    with Collection.open(words) as collection:
        images = WrittenImages(collection, "train")
        task = ReadingTask(CharacterHead(width=8, hidden=16), load_network(torch.device("cpu")))
        batch = images.collate([images.sample(row, 0, 0) for row in images.rows.tolist()])
        prepared = task.prepare_batch(batch, torch.device("cpu"))
        terms, _ = task.losses(prepared)
        counts = task.count_targets(prepared)
        assert counts["letter_loss"] == sum(map(len, batch["words"])) > 0
        assert counts["mask_loss"] == len(images.rows)
        assert torch.equal(task.total(terms), terms["loss"])
        # Where no image has a word, all parameters take part still.
        empty = {**prepared, "words": [[] for _ in batch["words"]]}
        terms, _ = task.losses(empty)
        terms["loss"].backward()
        assert float(terms["letter_loss"].detach()) == 0.0
        assert all(parameter.grad is not None for parameter in task.parameters())


def test_a_split_that_cannot_set_the_score_is_refused_before_the_training(
    words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(ReadingRecipe, "reader", SMALL)
    with Collection.open(words) as collection:
        validation = WrittenImages(collection, "validation")
        assert 0 < validation.count_with_words() < len(validation.rows)
        monkeypatch.setattr(WrittenImages, "count_with_words", lambda self: len(self.rows))
        with raises_naming(UserError, words, f"of {len(validation.rows)} images of split 'validation'", "without"):
            train_reader(recipe, collection, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_stopped_training_goes_on_as_if_it_had_not_been(words: Path, tmp_path: Path) -> None:
    recipe = load(ReadingRecipe, "reader", SMALL)
    with Collection.open(words) as collection:
        whole = train_reader(recipe, collection, tmp_path / "whole", device="cpu")
        assert whole.model_folder is not None
        first = train_reader(recipe, collection, tmp_path / "stopped", device="cpu")
        assert first.model_folder is not None
        # Back to the second step, as a kill would have left the run.
        shutil.rmtree(first.model_folder)
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000004")
        resumed = train_reader(recipe, collection, tmp_path / "stopped", device="cpu")
        assert resumed.model_folder is not None
        assert resumed.run.resumed
    a, b = (load_file(run.model_folder / "reader.safetensors") for run in (whole, resumed) if run.model_folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_the_model_of_a_run_reads(words: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli, ["mllm", "train", "reader", "--collection", str(words), "--out", str(tmp_path / "run"), "--json", *SMALL]
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.output.splitlines()[-1])
    assert printed["after"]["validation"].keys() == {"exact", "another_image", "false_rate"}
    folder, mini = tmp_path / "run" / "model", find_folder("mini")
    loaded = load_model(folder)
    assert loaded.reader is not None
    config = json.loads((folder / "config.json").read_text())
    assert loaded.reader.min_score == config["reading"]["min_score"]
    assert config["reading"]["provenance"]["collection"] == "words"
    # The model itself is that of the package.
    assert (folder / "model.safetensors").read_bytes() == (mini / "model.safetensors").read_bytes()
    before = hash_model(folder)
    weights = (folder / "reader.safetensors").read_bytes()
    (folder / "reader.safetensors").write_bytes(weights[:-1] + b"\0")
    assert hash_model(folder) != before


def test_a_collection_without_words_is_refused(words: Path, tmp_path: Path, tiny_collection: Path) -> None:
    recipe = load(ReadingRecipe, "reader", SMALL)
    with Collection.open(tiny_collection) as collection, raises_naming(UserError, "written word", "collect words"):
        train_reader(recipe, collection, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(cli, ["mllm", "train", "reader", "--collection", str(words), "--dry-run"])
    assert result.exit_code == 2
    assert "--dry-run" in result.output
