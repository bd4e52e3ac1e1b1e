"""The Prompter: from image tokens that were encoded once to the embedding of any box, or the box of any phrase.

Source: CLOC (arXiv 2410.02746 v2), section 3.2; what the paper leaves open are options, with defaults as measured.
For each region, one transformer layer with one head reads the sequence [prompt tokens ; image tokens].

What all regions of an image share is computed once per image (`prepare`): norms, and with pool "all" the image-to-image
attention, into which each prompt is merged by its log-sum-exp. With pool "prompt" only the prompt tokens pass through
the layer, and no projection touches the image tokens at all. Both equal the plain layer exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError, choose
from foveate.vision.layers import LAYOUTS, as_computed, encode_points, layer_norm, patch_centers

POOLS = ("prompt", "all")
IMAGE_POSITIONS = ("sincos", "none")
NORMS = ("pre", "post")
HEAD_INPUTS = ("embedding", "pooled")
HEAD_OUTPUTS = ("linear", "sigmoid")


@dataclass(frozen=True)
class PreparedTokens:
    """Intermediate results that all prompts of an image share, from `Prompter.prepare`.

    Attributes:
        tokens_BLD: image tokens with positions. normed_BLD: the same after the norm, input of the attention.
        grid: rows and columns of the patches, the last tokens.
        queries_BLD: of the image tokens; attended_BLD: their image-to-image attention after the output projection,
            without its bias; lse_BL1: its log-sum-exp. Only with pool "all".
    """

    tokens_BLD: Tensor
    normed_BLD: Tensor
    grid: tuple[int, int]
    queries_BLD: Tensor | None = None
    attended_BLD: Tensor | None = None
    lse_BL1: Tensor | None = None


@dataclass(frozen=True)
class Prompted:
    """Results of prompts, one row each.

    Attributes:
        embedding_RE: region embedding z, not normalized.
        pooled_RD: mean of the output tokens, before the projection.
    """

    embedding_RE: Tensor
    pooled_RD: Tensor


def check_boxes(boxes_R4: Tensor, *, ids: list[str] | None = None) -> None:
    """Raise UserError, naming the first bad row, unless all boxes are valid.

    Args:
        boxes_R4: corners (x1, y1, x2, y2); valid in [0, 1] with x2 > x1 and y2 > y1.
        ids: names of the rows for the message; row numbers otherwise.
    """
    if boxes_R4.dim() != 2 or boxes_R4.shape[1] != 4:
        raise UserError(f"boxes: wrong shape (got {list(boxes_R4.shape)}); expected [R, 4], rows of (x1, y1, x2, y2)")
    # Comparisons with NaN are false, so NaN corners are refused as well.
    inside = (boxes_R4 >= 0).all(1) & (boxes_R4 <= 1).all(1)
    good_R = inside & (boxes_R4[:, 2] > boxes_R4[:, 0]) & (boxes_R4[:, 3] > boxes_R4[:, 1])
    if not bool(good_R.all()):
        row = int((~good_R).nonzero()[0])
        name = ids[row] if ids is not None else str(row)
        corners = ", ".join(f"{value:.6g}" for value in boxes_R4[row].tolist())
        raise UserError(f"box {name}: corners ({corners}); expected values in [0, 1] with x2 > x1 and y2 > y1")


def sorted_boxes(raw_R4: Tensor) -> Tensor:
    """Turn head outputs into boxes at inference: clamped to [0, 1], corners in order."""
    first, second = raw_R4.clamp(0, 1).split(2, dim=-1)
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=-1)


class Prompter(nn.Module):
    """Embed boxes and phrases as regions, from image tokens that were encoded once.

    Args:
        width: D of the image tokens. embed_dim: E.
        pool: mean over the "prompt" tokens only (1.09x of a CLIP step at B/16, better in small runs) or over "all"
            tokens (the paper's "global average pooler", 1.47x).
        image_pos: "sincos" adds the sinusoid of the patch center to each image token; "none" makes small models blind
            to the box.
        norm: "pre" or "post", both followed by a final LayerNorm.
        mlp_ratio: hidden width of the MLP over D.
        coordinate_scale, temperature, layout: of the sinusoid, see `encode_points`.
        corner_embedding: learned vectors that tell the two corners apart, zero at the start.
        text_prompt_normalized: scale phrase embeddings to unit length before they become a prompt.
    """

    def __init__(
        self,
        *,
        width: int,
        embed_dim: int,
        pool: str = "all",
        image_pos: str = "sincos",
        norm: str = "pre",
        mlp_ratio: float = 4.0,
        coordinate_scale: float = 100.0,
        temperature: float = 10_000.0,
        layout: str = "blocked",
        corner_embedding: bool = True,
        text_prompt_normalized: bool = False,
    ) -> None:
        super().__init__()
        # The sinusoid of a corner has four equal blocks: sine and cosine of x and of y.
        if width % 4:
            raise UserError(f"width of the Prompter: not a multiple of 4 (got {width})")
        self.width = width
        self.embed_dim = embed_dim
        self.pool = choose(pool, POOLS, "prompter.pool")
        self.image_pos = choose(image_pos, IMAGE_POSITIONS, "prompter.image_pos")
        self.norm = choose(norm, NORMS, "prompter.norm")
        self.coordinate_scale = coordinate_scale
        self.temperature = temperature
        self.layout = choose(layout, LAYOUTS, "prompter.layout")
        self.text_prompt_normalized = text_prompt_normalized
        hidden = int(width * mlp_ratio)
        # Four layers, not one fused projection: `_forward` applies key weights to queries and value weights to means
        # of tokens, so that with pool "prompt" no image token is projected.
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ln1, self.ln2, self.final_ln = (nn.LayerNorm(width, eps=1e-5) for _ in range(3))
        # Weights of its own: the image branch projects its pooled token with others (section 3.2).
        self.proj = nn.Linear(width, embed_dim, bias=False)
        self.text_in = nn.Linear(embed_dim, width)
        self.corner_embedding = nn.Parameter(torch.zeros(2, width)) if corner_embedding else None

    def prepare(self, tokens_BLD: Tensor, grid: tuple[int, int]) -> PreparedTokens:
        """Compute the intermediate results that all prompts of an image share.

        Args:
            tokens_BLD: image tokens after the encoder's final norm. Tokens before the last rows x columns ones (a
                class token) get no position.
            grid: rows and columns of the patches.
        """
        extra = tokens_BLD.shape[1] - grid[0] * grid[1]
        assert extra >= 0, (tokens_BLD.shape, grid)
        if self.image_pos == "sincos":
            centers = patch_centers(grid, device=tokens_BLD.device, dtype=_exact(tokens_BLD.dtype))
            tokens_BLD = tokens_BLD + F.pad(self._sinusoid(centers), (0, 0, extra, 0)).to(tokens_BLD.dtype)
        normed_BLD = as_computed(self._first_norm(tokens_BLD))
        if self.pool == "prompt":
            return PreparedTokens(tokens_BLD, normed_BLD, grid)
        queries_BLD = self.q(normed_BLD)
        scores_BLL = self._scores(queries_BLD, self.k(normed_BLD))
        lse_BL1 = scores_BLL.logsumexp(-1, keepdim=True)
        # The output projection is linear, so it is applied to the values once instead of to each prompt's mixture.
        values_BLD = F.linear(self.v(normed_BLD), self.o.weight)
        attended_BLD = (scores_BLL - lse_BL1).exp().to(values_BLD.dtype) @ values_BLD
        return PreparedTokens(tokens_BLD, normed_BLD, grid, queries_BLD, attended_BLD, lse_BL1)

    def boxes(
        self, prepared: PreparedTokens, boxes_R4: Tensor, image_index_R: Tensor, *, check: bool = True
    ) -> Prompted:
        """Embed boxes as regions.

        Args:
            prepared: of B images.
            boxes_R4: corners in [0, 1] of the square model input.
            image_index_R: image of each box, integers in [0, B), any order.
            check: refuse invalid boxes; False in training, where the loader has done so and a check would wait for
                the device.

        Raises:
            UserError: naming the row of an invalid box.
        """
        corners_R2D = self._corners(boxes_R4, check=check)
        return self._forward(prepared, [(corners_R2D, image_index_R)])[0]

    def phrases(self, prepared: PreparedTokens, text_RE: Tensor, image_index_R: Tensor) -> Prompted:
        """Embed phrases as regions: `text_RE` are projected text embeddings, not normalized."""
        return self._forward(prepared, [(self._phrase_tokens(text_RE), image_index_R)])[0]

    def boxes_and_phrases(
        self,
        prepared: PreparedTokens,
        boxes_R4: Tensor,
        box_image_R: Tensor,
        text_QE: Tensor,
        text_image_Q: Tensor,
        *,
        check: bool = True,
    ) -> tuple[Prompted, Prompted]:
        """Run `boxes` and `phrases` in one pass over the image tokens: same results, less memory traffic."""
        groups = [(self._corners(boxes_R4, check=check), box_image_R), (self._phrase_tokens(text_QE), text_image_Q)]
        boxes, phrases = self._forward(prepared, groups)
        return boxes, phrases

    def _corners(self, boxes_R4: Tensor, *, check: bool) -> Tensor:
        """Build two prompt tokens for each box: [R, 2, D]."""
        if check:
            check_boxes(boxes_R4)
        # Sinusoids at coordinate scale 100 need float32: in bfloat16 neighboring cells would be one and the same.
        corners_R2D = self._sinusoid(boxes_R4.to(_exact(boxes_R4.dtype)).unflatten(-1, (2, 2)))
        if self.corner_embedding is not None:
            corners_R2D = corners_R2D + self.corner_embedding
        return corners_R2D.to(self.ln1.weight.dtype)

    def _phrase_tokens(self, text_RE: Tensor) -> Tensor:
        """Build one prompt token for each phrase: [R, 1, D]."""
        if self.text_prompt_normalized:
            text_RE = F.normalize(text_RE, dim=-1)
        return self.text_in(text_RE).unsqueeze(1)

    def _sinusoid(self, points: Tensor) -> Tensor:
        return encode_points(
            points,
            width=self.width,
            coordinate_scale=self.coordinate_scale,
            temperature=self.temperature,
            layout=self.layout,
        )

    def _first_norm(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.ln1) if self.norm == "pre" else x

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Compute scaled dot products in at least float32."""
        scores = queries @ keys.transpose(-1, -2)
        # The layer has a single head (section 3.2), so the scale is that of the whole width.
        return scores.to(_exact(scores.dtype)) / math.sqrt(self.width)

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Apply the rest of the layer and the final norm, token by token."""
        x = x + attended
        if self.norm == "pre":
            x = x + self.fc2(F.gelu(self.fc1(layer_norm(x, self.ln2))))
        else:
            x = layer_norm(x, self.ln1)
            x = layer_norm(x + self.fc2(F.gelu(self.fc1(x))), self.ln2)
        return layer_norm(x, self.final_ln)

    def _forward(self, prepared: PreparedTokens, groups: Sequence[tuple[Tensor, Tensor]]) -> list[Prompted]:
        """Run groups of (prompt tokens [R, P, D], image of each prompt [R]), with P = 1 or 2, in one pass."""
        # T counts the prompt tokens of all groups: two of a box, one of a phrase.
        prompts_TD = torch.cat([prompts.flatten(0, 1) for prompts, _ in groups])
        image_T = torch.cat([image.repeat_interleave(prompts.shape[1]) for prompts, image in groups])
        partner_T = _partners([prompts.shape[:2] for prompts, _ in groups], prompts_TD.device)
        normed_TD = as_computed(self._first_norm(prompts_TD))
        # k.q = x.(Wk' q) + bk.q, whose last term is the same for all keys and cancels in the softmax; and the mean of
        # values is Wv (mean of x) + bv. So the few prompt tokens are projected instead of all image tokens. The bias
        # bk stays in the graph with its true gradient, zero: distributed training waits for every parameter.
        queries_TD = F.linear(self.q(normed_TD), self.k.weight.T)
        queries_TD = queries_TD + (0.0 * self.k.bias).to(queries_TD.dtype)
        mixed_TD = _prompt_attention(queries_TD, normed_TD, partner_T, prepared.normed_BLD, image_T)
        out_TD = self._after_attention(prompts_TD, self.o(self.v(mixed_TD)))
        sizes = [prompts.shape[0] * prompts.shape[1] for prompts, _ in groups]
        results = []
        for (prompts, image), out, normed in zip(groups, out_TD.split(sizes), normed_TD.split(sizes), strict=True):
            out_RPD = out.view(prompts.shape)
            if self.pool == "prompt":
                pooled_RD = out_RPD.mean(dim=1)
            else:
                out_RLD = self._image_outputs(prepared, normed.view(prompts.shape), image)
                tokens = out_RLD.shape[1] + out_RPD.shape[1]
                pooled_RD = (out_RLD.sum(dim=1) + out_RPD.sum(dim=1)) / tokens
            results.append(Prompted(self.proj(pooled_RD), pooled_RD))
        return results

    def _image_outputs(self, prepared: PreparedTokens, normed_RPD: Tensor, image_index_R: Tensor) -> Tensor:
        """Compute outputs at the image tokens, which attend to the prompt tokens too: [R, L, D].

        The softmax over [prompt ; image] is the image part scaled by exp(lse - lse_all) plus the prompt's part.
        """
        assert prepared.queries_BLD is not None
        assert prepared.attended_BLD is not None
        assert prepared.lse_BL1 is not None
        scores_RLP = self._scores(prepared.queries_BLD[image_index_R], self.k(normed_RPD))
        lse_RL1 = prepared.lse_BL1[image_index_R]
        total_RL1 = torch.logaddexp(lse_RL1, scores_RLP.logsumexp(-1, keepdim=True))
        values_RPD = F.linear(self.v(normed_RPD), self.o.weight)
        # Neither exponent exceeds 0, because the total is at least as large as each part: nothing overflows.
        weight_RLP = (scores_RLP - total_RL1).exp().to(values_RPD.dtype)
        weight_RL1 = (lse_RL1 - total_RL1).exp().to(values_RPD.dtype)
        attended_RLD = weight_RLP @ values_RPD + weight_RL1 * prepared.attended_BLD[image_index_R] + self.o.bias
        return self._after_attention(prepared.tokens_BLD[image_index_R], attended_RLD)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of coordinates and softmax: float32 or wider, never half."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _partners(shapes: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the row of the other token of each token's prompt; -1 for prompts of one token."""
    partners, start = [], 0
    for rows, size in shapes:
        assert size in (1, 2), size
        index = torch.arange(start, start + rows * size, device=device)
        partners.append(index.view(rows, size).flip(1).flatten() if size == 2 else torch.full_like(index, -1))
        start += rows * size
    return torch.cat(partners)


def _prompt_attention(
    queries_TD: Tensor, normed_TD: Tensor, partner_T: Tensor, normed_BLD: Tensor, image_T: Tensor
) -> Tensor:
    """Attend from each prompt token to the tokens of its image and of its prompt: [T, D].

    The result is their mean, weighted by the softmax of the scaled dot products with `queries_TD`.

    Prompt tokens are laid out by image in slots, so that an image's tokens are read once and not copied for each
    prompt; where one image has so many more prompts than the others that most slots would be empty, they are. The
    scores are few, so that plain products beat the fused kernels, which want one joint list of keys.
    """
    count, width = normed_TD.shape
    if count == 0:
        return queries_TD + normed_TD  # empty, but every weight gets a gradient, as distributed training wants
    counts_B = torch.bincount(image_T, minlength=len(normed_BLD))
    assert len(counts_B) == len(normed_BLD), "image_index points behind the last image"
    prompted_B = counts_B > 0
    if not bool(prompted_B.all()):
        normed_BLD, image_T, counts_B = (
            normed_BLD[prompted_B],
            # Renumbers the images that have prompts without gaps.
            (prompted_B.cumsum(0) - 1)[image_T],
            counts_B[prompted_B],
        )
    images, slots = len(counts_B), int(counts_B.max())
    # By slot unless more than three quarters of the slots would be empty.
    by_slot = images * slots <= 4 * count
    slot_index_T = image_T * slots + _slot_of(image_T, counts_B)
    # [B, L, D], read once for all prompts of an image, or [T, L, D], a copy for each prompt token.
    image_tokens = normed_BLD if by_slot else normed_BLD[image_T]

    def read(x_TX: Tensor, image: Tensor) -> Tensor:
        """Multiply x by the matrix of its image, for each prompt token."""
        if not by_slot:
            return (x_TX.unsqueeze(1) @ image).squeeze(1)
        slotted = x_TX.new_zeros(images * slots, x_TX.shape[-1]).index_copy(0, slot_index_T, x_TX)
        return (slotted.view(images, slots, -1) @ image).flatten(0, 1)[slot_index_T]

    exact = _exact(queries_TD.dtype)
    alone_T = partner_T < 0
    # A prompt without a partner has -1 and reads any row, since its score is masked below.
    partner_TD = normed_TD[partner_T.clamp(min=0)]
    prompt_scores_T2 = torch.stack(((queries_TD * normed_TD).sum(-1), (queries_TD * partner_TD).sum(-1)), dim=-1).to(
        exact
    )
    prompt_scores_T2 = prompt_scores_T2.masked_fill(
        torch.stack((torch.zeros_like(alone_T), alone_T), dim=-1), -math.inf
    )
    # [T, L + 2]: the image's tokens, the prompt token itself, and its partner (-inf where it has none).
    scores = torch.cat((read(queries_TD, image_tokens.transpose(1, 2)).to(exact), prompt_scores_T2), dim=-1)
    weights = (scores / math.sqrt(width)).softmax(dim=-1).to(normed_BLD.dtype)
    of_image, of_self, of_partner = weights.split((weights.shape[-1] - 2, 1, 1), dim=-1)
    return read(of_image, image_tokens) + of_self * normed_TD + of_partner * partner_TD


def _slot_of(image_T: Tensor, counts_B: Tensor) -> Tensor:
    """Number the prompt tokens of each image from 0."""
    order_T = image_T.argsort(stable=True)
    first_B = counts_B.cumsum(0) - counts_B
    slot_T = torch.empty_like(order_T)
    slot_T[order_T] = torch.arange(len(order_T), device=order_T.device) - first_B[image_T[order_T]]
    return slot_T


class BoxHead(nn.Module):
    """Box head, from phrase prompts to boxes: a two-layer MLP with GELU (CLOC, equation 3).

    Its widths are embed_dim (or width) -> width -> 4.

    Args:
        width: D. embed_dim: E.
        input: "embedding" reads the unnormalized z, "pooled" the tokens' mean before the projection.
        output: "linear" as in the paper's regression, or "sigmoid".
    """

    def __init__(self, *, width: int, embed_dim: int, input: str = "embedding", output: str = "linear") -> None:
        super().__init__()
        self.input = choose(input, HEAD_INPUTS, "box_head.input")
        self.output = choose(output, HEAD_OUTPUTS, "box_head.output")
        self.head1 = nn.Linear(embed_dim if input == "embedding" else width, width)
        self.head2 = nn.Linear(width, 4)

    def forward(self, prompted: Prompted) -> Tensor:
        """Predict raw corners [R, 4] in float32 or wider, for the loss; `sorted_boxes` turns them into boxes."""
        x = prompted.embedding_RE if self.input == "embedding" else prompted.pooled_RD
        raw_R4 = self.head2(F.gelu(self.head1(x)))
        raw_R4 = raw_R4.to(_exact(raw_R4.dtype))
        return raw_R4.sigmoid() if self.output == "sigmoid" else raw_R4

    def locate(self, prompted: Prompted) -> Tensor:
        """Predict boxes [R, 4] in [0, 1] of the model input, corners in order."""
        return sorted_boxes(self(prompted))
