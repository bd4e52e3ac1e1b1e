"""Tiles and pixels against transformers' image processors: every difference is listed with its reason.

| rule | transformers | differs on | reason |
|---|---|---|---|
| llava | LlavaNext | ties | it reads LLaVA's list of (width, height) as (height, width): the others win |
| idefics3 | Idefics3, SmolVLM | nothing | |
| cohere2 | Cohere2Vision | nothing | |
| internvl | InternVL (GotOcr2) | nothing | |
| eq1 | Cohere2Vision | images that a grid covers | it enlarges least, Eq. 1 pads least |

Pixels: LlavaNext's are ours bit for bit. Cohere2Vision's differ by up to 2 of 255 where the height shrinks and the
width grows (height first, as in Pillow 13). SmolVLM's differ by up to 16 of 255 at edges, .3 on average: it resizes
twice.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.vision.canvas import render_views
from foveate.vision.tiling import Grid, ImageSize, TilingOptions, plan_tiles, preset_options

transformers = pytest.importorskip("transformers")

NUM_SIZES = 1000


def draw_sizes() -> list[ImageSize]:
    """Sides of 10 to 4,000 pixels, a tenth of them with sides that divide evenly."""
    rng = np.random.default_rng(20_240_930)
    sides = np.exp(rng.uniform(np.log(10), np.log(4000), (NUM_SIZES, 2))).astype(int)
    sides[::10] = 112 * rng.integers(1, 30, (NUM_SIZES // 10, 2))
    return [ImageSize(*row) for row in sides.tolist()]


SIZES = draw_sizes()


def blank(size: ImageSize) -> Any:
    return np.broadcast_to(np.uint8(0), (3, *size))


def llava_grids(pinpoints: list[list[int]]) -> tuple[Grid, ...]:
    return tuple(Grid(height // 336, width // 336) for height, width in pinpoints)


def test_llava_next() -> None:
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.image_utils import ChannelDimension

    processor = transformers.LlavaNextImageProcessor()
    pinpoints = processor.image_grid_pinpoints
    ours = preset_options("llava-next")
    assert llava_grids([pair[::-1] for pair in pinpoints]) == ours.grids
    same_list = preset_options("llava-next", grids=llava_grids(pinpoints))
    differences = []
    for size in SIZES:
        best = ImageSize(*select_best_resolution(size, pinpoints))
        plan = plan_tiles(size, same_list)
        assert plan.canvas == best, size
        assert plan.tiles.resized == get_patch_output_size(blank(size), best, ChannelDimension.FIRST), size
        assert list(plan.tiles.padding) == processor._get_padding_size(plan.tiles.resized, best), size
        other = plan_tiles(size, ours)
        if other.grid != plan.grid:
            differences.append(size)
            assert other.grid == plan.grid[::-1], size
            assert max(size) <= 336, "both canvases hold the image as it is: a tie"
    assert len(differences) == 301


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_idefics3_and_smolvlm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.image_processing_backends import TorchvisionBackend
    from transformers.image_utils import SizeDict

    def resize(self: Any, image: torch.Tensor, size: Any, **options: Any) -> torch.Tensor:
        return image[..., :1, :1].expand(*image.shape[:-2], size.height, size.width)

    # Sizes alone: pixels would take minutes.
    monkeypatch.setattr(TorchvisionBackend, "resize", resize)
    options = preset_options(name)
    longest, tile = {"longest_edge": options.longest_side}, {"longest_edge": options.tile}
    kind = transformers.Idefics3ImageProcessor if name == "idefics3" else transformers.SmolVLMImageProcessor
    processor = kind(size=longest, max_image_size=tile)
    for size in SIZES:
        image = processor.resize(torch.zeros(1, 3, 1, 1).expand(1, 3, *size), SizeDict(**longest))
        height, width = processor.resize_for_vision_encoder(image, options.tile).shape[-2:]
        plan = plan_tiles(size, options)
        assert plan.canvas == (height, width), size
        views, rows, columns = processor.get_number_of_image_patches(*size, {})
        assert ((rows or 1, columns or 1), max(views, 1)) == (plan.grid, len(plan.views)), size


def test_cohere2_and_eq1() -> None:
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

    options = preset_options("cohere2")
    eq1 = TilingOptions(tile=512, min_tiles=1, max_tiles=12)
    differences = []
    for size in SIZES:
        columns, rows = get_optimal_tiled_canvas(size, (512, 512), 1, 12)
        assert plan_tiles(size, options).grid == (rows, columns), size
        plan = plan_tiles(size, eq1)
        if plan.grid != (rows, columns):
            differences.append(size)
            assert plan.covers, "what must be shrunk is shrunk alike"
            ours, theirs = (measure(size, grid) for grid in (plan.grid, Grid(rows, columns)))
            assert min(ours[0], theirs[0]) >= 1
            assert ours[1] <= theirs[1], "Eq. 1 pads least"
            assert theirs[0] <= ours[0], "Cohere enlarges least"
    assert len(differences) == 512


def measure(size: ImageSize, grid: Grid) -> tuple[Fraction, Fraction]:
    """Scale and padded share of a grid of tiles of 512 pixels."""
    scale = min(Fraction(grid.rows * 512, size.height), Fraction(grid.columns * 512, size.width))
    return scale, grid.rows * grid.columns * 512**2 - scale**2 * size.height * size.width


def test_internvl() -> None:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    options = preset_options("internvl")
    for size in SIZES:
        columns, rows = get_optimal_tiled_canvas(size, (448, 448), 1, 12)
        assert plan_tiles(size, options).grid == (rows, columns), size


def draw_image(size: ImageSize) -> Image.Image:
    """Smooth waves with sharp edges, as in photographs and screens."""
    y, x = np.mgrid[: size.height, : size.width]
    waves = [128 + 90 * np.sin(x / 17 + channel) * np.cos(y / (11 + channel)) for channel in range(3)]
    pixels = np.stack(waves, axis=2).round().astype(np.uint8)
    pixels[size.height // 3 : size.height // 2, size.width // 4 : size.width // 2] = (250, 10, 30)
    return Image.fromarray(pixels)


PIXELS: dict[str, tuple[type, dict[str, Any], int, float]] = {
    # processor, its options, largest difference in levels of 255, largest mean difference
    "llava-next": (
        transformers.LlavaNextImageProcessor,
        {"size": {"height": 336, "width": 336}, "crop_size": {"height": 336, "width": 336}, "do_pad": False},
        0,
        0.0,
    ),
    "smolvlm": (
        transformers.SmolVLMImageProcessor,
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        20,
        0.4,
    ),
    "cohere2": (transformers.Cohere2VisionImageProcessor, {}, 3, 0.02),
}


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("size", [ImageSize(480, 640), ImageSize(901, 350), ImageSize(60, 700)], ids=str)
def test_pixels(name: str, size: ImageSize) -> None:
    kind, options, max_level, max_mean = PIXELS[name]
    processor = kind(do_rescale=False, do_normalize=False, **options)
    tiling = preset_options(name)
    if name == "llava-next":
        tiling = preset_options(name, grids=llava_grids(processor.image_grid_pinpoints))
    image = draw_image(size)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    theirs = pixels.reshape(-1, *pixels.shape[-3:]).float()
    plan = plan_tiles(size, tiling)
    gaps = (render_views(image, plan).float() - theirs).abs()
    assert gaps.max() <= max_level
    assert gaps.mean() <= max_mean
