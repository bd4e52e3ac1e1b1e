"""Grids, resized sizes and tokens of the stored cases: MM1.5's Eq. 1, LLaVA's, Ferret's and InternVL's rules."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foveate.core.errors import UserError
from foveate.core.recipes import validate
from foveate.vision.tiling import (
    OVERVIEW,
    PRESETS,
    Grid,
    ImageSize,
    TilingOptions,
    count_llava_tokens,
    plan_tiles,
    preset_options,
    unpad_patches,
)
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens"


def stored(name: str) -> Any:
    return json.loads((GOLDENS / f"{name}.json").read_text())


EQ1 = stored("mm15/tiling_eq1")
LLAVA = stored("ferret/anyres_llava")
sizes = st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000))


def eq1_options(name: str) -> TilingOptions:
    low, high, *rest = name.split(",")
    return TilingOptions(min_tiles=int(low), max_tiles=int(high), upscale=rest != ["upscale=false"])


@pytest.mark.parametrize("name", EQ1["tables"])
def test_eq1(name: str) -> None:
    options = eq1_options(name)
    for row in EQ1["tables"][name]:
        entry = dict(zip(EQ1["columns"], row, strict=True))
        plan = plan_tiles(ImageSize(entry["h"], entry["w"]), options)
        assert plan.grid == (entry["n_h"], entry["n_w"]), entry
        assert plan.covers == bool(entry["cover"]), entry
        assert plan.tiles.resized == (entry["h_resized"], entry["w_resized"]), entry
        assert len(plan.views) == entry["views_with_overview"], entry
        if entry["n_tied_grids"] == 1:
            turned = plan_tiles(ImageSize(entry["w"], entry["h"]), options)
            assert turned.grid == (entry["n_w"], entry["n_h"]), entry


def test_eq1_with_other_tiles() -> None:
    golden = stored("mm15/tiling_other_r")
    for row in golden["rows"]:
        entry = dict(zip(golden["columns"], row, strict=True))
        options = TilingOptions(tile=entry["r"], min_tiles=entry["n_min"], max_tiles=entry["n_max"])
        plan = plan_tiles(ImageSize(entry["h"], entry["w"]), options)
        assert plan.grid == (entry["n_h"], entry["n_w"]), entry
        assert plan.tiles.resized == (entry["h_resized"], entry["w_resized"]), entry
        assert (plan.covers, len(plan.views)) == (bool(entry["cover"]), entry["views_with_overview"]), entry


@pytest.mark.parametrize("name", LLAVA["sets"])
def test_llava(name: str) -> None:
    golden = LLAVA["sets"][name]
    unit, patches = golden["unit"], golden["patches_per_side"]
    grids = tuple(Grid(height // unit, width // unit) for width, height in golden["pinpoints_wh"])
    options = preset_options("llava-next", tile=unit, grids=grids)
    if name.startswith("ferret_v2"):
        assert grids == preset_options("ferret-v2").grids
    if name == "llava16_5":
        assert grids == preset_options("llava-next").grids
    for row in golden["rows"]:
        entry = dict(zip(LLAVA["columns"], row, strict=True))
        size = ImageSize(entry["h"], entry["w"])
        plan = plan_tiles(size, options)
        assert plan.canvas == (entry["best_h"], entry["best_w"]), entry
        assert plan.grid == (entry["grid_h"], entry["grid_w"]), entry
        assert plan.tiles.resized == (entry["resized_h"], entry["resized_w"]), entry
        assert plan.tiles.padding[:2] == (entry["paste_x"], entry["paste_y"]), entry
        merged = ImageSize(plan.grid.rows * patches, plan.grid.columns * patches)
        assert unpad_patches(size, merged) == (entry["unpadded_rows"], entry["unpadded_cols"]), entry
        assert count_llava_tokens(plan, patches) == entry["tokens_base_plus_unpad_newline"], entry
        assert len(plan.views) * patches**2 == entry["tokens_spatial_no_unpad"], entry


def test_llava_over_a_range_of_grids() -> None:
    golden = LLAVA["onevision"]
    # OneVision's "(1x1),...,(6x6)" counts columns outside and rows inside.
    grids = tuple(Grid(rows, columns) for columns in range(1, 7) for rows in range(1, 7))
    options = TilingOptions(rule="llava", tile=golden["unit"], grids=grids)
    for height, width, columns, rows in golden["rows"]:
        assert plan_tiles(ImageSize(height, width), options).grid == (rows, columns), (height, width)


def test_tokens_of_llava_next_in_transformers() -> None:
    golden = stored("ferret/hf_llava_next_tokens")
    side = golden["image_size"]
    grids = tuple(Grid(height // side, width // side) for height, width in golden["pinpoints_hw"])
    options = preset_options("llava-next", grids=grids)
    for height, width, tokens in golden["rows"]:
        plan = plan_tiles(ImageSize(height, width), options)
        assert count_llava_tokens(plan, side // golden["patch_size"]) == tokens, (height, width)


@pytest.mark.parametrize("golden", stored("ferret/internvl_grids"), ids=lambda g: f"{g['min_num']}-{g['max_num']}")
def test_internvl(golden: dict[str, Any]) -> None:
    overview = "after" if golden["use_thumbnail"] else "none"
    bounds = {"min_tiles": golden["min_num"], "max_tiles": golden["max_num"]}
    options = preset_options("internvl", tile=golden["image_size"], overview=overview, **bounds)
    for height, width, columns, rows, views in golden["rows"]:
        plan = plan_tiles(ImageSize(height, width), options)
        assert (plan.grid, len(plan.views)) == ((rows, columns), views), (height, width)
        assert plan.tiles.resized == plan.canvas


@given(size=sizes, tile=st.integers(32, 800), preset=st.sampled_from(sorted(PRESETS)))
def test_every_image_fits_its_canvas(size: ImageSize, tile: int, preset: str) -> None:
    plan = plan_tiles(size, preset_options(preset, tile=tile))
    for fit, canvas in ((plan.tiles, plan.canvas), (plan.overview, (tile, tile))):
        (height, width), padding = fit
        assert min(height, width) >= 1
        assert min(padding) >= 0
        assert (height + padding.top + padding.bottom, width + padding.left + padding.right) == canvas
        assert max(height / canvas[0], width / canvas[1]) == 1
    tiles = [view for view in plan.views if view != OVERVIEW]
    assert len(tiles) == plan.grid.rows * plan.grid.columns
    assert all(a < b for a, b in pairwise(tiles)), "row after row"


@given(size=sizes, tile=st.sampled_from([224, 378, 672]), high=st.integers(1, 16))
def test_nothing_pads_less_than_the_chosen_grid(size: ImageSize, tile: int, high: int) -> None:
    """Against Eq. 1 written down with fractions."""
    from fractions import Fraction

    scales = {}
    for rows in range(1, high + 1):
        for columns in range(1, high // rows + 1):
            scale = min(Fraction(rows * tile, size.height), Fraction(columns * tile, size.width))
            scales[Grid(rows, columns)] = scale
    covering = {grid: scale for grid, scale in scales.items() if scale >= 1}
    plan = plan_tiles(size, TilingOptions(tile=tile, min_tiles=1, max_tiles=high))
    assert plan.covers == bool(covering)
    if covering:
        waste = {g: g.rows * g.columns * tile**2 - s**2 * size.height * size.width for g, s in covering.items()}
        assert waste[plan.grid] == min(waste.values())
    else:
        assert scales[plan.grid] == max(scales.values())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [ImageSize(1, 1), ImageSize(1, 3000), ImageSize(40_000, 10), ImageSize(10, 40_000)])
def test_extreme_shapes_are_planned(preset: str, size: ImageSize) -> None:
    plan = plan_tiles(size, preset_options(preset))
    assert min(*plan.tiles.resized, *plan.overview.resized) >= 1
    assert plan.megapixels == pytest.approx(len(plan.views) * plan.tile**2 / 1e6)


def test_an_image_that_is_not_split_is_its_overview() -> None:
    plan = plan_tiles(ImageSize(480, 640), TilingOptions(overview="none"), split=False)
    assert (plan.grid, plan.views) == ((1, 1), (OVERVIEW,))


def test_static_split() -> None:
    plan = plan_tiles(ImageSize(480, 640), preset_options("mm15-static"))
    assert (plan.grid, plan.canvas, plan.tiles.resized) == ((2, 2), (1344, 1344), (1008, 1344))
    assert plan.views == ((1, 1), (1, 2), (2, 1), (2, 2), OVERVIEW)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"min_tiles": 5, "max_tiles": 4}, ("min_tiles", 5, 4)),
        ({"rule": "static"}, ("grids", "static")),
        ({"rule": "llava"}, ("grids", "llava")),
        ({"rule": "llava", "grids": ("2by3",)}, ("grids", "2by3", "2x3")),
        ({"rule": "static", "grids": ("0x3",)}, ("grids", "0x3")),
        ({"grids": ("2x3",)}, ("grids", "eq1")),
        ({"rule": "internvl", "upscale": False}, ("upscale", "internvl")),
        ({"rule": "eq"}, ("rule", "eq1")),
    ],
)
def test_wrong_options_are_named(content: dict[str, Any], names: tuple[object, ...]) -> None:
    with raises_naming(UserError, *names):
        validate(TilingOptions, content, where="options")
    with pytest.raises(ValidationError):
        TilingOptions(**content)


def test_wrong_sizes_and_presets_are_named() -> None:
    with raises_naming(UserError, "0 x 640"):
        plan_tiles(ImageSize(0, 640), TilingOptions())
    with raises_naming(UserError, "llava-nex", "llava-next"):
        preset_options("llava-nex")


def test_options_survive_a_recipe() -> None:
    for name in PRESETS:
        options = preset_options(name)
        assert TilingOptions.model_validate_json(options.model_dump_json()) == options
