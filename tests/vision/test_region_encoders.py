"""Region encoders: primitives against brute force, invariants, and regions that no encoder can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Mask, Point, Shape, Stroke, encode_mask
from foveate.vision.regions import (
    RegionEncoder,
    build_region_encoder,
    masks,
    prepare_regions,
    region_kinds,
    sample_cells,
    stack_maps,
)
from foveate.vision.regions.masks import draw_points, patch_radius, region_mask
from foveate.vision.regions.mean import MeanEncoder
from foveate.vision.regions.roi import RoiEncoder
from foveate.vision.regions.sampler import RegionSampler, central_point, farthest_points, nearest_points
from naming import raises_naming

SIZE = (60, 90)  # height and width of the image
SAMPLER = {"num_points": 48, "anchors": (12, 5), "neighbors": (6, 4)}
OPTIONS: dict[str, dict[str, Any]] = {"mean": {"num_points": 48}, "roi": {}, "sampler": SAMPLER}


def make_mask(rows: slice, columns: slice) -> Mask:
    mask_HW = np.zeros(SIZE, dtype=bool)
    mask_HW[rows, columns] = True
    return Mask(SIZE, tuple(encode_mask(mask_HW)["counts"]))


SHAPES: tuple[Shape, ...] = (
    PixelBox(10, 5, 40, 50),
    PixelBox(88.5, 58.25, 90, 60),
    Point(70.5, 20),
    Point(90, 60),
    Stroke((Point(3, 3), Point(60, 30), Point(20, 55))),
    Stroke((Point(5, 9),)),
    make_mask(slice(7, 30), slice(50, 81)),
)


def build(kind: str, *, width: int = 6, seed: int = 0) -> RegionEncoder:
    return build_region_encoder(kind, OPTIONS[kind], width=width, out=7, seed=seed).double()


def draw_maps(*sizes: tuple[int, int], width: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(width, *size, generator=generator, dtype=torch.float64) for size in sizes]


def test_kinds() -> None:
    assert region_kinds() == sorted(OPTIONS)
    with raises_naming(UserError, "sampler"):
        build_region_encoder("samplr", {}, width=4, out=4)
    with raises_naming(UserError, "neighbors"):
        RegionSampler(width=4, out=4, num_points=8, anchors=(4,), neighbors=(9,))


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_primitives_equal_brute_force_on_rectangular_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.random((3, 20, 2)))
    sizes = [tuple(rng.integers(1, 8, 2)) for _ in range(2)]
    maps, map_R = draw_maps(*sizes, width=3), torch.tensor([1, 0, 1])
    samples = sample_cells(*stack_maps(maps), points, map_R)
    for region in range(3):
        one = maps[map_R[region]].numpy()
        rows, columns = one.shape[1:]
        for number, (x, y) in enumerate(points[region].tolist()):
            total = np.zeros(3)
            for row in range(rows):
                for column in range(columns):
                    near = max(0, 1 - abs(x * (columns - 1) - column)) * max(0, 1 - abs(y * (rows - 1) - row))
                    total += near * one[:, row, column]
            np.testing.assert_allclose(samples[region, number], total, atol=1e-12)
        start = int(central_point(points)[region])
        chosen = [start]
        while len(chosen) < 7:
            distances = [min(math.dist(p, points[region, n].tolist()) for n in chosen) for p in points[region].tolist()]
            chosen.append(int(np.argmax(distances)))
        assert farthest_points(points, 7, central_point(points))[region].tolist() == chosen
        queries = points[:, :4]
        order = np.linalg.norm(points[region][None].numpy() - queries[region][:, None].numpy(), axis=-1).argsort(axis=1)
        nearest = nearest_points(points, queries, 5)[region].sort(dim=-1).values
        assert nearest.tolist() == np.sort(order[:, :5], axis=1).tolist()


def plain_sampler(sampler: RegionSampler, map_CHW: torch.Tensor, points_N2: torch.Tensor) -> torch.Tensor:
    """One region as the paper writes it: every pair of neighbors goes through both linear layers."""
    cells, sizes = stack_maps([map_CHW])
    features = sample_cells(cells, sizes, points_N2[None], torch.zeros(1, dtype=torch.long))[0]
    points = points_N2.double()
    for block, (anchors, neighbors) in enumerate(zip(sampler.options.anchors, sampler.options.neighbors, strict=True)):
        chosen = farthest_points(points[None], anchors, central_point(points[None]))[0]
        nearest = nearest_points(points[None], points[chosen][None], neighbors)[0]
        rows = torch.cat([features, points], dim=1)
        u = sampler.diff_projector_list[block](rows[nearest] - rows[chosen][:, None])
        pairs = torch.cat([u, rows[chosen][:, None].expand_as(u)], dim=-1)
        layer = sampler.agg_projector_list[block]
        hidden = layer.norm(layer.net(pairs.transpose(1, 2)).transpose(1, 2))
        features, points = hidden.max(dim=1).values, points[chosen]
    return sampler.dim_projector(sampler.flatten_projector(features.flatten()))


@pytest.mark.parametrize("size", [(5, 9), (40, 30)], ids=["fewer cells than points", "more cells than points"])
def test_the_sampler_equals_its_plain_form(size: tuple[int, int]) -> None:
    sampler, (one,) = build("sampler"), draw_maps(size)
    assert isinstance(sampler, RegionSampler)
    batch = prepare_regions([SHAPES], [SIZE], num_points=48)
    batch = batch._replace(points_RN2=batch.points_RN2.double())
    vectors = sampler([one], batch)
    expected = torch.stack([plain_sampler(sampler, one, points) for points in batch.points_RN2])
    torch.testing.assert_close(vectors, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_a_vector_depends_on_its_region_alone(kind: str) -> None:
    """Equal regions are equal, other images and their order change nothing, nor does what else is asked."""
    encoder, maps = build(kind), draw_maps((5, 9), (8, 4), (6, 6))
    first, second = [*SHAPES, SHAPES[0]], [SHAPES[2], SHAPES[6]]
    vectors = encoder(maps, [first, [], second], sizes=[SIZE] * 3)
    assert vectors.shape == (len(first) + len(second), 7)
    torch.testing.assert_close(vectors[0], vectors[len(SHAPES)], atol=1e-12, rtol=0)
    turned = encoder(maps[::-1], [second, [], first], sizes=[SIZE] * 3)
    torch.testing.assert_close(torch.cat([turned[2:], turned[:2]]), vectors, atol=1e-12, rtol=0)
    alone = encoder(maps[2:], [second[1:]], sizes=[SIZE])
    torch.testing.assert_close(alone[0], vectors[-1], atol=1e-12, rtol=0)
    assert not torch.allclose(vectors[0], vectors[1])


@given(st.integers(0, len(SHAPES) - 1), st.sampled_from(sorted(OPTIONS)))
@settings(max_examples=20, deadline=None)
def test_cells_outside_a_region_change_nothing(number: int, kind: str) -> None:
    encoder, (one,), shape = build(kind), draw_maps((6, 9)), SHAPES[number]
    (before,) = encoder([one], [[shape]], sizes=[SIZE])
    batch = prepare_regions([[shape]], [SIZE], num_points=48)
    inside = torch.zeros(6, 9, dtype=torch.bool)
    corners = batch.points_RN2[0] * torch.tensor([8, 5])
    if kind == "roi":
        # RoI-Align reads a box between the centers of cells, which lie half a cell away.
        (x1, y1, x2, y2) = (batch.boxes_R4[0] * torch.tensor([9, 6, 9, 6]) - 0.5).tolist()
        corners = torch.cartesian_prod(torch.linspace(x1, x2, 99), torch.linspace(y1, y2, 99)).clamp(min=0)
    for x, y in corners.tolist():
        inside[math.floor(y) : math.floor(y) + 2, math.floor(x) : math.floor(x) + 2] = True
    changed = torch.where(inside, one, one + torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
    (after,) = encoder([changed], [[shape]], sizes=[SIZE])
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)
    (moved,) = encoder([torch.where(inside, one + 1, one)], [[shape]], sizes=[SIZE])
    # A map that is one higher within the support: a constant, which no norm in front of it takes away.
    assert not torch.allclose(moved, before, atol=1e-9)


@pytest.mark.parametrize("swap", [False, True])
def test_features_that_are_coordinates_give_the_center_or_its_transpose(swap: bool) -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 9), torch.linspace(0, 1, 9), indexing="ij")
    batch = prepare_regions([[PixelBox(70, 6, 80, 12)]], [SIZE], num_points=64)
    sampler = RegionSampler(width=2, out=2, official_xy_swap=swap)
    cells, sizes = stack_maps(torch.stack([x, y])[None])
    (mean_2,) = sampler._sample(cells, sizes, batch.points_RN2, batch.map_R).mean(dim=1)
    center = torch.tensor([74.5 / 90, 8.5 / 60])
    torch.testing.assert_close(mean_2, center.flip(0) if swap else center, atol=0.02, rtol=0)
    encoder = MeanEncoder(width=2, out=2, official_xy_swap=swap)
    with torch.no_grad():
        encoder.adapter.weight.copy_(torch.eye(2))
        encoder.adapter.bias.zero_()
        (vector,) = encoder(torch.stack([x, y])[None], batch)
    torch.testing.assert_close(vector, center.flip(0) if swap else center, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_no_region_gives_zero_gradients(kind: str) -> None:
    encoder, maps = build(kind), draw_maps((5, 9), (3, 3))
    vectors = encoder(maps, [[], []], sizes=[SIZE] * 2)
    assert vectors.shape == (0, 7)
    vectors.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", sorted(OPTIONS))
def test_gradients_reach_maps_and_weights(kind: str) -> None:
    encoder, maps = build(kind), [one.requires_grad_() for one in draw_maps((5, 9))]
    encoder(maps, [SHAPES], sizes=[SIZE]).square().sum().backward()
    assert maps[0].grad is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in [*encoder.parameters(), *maps])


def test_several_tokens_of_a_region_keep_its_layout() -> None:
    encoder = build_region_encoder("roi", {"side": 2}, width=1, out=1).double()
    assert isinstance(encoder, RoiEncoder)
    torch.nn.init.ones_(encoder.adapter.weight)
    torch.nn.init.zeros_(encoder.adapter.bias)
    one = torch.arange(16, dtype=torch.float64).view(1, 4, 4)
    vectors = encoder([one], [[PixelBox(0, 0, 90, 60)]], sizes=[SIZE])
    assert encoder.tokens_per_region == 4
    assert vectors[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_300_regions() -> None:
    shapes = [PixelBox(n % 60, n % 40, n % 60 + 20, n % 40 + 15) for n in range(300)]
    vectors = build("sampler")(draw_maps((5, 9)), [shapes], sizes=[SIZE])
    assert vectors.shape == (300, 7)
    torch.testing.assert_close(vectors[0], vectors[120], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        (make_mask(slice(0, 0), slice(0, 0)), "empty"),
        (Mask((3, 3), (0, 9)), "another size"),
        (PixelBox(40, 5, 10, 50), "inverted"),
        (PixelBox(100, 5, 120, 50), "outside"),
        (PixelBox(math.nan, 5, 120, 50), "finite"),
        (Point(math.nan, 1), "finite"),
        (Stroke(()), "empty"),
        (Stroke((Point(1, math.inf),)), "finite"),
    ],
)
def test_regions_that_cannot_be_read_are_named(shape: Shape, problem: str) -> None:
    with raises_naming(UserError, "<2>", problem, "90 x 60"):
        build("sampler")(draw_maps((5, 9)), [[SHAPES[0], shape]], sizes=[SIZE])


def test_maps_and_sizes_that_do_not_fit() -> None:
    with raises_naming(UserError, "maps", "(5, 5, 9)", 6):
        build("sampler")(draw_maps((5, 9), width=5), [[SHAPES[0]]], sizes=[SIZE])
    with raises_naming(UserError, "sizes"):
        build("sampler")(draw_maps((5, 9)), [[SHAPES[0]]])
    # A mask knows the size of its image.
    assert build("sampler")(draw_maps((5, 9)), [[SHAPES[6]]]).shape == (1, 7)


@given(
    st.lists(st.tuples(st.floats(0, 90), st.floats(0, 60)), min_size=2, max_size=5),
    st.sampled_from([1, 7, 64, 513]),
)
@settings(max_examples=50, deadline=None)
def test_points_lie_in_the_mask_and_cover_it(xy: Sequence[tuple[float, float]], count: int) -> None:
    (x1, y1), (x2, y2) = xy[:2]
    low, high = (min(x1, x2), min(y1, y2)), (max(x1, x2), max(y1, y2))
    shapes: list[Shape] = [Point(x1, y1), Stroke(tuple(Point(*point) for point in xy))]
    if low[0] < high[0] and low[1] < high[1]:
        shapes.append(PixelBox(*low, *high))
    for shape in shapes:
        mask_HW = region_mask(shape, SIZE)
        points, distinct = draw_points(shape, SIZE, count)
        columns, rows = np.round(points * np.array(SIZE[::-1])).astype(int).T
        assert mask_HW[rows, columns].all()
        assert 0 <= points.min() <= points.max() < 1
        total = mask_HW.sum()
        assert distinct == min(total, count)
        assert len(set(zip(rows[:distinct], columns[:distinct], strict=True))) == distinct
        np.testing.assert_array_equal(points, draw_points(shape, SIZE, count)[0])


def test_a_long_stroke_is_traced_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    xy = np.random.default_rng(0).uniform((0, 0), SIZE[::-1], size=(40, 2)).tolist()
    stroke = Stroke(tuple(Point(*point) for point in xy))
    whole = region_mask(stroke, SIZE)
    for count in (1, 200):
        monkeypatch.setattr(masks, "_MAX_SAMPLES", count)
        assert np.array_equal(region_mask(stroke, SIZE), whole)


def test_a_radius_in_patches_is_the_same_part_of_the_image_at_any_size() -> None:
    small, large = (region_mask(Point(w / 2, h / 2), (h, w), radius=patch_radius((h, w), (6, 9), 0.5))
                    for h, w in ((60, 90), (600, 900)))  # fmt: skip
    assert small.mean() == pytest.approx(large.mean(), rel=0.25)
    assert large.sum() == 101 * 101
