"""DINOv2 of transformers, with and without registers: patch tokens only, equal to the library's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from foreign import WIDTH, pixels, save_dinov2

from foveate.core.errors import UserError
from foveate.vision.hf.dinov2 import Dinov2ImageEncoder
from naming import raises_naming


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("sides", [(32, 32), (48, 48), (24, 40)])
@torch.no_grad()
def test_tokens_equal_transformers_bit_for_bit(tmp_path: Path, registers: int, sides: tuple[int, int]) -> None:
    from transformers import AutoModel

    folder = save_dinov2(tmp_path, registers=registers)
    encoder = Dinov2ImageEncoder(source=str(folder), embed_dim=8).eval()
    expected = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels(*sides))
    found = encoder(pixels(*sides))
    assert torch.equal(found.tokens, expected.last_hidden_state[:, 1 + registers :])
    assert torch.equal(found.pooled, encoder.proj(expected.pooler_output))
    assert found.grid == (sides[0] // 8, sides[1] // 8)
    preprocess = encoder.preprocess
    assert (preprocess.size, preprocess.mean[0], preprocess.interpolation) == (32, 0.485, "bicubic")
    assert (encoder.width, encoder.embed_dim) == (WIDTH, 8)


@pytest.mark.parametrize("registers", [0, 3])
def test_trained_frozen_and_rebuilt(tmp_path: Path, registers: int) -> None:
    folder = save_dinov2(tmp_path, registers=registers)
    encoder = Dinov2ImageEncoder(source=str(folder), embed_dim=8, pool="mean", checkpointing=True).train()
    found = encoder(pixels())
    torch.testing.assert_close(found.pooled, encoder.project(found.tokens.mean(dim=1)), atol=1e-6, rtol=0)
    (found.pooled.sum() + found.tokens.square().sum()).backward()
    assert not [name for name, one in encoder.named_parameters() if one.requires_grad and one.grad is None]
    again = Dinov2ImageEncoder(**json.loads(json.dumps(encoder.architecture())), embed_dim=8, pool="mean").eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(pixels()).tokens, encoder.eval()(pixels()).tokens)
    frozen = Dinov2ImageEncoder(source=str(folder), embed_dim=8, frozen=True)
    assert {name for name, one in frozen.named_parameters() if one.requires_grad} == {"proj.weight"}
    rows = frozen.frozen_features(pixels())
    torch.testing.assert_close(frozen(rows).tokens, encoder(pixels()).tokens, atol=4e-3, rtol=0)


def test_the_cache_knows_what_is_pooled(tmp_path: Path) -> None:
    folder = str(save_dinov2(tmp_path))
    names = {
        Dinov2ImageEncoder(source=folder, embed_dim=8, frozen=True, pool=pool).fingerprint() for pool in ("cls", "mean")
    }
    assert len(names) == 2


def test_mistakes_are_explained(tmp_path: Path) -> None:
    with raises_naming(UserError, "dinov2", "max"):
        Dinov2ImageEncoder(source=str(tmp_path), embed_dim=8, pool="max")
    with raises_naming(UserError, "config.json"):
        Dinov2ImageEncoder(source=str(tmp_path), embed_dim=8)
