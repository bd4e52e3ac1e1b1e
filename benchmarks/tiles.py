"""Tiles and pixels of an image against transformers' image processors: `python -m benchmarks.tiles --out DIR`.

Both sides get the decoded image and give the same views as normalized floats: choosing the grid, resizing, padding,
cutting and the overview are counted, decoding is not. Ratios are of processor seconds: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.vision.canvas import render_views
from foveate.vision.preprocess import Preprocess
from foveate.vision.tiling import ImageSize, TilingOptions, plan_tiles, preset_options

SIZES = {"small": ImageSize(480, 640), "screen": ImageSize(1080, 1920), "photograph": ImageSize(3000, 4000)}
SQUARE = {"height": 336, "width": 336}
PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llava-next": (transformers.LlavaNextImageProcessor, {"size": SQUARE, "crop_size": SQUARE, "do_pad": False}),
    "smolvlm": (
        transformers.SmolVLMImageProcessor,
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    ),
    "cohere2": (transformers.Cohere2VisionImageProcessor, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    timings: dict[str, Timing] = {}
    ratios: dict[str, Ratio] = {}
    sizes = [ImageSize(*row) for row in np.random.default_rng(0).integers(50, 4000, (1000, 2)).tolist()]
    ours, peer = "grids of 1,000 sizes, Eq. 1", "grids of 1,000 sizes, Cohere2Vision"
    candidates: dict[str, Callable[[], object]] = {ours: partial(plan_all, sizes), peer: partial(cohere_grids, sizes)}
    timings |= compare(candidates, repeats=options.repeats)
    ratios["grids"] = ratio(timings, ours, peer, processor=True)
    for size_name, size in SIZES.items():
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        for name, (kind, settings) in PROCESSORS.items():
            processor = kind(**settings)
            ours, peer = f"foveate {name}, {size_name}", f"transformers {name}, {size_name}"
            candidates = {ours: partial(views, name, processor, image), peer: partial(processed, processor, image)}
            shape = tuple(candidates[ours]().shape)  # type: ignore[attr-defined]
            assert shape == tuple(candidates[peer]().shape[-4:]), name  # type: ignore[attr-defined]
            timings |= compare(candidates, repeats=options.repeats)
            ratios[f"{name}, {size_name}, {shape[0]} views"] = ratio(timings, ours, peer, processor=True)
    publish("tiles", timings, out=options.out, ratios=ratios, extra={"aim": 1.0})


def views(name: str, processor: Any, image: Image.Image) -> Tensor:
    """Plan, render and normalize the views of an image."""
    plan = plan_tiles(ImageSize(image.height, image.width), preset_options(name))
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return Preprocess(size=plan.tile, mean=mean, std=std).normalize(render_views(image, plan))


def processed(processor: Any, image: Image.Image) -> Tensor:
    return processor(image, return_tensors="pt")["pixel_values"]


def plan_all(sizes: list[ImageSize]) -> None:
    options = TilingOptions(tile=512, min_tiles=1, max_tiles=12)
    for size in sizes:
        plan_tiles(size, options)


def cohere_grids(sizes: list[ImageSize]) -> None:
    for size in sizes:
        get_optimal_tiled_canvas(size, (512, 512), 1, 12)


if __name__ == "__main__":
    main()
