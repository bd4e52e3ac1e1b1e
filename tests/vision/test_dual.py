"""Two towers: each reads its views as it was trained, tokens and map are put together as documented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.vision.anyres_map import fuse_views, merge_tiles, order_tokens
from foveate.vision.canvas import render_views
from foveate.vision.dual import DualTower, build_dual_tower
from foveate.vision.regions.sampler import RegionSampler
from foveate.vision.tiling import ImageSize, TilePlan, plan_tiles, preset_options
from naming import raises_naming

TILE = 32
VIT = {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def clip(width: int, side: int = TILE, mean: float = 0.5) -> dict[str, Any]:
    config = {
        **VIT,
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 24,
        "image_size": side,
    }
    return {
        "kind": "clip", "config": config, "layer": -1,
        "preprocess": {"size": side, "mean": [mean] * 3, "std": [0.5] * 3, "geometry": "stretch"},
    }  # fmt: skip


def dinov2(width: int, side: int = TILE) -> dict[str, Any]:
    config = {**VIT, "model_type": "dinov2", "hidden_size": width, "mlp_ratio": 2, "image_size": side}
    return {
        "kind": "dinov2", "config": config, "layer": -1,
        "preprocess": {"size": side, "mean": [0.485, 0.456, 0.406], "std": [0.2] * 3, "geometry": "stretch"},
    }  # fmt: skip


def view_image(*, grids: tuple[tuple[int, int], ...] = ((2, 3),)) -> tuple[torch.Tensor, TilePlan]:
    plan = plan_tiles(ImageSize(60, 90), preset_options("ferret-v2", tile=TILE, grids=grids))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    return render_views(image, plan), plan


@torch.no_grad()
def test_one_tower_twice_is_the_map_of_one_tower() -> None:
    dual = build_dual_tower(clip(16), clip(16), out=12).eval()
    dual.tiles.load_state_dict(dual.overview.state_dict())
    dual.copy_projector()
    assert all(
        torch.equal(a, b) for a, b in zip(dual.projector_g.parameters(), dual.projector_l.parameters(), strict=True)
    )
    views, plan = view_image()
    tokens = dual.overview(views).tokens
    features = dual(views, plan)
    torch.testing.assert_close(features.map_CHW, fuse_views(tokens, plan, (4, 4)))
    torch.testing.assert_close(features.tokens_TE, order_tokens(dual.projector_g(tokens), plan, (4, 4)))


@pytest.mark.parametrize("fusion", ["encoder", "projector"])
@torch.no_grad()
def test_towers_of_other_widths_sizes_and_normalization(fusion: str) -> None:
    dual: DualTower = build_dual_tower(clip(16, side=40), dinov2(24), out=12, fusion=fusion).eval()
    views, plan = view_image()
    features = dual(views, plan)
    assert features.tokens_TE.shape == (25 + 6 * 16, 12)
    assert features.map_CHW.shape == (24 if fusion == "encoder" else 12, 8, 12)
    assert dual.map_width == features.map_CHW.shape[0]
    # Tiles are those of the second tower alone, normalized as it was trained.
    normalized = dual.tiles.preprocess.normalize(views[1:])
    projected = dual.projector_l(dual.tiles(normalized).tokens)
    torch.testing.assert_close(features.tokens_TE[25:], merge_tiles(projected, plan, (4, 4)).flatten(1).T)
    sampler = RegionSampler(width=dual.map_width, out=5, num_points=16, anchors=(4,), neighbors=(3,))
    assert sampler([features.map_CHW], [[PixelBox(3, 3, 40, 50)]], sizes=[(60, 90)]).shape == (1, 5)


def test_gradients_reach_all_parts() -> None:
    dual = build_dual_tower(clip(16), dinov2(24), out=12)
    views, plan = view_image()
    features = dual(views, plan)
    (features.tokens_TE.square().sum() + features.map_CHW.square().sum()).backward()
    for part in (dual.adapter_g, dual.adapter_l, dual.projector_g, dual.projector_l):
        assert all(value.grad is not None and value.grad.any() for value in part.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with raises_naming(UserError, 16, 24):
        build_dual_tower(clip(16), dinov2(24), out=12).copy_projector()
    with raises_naming(UserError, "pooled"):
        build_dual_tower(clip(16), clip(16), out=12, connector={"kind": "pooled", "side": 2})
    views, plan = view_image(grids=((1, 1),))
    with raises_naming(UserError, "views", "single_overview"):
        build_dual_tower(clip(16), clip(16), out=12)(views, plan)
