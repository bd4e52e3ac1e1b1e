"""Tokens of any layer, of any grid, of ViTs and convolutional networks: equal to each library's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import pixels, save_clip, save_dinov2, save_siglip, save_timm
from PIL import Image
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.encoder import ImageFeatures
from foveate.vision.hf.clip import TransformersClipImageEncoder
from foveate.vision.hf.dinov2 import Dinov2ImageEncoder
from foveate.vision.hf.siglip import SiglipImageEncoder
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.open_clip.towers import OpenClipImageEncoder
from foveate.vision.registry import seeded
from foveate.vision.timm import TimmImageEncoder
from naming import raises_naming

RESNET = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "head_width": 8}
TINY_VIT = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}


def output_of(module: nn.Module, encoder: nn.Module, x: Tensor) -> Tensor:
    """What a module gives while the encoder runs, as a hook sees it."""
    outputs: list[Any] = []
    with torch.no_grad(), module.register_forward_hook(lambda *arguments: outputs.append(arguments[-1])):
        encoder(x)
    return outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]


def build(kind: str, folder: Path) -> tuple[Any, Any, nn.Module, int]:
    """An encoder, its transformer blocks, its final norm, and its number of prefix tokens."""
    if kind == "clip":
        encoder: Any = TransformersClipImageEncoder(source=str(save_clip(folder)))
        return encoder, encoder.trunk.encoder.layers, encoder.trunk.post_layernorm, 1
    if kind == "siglip":
        encoder = SiglipImageEncoder(source=str(save_siglip(folder)))
        return encoder, encoder.trunk.encoder.layers, encoder.trunk.post_layernorm, 0
    if kind == "dinov2":
        encoder = Dinov2ImageEncoder(source=str(save_dinov2(folder, registers=2)), embed_dim=8)
        return encoder, encoder.trunk.encoder.layer, encoder.trunk.layernorm, 3
    if kind == "timm":
        save_timm(folder, reg_tokens=2, no_embed_class=True)
        encoder = TimmImageEncoder(source=str(folder), embed_dim=8)
        return encoder, encoder.trunk.blocks, encoder.trunk.norm, 3
    with seeded(0):
        encoder = OpenClipImageEncoder(model="ViT-B-16", embed_dim=24, vision=TINY_VIT)
    return encoder, encoder.visual.transformer.resblocks, encoder.visual.ln_post, 1


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "timm", "open_clip"])
def test_hidden_layers_are_the_outputs_of_the_blocks(kind: str, tmp_path: Path) -> None:
    encoder, blocks, norm, extra = build(kind, tmp_path)
    encoder.eval()
    for layer in (-1, -2):
        expected = output_of(blocks[layer], encoder, pixels())
        with torch.no_grad():
            hidden = encoder.hidden_features(pixels(), layer=layer)
            torch.testing.assert_close(hidden.tokens, expected[:, extra:], atol=1e-6, rtol=0)
            assert (hidden.grid, hidden.pooled, hidden.prefix) == (encoder.grid, None, 0)
            normed = encoder.hidden_features(pixels(), layer=layer, norm=True)
            torch.testing.assert_close(normed.tokens, norm(expected)[:, extra:], atol=1e-6, rtol=0)
            if extra:
                whole = encoder.hidden_features(pixels(), layer=layer, prefix=True)
                torch.testing.assert_close(whole.tokens, expected, atol=1e-6, rtol=0)
                assert whole.prefix == extra
    if not extra:
        with raises_naming(UserError, kind, "prefix"):
            encoder.hidden_features(pixels(), prefix=True)
    with raises_naming(UserError, -9, len(blocks)):
        encoder.hidden_features(pixels(), layer=-9)
    with raises_naming(UserError, "layer 0"):
        encoder.hidden_features(pixels(), layer=0)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "timm"])
@torch.no_grad()
def test_grids_need_not_be_square(kind: str, tmp_path: Path) -> None:
    square, *_ = build(kind, tmp_path)
    hidden = square.eval().hidden_features(pixels(24, 40))
    assert hidden.grid == (3, 5)
    assert hidden.tokens.shape[1] == 15
    wide = type(square)(source=str(tmp_path), image_size=(24, 40), geometry="stretch", **(
        {"embed_dim": 8} if kind in ("timm", "dinov2") else {}
    )).eval()  # fmt: skip
    assert (wide.grid, wide.preprocess.size, wide.feature_shape) == ((3, 5), (24, 40), (3, 24, 40))
    torch.testing.assert_close(wide(pixels(24, 40)).pooled.shape, square(pixels(24, 40)).pooled.shape)
    image = Image.fromarray(np.zeros((24, 40, 3), np.uint8))
    assert wide(wide.preprocess.pixels(image)[None]).grid == (3, 5)


@torch.no_grad()
def test_open_clip_has_the_grid_of_its_input() -> None:
    with seeded(0):
        encoder = OpenClipImageEncoder(model="ViT-B-16", embed_dim=24, vision=TINY_VIT, image_size=(24, 40)).eval()
    x = pixels(24, 40)
    assert encoder(x).grid == encoder.hidden_features(x).grid == encoder.grid == (3, 5)
    assert torch.equal(encoder(x).pooled, encoder.visual(x))
    assert encoder.preprocess.size == (24, 40)


def test_a_frozen_trunk_gives_hidden_layers_without_gradient(tmp_path: Path) -> None:
    frozen = TransformersClipImageEncoder(source=str(save_clip(tmp_path)), frozen=True)
    through = TransformersClipImageEncoder(source=str(tmp_path)).eval()
    hidden = frozen.hidden_features(pixels())
    assert not hidden.tokens.requires_grad
    torch.testing.assert_close(hidden.tokens, through.hidden_features(pixels()).tokens, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("model", "channels"), [("resnet18", 256), ("mobilenetv3_small_050", 24)])
@pytest.mark.parametrize("sides", [(64, 64), (64, 96)])
@torch.no_grad()
def test_a_convolutional_network_of_timm_gives_its_maps(sides: tuple[int, int], model: str, channels: int) -> None:
    with seeded(0):
        encoder = TimmImageEncoder(model=model, embed_dim=8, image_size=64).eval()
    x = pixels(*sides)
    found = encoder(x)
    theirs = encoder.trunk.forward_features(x)
    assert found.grid == (sides[0] // 32, sides[1] // 32)
    assert torch.equal(found.tokens.transpose(1, 2).reshape(theirs.shape), theirs)
    assert torch.equal(found.pooled, encoder.proj(encoder.trunk(x)))
    torch.testing.assert_close(encoder.project(found.tokens.mean(dim=1)), found.pooled, atol=1e-5, rtol=0)
    stage = encoder.hidden_features(x, layer=-2)
    assert (stage.grid, stage.tokens.shape[2]) == ((sides[0] // 16, sides[1] // 16), channels)
    assert torch.equal(encoder.hidden_features(x, layer=-1).tokens, found.tokens)
    with raises_naming(UserError, "norm", "timm"):
        encoder.hidden_features(x, norm=True)


@torch.no_grad()
def test_a_frozen_resnet_is_cached(tmp_path: Path) -> None:
    with seeded(0):
        encoder = TimmImageEncoder(model="resnet18", embed_dim=8, image_size=64, frozen=True)
    rows = encoder.frozen_features(pixels(64, 64))
    assert rows.shape == (3, *encoder.feature_shape)
    torch.testing.assert_close(encoder(rows).tokens, encoder.trunk.forward_features(pixels(64, 64)).flatten(2).mT,
                               atol=4e-3, rtol=4e-3)  # fmt: skip


@torch.no_grad()
def test_resnet_50_has_the_layout_of_the_paper() -> None:
    encoder = TimmImageEncoder(model="resnet50", embed_dim=8, image_size=(64, 96)).eval()
    assert (encoder.width, encoder.grid) == (2048, (2, 3))
    shapes = [encoder.hidden_features(pixels(64, 96, 1), layer=layer).tokens.shape[2] for layer in (-1, -2, -3, -4)]
    assert shapes == [2048, 1024, 512, 256]


@torch.no_grad()
def test_a_resnet_of_open_clip_gives_its_maps() -> None:
    with seeded(0):
        encoder = OpenClipImageEncoder(model="RN50", embed_dim=24, vision=RESNET).eval()
    x = pixels(64, 64)
    found = encoder(x)
    assert torch.equal(found.pooled, encoder.visual(x))
    assert (found.grid, found.tokens.shape, encoder.width) == ((2, 2), (3, 4, 256), 256)
    assert torch.equal(encoder.hidden_features(x, layer=-1).tokens, found.tokens)
    assert encoder.hidden_features(x, layer=-2).grid == (4, 4)
    assert encoder.project(found.tokens[:, 0]).shape == (3, 24)
    pool = encoder.visual.attnpool
    pool.positional_embedding.zero_()
    same = found.tokens[:, :1].expand(-1, 4, -1)
    expected = pool(same.transpose(1, 2).reshape(3, 256, 2, 2))
    torch.testing.assert_close(encoder.project(same[:, 0]), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_lite0_gives_the_maps_of_its_network() -> None:
    encoder = Lite0Encoder(image_size=64, precision="float32").eval()
    x = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    coarse, fine = encoder.hidden_features(x, layer=-1), encoder.hidden_features(x, layer=-2)
    assert (coarse.grid, coarse.tokens.shape) == ((2, 3), (2, 6, 320))
    assert (fine.grid, fine.tokens.shape) == ((4, 6), (2, 24, 112))
    with raises_naming(UserError, "layer -3", "lite0", "-2"):
        encoder.hidden_features(x, layer=-3)


def test_features_know_their_grid() -> None:
    features = ImageFeatures.from_map(torch.arange(24.0).view(1, 2, 3, 4))
    assert features.grid == (3, 4)
    assert features.tokens[0, 5].tolist() == [5.0, 17.0]
    with pytest.raises(AssertionError):
        ImageFeatures(torch.zeros(1, 5, 2), (2, 2))
    assert ImageFeatures(torch.zeros(1, 5, 2), (2, 2), prefix=1).pooled is None
