"""What a user may get wrong with adapters, and the sentence that he gets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from adapt.test_adapt_train import backbone as backbone  # noqa: PLC0414 - a fixture
from adapt.towers import CLASSES, pixels, tower
from foveate.adapt import registry
from foveate.adapt.adapter import group_names
from foveate.adapt.backbones import map_backbone
from foveate.adapt.folder import load_adapter, save_adapter
from foveate.adapt.heads import ZeroShotHead
from foveate.adapt.load_backbone import load_backbone, parse_backbone
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.registry import check_carried, find_obstacle, get_method, parse_settings
from foveate.cli.main import cli
from foveate.core.errors import UserError
from naming import raises_naming


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"method": "lor"}, "Did you mean 'lora'"),
        ({}, "field 'method' is missing"),
        ({"method": "lora", "rnak": 3}, "Did you mean 'rank'"),
        ({"method": "lora", "rank": 0}, "greater than or equal to 1"),
        ({"method": "lora", "rank": 33}, "allowed are 1 to 32"),
        ({"method": "lora", "alpha": 3}, "no effect"),
        ({"method": "adaptformer", "rank": 64}, "the width of this backbone"),
        ({"method": "repadapter", "rank": 3}, "must divide the rank"),
        ({"method": "vpt-deep", "last_blocks": 9}, "at most 3"),
        ({"method": "lora", "last_blocks": 9}, "at most 3"),
        ({"method": "subset", "blocks": [3]}, "0 to 2"),
        ({"method": "subset", "parts": []}, "at least one"),
        ({"method": "subset", "pattern": "blocks[.]7.*"}, "matches no tensor"),
        ({"method": "subset", "pattern": "("}, "not a regular expression"),
        ({"method": "subset", "pattern": ".*", "blocks": [1]}, "give pattern, or blocks and parts"),
        ({"method": "linear", "rank": 3}, "unknown field 'rank'"),
    ],
)
def test_options(config: dict[str, Any], sentence: str) -> None:
    model = tower("timm")
    with pytest.raises(UserError, match=sentence):
        adapt(model, config, classes=CLASSES)
    adapt(model, "linear", classes=CLASSES)  # a refused method leaves the model as it was


def test_models_and_heads() -> None:
    with raises_naming(UserError, "torch.nn.modules.linear.Linear"):
        adapt(nn.Linear(2, 2), "linear", classes=2)
    with pytest.raises(UserError, match="classes is missing"):
        adapt(tower("timm"), "linear")
    with raises_naming(UserError, "classes", "0"):
        adapt(tower("timm"), "linear", classes=0)
    with raises_naming(UserError, "9", "32"):
        adapt(tower("timm"), "linear", head=nn.Linear(9, 3))
    with raises_naming(UserError, "3"):
        adapt(tower("timm"), "linear", head=nn.Linear(32, 3), classes=4)
    with raises_naming(UserError, "nn.Linear"):
        adapt(tower("timm"), "linear", head=nn.ReLU())
    adapted = adapt(tower("timm"), "lora", classes=3)
    with pytest.raises(UserError, match="adapted already"):
        AdaptedModel(adapted.model)
    with pytest.raises(UserError, match="adapter name"):
        adapted.add("linear", classes=3, name="a.b")
    with pytest.raises(UserError, match="no branch"):
        adapt(tower("timm"), "bitfit", classes=3).set_strength(0.5)
    for strength in (-3, 2.0, float("nan")):
        with raises_naming(UserError, "strength", str(strength), "0", "1"):
            adapted.set_strength(strength)
    adapted.merge()
    with pytest.raises(UserError, match="unmerge it"):
        adapted.use("default")
    with pytest.raises(UserError, match="unmerge it"):
        adapted.set_strength(0.5)


def test_convolutional_networks_take_what_has_no_blocks() -> None:
    import timm

    images = pixels(dtype=torch.float32)
    for name in ("linear", "full", "bitfit", "layernorm"):
        model = timm.create_model("resnet10t", num_classes=4).eval()
        expected = model(images)
        adapted = adapt(model, name)
        adapted.train()
        adapted(images).sum().backward()
        with adapted.disable():
            assert torch.equal(adapted.eval()(images), expected)
    model = timm.create_model("resnet10t", num_classes=4)
    with raises_naming(UserError, "ResNet", "targets=[conv]"):
        adapt(model, {"method": "lora", "targets": ["q", "v"]})
    adapt(model, {"method": "subset", "pattern": "layer4.*"})


def test_lora_takes_convolutions_where_nobody_named_layers_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    adapted = adapt(timm.create_model("resnet10t", num_classes=4).eval(), {"method": "lora", "rank": 2})
    settings = adapted.adapter().settings
    # Named, so that the folder of the adapter says what was taken.
    assert settings.model_dump()["targets"] == ["conv"]
    assert settings.model_dump()["rank"] == 2
    assert "targets=[conv]" in capsys.readouterr().err
    assert any(name.endswith("conv1.0") or "conv" in name for name in adapted.adapter().matched_names(adapted.backbone))


def test_square_projections_are_refused_where_a_block_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method may need them alone, without `projections`."""
    mapped = map_backbone(tower("timm"))
    bare = replace(mapped, blocks=tuple(replace(block, qkv=(), letters=(), width=0) for block in mapped.blocks))
    method = replace(get_method("fact-tk"), needs=("blocks", "square"))
    assert find_obstacle(method, mapped) == ""
    monkeypatch.setattr(registry, "get_method", lambda name: method)
    with raises_naming(UserError, "fact-tk", "projections of q, k and v", "has none"):
        check_carried(parse_settings("fact-tk"), bare)


def test_a_gated_mlp_is_refused_where_both_layers_are_changed() -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, use_swiglu_ffn=True
    )
    for name in ("fact-tt", "ssf", "repadapter", "difffit"):
        with pytest.raises(UserError, match="MLP"):
            adapt(Dinov2Model(config), {"method": name}, classes=3)
    adapt(Dinov2Model(config), "lora", classes=3)


def test_ssf_without_a_bias_cannot_be_merged() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, qkv_bias=False, num_classes=3)
    with raises_naming(UserError, "blocks.0.attn.qkv"):
        adapt(model, "ssf").merge()


def test_ssf_cannot_be_merged_across_a_norm_of_patches() -> None:
    from functools import partial

    from timm.models.vision_transformer import VisionTransformer

    def built(**more: Any) -> Any:
        shape = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "pre_norm": True}
        return VisionTransformer(**shape, num_classes=3, **more).double().eval()

    images = pixels(dtype=torch.float64)
    adapted = adapt(built(), "ssf").eval()  # without a bias and without a norm, positions take the shift
    with torch.no_grad():
        expected = adapted(images)
        adapted.merge()
        assert float((adapted(images) - expected).abs().max()) < 1e-12
    with raises_naming(UserError, "patch_embed.proj"):
        adapt(built(embed_norm_layer=partial(nn.LayerNorm, eps=1e-6)), "ssf").merge()


def test_a_networks_own_classifier_is_copied_only_where_no_classes_are_asked_for() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    own = model.head.weight.detach().clone()
    with_own = adapt(model, "linear")
    assert torch.equal(with_own.head.weight, own)
    assert "default" in with_own.first_heads
    fresh = adapt(with_own.detach(), "linear", classes=3)
    assert not torch.equal(fresh.head.weight, own)
    assert "default" not in fresh.first_heads
    other = adapt(fresh.detach(), "linear", classes=4)  # as for any other number
    assert "default" not in other.first_heads


def saved(folder: Path) -> Path:
    return save_adapter(adapt(tower("timm"), {"method": "lora", "rank": 4}, classes=CLASSES), folder)


def test_folders(tmp_path: Path) -> None:
    with raises_naming(UserError, "nothing"):
        load_adapter(tower("timm"), tmp_path / "nothing")
    folder = saved(tmp_path / "adapter")
    with raises_naming(UserError, "Did you mean", tmp_path / "adapter"):
        load_adapter(tower("timm"), tmp_path)
    with raises_naming(UserError, folder, "here transformers"):
        load_adapter(tower("clip"), folder)
    other = tower("timm")
    with torch.no_grad():
        other.norm.weight[0] += 1
    with raises_naming(UserError, folder, "weights", "other_weights=True"):
        load_adapter(other, folder)
    load_adapter(other, folder, other_weights=True)


def test_other_statistics_of_batch_norms_are_refused(tmp_path: Path) -> None:
    import timm

    def network(**more: float) -> Any:
        torch.manual_seed(0)
        model = timm.create_model("resnet10t", num_classes=4)
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name.endswith("running_mean"):
                    value.add_(more.get("mean", 0.0))
                elif name.endswith("num_batches_tracked"):
                    value.add_(int(more.get("batches", 0)))
        return model

    folder = save_adapter(adapt(network(), "bitfit"), tmp_path)
    load_adapter(network(), folder)
    load_adapter(network(batches=3), folder)  # which no output depends on
    with raises_naming(UserError, folder, "batch-norm statistics", "other_weights=True"):
        load_adapter(network(mean=1.0), folder)
    load_adapter(network(mean=1.0), folder, other_weights=True)


BAD_TENSORS = pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda tensors: tensors.pop("adapter.blocks.0.a.weight"), ("missing", "blocks.0.a")),
        (lambda tensors: tensors.update(more=torch.zeros(1)), ("unexpected", "more")),
        (lambda tensors: tensors.update({"head.bias": torch.zeros(9)}), ("head.bias", "9")),
        (lambda tensors: tensors["head.bias"].fill_(float("nan")), ("head.bias", "NaN")),
    ],
)


@BAD_TENSORS
def test_tensors(tmp_path: Path, change: Any, names: tuple[str, ...]) -> None:
    folder = saved(tmp_path)
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.safetensors")
    model = tower("timm")
    before = model.state_dict()
    with raises_naming(UserError, folder / "adapter.safetensors", *names):
        load_adapter(model, folder)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def refused(names: tuple[object, ...], *arguments: object) -> None:
    """Through the command line: the error, and nothing written."""
    done = CliRunner().invoke(cli, ["adapt", "merge", *map(str, arguments)])
    assert isinstance(done.exception, UserError), (done.output, done.exception)
    assert all(str(name) in str(done.exception) for name in names), str(done.exception)
    assert not Path(str(arguments[-1])).exists()


@BAD_TENSORS
def test_tensors_through_the_command_line(change: Any, names: tuple[str, ...], backbone: Path, tmp_path: Path) -> None:
    opened = load_backbone(parse_backbone(str(backbone)))
    adapted = adapt(opened.model, {"method": "lora", "rank": 4}, classes=CLASSES)
    adapted.info["default"] = {"backbone": opened.settings}
    folder = save_adapter(adapted, tmp_path / "adapter")
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.safetensors")
    refused(names, folder, "--out", tmp_path / "merged")


def test_backbones_through_the_command_line(backbone: Path, tmp_path: Path) -> None:
    folder, to = saved(tmp_path / "adapter"), tmp_path / "merged"
    refused((folder, "--backbone"), folder, "--out", to)
    refused((folder, "blocks 3", "12"), folder, "--backbone",
            "timm:vit_tiny_patch16_224", "--out", to)  # fmt: skip
    refused((tmp_path / "none.x",), folder, "--backbone", tmp_path / "none.x", "--out", to)
    refused((tmp_path / "nothing",), tmp_path / "nothing", "--out", to)


def test_damaged_files(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    for field, value, name in (
        ("kind", "x", "'kind'"),
        ("format", 9, "9"),
        ("format", 2, "'format'"),
        ("strength", None, "'strength'"),
        ("settings", {"method": "lora", "rank": 4, "more": 1}, "'more'"),
        ("head", {"kind": "linear"}, "'head'"),
    ):
        (folder / "adapter.json").write_text(json.dumps({**config, field: value}), encoding="utf-8")
        with raises_naming(UserError, "adapter.json" if field != "settings" else "lora", name):
            load_adapter(tower("timm"), folder)
    (folder / "adapter.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "adapter.safetensors").write_bytes(b"no tensors")
    with raises_naming(UserError, folder / "adapter.safetensors"):
        load_adapter(tower("timm"), folder)


def test_a_zero_shot_head_is_saved_too(tmp_path: Path) -> None:
    head = ZeroShotHead(torch.randn(4, 12), torch.randn(12, 32))
    adapted = adapt(tower("timm"), "bitfit", head=head).eval()
    with torch.no_grad():
        expected = adapted(pixels())
        assert torch.equal(load_adapter(tower("timm"), save_adapter(adapted, tmp_path))(pixels()), expected)


def test_numbers_in_names_are_joined_only_where_they_follow_one_another() -> None:
    assert group_names(["blocks.0.mlp", "blocks.1.mlp", "norm.bias"]) == ["blocks.{0..1}.mlp", "norm.bias"]
    assert group_names(["blocks.0.mlp", "blocks.2.mlp"]) == ["blocks.{0,2}.mlp"]


@pytest.mark.parametrize("targets", [["q", "blocks.*.attn.proj"], ["conv"]])
def test_last_blocks_that_limit_nothing_are_warned_of(targets: list[str]) -> None:
    with pytest.warns(UserWarning, match=f"no effect on targets {re.escape(targets[-1])}") as found:
        adapt(tower("timm"), {"method": "lora", "targets": targets, "last_blocks": 1}, classes=3)
    assert len(found) == 1
