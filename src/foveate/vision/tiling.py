"""Grids of tiles: how an image of any size becomes views of one size, from its height and width alone.

A view is a square of `tile` pixels: a tile of the canvas that the image was fitted into, or an overview of the whole
image. MM1.5's rule (Eq. 1) is the default and compares integers only, so that grids that tie really tie. The rules of
released models keep the floating-point order of their code: their checkpoints were trained on its choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, model_validator

from foveate.core.errors import UserError, choose
from foveate.core.recipes import Settings
from foveate.records.geometry import Padding

Rule = Literal["eq1", "static", "llava", "idefics3", "internvl", "cohere2"]
Preset = Literal["mm15", "mm15-static", "llava-next", "ferret-v2", "idefics3", "smolvlm", "internvl", "cohere2"]
PaddingColor = Literal["mean", "black"]
OVERVIEW = (0, 0)
"""Row and column of the overview among the views; those of tiles start at 1."""

_MAX_SIDE = 4096  # of an image on Idefics3's way to its tiles


class ImageSize(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Grid(NamedTuple):
    """Numbers of rows and columns of tiles."""

    rows: int
    columns: int


class Fit(NamedTuple):
    """Where an image lies in a canvas: its size there and the padding around it, in pixels."""

    resized: ImageSize
    padding: Padding


def parse_grid(value: Any) -> Any:
    """Turn "2x3" (rows x columns) into a pair; what is no such text is left to pydantic."""
    if not isinstance(value, str):
        return value
    rows, cross, columns = value.partition("x")
    if not (cross and rows.strip().isdecimal() and columns.strip().isdecimal() and int(rows) and int(columns)):
        raise ValueError("not a grid; expected ROWSxCOLUMNS such as 2x3")
    return int(rows), int(columns)


class TilingOptions(Settings):
    """How an image is cut into views; the defaults are MM1.5's final recipe."""

    rule: Rule = Field("eq1", description="rule that chooses the grid of tiles; eq1 is MM1.5's")
    tile: int = Field(672, ge=1, le=4096, description="side of a view in pixels")
    min_tiles: int = Field(4, ge=1, le=144, description="smallest number of tiles (eq1, internvl)")
    max_tiles: int = Field(9, ge=1, le=144, description="largest number of tiles (eq1, internvl, cohere2)")
    upscale: bool = Field(
        True,
        description="whether images smaller than their grid are enlarged (eq1, static)",
        json_schema_extra={"off": "leave images smaller than their grid as they are (eq1, static)"},
    )
    grids: tuple[Annotated[Grid, BeforeValidator(parse_grid)], ...] = Field(
        (), description="grids to choose from as ROWSxCOLUMNS, the first wins ties (llava); the one grid (static)"
    )
    longest_side: int = Field(1456, ge=1, le=_MAX_SIDE, description="longer side in pixels before tiling (idefics3)")
    fit: Literal["pad", "stretch"] = Field("pad", description="how an image fills the canvas of its tiles")
    padding: Literal["center", "bottom_right"] = Field("center", description="where padding goes")
    padding_color: PaddingColor = Field(
        "mean", description="color of the padding: the mean of the encoder's pixels, or black as in transformers"
    )
    overview: Literal["after", "before", "none"] = Field(
        "after", description="position of the overview relative to the tiles"
    )
    overview_fit: Literal["pad", "stretch"] = Field("stretch", description="how an image fills its overview")
    single_overview: bool = Field(False, description="keep the overview where the grid has a single tile")

    @model_validator(mode="after")
    def _check(self) -> TilingOptions:
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles: above max_tiles (got {self.min_tiles} and {self.max_tiles})")
        if self.rule == "static" and len(self.grids) != 1:
            raise ValueError(f"grids: rule 'static' has one grid (got {len(self.grids)}); expected one such as 2x2")
        if self.rule == "llava" and not self.grids:
            raise ValueError("grids: rule 'llava' chooses from a list (got none); expected grids such as 1x2,2x1,2x2")
        for name, rules in _RULES_WITH.items():
            if self.rule not in rules and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: no effect with rule '{self.rule}'; expected rule {' or '.join(rules)}")
        return self


# An option that the rule ignores is refused, so that nobody believes its value had an effect.
_RULES_WITH = {
    "min_tiles": ("eq1", "internvl"),
    "max_tiles": ("eq1", "internvl", "cohere2"),
    "upscale": ("eq1", "static"),
    "grids": ("static", "llava"),
    "longest_side": ("idefics3",),
}
# The first of several grids that fit equally well wins, so their order is part of the rule.
_LLAVA_GRIDS = ("2x1", "1x2", "2x2", "1x3", "3x1")
# All 14 grids of Ferret-v2 (arXiv 2404.07973), of at most six tiles.
_FERRET_GRIDS = ("1x1", *(f"{n}x1" for n in range(2, 7)), *(f"1x{n}" for n in range(2, 7)), "2x2", "3x2", "2x3")
_STRETCHED = {"fit": "stretch", "overview": "after"}
PRESETS: dict[str, dict[str, Any]] = {
    "mm15": {},
    "mm15-static": {"rule": "static", "grids": ("2x2",)},
    "llava-next": {
        "rule": "llava", "tile": 336, "grids": _LLAVA_GRIDS, "overview": "before", "single_overview": True,
        "padding_color": "black",
    },
    "ferret-v2": {"rule": "llava", "tile": 336, "grids": _FERRET_GRIDS, "fit": "stretch", "overview": "before"},
    "idefics3": {"rule": "idefics3", "tile": 364, **_STRETCHED},
    "smolvlm": {"rule": "idefics3", "tile": 512, "longest_side": 2048, **_STRETCHED},
    "internvl": {"rule": "internvl", "tile": 448, "min_tiles": 1, "max_tiles": 12, **_STRETCHED},
    "cohere2": {"rule": "cohere2", "tile": 512, "max_tiles": 12, **_STRETCHED},
}  # fmt: skip
assert set(PRESETS) == set(get_args(Preset))
"""Options of released models by name; grids of LLaVA-NeXT and Ferret-v2 in the order of their code and paper."""


def preset_options(name: str, **overrides: Any) -> TilingOptions:
    """Return the options of a released model, with fields replaced.

    Raises:
        UserError: there is no such preset.
    """
    return TilingOptions(**(PRESETS[choose(name, PRESETS, "tiling preset")] | overrides))


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The views of an image, known before a pixel is read.

    Attributes:
        size: the image in pixels.
        tile: side of every view in pixels.
        grid: rows and columns of tiles; (1, 1) where the image is not split.
        tiles: the image in the canvas that is cut into tiles.
        overview: the image in the square of its overview.
        views: row and column of each view in order, from 1; `OVERVIEW` is the overview.
        padding_color: "mean" of the encoder, or "black".
    """

    size: ImageSize
    tile: int
    grid: Grid
    tiles: Fit
    overview: Fit
    views: tuple[tuple[int, int], ...]
    padding_color: PaddingColor = "mean"

    @property
    def canvas(self) -> ImageSize:
        """Size in pixels of all tiles together."""
        return ImageSize(self.grid.rows * self.tile, self.grid.columns * self.tile)

    @property
    def covers(self) -> bool:
        """Whether the tiles show the image at no less than its full resolution."""
        return self.tiles.resized.height >= self.size.height and self.tiles.resized.width >= self.size.width

    @property
    def megapixels(self) -> float:
        """Pixels of all views in millions: what an encoder works through."""
        return len(self.views) * self.tile**2 / 1e6


def plan_tiles(size: ImageSize, options: TilingOptions, *, split: bool = True) -> TilePlan:
    """Choose the grid of an image and where it lies in it.

    Args:
        split: False gives the overview alone, as in samples of many images.

    Raises:
        UserError: a side is not positive.
    """
    if min(size) < 1:
        raise UserError(f"image size: {size.height} x {size.width} pixels; expected sides of at least 1")
    grid = _CHOOSERS[options.rule](size, options) if split else Grid(1, 1)
    canvas = ImageSize(grid.rows * options.tile, grid.columns * options.tile)
    square = ImageSize(options.tile, options.tile)
    tiles = [(row, column) for row in range(1, grid.rows + 1) for column in range(1, grid.columns + 1)]
    if not split:
        tiles = [OVERVIEW]
    # A single tile already shows the whole image; adding an overview is for models trained with both.
    elif options.overview != "none" and (len(tiles) > 1 or options.single_overview):
        tiles.insert(0 if options.overview == "before" else len(tiles), OVERVIEW)
    return TilePlan(
        size=size,
        tile=options.tile,
        grid=grid,
        tiles=_fit(size, canvas, options, fit=options.fit),
        overview=_fit(size, square, options, fit=options.overview_fit),
        views=tuple(tiles),
        padding_color=options.padding_color,
    )


def _fit(size: ImageSize, canvas: ImageSize, options: TilingOptions, *, fit: str) -> Fit:
    """Fit an image into a canvas: the limiting side fills it, the other is rounded and at least 1 pixel."""
    (height, width), (canvas_height, canvas_width) = size, canvas
    if fit == "stretch":
        resized = canvas
    elif not options.upscale and height <= canvas_height and width <= canvas_width:
        resized = size
    elif options.rule == "llava":
        resized = _fit_llava(size, canvas)
    elif height * canvas_width >= width * canvas_height:
        # Half up in whole numbers: `round` goes to even, and a quotient of floats may lie on the wrong side of a
        # half.
        resized = ImageSize(canvas_height, max(1, (2 * width * canvas_height + height) // (2 * height)))
    else:
        resized = ImageSize(max(1, (2 * height * canvas_width + width) // (2 * width)), canvas_width)
    rest_height, rest_width = canvas_height - resized.height, canvas_width - resized.width
    # The odd pixel of centered padding goes to the right and the bottom, as in LLaVA.
    top, left = (rest_height // 2, rest_width // 2) if options.padding == "center" else (0, 0)
    return Fit(resized, Padding(left, top, rest_width - left, rest_height - top))


def _fit_llava(size: ImageSize, canvas: ImageSize) -> ImageSize:
    # Floats and rounding up as in LLaVA: 375 x 500 becomes 505 x 672, one more than the exact 504.
    scale_height, scale_width = canvas.height / size.height, canvas.width / size.width
    if scale_width < scale_height:
        return ImageSize(min(math.ceil(size.height * scale_width), canvas.height), canvas.width)
    return ImageSize(canvas.height, min(math.ceil(size.width * scale_height), canvas.width))


@cache
def _list_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """List all grids with so many tiles, by their number of tiles, then rows."""
    tiles = range(min_tiles, max_tiles + 1)
    return tuple(Grid(rows, n // rows) for n in tiles for rows in range(1, n + 1) if n % rows == 0)


def _choose_eq1(size: ImageSize, options: TilingOptions) -> Grid:
    """Choose the grid with least padding among those that cover the image, else the one that shrinks it least.

    Source: MM1.5 (arXiv 2409.20566), Eq. 1; ties go to fewer tiles, then the larger scale, then fewer rows.
    """
    height, width = size
    area = height * width

    # In float64 a third of all square images from 40 to 2015 pixels get another grid: several leave exactly no padding.
    # With m = min(rows x width, columns x height), the scale of a grid is m x tile / area and its padding, in tiles,
    # is rows x columns - m^2 / area: multiplied by the area, both are integers.
    def rank(grid: Grid) -> tuple[int, ...]:
        rows, columns = grid
        scale = min(rows * width, columns * height)
        if scale * options.tile < area:
            return 1, -scale, rows * columns, rows
        # Without enlarging, padding is measured around the image as it is.
        padding = rows * columns * area - scale**2 if options.upscale else rows * columns
        return 0, padding, rows * columns, -scale, rows

    return min(_list_grids(options.min_tiles, options.max_tiles), key=rank)


def _choose_static(size: ImageSize, options: TilingOptions) -> Grid:
    return options.grids[0]


def _choose_llava(size: ImageSize, options: TilingOptions) -> Grid:
    """Choose the grid that shows most pixels of the image, never more than it has, then the smallest.

    Source: haotian-liu/LLaVA, `select_best_resolution`.
    """

    def rank(grid: Grid) -> tuple[int, int]:
        canvas_height, canvas_width = grid.rows * options.tile, grid.columns * options.tile
        scale = min(canvas_width / size.width, canvas_height / size.height)
        effective = min(int(size.width * scale) * int(size.height * scale), size.width * size.height)
        return -effective, canvas_height * canvas_width

    return min(options.grids, key=rank)


def _choose_idefics3(size: ImageSize, options: TilingOptions) -> Grid:
    """Bring the longer side to `longest_side`, then both sides up to whole tiles.

    Source: transformers, Idefics3ImageProcessor (`resize`, `resize_for_vision_encoder`).
    """
    height, width = size
    aspect = width / height
    if width >= height:
        width, height = options.longest_side, int(options.longest_side / aspect)
        # Even, and cut instead of rounded, as the released processor does it: other sizes are other grids.
        height += height % 2
    else:
        height, width = options.longest_side, int(options.longest_side * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height:
        columns = math.ceil(width / options.tile)
        return Grid(max(1, math.ceil(int(columns * options.tile / aspect) / options.tile)), columns)
    rows = math.ceil(height / options.tile)
    return Grid(rows, max(1, math.ceil(int(rows * options.tile * aspect) / options.tile)))


def _choose_internvl(size: ImageSize, options: TilingOptions) -> Grid:
    """Choose the grid whose aspect is nearest; of equal ones the larger, while the image fills half of it.

    Source: OpenGVLab/InternVL, `find_closest_aspect_ratio`.
    """
    aspect = size.width / size.height
    best, best_gap = Grid(1, 1), math.inf
    for grid in _list_grids(options.min_tiles, options.max_tiles):
        gap = abs(aspect - grid.columns / grid.rows)
        # 1 x 1 and 2 x 2 have the same aspect to the last bit; the pixels of the image decide.
        half = 0.5 * options.tile**2 * grid.rows * grid.columns
        if gap < best_gap or (gap == best_gap and size.width * size.height > half):
            best, best_gap = grid, gap
    return best


def _choose_cohere2(size: ImageSize, options: TilingOptions) -> Grid:
    """Choose the grid that enlarges the image least, else the one that shrinks it least; of equal ones the smaller.

    Source: transformers, `get_optimal_tiled_canvas` of Cohere2Vision, which tries few columns first and ignores the
    smallest number of tiles.
    """
    scales = {
        grid: min(grid.columns * options.tile / size.width, grid.rows * options.tile / size.height)
        for grid in sorted(_list_grids(1, options.max_tiles), key=lambda grid: (grid.rows * grid.columns, grid.columns))
    }
    covering = {grid: scale for grid, scale in scales.items() if scale >= 1}
    # `min` and `max` return the first of equals, as argmin and argmax do there, so the order above decides ties.
    return min(covering, key=covering.__getitem__) if covering else max(scales, key=scales.__getitem__)


_CHOOSERS: dict[str, Callable[[ImageSize, TilingOptions], Grid]] = {
    "eq1": _choose_eq1,
    "static": _choose_static,
    "llava": _choose_llava,
    "idefics3": _choose_idefics3,
    "internvl": _choose_internvl,
    "cohere2": _choose_cohere2,
}
assert set(_CHOOSERS) == set(get_args(Rule))


def unpad_patches(size: ImageSize, patches: ImageSize) -> ImageSize:
    """Return the rows and columns of a padded canvas's patches that show the image.

    Args:
        patches: rows and columns of patches of all tiles together.

    Source: haotian-liu/LLaVA, `unpad_image`; an odd padding keeps one row or column more.
    """
    rows, columns = patches
    if size.width / size.height > columns / rows:
        return ImageSize(rows - 2 * ((rows - int(size.height * (columns / size.width))) // 2), columns)
    return ImageSize(rows, columns - 2 * ((columns - int(size.width * (rows / size.height))) // 2))


def count_llava_tokens(plan: TilePlan, patches_per_side: int) -> int:
    """Count LLaVA-NeXT's visual tokens: those of the overview, and of the unpadded tiles with one more per row."""
    patches = ImageSize(plan.grid.rows * patches_per_side, plan.grid.columns * patches_per_side)
    rows, columns = unpad_patches(plan.size, patches)
    # A newline token ends each row of the tiles.
    return patches_per_side**2 + rows * (columns + 1)
