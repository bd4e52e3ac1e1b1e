"""Data of the study `ferret`, frozen features of it, and the measures on these.

Things stand in the cells of a grid, so that a layout (3 x 3 cells, names that repeat) and small things (4 x 4 cells of
a large image) are drawn alike. Names, cut-outs and grounds are those of the study `mllm`, and so are its questions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from foveate.core import seeds
from foveate.core.files import write_bytes_atomically
from foveate.core.progress import track
from foveate.mllm.dense import DenseSettings, prepare_dense
from foveate.records.box_text import Decoding, decode_region, encode_region
from foveate.records.boxes import PixelBox, intersection_over_union
from foveate.records.shapes import Mask, Point, Shape, encode_mask
from foveate.vision.anyres_map import fuse_views, merge_tiles
from foveate.vision.canvas import render_input
from foveate.vision.encoder import ImageEncoder
from foveate.vision.lite0 import Lite0Encoder, unpack_maps
from foveate.vision.regions import RegionBatch, build_region_encoder, prepare_regions
from foveate.vision.regions.mean import mean_samples
from foveate.vision.registry import seeded
from foveate.vision.tiling import Grid, ImageSize, TilingOptions, plan_tiles
from foveate_labs.studies.mllm_worlds import SEED, draw_asked_scene, load_things, scene_key
from foveate_labs.worlds.asked_images import AskedImage, Position, write_asked_images
from foveate_labs.worlds.scenes.compose import Finish, put_in_cell
from foveate_labs.worlds.scenes.grounds import draw_ground
from foveate_labs.worlds.scenes.scene import VISIBLE, ScenePlan, make_cutout_layer, render
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
class SceneSettings:
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


_SIZES = SceneSettings(names=40, cells=4, things=8, longest=(0.02, 0.2), size=2 * VIEW)
WORLDS = {
    "layout": SceneSettings(names=10, cells=3, things=6, longest=(0.2, 0.3), repeats=True),
    # Larger than their cells: a box shows parts of its neighbors.
    "shapes": SceneSettings(names=40, cells=3, things=6, longest=(0.26, 0.5)),
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
    scene = render(ScenePlan(ground, layers, tuple(cutouts), ("",) * len(cutouts), Finish.draw(rng)), rng)
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
                # Fuse maps of one tower only: those of two differ in width and cannot be added.
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
            # Take a region of another name: with one of the same name the answer would be right.
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


# Measures of the study `ferret` on frozen features: a classifier of names behind a region encoder, and decoded boxes.
#
# A control swaps what is read: no image, another image's features, or another region of the same image.


WIDTH = 128
IMAGES, VECTORS = 16, 256  # of a step
TRAIN_SHARE = 0.75  # of the training images, drawn by the seed
_RATE, _DECAY = 2e-3, 0.05


class RegionClassifier(nn.Module):
    """Projected maps of the frozen network, a region encoder, and a linear classifier of names."""

    def __init__(self, encoder: Mapping[str, Any], *, names: int, seed: int) -> None:
        super().__init__()
        options = dict(encoder)
        with seeded(seed):
            self.tower = Lite0Encoder(image_size=VIEW, width=WIDTH, embed_dim=8, position="none")
            self.regions = build_region_encoder(options.pop("kind"), options, width=WIDTH, out=WIDTH, seed=seed)
            self.norm = nn.LayerNorm(WIDTH)
            self.names = nn.Linear(self.regions.tokens_per_region * WIDTH, names)

    def forward(self, features_BF: Tensor, regions: RegionBatch) -> Tensor:
        maps_BCHW = self.tower(features_BF).tokens.transpose(1, 2).unflatten(2, self.tower.grid)
        vectors = self.norm(self.regions(maps_BCHW, regions))
        return self.names(vectors.flatten(1))


def train_classifier(data: PointedSet, encoder: Mapping[str, Any], *, names: int, steps: int, seed: int) -> nn.Module:
    """Train a classifier of regions that are pointed at by a point, box, stroke or mask, drawn anew in each step."""
    model = RegionClassifier(encoder, names=names, seed=seed)
    rng = seeds.generator("study ferret", seed)
    num_images = len(data.features_BF)
    # Each seed trains on another part: intervals cover the data, too, not only initial weights.
    images = rng.permutation(num_images)[: round(TRAIN_SHARE * num_images)]
    optimizer, schedule = _make_optimizer(model, steps)
    for _ in range(steps):
        batch = torch.from_numpy(rng.choice(images, min(IMAGES, len(images)), replace=False))
        rows_R, map_R = select_regions(data.image_R, batch)
        kinds_R = torch.from_numpy(rng.integers(len(SHAPES), size=len(rows_R)))
        logits = model(data.features_BF[batch], _mix_shapes(data, rows_R, map_R, kinds_R))
        _step(optimizer, schedule, logits, data.name_R[rows_R])
    return model.eval()


def select_regions(image_R: Tensor, images_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the regions of some images, and the position of each one's image among these.

    >>> rows, maps = select_regions(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([2, 0]))
    >>> rows.tolist(), maps.tolist()
    ([0, 1, 3, 4], [1, 1, 0, 0])
    """
    position_N = torch.full((int(image_R.max()) + 1,), -1)
    position_N[images_B] = torch.arange(len(images_B))
    map_R = position_N[image_R]
    rows_R = (map_R >= 0).nonzero()[:, 0]
    return rows_R, map_R[rows_R]


def _mix_shapes(data: PointedSet, rows_R: Tensor, map_R: Tensor, kinds_R: Tensor) -> RegionBatch:
    """Return regions, each by the kind of shape that is drawn for it."""
    of_kinds = [data.regions[kind].select(rows_R) for kind in SHAPES]
    points_RN2, count_R, boxes_R4, _ = (
        torch.stack(columns)[kinds_R, torch.arange(len(rows_R))] for columns in zip(*of_kinds, strict=True)
    )
    return RegionBatch(points_RN2, count_R, boxes_R4, map_R)


@torch.inference_mode()
def score_classifier(model: nn.Module, data: PointedSet) -> dict[str, float]:
    """Return the share of right names for each kind of shape, and that of the controls, asked by boxes."""
    features, box = data.features_BF, data.regions["box"]
    requests = {
        **{kind: (features, data.regions[kind]) for kind in (*SHAPES, POINT_AS_BOX)},
        "no_image": (torch.zeros_like(features), box),
        # The region keeps its place and shape: only what is seen there changes.
        "another_image": (features.roll(1, dims=0), box),
        "shuffled": (features, box.select(data.neighbor_R)),
    }
    alone_R = data.neighbor_R == torch.arange(len(data.neighbor_R))
    scores = {}
    for name, (features_BF, regions) in requests.items():
        right = []
        for start in range(0, len(features_BF), IMAGES):
            images = torch.arange(start, min(start + IMAGES, len(features_BF)))
            rows_R, map_R = select_regions(data.image_R, images)
            logits = model(features_BF[images], regions.select(rows_R)._replace(map_R=map_R))
            right.append(logits.argmax(dim=1) == data.name_R[rows_R])
        right_R = torch.cat(right)
        # A thing that is alone in its image has no other region that could be asked about.
        scores[name] = float((right_R[~alone_R] if name == "shuffled" else right_R).float().mean())
    return scores


def probe_vectors(
    train: PointedSet, test: PointedSet, maps: Sequence[str], *, names: int, steps: int, seed: int
) -> dict[str, float]:
    """Train a linear classifier on region vectors of one or several maps, and score it by size and control.

    Several maps have a layer each: linear adapters of maps are those of their vectors.
    """

    def join(data: PointedSet, prefix: str = "") -> Tensor:
        parts = [data.vectors[prefix + name] for name in maps]
        # Each map by itself: features of two towers differ in scale.
        return torch.cat([nn.functional.layer_norm(part, part.shape[-1:]) for part in parts], dim=1)

    inputs_RC = join(train)
    rng = seeds.generator("study ferret", seed)
    num_images = int(train.image_R.max()) + 1
    images = torch.from_numpy(rng.permutation(num_images)[: round(TRAIN_SHARE * num_images)])
    rows, _ = select_regions(train.image_R, images)
    with seeded(seed):
        model = nn.Linear(inputs_RC.shape[1], names)
    optimizer, schedule = _make_optimizer(model, steps)
    for _ in range(steps):
        batch = rows[torch.from_numpy(rng.integers(len(rows), size=VECTORS))]
        _step(optimizer, schedule, model(inputs_RC[batch]), train.name_R[batch])
    inputs_of = {"all": join(test), "another_image": join(test, "another_image/")}
    inputs_of |= {"no_image": torch.zeros_like(inputs_of["all"]), "shuffled": inputs_of["all"][test.neighbor_R]}
    with torch.inference_mode():
        right = {name: (model(inputs).argmax(dim=1) == test.name_R).float() for name, inputs in inputs_of.items()}
    small = test.longest_R <= SMALL
    parts = {"small": right["all"][small], "large": right["all"][~small]}
    alone = test.neighbor_R == torch.arange(len(test.neighbor_R))
    parts |= {"no_image": right["no_image"], "another_image": right["another_image"]}
    parts["shuffled"] = right["shuffled"][~alone]
    return {name: float(values.mean()) for name, values in parts.items()}


def _make_optimizer(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)


def _step(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, logits: Tensor, names: Tensor
) -> None:
    optimizer.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(logits, names).backward()
    optimizer.step()
    schedule.step()


def score_decoding(
    decoding: Decoding, *, size: tuple[int, int], sides: Sequence[int], count: int, seed: int
) -> dict[str, float]:
    """Return the mean IoU of boxes with themselves, sent through digits and back, by their side in pixels."""
    (width, height), scores = size, {}
    for side in sides:
        # The stream does not depend on the decoding: both are compared on the same boxes.
        rng = seeds.generator("study ferret decoding", seed, side)
        corners_N2 = rng.uniform(0, (width - side, height - side), size=(count, 2))
        boxes_N4 = np.concatenate([corners_N2, corners_N2 + side], axis=1)
        decoded = [_send(PixelBox(*map(float, box)), width, height, decoding) for box in boxes_N4]
        scores[f"iou_{side}"] = float(intersection_over_union(decoded, boxes_N4).mean())
    return scores


def _send(box: PixelBox, width: int, height: int, decoding: Decoding) -> list[float]:
    back = decode_region(encode_region(box, width=width, height=height), width=width, height=height, decoding=decoding)
    assert isinstance(back, PixelBox), "four bins are a box"
    return [back.x1, back.y1, back.x2, back.y2]
