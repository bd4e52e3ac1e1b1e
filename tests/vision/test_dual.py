"""Two towers: each reads its views as it was trained, tokens and map are put together as documented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.core.errors import UserError
from foveate.vision.anyres_map import order_rows, order_tokens
from foveate.vision.canvas import render_views
from foveate.vision.connectors import build_connector
from foveate.vision.dual import DualConnector, DualTower
from foveate.vision.hidden_layer import build_tower
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


def build(overview: dict[str, Any], tiles: dict[str, Any], *, out: int = 12) -> tuple[DualTower, DualConnector]:
    tower = DualTower(build_tower(overview), build_tower(tiles, seed=1)).eval()
    projectors = (
        build_connector("mlp", {}, in_width=part.width, out_width=out, grid=part.grid, seed=seed)
        for seed, part in enumerate((tower.overview, tower.tiles))
    )
    return tower, DualConnector(*projectors)


def is_overview(plan: TilePlan) -> torch.Tensor:
    return (torch.tensor(plan.views) == 0).all(dim=1)


@torch.no_grad()
def test_one_tower_twice_is_one_tower() -> None:
    tower, connector = build(clip(16), clip(16))
    tower.tiles.load_state_dict(tower.overview.state_dict())
    connector.copy_projector()
    left, right = (list(part.parameters()) for part in (connector.projector_g, connector.projector_l))
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    views, plan = view_image()
    tokens = tower.overview(views).tokens
    dual = tower.encode(views, is_overview(plan))
    torch.testing.assert_close(dual.map_VLC, tokens)
    torch.testing.assert_close(connector.join(dual, is_overview(plan)), connector.projector_g(tokens))


@torch.no_grad()
def test_towers_of_other_widths_sizes_and_normalization() -> None:
    tower, connector = build(
        clip(16), {**dinov2(24, side=64), "config": dinov2(24, side=64)["config"] | {"patch_size": 16}}
    )
    views, plan = view_image()
    dual = tower.encode(views, is_overview(plan))
    assert (dual.overview_OLD.shape, dual.tiles_NLD.shape, dual.map_VLC.shape) == (
        (1, 16, 16),
        (6, 16, 24),
        (7, 16, 24),
    )
    # Tiles are those of the second tower alone, at its size and normalized as it was trained.
    large = torch.nn.functional.interpolate(views[1:].float(), (64, 64), mode="bicubic", antialias=True)
    large = large.round().clamp(0, 255).to(torch.uint8)
    tiles = tower.tiles(tower.tiles.preprocess.normalize(large)).tokens
    torch.testing.assert_close(dual.tiles_NLD, tiles)
    torch.testing.assert_close(connector.join(dual, is_overview(plan))[1:], connector.projector_l(tiles))


@pytest.mark.parametrize("overview", ["before", "after", "none"])
def test_rows_of_several_images_are_in_the_order_of_their_merged_maps(overview: str) -> None:
    rng = np.random.default_rng(1)
    options = preset_options("ferret-v2", tile=TILE, single_overview=True).model_copy(update={"overview": overview})
    plans = [plan_tiles(ImageSize(*size), options) for size in ((60, 90), (32, 32), (160, 30))]
    tokens = [torch.from_numpy(rng.normal(size=(len(plan.views), 16, 3))) for plan in plans]
    cell_V2 = torch.tensor([view for plan in plans for view in plan.views])
    ordered = order_rows(torch.cat(tokens), cell_V2).flatten(0, 1)
    expected = [order_tokens(part, plan, (4, 4)) for part, plan in zip(tokens, plans, strict=True)]
    if overview == "after":
        expected = [torch.cat([part[16:], part[:16]]) for part in expected]
    assert torch.equal(ordered, torch.cat(expected))


def test_views_of_frozen_towers_are_rows_of_one_length() -> None:
    lite0 = {"kind": "lite0", "image_size": 64, "width": 16, "embed_dim": 8, "position": "none"}
    tower, connector = build(lite0, dinov2(24) | {"frozen": True})
    views, plan = view_image()
    first = is_overview(plan)
    rows = tower.view_features(views, first)
    assert rows.shape == (7, *tower.feature_shape)
    lengths = [part.feature_shape[0] for part in (tower.overview, tower.tiles)]
    assert max(lengths) == rows.shape[1] > min(lengths)
    cached, computed = tower.encode(rows, first), tower.encode(views, first)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cached, computed, strict=True))
    assert torch.equal(tower(rows[first]).tokens, computed.overview_OLD)
    (connector.join(cached, first).square().sum() + cached.map_VLC.square().sum()).backward()
    assert all(value.grad is not None for value in (*tower.adapter_l.parameters(), *connector.parameters()))
    # Whatever changes the rows of a tower is in the name of their cache.
    names = {tower.fingerprint()}
    for changes in ({"layer": -2}, {"preprocess": dinov2(24)["preprocess"] | {"mean": [0.1] * 3}}):
        names.add(build(lite0, dinov2(24) | {"frozen": True, **changes})[0].fingerprint())
    assert len(names) == 3


def test_a_tower_that_is_trained_reads_pixels() -> None:
    tower, _ = build(clip(16), dinov2(24) | {"frozen": True})
    views, plan = view_image()
    assert tower.view_features(views, is_overview(plan)) is views
    assert (tower.fingerprint(), tower.feature_shape) == ("", tuple(views.shape[1:]))


def test_gradients_reach_all_parts() -> None:
    tower, connector = build(clip(16), dinov2(24))
    views, plan = view_image()
    dual = tower.encode(views, is_overview(plan))
    (connector.join(dual, is_overview(plan)).square().sum() + dual.map_VLC.square().sum()).backward()
    for part in (tower.adapter_g, tower.adapter_l, connector):
        assert all(value.grad is not None and value.grad.any() for value in part.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with raises_naming(UserError, 16, 24):
        build(clip(16), dinov2(24))[1].copy_projector()
    with raises_naming(UserError, "tiles_tower", "5 x 5", "4 x 4"):
        build(clip(16), dinov2(24, side=40))
