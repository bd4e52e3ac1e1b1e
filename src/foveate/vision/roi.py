"""The RoI-Align baseline of CLOC's ablation: a region embedding pooled from the token map, without a Prompter.

RoI-Align: Mask R-CNN (arXiv 1703.06870), section 3; its use here: CLOC (arXiv 2410.02746 v2), table 2, "with RoI". It
has no phrase prompt, so that grounding is impossible.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foveate.vision.prompter import check_boxes


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
    from torchvision.ops import roi_align

    # Half precision is widened, since box corners need more than 8 bits.
    exact = map_BDHW if map_BDHW.dtype == torch.float64 else map_BDHW.float()
    rows, columns = map_BDHW.shape[2:]
    cells = torch.tensor((columns, rows, columns, rows), dtype=exact.dtype, device=exact.device)
    rois_R5 = torch.cat((image_index_R[:, None].to(exact.dtype), boxes_R4.to(exact.dtype) * cells), dim=1)
    # sampling_ratio -1: as many samples as the box has cells, so that large boxes see all of their patches.
    pooled = roi_align(exact, rois_R5, output_size=side, spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    return pooled.to(map_BDHW.dtype)


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
