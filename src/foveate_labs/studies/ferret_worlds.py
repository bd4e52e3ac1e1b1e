"""Data of the study `ferret`: scenes whose things are pointed at, and frozen features of them, computed once.

Things stand in the cells of a grid, so that a layout (3 x 3 cells, names that repeat) and small things (4 x 4 cells of
a large image) are drawn alike. Names, cut-outs and grounds are those of the study `mllm`, and so are its questions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from foveate.core import seeds
from foveate.core.files import write_bytes_atomically
from foveate.core.progress import track
from foveate.mllm.dense import DenseSettings, prepare_dense
from foveate.records.boxes import PixelBox
from foveate.records.masks import encode_mask
from foveate.records.shapes import Mask, Point, Shape
from foveate.vision.anyres_map import fuse_views, merge_tiles
from foveate.vision.canvas import render_input
from foveate.vision.encoder import ImageEncoder
from foveate.vision.lite0 import Lite0Encoder, unpack_maps
from foveate.vision.regions import RegionBatch, prepare_regions
from foveate.vision.regions.mean import mean_samples
from foveate.vision.tiling import Grid, ImageSize, TilingOptions, plan_tiles
from foveate_labs.studies.mllm_worlds import SEED, draw_asked_scene, load_things, scene_key
from foveate_labs.worlds.asked_images import AskedImage, Position, write_asked_images
from foveate_labs.worlds.scenes.compose import Finish, put_in_cell
from foveate_labs.worlds.scenes.grounds import draw_ground
from foveate_labs.worlds.scenes.scene import VISIBLE, Plan, make_cutout_layer, render
from foveate_labs.worlds.scenes.scene_collection import LICENSE
from foveate_labs.worlds.scenes.strokes import draw_point, draw_stroke

SHAPES = ("point", "box", "stroke", "mask")
POINT_AS_BOX = "point_as_box"
NUM_POINTS = 64  # of a region
VIEW = 224  # side of a view in pixels
SMALL = 0.06  # longest side of a small thing, as a share of the image
_POINT_BOX = 0.2  # side of the box around a point, as a share of the image
_MIN_PIXELS = 4  # shortest side of a thing that is pointed at
_BATCH = 16


@dataclass(frozen=True)
class World:
    """How the scenes of a condition are drawn.

    Attributes:
        names: number of names. repeats: whether a scene may show a name twice.
        cells: rows and columns of the grid. things: in as many of its cells.
        longest: bounds of a thing's longest side, as shares of the image.
        size: side of the image in pixels.
    """

    names: int
    cells: int
    things: int
    longest: tuple[float, float]
    size: int = VIEW
    repeats: bool = False


_SIZES = World(names=40, cells=4, things=8, longest=(0.02, 0.2), size=2 * VIEW)
WORLDS = {
    "layout": World(names=10, cells=3, things=6, longest=(0.2, 0.3), repeats=True),
    # Larger than their cells: a box shows parts of its neighbors.
    "shapes": World(names=40, cells=3, things=6, longest=(0.26, 0.5)),
    "sizes-448": _SIZES,
    "sizes-672": replace(_SIZES, size=3 * VIEW),
}


@dataclass(frozen=True)
class PointedImage:
    """An image and the things in it that are pointed at.

    Attributes:
        names: number of each thing's name. longest: side of each one as a share of the image.
        shapes: of each thing, by kind.
    """

    image: Image.Image
    names: tuple[int, ...]
    longest: tuple[float, ...]
    shapes: tuple[dict[str, Shape], ...]


def draw_pointed_scene(condition: str, position: Position) -> PointedImage:
    """Draw scene `position` of a condition; a thing that is mostly covered is not pointed at."""
    world, (split, index) = WORLDS[condition], position
    rng = seeds.generator("study ferret", SEED, condition, split, index)
    if world.repeats:
        names = [int(number) for number in rng.integers(world.names, size=world.things)]
    else:
        names = [int(number) for number in rng.permutation(world.names)[: world.things]]
    variants = [load_things()[name] for name in names]
    cutouts = [of_name[int(rng.integers(len(of_name)))] for of_name in variants]
    # No training image has a ground of the test.
    ground = draw_ground(rng, size=world.size, held_out=split == "test")
    cells = rng.permutation(world.cells**2)[: world.things]
    layers = tuple(
        put_in_cell(
            rng,
            make_cutout_layer(rng, cutout, world.size, longest=world.longest),
            divmod(int(cell), world.cells),
            size=world.size,
            cells=world.cells,
        )
        for cutout, cell in zip(cutouts, cells, strict=True)
    )
    scene = render(Plan(ground, layers, tuple(cutouts), ("",) * len(cutouts), Finish.draw(rng)), rng)
    things = []
    for name, placed in zip(names, scene.objects, strict=True):
        box = placed.box.to_pixels(world.size, world.size) if placed.box else None
        if box and placed.visible >= VISIBLE and min(box.x2 - box.x1, box.y2 - box.y1) >= _MIN_PIXELS:
            longest = max(box.x2 - box.x1, box.y2 - box.y1) / world.size
            things.append((name, longest, _draw_shapes(placed.mask_HW, box, rng)))
    # Whatever is drawn, at least the topmost thing can be seen.
    assert things, f"scene {position} of '{condition}' shows nothing"
    names_N, longest_N, shapes_N = zip(*things, strict=True)
    return PointedImage(scene.image, names_N, longest_N, shapes_N)


def _draw_shapes(mask_HW: NDArray[np.bool_], box: PixelBox, rng: np.random.Generator) -> dict[str, Shape]:
    encoded = encode_mask(mask_HW)
    point, size = draw_point(mask_HW, rng), len(mask_HW)
    return {
        "point": point,
        "box": box,
        "stroke": draw_stroke(mask_HW, rng),
        "mask": Mask((size, size), tuple(encoded["counts"])),
        POINT_AS_BOX: box_point(point, size),
    }


def box_point(point: Point, size: int) -> PixelBox:
    """Return the square of a fifth of the image around a point, cut at its edges."""
    half = _POINT_BOX * size / 2
    low, high = ([min(max(at + sign * half, 0.0), size) for at in (point.x, point.y)] for sign in (-1, 1))
    return PixelBox(*low, *high)


@dataclass(frozen=True)
class PointedSet:
    """Frozen features of the images of a split, and their regions in the order of the images.

    Attributes:
        features_BF: packed maps of each image (condition with one view an image).
        vectors: [R, C] means of a map at each region's box, by map; with "another_image/" in front, of the next image.
        name_R, longest_R, image_R: name, size and image of each region.
        neighbor_R: another region of the same image; the region itself where there is none.
        regions: of each kind of shape; `map_R` is the image.
    """

    features_BF: Tensor
    vectors: dict[str, Tensor]
    name_R: Tensor
    longest_R: Tensor
    image_R: Tensor
    neighbor_R: Tensor
    regions: dict[str, RegionBatch]


def load_set(path: Path) -> PointedSet:
    """Read a file of `write_set`."""
    tensors = load_file(path)
    regions = {
        kind: RegionBatch(
            tensors[f"points/{kind}"], tensors[f"count/{kind}"], tensors[f"boxes/{kind}"], tensors["image"]
        )
        for kind in (*SHAPES, POINT_AS_BOX)
        if f"points/{kind}" in tensors
    }
    vectors = {name.removeprefix("vectors/"): value for name, value in tensors.items() if name.startswith("vectors/")}
    return PointedSet(
        tensors["features"],
        vectors,
        tensors["name"],
        tensors["longest"],
        tensors["image"],
        tensors["neighbor"],
        regions,
    )


def write_set(path: Path, condition: str, split: str, count: int, *, tower: ImageEncoder | None = None) -> None:
    """Draw the scenes of a split and write their features; a file that is there stays as it is.

    Args:
        tower: encodes the tiles instead of the frozen network.
    """
    if path.is_file():
        return
    draw = functools.partial(draw_pointed_scene, condition)
    scenes = [draw((split, index)) for index in track(range(count), description=f"{condition}, {split}")]
    image_R = torch.tensor([number for number, image in enumerate(scenes) for _ in image.names])
    tensors = {
        "name": torch.tensor([name for image in scenes for name in image.names]),
        "longest": torch.tensor([longest for image in scenes for longest in image.longest]),
        "image": image_R,
        "neighbor": find_neighbors(image_R),
    }
    sizes = [image.image.size[::-1] for image in scenes]
    # Tiled conditions are asked by boxes alone, from vectors that need no region encoder.
    if WORLDS[condition].size == VIEW:
        for kind in (*SHAPES, POINT_AS_BOX):
            listed = [[shapes[kind] for shapes in image.shapes] for image in scenes]
            batch = prepare_regions(listed, sizes, num_points=NUM_POINTS)
            tensors |= {
                f"points/{kind}": batch.points_RN2, f"count/{kind}": batch.count_R, f"boxes/{kind}": batch.boxes_R4
            }  # fmt: skip
        tensors["features"] = _encode([image.image for image in scenes])
    else:
        # Empty, to keep one file format: tiled conditions store vectors in place of maps.
        tensors["features"] = torch.zeros(0)
        tensors |= {f"vectors/{name}": value for name, value in _encode_tiled(scenes, tower).items()}
    write_bytes_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}))


def find_neighbors(image_R: Tensor) -> Tensor:
    """Return for each region the next one of its image, cyclically; images are in order.

    >>> find_neighbors(torch.tensor([0, 0, 0, 1, 2, 2])).tolist()
    [1, 2, 0, 3, 5, 4]
    """
    index_R = torch.arange(len(image_R))
    starts = torch.searchsorted(image_R, image_R)
    ends = torch.searchsorted(image_R, image_R, right=True)
    return torch.where(index_R + 1 < ends, index_R + 1, starts)


@functools.cache
def _frozen_network() -> Lite0Encoder:
    return Lite0Encoder(image_size=VIEW, width=8, embed_dim=8).eval()


def _encode(images: Sequence[Image.Image]) -> Tensor:
    encoder = _frozen_network()
    # Scenes are drawn at the size of a view, so nothing is resized.
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images])
    parts = track(pixels.split(_BATCH), description="frozen features")
    return torch.cat([encoder.frozen_features(part) for part in parts])


def join_maps(features_BF: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return both maps of the frozen network as the tokens of one [B, L, 432]; the coarse one is enlarged."""
    fine_BHWC, coarse_BHWC = unpack_maps(features_BF.float(), grid)
    coarse_BCHW = torch.nn.functional.interpolate(coarse_BHWC.permute(0, 3, 1, 2), size=grid, mode="bilinear")
    return torch.cat([fine_BHWC.flatten(1, 2), coarse_BCHW.flatten(2).transpose(1, 2)], dim=2)


@torch.inference_mode()
def _encode_tiled(scenes: Sequence[PointedImage], tower: ImageEncoder | None) -> dict[str, Tensor]:
    """Return the means of maps at the boxes of all things: one view, tiles, and both in one map (of one tower)."""
    encoder = _frozen_network()
    parts: dict[str, list[Tensor]] = {}
    for start in track(range(0, len(scenes), _BATCH), description="tiles"):
        batch = scenes[start : start + _BATCH]
        maps: dict[str, list[Tensor]] = {}
        for image in batch:
            side = image.image.width // VIEW
            options = TilingOptions(
                rule="static", tile=VIEW, grids=(Grid(side, side),), fit="stretch", overview="before"
            )
            plan = plan_tiles(ImageSize(image.image.height, image.image.width), options)
            features = encoder.frozen_features(render_input(encoder.preprocess, image.image, plan))
            views_VLC = join_maps(features, encoder.grid)
            of_image = {"view": views_VLC[0].T.unflatten(1, encoder.grid)}
            if tower is None:
                of_image["tiles"] = merge_tiles(views_VLC[1:], plan, encoder.grid)
                # Of one tower only: maps of two differ in width and cannot be added.
                of_image["fused"] = fuse_views(views_VLC, plan, encoder.grid)
            else:
                of_image["tiles"] = merge_tiles(tower(features[1:]).tokens, plan, tower.grid)
            for name, map_CHW in of_image.items():
                maps.setdefault(name, []).append(map_CHW)
        sizes = [image.image.size[::-1] for image in batch]
        boxes = [[shapes["box"] for shapes in image.shapes] for image in batch]
        # Stretched tiles cover the image, so that regions lie in the merged map as in the image.
        regions = prepare_regions(boxes, sizes, num_points=NUM_POINTS)
        for name, of_batch in maps.items():
            parts.setdefault(name, []).append(mean_samples(of_batch, regions))
            # Another image of the same batch: the control needs no encoding of its own.
            rolled = [*of_batch[1:], of_batch[0]]
            parts.setdefault(f"another_image/{name}", []).append(mean_samples(rolled, regions))
    return {name: torch.cat(of_batches) for name, of_batches in parts.items()}


def draw_asked_regions(position: Position, *, without: Sequence[str] = ()) -> list[AskedImage]:
    """Draw a scene of the study `mllm` with its questions about regions.

    In training the kinds of questions in `without` are left out. In the test each thing's name is asked for again with
    the region of another thing: where the region is read, that name is not the answer.
    """
    (image,) = draw_asked_scene(position)
    named = [talk for talk in image.conversations if talk.id.startswith("name/")]
    talks = [talk for talk in image.conversations if talk.id.partition("/")[0] in ("name", "where")]
    if position[0] == "train":
        talks = [talk for talk in talks if talk.id.partition("/")[0] not in without]
    else:
        for talk, other in zip(named, [*named[1:], *named[:1]], strict=True):
            # Of another name: alone in its scene, or beside a thing of its name, the answer would be right.
            if talk.turns[1].text == other.turns[1].text:
                continue
            question = replace(talk.turns[0], regions=other.turns[0].regions)
            talks.append(replace(talk, id=talk.id.replace("name/", "shuffled/", 1), turns=(question, *talk.turns[1:])))
    return [replace(image, conversations=tuple(talks))]


def build_questions(target: Path, *, train: int, test: int, without: Sequence[str] = ()) -> None:
    """Write scenes with questions about regions, and dense ones of stage II, into a collection."""
    counts = {"train": train, "test": test}
    draw = functools.partial(draw_asked_regions, without=tuple(without))
    write_asked_images(target, draw, scene_key, counts=counts, source="scenes", license=LICENSE, workers=1)
    prepare_dense(target, DenseSettings(split="train"), seed=SEED)
