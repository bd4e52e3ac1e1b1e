"""Gamma in a checkpoint's bias: timm, transformers, half precisions, sharded files; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from foveate.calibrate.fold import checkpoint_tensors, find_bias, fold
from foveate.core.errors import UserError
from foveate.metrics.class_groups import ClassGroups

GROUPS = ClassGroups.of([0, 2, 3], classes=5)
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def changed(before: Path, after: Path) -> list[str]:
    """Names of tensors whose bytes differ; headers and sizes must be the same."""
    assert sorted(p.name for p in before.glob("*.safetensors")) == sorted(p.name for p in after.glob("*.safetensors"))
    for one, other in zip(sorted(before.glob("*.safetensors")), sorted(after.glob("*.safetensors")), strict=True):
        a, b = one.read_bytes(), other.read_bytes()
        header = 8 + int.from_bytes(a[:8], "little")
        assert len(a) == len(b)
        assert a[:header] == b[:header], "header, metadata and order stay"
    pairs = zip(checkpoint_tensors(before).values(), checkpoint_tensors(after).values(), strict=True)
    return [x.name for x, y in pairs if x.file.read_bytes()[x.start : x.end] != y.file.read_bytes()[y.start : y.end]]


@pytest.mark.parametrize(("name", "head"), [("test_vit", "head"), ("test_resnet", "fc"), ("test_convnext", "head.fc")])
def test_timm_folders(name: str, head: str, tmp_path: Path) -> None:
    import timm

    folder = tmp_path / "model"
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"architecture": name, "num_classes": 5, "pretrained_cfg": {"classifier": head}})
    )
    done = fold(folder, gamma=2.5, groups=GROUPS, to=tmp_path / "calibrated")
    assert done.tensor == f"{head}.bias"
    assert done.largest_error < 1e-6
    assert changed(folder, done.path) == [f"{head}.bias"]
    assert json.loads((done.path / "calibration.json").read_text())["gamma"] == 2.5
    pixels = torch.randn(2, 3, 160, 160)
    model.eval()
    other = timm.create_model(name, pretrained=False, num_classes=5).eval()
    other.load_state_dict(load_file(done.path / "model.safetensors"), strict=True)
    with torch.inference_mode():
        difference = other(pixels) - model(pixels)
    expected = torch.zeros(2, 5)
    expected[:, [1, 4]] = 2.5
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)


def transformers_models() -> dict[str, PreTrainedModel]:
    labels = {"num_labels": 5}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**NARROW, "intermediate_size": 16}
    clip = CLIPConfig(vision_config=vision, text_config=text, projection_dim=8, **labels)
    return {
        "vit": ViTForImageClassification(ViTConfig(**NARROW, intermediate_size=16, **labels)),
        "dinov2": Dinov2ForImageClassification(Dinov2Config(**NARROW, mlp_ratio=1, **labels)),
        "clip": CLIPForImageClassification(clip),
    }


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip"])
def test_transformers_folders(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers_models()[name].eval()
    model.save_pretrained(tmp_path / "model")
    done = fold(tmp_path / "model", gamma=-1.5, groups=GROUPS, to=tmp_path / "calibrated")
    assert changed(tmp_path / "model", done.path) == ["classifier.bias"]
    other = type(model).from_pretrained(done.path).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        difference = other(pixel_values=pixels).logits - model(pixel_values=pixels).logits
    expected = torch.zeros(2, 5)
    expected[:, [1, 4]] = -1.5
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)


def test_sharded_checkpoints(tmp_path: Path) -> None:
    model = transformers_models()["vit"]
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    done = fold(tmp_path / "model", gamma=1.0, groups=GROUPS, to=tmp_path / "calibrated")
    assert changed(tmp_path / "model", done.path) == ["classifier.bias"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_round_to_nearest(dtype: torch.dtype, tmp_path: Path) -> None:
    bias = torch.tensor([0.1, -0.2, 3.0, 0.4, 0.0123], dtype=dtype)
    save_file({"x.weight": torch.zeros(5, 2, dtype=dtype), "x.bias": bias}, tmp_path / "m.safetensors")
    done = fold(tmp_path / "m.safetensors", gamma=4.3337, groups=GROUPS, to=tmp_path / "c.safetensors", head="x")
    found = load_file(done.path)["x.bias"]
    exact = bias.double()
    exact[[1, 4]] += 4.3337
    torch.testing.assert_close(found, exact.to(dtype), atol=0, rtol=0)
    assert done.largest_error == pytest.approx(float((found.double() - exact).abs().max()), abs=1e-15)


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    """Each sum lies just off the middle of two bfloat16 numbers, by less than float32 can tell."""
    bias = torch.tensor([1.0, 1.0, -1.0, 1.0, 2.0**-133], dtype=torch.bfloat16)
    save_file({"x.weight": torch.zeros(5, 2, dtype=torch.bfloat16), "x.bias": bias}, tmp_path / "m.safetensors")
    for number, (absent, gamma, wanted) in enumerate(
        (
            (1, 2.0**-8 + 2.0**-30, 1 + 2.0**-7),
            (1, 2.0**-8, 1.0),
            (1, 3 * 2.0**-8 - 2.0**-30, 1 + 2.0**-7),
            (1, 3 * 2.0**-8, 1 + 2.0**-6),
            (2, -(2.0**-8) - 2.0**-30, -1 - 2.0**-7),
            (4, 2.0**-134 - 2.0**-160, 2.0**-133),
        )
    ):
        groups = ClassGroups.of([0, 3], absent=[absent], classes=5)
        done = fold(
            tmp_path / "m.safetensors", gamma=gamma, groups=groups, to=tmp_path / f"{number}.safetensors", head="x"
        )
        assert float(load_file(done.path)["x.bias"][absent]) == wanted, (absent, gamma)


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"

    def refused(
        words: str, *, where: Path = path, gamma: float = 1.0, groups: ClassGroups = GROUPS, head: str | None = None
    ) -> None:
        with pytest.raises(UserError, match=words):
            fold(where, gamma=gamma, groups=groups, to=tmp_path / "new", head=head)
        assert not (tmp_path / "new").exists()
        assert not list(tmp_path.glob(".*"))

    save_file({"head.weight": torch.zeros(5, 2)}, path)
    refused("classifier 'head' has no bias, so gamma cannot be folded in")
    save_file({"heads.weight": torch.zeros(5, 2)}, path)
    refused("no classifier found.*--head")
    refused("no tensor 'head.weight'. Did you mean 'heads'", head="head")
    save_file({"head.weight": torch.zeros(7, 2), "head.bias": torch.zeros(7)}, path)
    refused(r"'head.bias' has shape \[7\], but gamma was found for 5 classes")
    save_file({"head.weight": torch.zeros(5, 2), "head.bias": torch.zeros(5, dtype=torch.int32)}, path)
    refused(r"F64, F32, F16 or BF16 \(got I32\)")
    save_file({"head.weight": torch.zeros(5, 2), "head.bias": torch.zeros(5, dtype=torch.float16)}, path)
    refused("leaves the range of F16", gamma=1e6)
    save_file({"head.weight": torch.zeros(5, 2), "head.bias": torch.zeros(5, dtype=torch.bfloat16)}, path)
    refused("leaves the range of BF16", gamma=3.4e38)
    refused("leaves the range of BF16", gamma=-1e300)
    refused("must be a finite number", gamma=float("inf"))
    refused("needs at least one absent class", groups=ClassGroups.of(range(5), classes=5))
    refused("no such file or folder", where=tmp_path / "nothing")
    (tmp_path / "m.bin").write_bytes(b"")
    refused("pickles are not read", where=tmp_path / "m.bin")
    (tmp_path / "empty").mkdir()
    refused(r"no \*.safetensors file", where=tmp_path / "empty")
    for content in (b"", b"\xff" * 7, (10**9).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(content)
        refused("not a safetensors file")
    save_file({"head.weight": torch.zeros(5, 2), "head.bias": torch.zeros(5)}, path)
    both = tmp_path / "both"
    both.mkdir()
    for name in ("a", "b"):
        shutil.copy(path, both / f"{name}.safetensors")
    refused("'head.weight' is both in a.safetensors and b.safetensors|'head.bias' is both", where=both)
    shutil.copy(path, tmp_path / "there")
    with pytest.raises(UserError, match="exists already"):
        fold(path, gamma=1.0, groups=GROUPS, to=tmp_path / "there")


def test_a_header_that_reaches_behind_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    # Twenty bytes of data stand behind the header, which claims the bytes after them, too.
    header = json.dumps({"head.bias": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
    with pytest.raises(UserError, match="'head.bias' lies outside the file"):
        checkpoint_tensors(path)


def test_other_biases_keep_their_bits(tmp_path: Path) -> None:
    bias = torch.tensor([-0.0, 1.0, float(np.float32(1e-42)), 2.0, 3.0])
    save_file({"head.weight": torch.zeros(5, 2), "head.bias": bias}, tmp_path / "m.safetensors")
    done = fold(tmp_path / "m.safetensors", gamma=1.0, groups=GROUPS, to=tmp_path / "c.safetensors")
    a, b = (find_bias(path, classes=5) for path in (tmp_path / "m.safetensors", done.path))
    before, after = (np.frombuffer(one.file.read_bytes()[one.start : one.end], "<u4") for one in (a, b))
    assert (before != after).tolist() == [False, True, False, False, True]
