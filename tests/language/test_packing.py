"""The kernel of attention in training: another one on processors, the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from foveate.language.packing import Tokens, attention_and_positions, pack_texts, quick_backward


def attend(positions: int) -> list[torch.Tensor]:
    """Output and gradients of attention over a mask, under `quick_backward`."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 40, 8, generator=generator).requires_grad_() for _ in range(3)]
    # Each position reads itself: a softmax over nothing is not a number.
    mask = torch.rand(2, 1, 40, 40, generator=generator).gt(0.5) | torch.eye(40, dtype=torch.bool)
    with quick_backward(torch.zeros(2, positions, dtype=torch.long)):
        output = F.scaled_dot_product_attention(*parts, attn_mask=mask)
    output.square().sum().backward()
    return [output.detach(), *(part.grad for part in parts if part.grad is not None)]


def test_the_kernel_of_short_rows_computes_the_same() -> None:
    short, long = attend(40), attend(4000)
    assert len(short) == len(long) == 4
    for one, other in zip(short, long, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("positions", "device", "training", "plain"),
    [
        (1024, "cpu", True, True),
        # Matrices of all pairs would not fit.
        (1025, "cpu", True, False),
        (40, "cpu", False, False),
        (40, "meta", True, False),
    ],
)
def test_it_is_chosen_for_the_backward_of_short_rows_alone(
    positions: int, device: str, training: bool, plain: bool
) -> None:
    with (
        torch.set_grad_enabled(training),
        quick_backward(torch.zeros(1, positions, dtype=torch.long, device=device)),
    ):
        assert (_cur_sdpa_kernel_backends() == [SDPBackend.MATH]) == plain
    assert SDPBackend.FLASH_ATTENTION in _cur_sdpa_kernel_backends()


def test_a_conversation_reads_the_images_and_itself() -> None:
    first, second = Tokens([5, 6], [False, True]), Tokens([7], [True])
    texts = pack_texts([[first, second], [second]], pad=0)
    mask, positions = attention_and_positions(texts, torch.tensor([2, 1]), 2)
    # Rows of the mask: two tokens of the prefix, then three of the texts; the second row is padded in both.
    assert mask.int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
    ]
    assert positions[:, 2:].tolist() == [[2, 3, 2], [1, 1, 1]]
