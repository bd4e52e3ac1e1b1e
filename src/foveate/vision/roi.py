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
    from torchvision.ops import roi_align

    rows, columns = grid
    images, _, width = tokens_BLD.shape
    # A class token in front is left out; half precision is widened, since box corners need more than 8 bits.
    exact = tokens_BLD if tokens_BLD.dtype == torch.float64 else tokens_BLD.float()
    map_BDHW = exact[:, -rows * columns :].transpose(1, 2).reshape(images, width, rows, columns)
    cells = torch.tensor((columns, rows, columns, rows), dtype=map_BDHW.dtype, device=map_BDHW.device)
    rois_R5 = torch.cat((image_index_R[:, None].to(map_BDHW.dtype), boxes_R4.to(map_BDHW.dtype) * cells), dim=1)
    # sampling_ratio -1: as many samples as the box has cells, so that large boxes see all of their patches.
    pooled = roi_align(map_BDHW, rois_R5, output_size=1, spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    return pooled.flatten(1).to(tokens_BLD.dtype)


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
