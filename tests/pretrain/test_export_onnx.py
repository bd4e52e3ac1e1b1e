"""ONNX graphs in onnxruntime: the results of the model, at other batch sizes than they were made with."""

from __future__ import annotations

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import BOXES, METRICS, OWNERS, noise, opened, run_card, saved
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel

from foveate.core.errors import UserError
from foveate.pretrain.export import export
from foveate.pretrain.onnx_parts import TextGraph, encode, find_tokenizer, write_script
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.minilm import MiniLMEncoder, package_folder
from foveate.vision.preprocess import Preprocess, render_file
from naming import raises_naming


def run(path: Path, **inputs: torch.Tensor) -> list[torch.Tensor]:
    import onnxruntime

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


# Runs the script as a user would, and fails if it needs more than it says.
ALONE = """
import json, runpy, sys
import numpy as np
embed = runpy.run_path(sys.argv[1])
images = np.concatenate([embed["embed_image"](path) for path in sys.argv[3:]])
texts = embed["embed_texts"](json.loads(sys.argv[2]))
assert not {"torch", "transformers", "open_clip", "foveate"} & set(sys.modules), sorted(sys.modules)
print(json.dumps([images.tolist(), texts.tolist()]))
"""
QUERIES = ["a red disc", "Ein großer Hund läuft", "赤い船", "it's 42 km & 50%", ""]


def photographs(folder: Path) -> list[Path]:
    """Write a large JPEG that is decoded at a fraction, one that lies on its side, and drawings with alpha."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    files = [folder / name for name in ("large.jpg", "turned.jpg", "alpha.png", "thin.png", "small.webp")]
    coarse.resize((901, 607), Image.Resampling.BICUBIC).save(files[0])
    coarse.resize((640, 333), Image.Resampling.BICUBIC).save(files[1], exif=turned)
    coarse.resize((70, 131)).convert("RGBA").rotate(20).save(files[2])
    coarse.resize((300, 17)).convert("P").save(files[3])
    coarse.save(files[4], lossless=True)
    return files


def check_script(source: Path, target: Path, folder: Path) -> None:
    model = opened(source)
    if isinstance(model.image_encoder, Lite0Encoder):
        model.image_encoder.precision = "float32"
    files = photographs(folder)
    command = [sys.executable, "-c", ALONE, str(target / "embed.py"), json.dumps(QUERIES), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    images, texts = (torch.tensor(vectors) for vectors in json.loads(done.stdout))
    pixels = [render_file(file.read_bytes(), model.image_encoder.preprocess)[0] for file in files]
    with torch.no_grad():
        expected = F.normalize(model.encode_image(torch.stack(pixels)), dim=-1)
    torch.testing.assert_close(images, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(texts, F.normalize(embed_phrases(model, QUERIES), dim=-1), atol=1e-3, rtol=0)


def test_the_script_gives_the_vectors_of_foveate_without_torch(folders: tuple[Path, Path], tmp_path: Path) -> None:
    check_script(*folders, tmp_path)


@pytest.mark.parametrize("geometry", ["letterbox", "center_crop", "stretch"])
def test_the_script_prepares_pixels_as_foveate_does(geometry: str, tmp_path: Path) -> None:
    preprocess = Preprocess(64, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bicubic", geometry=geometry)
    (tmp_path / "preprocess.json").write_text(json.dumps(preprocess.to_dict()))
    write_script(tmp_path / "embed.py", preprocess)
    read_pixels = runpy.run_path(str(tmp_path / "embed.py"))["read_pixels"]
    for file in photographs(tmp_path):
        expected = render_file(file.read_bytes(), preprocess)[0].numpy()
        np.testing.assert_array_equal(read_pixels(file)[0], expected, err_msg=file.name)


def test_sentence_vectors_have_a_graph_and_a_tokenizer(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(package_folder()).save_pretrained(tmp_path / "bert")
    encoder = MiniLMEncoder(embed_dim=8, model=str(tmp_path / "bert"), max_tokens=12, sentence_width=16).eval()
    tokenizer = find_tokenizer(encoder)
    assert tokenizer is not None
    texts = ["a red disc", "", "a " * 40]
    ids_TL, mask_TL = encode(tokenizer, texts)
    assert ids_TL.shape == (3, 12)
    with torch.no_grad():
        unit_TE, raw_TE = TextGraph(encoder)(ids_TL, mask_TL)
        expected = encoder(encoder.frozen_features(texts))
    torch.testing.assert_close(raw_TE, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(unit_TE, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)


def test_files_are_whole_and_the_card_works(folders: tuple[Path, Path]) -> None:
    import onnx

    _, target = folders
    for name in ("image", "text", "regions", "phrases"):
        onnx.checker.check_model(onnx.load(target / f"{name}.onnx"))
    assert json.loads((target / "preprocess.json").read_text())["size"] == 64
    found = run_card(target)
    assert found["embedding"].shape == (1, 32)
    assert found["vectors"].shape == (1, 32)
    assert np.linalg.norm(found["z"]) == pytest.approx(1.0, abs=1e-5)
    assert found["boxes"].shape == (1, 4)


@pytest.mark.slow
def test_other_regions_have_no_graph(tmp_path: Path) -> None:
    target, result, _ = export(saved(tmp_path / "model", regions={"method": "roi"}), to="onnx", device="cpu")
    assert result.files == [
        "README.md", "embed.py", "image.onnx", "preprocess.json", "text.onnx", "tokenizer.json",
    ]  # fmt: skip
    assert "The RoI module is not in these files" in (target / "README.md").read_text()


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = saved(tmp_path / "model"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with raises_naming(UserError, "foveate[onnx]"):
        export(source, to="onnx", device="cpu")
