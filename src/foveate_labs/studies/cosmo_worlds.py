"""Worlds of the study `cosmo`: animals on generated camera-trap images, as features of a frozen encoder.

Images are drawn, cropped and encoded once for each world and kept in the run folder; trainings read features alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.files import atomic_file
from foveate.records.geometry import View
from foveate.species.crops import choose_box, crop_view
from foveate.survey.taxa import Taxa
from foveate.vision.detectors import NanoDetProposer, ProposalSettings
from foveate.vision.encoder import ImageEncoder
from foveate.vision.preprocess import place_image, render_image
from foveate.vision.registry import build_image_encoder
from foveate_labs.worlds.traps.image import TrapImage, render_frame
from foveate_labs.worlds.traps.kinds import KINDS
from foveate_labs.worlds.traps.world import Frame, TrapSettings, World, load_world

EXACT, WHOLE, NANODET = "exact", "whole", "nanodet"
VIEWS = (EXACT, WHOLE, NANODET)
ENCODER: dict[str, Any] = {"kind": "lite0", "image_size": 160, "width": 8, "embed_dim": 8}
MARGIN, MIN_SCORE = 0.1, 0.2  # of crops, as `foveate species` has them
_BATCH = 16


@dataclass(frozen=True)
class TrapImages:
    """Images with an animal: what is true about them, and features by view.

    Args:
        kinds_N: index into `KINDS`. cameras_N: index into the cameras of the split. events_N: numbered from 0.
        places_N2: degrees. hours_N: whole clock hours.
        unseen_N: whether no training image has this drawing.
        features_VNF: of the views of the world, in their order.
    """

    kinds_N: NDArray[np.int64]
    cameras_N: NDArray[np.int64]
    events_N: NDArray[np.int64]
    places_N2: NDArray[np.float64]
    hours_N: NDArray[np.float64]
    unseen_N: NDArray[np.bool_]
    features_VNF: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.kinds_N)

    def select(self, rows: NDArray[Any]) -> TrapImages:
        """Return some of the images, by number or by a mask."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        features_VNF = columns.pop("features_VNF")
        return TrapImages(
            **{name: column[rows] for name, column in columns.items()}, features_VNF=features_VNF[:, rows]
        )


@dataclass(frozen=True)
class TrapWorld:
    """A world with its images.

    Args:
        train, held_out: of the same cameras, other events. test: of cameras that are in neither.
        taxa: right taxonomy. shuffled_taxa: the same species under each other's parents.
        encoder: whose trained layers read the features; None where they are vectors.
    """

    world: World
    views: tuple[str, ...]
    train: TrapImages
    held_out: TrapImages
    test: TrapImages
    taxa: Taxa
    shuffled_taxa: Taxa
    encoder: ImageEncoder | None = None

    def features(self, images: TrapImages, view: str) -> NDArray[np.float32]:
        """Return the features [N, F] of one view."""
        return images.features_VNF[self.views.index(view)]


def open_world(
    folder: Path,
    settings: TrapSettings,
    seed: int,
    *,
    views: Sequence[str],
    train: int,
    held_out: int,
    test: int,
    train_last_stages: bool = False,
) -> TrapWorld:
    """Open a world whose images were encoded before, or draw and encode them.

    Args:
        train, held_out, test: images with an animal in each part.
        train_last_stages: the encoder's are trained, so that features are the maps which they read.
    """
    world = load_world(settings, seed)
    shuffled = load_world(settings.model_copy(update={"shuffled_taxonomy": True}), seed)
    # One series for both parts: held-out images are other events of the same cameras.
    frames = list_frames(world, "train", train + held_out)
    parts = {"train": frames[:train], "held_out": frames[train:], "test": list_frames(world, "test", test)}
    # An event that is cut in two would be in both parts.
    last = parts["train"][-1].event.id
    parts["held_out"] = [frame for frame in parts["held_out"] if frame.event.id != last]
    encoder = build_image_encoder({**ENCODER, "train_last_stages": train_last_stages})
    encoded = {
        name: _open_images(folder / f"{name}.npz", world, part, tuple(views), encoder) for name, part in parts.items()
    }
    trained = encoder if train_last_stages else None
    return TrapWorld(world, tuple(views), **encoded, taxa=world.taxa, shuffled_taxa=shuffled.taxa, encoder=trained)


def list_frames(world: World, split: str, count: int) -> list[Frame]:
    """List the first images of a split that an animal is to be on."""

    def frames() -> Iterator[Frame]:
        for index in itertools.count():
            frame = world.locate(split, index)
            first, end = frame.event.present
            if frame.event.kind is not None and first <= frame.position < end:
                yield frame

    return list(itertools.islice(frames(), count))


def _open_images(
    path: Path, world: World, frames: Sequence[Frame], views: tuple[str, ...], encoder: ImageEncoder
) -> TrapImages:
    if not path.is_file():
        images = _encode(world, frames, views, encoder)
        with atomic_file(path) as file:
            # Not `allow_pickle=False`: NumPy 1.26 would store it as an array of that name.
            np.savez(file, **{field.name: getattr(images, field.name) for field in fields(images)})
    with np.load(path, allow_pickle=False) as stored:
        return TrapImages(**{name: stored[name] for name in stored.files})


@torch.inference_mode()
def _encode(world: World, frames: Sequence[Frame], views: tuple[str, ...], encoder: ImageEncoder) -> TrapImages:
    proposer = NanoDetProposer(ProposalSettings(threshold=MIN_SCORE), "cpu") if NANODET in views else None
    drawn: list[TrapImage] = []
    features: list[list[torch.Tensor]] = [[] for _ in views]
    for start in range(0, len(frames), _BATCH):
        # Rarely nothing is left of an animal behind a tree; such an image is empty.
        images = [
            image for image in (render_frame(world, frame) for frame in frames[start : start + _BATCH]) if image.boxes
        ]
        drawn += images
        for number, view in enumerate(views):
            pixels = [
                render_image(encoder.preprocess, each.image, place_image(encoder.preprocess, each.image.size, part))
                for each, part in zip(images, _choose_views(images, view, proposer), strict=True)
            ]
            if pixels:
                frozen = encoder.frozen_features(torch.stack(pixels))
                features[number].append(frozen if encoder.partly_trained else encoder.image_vectors(frozen))
    events = {name: number for number, name in enumerate(dict.fromkeys(each.frame.event.id for each in drawn))}
    cameras = {camera.name: number for split in world.cameras.values() for number, camera in enumerate(split)}
    moments = [each.frame.event for each in drawn]
    return TrapImages(
        kinds_N=np.array([KINDS.index(event.kind) for event in moments if event.kind], np.int64),
        cameras_N=np.array([cameras[event.camera.name] for event in moments], np.int64),
        events_N=np.array([events[event.id] for event in moments], np.int64),
        places_N2=np.array([(event.camera.latitude, event.camera.longitude) for event in moments]),
        hours_N=np.array([world.recorded_time(each.frame).hour for each in drawn], np.float64),
        unseen_N=np.array([each.unseen for each in drawn]),
        features_VNF=np.stack([torch.cat(parts).numpy() for parts in features]),
    )


def _choose_views(images: Sequence[TrapImage], view: str, proposer: NanoDetProposer | None) -> list[View]:
    sizes = [each.image.size for each in images]
    boxes: list[NDArray[np.float64] | None] = [None] * len(images)
    if view == EXACT:
        every = [np.array([(box.x1, box.y1, box.x2, box.y2) for box in each.boxes]) for each in images]
        boxes = [choose_box(each, np.ones(len(each)), min_score=MIN_SCORE) for each in every]
    elif view == NANODET and images:
        assert proposer is not None
        proposals = proposer.propose([proposer.to_square(each.image) for each in images], sizes)
        boxes = [choose_box(each.boxes_K4, each.scores_K, min_score=MIN_SCORE) for each in proposals]
    return [
        crop_view(box, width=width, height=height, margin=MARGIN)
        for box, (width, height) in zip(boxes, sizes, strict=True)
    ]
