"""DistMult: s(h, r, o) = sum over k of h[k] r[k] o[k].

Symmetric in head and tail: parent(a, b) and parent(b, a) have one score. Source: Yang et al. 2015 (arXiv 1412.6575),
section 3; the score of COSMO (arXiv 2401.00608).
"""

from __future__ import annotations

from torch import Tensor

from foveate.species.score import Score


class DistMult(Score):
    """Three-way product."""

    def query(self, heads_BD: Tensor, relations_BD: Tensor) -> Tensor:
        """See `Score.query`."""
        return heads_BD * relations_BD

    def fold(self, relation_D: Tensor, tails_ND: Tensor) -> Tensor:
        """See `Score.fold`."""
        return relation_D * tails_ND


SCORE = DistMult
