"""Networks of timm beside plain ViTs through the command line; untrained networks by name; what a merged one says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from adapt.compared import stripes
from adapt.towers import pixels, tower
from foveate.adapt.export import open_adapted
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.networks import open_network
from foveate.cli.main import cli
from foveate.core.errors import UserError
from foveate.vision.classifier import open_classifier
from naming import raises_naming

CNN = "timm:resnet10t"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["adapt", *map(str, arguments)], catch_exceptions=True)


def train(folder: Path, backbone: object, method: str, *more: object) -> Result:
    data = folder / "stripes.npz"
    if not data.exists():
        stripes(data, splits=(4, 2, 2))
    return run("train", "--backbone", backbone, "--collection", data, "--method", method, "--epochs", 2, "--device",
               "cpu", "--quiet", "--out", folder / method, "backbone.image_size=32", *more)  # fmt: skip


@pytest.mark.parametrize("method", ["linear", "bitfit"])
def test_a_convolutional_network_is_tuned_merged_and_calibrated(method: str, tmp_path: Path) -> None:
    import timm

    done = train(tmp_path, CNN, method, "--seed", 3)
    assert done.exit_code == 0, (done.output, done.exception)
    # Its untrained network is drawn by the seed of the run, and drawn alike where it is opened again.
    done = run("merge", tmp_path / method, "--out", tmp_path / "merged", "--quiet")
    assert done.exit_code == 0, (done.output, done.exception)
    assert f"{method} on {CNN}, as merged" in done.output
    adapted, _, _ = open_adapted(tmp_path / method)
    opened = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    classifier = open_classifier(tmp_path / "merged", device="cpu")
    with torch.no_grad():
        assert torch.allclose(opened(pixels()), adapted(pixels()), atol=2e-5)
        assert torch.allclose(classifier(pixels()), adapted(pixels()), atol=2e-5)
    assert list(classifier.names) == ["low", "middle", "top"]
    assert classifier.preprocess is not None
    assert classifier.preprocess.size == 32
    # Adapted once more, from the folder: the classifier is left out, all else is loaded.
    again = load_backbone(parse_backbone(str(tmp_path / "merged")))
    with torch.no_grad():
        assert torch.equal(again.model.eval()(pixels()), adapted.features(pixels()))
    assert again.preprocess.size == 32


def test_what_needs_blocks_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path, CNN, "adaptformer")
    assert "a ResNet has none" in str(done.exception)


def test_other_tensors_and_other_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, CNN, "linear").exit_code == 0
    assert run("merge", tmp_path / "linear", "--out", tmp_path / "merged", "--quiet").exit_code == 0
    path = tmp_path / "merged" / "model.safetensors"
    state = load_file(path)
    lacking = {key: value for key, value in state.items() if key != "bn1.bias"}
    for change, words in (
        ({**state, "strange.weight": torch.zeros(1)}, r'Unexpected key\(s\) in state_dict: "strange.weight"'),
        (lacking, r'Missing key\(s\) in state_dict: "bn1.bias"'),
        ({**state, "bn1.bias": torch.zeros(3)}, "size mismatch for bn1.bias"),
    ):
        save_file(change, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=words):
            load_backbone(parse_backbone(str(tmp_path / "merged")))
    with raises_naming(UserError, "imagesize", "image_size"):
        open_network({"kind": "timm", "model": "resnet10t", "imagesize": 3}, seed=0)
    capsys.readouterr()
    with raises_naming(UserError, "test_vitt", "test_vit"):
        load_backbone({"kind": "timm", "model": "test_vitt"})
    assert "untrained" not in capsys.readouterr().err
    with raises_naming(UserError, "resnet10"):
        load_backbone({"kind": "timm", "model": "resnet10"})
    assert open_network({"kind": "timm", "model": "test_vit"}, seed=0) is None, "that is a plain ViT"


def test_an_untrained_network_says_so_and_is_drawn_again_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from timm.models.vision_transformer import VisionTransformer

    first = load_backbone({"kind": "timm", "model": "test_vit"}, seed=5)
    assert re.search("timm:test_vit is untrained; give NAME.TAG", capsys.readouterr().err)
    assert isinstance(first.model, VisionTransformer)
    again, other = load_backbone(first.settings), load_backbone({"kind": "timm", "model": "test_vit"})
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in first.model.state_dict().items())
    assert not torch.equal(first.model.patch_embed.proj.weight, other.model.patch_embed.proj.weight)
    for method, layers in (("full", 1), ("bitfit", 0)):
        done = train(tmp_path, "lite0", method, "--seed", 2, f"backbone.layers={layers}", "backbone.width=32")
        assert done.exit_code == 0, (done.output, done.exception)
        done = run("merge", tmp_path / method, "--out", tmp_path / f"merged-{method}", "--json", "--quiet")
        assert json.loads(done.stdout)["difference"] < 2e-5


def test_a_merged_vit_takes_the_size_that_it_was_tuned_at(tmp_path: Path) -> None:
    done = train(tmp_path, "timm:test_vit", "bitfit")
    assert done.exit_code == 0, (done.output, done.exception)
    assert run("merge", tmp_path / "bitfit", "--out", tmp_path / "merged", "--quiet").exit_code == 0
    adapted, _, _ = open_adapted(tmp_path / "bitfit")
    classifier = open_classifier(tmp_path / "merged", device="cpu")
    assert classifier.preprocess is not None
    assert classifier.preprocess.size == 32
    with torch.no_grad():
        assert torch.allclose(classifier(pixels()), adapted(pixels()), atol=2e-5)


@pytest.mark.parametrize("family", ["clip", "clip_projected", "dinov2"])
def test_a_folder_of_transformers_is_tuned_merged_and_tuned_again(family: str, tmp_path: Path) -> None:
    """CLIP's vision tower with and without its projection; the merged folder brings its preprocessing."""
    from transformers import AutoImageProcessor

    tower(family).save_pretrained(tmp_path / "network")
    kind = "BitImageProcessor" if family == "dinov2" else "CLIPImageProcessor"
    numbers = {"image_mean": (0.4, 0.5, 0.6), "image_std": (0.2, 0.3, 0.2), "resample": 2}
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    said = {"image_processor_type": kind, **numbers, **size}
    (tmp_path / "network" / "preprocessor_config.json").write_text(json.dumps(said))
    done = train(tmp_path, tmp_path / "network", "lora", "rank=4")
    assert done.exit_code == 0, (done.output, done.exception)
    done = run("merge", tmp_path / "lora", "--out", tmp_path / "merged", "--json", "--quiet")
    assert json.loads(done.stdout)["difference"] < 2e-5
    processor = AutoImageProcessor.from_pretrained(tmp_path / "merged").to_dict()
    assert {name: processor[name] for name in said} == said
    assert "whole images and bars at the sides" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    adapted, opened, _ = open_adapted(tmp_path / "lora")
    again = load_backbone(parse_backbone(str(tmp_path / "merged")))
    assert again.preprocess == opened.preprocess
    done = train(tmp_path, tmp_path / "merged", "linear")
    assert done.exit_code == 0, (done.output, done.exception)
    probe, _, _ = open_adapted(tmp_path / "linear")
    with torch.no_grad():
        assert torch.allclose(probe.features(pixels()), adapted.features(pixels()), atol=2e-5)
