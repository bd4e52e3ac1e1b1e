"""Goldens of Ferret's region masks and spatial-aware sampler: indices recorded, and from the seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.shapes import Mask, Point, Shape, encode_mask
from foveate.vision.regions import RegionBatch, sample_cells, stack_maps
from foveate.vision.regions.masks import region_mask
from foveate.vision.regions.mean import mean_samples
from foveate.vision.regions.sampler import RegionSampler, draw_official_points, farthest_points, nearest_points
from naming import raises_naming

GOLDENS = Path(__file__).parents[1] / "goldens" / "ferret"
MASKS = json.loads((GOLDENS / "region_masks.json").read_text())
CASES = json.loads((GOLDENS / "geo_sampler.json").read_text())
ORIENTATIONS = ("official_mask_wh", "mask_hw")


@pytest.fixture(scope="module")
def stored() -> Any:
    return np.load(GOLDENS / "geo_sampler.npz")


def as_mask(mask_HW: np.ndarray) -> Mask:
    encoded = encode_mask(mask_HW)
    return Mask((mask_HW.shape[0], mask_HW.shape[1]), tuple(encoded["counts"]))


@pytest.mark.parametrize("case", MASKS, ids=[case["case"] for case in MASKS])
def test_masks_are_those_of_the_official_code(case: dict[str, Any]) -> None:
    arrays, size = np.load(GOLDENS / "region_masks.npz"), (case["image_h"], case["image_w"])

    def unpack(name: str, shape: tuple[int, int]) -> np.ndarray:
        return np.unpackbits(arrays[f"{case['case']}/{name}"], count=size[0] * size[1]).reshape(shape).astype(bool)

    def to_edges(x1: float, y1: float, x2: float, y2: float) -> PixelBox:
        # The code counts the pixel that a far corner lies in; here a corner is an edge.
        return PixelBox(int(x1), int(y1), int(x2) + 1, int(y2) + 1)

    coordinates = case["coor"]
    shape: Shape = Point(*coordinates) if len(coordinates) == 2 else to_edges(*coordinates)
    within: Shape | None = to_edges(*case["box"]) if "box" in case else None
    if case.get("has_sam"):
        within = as_mask(unpack("sam_hw", size))
    if "lvis_free" in case["kind"]:
        within = as_mask(unpack("free_wh", size[::-1]).T)
    mask_HW = region_mask(shape, size, within=within)
    assert mask_HW.sum() == case["n_pixels"]
    np.testing.assert_array_equal(mask_HW.T, unpack("out_wh", size[::-1]))


def build(case: dict[str, Any], stored: Any, *, swap: bool) -> RegionSampler:
    sampler = RegionSampler(
        width=case["input_dim"],
        out=case["output_dim"],
        num_points=case["num_init_point"],
        anchors=case["num_sub_point"],
        neighbors=case["num_neighbor"],
        pool=case["pooler"],
        official_xy_swap=swap,
    )
    prefix = f"{case['case']}/w/"
    weights = {name[len(prefix) :]: torch.from_numpy(stored[name]) for name in stored.files if name.startswith(prefix)}
    sampler.load_state_dict(weights)
    return sampler.eval().requires_grad_(False)


def read_maps(case: dict[str, Any], stored: Any) -> tuple[list[Tensor], Tensor]:
    """The maps of a case as [C, H, W], and the number of the map of each region."""
    images = range(len(case["images"]))
    maps = [torch.from_numpy(stored[f"{case['case']}/feature_map_HWC_{image}"]).permute(2, 0, 1) for image in images]
    return maps, torch.tensor([image for image in images for _ in case["images"][image]["kinds"]])


def read_outputs(case: dict[str, Any], orientation: str, stored: Any) -> Tensor:
    prefix = f"{case['case']}/{orientation}/out_"
    names = [f"{prefix}{image}" for image in range(len(case["images"])) if case["images"][image]["kinds"]]
    assert [name for name in stored.files if name.startswith(prefix)] == names
    return torch.cat([torch.from_numpy(stored[name]) for name in names])


def make_batch(points_RN2: Tensor, map_R: Tensor) -> RegionBatch:
    regions = len(points_RN2)
    return RegionBatch(points_RN2, torch.full((regions,), points_RN2.shape[1]), torch.zeros(regions, 4), map_R)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_blocks_from_recorded_indices(case: dict[str, Any], orientation: str, stored: Any) -> None:
    sampler, prefix = build(case, stored, swap=True), f"{case['case']}/{orientation}"
    points = torch.from_numpy(stored[f"{prefix}/init_points"])
    features = torch.from_numpy(stored[f"{prefix}/init_features"])
    for block in range(len(case["num_sub_point"])):
        anchors = torch.from_numpy(stored[f"{prefix}/fps_idx_{block}"]).long()
        neighbors = torch.from_numpy(stored[f"{prefix}/knn_idx_{block}"]).long()
        # Of the order of neighbors nothing may depend.
        shuffled = neighbors.flip(-1)
        features = sampler.aggregate(block, features, points, anchors, shuffled)
        points = points.gather(1, anchors[..., None].expand(-1, -1, 2))
    expected = read_outputs(case, orientation, stored)
    torch.testing.assert_close(sampler.project(features), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_features_at_recorded_points(case: dict[str, Any], stored: Any) -> None:
    maps, map_R = read_maps(case, stored)
    cells, sizes = stack_maps(maps)
    for orientation in ORIENTATIONS:
        points = torch.from_numpy(stored[f"{case['case']}/{orientation}/init_points"])
        features = torch.from_numpy(stored[f"{case['case']}/{orientation}/init_features"])
        torch.testing.assert_close(sample_cells(cells, sizes, points.flip(-1), map_R), features, atol=1e-5, rtol=0)
    points = torch.from_numpy(stored[f"{case['case']}/official_mask_wh/init_points"])
    features = torch.from_numpy(stored[f"{case['case']}/corrected_xy/init_features"])
    torch.testing.assert_close(sample_cells(cells, sizes, points, map_R), features, atol=1e-5, rtol=0)


# Where points lie at equal distance, the rounding of a product decides which of them are neighbors. The official code
# was run with fused multiply-adds; without them the test after this one holds.
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch runs without AVX2 and FMA")
@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
@pytest.mark.parametrize("orientation", [*ORIENTATIONS, "corrected_xy"])
def test_vectors_from_masks_and_the_seed(case: dict[str, Any], orientation: str, stored: Any) -> None:
    maps, map_R = read_maps(case, stored)
    generator = torch.Generator().manual_seed(case["seed"])
    points = []
    for image, described in enumerate(case["images"]):
        for number in range(len(described["kinds"])):
            mask_HW = torch.from_numpy(stored[f"{case['case']}/mask_hw_{image}_{number}"])
            points.append(
                draw_official_points(
                    mask_HW.T if orientation == "mask_hw" else mask_HW, case["num_init_point"], generator
                )
            )
    points_RN2 = torch.stack(points)
    if orientation != "corrected_xy":
        np.testing.assert_array_equal(points_RN2.numpy(), stored[f"{case['case']}/{orientation}/init_points"])
    sampler = build(case, stored, swap=orientation != "corrected_xy")
    vectors = sampler(maps, make_batch(points_RN2, map_R), generator=generator)
    torch.testing.assert_close(vectors, read_outputs(case, orientation, stored), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_anchors_are_equal_and_neighbors_equally_near(case: dict[str, Any], orientation: str, stored: Any) -> None:
    """Anchors are those of the official code; the distances of neighbors are, too, whichever of two equals is taken."""
    prefix = f"{case['case']}/{orientation}"
    points = torch.from_numpy(stored[f"{prefix}/init_points"])

    def distances(queries_RM2: Tensor, neighbor_RMK: Tensor) -> Tensor:
        rows_R11 = torch.arange(len(points))[:, None, None]
        return (points[rows_R11, neighbor_RMK] - queries_RM2[:, :, None]).norm(dim=-1).sort(dim=-1).values

    for block in range(len(case["num_sub_point"])):
        anchors, neighbors = (
            torch.from_numpy(stored[f"{prefix}/{name}_idx_{block}"]).long() for name in ("fps", "knn")
        )
        assert torch.equal(farthest_points(points, anchors.shape[1], anchors[:, 0]), anchors)
        queries = points.gather(1, anchors[..., None].expand(-1, -1, 2))
        nearest = nearest_points(points, queries, neighbors.shape[-1])
        torch.testing.assert_close(distances(queries, nearest), distances(queries, neighbors), atol=1e-5, rtol=0)
        points = queries


def test_primitives() -> None:
    stored = np.load(GOLDENS / "sampler_primitives.npz")
    points, expected = torch.from_numpy(stored["fps/xyz"]), torch.from_numpy(stored["fps/idx"])
    assert farthest_points(points, expected.shape[1], expected[:, 0]).tolist() == expected.tolist()
    queries, neighbors = torch.from_numpy(stored["knn/query"]), stored["knn/idx_sorted_set"]
    nearest = nearest_points(points, queries, neighbors.shape[-1]).sort(dim=-1).values
    assert nearest.tolist() == neighbors.tolist()
    maps, xy = (torch.from_numpy(stored[f"point_sample/{name}"]) for name in ("input_NCHW", "xy"))
    samples = sample_cells(*stack_maps(maps), xy, torch.arange(len(xy)))
    torch.testing.assert_close(
        samples.transpose(1, 2), torch.from_numpy(stored["point_sample/out_NCP"]), atol=1e-6, rtol=0
    )


def test_mean_of_samples() -> None:
    stored = np.load(GOLDENS / "mean_pool_baseline.npz")
    maps = torch.from_numpy(stored["feature_map"]).transpose(1, 2).unflatten(2, (6, 6))
    for image in range(2):
        for number in range(2):
            mask_HW = torch.from_numpy(stored[f"mask_wh_{image}_{number}"]).T
            # All pixels: there are fewer than the official limit of 512.
            points = draw_official_points(mask_HW, int(mask_HW.sum()), torch.Generator())
            batch = make_batch(points[None].flip(-1), torch.tensor([image]))
            expected = torch.from_numpy(stored[f"out_{image}"][number : number + 1])
            torch.testing.assert_close(mean_samples(maps, batch), expected, atol=1e-5, rtol=0)


def test_an_empty_mask_has_no_points_to_draw() -> None:
    with raises_naming(UserError, "4 x 6", "empty"):
        draw_official_points(torch.zeros(4, 6, dtype=torch.bool), 2, torch.Generator())
