"""Pixels and points of views: the stored cases, and every map there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.images import decode, encode_input
from foveate.vision.canvas import (
    canvas_to_image,
    canvas_to_tile,
    image_to_canvas,
    mean_color,
    render_input,
    render_sample,
    render_views,
    tile_to_canvas,
)
from foveate.vision.preprocess import Preprocess
from foveate.vision.tiling import OVERVIEW, ImageSize, TilePlan, TilingOptions, plan_tiles, preset_options
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens"
PIXELS = np.load(GOLDENS / "ferret" / "anyres_pixels.npz", allow_pickle=False)
STORED = json.loads((GOLDENS / "ferret" / "anyres_pixels.json").read_text())
FILL = (122, 116, 104)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def merge(views_V3TT: torch.Tensor, plan: TilePlan) -> np.ndarray:
    """Put the tiles back together, as [H, W, 3]."""
    tiles = torch.stack([view for view, cell in zip(views_V3TT, plan.views, strict=True) if cell != OVERVIEW])
    canvas = tiles.unflatten(0, plan.grid).permute(0, 3, 1, 4, 2)
    return canvas.reshape(*plan.canvas, 3).numpy()


@pytest.mark.parametrize("case", json.loads((GOLDENS / "mm15" / "canvas_geometry.json").read_text()))
def test_points_of_stored_images(case: dict[str, Any]) -> None:
    for point in case["points"]:
        plan = plan_tiles(ImageSize(case["h"], case["w"]), TilingOptions(padding=point["pad"]))
        assert [list(plan.grid), list(plan.tiles.resized)] == [case["grid"], case["resized_hw"]]
        assert list(plan.canvas) == case["canvas_hw"]
        if point["pad"] == "center":
            assert [plan.tiles.padding.top, plan.tiles.padding.left] == case["center_offset_top_left"]
        moved = image_to_canvas(point["image_xy"], plan)
        cell, inside = canvas_to_tile(moved, plan)
        np.testing.assert_allclose(moved, point["canvas_xy"], atol=1e-9, rtol=0)
        np.testing.assert_allclose(moved / plan.canvas[::-1], point["canvas_norm"], atol=1e-9, rtol=0)
        np.testing.assert_allclose(inside, point["tile_xy"], atol=1e-9, rtol=0)
        assert cell.tolist() == point["tile"]


@given(
    size=st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000)),
    preset=st.sampled_from(["mm15", "llava-next", "ferret-v2", "internvl"]),
    fractions=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
    overview=st.booleans(),
)
def test_maps_are_inverses(size: ImageSize, preset: str, fractions: list[tuple[float, float]], overview: bool) -> None:
    plan = plan_tiles(size, preset_options(preset))
    points = np.array(fractions) * size[::-1]
    moved = image_to_canvas(points, plan, overview=overview)
    np.testing.assert_allclose(canvas_to_image(moved, plan, overview=overview), points, atol=1e-9, rtol=0)
    side = (plan.tile, plan.tile) if overview else plan.canvas[::-1]
    assert (moved >= -1e-9).all()
    assert (moved <= np.array(side) + 1e-9).all()
    if not overview:
        cells, inside = canvas_to_tile(moved, plan)
        np.testing.assert_allclose(tile_to_canvas(cells, inside, plan), moved, atol=1e-9, rtol=0)
        assert (cells >= 1).all()
        assert (cells <= plan.grid).all()
        assert (inside <= plan.tile + 1e-9).all()


@pytest.mark.parametrize("case", STORED, ids=lambda case: case["case"])
def test_pixels_of_stored_images(case: dict[str, Any]) -> None:
    pixels = PIXELS[f"{case['case']}/image"]
    (width, height), tile = case["target_wh"], case["tile"]
    grid = (height // tile, width // tile)
    image, size = Image.fromarray(pixels), ImageSize(case["h"], case["w"])
    for fit, name in (("pad", "padded"), ("stretch", "stretched")):
        plan = plan_tiles(size, TilingOptions(rule="llava", tile=tile, grids=(grid,), fit=fit, overview="none"))
        views = render_views(image, plan)
        # The stored pixels are Pillow's; the index allows another resizing one level.
        assert np.abs(merge(views, plan).astype(int) - PIXELS[f"{case['case']}/{name}"]).max() <= 1
        if fit == "pad":
            tiles = PIXELS[f"{case['case']}/tiles_of_padded"].transpose(0, 3, 1, 2)
            assert np.abs(views.numpy().astype(int) - tiles).max() <= 1
    # LLaVA's square around an image, in the color of the mean: nothing is resized.
    square = plan_tiles(size, TilingOptions(rule="static", grids=("1x1",), tile=max(size)))
    padded = merge(render_views(image, square, FILL), square)
    np.testing.assert_array_equal(padded, PIXELS[f"{case['case']}/expand2square_mean"])


@pytest.mark.parametrize("overview", ["after", "before", "none"])
def test_tiles_put_back_together_are_the_padded_canvas(overview: str) -> None:
    image = noise(90, 140)
    options = TilingOptions(tile=32, overview=overview)
    plan = plan_tiles(ImageSize(90, 140), options)
    views = render_views(image, plan, FILL)
    assert views.shape == (len(plan.views), 3, 32, 32)
    canvas = merge(views, plan)
    (height, width), (left, top, right, bottom) = plan.tiles
    content = canvas[top : top + height, left : left + width]
    pillow = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(content - pillow).max() <= 2
    edges = np.ones(plan.canvas, dtype=bool)
    edges[top : top + height, left : left + width] = False
    assert (left + right + top + bottom > 0) == edges.any()
    assert (canvas[edges] == FILL).all()
    if overview != "none":
        whole = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).astype(int).transpose(2, 0, 1)
        assert np.abs(views[plan.views.index(OVERVIEW)].numpy() - whole).max() <= 2


def test_a_marked_pixel_is_where_the_map_puts_it() -> None:
    pixels = np.zeros((200, 300, 3), dtype=np.uint8)
    pixels[140:150, 40:50] = 255
    plan = plan_tiles(ImageSize(200, 300), TilingOptions(tile=128))
    views = render_views(Image.fromarray(pixels), plan)
    cell, inside = canvas_to_tile(image_to_canvas([45.0, 145.0], plan), plan)
    x, y = inside.astype(int)
    view = views[plan.views.index(tuple(cell.tolist()))]
    assert view[:, y, x].min() > 200
    whole = views[plan.views.index(OVERVIEW)]
    x, y = image_to_canvas([45.0, 145.0], plan, overview=True).astype(int)
    assert whole[:, y, x].min() > 150
    assert (views.flatten(1).amax(1) > 150).sum() == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (4000, 10), (10, 4000)], ids=str)
def test_extreme_shapes_are_rendered(size: tuple[int, int]) -> None:
    plan = plan_tiles(ImageSize(*size), TilingOptions(tile=32))
    views = render_views(Image.new("RGB", size[::-1], (200, 100, 50)), plan, (200, 100, 50))
    assert (views == torch.tensor((200, 100, 50))[:, None, None]).all()


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA", "I;16"])
def test_other_modes_are_decoded_first(mode: str) -> None:
    image = Image.new("L", (64, 48), 255).convert(mode) if mode != "I;16" else Image.new(mode, (64, 48), 65535)
    decoded = decode(encode_input(image))
    views = render_views(decoded, plan_tiles(ImageSize(48, 64), TilingOptions(tile=16)), (255, 255, 255))
    assert (views == 255).all()


def test_an_image_of_another_size_is_refused() -> None:
    with raises_naming(UserError, "30 x 40", "40 x 30"):
        render_views(noise(30, 40), plan_tiles(ImageSize(40, 30), TilingOptions()))


def test_several_images_follow_each_other() -> None:
    images, sizes = [noise(30, 40), noise(50, 20, seed=1)], [ImageSize(30, 40), ImageSize(50, 20)]
    plans = [plan_tiles(size, TilingOptions(tile=16)) for size in sizes]
    views = render_sample(images, plans, FILL)
    split = len(plans[0].views)
    assert torch.equal(views[:split], render_views(images[0], plans[0], FILL))
    assert torch.equal(views[split:], render_views(images[1], plans[1], FILL))
    for wrong in ([], images[:1]):
        with raises_naming(UserError, f"{len(wrong)} images", 2):
            render_sample(wrong, plans)


def test_the_color_of_padding_and_wrong_interpolations() -> None:
    assert mean_color((0.48145466, 0.4578275, 0.40821073)) == FILL  # CLIP's
    with raises_naming(UserError, "lanczos", "bicubic"):
        render_views(noise(30, 40), plan_tiles(ImageSize(30, 40), TilingOptions()), interpolation="lanczos")


def test_views_are_padded_in_the_color_of_the_plan() -> None:
    image, preprocess = noise(30, 70), Preprocess(size=32, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    for preset, color in (("mm15", mean_color(preprocess.mean)), ("llava-next", (0, 0, 0))):
        plan = plan_tiles(ImageSize(30, 70), preset_options(preset, tile=32))
        assert plan.padding_color == ("black" if preset == "llava-next" else "mean")
        assert torch.equal(
            render_input(preprocess, image, plan), render_views(image, plan, color, interpolation="bilinear")
        )
        assert not torch.equal(render_input(preprocess, image, plan), render_views(image, plan, (9, 9, 9)))
