"""One vector an image of an encoder that is not trained: cached, it takes kilobytes where tokens take megabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from foveate.vision.encoder import ImageEncoder, ImageFeatures


class VectorEncoder(ImageEncoder):
    """An encoder as it is, whose features are its `image_vectors`; see `foveate.vision.feature_cache.FeatureCache`."""

    def __init__(self, encoder: ImageEncoder) -> None:
        width = encoder.vector_width
        super().__init__(width=width, embed_dim=width, grid=(1, 1), preprocess=encoder.preprocess)
        self.inner = encoder.eval().requires_grad_(False)
        self.feature_shape = (width,)
        # 32 bits: the vector is the only input of a classifier, and its size does not matter.
        self.feature_dtype = torch.float32
        self._digest = ""

    def train(self, mode: bool = True) -> VectorEncoder:
        """Stay in evaluation mode: batch statistics would make each cached vector another one."""
        return super().train(False)  # type: ignore[return-value]

    def fingerprint(self) -> str:
        """Name the encoder with all weights that its vectors depend on, and that vectors are cached."""
        frozen = self.inner.fingerprint()
        if not frozen:
            architecture = f"{type(self.inner).__name__} {self.inner.architecture()}"
            return f"{self._hash(architecture, self.inner.state_dict())}-{self.preprocess.size_name}-vectors"
        unnamed = self.inner.unnamed_weights()
        return f"{frozen}-{self._hash('', unnamed)}-vectors" if unnamed else f"{frozen}-vectors"

    def _hash(self, text: str, weights: Mapping[str, Tensor]) -> str:
        if not self._digest:
            digest = hashlib.sha256(text.encode())
            for name, value in weights.items():
                digest.update(name.encode() + b"\0")
                # As bytes, because NumPy has no bfloat16.
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()[:16]
        return self._digest

    @torch.no_grad()
    def frozen_features(self, pixels_B3HW: Tensor) -> Tensor:
        """Return vectors [B, D] of pixels."""
        return self.inner.image_vectors(self.inner.frozen_features(pixels_B3HW)).float()

    def forward(self, features: Tensor) -> ImageFeatures:
        """Return vectors of pixels, or vectors themselves, as one token each."""
        vectors_BD = features if features.dim() == 2 else self.frozen_features(features)
        return ImageFeatures(vectors_BD[:, None], (1, 1), vectors_BD)

    def project(self, pooled_RD: Tensor) -> Tensor:
        """Return the vectors: there is no other space."""
        return pooled_RD
