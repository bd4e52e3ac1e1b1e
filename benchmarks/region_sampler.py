"""Ferret's spatial-aware sampler against the official algorithm in its own order, and region by region.

    python -m benchmarks.region_sampler --out bench --threads 1

64 regions (boxes, points, strokes) on a 48 x 48 map of width 1024, vectors of 4096: the sizes of Ferret-7B at any
resolution. The other side is its published algorithm written plainly here, each pair of neighbors through both linear
layers: for all regions of an image together, as the released code computes them (apple/ml-ferret), and one region after
the other, which needs less memory. Points are drawn beforehand for all; all give the same vectors. Memory is what
PyTorch's allocator holds at the peak of a call, weights and map left out.
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
OURS = "all regions at once"


def official_regions(sampler: RegionSampler, map_CHW: Tensor, points_RN2: Tensor) -> Tensor:
    """Encode regions as the published algorithm does, all of them together, [R, E]."""
    regions = torch.arange(len(points_RN2))
    coordinates = (2 * points_RN2 - 1).flatten(0, 1)[None, :, None]
    features = F.grid_sample(map_CHW[None], coordinates, align_corners=True)[0, :, :, 0].T
    features, points = features.unflatten(0, points_RN2.shape[:2]), points_RN2
    for block, (count, neighbors) in enumerate(zip(sampler.options.anchors, sampler.options.neighbors, strict=True)):
        distance = torch.full(points.shape[:2], torch.inf)
        chosen, current = torch.zeros(len(points), count, dtype=torch.long), central_point(points)
        for step in range(count):
            chosen[:, step] = current
            distance = torch.minimum(distance, ((points - points[regions, current][:, None]) ** 2).sum(-1))
            current = distance.argmax(dim=1)
        anchors = points[regions[:, None], chosen]
        squares = -2 * anchors @ points.mT + (anchors**2).sum(-1)[..., None] + (points**2).sum(-1)[:, None]
        nearest = squares.topk(neighbors, largest=False, sorted=False).indices
        rows = torch.cat([features, points], dim=-1)
        own, others = rows[regions[:, None], chosen][:, :, None], rows[regions[:, None, None], nearest]
        pairs = torch.cat([sampler.diff_projector_list[block](others - own), own.expand_as(others)], dim=-1)
        layer = sampler._aggregates[block]
        hidden = layer.norm(layer.net(pairs.flatten(0, 1).transpose(1, 2)).transpose(1, 2))
        features, points = hidden.amax(dim=1).unflatten(0, (len(regions), count)), anchors
    return sampler.dim_projector(sampler.flatten_projector(features.flatten(1)))


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
        return torch.cat([official_regions(sampler, map_CHW, points_N2[None]) for points_N2 in batch.points_RN2])

    @torch.inference_mode()
    def official() -> Tensor:
        return official_regions(sampler, map_CHW, batch.points_RN2)

    candidates = {OURS: at_once, "official order": official, "region by region": by_region}
    vectors, memory = {}, {}
    for name, call in candidates.items():
        vectors[name], memory[name] = measure_peak(call)
    differences = {name: float((vectors[OURS] - theirs).abs().max() / theirs.std()) for name, theirs in vectors.items()}
    # Neighbors at equal distances, which rounding decides, may differ; vectors then do by little.
    assert max(differences.values()) < 0.05, differences
    timings = compare(candidates, repeats=options.repeats, warmup=0)
    peers = [name for name in candidates if name != OURS]
    shares = {name: memory[OURS] / memory[name] for name in peers}
    extra = {"goals": GOALS, "peak_bytes": memory, "memory_shares": shares, "largest_differences": differences}
    publish(
        "region-sampler",
        timings,
        out=options.out,
        ratios={f"{OURS} against {name}": ratio(timings, OURS, name, processor=True) for name in peers},
        items=options.regions,
        unit="regions",
        extra=extra,
    )
    for name, share in shares.items():
        print(f"memory: {share:.2f} of {name}; largest difference {differences[name]:.1e} standard deviations")


if __name__ == "__main__":
    main()
