"""Several conversations of one set of images in one sequence: each reads the images and itself, with its own positions.

A batch row is a prefix (the visual tokens of its images) and behind it the conversations, one after the other. An
attention mask and separate positions make each conversation stand directly behind the prefix, so that the row equals
one sequence per conversation at a fraction of the cost (Molmo 2 calls it message trees).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

SLOT = -1
"""Id of a position within a text whose embedding is no token's: a visual token of an image that stands there."""


class Tokens(NamedTuple):
    """One tokenized conversation: `ids` or `SLOT`, and which of them are `learned` (answers and their end marks)."""

    ids: list[int]
    learned: list[bool]


class PackedTexts(NamedTuple):
    """The conversations of B rows, laid end to end.

    Attributes:
        ids_BT: token ids, `SLOT` where an image stands in a text.
        text_BT: number of the conversation from 1; 0 is padding.
        position_BT: position inside the conversation, from 0.
        learned_BT: which tokens have a loss.
    """

    ids_BT: Tensor
    text_BT: Tensor
    position_BT: Tensor
    learned_BT: Tensor

    def select(self, rows: Tensor) -> PackedTexts:
        """Select rows, cut to their longest."""
        length = int((self.text_BT[rows] > 0).sum(dim=1).max()) if len(rows) else 0
        return PackedTexts(*(column[rows, :length] for column in self))


def pack_texts(rows: Sequence[Sequence[Tokens]], *, pad: int) -> PackedTexts:
    """Pack the conversations of each row; shorter rows are padded on the right with `pad`.

    Padding is known by `text_BT`, never by its id: the end mark of some tokenizers is also their padding.
    """
    width = max((sum(len(tokens.ids) for tokens in row) for row in rows), default=0)
    ids_BT = torch.full((len(rows), width), pad, dtype=torch.long)
    text_BT, position_BT = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    learned_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = 0
        for number, tokens in enumerate(row, 1):
            stop = start + len(tokens.ids)
            ids_BT[index, start:stop] = torch.tensor(tokens.ids)
            text_BT[index, start:stop] = number
            # Each conversation counts from 0, so that it has the positions that it would have alone behind the images.
            position_BT[index, start:stop] = torch.arange(stop - start)
            learned_BT[index, start:stop] = torch.tensor(tokens.learned)
            start = stop
    return PackedTexts(ids_BT, text_BT, position_BT, learned_BT)


def attention_and_positions(texts: PackedTexts, prefix_B: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Return the mask [B, L, L] (True = may be read) and positions [B, L] of prefix and packed texts.

    Args:
        texts: the conversations.
        prefix_B: tokens of the prefix in each row; it is padded on the right to `prefix`.
        prefix: width of the prefix.
    """
    batch, device = len(texts.ids_BT), texts.ids_BT.device
    number_BL = F.pad(texts.text_BT, (prefix, 0))
    # A number that no position reads: padding, behind the prefix as behind the texts.
    number_BL[:, prefix:].masked_fill_(texts.text_BT == 0, -1)
    index_P = torch.arange(prefix, device=device)
    number_BL[:, :prefix].masked_fill_(index_P >= prefix_B[:, None], -1)
    position_BL = torch.cat([index_P.expand(batch, -1), prefix_B[:, None] + texts.position_BT], dim=1)
    length = number_BL.shape[1]
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same_BLL = (number_BL[:, :, None] == number_BL[:, None]) | (number_BL[:, None] == 0)
    # Padding reads itself, because a softmax over nothing is not a number.
    itself_LL = torch.eye(length, dtype=torch.bool, device=device)
    assert position_BL.shape == (batch, length)
    return (same_BLL & earlier_LL) | itself_LL, position_BL


# Above it, matrices of all pairs take more memory than they save time.
SHORT = 1024


def quick_backward(position_BL: Tensor) -> AbstractContextManager[object]:
    """Choose the kernel of attention for a pass over positions [B, L]: on a processor, that with the quicker backward.

    PyTorch's fused kernel for processors is slow backward: of SmolLM2 with LoRA, 8 rows of 130 positions, it takes a
    quarter of a training step, and plain matrix products a tenth.
    """
    if position_BL.device.type == "cpu" and torch.is_grad_enabled() and position_BL.shape[1] <= SHORT:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()
