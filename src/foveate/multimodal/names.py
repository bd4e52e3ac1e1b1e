"""Names of regions in the vocabulary of a language model: what embedding alignment and visual words compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.language.tokenizer import Tokenizer


class NameTable(NamedTuple):
    """Names of regions as token ids.

    Attributes:
        index: name -> number.
        ids_NW: token ids of each name. weight_NW: 1 / number of its tokens, 0 for padding.
    """

    index: Mapping[str, int]
    ids_NW: Tensor
    weight_NW: Tensor

    @classmethod
    def create(cls, names: Sequence[str], tokenizer: Tokenizer) -> NameTable:
        """Tokenize names as they stand within a sentence."""
        # With the blank: a tokenizer of byte pairs has other tokens for a word that begins a text.
        ids = [tokenizer.encode(f" {name}") for name in names]
        width = max(map(len, ids), default=0)
        ids_NW, weight_NW = torch.zeros(len(ids), width, dtype=torch.long), torch.zeros(len(ids), width)
        for row, tokens in enumerate(ids):
            ids_NW[row, : len(tokens)] = torch.tensor(tokens)
            weight_NW[row, : len(tokens)] = 1 / len(tokens)
        return cls({name: number for number, name in enumerate(names)}, ids_NW, weight_NW)

    def embeddings(self, table_VE: Tensor) -> Tensor:
        """Return the mean embedding [N, E] of each name."""
        return torch.einsum("nw,nwe->ne", self.weight_NW.to(table_VE.dtype), table_VE[self.ids_NW])
