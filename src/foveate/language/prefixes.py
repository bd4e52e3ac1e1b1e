"""Keys and values of a sequence that was read once, for the texts that follow it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prefix:
    """A sequence that was read once, for many prompts to follow: images and a system line, or a chat so far.

    Attributes:
        cache: keys and values, one row. length: its positions.
    """

    cache: Any
    length: int

    def copy(self, rows: int) -> Any:
        """Copy the cache for that many rows; the original stays as it is."""
        # Caches of transformers grow in place: prompts that share one would write into each other.
        cache = copy.deepcopy(self.cache)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        return cache

    @property
    def can_rewind(self) -> bool:
        """Whether `lend` can cut the cache back; layers with a sliding window or a state have let go of the past."""
        return can_crop(self.cache)

    @contextmanager
    def lend(self) -> Iterator[Any]:
        """Lend the cache to one row and cut it back afterwards; a copy where that cannot be done."""
        if not self.can_rewind:
            yield self.copy(1)
            return
        try:
            yield self.cache
        finally:
            crop(self.cache, self.length)


def can_crop(cache: Any) -> bool:
    from transformers.cache_utils import DynamicLayer

    # By the exact type: subclasses, such as a sliding window, have dropped keys that cutting back would need.
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def crop(cache: Any, length: int) -> None:
    """Cut a cache back to its first positions."""
    # Layer by layer: an interrupted pass has reached some of them only.
    for layer in cache.layers:
        added = int(layer.get_seq_length()) - length
        if added > 0:
            # transformers 5.24 takes the number to remove, negative; 5.0 either.
            layer.crop(-added)
