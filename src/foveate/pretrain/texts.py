"""Texts as an encoder's features: of a frozen encoder each distinct text once and on disk, else token ids as they come.

In neither case are the texts of a collection kept: they stay in its table.
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
from foveate.vision.localizer.asking import encode_all
from foveate.vision.store import FeatureStore, Share, keys_of

_BLOCK = 2048
_REMEMBERED = 16_384
_SMALL_BYTES = 2**28


def text_id(text: str) -> int:
    """An integer in [0, 2**63) that is the same for the same text everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big") >> 1


class TextFeatures(Protocol):
    """Features by text."""

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Features [B, *feature_shape] of texts."""
        ...


class LiveTexts:
    """Token ids made when they are asked for, for encoders that train: nothing that grows with the collection.

    The last texts are remembered, since the phrases of regions come again and again.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Token ids [B, *feature_shape]; may be called from several threads."""
        known = self._known
        found = {text: known.get(text) for text in texts}
        new = [text for text, features in found.items() if features is None]
        if len(known) + len(new) > _REMEMBERED:
            known = self._known = {}
        if new:
            made = dict(zip(new, self.encoder.frozen_features(new), strict=True))
            found |= made
            known.update(made)
        if not texts:
            return torch.zeros(0, *self.encoder.feature_shape, dtype=self.encoder.feature_dtype)
        return torch.stack([features for features in map(found.get, texts) if features is not None])


class StoredTexts:
    """The features of a frozen encoder, each distinct text once, kept on disk from run to run.

    Args:
        texts: all that will be asked for, any order, repeated or not.
        cache: folder of the stores. share: rank and number of the processes that fill it together.
    """

    def __init__(
        self, encoder: TextEncoder, texts: pa.ChunkedArray | pa.Array, *, cache: Path, share: Share = (0, 1)
    ) -> None:
        distinct = texts.unique()
        # By length, so that a block is little padded; by text, so that all ranks have the same order.
        by_length = pa.table({"length": pc.call_function("utf8_length", [distinct]), "text": distinct})
        distinct = by_length.sort_by([("length", "ascending"), ("text", "ascending")])["text"]
        keys = keys_of(_one_by_one(distinct))
        self.store = FeatureStore(
            cache,
            kind="texts",
            depends=(encoder.fingerprint(),),
            shape=tuple(encoder.feature_shape),
            dtype=encoder.feature_dtype,
        )

        def make(entries: Sequence[int]) -> tuple[Tensor, NDArray[np.int32], dict[int, str]]:
            chosen = distinct.take(pa.array(entries)).to_pylist()
            return encode_all(encoder, chosen), np.zeros((len(entries), 2), np.int32), {}

        self.store.fill(keys, make, block=_BLOCK, description=f"text features, parts of {_BLOCK}", share=share)
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._words = keys[self._order, 0]
        if len(keys) * int(np.prod(encoder.feature_shape)) * encoder.feature_dtype.itemsize <= _SMALL_BYTES:
            self.store.keep_in_memory()

    def __getitem__(self, texts: Sequence[str]) -> Tensor:
        """Features [B, *feature_shape] of texts that were named when this was made."""
        if not texts:
            return torch.zeros(0, *self.store.shape, dtype=self.store.dtype)
        wanted = keys_of(texts)
        entries = self._order[np.searchsorted(self._words, wanted[:, 0]).clip(max=len(self._words) - 1)]
        assert (self.store.keys[entries] == wanted).all(), "a text that was not named before"
        return torch.stack([self.store[int(entry)] for entry in entries])


def _one_by_one(texts: pa.ChunkedArray) -> Iterable[str]:
    """The texts of a table without a Python list of all of them."""
    for start in range(0, len(texts), 65_536):
        yield from texts.slice(start, 65_536).to_pylist()
