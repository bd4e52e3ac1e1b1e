"""Two towers for one image: the overview through one, the tiles through the other, each with a projector of its own.

Ferret-v2 reads the overview with CLIP, which knows what is in an image, and the tiles with DINOv2, which knows where.
Each tower normalizes and sizes its views as it was trained.

Source: Ferret-v2 (arXiv 2404.07973), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.core.errors import UserError, choose
from foveate.vision.anyres_map import Interpolation, merge_tiles, resize_overview
from foveate.vision.connectors import build_connector
from foveate.vision.encoder import ImageEncoder
from foveate.vision.hidden_layer import build_tower
from foveate.vision.registry import seeded
from foveate.vision.tiling import OVERVIEW, TilePlan

Fusion = Literal["encoder", "projector"]


class DualFeatures(NamedTuple):
    """What two towers make of an image.

    Attributes:
        tokens_TE: for the language model: the overview, then the merged tiles row by row.
        map_CHW: for region encoders: merged tiles plus overview, [C, H, W].
    """

    tokens_TE: Tensor
    map_CHW: Tensor


class DualTower(nn.Module):
    """Encode the overview and the tiles of an image with two towers.

    Args:
        overview, tiles: the towers.
        out: E, width of the language model's embeddings.
        connector: `kind` and options of both projectors, which must keep every patch; Ferret-v2's is an MLP.
        fusion: add the maps of regions in front of the projectors, as the official code of one tower does, or behind
            them. Towers of different widths get linear adapters in front.
        interpolation: of the overview to the size of the tiles.
    """

    def __init__(
        self,
        overview: ImageEncoder,
        tiles: ImageEncoder,
        *,
        out: int,
        connector: Mapping[str, Any] | None = None,
        fusion: Fusion = "encoder",
        interpolation: Interpolation = "nearest",
        seed: int = 0,
    ) -> None:
        super().__init__()
        choose(fusion, ("encoder", "projector"), "fusion")
        self.overview, self.tiles = overview, tiles
        self.fusion, self.interpolation = fusion, interpolation
        options = dict(connector or {"kind": "mlp"})
        kind = options.pop("kind")
        self.projector_g, self.projector_l = (
            build_connector(kind, options, in_width=tower.width, out_width=out, grid=tower.grid, seed=seed + number)
            for number, tower in enumerate((overview, tiles))
        )
        for projector in (self.projector_g, self.projector_l):
            if projector.num_tokens != projector.grid[0] * projector.grid[1]:
                raise UserError(
                    f"connector '{kind}': keeps {projector.num_tokens} tokens of a view; expected all patches"
                )
        self.map_width = out if fusion == "projector" else max(overview.width, tiles.width)
        self.adapter_g: nn.Module = nn.Identity()
        self.adapter_l: nn.Module = nn.Identity()
        if fusion == "encoder" and overview.width != tiles.width:
            with seeded(seed + 2):
                self.adapter_g = nn.Linear(overview.width, self.map_width)
                self.adapter_l = nn.Linear(tiles.width, self.map_width)

    @torch.no_grad()
    def copy_projector(self) -> None:
        """Start the tiles' projector from the overview's, as Ferret-v2 does before its second stage.

        Raises:
            UserError: the towers have different widths.
        """
        if self.overview.width != self.tiles.width:
            raise UserError(
                f"projectors: widths of the towers differ (got {self.overview.width} and {self.tiles.width}); expected "
                "equal ones to copy the overview's"
            )
        self.projector_l.load_state_dict(self.projector_g.state_dict())

    def forward(self, views_V3HW: Tensor, plan: TilePlan) -> DualFeatures:
        """Encode the views of an image, uint8 [V, 3, tile, tile] in the order of their plan.

        Raises:
            UserError: the plan has no overview or no tiles, or other views than there are.
        """
        tiles = [number for number, view in enumerate(plan.views) if view != OVERVIEW]
        if not tiles or OVERVIEW not in plan.views or len(views_V3HW) != len(plan.views):
            raise UserError(
                f"views: {len(views_V3HW)} of {len(plan.views)} planned, {len(tiles)} of them tiles; expected an "
                "overview and tiles (tiling.single_overview keeps both where one tile is enough)"
            )
        position = plan.views.index(OVERVIEW)
        tokens_1LD = _encode(self.overview, views_V3HW[position : position + 1])
        tokens_NLD = _encode(self.tiles, views_V3HW[tiles[0] : tiles[-1] + 1])
        projected_LE, projected_NLE = self.projector_g(tokens_1LD)[0], self.projector_l(tokens_NLD)
        merged_EHW = merge_tiles(projected_NLE, plan, self.tiles.grid)
        size = (merged_EHW.shape[1], merged_EHW.shape[2])
        if self.fusion == "projector":
            base_LC, detail_CHW = projected_LE, merged_EHW
        else:
            base_LC = self.adapter_g(tokens_1LD[0])
            detail_CHW = merge_tiles(self.adapter_l(tokens_NLD), plan, self.tiles.grid)
        base_CHW = base_LC.T.unflatten(1, self.overview.grid)
        resized_CHW = resize_overview(base_CHW, plan, size, interpolation=self.interpolation)
        return DualFeatures(torch.cat([projected_LE, merged_EHW.flatten(1).T]), detail_CHW + resized_CHW)


def _encode(tower: ImageEncoder, views_V3HW: Tensor) -> Tensor:
    """Encode views at the tower's own size and with its own normalization."""
    size = (tower.preprocess.height, tower.preprocess.width)
    if views_V3HW.shape[-2:] != size:
        views_V3HW = interpolate(views_V3HW, size, mode="bicubic", antialias=True)
    return tower(tower.frozen_features(views_V3HW)).tokens


def build_dual_tower(
    overview: Mapping[str, Any], tiles: Mapping[str, Any], *, out: int, seed: int = 0, **options: Any
) -> DualTower:
    """Build two towers from their settings, see `build_tower`; `options` are those of `DualTower`.

    Raises:
        UserError: an unknown kind or option.
    """
    return DualTower(build_tower(overview, seed=seed), build_tower(tiles, seed=seed + 1), out=out, seed=seed, **options)
