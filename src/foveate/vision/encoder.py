"""Encoder interface: a frozen part that can be cached, a trainable part, and one type of result.

An encoder works in two steps. `frozen_features` is the part that never changes in training; its result may be cached on
disk under `fingerprint()`. `forward` takes these features and returns tokens and embeddings. Where nothing is frozen,
the features are the pixels (or token ids) themselves and the fingerprint is empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.preprocess import Preprocess


@dataclass(frozen=True)
class ImageFeatures:
    """One pass of an image encoder: a grid of vectors, and where there is one, a vector of the whole image.

    Attributes:
        tokens: [B, L, D] patch tokens or cells of a feature map, row by row, before pooling and projection.
        grid: rows and columns; L = prefix + rows x columns.
        pooled: [B, E] joint embedding, not normalized; None for hidden layers.
        prefix: class and register tokens in front of the patches, where they were asked for.
    """

    tokens: Tensor
    grid: tuple[int, int]
    # Typed without None: `ImageEncoder.forward` always has an embedding, and most of the code reads nothing else.
    pooled: Tensor = None  # type: ignore[assignment]
    prefix: int = 0

    def __post_init__(self) -> None:
        rows, columns = self.grid
        assert self.tokens.shape[1] == self.prefix + rows * columns, (self.tokens.shape, self.grid, self.prefix)

    @classmethod
    def from_map(cls, map_BCHW: Tensor) -> ImageFeatures:
        """Read the cells of a convolutional feature map as tokens, row by row."""
        return cls(map_BCHW.flatten(2).transpose(1, 2), (map_BCHW.shape[2], map_BCHW.shape[3]))


@dataclass(frozen=True)
class BoxProposals:
    """Boxes of one image that may show things, with what phrases are compared with.

    Attributes:
        boxes_K4: corners in [0, 1] of the model input.
        vectors_KE: of each box; their products with a phrase's unit vector are scores, not necessarily cosines.
        bias_K: part of a box's score that depends on no phrase.
        judged_KE: vectors that score the best box for the floor of a phrase; None: `vectors_KE`.
        has_floors: whether the encoder's floors of phrases hold in this image; else random names measure one.
    """

    boxes_K4: Tensor
    vectors_KE: Tensor
    bias_K: Tensor
    judged_KE: Tensor | None = None
    has_floors: bool = True

    def score(self, texts_TE: Tensor) -> Tensor:
        """Return the scores [T, K] of phrases, unit length or not, with every box."""
        return F.normalize(texts_TE.float(), dim=-1) @ self.vectors_KE.T + self.bias_K

    def judge(self, texts_TE: Tensor) -> Tensor:
        """Return what the floor of each phrase is compared with [T]: the score of its best box, as floors know it."""
        best_T = self.score(texts_TE).argmax(dim=1)
        vectors_KE = self.vectors_KE if self.judged_KE is None else self.judged_KE
        texts_TE = F.normalize(texts_TE.float(), dim=-1)
        return (texts_TE * vectors_KE[best_T]).sum(dim=1) + self.bias_K[best_T]


def check_layer(layer: int, layers: int, *, kind: str) -> int:
    """Return the index from 0 of `layer`, which counts from the end.

    Raises:
        UserError: when the network has no such layer.
    """
    if not -layers <= layer <= -1:
        raise UserError(f"layer {layer} of '{kind}': out of range; expected -{layers} to -1 (it has {layers} layers)")
    return layers + layer


class ImageEncoder(nn.Module, ABC):
    """Image encoder: pixels to `ImageFeatures`.

    Attributes:
        width: D, of the tokens. embed_dim: E, of the joint embedding. grid: rows and columns of patches.
        preprocess: how an image becomes pixels.
        feature_shape: of the frozen features of one image. feature_dtype: in which they are cached.
        trained_scale, trained_bias: 1 / temperature and bias that came with trained weights, if any did.
        fresh_parts: prefixes of the weights that were not trained before; None: all of them.
        has_box_head: whether `ground` gives boxes.
        partly_trained: whether `image_vectors` have trained layers behind a frozen part.
    """

    trained_scale: float | None = None
    trained_bias: float | None = None
    fresh_parts: tuple[str, ...] | None = None
    has_box_head = False
    partly_trained = False

    def __init__(self, *, width: int, embed_dim: int, grid: tuple[int, int], preprocess: Preprocess) -> None:
        super().__init__()
        self.width = width
        self.embed_dim = embed_dim
        self.grid = grid
        self.preprocess = preprocess
        # Where nothing is frozen the features are the pixels themselves, a quarter of their size in float32.
        self.feature_shape: tuple[int, ...] = (3, preprocess.height, preprocess.width)
        self.feature_dtype: torch.dtype = torch.uint8

    def normalized(self, pixels_B3HW: Tensor) -> Tensor:
        """Normalize uint8 pixels as `preprocess` says; floating-point ones are taken as normalized already."""
        return self.preprocess.normalize(pixels_B3HW) if pixels_B3HW.dtype == torch.uint8 else pixels_B3HW

    def fingerprint(self) -> str:
        """Return a name of everything that `frozen_features` depends on; empty if it returns its input."""
        return ""

    def architecture(self) -> dict[str, Any]:
        """Return options to set over those it was built from, to build it again without fetching trained weights."""
        return {}

    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Run the part that training never changes, without gradient: [B, *feature_shape]."""
        return pixels_B3HW

    def view_features(self, pixels_V3HW: Tensor, is_overview_V: Tensor) -> Tensor:
        """Run the frozen part on views of images: `frozen_features`, unless it differs between overviews and tiles.

        Args:
            is_overview_V: views that show a whole image.
        """
        return self.frozen_features(pixels_V3HW)

    @abstractmethod
    def forward(self, features: Tensor) -> ImageFeatures:
        """Turn frozen features, or pixels where nothing is frozen, into tokens and the joint embedding."""

    @property
    def vector_width(self) -> int:
        """Width of `image_vectors`."""
        return self.embed_dim

    def unnamed_weights(self) -> Mapping[str, Tensor]:
        """Return the weights that `image_vectors` depend on and `fingerprint` does not name."""
        return self.state_dict()

    def image_vectors(self, features: Tensor) -> Tensor:
        """Return the vector of each image [B, vector_width] for a classifier: no untrained layer stands before it.

        Args:
            features: those of `forward`.
        """
        return self.forward(features).pooled

    def hidden_features(
        self, pixels_B3HW: Tensor, *, layer: int = -2, norm: bool = False, prefix: bool = False
    ) -> ImageFeatures:
        """Return the tokens behind a layer, without pooling, for models that read more than the last one.

        The defaults are those of LLaVA and its relatives: the last layer but one, no norm, patches alone.

        Args:
            pixels_B3HW: uint8 or normalized; sides of whole patches, not necessarily equal.
            layer: transformer layers or stages of a convolutional network, from the end: -1 is the last one.
            norm: apply the network's final norm to them.
            prefix: keep class and register tokens in front of the patches.

        Raises:
            UserError: for a layer that the network does not have, or a prefix where it has none.
        """
        # Not abstract, because an encoder without readable layers can still serve everything else.
        raise UserError(f"{type(self).__name__} has no hidden layers to read")

    def embed_boxes(self, features: ImageFeatures, boxes_R4: Tensor, image_index_R: Tensor) -> Tensor | None:
        """Embed boxes [R, E] by a region module of the encoder's own; None where it has none.

        Args:
            boxes_R4: corners in [0, 1] of the model input. image_index_R: row of `features` that each box belongs to.
        """
        return None

    def ground(self, features: ImageFeatures, texts_RE: Tensor, image_index_R: Tensor) -> Tensor | None:
        """Return the boxes [R, 4] of phrases by a box head of the encoder's own; None where it has none.

        Args:
            texts_RE: of the text encoder, not normalized.
        """
        return None

    def propose(self, pixels_3HW: Tensor, tokens_LD: Tensor) -> BoxProposals | None:
        """Propose boxes of an image in which a phrase is looked for; None where any box is as good as another.

        Args:
            pixels_3HW: uint8 or normalized. tokens_LD: of the image, as `forward` gave them.
        """
        return None

    def measure_floors(self, texts_TE: Tensor, of: str) -> Tensor | None:
        """Return the score [T] below which nothing shows a phrase; None where an image or an index measures it itself.

        Args:
            of: what is scored: "proposals" of an image, or, by their cosine, each "image" or "region" of a collection.
        """
        return None

    @abstractmethod
    def project(self, pooled_RD: Tensor) -> Tensor:
        """Project pooled tokens [R, D], of a region for example, to the joint space [R, E] as the image's are."""


class TextEncoder(nn.Module, ABC):
    """Text encoder: texts to embeddings, in the same two steps.

    Attributes:
        embed_dim: E, of the joint embedding.
        feature_shape: of the frozen features of one text. feature_dtype: in which they are cached.
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
        """Return a name of everything that `frozen_features` depends on."""
        return ""

    def architecture(self) -> dict[str, Any]:
        """See `ImageEncoder.architecture`."""
        return {}

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return name and content of the files that a model folder stores, so that it opens without its source.

        Empty where the tokenizer comes with an installed package. An encoder that returns files takes the folder they
        were written into as its option `tokenizer`.
        """
        return {}

    @abstractmethod
    def frozen_features(self, texts: Sequence[str]) -> Tensor:
        """Return token ids or frozen sentence vectors, on the CPU: [B, *feature_shape], `feature_dtype`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Turn features into joint embeddings [B, E], not normalized."""
