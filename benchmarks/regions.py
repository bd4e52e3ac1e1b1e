"""Embedding the regions of an image with the Prompter against cutting out and encoding each.

    python -m benchmarks.regions --out DIR

(d) One image and its regions, from pixels to embeddings, for several numbers of regions. The crops are given as
tensors: cutting and resizing them is not counted, in favor of the other way.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from benchmarks.training import MODEL, build_task, finish
from foveate.vision.localizer.model import LocalizingModel

AIMS = {"all": 8.0, "prompt": 15.0}
AIMED_REGIONS = 20
_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=MODEL, help="open_clip architecture")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 20, 100], help="regions of the image")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU; 1 where other work shares the cores")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    models = {
        pool: build_task(options.model, "prompter", pool, "fp32").model.eval().requires_grad_(False).to(options.device)
        for pool in AIMS
    }
    growth: dict[str, dict[int, float]] = {pool: {} for pool in AIMS}
    timings: dict[str, Timing] = {}
    ratios: dict[str, Ratio] = {}
    for count in options.counts:
        candidates: dict[str, Callable[[], object]] = {
            f"Prompter {pool}": functools.partial(prompted, model, count) for pool, model in models.items()
        }
        candidates["crops"] = functools.partial(cropped, models["prompt"], count)
        found = compare(candidates, repeats=options.repeats if count <= AIMED_REGIONS else 3, warmup=1)
        for pool in models:
            pair = ratio(found, f"Prompter {pool}", "crops")
            ratios[f"{count} regions, Prompter ({pool}) against crops"] = pair
            growth[pool][count] = pair.value
        timings |= {f"{name}, {count} regions": timing for name, timing in found.items()}
    extra = {
        "aims": AIMS,
        "aimed_regions": AIMED_REGIONS,
        "times_faster_by_regions": growth,
    }
    publish("regions", timings, out=options.out, ratios=ratios, extra=extra)


@torch.inference_mode()
def prompted(model: LocalizingModel, regions: int) -> torch.Tensor:
    """One forward pass of the image, then all boxes at once."""
    generator = torch.Generator().manual_seed(0)
    tokens = model.encode_image_tokens(images(model, 1))
    first = torch.rand(regions, 2, generator=generator) * 0.6
    boxes_R4 = torch.cat((first, first + 0.3), dim=1).to(model.device)
    found_RE = model.encode_regions(tokens, boxes_R4, torch.zeros(regions, dtype=torch.int64, device=model.device))
    finish(model.device)
    return found_RE


@torch.inference_mode()
def cropped(model: LocalizingModel, regions: int) -> torch.Tensor:
    """Each region as an image of its own, and the image itself, in batches."""
    found = [model.encode_image(part) for part in images(model, regions + 1).split(_BATCH)]
    finish(model.device)
    return torch.cat(found)


def images(model: LocalizingModel, count: int) -> torch.Tensor:
    """Random uint8 images of the model's input size."""
    size = model.image_encoder.preprocess.side
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


if __name__ == "__main__":
    main()
