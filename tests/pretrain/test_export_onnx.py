"""ONNX graphs in onnxruntime: the results of the model, at other batch sizes than they were made with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from exported import BOXES, METRICS, OWNERS, noise, opened, run_card, saved

from foveate.core.errors import UserError
from foveate.pretrain.export import export
from foveate.vision.lite0 import Lite0Encoder
from naming import raises_naming


def run(path: Path, **inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(np.asarray(one)) for one in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


LITE0: dict[str, Any] = {
    "image_encoder": {
        "kind": "lite0",
        "model": None,
        "vision": None,
        "image_size": 64,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "pool": "attention",
    },
    "text_encoder": {"kind": "minilm", "model": "package", "text": None},
}


def without_nones(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: {k: v for k, v in part.items() if v is not None} for name, part in changes.items()}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("open_clip-all-post", "lite0")]


@pytest.fixture(scope="module", params=["open_clip", *SLOW])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder and its graphs."""
    place = tmp_path_factory.mktemp("onnx")
    changes: dict[str, Any] = {"regions": {"prompter": {"pool": "prompt"}}}
    if request.param == "open_clip-all-post":
        changes = {"regions": {"prompter": {"pool": "all", "norm": "post", "text_prompt_normalized": True}}}
    if request.param == "lite0":
        import tiny
        from foveate.pretrain.train import build_model
        from foveate.vision.localizer.folder import save_model

        model = build_model(tiny.recipe().model_copy(update=without_nones(LITE0)))
        source = save_model(model, place / "model")
    else:
        source = saved(place / "model", metrics=METRICS, **changes)
    return source, export(source, to="onnx", device="cpu")[0]


@torch.no_grad()
def test_the_graphs_give_what_the_model_gives(folders: tuple[Path, Path]) -> None:
    source, target = folders
    model = opened(source)
    encoder = model.image_encoder
    tolerance = 5e-6
    if isinstance(encoder, Lite0Encoder):
        encoder.precision = "float32"
        tolerance = 2e-3  # features pass through float16: one of its steps
    for batch in (1, 3, 5):
        tokens = model.encode_image_tokens(noise(64, batch))
        embedding_BE, tokens_BLD = run(target / "image.onnx", pixels=noise(64, batch))
        torch.testing.assert_close(tokens_BLD, tokens.tokens, atol=tolerance, rtol=0)
        torch.testing.assert_close(embedding_BE, model.encode_image(tokens), atol=tolerance, rtol=0)
    tokens = model.encode_image_tokens(noise(64, 3))
    texts_RE = model.embed_texts(["a red disc", "x", "a blue square", "y"])
    for count in (1, 4):
        boxes, owners, texts = BOXES[:count], OWNERS[:count], texts_RE[:count]
        z_RE = F.normalize(model.encode_regions(tokens, boxes, owners), dim=-1)
        found = run(target / "regions.onnx", tokens=tokens.tokens, boxes=boxes, image=owners)[0]
        torch.testing.assert_close(found, z_RE, atol=2e-6, rtol=0)
        expected = model.ground(tokens, texts, owners)
        found = run(target / "phrases.onnx", tokens=tokens.tokens, texts=texts, image=owners)[0]
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_files_are_whole_and_the_card_works(folders: tuple[Path, Path]) -> None:
    _, target = folders
    for name in ("image", "regions", "phrases"):
        onnx.checker.check_model(onnx.load(target / f"{name}.onnx"))
    assert json.loads((target / "preprocess.json").read_text())["size"] == 64
    found = run_card(target)
    assert found["embedding"].shape == (1, 32)
    assert np.linalg.norm(found["z"]) == pytest.approx(1.0, abs=1e-5)
    assert found["boxes"].shape == (1, 4)


def test_other_regions_have_no_graph(tmp_path: Path) -> None:
    target, result, _ = export(saved(tmp_path / "model", regions={"method": "roi"}), to="onnx", device="cpu")
    assert result.files == ["README.md", "image.onnx", "preprocess.json"]
    assert "The RoI module is not in these files" in (target / "README.md").read_text()


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = saved(tmp_path / "model"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with raises_naming(UserError, "foveate[onnx]"):
        export(source, to="onnx", device="cpu")
