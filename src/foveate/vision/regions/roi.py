"""RoI-Align of boxes: Ferret's region encoder `roi`, and the baseline of CLOC's ablation with its projections.

Several are the feature replay of Grasp Any Region (NVlabs/Grasp-Any-Region): what the decoder reads of a region keeps
its layout. Points, strokes and masks are read as their box.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.core.recipes import Settings
from foveate.records.shapes import Shape
from foveate.vision.prompter import check_boxes
from foveate.vision.regions import Maps, RegionBatch, RegionEncoder, as_regions

# The RoI-Align baseline of CLOC's ablation: a region embedding pooled from the token map, without a Prompter.
#
# RoI-Align: Mask R-CNN (arXiv 1703.06870), section 3; its use here: CLOC (arXiv 2410.02746 v2), table 2, "with RoI". It
# has no phrase prompt, so that grounding is impossible.


def roi_pool(tokens_BLD: Tensor, grid: tuple[int, int], boxes_R4: Tensor, image_index_R: Tensor) -> Tensor:
    """Pool bilinear samples inside each box: RoI-Align to 1 x 1, aligned, one sample per patch cell.

    Args:
        tokens_BLD: the last rows x columns tokens are laid out as the patch grid.
        grid: rows and columns of patches.
        boxes_R4: corners in [0, 1] of the model input.
        image_index_R: image of each box.

    Returns:
        [R, D] in the dtype of the tokens.
    """
    rows, columns = grid
    images, _, width = tokens_BLD.shape
    # A class token in front is left out.
    map_BDHW = tokens_BLD[:, -rows * columns :].transpose(1, 2).reshape(images, width, rows, columns)
    return align_boxes(map_BDHW, boxes_R4, image_index_R).flatten(1)


def align_boxes(map_BDHW: Tensor, boxes_R4: Tensor, image_index_R: Tensor, *, side: int = 1) -> Tensor:
    """RoI-Align boxes of feature maps to [R, D, side, side], as many samples as a box has cells; see `roi_pool`."""
    # Half precision is widened, since box corners need more than 8 bits.
    exact = map_BDHW if map_BDHW.dtype == torch.float64 else map_BDHW.float()
    rows, columns = map_BDHW.shape[2:]
    cells = torch.tensor((columns, rows, columns, rows), dtype=exact.dtype, device=exact.device)
    rois_R5 = torch.cat((image_index_R[:, None].to(exact.dtype), boxes_R4.to(exact.dtype) * cells), dim=1)
    # sampling_ratio -1: as many samples as the box has cells, so that large boxes see all of their patches.
    if (torch.is_grad_enabled() and exact.requires_grad) or torch.compiler.is_compiling():
        # The package adds the operator's gradient and its shapes for a compiler.
        from torchvision.ops import roi_align

        return roi_align(exact, rois_R5, side, 1.0, -1, aligned=True).to(map_BDHW.dtype)
    _load_roi_align()
    return torch.ops.torchvision.roi_align(exact, rois_R5, 1.0, side, side, -1, True).to(map_BDHW.dtype)


@functools.cache
def _load_roi_align() -> None:
    """Load torchvision's operator without its package, whose import takes longer than that of torch (0.28).

    Where its library is not found, the package is imported, which loads it or says why not.
    """
    package = importlib.util.find_spec("torchvision")
    folder = Path(package.origin).parent if package and package.origin else None
    # The second is its name since 0.29.
    names = [f"{stem}{suffix}" for stem in ("_C", "_C_stable") for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    library = next((path for name in names if folder and (path := folder / name).is_file()), None)
    # On Windows the package registers folders of DLLs first.
    if library is None or os.name == "nt":
        import torchvision.ops  # noqa: F401 - registers the operator
    else:
        torch.ops.load_library(str(library))


class RoiPooler(nn.Module):
    """Region embedding of a box: RoI-Align, LayerNorm and a bias-free projection.

    Args:
        width: D of the image tokens. embed_dim: E.
    """

    def __init__(self, *, width: int, embed_dim: int) -> None:
        super().__init__()
        self.final_ln = nn.LayerNorm(width, eps=1e-5)
        self.proj = nn.Linear(width, embed_dim, bias=False)

    def forward(
        self, tokens_BLD: Tensor, grid: tuple[int, int], boxes_R4: Tensor, image_index_R: Tensor, *, check: bool = True
    ) -> Tensor:
        """Embed boxes as regions [R, E], not normalized; arguments as of `roi_pool`.

        Raises:
            UserError: naming the row of an invalid box, unless `check` is off.
        """
        if check:
            check_boxes(boxes_R4)
        return self.proj(self.final_ln(roi_pool(tokens_BLD, grid, boxes_R4, image_index_R)))


class RoiOptions(Settings):
    """Options of RoI-Align."""

    side: int = Field(default=1, ge=1, le=16, description="rows and columns of tokens of a region")


class RoiEncoder(RegionEncoder):
    """RoI-Align to side x side and a linear layer."""

    Options = RoiOptions

    def __init__(self, *, width: int, out: int, side: int = 1) -> None:
        # Only boxes are read, so one point per region is enough.
        super().__init__(width=width, out=out, num_points=1)
        self.side, self.tokens_per_region = side, side * side
        self.adapter = nn.Linear(width, out)

    @property
    def last_layer(self) -> nn.Linear:
        """See `RegionEncoder.last_layer`."""
        return self.adapter

    def forward(
        self,
        maps: Maps,
        regions: RegionBatch | Sequence[Sequence[Shape]],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Return the vectors [R, E], or [R, T, E] row by row of each region; see `RegionEncoder.forward`."""
        self.check_maps(maps)
        batch = as_regions(regions, sizes, num_points=self.num_points)
        first = next(iter(maps))
        batch = batch.to(first.device)
        pooled_RTC = first.new_empty(len(batch.map_R), self.tokens_per_region, self.width)
        # Map by map: maps of tiled images differ in size, which one call of RoI-Align cannot handle.
        for number, map_CHW in enumerate(maps):
            of_map = batch.map_R == number
            # Each call sees a single map, whose number is 0.
            pooled = align_boxes(map_CHW[None], batch.boxes_R4[of_map], batch.map_R[of_map] * 0, side=self.side)
            pooled_RTC = pooled_RTC.index_put((of_map.nonzero()[:, 0],), pooled.flatten(2).transpose(1, 2))
        vectors_RTE = self.adapter(pooled_RTC)
        return vectors_RTE[:, 0] if self.tokens_per_region == 1 else vectors_RTE


REGION_ENCODER = RoiEncoder
