"""The images of a sample as views and texts in order: tiles and overview, their indicators, and the tokens they cost.

Nothing is tokenized here and nothing is searched for afterwards: a placeholder becomes parts, and each part is either
a text or the index of a view, whose tokens the connector supplies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.records.conversations import IMAGE
from foveate.vision.tiling import OVERVIEW, ImageSize, TilePlan, TilingOptions, plan_tiles


class ViewIndex(NamedTuple):
    """A view of a sample: number of its image from 0, row and column of its tile from 1, or 0, 0 for the overview."""

    image: int
    row: int
    column: int


Part = str | ViewIndex


class AssemblyOptions(Settings):
    """How the images of a sample become views; the defaults are MM1.5's final recipe."""

    tiling: TilingOptions = Field(TilingOptions(), description="grid of tiles and overview of an image")
    indicator: Literal["index", "seps", "none"] = Field(
        "index", description="text that locates a view: (image,row,column) before each, or signs between them"
    )
    tokens_per_view: int = Field(144, ge=1, le=16_384, description="visual tokens of a view")
    token_order: Literal["views", "rows"] = Field(
        "views", description="tokens of tiles: tile after tile, or row by row over all tiles of an image (Ferret-v2)"
    )
    max_split_images: int = Field(2, ge=0, description="images of a sample up to which they are split into tiles")

    @model_validator(mode="after")
    def _check_order(self) -> AssemblyOptions:
        if self.token_order == "rows" and self.indicator != "none":
            raise ValueError(
                f"token_order: 'rows' leaves no tile whole (got indicator {self.indicator}); expected none"
            )
        return self


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """The views of a sample's images, known before a pixel is read."""

    images: tuple[TilePlan, ...]
    options: AssemblyOptions

    @property
    def views(self) -> tuple[ViewIndex, ...]:
        """All views in the order of their tokens."""
        return tuple(ViewIndex(k, *view) for k, plan in enumerate(self.images) for view in plan.views)

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of all views; the indicators' text comes on top."""
        return len(self.views) * self.options.tokens_per_view

    def list_parts(self, image: int) -> list[Part]:
        """List what stands for one image: its views, and the indicators before and between them."""
        plan, parts = self.images[image], []
        previous: tuple[int, int] | None = None
        for view in plan.views:
            index = ViewIndex(image, *view)
            # The paper names both forms but not their exact strings; these were chosen here (docs/methods/mm15.md).
            if self.options.indicator == "index":
                parts.append(f"({index.image},{index.row},{index.column})")
            elif self.options.indicator == "seps":
                parts += _separate(previous, view)
            parts.append(index)
            previous = view
        return parts

    def list_indicators(self, image: int) -> list[str]:
        """List the text before each view of an image, "" where there is none."""
        texts, text = [], ""
        for part in self.list_parts(image):
            if isinstance(part, str):
                text += part
            else:
                texts.append(text)
                text = ""
        return texts


def _separate(previous: tuple[int, int] | None, view: tuple[int, int]) -> Iterator[str]:
    """A colon before the overview, a comma between the tiles of a row, "<n>" between rows."""
    if view == OVERVIEW:
        yield ":"
    elif previous is not None and previous != OVERVIEW:
        yield "," if previous[0] == view[0] else "<n>"


def plan_sample(sizes: Sequence[ImageSize], options: AssemblyOptions) -> SamplePlan:
    """Plan the views of a sample's images; a sample of many images is not split, each is one overview.

    Raises:
        UserError: an image has no pixels.
    """
    # Tiles of many images would fill the context: MM1.5 splits none from three images on.
    split = len(sizes) <= options.max_split_images
    return SamplePlan(tuple(plan_tiles(ImageSize(*size), options.tiling, split=split) for size in sizes), options)


def insert_views(texts: Sequence[str], plan: SamplePlan) -> list[list[Part]]:
    """Replace the placeholders of a conversation's turns by the parts of its images, in order.

    Args:
        texts: the turns, with `IMAGE` once for each image.

    Raises:
        UserError: there are more or fewer placeholders than images.
    """
    num_placeholders = sum(text.count(IMAGE) for text in texts)
    if num_placeholders != len(plan.images):
        raise UserError(
            f"conversation: {num_placeholders} {IMAGE} placeholders; expected one for each of its "
            f"{len(plan.images)} images"
        )
    # One iterator for all turns: a placeholder in the second turn is the next image, not the first again.
    images = iter(range(len(plan.images)))
    turns = []
    for text in texts:
        first, *others = text.split(IMAGE)
        parts: list[Part] = [first]
        for other in others:
            parts += [*plan.list_parts(next(images)), other]
        turns.append([part for part in parts if part != ""])
    return turns
