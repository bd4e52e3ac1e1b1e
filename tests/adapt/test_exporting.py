"""Exports of tuned models, each opened by the library that it is for."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose
from torch import Tensor

from adapt.drawn import write_tables
from adapt.test_adapt_train import _few_penalties as _few_penalties  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from adapt.test_adapt_train import train
from adapt.test_open_networks import _PROCESSOR, save_transformers
from adapt.towers import tower
from foveate import open_adapter
from foveate.cli.main import cli
from foveate.vision.preprocess import render_file

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("drawn") / "data", count=40)


def export(source: Path, to: str, out: Path, *more: object) -> Result:
    return CliRunner().invoke(cli, ["export", str(source), "--to", to, "--out", str(out), *map(str, more)])


def export_well(source: Path, to: str, out: Path) -> dict[str, Any]:
    done = export(source, to, out, "--json", "--quiet")
    assert done.exit_code == 0, (done.output, done.exception)
    result = json.loads(done.stdout.splitlines()[-1])
    # Relative to outputs of up to some hundred degrees; the tests below compare each with its own scale.
    assert result["differences"]["outputs"] < 5e-3
    return result


def assert_equal_outputs(outputs: Any, expected: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    assert_allclose(np.asarray(outputs) / scale, expected / scale, atol=1e-4)


def read_images(folder: Path, drawn: Path, count: int = 20) -> tuple[list[Path], Tensor, np.ndarray]:
    """Files, their normalized pixels, and the outputs of the tuned model."""
    predictor = open_adapter(folder, device="cpu")
    files = sorted((drawn / "images").iterdir())[:count]
    pixels = torch.stack([render_file(file.read_bytes(), predictor.preprocess)[0] for file in files])
    return files, predictor.preprocess.normalize(pixels), predictor.predict(files).logits


TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "multi-label": ("tags.csv", ()),
    "regression": ("angles.csv", ("--field", "degrees", "data.unit=degrees")),
    "ordinal": ("tags.csv", ("--field", "count", "--task", "ordinal")),
    "single-label": ("tags.csv", ("--field", "count")),
}


# One task is enough for what the graph of a method holds.
@pytest.mark.parametrize(("task", "method"), [*((task, "lora") for task in TASKS), ("single-label", "houlsby")])
def test_a_graph_and_its_script_answer_as_the_tuned_model(
    task: str, method: str, backbone: Path, drawn: Path, tmp_path: Path
) -> None:
    """Merged where the method can be; houlsby cannot, so that its branches are in the graph."""
    table, options = TASKS[task]
    folder, out = tmp_path / "run", tmp_path / "onnx"
    train(backbone, drawn / table, folder, "--method", method, "rank=4", *options, "--epochs", 1)
    result = export_well(folder, "onnx", out)
    assert {"model.onnx", "labels.json", "preprocess.json", "predict.py", "README.md"} <= set(result["files"])
    files, _, expected = read_images(folder, drawn)
    script = runpy.run_path(str(out / "predict.py"))
    outputs, probabilities = zip(*(script["predict"](file) for file in files), strict=True)
    assert_equal_outputs(np.stack(outputs), expected)
    answers = open_adapter(folder, device="cpu").predict(files)
    if task in ("single-label", "multi-label"):
        assert_allclose(np.stack(probabilities), answers.probabilities, atol=1e-3)
    text = script["answer"](files[0])
    assert isinstance(text, str)
    if task == "regression":
        assert text.endswith(" degrees")
    if task == "ordinal":
        assert [script["answer"](file) for file in files] == answers.labels


def test_the_script_runs_without_torch(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    train(backbone, drawn / "tags.csv", tmp_path / "run", "--method", "linear")
    export_well(tmp_path / "run", "onnx", tmp_path / "onnx")
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.modules['foveate'] = None; "
        f"sys.argv = ['predict.py', {str(drawn / 'images' / 'tag3.png')!r}]; "
        f"runpy.run_path({str(tmp_path / 'onnx' / 'predict.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(drawn / "images" / "tag3.png"))


def test_a_merged_classifier_becomes_a_graph(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    train(backbone, drawn / "tags.csv", tmp_path / "run", "--method", "lora", "rank=2", "--field", "count")
    timm_folder = tmp_path / "timm"
    export_well(tmp_path / "run", "timm", timm_folder)
    export_well(timm_folder, "onnx", tmp_path / "onnx")
    files, _, expected = read_images(tmp_path / "run", drawn)
    script = runpy.run_path(str(tmp_path / "onnx" / "predict.py"))
    assert_equal_outputs(np.stack([script["predict"](file)[0] for file in files]), expected)
    refused = export(timm_folder, "timm", tmp_path / "again")
    assert "classifier folder already" in str(refused.exception)


def test_timm_opens_the_export_with_equal_logits(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    import timm

    train(backbone, drawn / "tags.csv", tmp_path / "run", "--method", "lora", "rank=2")
    result = export_well(tmp_path / "run", "timm", tmp_path / "timm")
    assert {"config.json", "model.safetensors", "labels.json"} <= set(result["files"])
    _, pixels, expected = read_images(tmp_path / "run", drawn)
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        assert_equal_outputs(model(pixels), expected)
    assert model.pretrained_cfg["label_names"] == ["bar", "disc", "frame"]


@pytest.mark.parametrize("kind", ["vit", "vit-classifier", "dinov2"])
@pytest.mark.parametrize("task", ["single-label", "regression"])
def test_transformers_opens_the_export_with_equal_logits(kind: str, task: str, drawn: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    NETWORKS[kind](tmp_path / "network")
    table, options = TASKS[task]
    train(tmp_path / "network", drawn / table, tmp_path / "run", "--method", "lora", "rank=2", *options, "--epochs", 1)
    result = export_well(tmp_path / "run", "transformers", tmp_path / "hf")
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(result["files"])
    _, pixels, expected = read_images(tmp_path / "run", drawn)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert_equal_outputs(model(pixels).logits, expected)
    if task == "single-label":
        assert model.config.id2label == {0: "0", 1: "1", 2: "2", 3: "3"}
        # Foveate opens the folder, too.
        assert open_adapter(tmp_path / "hf", device="cpu").classes == ("0", "1", "2", "3")
    else:
        assert model.config.problem_type == "regression"


def _save_tower(name: str, folder: Path) -> None:
    tower(name).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR), encoding="utf-8")


NETWORKS: dict[str, Callable[[Path], None]] = {
    "vit": lambda folder: save_transformers("vit", folder),
    "vit-classifier": lambda folder: save_transformers("vit-classifier", folder),
    "dinov2": lambda folder: _save_tower("dinov2", folder),
    "clip": lambda folder: _save_tower("clip", folder),
}


def test_features_that_transformers_has_no_class_for_are_refused(drawn: Path, tmp_path: Path) -> None:
    """CLIP's class reads the mean of the patches; the head was trained on the class token."""
    NETWORKS["clip"](tmp_path / "network")
    train(tmp_path / "network", drawn / "tags.csv", tmp_path / "run", "--method", "linear", "--field", "count")
    refused = export(tmp_path / "run", "transformers", tmp_path / "hf")
    assert "--to onnx" in str(refused.exception)
    assert not (tmp_path / "hf").exists()


def test_what_a_network_cannot_become_is_refused_by_a_sentence(backbone: Path, drawn: Path, tmp_path: Path) -> None:
    train(
        backbone,
        drawn / "tags.csv",
        tmp_path / "timm",
        "--method",
        "houlsby",
        "rank=4",
        "--field",
        "count",
        "--epochs",
        1,
    )
    for to, named in (("timm", "--to onnx"), ("transformers", "--to onnx"), ("tim", "timm"), ("embeddings", "onnx")):
        refused = export(tmp_path / "timm", to, tmp_path / "out")
        assert refused.exit_code != 0
        assert named in str(refused.exception), (to, refused.exception)
    assert not (tmp_path / "out").exists()
    dry = export(tmp_path / "timm", "onnx", tmp_path / "out", "--dry-run")
    assert dry.exit_code == 0
    assert "model.onnx" in dry.output
    assert not (tmp_path / "out").exists()
    option = export(tmp_path / "timm", "onnx", tmp_path / "out", "--split", "test")
    assert "--split" in str(option.exception)
