"""Phrase maps: where in an image a text token's meaning is seen, as the language model's input and as boxes.

Once visual tokens lie where the embeddings of names lie (embedding alignment), the similarity of a token's embedding
with every patch is a map of where that word is seen. A decoder of a few layers does not discover this match in hours;
here it is handed to it: `PhraseMaps` adds the map of each text token to the token's embedding, `BoxHead` turns the map
of a phrase into a box. A deviation from MM1.5, which writes coordinates in digits (docs/methods/mm15.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def box_weights(boxes_R4: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share [R, L] of each box in each cell of a grid, row by row; the shares of a box sum to 1.

    Args:
        boxes_R4: corners x1, y1, x2, y2 in [0, 1] with positive area.
        grid: rows and columns.
    """

    def overlap(low_R: Tensor, high_R: Tensor, cells: int) -> Tensor:
        edges = torch.arange(cells + 1, device=boxes_R4.device, dtype=boxes_R4.dtype) / cells
        # Where box and cell do not meet, the difference is negative.
        return (torch.minimum(high_R[:, None], edges[1:]) - torch.maximum(low_R[:, None], edges[:-1])).clamp(min=0)

    x1_R, y1_R, x2_R, y2_R = boxes_R4.unbind(1)
    across_RW, down_RH = overlap(x1_R, x2_R, grid[1]), overlap(y1_R, y2_R, grid[0])
    shares_RL = (down_RH[:, :, None] * across_RW[:, None]).flatten(1)
    return shares_RL / shares_RL.sum(dim=1, keepdim=True)


def similarity(full_VLE: Tensor, phrases_NE: Tensor, view_N: Tensor) -> Tensor:
    """Return the similarity map [N, L] of each phrase with the patches of its view."""
    return torch.einsum("nle,ne->nl", select_views(full_VLE, view_N), F.normalize(phrases_NE, dim=-1))


def select_views(full_VLE: Tensor, view_N: Tensor) -> Tensor:
    """Return the patches [N, L, E] of views by number; of a single one without a copy, which costs as much as a map."""
    return full_VLE[int(view_N)][None] if len(view_N) == 1 else full_VLE[view_N]


class PhraseMatch(NamedTuple):
    """Where a phrase is seen best: number of the view, box [4] in [0, 1] of it, and the score of the match."""

    view: int
    box_4: Tensor
    score: float


class PhraseMaps(nn.Module):
    """Embed the similarity maps of text tokens; added to the token embeddings.

    Args:
        width: E. grid: of the patches. side: the map is pooled to side x side by its maxima. images: most images of a
            sample; each has a projection of its own, so that "the second image" can be told from the first.
    """

    def __init__(self, *, width: int, grid: tuple[int, int], side: int = 7, images: int = 2) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        self.hidden = nn.Linear(side * side + 1, width)
        layers = [nn.Linear(width, width, bias=False) for _ in range(images)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
        self.out = nn.ModuleList(layers)

    def forward(self, maps_BKTL: Tensor, visible_BKT: Tensor) -> Tensor:
        """Return [B, T, E].

        Args:
            maps_BKTL: similarity of T text tokens with the L patches of each of K images.
            visible_BKT: which images there are, in front of each token.
        """
        batch, images, length = maps_BKTL.shape[:3]
        map_N1HW = maps_BKTL.reshape(-1, 1, *self.grid)
        # By maxima: in a mean a small thing would vanish among the patches around it.
        pooled_NS = F.adaptive_max_pool2d(map_N1HW, self.side).flatten(1)
        # The maximum says whether the thing is there at all, wherever it is.
        features_NF = torch.cat([pooled_NS, pooled_NS.amax(dim=1, keepdim=True)], dim=1)
        hidden_BKTE = F.silu(self.hidden(features_NF)).view(batch, images, length, -1)
        total_BTE = hidden_BKTE.new_zeros(batch, length, hidden_BKTE.shape[-1])
        # Images beyond those that the module was built for have no map.
        for index in range(min(images, len(self.out))):
            total_BTE = total_BTE + self.out[index](hidden_BKTE[:, index]) * visible_BKT[:, index, :, None]
        return total_BTE


class BoxHead(nn.Module):
    """Turn the map of a phrase and the patches it weights into a box.

    Args:
        width: E. grid: of the patches. hidden: width of the MLP.
    """

    def __init__(self, *, width: int, grid: tuple[int, int], hidden: int = 128) -> None:
        super().__init__()
        rows, columns = grid
        self.state_query = nn.Linear(width, width, bias=False)
        self.token_key = nn.Linear(width, width, bias=False)
        self.token_bias = nn.Linear(width, 1, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        # It begins as the match that embedding alignment has learned.
        nn.init.eye_(self.query.weight)
        self.sharpness = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(2, 8, 5, padding=2)
        self.fc1 = nn.Linear(8 * rows * columns + width, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 4)
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        self.register_buffer("centers_L2", torch.stack([x, y], dim=-1).flatten(0, 1), persistent=False)
        self.grid = grid

    def point(self, states_NE: Tensor, embedded_NTE: Tensor, read_NT: Tensor) -> Tensor:
        """Return the phrase [N, E] that each box is for: the embeddings that its hidden state attends to.

        Args:
            states_NE: hidden state in front of the region token.
            embedded_NTE: token embeddings of the row. read_NT: those that may be attended to.
        """
        scores_NT = torch.einsum("ne,nte->nt", self.state_query(states_NE), self.token_key(embedded_NTE))
        scores_NT = scores_NT * states_NE.shape[-1] ** -0.5 + self.token_bias(embedded_NTE)[..., 0]
        shares_NT = scores_NT.float().masked_fill(~read_NT, -torch.inf).softmax(dim=1)
        return torch.einsum("nt,nte->ne", shares_NT.to(embedded_NTE.dtype), embedded_NTE)

    def forward(self, full_VLE: Tensor, phrases_NE: Tensor, view_N: Tensor) -> Tensor:
        """Return boxes [N, 4] in [0, 1], sorted corners, in float32.

        Args:
            full_VLE: patches of V views. phrases_NE: query of each phrase. view_N: the view it is looked for in.
        """
        # Eight bits of mantissa are steps of 1/256 of the image: with bfloat16 a small box would be off by its width.
        with torch.autocast(full_VLE.device.type, enabled=False):
            return self._decode(full_VLE, self._match(full_VLE, phrases_NE, view_N), view_N)

    def match_best(self, full_VLE: Tensor, phrase_E: Tensor, views_K: Tensor) -> PhraseMatch:
        """Return the best match of a phrase in views, and its box there, from one map of each."""
        with torch.autocast(full_VLE.device.type, enabled=False):
            map_KL = self._match(full_VLE, phrase_E.expand(len(views_K), -1), views_K)
            scores_K = map_KL.amax(dim=1)
            best = int(scores_K.argmax())
            box_4 = self._decode(full_VLE, map_KL[best : best + 1], views_K[best : best + 1])[0]
        return PhraseMatch(best, box_4, float(scores_K[best]))

    def score(self, full_VLE: Tensor, phrases_NE: Tensor, view_N: Tensor) -> Tensor:
        """Return how well each phrase matches the patch of its view that it matches best [N], in float32."""
        with torch.autocast(full_VLE.device.type, enabled=False):
            return self._match(full_VLE, phrases_NE, view_N).amax(dim=1)

    def _match(self, full_VLE: Tensor, phrases_NE: Tensor, view_N: Tensor) -> Tensor:
        """Return the map [N, L] of each phrase in its view."""
        return similarity(full_VLE.float(), F.linear(phrases_NE.float(), self.query.weight.float()), view_N)

    def _decode(self, full_VLE: Tensor, map_NL: Tensor, view_N: Tensor) -> Tensor:
        """Return the boxes [N, 4] of maps [N, L]."""
        weights_NL = (self.sharpness.float() * map_NL).softmax(dim=1)
        center_N2 = weights_NL @ self.centers_L2.float()
        seen_NE = torch.einsum("nl,nle->ne", weights_NL, select_views(full_VLE, view_N).float())
        # The softmax says where, the similarity how far: both are read.
        relative_NL = map_NL - map_NL.mean(dim=1, keepdim=True)
        # Shares of some 200 cells are small numbers: times 10 they are nearer the range of the similarities.
        planes_N2HW = torch.stack([relative_NL, weights_NL * 10], dim=1).unflatten(2, self.grid)
        local_NF = F.silu(_apply_in_float32(self.conv, planes_N2HW)).flatten(1)
        x = F.silu(_apply_in_float32(self.fc1, torch.cat([local_NF, seen_NE], dim=1)))
        x = _apply_in_float32(self.fc3, F.silu(_apply_in_float32(self.fc2, x)))
        # Shift of the center and logarithm of the size around a box of a quarter of the image; the bounds let a side be
        # between 1.2 % and all of the image, so that no untrained head gives a box without area.
        middle_N2 = center_N2 + 0.5 * torch.tanh(x[:, :2])
        half_N2 = 0.125 * torch.exp(x[:, 2:].clamp(-3, 1.4))
        return torch.cat([middle_N2 - half_N2, middle_N2 + half_N2], dim=1).clamp(0, 1)


def _apply_in_float32(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a layer whose weights a trainer may hold in bfloat16 (frozen, or sharded) to float32 input."""
    assert layer.bias is not None
    weight, bias = layer.weight.float(), layer.bias.float()
    if isinstance(layer, nn.Conv2d):
        # Padding by 2 keeps the size of the grid under a kernel of 5 x 5, as in the layer itself.
        return F.conv2d(x, weight, bias, padding=2)
    return F.linear(x, weight, bias)
