"""Two towers for one image: the overview through one, the tiles through the other, each with a projector of its own.

Ferret-v2 reads the overview with CLIP, which knows what is in an image, and the tiles with DINOv2, which knows where.
Each tower normalizes and sizes its views as it was trained.

Source: Ferret-v2 (arXiv 2404.07973), section 3.2.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.core.errors import UserError
from foveate.vision.connectors import Connector
from foveate.vision.encoder import ImageEncoder, ImageFeatures
from foveate.vision.registry import seeded


class DualTokens(NamedTuple):
    """What two towers make of V views, O overviews and N tiles in the order of the views.

    Attributes:
        overview_OLD, tiles_NLD: tokens, for the projectors.
        map_VLC: of all views in one width, for region encoders.
    """

    overview_OLD: Tensor
    tiles_NLD: Tensor
    map_VLC: Tensor


class DualTower(ImageEncoder):
    """Encode overviews with one tower and tiles with another.

    Where both are frozen, a view's features are a row of those of its tower; else pixels, and both towers run in every
    step of a training.

    Args:
        overview, tiles: towers with one grid of tokens.
        adapters: bring maps of different widths to one by linear layers; without, `map_VLC` needs equal widths.

    Raises:
        UserError: the grids differ.
    """

    def __init__(self, overview: ImageEncoder, tiles: ImageEncoder, *, adapters: bool = True, seed: int = 0) -> None:
        if overview.grid != tiles.grid:
            raise UserError(
                f"field model.tiles_tower: {tiles.grid[0]} x {tiles.grid[1]} tokens of a view; expected "
                f"{overview.grid[0]} x {overview.grid[1]}, as model.tower (set image_size)"
            )
        width = max(overview.width, tiles.width)
        # Features of a frozen tower are flat rows; a trained tower takes pixels, with three dimensions.
        lengths = [tower.feature_shape[0] for tower in (overview, tiles) if len(tower.feature_shape) == 1]
        super().__init__(width=width, embed_dim=0, grid=overview.grid, preprocess=overview.preprocess)
        self.overview, self.tiles = overview, tiles
        self.frozen = len(lengths) == 2
        if self.frozen:
            # A cache has rows of one length: the shorter ones are filled up.
            self.feature_shape, self.feature_dtype = (max(lengths),), torch.float16
        self.adapter_g: nn.Module = nn.Identity()
        self.adapter_l: nn.Module = nn.Identity()
        if adapters and overview.width != tiles.width:
            with seeded(seed):
                self.adapter_g, self.adapter_l = nn.Linear(overview.width, width), nn.Linear(tiles.width, width)

    def fingerprint(self) -> str:
        """Name both towers, and how each one's views are normalized; empty unless both are frozen."""
        if not self.frozen:
            return ""
        # The store hashes only the overview's preprocessing (that of `self`), so both towers' are named here.
        parts = [
            f"{tower.fingerprint()} {json.dumps(tower.preprocess.to_dict(), sort_keys=True)}"
            for tower in (self.overview, self.tiles)
        ]
        return f"dual {' '.join(parts)}"

    @torch.no_grad()
    def view_features(self, pixels_V3HW: Tensor, is_overview_V: Tensor) -> Tensor:
        """Return pixels as they are unless both towers are frozen; else a row of features of each view's tower."""
        if not self.frozen:
            return pixels_V3HW
        rows_VF = pixels_V3HW.new_zeros((len(pixels_V3HW), *self.feature_shape), dtype=self.feature_dtype)
        for tower, is_of_V in ((self.overview, is_overview_V), (self.tiles, ~is_overview_V)):
            if is_of_V.any():
                features = tower.frozen_features(_resize(tower, pixels_V3HW[is_of_V]))
                rows_VF[is_of_V, : features.shape[1]] = features
        return rows_VF

    def encode(self, features: Tensor, is_overview_V: Tensor) -> DualTokens:
        """Encode views: rows of `view_features`, or pixels of the size of tiles, uint8 or normalized."""
        overview_OLD = _encode(self.overview, features[is_overview_V])
        tiles_NLD = _encode(self.tiles, features[~is_overview_V])
        map_OLC = self.adapter_g(overview_OLD)
        map_NLC = self.adapter_l(tiles_NLD) if len(tiles_NLD) else tiles_NLD
        # Without adapters, maps of two widths do not fit into one tensor, so there is none to read regions from.
        same = map_OLC.shape[2] == map_NLC.shape[2] or not len(map_NLC)
        return DualTokens(overview_OLD, tiles_NLD, join_views(map_OLC, map_NLC, is_overview_V) if same else map_OLC[:0])

    def forward(self, features: Tensor) -> ImageFeatures:
        """Encode overviews alone."""
        if features.dim() == 2:
            return self.overview(features[:, : self.overview.feature_shape[0]])
        return self.overview(self.overview.frozen_features(features))

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Raise UserError: two towers have no joint space."""
        raise UserError("model.tiles_tower: two towers have no joint embedding; expected none")


class DualConnector(Connector):
    """Projectors of the overview (`projector_g`) and of the tiles (`projector_l`), of one kind."""

    def __init__(self, projector_g: Connector, projector_l: Connector) -> None:
        super().__init__(
            in_width=projector_g.in_width,
            out_width=projector_g.out_width,
            grid=projector_g.grid,
            num_tokens=projector_g.num_tokens,
        )
        self.projector_g, self.projector_l = projector_g, projector_l

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Map the tokens of overviews alone."""
        return self.projector_g(tokens_BLD)

    def join(self, tokens: DualTokens, is_overview_V: Tensor) -> Tensor:
        """Map the tokens of views to those of the language model [V, T, E]."""
        # Without tiles its weights get no gradient, not one of zero: weight decay would move them.
        tiles_NTE = self.projector_l(tokens.tiles_NLD) if len(tokens.tiles_NLD) else None
        return join_views(self.projector_g(tokens.overview_OLD), tiles_NTE, is_overview_V)

    @torch.no_grad()
    def copy_projector(self) -> None:
        """Start the tiles' projector from the overview's, as Ferret-v2 does before its second stage.

        Raises:
            UserError: the towers have different widths.
        """
        if self.in_width != self.projector_l.in_width:
            raise UserError(
                f"copy_projector: widths of the towers differ (got {self.in_width} and {self.projector_l.in_width}); "
                "expected equal ones to copy the overview's projector"
            )
        self.projector_l.load_state_dict(self.projector_g.state_dict())


def join_views(overview_OLC: Tensor, tiles_NLC: Tensor | None, is_overview_V: Tensor) -> Tensor:
    """Put overviews and tiles back in the order of their views [V, L, C]."""
    if tiles_NLC is None or not len(tiles_NLC):
        return overview_OLC
    # The argsort of a permutation is its inverse: the position of each view in the joined tensor.
    order_V = torch.cat([is_overview_V.nonzero()[:, 0], (~is_overview_V).nonzero()[:, 0]]).argsort()
    return torch.cat([overview_OLC, tiles_NLC])[order_V]


def _encode(tower: ImageEncoder, features: Tensor) -> Tensor:
    """Encode rows of frozen features, or pixels at the tower's own size and with its own normalization."""
    if not len(features):
        # A stage that sees overviews alone does not run the other tower.
        weight = next(tower.parameters())
        return weight.new_zeros(0, tower.grid[0] * tower.grid[1], tower.width)
    if features.dim() == 2:
        return tower(features[:, : tower.feature_shape[0]]).tokens
    return tower(tower.frozen_features(_resize(tower, features))).tokens


def _resize(tower: ImageEncoder, views_V3HW: Tensor) -> Tensor:
    size = (tower.preprocess.height, tower.preprocess.width)
    if views_V3HW.shape[-2:] == size:
        return views_V3HW
    # In float: CUDA has no such resizing of bytes.
    resized_V3HW = interpolate(views_V3HW.float(), size, mode="bicubic", antialias=True)
    if views_V3HW.dtype != torch.uint8:
        return resized_V3HW.to(views_V3HW)
    # Bicubic interpolation overshoots at sharp edges, beyond the range of bytes.
    return resized_V3HW.round().clamp(0, 255).to(torch.uint8)
