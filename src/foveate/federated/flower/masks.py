"""Constants of a sum under Flower's SecAgg+, and the generator of its masks.

SecAgg+ (Bell, Bonawitz, Gascon, Lepoint, Raykova 2020) hides each client's vector under masks that cancel in the sum.
Keys, their agreement, secret sharing, encryption, quantization and the client's four stages are Flower's. Its generator
of masks is not used: `pseudo_rand_gen` of flwr 1.42 folds a key into 28 bits (the exclusive or of its base64 text, word
by word), which one processor core tries out in some hours. The paper asks for a cryptographic generator; here it is AES
in counter mode, from the package that Flower takes its own encryption from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # pyrefly: ignore[missing-import]
from flwr.client.mod import secaggplus_mod  # pyrefly: ignore[missing-import]
from flwr.common.secure_aggregation.secaggplus_constants import (  # pyrefly: ignore[missing-import]
    RECORD_KEY_CONFIGS,
    Key,
    Stage,
)
from numpy.typing import NDArray

from foveate.federated.secure_sums import MAX_DIGIT, MIN_CLIENTS

__all__ = ["MOD_RANGE", "RECORD_KEY_CONFIGS", "SETTINGS", "TARGET_RANGE", "Key", "Stage", "generate_masks", "threshold"]

MOD_RANGE = 1 << 48
"""Range of masks: sums of digits of 2^18 clients fit, and garbage is out of their range all but certainly."""
TARGET_RANGE = 2 * MAX_DIGIT
"""With a clipping range of half of it, Flower's quantization adds a whole number and rounds nothing."""
SETTINGS: dict[str, int | float] = {
    Key.CLIPPING_RANGE: float(MAX_DIGIT),
    Key.TARGET_RANGE: TARGET_RANGE,
    Key.MOD_RANGE: MOD_RANGE,
    # Every client's vector counts once: what is weighted is weighted before, by the client's own number of points.
    Key.MAX_WEIGHT: 1.0,
}
"""Settings of every sum. Clients refuse others, so that no server can choose them."""


def threshold(clients: int) -> int:
    """Number of clients whose shares open a mask: more than half.

    With half, a server that calls a client absent to some and present to others could collect both of its secrets.
    """
    return clients // 2 + 1


def needed(clients: int) -> int:
    """Number of clients without which nothing is unmasked."""
    return max(MIN_CLIENTS, threshold(clients))


def generate_masks(seed: bytes, num_range: int, dimensions_list: Sequence[tuple[int, ...]]) -> list[NDArray[np.int64]]:
    """Masks from 0 to `num_range` - 1, a power of two; the same seed has the same masks on every machine.

    Args:
        seed: a key of at least 32 random bytes, in any form; used for one sum.
        dimensions_list: shapes of the masks. The names are those of Flower's function, in whose place this one is
            called.
    """
    assert num_range.bit_count() == 1
    sizes = [prod(shape) for shape in dimensions_list]
    # A key serves one sum, so the counter may begin at 0 each time.
    encryptor = Cipher(algorithms.AES256(hashlib.sha256(seed).digest()), modes.CTR(bytes(16))).encryptor()
    stream = np.frombuffer(encryptor.update(bytes(8 * sum(sizes))), dtype="<i8") & (num_range - 1)
    parts = np.split(stream, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, dimensions_list, strict=True)]


@contextmanager
def strong_masks() -> Iterator[None]:
    """Have Flower's SecAgg+ call `generate_masks` in place of its own generator."""
    names = secaggplus_mod.__globals__
    # Raises KeyError where another release of Flower has no such name, before anything is masked.
    original = names["pseudo_rand_gen"]
    names["pseudo_rand_gen"] = generate_masks
    try:
        yield
    finally:
        names["pseudo_rand_gen"] = original
