"""EfficientNet-Lite0 as a backbone: the package's network, with every layer tunable."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from foveate.adapt.load_backbone import load_backbone
from foveate.adapt.model import adapt
from foveate.core.errors import UserError
from foveate.vision.lite0 import load_lite0
from naming import raises_naming


def test_its_maps_are_those_of_the_frozen_encoder() -> None:
    network = load_backbone({"kind": "lite0"}).model.eval()
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        _, coarse = load_lite0()(pixels)
        maps: list[torch.Tensor] = []
        # The encoder stops in front of the last convolution.
        hook = network.conv_head.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        features = network(pixels)
        hook.remove()
    assert features.shape == (2, 1280)
    torch.testing.assert_close(maps[0], coarse, rtol=1e-3, atol=1e-3)


LORA = {"method": "lora", "targets": ["conv"]}


@pytest.mark.parametrize(("method", "tuned"), [("linear", 0), ("bitfit", 1), ("layernorm", 1), ("full", 1), (LORA, 1)])
def test_what_tunes_it(method: str | dict[str, Any], tuned: int) -> None:
    network = load_backbone({"kind": "lite0", "image_size": 64})
    assert network.preprocess.size == 64
    adapted = adapt(network.model, method, classes=3)
    assert (adapted.count_parameters().trained > 0) == bool(tuned)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(adapted(pixels), torch.tensor([0, 2])).backward()
    assert all(value.grad is not None for value in adapted.parameters() if value.requires_grad)


def test_fields_of_the_encoder_say_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    from foveate.core.progress import configure

    configure(quiet=False)
    load_backbone({"kind": "lite0", "layers": 1, "width": 32})
    assert "drawn at random" in capsys.readouterr().err
    with raises_naming(UserError, "layer", "layers"):
        load_backbone({"kind": "lite0", "layer": 1})
    assert json.dumps(load_backbone({"kind": "lite0"}).settings) == '{"kind": "lite0"}'
