"""Frozen features kept in memory: all models of a study have the same frozen encoders and see the same tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.vision.localizer.model import LocalizingModel


class FeatureMemory:
    """Outputs of frozen encoders by the hash of their input; never written to disk.

    Args:
        max_bytes: of features; beyond it new ones are computed and not stored.
    """

    def __init__(self, *, max_bytes: int = 2**30) -> None:
        self.free_bytes = max_bytes
        self._features: dict[bytes, Tensor] = {}

    def attach(self, model: LocalizingModel) -> None:
        """Make the frozen parts of the model's encoders look here before they compute."""
        for encoder, hash_input in ((model.image_encoder, _hash_pixels), (model.text_encoder, _hash_text)):
            # An encoder without a fingerprint is trained: its outputs change and must not be reused.
            if encoder.fingerprint():
                # The same input has other features in another encoder, and other last bits on another device.
                salt = f"{encoder.fingerprint()} {model.device} ".encode()
                cached = self._cached(encoder.frozen_features, salt, hash_input)
                encoder.frozen_features = cached  # pyrefly: ignore[bad-assignment]

    def _cached(
        self, compute: Callable[[Any], Tensor], salt: bytes, hash_input: Callable[[Any], bytes]
    ) -> Callable[[Any], Tensor]:
        def features(inputs: Tensor | Sequence[str]) -> Tensor:
            keys = [hashlib.blake2b(salt + hash_input(entry), digest_size=16).digest() for entry in inputs]
            missing = [index for index, key in enumerate(keys) if key not in self._features]
            if not missing and keys:
                return torch.stack([self._features[key] for key in keys])
            outputs = compute(inputs if len(missing) == len(keys) else _select(inputs, missing))
            new = dict(zip((keys[index] for index in missing), outputs, strict=True))
            for key, value in new.items():
                size = value.numel() * value.element_size()
                if size <= self.free_bytes:
                    self.free_bytes -= size
                    # A view would keep the whole batch in memory.
                    self._features[key] = value.clone()
            if len(missing) == len(keys):
                return outputs
            return torch.stack([new[key] if key in new else self._features[key] for key in keys])

        return features


def _select(inputs: Tensor | Sequence[str], indices: list[int]) -> Tensor | list[str]:
    return inputs[indices] if isinstance(inputs, Tensor) else [inputs[index] for index in indices]


def _hash_pixels(pixels_3HW: Tensor) -> bytes:
    return f"{tuple(pixels_3HW.shape)} {pixels_3HW.dtype} ".encode() + pixels_3HW.cpu().contiguous().numpy().tobytes()


def _hash_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
