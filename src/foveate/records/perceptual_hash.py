"""Perceptual hashes: 64 bits that change little when an image is shrunk, re-encoded or tinted."""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIDE = 32  # pixels
_NUM_FREQUENCIES = 8


def _cosines() -> np.ndarray:
    """Return the first 8 rows of the orthonormal DCT-II matrix of size 32, (8, 32)."""
    position = np.arange(_SIDE)
    matrix = np.cos(np.pi * np.arange(_NUM_FREQUENCIES)[:, None] * (2 * position + 1) / (2 * _SIDE)) * np.sqrt(
        2 / _SIDE
    )
    matrix[0] /= np.sqrt(2)
    return matrix


_COSINES = _cosines()


def perceptual_hash(image: Image.Image) -> int:
    """Compute the 64-bit DCT hash of an image.

    The image is shrunk to 32 x 32 gray values; of its 8 x 8 lowest DCT coefficients each gives one bit,
    whether it lies above the median (Zauner, "Implementation and benchmarking of perceptual image hash
    functions", 2010, section 3.2.1). Coefficients are rounded to .01 first, so that flat images agree.
    """
    gray = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    coefficients = np.round(_COSINES @ gray @ _COSINES.T, 2).ravel()
    # Without the first coefficient, the mean brightness, which would pull the median of a dark image.
    bits = coefficients > np.median(coefficients[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hamming(a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """Count differing bits of two uint64 arrays, elementwise."""
    return np.bitwise_count(np.bitwise_xor(a_N, b_N)).astype(np.int64)


def join_pairs(pairs_P2: np.ndarray, count: int) -> np.ndarray:
    """Return the number (N,) of the connected component of each of `count` rows, of which some pairs are joined."""
    # Imported here: whatever decodes an image imports this module, and SciPy takes longer to import than NumPy.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = (np.ones(len(pairs_P2), dtype=bool), (pairs_P2[:, 0], pairs_P2[:, 1]))
    return connected_components(coo_array(edges, shape=(count, count)), directed=False)[1].astype(np.int64)


def near_pairs(hashes_N: np.ndarray, *, distance: int) -> np.ndarray:
    """Find pairs of rows whose hashes differ in at most `distance` bits, up to chains through equal hashes.

    Rows with equal hashes are paired with the first of them only, and pairs of different hashes are given once, between
    those first rows: the connected components are those of all pairs.

    Args:
        hashes_N: uint64.

    Returns:
        Row numbers, (P, 2) int64.
    """
    hashes_N = np.ascontiguousarray(hashes_N, dtype=np.uint64)
    unique_U, first_U, inverse_N = np.unique(hashes_N, return_index=True, return_inverse=True)
    rows_N = np.arange(len(hashes_N))
    same_N = first_U[inverse_N]
    pairs_by_band = [np.stack([same_N, rows_N], axis=1)[same_N != rows_N]]
    if distance > 0 and len(unique_U) > 1:
        # Pigeonhole: cut into distance + 1 bands, two hashes with at most `distance` different bits agree in a whole
        # band. So only rows that share a band are compared, instead of all pairs.
        edges = np.linspace(0, 64, distance + 2).astype(int)
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            pairs_by_band.append(first_U[_pairs_in_band(unique_U, int(low), int(high), distance)])
    pairs = np.concatenate(pairs_by_band)
    # A pair that agrees in several bands was found in each of them.
    return np.unique(np.sort(pairs, axis=1), axis=0) if len(pairs) else pairs.reshape(0, 2).astype(np.int64)


def _pairs_in_band(unique_U: np.ndarray, low: int, high: int, distance: int) -> np.ndarray:
    """Find near pairs among hashes that agree in bits low..high-1; (P, 2) positions in `unique_U`."""
    band_U = (unique_U >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
    order_U = np.argsort(band_U, kind="stable")
    band_U = band_U[order_U]
    ends_U = np.searchsorted(band_U, band_U, side="right")
    position_U = np.arange(len(order_U))
    pairs_by_band = []
    lag = 1
    alive = position_U[position_U + lag < ends_U]
    # Sorted by band, rows with equal bands are neighbors. All at once are compared with the row `lag` places ahead,
    # until that lies behind the last of its band.
    while len(alive):
        left, right = order_U[alive], order_U[alive + lag]
        near = hamming(unique_U[left], unique_U[right]) <= distance
        pairs_by_band.append(np.stack([left[near], right[near]], axis=1))
        lag += 1
        alive = alive[alive + lag < ends_U[alive]]
    return np.concatenate(pairs_by_band) if pairs_by_band else np.empty((0, 2), dtype=np.int64)
