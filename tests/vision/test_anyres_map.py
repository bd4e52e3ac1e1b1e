"""Maps of images at any resolution: goldens of ml-ferret, LLaVA-NeXT of transformers, and where cells look."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.vision.anyres_map import fuse_views, merge_tiles, move_to_canvas, order_tokens, resize_overview
from foveate.vision.canvas import image_to_canvas, render_views
from foveate.vision.regions import prepare_regions, sample_cells, stack_maps
from foveate.vision.tiling import OVERVIEW, ImageSize, plan_tiles, preset_options
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "ferret"
FUSION = json.loads((GOLDENS / "region_fusion.json").read_text())


@pytest.mark.parametrize("case", FUSION["cases"], ids=lambda case: case["case"])
def test_goldens(case: dict[str, Any]) -> None:
    stored = np.load(GOLDENS / "region_fusion.npz")
    tile, side = FUSION["tile"], case["patches_per_side"]
    grids = tuple((height // tile, width // tile) for width, height in FUSION["pinpoints_wh"])
    unpad = "unpad" in case["case"]
    options = preset_options("ferret-v2", tile=tile, grids=grids)
    plan = plan_tiles(ImageSize(case["h"], case["w"]), options)
    assert list(plan.grid[::-1]) == case["grid_wh"]
    raw, projected, newline = (
        torch.from_numpy(stored[f"{case['case']}/{name}"]) for name in ("tiles_raw", "tiles_projected", "newline")
    )
    fused = fuse_views(raw, plan, (side, side)).permute(1, 2, 0)
    np.testing.assert_array_equal(fused, stored[f"{case['case']}/region_map_HWC"])
    tokens = order_tokens(projected, plan, (side, side), newline_E=newline if unpad else None, unpad=unpad)
    assert len(tokens) == case["n_visual_tokens"]
    np.testing.assert_allclose(tokens, stored[f"{case['case']}/visual_tokens"], atol=1e-6)


@given(st.integers(10, 3000), st.integers(10, 3000))
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_those_of_llava_next(height: int, width: int) -> None:
    """transformers reads LLaVA's pairs as (height, width): our grids are given to it that way round."""
    models = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
    plan = plan_tiles(ImageSize(height, width), preset_options("llava-next"))
    pinpoints = [[rows * 336, columns * 336] for rows, columns in preset_options("llava-next").grids]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=84), image_grid_pinpoints=pinpoints
    )
    views = torch.randn(len(plan.views), 16, 3, generator=torch.Generator().manual_seed(0))
    newline = torch.ones(3)
    (theirs,), _ = models.LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [views], torch.tensor([[height, width]]), "default", image_newline=newline
    )
    ours = order_tokens(views, plan, (4, 4), newline_E=newline, unpad=True)
    if ours.shape != theirs.shape:
        # transformers rounds the fitted side to 7 digits first; LLaVA cuts 11.999999999 to 11.
        scale = min(plan.grid.columns * 4 / width, plan.grid.rows * 4 / height)
        sides = np.array([height * scale, width * scale])
        assert (np.abs(sides - sides.round()) < 1e-7).any(), (ours.shape, theirs.shape)
    else:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_stretched_overview_is_resized_as_torch_does(interpolation: str) -> None:
    plan = plan_tiles(ImageSize(900, 700), preset_options("ferret-v2", tile=56, grids=((3, 2),)))
    overview = torch.randn(5, 4, 4, dtype=torch.float64)
    options = {} if interpolation == "nearest" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(overview[None], (12, 8), mode=interpolation, **options)[0]
    ours = resize_overview(overview, plan, (12, 8), interpolation=interpolation)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=0)


@given(
    st.integers(40, 400),
    st.integers(40, 400),
    st.sampled_from(["pad", "stretch"]),
    st.sampled_from(["pad", "stretch"]),
    st.sampled_from(["before", "after"]),
)
@settings(max_examples=25, deadline=None)
def test_cells_of_tiles_overview_and_regions_meet(
    height: int, width: int, fit: str, overview_fit: str, order: str
) -> None:
    """Maps that hold the image's own coordinates agree, wherever padding goes."""
    options = preset_options("ferret-v2", tile=64, fit=fit, overview_fit=overview_fit, overview=order)
    plan, grid = plan_tiles(ImageSize(height, width), options), (8, 8)

    def coordinates(view: tuple[int, int]) -> torch.Tensor:
        centers = (np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2) + 0.5) * 8
        corner = np.array([(view[1] - 1) * 64, (view[0] - 1) * 64]) if view != OVERVIEW else 0
        origin, unit = image_to_canvas([[0, 0], [1, 1]], plan, overview=view == OVERVIEW)
        return torch.from_numpy((centers + corner - origin) / (unit - origin))

    views = torch.stack([coordinates(view) for view in plan.views])
    scales = [views[number] for number, view in enumerate(plan.views) if view != OVERVIEW]
    if not scales or OVERVIEW not in plan.views:
        return
    fused = fuse_views(views, plan, grid, interpolation="bilinear")
    merged = merge_tiles(torch.stack(scales), plan, grid)
    # Inside the image, and away from the edge of the overview, which has no cells beyond its own.
    x, y = merged
    inside = (x > width / 8) & (x < width * 7 / 8) & (y > height / 8) & (y < height * 7 / 8)
    torch.testing.assert_close(fused[:, inside], 2 * merged[:, inside], atol=1e-4, rtol=0)
    box = PixelBox(width * 0.4, height * 0.4, width * 0.6, height * 0.6)
    moved = move_to_canvas(prepare_regions([[box]], [(height, width)], num_points=64), plan)
    mean = sample_cells(*stack_maps([merged]), moved.points_RN2, moved.map_R).mean(dim=1)[0]
    # Half a cell is the bias of `align_corners`.
    cell = np.array(plan.canvas[::-1]) / np.array(merged.shape[:0:-1]) / 2
    scale = np.array(plan.tiles.resized[::-1]) / np.array([width, height])
    assert (np.abs(mean.numpy() - np.array([width, height]) / 2) < cell / scale + 2).all()


def test_views_and_options_that_do_not_fit() -> None:
    plan = plan_tiles(ImageSize(90, 70), preset_options("ferret-v2", tile=56))
    with raises_naming(UserError, "views", len(plan.views)):
        fuse_views(torch.zeros(1, 16, 2), plan, (4, 4))
    with raises_naming(UserError, "interpolation", "nearest"):
        resize_overview(torch.zeros(2, 4, 4), plan, (8, 8), interpolation="cubic")  # type: ignore[arg-type]


def test_a_grid_of_one_tile_is_the_overview_alone() -> None:
    plan = plan_tiles(ImageSize(300, 310), preset_options("ferret-v2", grids=((1, 1),), tile=32))
    assert plan.views == ((1, 1),)
    views = torch.randn(1, 4, 2)
    torch.testing.assert_close(fuse_views(views, plan, (2, 2)), views[0].T.view(2, 2, 2))
    torch.testing.assert_close(order_tokens(views, plan, (2, 2)), views[0])
    from PIL import Image

    assert render_views(Image.new("RGB", (310, 300)), plan).shape == (1, 3, 32, 32)
