"""Towers of multimodal models: an image encoder, whole or read behind one of its hidden layers.

LLaVA and its relatives read the last layer but one of CLIP, without the class token and the final norm; Idefics3 the
last one of SigLIP behind its norm. What an encoder adds for a joint space, pooling and projection, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.encoder import ImageEncoder, ImageFeatures
from foveate.vision.layers import as_computed
from foveate.vision.registry import build_image_encoder, find_encoder

_BATCH = 64


class HiddenLayerEncoder(ImageEncoder):
    """An encoder whose tokens are those of a hidden layer.

    Args:
        encoder: with `frozen: true` its results are cached, in 16 bits.
        layer, norm: see `ImageEncoder.hidden_features`.
    """

    def __init__(self, encoder: ImageEncoder, *, layer: int, norm: bool) -> None:
        super().__init__(width=encoder.width, embed_dim=0, grid=encoder.grid, preprocess=encoder.preprocess)
        self.encoder, self.layer, self.norm = encoder, layer, norm
        # Nothing reads the joint embedding: its weights would only be saved and counted.
        encoder.proj = nn.Identity()
        self.frozen = bool(getattr(encoder, "frozen", False))
        if self.frozen:
            self.feature_shape = (self.grid[0] * self.grid[1] * self.width,)
            self.feature_dtype = torch.float16

    def fingerprint(self) -> str:
        """Name encoder and layer of cached features; empty where the encoder is trained."""
        inner = self.encoder.fingerprint() if self.frozen else ""
        return inner and f"{inner}-layer{self.layer}{'-norm' if self.norm else ''}"

    def architecture(self) -> dict[str, Any]:
        """See `ImageEncoder.architecture`."""
        return self.encoder.architecture()

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Return pixels as they are where the encoder is trained; else tokens in one float16 row."""
        if not self.frozen:
            return pixels_B3HW
        rows = [pixels_B3HW.new_zeros((0, *self.feature_shape), dtype=torch.float16)]
        for block in pixels_B3HW.split(_BATCH) if len(pixels_B3HW) else ():
            rows.append(self._hidden(block).tokens.flatten(1).to(torch.float16))
        return torch.cat(rows)

    def forward(self, features: Tensor) -> ImageFeatures:
        """Encode pixels, or rows of `frozen_features`."""
        if features.dim() == 2:
            rows = as_computed(features)
            rows = rows if torch.is_autocast_enabled(rows.device.type) else rows.float()
            return ImageFeatures(rows.view(len(rows), -1, self.width), self.grid)
        # Through the cache's 16 bits, too: an image gives the same numbers whether or not it was cached.
        if self.frozen and features.shape[-2:] == (self.preprocess.height, self.preprocess.width):
            return self.forward(self.frozen_features(features))
        return self._hidden(features)

    def hidden_features(
        self, pixels_B3HW: Tensor, *, layer: int = -2, norm: bool = False, prefix: bool = False
    ) -> ImageFeatures:
        """See `ImageEncoder.hidden_features`."""
        return self.encoder.hidden_features(pixels_B3HW, layer=layer, norm=norm, prefix=prefix)

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Raise UserError: a hidden layer has no joint space."""
        raise UserError(f"layer {self.layer}: a hidden layer has no joint embedding; leave layer out")

    def _hidden(self, pixels_B3HW: Tensor) -> ImageFeatures:
        return self.encoder.hidden_features(pixels_B3HW, layer=self.layer, norm=self.norm)


def build_tower(settings: Mapping[str, Any], *, seed: int = 0) -> ImageEncoder:
    """Build the tower of a multimodal model.

    Args:
        settings: of `build_image_encoder`; with `layer` (-2 is LLaVA's) it reads that hidden layer, with `norm: true`
            behind the final norm.

    Raises:
        UserError: an unknown kind, option or layer.
    """
    options = dict(settings)
    layer, norm = options.pop("layer", None), options.pop("norm", False)
    if layer is None:
        if norm:
            raise UserError("tower.norm: has no effect without tower.layer; set layer: -1 for the last layer")
        return build_image_encoder(options, seed=seed)
    if isinstance(layer, bool) or not isinstance(layer, int) or layer >= 0:
        raise UserError(f"tower.layer: counts from the end (got {layer!r}); expected -1, the last layer, -2, ...")
    # Some kinds have no projection of their own and ask for the width of a new one, which nothing here reads.
    fields = getattr(find_encoder(str(options.get("kind")), "IMAGE_ENCODER"), "Options", None)
    if fields is not None and fields.model_fields["embed_dim"].is_required():
        options.setdefault("embed_dim", 1)
    return HiddenLayerEncoder(build_image_encoder(options, seed=seed), layer=layer, norm=bool(norm))
