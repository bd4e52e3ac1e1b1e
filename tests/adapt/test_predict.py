"""Classifying new images with what was tuned: the same logits as in training, hostile files, calibrations."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import foveate
from adapt.test_adapt_train import stripes
from adapt.towers import tower
from foveate.adapt.predictor import Predictor
from foveate.adapt.recipe import build_recipe
from foveate.adapt.train import train_adapter
from foveate.calibrate.fold import fold
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.core.files import write_json_atomically
from foveate.metrics.agreement import softmax
from foveate.metrics.class_groups import ClassGroups
from foveate.records.writer import CollectionWriter
from foveate.training.logit_files import read_logits
from naming import raises_naming


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone, stripes as arrays and as files, and a run that was tuned on them."""
    from timm.models._hub import save_for_hf

    folder = tmp_path_factory.mktemp("world")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0}
    save_for_hf(tower("timm"), str(folder / "vit"), model_args=arguments, safe_serialization=True)
    data = stripes(folder / "stripes.npz")
    with np.load(data) as file:
        test = file["images"][file["split"] == "test"]
    (folder / "photos").mkdir()
    for number, pixels in enumerate(test):
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02}.png")
    backbone = {"kind": "timm", "source": str(folder / "vit")}
    recipe = build_recipe(backbone, "lora", ["rank=2", "training.epochs=3"], keep="tuned")
    train_adapter(recipe, data, folder / "run", device="cpu")
    return folder


def arrays(world: Path) -> list[np.ndarray]:
    with np.load(world / "stripes.npz") as file:
        return list(file["images"][file["split"] == "test"])


def predict(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapt", "predict", *map(str, arguments), "--device", "cpu"])


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def calibrate(folder: Path, gamma: float, absent: list[str], seen: list[str]) -> Path:
    """What `foveate calibrate` writes of its answer."""
    content = {"kind": "calibrate", "method": "alg", "gamma": gamma, "sentence": "",
               "classes": {"seen": seen, "absent": absent}}  # fmt: skip
    write_json_atomically(folder / "result.json", content)
    return folder


def test_python_gives_the_logits_of_training_bit_for_bit(world: Path) -> None:
    expected = read_logits(world / "run" / "logits-test.npz")
    predictor = foveate.open_adapter(world / "run", device="cpu")
    paths = sorted((world / "photos").iterdir())
    for images in (arrays(world), paths, [Image.open(path) for path in paths], [path.read_bytes() for path in paths]):
        answers = predictor.predict(images)
        assert np.array_equal(answers.logits, expected.logits)
    assert answers.classes == ("low", "middle", "top") == predictor.classes
    assert answers.probabilities.shape == (20, 3)
    assert np.allclose(answers.probabilities.sum(axis=1), 1)
    assert answers.labels == [answers.classes[number] for number in expected.logits.argmax(axis=1)]
    assert answers.calibrated_probabilities is None


def test_the_command_writes_those_answers_for_files_folders_and_collections(world: Path, tmp_path: Path) -> None:
    expected = read_logits(world / "run" / "logits-test.npz").logits.astype(np.float64)
    files = sorted((world / "photos").iterdir())
    with CollectionWriter(tmp_path / "photos") as writer:
        for path in files:
            writer.add(path.stem, path.read_bytes())
    for name, images in (("folder", [world / "photos"]), ("files", files), ("collection", [tmp_path / "photos"])):
        done = predict(
            world / "run" / "adapter" if name == "files" else world / "run", *images, "--out", tmp_path / "a.csv"
        )
        assert done.exit_code == 0, (done.output, done.exception)
        assert done.stdout.splitlines()[-1] == f"answers: {tmp_path / 'a.csv'}"
        rows = read_rows(tmp_path / "a.csv")
        assert list(rows[0]) == ["image", "class", "probability", "error"]
        assert [Path(row["image"]).stem for row in rows] == [path.stem for path in files]
        assert [float(row["probability"]) for row in rows] == softmax(expected).max(axis=1).tolist()


def test_unreadable_images_are_counted_and_listed(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = (world / "photos" / "00.png").read_bytes()
    (folder / "a.png").write_bytes(good)
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "page.jpg").write_text("<html>")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(good)
    done = predict(world / "run", folder, "--out", tmp_path / "a.csv", "--json", "--quiet")
    content = json.loads(done.stdout)
    assert (content["images"], content["ignored_files"]) == (1, 2)
    assert set(content["unreadable"]) == {str(folder / "cut.png"), str(folder / "page.jpg")}
    rows = {Path(row["image"]).name: row for row in read_rows(tmp_path / "a.csv")}
    assert set(rows) == {"a.png", "cut.png", "page.jpg"}
    assert rows["a.png"]["class"]
    assert not rows["a.png"]["error"]
    assert not rows["cut.png"]["class"]
    assert rows["page.jpg"]["error"]
    printed = predict(world / "run", folder, "--out", tmp_path / "a.csv").stdout
    assert "2 images cannot be read" in printed
    assert "cut.png" in printed
    predictor = foveate.open_adapter(world / "run", device="cpu")
    with raises_naming(UserError, folder / "cut.png"):
        predictor.predict([folder / "a.png", folder / "cut.png"])
    assert len(predictor.predict([folder / "a.png", folder / "cut.png"], skip_unreadable=True).logits) == 1


def test_a_calibration_stands_beside_the_answers(world: Path, tmp_path: Path) -> None:
    logits = read_logits(world / "run" / "logits-test.npz").logits.astype(np.float64)
    folder = calibrate(tmp_path / "calibration", 2.5, ["top"], ["low", "middle"])
    done = predict(world / "run", world / "photos", "--calibration", folder, "--out", tmp_path / "a.csv", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["gamma"] == 2.5
    rows = read_rows(tmp_path / "a.csv")
    shifted = logits + np.array([0, 0, 2.5])
    names = np.array(["low", "middle", "top"])
    assert [row["class"] for row in rows] == names[logits.argmax(axis=1)].tolist()
    assert [row["calibrated_class"] for row in rows] == names[shifted.argmax(axis=1)].tolist()
    assert [float(row["calibrated_probability"]) for row in rows] == softmax(shifted).max(axis=1).tolist()
    wrong = calibrate(tmp_path / "wrong", 1.0, ["tap"], ["low", "middle"])
    with raises_naming(UserError, wrong, "'tap'", "top"):
        foveate.open_adapter(world / "run", calibration=wrong)
    fewer = calibrate(tmp_path / "fewer", 1.0, ["top"], ["low"])
    with raises_naming(UserError, fewer, "2 classes", "expected 3"):
        foveate.open_adapter(world / "run", calibration=fewer)
    with raises_naming(UserError, "gamma", world / "run", "calibration"):
        foveate.open_adapter(world / "run", gamma=1.0)  # every class had training images


def test_a_merged_and_a_calibrated_folder(world: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["adapt", "merge", str(world / "run"), "--out", str(tmp_path / "merged")])
    assert done.exit_code == 0, (done.output, done.exception)
    logits = read_logits(world / "run" / "logits-test.npz").logits
    merged = foveate.open_adapter(tmp_path / "merged", device="cpu").predict(arrays(world))
    assert merged.classes == ("low", "middle", "top")
    assert np.allclose(merged.logits, logits, atol=1e-4)
    groups = ClassGroups.of([0, 1], absent=[2], classes=3)
    fold(tmp_path / "merged", gamma=1.5, groups=groups, to=tmp_path / "calibrated")
    calibrated = foveate.open_adapter(tmp_path / "calibrated", device="cpu").predict(arrays(world))
    assert np.allclose(calibrated.probabilities, merged.probabilities, atol=1e-5)
    expected = softmax(merged.logits + np.array([0, 0, 1.5]))
    probabilities = calibrated.calibrated_probabilities
    assert probabilities is not None
    assert np.allclose(probabilities, expected, atol=1e-5)
    with raises_naming(UserError, tmp_path / "calibrated", "1.5"):
        foveate.open_adapter(tmp_path / "calibrated", gamma=1.0)


def test_mistakes(world: Path, tmp_path: Path) -> None:
    cases: list[tuple[list[Any], list[str]]] = [
        ([tmp_path, world / "photos"], [str(tmp_path), "config.json"]),
        ([world / "run", tmp_path / "none.jpg"], [str(tmp_path / "none.jpg"), "no such file"]),
        ([world / "run", tmp_path], [str(tmp_path), "has no images"]),
        ([world / "run", world / "photos", "--gamma", "nan"], ["gamma", "nan"]),
    ]
    for arguments, names in cases:
        done = predict(*arguments, "--out", tmp_path / "a.csv")
        assert isinstance(done.exception, UserError), done.exception
        assert all(name in str(done.exception) for name in names), done.exception
        assert not (tmp_path / "a.csv").exists()
    predictor = foveate.open_adapter(world / "run", device="cpu")
    with raises_naming(UserError, "images", "single image"):
        predictor.predict(world / "photos" / "00.png")  # type: ignore[arg-type]
    with raises_naming(UserError, "float32", "uint8"):
        predictor.predict([np.zeros((4, 4, 3), np.float32)])
    done = predict(world / "run", world / "photos", "--out", tmp_path)
    assert str(tmp_path) in str(done.exception)


def test_names_of_the_package() -> None:
    import timm

    from foveate import adapt, load_adapter, open_adapter

    assert adapt.open_adapter is open_adapter
    assert adapt.load_adapter is load_adapter
    network = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0).eval()
    assert adapt(network, "bitfit", classes=3)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_example_of_the_docs_runs(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", docs, re.DOTALL) if "open_adapter" in block]
    shutil.copytree(world / "run", tmp_path / "runs" / "adapt-lora")
    for name, photo in (("a.jpg", "00.png"), ("b.jpg", "01.png")):
        Image.open(world / "photos" / photo).save(tmp_path / name, quality=100)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "python.md", "exec"), names)
    assert isinstance(names["predictor"], Predictor)
    assert "(2, 3)" in capsys.readouterr().out


def test_further_classes_and_columns_on_request(world: Path, tmp_path: Path) -> None:
    expected = softmax(read_logits(world / "run" / "logits-test.npz").logits.astype(np.float64))
    out = tmp_path / "a.csv"
    done = predict(world / "run", world / "photos", "--out", out, "--top", 3, "--each-class")
    assert done.exit_code == 0, (done.output, done.exception)
    rows, names = read_rows(out), ("low", "middle", "top")
    ranked = ("class", "probability"), ("top2_class", "top2_probability"), ("top3_class", "top3_probability")
    columns = [name for pair in ranked for name in pair]
    assert list(rows[0]) == ["image", *columns, *(f"probability_{name}" for name in names), "error"]
    for row, values in zip(rows, expected, strict=True):
        assert [float(row[f"probability_{name}"]) for name in names] == values.tolist()
        assert [float(row[column]) for _, column in ranked] == sorted(values.tolist(), reverse=True)
        assert all(float(row[f"probability_{row[name]}"]) == float(row[column]) for name, column in ranked)
    assert "top" in str(predict(world / "run", world / "photos", "--out", out, "--top", 4).exception)


def test_file_names_are_no_formulas(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "=1+1.png").write_bytes((world / "photos" / "00.png").read_bytes())
    (tmp_path / "@cut.png").write_bytes(b"nothing")
    done = predict(world / "run", "=1+1.png", "@cut.png", "--out", "a.csv")
    assert done.exit_code == 0, (done.output, done.exception)
    assert [row["image"] for row in read_rows(tmp_path / "a.csv")] == ["'=1+1.png", "'@cut.png"]
