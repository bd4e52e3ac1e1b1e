"""The model's parts as plain modules without data-dependent control flow, as a graph exporter needs them.

They compute what the model computes and hold its own layers. `RegionGraph` and `PhraseGraph` lay out one sequence
[prompt ; image tokens] for each prompt, where `Prompter` shares work between the prompts of an image.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.vision.encoder import ImageEncoder
from foveate.vision.lite0 import Lite0Encoder, pack_maps
from foveate.vision.lite0_network import load_lite0
from foveate.vision.prompter import BoxHead, Prompted, Prompter
from foveate.vision.sinusoid import encode_points, patch_centers


class ImageGraph(nn.Module):
    """uint8 pixels [B, 3, S, S] to unit-length embeddings [B, E] and tokens [B, L, D]."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        # lite0 keeps its frozen network outside of the module.
        self.frozen = load_lite0().float() if isinstance(encoder, Lite0Encoder) else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder.normalized(pixels)
        if self.frozen is not None:
            features = pack_maps(*self.frozen(features))
        found = self.encoder(features)
        return F.normalize(found.pooled, dim=-1), found.tokens


class _Layer(nn.Module):
    """The Prompter's layer over [prompt ; image tokens] of each prompt: [R, P, D] to pooled [R, D]."""

    def __init__(self, prompter: Prompter, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prompter = prompter
        positions_LD = torch.zeros(grid[0] * grid[1], prompter.width)
        if prompter.image_pos == "sincos":
            positions_LD = sinusoid(prompter, patch_centers(grid))
        self.register_buffer("positions_LD", positions_LD, persistent=False)

    def forward(self, prompts_RPD: Tensor, tokens_BLD: Tensor, image_R: Tensor) -> Tensor:
        own, pre = self.prompter, self.prompter.norm == "pre"
        image_RLD = (tokens_BLD + cast(Tensor, self.positions_LD))[image_R]
        x_RSD = torch.cat((prompts_RPD, image_RLD), dim=1)
        normed_RSD = own.ln1(x_RSD) if pre else x_RSD
        if own.pool == "prompt":
            x_RSD, asking = prompts_RPD, normed_RSD[:, : prompts_RPD.shape[1]]
        else:
            asking = normed_RSD
        scores = own.q(asking) @ own.k(normed_RSD).transpose(1, 2) / math.sqrt(own.width)
        x_RSD = x_RSD + own.o(scores.softmax(dim=-1) @ own.v(normed_RSD))
        if pre:
            x_RSD = x_RSD + own.fc2(F.gelu(own.fc1(own.ln2(x_RSD))))
        else:
            x_RSD = own.ln1(x_RSD)
            x_RSD = own.ln2(x_RSD + own.fc2(F.gelu(own.fc1(x_RSD))))
        return own.final_ln(x_RSD).mean(dim=1)


def sinusoid(prompter: Prompter, points: Tensor) -> Tensor:
    """The Prompter's encoding of points in [0, 1]."""
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
        own = self.layer.prompter
        prompts_RPD = sinusoid(own, boxes.unflatten(-1, (2, 2)))
        if own.corner_embedding is not None:
            prompts_RPD = prompts_RPD + own.corner_embedding
        return F.normalize(own.proj(self.layer(prompts_RPD, tokens, image)), dim=-1)


class PhraseGraph(nn.Module):
    """Tokens [B, L, D], text embeddings [R, E] before normalization and their images [R] to boxes [R, 4] in [0, 1]
    of the square input, corners in order."""

    def __init__(self, prompter: Prompter, head: BoxHead, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.head = _Layer(prompter, grid), head

    def forward(self, tokens: Tensor, texts: Tensor, image: Tensor) -> Tensor:
        own = self.layer.prompter
        words_RE = F.normalize(texts, dim=-1) if own.text_prompt_normalized else texts
        pooled_RD = self.layer(own.text_in(words_RE).unsqueeze(1), tokens, image)
        return self.head.locate(Prompted(own.proj(pooled_RD), pooled_RD))
