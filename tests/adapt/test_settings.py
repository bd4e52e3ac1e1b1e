"""Every method: its defaults, its first values as its paper declares them, and its formula written out once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from adapt.towers import tower
from foveate.adapt.backbones import map_backbone
from foveate.adapt.methods.bottlenecks import (
    AdaptformerAdapter,
    AdaptformerSettings,
    Bottleneck,
    ConvBranch,
    ConvpassAdapter,
    ConvpassSettings,
    HoulsbyAdapter,
    HoulsbySettings,
    LinearBottleneck,
    PfeifferAdapter,
    PfeifferSettings,
    RepadapterAdapter,
    RepadapterSettings,
)
from foveate.adapt.methods.fact import FactAdapter, FactTkAdapter, FactTkSettings, FactTtAdapter, FactTtSettings
from foveate.adapt.methods.lora import LoraAdapter, LoraSettings
from foveate.adapt.methods.scales import DifffitAdapter, SsfAdapter, SsfSettings
from foveate.adapt.methods.subsets import BitfitAdapter, FullAdapter, LayernormAdapter, LinearAdapter, SubsetAdapter
from foveate.adapt.methods.vpt import PromptAdapter, VptDeepAdapter, VptShallowAdapter, VptShallowSettings
from foveate.adapt.registry import get_method, method_names

ADAPTERS = {
    "adaptformer": AdaptformerAdapter,
    "bitfit": BitfitAdapter,
    "convpass": ConvpassAdapter,
    "difffit": DifffitAdapter,
    "fact-tk": FactTkAdapter,
    "fact-tt": FactTtAdapter,
    "full": FullAdapter,
    "houlsby": HoulsbyAdapter,
    "layernorm": LayernormAdapter,
    "linear": LinearAdapter,
    "lora": LoraAdapter,
    "pfeiffer": PfeifferAdapter,
    "repadapter": RepadapterAdapter,
    "ssf": SsfAdapter,
    "subset": SubsetAdapter,
    "vpt-deep": VptDeepAdapter,
    "vpt-shallow": VptShallowAdapter,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "adaptformer": {"rank": 64, "scale": 0.1, "dropout": 0.1},
    "pfeiffer": {"rank": 64, "scale": 0.1, "dropout": 0.1, "layerscale": "once"},
    "houlsby": {"rank": 64, "scale": 0.1, "dropout": 0.1, "layerscale": "once"},
    "convpass": {"rank": 8, "scale": 10.0, "dropout": 0.1, "convolution": "identity"},
    "repadapter": {"rank": 8, "scale": 1.0, "groups": 2, "dropout": 0.1},
    "fact-tt": {"rank": 8, "scale": 1.0, "dropout": 0.1},
    "fact-tk": {"rank": 8, "scale": 1.0, "dropout": 0.1},
    "lora": {"rank": 8, "scale": "one", "dropout": 0.1},
    "vpt-shallow": {"prompts": 10, "keep_prompts": True, "dropout": 0.1},
    "vpt-deep": {"prompts": 10, "dropout": 0.1},
}


def test_every_method_has_its_adapter() -> None:
    assert set(ADAPTERS) == set(method_names())
    for name, adapter in ADAPTERS.items():
        assert get_method(name).build is adapter
        assert get_method(name).name == name.replace("-", "_")
        assert get_method(name).mergeable == (not adapter.why_not_mergeable)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name: str) -> None:
    settings = get_method(name).settings().model_dump()
    assert {key: settings[key] for key in DEFAULTS[name]} == DEFAULTS[name]
    assert settings.get("init", "declared") == "declared"


def test_declared_first_values() -> None:
    backbone = map_backbone(tower("timm"))
    lora = LoraAdapter(LoraSettings(rank=4), backbone)
    assert not lora.pair(0).b.weight.any()
    assert lora.pair(0).a.weight.abs().max() <= 1 / 32**0.5
    parallel = AdaptformerAdapter(AdaptformerSettings(rank=4), backbone).blocks["0"]
    behind = PfeifferAdapter(PfeifferSettings(rank=4), backbone).blocks["0"]
    for branch in (parallel, behind):
        assert isinstance(branch, Bottleneck)
        assert not branch.up.weight.any()
        assert not branch.up.bias.any()
        assert branch.down.weight.any()
    houlsby = HoulsbyAdapter(HoulsbySettings(rank=4), backbone).mlp["0"]
    assert isinstance(houlsby, Bottleneck)
    assert houlsby.up.weight.any()
    assert 0 < houlsby.up.bias.abs().max() < 1e-5
    ssf = SsfAdapter(SsfSettings(), backbone)
    scales = torch.cat([value.detach() for value in ssf.scales.values()])
    assert abs(float(scales.mean()) - 1) < 0.01
    assert 0.015 < float(scales.std()) < 0.025
    prompts = VptShallowAdapter(VptShallowSettings(prompts=50), backbone)
    assert isinstance(prompts, PromptAdapter)
    limit = (6 / (3 * 8**2 + 32)) ** 0.5
    assert 0.9 * limit < float(prompts.prompts.abs().max()) <= limit
    for fact in (FactTtAdapter(FactTtSettings(rank=4), backbone), FactTkAdapter(FactTkSettings(rank=4), backbone)):
        assert isinstance(fact, FactAdapter)
        assert not fact.v.weight.any()
        assert fact.u.weight.any()


def test_the_convolution_passes_everything_on_at_first() -> None:
    branch = ConvBranch(32, ConvpassSettings(rank=4), (4, 4), 1)
    low = torch.randn(2, 4, 4, 4)
    assert torch.allclose(branch.conv(low), low)


def test_a_grouped_bottleneck_is_its_two_matrices() -> None:
    bottleneck = LinearBottleneck(32, RepadapterSettings(rank=4, groups=2, scale=0.7, dropout=0.0))
    with torch.no_grad():
        for parameter in bottleneck.parameters():
            parameter.normal_()
        z = torch.randn(3, 5, 32)
        matrix, constant = bottleneck.matrices(0.5)
        assert torch.allclose(bottleneck(z, strength=0.5), F.linear(z, matrix, constant), atol=1e-5)
    by_convolution = F.conv1d(
        F.linear(z, bottleneck.a_weight, bottleneck.a_bias).transpose(1, 2),
        bottleneck.b_weight[..., None],
        bottleneck.b_bias,
        groups=2,
    ).transpose(1, 2)
    assert torch.allclose(bottleneck(z, strength=1.0), z + 0.7 * by_convolution, atol=1e-5)
