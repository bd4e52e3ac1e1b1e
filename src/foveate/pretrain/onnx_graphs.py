"""The parts of a model as modules without data-dependent control flow, as a graph exporter needs them.

They use the model's own layers and give the same outputs. `RegionGraph` and `PhraseGraph` build one sequence
[prompt ; image tokens] for each prompt, where `Prompter` shares work between the prompts of an image.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.vision.encoder import ImageEncoder
from foveate.vision.layers import encode_points, patch_centers
from foveate.vision.lite0 import Lite0Encoder, load_lite0, pack_maps
from foveate.vision.prompter import BoxHead, Prompted, Prompter


class ImageGraph(nn.Module):
    """uint8 pixels [B, 3, S, S] to unit-length embeddings [B, E] and tokens [B, L, D]."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        # lite0 keeps its frozen network outside of the module, so that checkpoints do not store it.
        self.frozen = load_lite0().float() if isinstance(encoder, Lite0Encoder) else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder.normalized(pixels)
        if self.frozen is not None:
            features = pack_maps(*self.frozen(features))
        tokens = self.encoder(features)
        return F.normalize(tokens.pooled, dim=-1), tokens.tokens


class _Layer(nn.Module):
    """The Prompter's layer over [prompt ; image tokens] of each prompt: [R, P, D] to pooled [R, D]."""

    def __init__(self, prompter: Prompter, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prompter = prompter
        positions_LD = torch.zeros(grid[0] * grid[1], prompter.width)
        if prompter.image_pos == "sincos":
            positions_LD = encode_sinusoid(prompter, patch_centers(grid))
        self.register_buffer("positions_LD", positions_LD, persistent=False)

    def forward(self, prompts_RPD: Tensor, tokens_BLD: Tensor, image_R: Tensor) -> Tensor:
        prompter, pre = self.prompter, self.prompter.norm == "pre"
        image_RLD = (tokens_BLD + cast(Tensor, self.positions_LD))[image_R]
        x_RSD = torch.cat((prompts_RPD, image_RLD), dim=1)
        normed_RSD = prompter.ln1(x_RSD) if pre else x_RSD
        if prompter.pool == "prompt":
            # Only prompts are pooled, so image tokens need no queries.
            x_RSD, queries_RQD = prompts_RPD, normed_RSD[:, : prompts_RPD.shape[1]]
        else:
            queries_RQD = normed_RSD
        scores = prompter.q(queries_RQD) @ prompter.k(normed_RSD).transpose(1, 2) / math.sqrt(prompter.width)
        x_RSD = x_RSD + prompter.o(scores.softmax(dim=-1) @ prompter.v(normed_RSD))
        if pre:
            x_RSD = x_RSD + prompter.fc2(F.gelu(prompter.fc1(prompter.ln2(x_RSD))))
        else:
            x_RSD = prompter.ln1(x_RSD)
            x_RSD = prompter.ln2(x_RSD + prompter.fc2(F.gelu(prompter.fc1(x_RSD))))
        return prompter.final_ln(x_RSD).mean(dim=1)


def encode_sinusoid(prompter: Prompter, points: Tensor) -> Tensor:
    """Encode points in [0, 1] as the Prompter does."""
    return encode_points(
        points,
        width=prompter.width,
        coordinate_scale=prompter.coordinate_scale,
        temperature=prompter.temperature,
        layout=prompter.layout,
    )


class RegionGraph(nn.Module):
    """Tokens [B, L, D], boxes [R, 4] in [0, 1] and their images [R] to unit-length region embeddings [R, E]."""

    def __init__(self, prompter: Prompter, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer = _Layer(prompter, grid)

    def forward(self, tokens: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        prompter = self.layer.prompter
        prompts_RPD = encode_sinusoid(prompter, boxes.unflatten(-1, (2, 2)))
        if prompter.corner_embedding is not None:
            prompts_RPD = prompts_RPD + prompter.corner_embedding
        return F.normalize(prompter.proj(self.layer(prompts_RPD, tokens, image)), dim=-1)


class PhraseGraph(nn.Module):
    """Tokens [B, L, D], text embeddings [R, E] before normalization and their images [R] to boxes [R, 4].

    Boxes are in [0, 1] of the square input, corners in order.
    """

    def __init__(self, prompter: Prompter, head: BoxHead, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.head = _Layer(prompter, grid), head

    def forward(self, tokens: Tensor, texts: Tensor, image: Tensor) -> Tensor:
        prompter = self.layer.prompter
        texts_RE = F.normalize(texts, dim=-1) if prompter.text_prompt_normalized else texts
        pooled_RD = self.layer(prompter.text_in(texts_RE).unsqueeze(1), tokens, image)
        return self.head.locate(Prompted(prompter.proj(pooled_RD), pooled_RD))
