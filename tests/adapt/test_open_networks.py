"""Folders and names of many libraries through the command line: opened, tuned, merged, opened again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from adapt.compared import stripes
from adapt.networks import NETWORKS
from adapt.towers import shaken
from foveate.adapt.export import open_adapted
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.networks import open_torchvision
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.vision.registry import seeded
from naming import raises_naming

_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.3, 0.2),
    "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 2,
}  # fmt: skip
_SWIN = {"img_size": 32, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 2), "window_size": 4}
_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", _SWIN),
    "dinov3": ("vit_small_patch16_dinov3", _SMALL),
    "beit": ("beit_base_patch16_224", _SMALL),
    "distilled": ("deit_tiny_distilled_patch16_224", _SMALL),
    "sam": ("samvit_base_patch16", {**_SMALL, "window_size": 3, "global_attn_indexes": (1,), "neck_chans": 16}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
}


def save_timm(name: str, folder: Path) -> None:
    import timm
    from timm.models import save_for_hf

    architecture, arguments = TIMM[name]
    with seeded(3):
        model = shaken(timm.create_model(architecture, num_classes=7, **arguments))
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    save_for_hf(model, folder, safe_serialization=True, model_args=arguments)


def save_transformers(name: str, folder: Path) -> None:
    with seeded(3):
        shaken(NETWORKS[f"transformers-{name}"][0]()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapt", *map(str, arguments)], catch_exceptions=True)


def train(folder: Path, backbone: object, *more: object) -> Result:
    data = folder / "stripes.npz"
    if not data.exists():
        stripes(data, splits=(4, 2, 2))
    return run("train", "--backbone", backbone, "--collection", data, "--epochs", 2, "--device", "cpu", "--quiet",
               "--out", folder / "run", *more)  # fmt: skip


FOLDERS: dict[str, Callable[[Path], None]] = {
    **{f"timm-{name}": (lambda folder, name=name: save_timm(name, folder)) for name in TIMM},
    **{
        f"transformers-{name}": (lambda folder, name=name: save_transformers(name, folder))
        for name in ("vit", "vit-classifier", "deit", "beit", "siglip", "siglip-both", "dinov3", "swin", "convnext")
    },
}


QUICK = ("timm-convnext", "timm-swin", "transformers-vit", "transformers-convnext")


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one not in QUICK)) for one in FOLDERS])
def test_a_folder_is_tuned_and_merged(name: str, tmp_path: Path) -> None:
    FOLDERS[name](tmp_path / "network")
    # Without q, k and v the convolutions are taken.
    done = train(tmp_path, tmp_path / "network", "--method", "lora", "rank=2", "--keep", "tuned")
    assert done.exit_code == 0, (done.output, done.exception)
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text(encoding="utf-8"))["settings"]
    assert saved["targets"] == (["conv"] if "convnext" in name else ["q", "k", "v"])
    done = run("merge", tmp_path / "run", "--out", tmp_path / "merged", "--json", "--quiet")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["difference"] < 1e-4
    # The merged folder is a network of its library again, with the features of the tuned one.
    adapted, opened, _ = open_adapted(tmp_path / "run")
    again = load_backbone(parse_backbone(str(tmp_path / "merged")))
    assert again.preprocess == opened.preprocess
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    from foveate.adapt.backbones import map_backbone

    with torch.no_grad():
        expected = adapted.features(pixels)
        assert torch.allclose(map_backbone(again.model.eval()).features(pixels), expected, atol=1e-4)


@pytest.mark.parametrize("method", ["linear", "bitfit"])
def test_a_network_of_torchvision(method: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torchvision.models import shufflenet_v2_x0_5

    with seeded(5):
        network = shufflenet_v2_x0_5()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    done = train(
        tmp_path, "torchvision:shufflenet_v2_x0_5", "--method", method, "backbone.image_size=32",
        f"backbone.source={tmp_path / 'weights.safetensors'}",
    )  # fmt: skip
    assert done.exit_code == 0, (done.output, done.exception)
    adapted, opened, _ = open_adapted(tmp_path / "run")
    assert torch.equal(opened.model.get_parameter("fc.weight"), network.fc.weight)
    assert opened.preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    assert adapted.backbone.family == "torchvision"


def test_names_of_modules_through_the_command_line(tmp_path: Path) -> None:
    save_timm("swin", tmp_path / "network")
    names = ["--modules", "qkv=layers.*.blocks.*.attn.qkv", "--modules", "mlp=layers.*.blocks.*.mlp"]
    done = train(tmp_path, tmp_path / "network", *names, "--method", "lora", "targets=[q,mlp]", "rank=2")
    assert done.exit_code == 0, (done.output, done.exception)
    adapted, _, info = open_adapted(tmp_path / "run")
    assert info["backbone"]["modules"] == dict(name.split("=") for name in names[1::2])
    assert adapted.backbone.norms == "other"
    done = run("merge", tmp_path / "run", "--out", tmp_path / "merged", "--json", "--quiet")
    assert json.loads(done.stdout)["difference"] < 1e-4
    done = train(tmp_path, tmp_path / "network", "--modules", "projj=x", "--method", "lora")
    assert "'projj'" in str(done.exception)
    assert "Did you mean 'proj'" in str(done.exception)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"kind": "torchvision", "model": "resnet51"}, ("resnet51", "Did you mean 'resnet50'")),
        ({"kind": "torchvision"}, ("model", "torchvision:resnet50")),
        ({"kind": "torchvision", "model": "resnet18", "source": "x.pth"}, ("x.pth", "safetensors")),
        ({"kind": "torchvision", "model": "resnet18", "modle": "x"}, ("modle", "model")),
        ({"kind": "torchvision", "model": "maxvit_t", "image_size": 320}, ("image_size", "maxvit_t", "224", "320")),
        ({"kind": "torchvision", "model": "vit_b_32", "image_size": 100}, ("image_size", "vit_b_32", "32", "100")),
        ({"kind": "transformers"}, ("source",)),
    ],
)
def test_what_cannot_be_opened(settings: dict[str, Any], names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        load_backbone(settings)


def test_maxvit_is_built_for_the_size_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    sizes: list[Any] = []

    def get_model(name: str, *, weights: None, input_size: Any) -> torch.nn.Module:
        sizes.append(input_size)
        return torch.nn.Identity()

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    network = open_torchvision({"model": "maxvit_t", "image_size": 448}, seed=0)
    assert (sizes, network.preprocess.size) == ([(448, 448)], 448)


def test_a_model_without_images_is_refused_with_those_that_take_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    with raises_naming(UserError, "BertModel", "ViTModel") as caught:
        load_backbone(parse_backbone(str(tmp_path)))
    assert "Did you mean" not in str(caught.value), "BeitModel is near, and cannot open it"
    # It reads patches with their places, not images.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with raises_naming(UserError, "Siglip2Model", "SiglipVisionModel"):
        load_backbone(parse_backbone(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vitt"}))
    with raises_naming(UserError, "vitt", "Did you mean 'vit'"):
        load_backbone(parse_backbone(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bertt"}))
    with raises_naming(UserError, "bertt", "beit"):
        load_backbone(parse_backbone(str(tmp_path)))
