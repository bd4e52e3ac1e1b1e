"""What every encoder offers: a cacheable frozen part, a trainable part, and one shape of result.

An encoder works in two steps. `frozen_features` is the part that never changes in training; its result may be kept on
disk under `fingerprint()`. `forward` takes these features and gives tokens and embeddings. Where nothing is frozen,
the features are the pixels (or token ids) themselves and the fingerprint is empty: nothing worth keeping.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.vision.pixels import Preprocess


@dataclass(frozen=True)
class ImageTokens:
    """One pass of an image encoder.

    Attributes:
        tokens_BLD: patch tokens after the final norm, row by row; before pooling, projection and normalization.
        grid: rows and columns of patches; L = rows x columns.
        embedding_BE: joint embedding, not normalized.
    """

    tokens_BLD: Tensor
    grid: tuple[int, int]
    embedding_BE: Tensor

    def __post_init__(self) -> None:
        assert self.tokens_BLD.shape[1] == self.grid[0] * self.grid[1], (self.tokens_BLD.shape, self.grid)


class ImageEncoder(nn.Module, ABC):
    """Pixels to `ImageTokens`.

    Attributes:
        width: D, of the tokens. embed_dim: E, of the joint embedding. grid: rows and columns of patches.
        preprocess: how an image becomes pixels.
        feature_shape: of the frozen features of one image. feature_dtype: in which they are best kept.
        trained_scale, trained_bias: 1 / temperature and bias that came with trained weights, if any did.
        fresh_parts: prefixes of the weights that were not trained before; None: all of them.
    """

    trained_scale: float | None = None
    trained_bias: float | None = None
    fresh_parts: tuple[str, ...] | None = None

    def __init__(self, *, width: int, embed_dim: int, grid: tuple[int, int], preprocess: Preprocess) -> None:
        super().__init__()
        self.width = width
        self.embed_dim = embed_dim
        self.grid = grid
        self.preprocess = preprocess
        self.feature_shape: tuple[int, ...] = (3, preprocess.size, preprocess.size)
        self.feature_dtype: torch.dtype = torch.uint8

    def normalized(self, pixels_B3HW: Tensor) -> Tensor:
        """uint8 pixels normalized as `preprocess` says; floating-point ones are taken as normalized already."""
        return self.preprocess.normalize(pixels_B3HW) if pixels_B3HW.dtype == torch.uint8 else pixels_B3HW

    def fingerprint(self) -> str:
        """Name of everything `frozen_features` depends on; empty if it gives back its input."""
        return ""

    def architecture(self) -> dict[str, Any]:
        """Options to set over those it was built from, so that it is built again without fetching trained weights."""
        return {}

    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """The part that training never changes, without gradient: [B, *feature_shape]."""
        return pixels_B3HW

    @abstractmethod
    def forward(self, features: Tensor) -> ImageTokens:
        """Frozen features, or pixels where nothing is frozen, to tokens and the joint embedding."""

    @abstractmethod
    def project(self, pooled_RD: Tensor) -> Tensor:
        """Pooled tokens [R, D] (of a region, say) to the joint space [R, E], as the image's own are."""


class TextEncoder(nn.Module, ABC):
    """Texts to embeddings, in the same two steps.

    Attributes:
        embed_dim: E, of the joint embedding.
        feature_shape: of the frozen features of one text. feature_dtype: in which they are best kept.
        trained_scale, trained_bias: 1 / temperature and bias that came with trained weights, if any did.
        fresh_parts: prefixes of the weights that were not trained before; None: all of them.
        context_length: tokens that it reads of a text, special ones included; None: not known.
    """

    trained_scale: float | None = None
    trained_bias: float | None = None
    fresh_parts: tuple[str, ...] | None = None
    context_length: int | None = None

    def __init__(self, *, embed_dim: int, feature_shape: tuple[int, ...], feature_dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.feature_shape = feature_shape
        self.feature_dtype = feature_dtype

    def fingerprint(self) -> str:
        """Name of everything `frozen_features` depends on."""
        return ""

    def architecture(self) -> dict[str, Any]:
        """See `ImageEncoder.architecture`."""
        return {}

    def tokenizer_files(self) -> dict[str, bytes]:
        """Name and content of the files that a model folder keeps so that it opens without its source.

        Empty where the tokenizer comes with an installed package. An encoder that gives files takes the folder they
        were put into as its option `tokenizer`.
        """
        return {}

    @abstractmethod
    def frozen_features(self, texts: Sequence[str]) -> Tensor:
        """Token ids or frozen sentence vectors, on the CPU: [B, *feature_shape], `feature_dtype`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Features to joint embeddings [B, E], not normalized."""
