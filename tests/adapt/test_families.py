"""Networks that people have: every method that one carries keeps its promises there; others are refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.networks import ARCHITECTURES, CLASSES, NETWORKS, OWN_MODULES, Attentive, images, modules, network
from adapt.test_matrix import SMALL, STARTS_AS_IDENTITY, moved
from foveate.adapt.backbone import get_tensor
from foveate.adapt.backbones import map_backbone
from foveate.adapt.folder import load_adapter, save_adapter
from foveate.adapt.model import AdaptedModel, adapt
from foveate.adapt.registry import get_method, list_carried, method_names
from foveate.core.errors import UserError
from naming import raises_naming


def parse_carried(text: str) -> dict[str, Any]:
    """Return the settings that an entry of `list_carried` stands for."""
    name, _, options = text.partition(" with ")
    config: dict[str, Any] = {"method": name, **SMALL.get(name, {})}
    if options.startswith("targets="):
        config["targets"] = re.findall(r"\w+", options.removeprefix("targets="))
    if options == "a pattern":
        config.pop("blocks", None)
        config["pattern"] = ".*weight"
    return config


def carried(name: str) -> list[str]:
    return list_carried(map_backbone(network(name), modules(name)))


def plain(model: nn.Module, backbone: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone.features(pixels)


# Each network with a third of its methods, another third on the next one; all of them are slow.
THIRDS = [(name, index % 3) for index, name in enumerate(NETWORKS)]


@pytest.mark.parametrize(
    ("name", "third"),
    [*THIRDS, *(pytest.param(name, None, marks=pytest.mark.slow) for name in (*NETWORKS, *ARCHITECTURES))],
)
def test_every_method_that_a_network_carries(name: str, third: int | None) -> None:
    """From its start, after a step, merged, disabled, detached: as on the networks of the matrix."""
    pixels = images(name, torch.float64)
    model = network(name, torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = plain(model, map_backbone(model, modules(name)), pixels)
    for text in carried(name)[third :: None if third is None else 3]:
        config = parse_carried(text)
        adapted = adapt(model, config, classes=CLASSES, modules=modules(name)).eval()
        with torch.no_grad():
            same = torch.allclose(adapted.features(pixels), expected, atol=1e-9)
        assert same == (config["method"] in STARTS_AS_IDENTITY), config
        moved(adapted)
        adapted.train().eval()  # some networks cache in evaluation what they compute of their position biases
        with torch.no_grad():
            changed = adapted(pixels)
            assert torch.allclose(changed, adapted.head(expected), atol=1e-6) == (config["method"] == "linear"), config
        F.cross_entropy(adapted.train()(pixels), torch.arange(2)).backward()
        adapted.eval()
        for key, value in adapted.adapter().tensors(adapted.backbone).items():
            assert value.grad is not None, (config, key)
        if get_method(config["method"]).mergeable:
            _check_merging(adapted, pixels, changed, config)
        model = adapted.detach()
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), config
        assert torch.allclose(plain(model, adapted.backbone, pixels), expected, atol=1e-12), config


def _has_biases(adapted: AdaptedModel) -> bool:
    """Whether every layer that takes a shift has a bias."""
    return all(
        get_tensor(adapted.model.get_submodule(name), "bias") is not None
        for name in adapted.adapter().matched_names(adapted.backbone)
        if not name.endswith("in_proj")
    )


def _check_merging(adapted: AdaptedModel, pixels: Tensor, expected: Tensor, config: dict[str, Any]) -> None:
    if config["method"] in ("ssf", "repadapter") and not _has_biases(adapted):
        with raises_naming(UserError, "no bias"):
            adapted.merge()
        return
    adapted.merge()
    with torch.no_grad():
        assert float((adapted(pixels) - expected).abs().max()) < 1e-9 * max(1.0, float(expected.abs().max())), config
    adapted.unmerge()
    with torch.no_grad():
        assert torch.equal(adapted(pixels), expected), config


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_cannot_carry_is_refused_by_name(name: str) -> None:
    """And what the error names instead is what it carries."""
    # "lora with targets=[conv]" is what the lora of the defaults takes there.
    names = {text.partition(" with ")[0] if text.startswith("lora") else text for text in carried(name)}
    model = network(name)
    for method in method_names():
        if method in names or (method == "subset" and "subset with a pattern" in names):
            continue
        with raises_naming(UserError, method, *carried(name)):
            adapt(model, method, classes=CLASSES, modules=modules(name))


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES)])
@pytest.mark.parametrize("method", ["lora", "linear"])
def test_one_step_of_training(name: str, method: str) -> None:
    text = next(text for text in carried(name) if text.partition(" ")[0] == method)
    adapted = adapt(network(name), parse_carried(text), classes=CLASSES, modules=modules(name)).train()
    pixels, labels = images(name, batch=4), torch.zeros(4, dtype=torch.long)
    trained = [value for value in adapted.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(adapted(pixels), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    adapted.eval()
    with torch.no_grad():
        expected = adapted(pixels)
        adapted.merge()
        assert torch.allclose(adapted(pixels), expected, atol=1e-4)


TARGETS = [
    ["q"], ["q", "v"], ["qkv", "proj"], ["attention", "mlp"], ["fc1"], ["fc2", "k"], ["conv"], ["blocks.*.attn.proj"],
]  # fmt: skip


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_lora_on_chosen_layers(targets: list[str], shared: bool, tmp_path: Any) -> None:
    config = {"method": "lora", "rank": 3, "targets": targets, "shared": shared}
    model = network("timm-vit", torch.float64)
    pixels = images("timm-vit", torch.float64)
    with torch.no_grad():
        expected = model(pixels)
    adapted = adapt(model, config).eval()
    with torch.no_grad():
        assert torch.equal(adapted(pixels), expected)
    moved(adapted)
    with torch.no_grad():
        changed = adapted(pixels)
        assert not torch.allclose(changed, expected, atol=1e-7)
        # Rows of a fused layer that no letter names keep their bits.
        if targets == ["q"]:
            before = model.blocks[0].attn.qkv.weight.clone()
            assert torch.equal(adapted.merged_weights()["blocks.0.attn.qkv.weight"][32:], before[32:])
        adapted.merge()
        assert float((adapted(pixels) - changed).abs().max()) < 1e-12
        adapted.unmerge()
    again = load_adapter(network("timm-vit", torch.float64), save_adapter(adapted, tmp_path))
    with torch.no_grad():
        assert torch.equal(again(pixels), changed)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["qkw"], ("qkw", "Did you mean 'qkv'")),
        (["blocks.*.attn.qvk"], ("blocks.*.attn.qvk",)),
        (["blocks.*.norm1"], ("blocks.*.norm1", "LayerNorm")),
        ([], ("targets",)),
    ],
)
def test_targets_that_do_not_fit(targets: list[str], names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        adapt(network("timm-vit"), {"method": "lora", "targets": targets}, classes=CLASSES)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"qkw": "x"}, ("qkw", "qkv")),
        ({"attention": "body.layer.*.self_attn"}, ("modules.attention", "body.layer.*.self_attn")),
        ({"attention": "body"}, ("modules.attention", "*")),
        ({"norm1": "body.*.0.norm1"}, ("modules.norm1", "body.*.0")),
        ({"head": "norm"}, ("modules.head", "norm")),
        ({"proj": "body.layers.*.norm1"}, ("modules.proj", "LayerNorm")),
        ({"tokens": "rows"}, ("rows", "sequence")),
        ({"final_norm": "norms"}, ("modules.final_norm", "Did you mean 'norm'")),
    ],
)
def test_names_that_do_not_fit(change: dict[str, str], names: tuple[str, ...]) -> None:
    with raises_naming(UserError, *names):
        adapt(Attentive(), "lora", classes=CLASSES, modules={**OWN_MODULES, **change})


def test_an_unknown_network_is_told_to_give_names() -> None:
    class VisionTransformers(nn.Module):
        pass

    with raises_naming(UserError, "VisionTransformers", "modules", "Did you mean 'VisionTransformer'"):
        adapt(VisionTransformers(), "lora", classes=CLASSES)


def test_a_named_patch_convolution_sets_the_initial_range_of_prompts() -> None:
    names = {**OWN_MODULES, "tokens": "sequence", "norms": "pre", "patch": "stem"}
    adapted = adapt(Attentive(), {"method": "vpt-deep", "prompts": 50}, classes=CLASSES, modules=names)
    limit = (6 / (3 * 8**2 + 16)) ** 0.5
    assert 0.9 * limit < float(adapted.adapter().prompts.detach().abs().max()) <= limit


def test_names_are_saved_with_the_adapter(tmp_path: Any) -> None:
    adapted = moved(adapt(network("own"), {"method": "lora", "rank": 2}, classes=3, modules=OWN_MODULES)).eval()
    pixels = images("own")
    with torch.no_grad():
        expected = adapted(pixels)
        again = load_adapter(network("own"), save_adapter(adapted, tmp_path))
        assert torch.equal(again(pixels), expected)


def test_a_mask_is_refused_rather_than_ignored() -> None:
    class Masked(Attentive):
        def forward(self, pixels: Tensor) -> Tensor:
            tokens = self.stem(pixels).flatten(2).transpose(1, 2)
            return self.out(self.body(tokens, mask=torch.zeros(16, 16)).mean(dim=1))

    adapted = adapt(Masked(), "lora", classes=3, modules=OWN_MODULES)
    with raises_naming(UserError, "mask"):
        adapted(images("own"))
