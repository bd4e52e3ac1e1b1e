"""Coordinate frames: what coordinates in text are relative to, the original image or the padded canvas of its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import Conversation, locate_regions
from foveate.records.geometry import Placement, View
from foveate.records.shapes import Point, Shape, enclosing_box
from foveate.vision.canvas import canvas_to_image, image_to_canvas
from foveate.vision.tiling import OVERVIEW, TilePlan


@dataclass(frozen=True, slots=True)
class CoordinateFrame:
    """The frame of one image.

    Attributes:
        placement: its size in pixels is what coordinates in text are divided by.
        plan: of the canvas; None where the frame is the image.
    """

    placement: Placement
    plan: TilePlan | None = None

    @classmethod
    def create(cls, plan: TilePlan, frame: Literal["image", "canvas"]) -> CoordinateFrame:
        """Return the frame of a planned image; the canvas of an image that is not split is its overview."""
        height, width = plan.size
        if frame == "canvas":
            height, width = (plan.tile, plan.tile) if _is_whole(plan) else plan.canvas
        # Stretched: every shape of image fits, and nothing but the size is read.
        return cls(View().fit(width, height, plan.tile, stretch=True), plan if frame == "canvas" else None)

    def move(self, shape: Shape) -> Shape:
        """Map a shape of the image to this frame, both in pixels; all but points become their box.

        Raises:
            UserError: the shape is empty.
        """
        if self.plan is None:
            return shape
        box = enclosing_box(shape)
        if box is None:
            raise UserError("region: it is empty")
        corners_22 = np.array([[box.x1, box.y1], [box.x2, box.y2]])
        (x1, y1), (x2, y2) = image_to_canvas(corners_22, self.plan, overview=_is_whole(self.plan)).tolist()
        return Point(x1, y1) if isinstance(shape, Point) else PixelBox(x1, y1, x2, y2)

    def to_image(self, box: PixelBox) -> PixelBox:
        """Map a box of this frame to the image, clipped by its edges."""
        if self.plan is None:
            return box
        corners_22 = np.array([[box.x1, box.y1], [box.x2, box.y2]])
        moved_22 = canvas_to_image(corners_22, self.plan, overview=_is_whole(self.plan))
        # The padding of a canvas belongs to no image.
        (x1, y1), (x2, y2) = moved_22.clip(0, self.plan.size[::-1]).tolist()
        return PixelBox(x1, y1, x2, y2)


def move_regions(conversation: Conversation, frames: Sequence[CoordinateFrame]) -> Conversation:
    """Map the regions of a conversation to the frames of its images."""
    if all(frame.plan is None for frame in frames):
        return conversation
    turns = tuple(
        replace(turn, regions=tuple(frames[image].move(s) for s, image in zip(turn.regions, images, strict=True)))
        for turn, images in zip(conversation.turns, locate_regions(conversation), strict=True)
    )
    return replace(conversation, turns=turns)


def _is_whole(plan: TilePlan) -> bool:
    return plan.views == (OVERVIEW,)
