"""Vectors for classifiers: no untrained layer before them, cached or not, the same for the same weights."""

from __future__ import annotations

import torch

from foveate.vision.feature_cache import VectorEncoder
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.registry import build_image_encoder

TIMM = {"kind": "timm", "model": "resnet18", "embed_dim": 4, "image_size": 64}


def test_pooled_vector_in_front_of_a_new_projection() -> None:
    encoder = build_image_encoder(TIMM).eval()
    pixels = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    vectors = encoder.image_vectors(pixels)
    assert vectors.shape == (2, encoder.vector_width) == (2, 512)
    torch.testing.assert_close(encoder.proj(vectors), encoder(pixels).pooled)
    # A trained projection belongs to the encoder.
    encoder.fresh_parts = ()
    assert encoder.vector_width == 4
    torch.testing.assert_close(encoder.image_vectors(pixels), encoder(pixels).pooled)


def test_vectors_of_lite0_are_its_maps_alone() -> None:
    pixels = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    first, second = (Lite0Encoder(image_size=64, width=width) for width in (64, 128))
    vectors = VectorEncoder(first).frozen_features(pixels)
    assert vectors.shape == (2, 432)
    torch.testing.assert_close(vectors, VectorEncoder(second).frozen_features(pixels))


def test_fingerprint_follows_the_weights() -> None:
    first, second = (VectorEncoder(build_image_encoder(TIMM, seed=seed)) for seed in (0, 1))
    assert first.fingerprint() == VectorEncoder(build_image_encoder(TIMM, seed=0)).fingerprint()
    assert first.fingerprint() != second.fingerprint()
    assert not first.train().inner.training


def test_fingerprint_follows_a_trained_projection_behind_a_frozen_trunk() -> None:
    first, second = (build_image_encoder({**TIMM, "frozen": True}) for _ in range(2))
    torch.nn.init.zeros_(second.proj.weight)
    # Untrained projections have no part in the vectors, so that they share a cache.
    assert VectorEncoder(first).fingerprint() == VectorEncoder(second).fingerprint()
    assert VectorEncoder(first).fingerprint() == f"{first.fingerprint()}-vectors"
    first.fresh_parts = second.fresh_parts = ()
    assert VectorEncoder(first).fingerprint() != VectorEncoder(second).fingerprint()
    assert VectorEncoder(first).fingerprint().startswith(first.fingerprint())
    # Where the weights were read from has no part in it.
    name = VectorEncoder(first).fingerprint()
    first.architecture = lambda: {"source": "elsewhere"}  # type: ignore[method-assign]
    assert VectorEncoder(first).fingerprint() == name
