"""ViTs of timm: equal to the library's own forward for every pooling, from folder, file and untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import WIDTH, pixels, save_timm

from foveate.core.errors import UserError
from foveate.vision.timm import TimmImageEncoder
from naming import raises_naming

POOLS: list[dict[str, Any]] = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "map", "class_token": False},
    {"reg_tokens": 2, "no_embed_class": True},
]


@pytest.mark.parametrize("arguments", POOLS, ids=str)
@torch.no_grad()
def test_tokens_and_pooling_equal_timm(tmp_path: Path, arguments: dict[str, Any]) -> None:
    theirs = save_timm(tmp_path, **arguments)
    encoder = TimmImageEncoder(source=str(tmp_path), embed_dim=8).eval()
    found = encoder(pixels())
    features = theirs.forward_features(pixels())
    assert torch.equal(found.tokens, theirs.fc_norm(features[:, theirs.num_prefix_tokens :]))
    assert torch.equal(found.pooled, encoder.proj(theirs.forward_head(features, pre_logits=True)))
    assert found.tokens.shape == (3, 16, WIDTH)
    assert encoder.project(found.tokens[:, 0]).shape == (3, 8)
    assert encoder.preprocess.mean == theirs.pretrained_cfg["mean"]
    assert encoder(pixels(24, 40)).grid == (3, 5)


@torch.no_grad()
def test_another_size_resamples_positions_as_timm_does(tmp_path: Path) -> None:
    theirs = save_timm(tmp_path)
    encoder = TimmImageEncoder(source=str(tmp_path), embed_dim=8, image_size=48).eval()
    assert (encoder.grid, encoder.preprocess.size) == ((6, 6), 48)
    theirs.set_input_size((48, 48))
    expected = theirs.forward_features(pixels(48, 48))[:, 1:]
    torch.testing.assert_close(encoder(pixels(48, 48)).tokens, expected, atol=1e-6, rtol=0)


def test_the_size_of_the_weights_counts_not_the_architectures(tmp_path: Path) -> None:
    theirs = save_timm(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    del said["model_args"]["img_size"]
    said["pretrained_cfg"]["input_size"] = [3, 32, 32]
    (tmp_path / "config.json").write_text(json.dumps(said))
    encoder = TimmImageEncoder(source=str(tmp_path), embed_dim=8)
    assert encoder.preprocess.size == 32
    assert torch.equal(encoder.trunk.pos_embed, theirs.pos_embed)
    again = TimmImageEncoder(**encoder.architecture(), embed_dim=8)
    again.load_state_dict(encoder.state_dict())


@pytest.mark.parametrize("arguments", POOLS, ids=str)
def test_trained_frozen_and_rebuilt(tmp_path: Path, arguments: dict[str, Any]) -> None:
    save_timm(tmp_path, **arguments)
    encoder = TimmImageEncoder(source=str(tmp_path), embed_dim=8, checkpointing=True).train()
    found = encoder(pixels())
    (found.pooled.sum() + found.tokens.square().sum()).backward()
    assert not [name for name, one in encoder.named_parameters() if one.grad is None]
    again = TimmImageEncoder(**json.loads(json.dumps(encoder.architecture())), embed_dim=8).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(pixels()).pooled, encoder.eval()(pixels()).pooled)
    assert again.preprocess == encoder.preprocess
    frozen = TimmImageEncoder(source=str(tmp_path), embed_dim=8, frozen=True)
    rows = frozen.frozen_features(pixels())
    torch.testing.assert_close(frozen(rows).tokens, encoder(pixels()).tokens, atol=4e-3, rtol=0)


def test_a_bare_file_and_an_untrained_architecture(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    untrained = TimmImageEncoder(model="vit_tiny_patch16_224", embed_dim=8)
    assert untrained.grid == (14, 14)
    assert untrained.fresh_parts is None
    path = tmp_path / "weights.safetensors"
    save_file({name: value + 0.5 for name, value in untrained.trunk.state_dict().items()}, path)
    filled = TimmImageEncoder(model="vit_tiny_patch16_224", source=str(path), embed_dim=8)
    torch.testing.assert_close(filled.trunk.cls_token, untrained.trunk.cls_token + 0.5)
    with raises_naming(UserError, path, "model"):
        TimmImageEncoder(source=str(path), embed_dim=8)
    with raises_naming(UserError, path):
        TimmImageEncoder(model="vit_small_patch16_224", source=str(path), embed_dim=8)


def test_mistakes_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises_naming(UserError, "vit_tiny_patch16_224"):
        TimmImageEncoder(model="vit_tiny_patch16_22", embed_dim=8)
    with raises_naming(UserError, "swin_tiny_patch4_window7_224", "ViTs"):
        TimmImageEncoder(model="swin_tiny_patch4_window7_224", embed_dim=8)
    with raises_naming(UserError, "timm", "source"):
        TimmImageEncoder(embed_dim=8)
    pickle = tmp_path / "weights.pth"
    pickle.write_bytes(b"")
    with raises_naming(UserError, pickle):
        TimmImageEncoder(model="vit_tiny_patch16_224", source=str(pickle), embed_dim=8)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with raises_naming(UserError, "timm/vit_base_patch16_224.augreg_in21k"):
        TimmImageEncoder(source="vit_base_patch16_224.augreg_in21k", embed_dim=8)
    with raises_naming(UserError, "augreg_in21", "Did you mean"):
        TimmImageEncoder(source="vit_base_patch16_224.augreg_in21", embed_dim=8)
