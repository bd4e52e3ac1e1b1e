"""Towers of multimodal models: every family's hidden tokens through connectors, and LLaVA's own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATCH, SIZE, pixels, save_clip, save_dinov2, save_open_clip, save_siglip, save_timm

from foveate.core.errors import UserError
from foveate.vision.connectors import build_connector
from foveate.vision.hidden_layer import build_tower
from naming import raises_naming

SAVERS = {
    "clip": save_clip,
    "siglip": save_siglip,
    "dinov2": lambda folder: save_dinov2(folder, registers=2),
    "timm": save_timm,
    "open_clip": save_open_clip,
}
CONNECTORS: dict[str, tuple[dict[str, Any], int]] = {
    "mlp": ({}, 16),
    "pixel_shuffle": ({}, 4),
    "cabstractor": ({"num_tokens": 9, "hidden_width": 16, "depth": 1}, 9),
}


@pytest.mark.parametrize("kind", sorted(SAVERS))
def test_tower_to_connector(kind: str, tmp_path: Path) -> None:
    SAVERS[kind](tmp_path)
    tower = build_tower({"kind": kind, "source": str(tmp_path), "layer": -2}).eval()
    assert tower.grid == (SIZE // PATCH, SIZE // PATCH)
    with torch.no_grad():
        tokens = tower(pixels()).tokens
    assert tokens.shape == (3, 16, tower.width)
    for name, (options, count) in CONNECTORS.items():
        connector = build_connector(name, options, in_width=tower.width, out_width=12, grid=tower.grid)
        assert connector(tokens).shape == (3, count, 12)
    assert not [name for name in tower.state_dict() if ".proj" in name and "trunk" not in name and "visual" not in name]


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "timm"])
def test_cached_tokens_are_those_of_the_pass(kind: str, tmp_path: Path) -> None:
    SAVERS[kind](tmp_path)
    source = {"kind": kind, "source": str(tmp_path)}
    through = build_tower({**source, "layer": -2}).eval()
    frozen = build_tower({**source, "layer": -2, "frozen": True}).train()
    rows = frozen.frozen_features(pixels())
    assert rows.shape == (3, *frozen.feature_shape)
    assert rows.dtype == frozen.feature_dtype
    assert torch.equal(frozen(rows).tokens, frozen(pixels()).tokens)
    torch.testing.assert_close(frozen(rows).tokens, through(pixels()).tokens, atol=4e-3, rtol=4e-3)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    last = build_tower({**source, "layer": -1, "norm": True, "frozen": True})
    assert len({frozen.fingerprint(), last.fingerprint(), through.fingerprint()}) == 3
    assert through.fingerprint() == ""


def test_llava_reads_the_same_tokens(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    save_clip(tmp_path)
    tower = build_tower({"kind": "clip", "source": str(tmp_path), "layer": -2}).eval()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig.from_pretrained(tmp_path),
        text_config=LlamaConfig(
            hidden_size=12, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
        ),
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.model.vision_tower.load_state_dict(tower.encoder.trunk.state_dict())  # type: ignore[union-attr]
    connector = build_connector("mlp", {}, in_width=tower.width, out_width=12, grid=tower.grid)
    connector.load_state_dict(theirs.model.multi_modal_projector.state_dict())
    with torch.no_grad():
        expected = theirs.get_image_features(pixel_values=pixels()).pooler_output
        tokens = connector(tower(pixels()).tokens)
    torch.testing.assert_close(tokens, torch.stack(list(expected)), atol=1e-6, rtol=0)


def test_gradients_reach_a_tower_that_is_trained(tmp_path: Path) -> None:
    save_clip(tmp_path)
    tower = build_tower({"kind": "clip", "source": str(tmp_path), "layer": -2}).train()
    assert torch.equal(tower.frozen_features(pixels()), pixels())
    tower(pixels()).tokens.square().sum().backward()
    layers = tower.encoder.trunk.encoder.layers  # type: ignore[union-attr]
    assert layers[0].mlp.fc1.weight.grad.any()
    assert layers[1].mlp.fc1.weight.grad is None


def test_unusable_layers_are_named(tmp_path: Path) -> None:
    save_clip(tmp_path)
    source = {"kind": "clip", "source": str(tmp_path)}
    assert build_tower(source).embed_dim == 24
    with raises_naming(UserError, "tower.norm", "layer"):
        build_tower({**source, "norm": True})
    for layer in (0, "-2", True):
        with raises_naming(UserError, "tower.layer", repr(layer)):
            build_tower({**source, "layer": layer})
    tower = build_tower({**source, "layer": -5})
    with raises_naming(UserError, "layer -5", "clip", 2):
        tower(pixels())
    with raises_naming(UserError, "layer -5", "joint"):
        tower.project(torch.zeros(1, 32))
