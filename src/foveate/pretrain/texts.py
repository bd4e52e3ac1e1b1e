"""Texts as features: of a frozen encoder each distinct text once and on disk, otherwise token ids on demand.

Neither holds the texts of a collection in memory: they stay in its table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.vision.encoder import TextEncoder
from foveate.vision.feature_store import Failure, FeatureStore, Share, keys_of
from foveate.vision.localizer.inference import encode_all

_BLOCK = 2048
_CACHED_TEXTS = 16_384
_SMALL_BYTES = 2**28


def text_id(text: str) -> int:
    """Hash a text to an integer in [0, 2**63), the same on every machine."""
    # 63 bits: an int64 tensor has no unsigned twin on every device. Python's own hash differs between processes.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1


class TextFeatures(Protocol):
    """Frozen text features, looked up by text."""

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Return the features [B, *feature_shape] of texts."""
        ...


class LiveTexts:
    """Token ids on demand, for encoders that train; memory does not grow with the collection.

    Recent texts are cached, since the phrases of regions repeat often.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._cache: dict[str, Tensor] = {}

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B, *feature_shape]; may be called from several threads."""
        # A local reference: another thread may replace the cache while this one reads it.
        cache = self._cache
        by_text = {text: cache.get(text) for text in texts}
        new = [text for text, features in by_text.items() if features is None]
        if len(cache) + len(new) > _CACHED_TEXTS:
            cache = self._cache = {}
        if new:
            encoded = dict(zip(new, self.encoder.frozen_features(new), strict=True))
            by_text |= encoded
            cache.update(encoded)
        if not texts:
            return torch.zeros(0, *self.encoder.feature_shape, dtype=self.encoder.feature_dtype)
        return torch.stack([features for features in map(by_text.get, texts) if features is not None])


class StoredTexts:
    """The features of a frozen encoder, each distinct text once, cached on disk for other runs.

    Args:
        texts: all that will be looked up, in any order, repeated or not.
        cache: folder of the stores. share: rank and number of the processes that fill it together.
    """

    def __init__(
        self, encoder: TextEncoder, texts: pa.ChunkedArray | pa.Array, *, cache: Path, share: Share = (0, 1)
    ) -> None:
        distinct = texts.unique()
        # Sort by length to pad the texts of a block little, then by text: all ranks need the same order.
        by_length = pa.table({"length": pc.call_function("utf8_length", [distinct]), "text": distinct})
        distinct = by_length.sort_by([("length", "ascending"), ("text", "ascending")])["text"]
        keys = keys_of(_iterate(distinct))
        self.store = FeatureStore(
            cache,
            kind="texts",
            depends=(encoder.fingerprint(),),
            shape=tuple(encoder.feature_shape),
            dtype=encoder.feature_dtype,
        )

        def make(entries: Sequence[int]) -> tuple[Tensor, NDArray[np.int32], dict[int, Failure]]:
            block = distinct.take(pa.array(entries)).to_pylist()
            return encode_all(encoder, block), np.zeros((len(entries), 2), np.int32), {}

        self.store.fill(keys, make, block=_BLOCK, description=f"text features, parts of {_BLOCK}", share=share)
        # Looked up by binary search on the first 8 bytes of each hash: a dictionary would hold every text in memory.
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._hashes = keys[self._order, 0]
        # Small stores fit into memory, where a lookup needs no page of the file.
        if len(keys) * int(np.prod(encoder.feature_shape)) * encoder.feature_dtype.itemsize <= _SMALL_BYTES:
            self.store.keep_in_memory()

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Return the features [B, *feature_shape] of texts that the constructor was given."""
        if not texts:
            return torch.zeros(0, *self.store.shape, dtype=self.store.dtype)
        hashes = keys_of(texts)
        entries = self._order[np.searchsorted(self._hashes, hashes[:, 0]).clip(max=len(self._hashes) - 1)]
        assert (self.store.keys[entries] == hashes).all(), "a text that the constructor was not given"
        return torch.stack([self.store[int(entry)] for entry in entries])


def _iterate(texts: pa.ChunkedArray) -> Iterable[str]:
    """Yield the texts of a column without a Python list of all of them."""
    for start in range(0, len(texts), 65_536):
        yield from texts.slice(start, 65_536).to_pylist()
