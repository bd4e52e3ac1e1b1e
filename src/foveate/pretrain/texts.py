"""Texts as an encoder's frozen features: each distinct text once, kept in memory, and on disk where it costs time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from foveate.settings.files import write_bytes_atomically
from foveate.settings.progress import track
from foveate.vision.encoder import TextEncoder

_BATCH = 256


def text_id(text: str) -> int:
    """An integer in [0, 2**63) that is the same for the same text everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1


def encode_all(encoder: TextEncoder, texts: list[str], *, description: str = "reading texts") -> Tensor:
    """Frozen features [T, *feature_shape] on the CPU; texts of like length share a batch, so little is padded."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    features = torch.zeros(len(texts), *encoder.feature_shape, dtype=encoder.feature_dtype)
    starts = range(0, len(texts), _BATCH)
    for start in track(starts, description=description) if len(starts) > 8 else starts:
        chosen = order[start : start + _BATCH]
        features[chosen] = encoder.frozen_features([texts[index] for index in chosen]).to(features.dtype)
    return features


class TextFeatures:
    """The frozen features of the texts of a run, by text.

    Args:
        cache: folder for encoders that have a fingerprint; None keeps them in memory only.
    """

    def __init__(self, encoder: TextEncoder, texts: Iterable[str], *, cache: Path | None = None) -> None:
        self.texts = sorted(set(texts))
        self.rows = {text: row for row, text in enumerate(self.texts)}
        self.features = self._load_or_make(encoder, cache)

    def _load_or_make(self, encoder: TextEncoder, cache: Path | None) -> Tensor:
        if cache is None or not encoder.fingerprint():
            return encode_all(encoder, self.texts)
        name = hashlib.blake2b(digest_size=12)
        for part in (encoder.fingerprint(), *self.texts):
            name.update(part.encode("utf-8") + b"\0")
        path = cache / f"texts-{name.hexdigest()}.safetensors"
        if not path.is_file():
            write_bytes_atomically(path, save({"features": encode_all(encoder, self.texts)}))
        with safe_open(path, framework="pt") as stored:
            return stored.get_tensor("features")

    def __getitem__(self, texts: list[str]) -> Tensor:
        """Features [B, *feature_shape] of texts that were named when this was made."""
        return self.features[np.array([self.rows[text] for text in texts], dtype=np.int64)]
