"""Frozen features kept in memory: all models of a study have the same frozen encoders and see the same tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.vision.localizer.model import LocalizingModel


class KeptFeatures:
    """What frozen encoders made of images and texts, by the hash of these; never written to disk.

    Args:
        most_bytes: of features; beyond it new ones are made and not kept.
    """

    def __init__(self, *, most_bytes: int = 2**30) -> None:
        self.room = most_bytes
        self._kept: dict[bytes, Tensor] = {}

    def serve(self, model: LocalizingModel) -> None:
        """Makes the frozen parts of the model's encoders look here before they compute."""
        for encoder, hashed in ((model.image_encoder, _of_pixels), (model.text_encoder, _of_text)):
            if encoder.fingerprint():
                salt = f"{encoder.fingerprint()} {model.device} ".encode()
                looked_up = self._looked_up(encoder.frozen_features, salt, hashed)
                encoder.frozen_features = looked_up  # pyrefly: ignore[bad-assignment]

    def _looked_up(
        self, compute: Callable[[Any], Tensor], salt: bytes, hashed: Callable[[Any], bytes]
    ) -> Callable[[Any], Tensor]:
        def features(entries: Tensor | Sequence[str]) -> Tensor:
            keys = [hashlib.blake2b(salt + hashed(entry), digest_size=16).digest() for entry in entries]
            new = [place for place, key in enumerate(keys) if key not in self._kept]
            if not new and keys:
                return torch.stack([self._kept[key] for key in keys])
            made = compute(entries if len(new) == len(keys) else _chosen(entries, new))
            fresh = dict(zip((keys[place] for place in new), made, strict=True))
            for key, value in fresh.items():
                size = value.numel() * value.element_size()
                if size <= self.room:
                    self.room -= size
                    self._kept[key] = value.clone()
            if len(new) == len(keys):
                return made
            return torch.stack([fresh[key] if key in fresh else self._kept[key] for key in keys])

        return features


def _chosen(entries: Tensor | Sequence[str], places: list[int]) -> Tensor | list[str]:
    return entries[places] if isinstance(entries, Tensor) else [entries[place] for place in places]


def _of_pixels(pixels_3HW: Tensor) -> bytes:
    return f"{tuple(pixels_3HW.shape)} {pixels_3HW.dtype} ".encode() + pixels_3HW.cpu().contiguous().numpy().tobytes()


def _of_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
