"""Ferret's spatial-aware sampler, all regions of an image at once against the official algorithm region by region.

    python -m benchmarks.region_sampler --out bench --threads 1

64 regions (boxes, points, strokes) on a 48 x 48 map of width 1024, vectors of 4096: the sizes of Ferret-7B at any
resolution. The other side is its published algorithm written plainly here, each pair of neighbors through both linear
layers. Points are drawn beforehand for both; both give the same vectors. Memory is what PyTorch's allocator holds at
the peak of a call, weights and map left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import compare, publish, ratio
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Point, Shape, Stroke
from foveate.vision.regions import RegionBatch, prepare_regions
from foveate.vision.regions.sampler import RegionSampler, central_point

GOALS = {"times_faster": 5.0, "memory_share": 1.0}
SIZE = (672, 672)


def official_region(sampler: RegionSampler, map_CHW: Tensor, points_N2: Tensor) -> Tensor:
    """Encode one region as the published algorithm does, [E]."""
    coordinates = (2 * points_N2 - 1)[None, :, None]
    features = F.grid_sample(map_CHW[None], coordinates, align_corners=True)[0, :, :, 0].T
    points = points_N2
    for block, (count, neighbors) in enumerate(zip(sampler.options.anchors, sampler.options.neighbors, strict=True)):
        distance = torch.full((len(points),), torch.inf)
        chosen, current = torch.zeros(count, dtype=torch.long), central_point(points[None])[0]
        for step in range(count):
            chosen[step] = current
            distance = torch.minimum(distance, ((points - points[current]) ** 2).sum(-1))
            current = distance.argmax()
        anchors = points[chosen]
        squares = -2 * anchors @ points.T + (anchors**2).sum(-1)[:, None] + (points**2).sum(-1)
        nearest = squares.topk(neighbors, largest=False, sorted=False).indices
        rows = torch.cat([features, points], dim=1)
        differences = sampler.diff_projector_list[block](rows[nearest] - rows[chosen][:, None])
        pairs = torch.cat([differences, rows[chosen][:, None].expand_as(differences)], dim=-1)
        layer = sampler._aggregates[block]
        hidden = layer.norm(layer.net(pairs.transpose(1, 2)).transpose(1, 2))
        features, points = hidden.amax(dim=1), anchors
    return sampler.dim_projector(sampler.flatten_projector(features.flatten()))


def draw_regions(count: int) -> list[Shape]:
    """Boxes, points and strokes of all sizes, a third each."""
    rng, shapes = np.random.default_rng(0), []
    for number in range(count):
        side = rng.uniform(20, 400, 2)
        x, y = rng.uniform(0, np.array(SIZE[::-1]) - side)
        corners = (float(x), float(y)), (float(x + side[0]), float(y + side[1]))
        shape: Shape = PixelBox(*corners[0], *corners[1])
        if number % 3 == 1:
            shape = Point(*corners[0])
        elif number % 3 == 2:
            shape = Stroke((Point(*corners[0]), Point(*corners[1])))
        shapes.append(shape)
    return shapes


def measure_peak(call: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Return the result of a call, and the bytes that it allocates at its peak."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return result, int(np.cumsum(sizes).max(initial=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--regions", type=int, default=64)
    parser.add_argument("--width", type=int, default=1024, help="of the map")
    parser.add_argument("--vector", type=int, default=4096, help="width of the vectors")
    parser.add_argument("--side", type=int, default=48, help="rows and columns of the map")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    sampler = RegionSampler(width=options.width, out=options.vector).eval().requires_grad_(False)
    map_CHW = torch.randn(options.side, options.side, options.width, generator=generator).permute(2, 0, 1)
    batch = prepare_regions([draw_regions(options.regions)], [SIZE], num_points=sampler.num_points)

    @torch.inference_mode()
    def at_once(batch: RegionBatch = batch) -> Tensor:
        return sampler([map_CHW], batch)

    @torch.inference_mode()
    def by_region() -> Tensor:
        return torch.stack([official_region(sampler, map_CHW, points_N2) for points_N2 in batch.points_RN2])

    memory = {}
    ours, memory["all regions at once"] = measure_peak(at_once)
    theirs, memory["region by region"] = measure_peak(by_region)
    difference = float((ours - theirs).abs().max() / theirs.std())
    # Neighbors at equal distances, which rounding decides, may differ; vectors then do by little.
    assert difference < 0.05, difference
    candidates = {"all regions at once": at_once, "region by region": by_region}
    timings = compare(candidates, repeats=options.repeats, warmup=0)
    pair = ratio(timings, "all regions at once", "region by region", processor=True)
    share = memory["all regions at once"] / memory["region by region"]
    extra = {"goals": GOALS, "peak_bytes": memory, "memory_share": share, "largest_difference": difference}
    publish(
        "region-sampler",
        timings,
        out=options.out,
        ratios={"all at once against region by region": pair},
        items=options.regions,
        unit="regions",
        extra=extra,
    )
    print(f"memory: {share:.2f} of region by region; largest difference {difference:.1e} standard deviations")


if __name__ == "__main__":
    main()
