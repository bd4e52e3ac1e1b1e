"""ConvE: head and relation as one small image, convolved and projected to the query.

Source: Dettmers et al. 2018 (arXiv 1707.01476), section 4; order of layers as in the released code of COSMO, without a
bias of its own for each entity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.species.score import Score

CHANNELS, KERNEL = 32, 3
DROPOUTS = (0.2, 0.2, 0.3)


class ConvE(Score):
    """Convolution over head and relation, both reshaped to `rows` x dim / rows and stacked.

    Args:
        rows: of one vector's image; 20 for the paper's dimension of 200.
        dropouts: probabilities behind the input, the maps and the projection.

    Raises:
        UserError: the dimension does not divide into rows, or the image is smaller than the kernel.
    """

    is_linear = False
    # Batch statistics of one or two images would be noise; the released code drops such batches, too.
    drops_last = True

    def __init__(self, dim: int, *, rows: int = 20, dropouts: tuple[float, float, float] = DROPOUTS) -> None:
        super().__init__(dim)
        columns = dim // rows
        if dim % rows or columns < KERNEL or 2 * rows < KERNEL:
            raise UserError(
                f"dim: 'conve' reshapes vectors to {rows} rows (got {dim}); expected a multiple of {rows} from "
                f"{rows * KERNEL}, such as 200"
            )
        self.rows, self.columns, self.dropouts = rows, columns, dropouts
        self.conv1 = nn.Conv2d(1, CHANNELS, KERNEL)
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(1), nn.BatchNorm2d(CHANNELS), nn.BatchNorm1d(dim)
        self.fc = nn.Linear(CHANNELS * (2 * rows - KERNEL + 1) * (columns - KERNEL + 1), dim)

    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        """See `Score.query`."""
        shape = (-1, 1, self.rows, self.columns)
        after_input, after_maps, after_projection = self.dropouts
        x = torch.cat([heads_BD.reshape(shape), relations_BD.reshape(shape)], dim=2)
        x = F.dropout(self.bn0(x), after_input, self.training)
        x = F.dropout2d(F.relu(self.bn1(self.conv1(x))), after_maps, self.training)
        x = F.dropout(self.fc(x.flatten(1)), after_projection, self.training)
        return F.relu(self.bn2(x))


SCORE = ConvE
