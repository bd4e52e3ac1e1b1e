"""Invariants of the losses (specification 7.2), beside the stored values."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import UserError
from foveate.pretrain import losses
from naming import raises_naming


def embeddings(rows: int, width: int = 12, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plain(
    z: torch.Tensor, t: torch.Tensor, scale: torch.Tensor | float, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both directions of the region-text loss by PyTorch's own cross entropy over the whole masked matrix."""
    logits = (scale * F.normalize(z, dim=-1) @ F.normalize(t, dim=-1).T).masked_fill(mask, -math.inf)
    rows = torch.arange(len(logits))
    return F.cross_entropy(logits, rows), F.cross_entropy(logits.T, rows)


def test_no_region_gives_exactly_zero_and_zero_gradients() -> None:
    z, t = (torch.zeros(0, 8, requires_grad=True) for _ in range(2))
    scale = torch.tensor(14.0, requires_grad=True)
    for row_chunk in (None, 2):
        result = losses.region_text_loss(z, t, scale, row_chunk=row_chunk)
        assert result.loss.item() == 0.0
        gradients = torch.autograd.grad(result.loss, (z, t, scale))
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = losses.grounding_loss(pred, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0.0
    assert pred.grad is not None


@pytest.mark.parametrize("row_chunk", [None, 1])
def test_one_region_gives_exactly_zero(row_chunk: int | None) -> None:
    z = embeddings(1, dtype=torch.float32).requires_grad_()
    t = embeddings(1, seed=1, dtype=torch.float32)
    result = losses.region_text_loss(z, t, 100.0, row_chunk=row_chunk)
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert z.grad is not None
    assert z.grad.abs().max().item() == 0.0


def test_a_batch_without_labels_is_the_clip_loss_bit_for_bit() -> None:
    image, text = (F.normalize(embeddings(6, seed=seed, dtype=torch.float32), dim=-1) for seed in (1, 2))
    clip = losses.clip_loss(image, text, 14.2857)
    weight = torch.nn.Parameter(torch.randn(12, 12, generator=torch.Generator().manual_seed(3)))
    z, t = torch.zeros(0, 12) @ weight, torch.zeros(0, 12)
    region = losses.region_text_loss(z, t, 14.2857).loss
    grounding = losses.grounding_loss(z[:, :4], torch.zeros(0, 4))
    fraction = losses.labeled_fraction(torch.zeros(6, dtype=torch.int64))
    total = losses.total_loss(clip, region, grounding, labeled_fraction=fraction)
    assert torch.equal(total, clip)
    assert total.dtype == clip.dtype
    total.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max().item() == 0.0


def test_order_of_images_and_regions_does_not_matter() -> None:
    z, t = embeddings(11, seed=1), embeddings(11, seed=2)
    t[5] = t[2]
    order = torch.randperm(11, generator=torch.Generator().manual_seed(4))
    one, other = (losses.region_text_loss(a, b, 14.3) for a, b in ((z, t), (z[order], t[order])))
    assert one.loss.item() == pytest.approx(other.loss.item(), abs=1e-12)
    image, text = F.normalize(z, dim=-1), F.normalize(t, dim=-1)
    assert losses.clip_loss(image, text, 9.0).item() == pytest.approx(
        losses.clip_loss(image[order], text[order], 9.0).item(), abs=1e-12
    )
    pred, target = z[:, :4], t[:, :4]
    assert losses.grounding_loss(pred, target).item() == pytest.approx(
        losses.grounding_loss(pred[order], target[order]).item(), abs=1e-12
    )


def test_filter_mask_is_symmetric_without_diagonal_and_gradient() -> None:
    t = embeddings(40, 3, seed=5, dtype=torch.float32).requires_grad_()
    mask = losses.duplicate_mask(t, filter="embedding")
    assert mask.any()
    assert torch.equal(mask, mask.T)
    assert not mask.diagonal().any()
    assert not mask.requires_grad
    assert not losses.duplicate_mask(t, filter="embedding", threshold=1.01).any()
    assert not losses.duplicate_mask(t, filter="none").any()


def test_threshold_above_one_equals_no_filter() -> None:
    z, t = embeddings(9, seed=1), embeddings(9, seed=2)
    t[4] = t[7]
    one = losses.region_text_loss(z, t, 10.0, threshold=1.01).loss
    assert torch.equal(one, losses.region_text_loss(z, t, 10.0, filter="none").loss)


def test_exact_duplicates_are_always_dropped() -> None:
    t = embeddings(30, 64, seed=3, dtype=torch.float32) * 100
    t[10:20] = t[:10]
    mask = losses.duplicate_mask(t, filter="embedding")
    rows = torch.arange(10)
    assert mask[rows, rows + 10].all()
    phrases = torch.arange(30)
    phrases[10:20] = phrases[:10]
    assert torch.equal(losses.duplicate_mask(t, filter="exact", phrase_ids=phrases), mask)


def test_filter_takes_no_gradient_from_the_threshold_side() -> None:
    """Moving t changes which negatives stay only through the mask: gradients equal those with a constant mask."""
    z, t = embeddings(6, 3, seed=7), embeddings(6, 3, seed=8).requires_grad_()
    result = losses.region_text_loss(z, t, 5.0, threshold=0.5)
    mask = losses.duplicate_mask(t, filter="embedding", threshold=0.5)
    assert mask.any()
    gradient, expected = (torch.autograd.grad(loss, t)[0] for loss in (result.loss, sum(plain(z, t, 5.0, mask)) / 2))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("regions", [2, 7, 33])
def test_uniform_similarities_give_the_logarithm_of_the_count(regions: int) -> None:
    same = torch.ones(regions, 5, dtype=torch.float64)
    result = losses.region_text_loss(same, same, 14.3, filter="none")
    assert result.loss.item() == pytest.approx(math.log(regions), abs=1e-12)
    assert losses.clip_loss(F.normalize(same, dim=-1), F.normalize(same, dim=-1), 14.3).item() == pytest.approx(
        math.log(regions), abs=1e-12
    )


def test_one_whole_image_region_each_reduces_to_the_clip_loss() -> None:
    image, text = (F.normalize(embeddings(8, seed=seed), dim=-1) for seed in (1, 2))
    region = losses.region_text_loss(image, text, 14.3, filter="none")
    assert region.loss.item() == pytest.approx(losses.clip_loss(image, text, 14.3).item(), abs=1e-12)


@pytest.mark.parametrize("filter", ["embedding", "exact", "none"])
@pytest.mark.parametrize("row_chunk", [None, 1, 5, 16, 100])
def test_blocks_of_rows_have_the_loss_and_gradient_of_plain_cross_entropy(row_chunk: int | None, filter: str) -> None:
    phrases = torch.tensor([0, 1, 2, 0, 4, 5, 1, 7, 8, 9, 0, 11, 12, 13, 14, 15, 16])
    t = embeddings(17, seed=2)[phrases].requires_grad_()
    z = embeddings(17, seed=1).requires_grad_()
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    mask = losses.duplicate_mask(t, filter=filter, phrase_ids=phrases)
    assert mask.sum() == (0 if filter == "none" else 8)
    r2t, t2r = plain(z, t, scale, mask)
    result = losses.region_text_loss(z, t, scale, filter=filter, phrase_ids=phrases, row_chunk=row_chunk)
    assert result.masked_fraction.item() == pytest.approx(mask.sum().item() / (17 * 16))
    for term, expected in ((result.r2t, r2t), (result.t2r, t2r), (result.loss, (r2t + t2r) / 2)):
        gradients, reference = (
            torch.autograd.grad(value, (z, t, scale), retain_graph=True) for value in (term, expected)
        )
        assert term.item() == pytest.approx(expected.item(), abs=1e-12)
        torch.testing.assert_close(gradients, reference, atol=1e-12, rtol=1e-9)


def test_swapping_the_sides_swaps_the_directions() -> None:
    z, t = embeddings(9, seed=1), embeddings(9, seed=2)
    one = losses.region_text_loss(z, t, 14.3, filter="none")
    other = losses.region_text_loss(t, z, 14.3, filter="none")
    assert one.r2t.item() == pytest.approx(other.t2r.item(), abs=1e-12)
    assert one.t2r.item() == pytest.approx(other.r2t.item(), abs=1e-12)


def test_half_precision_embeddings_get_logits_in_float32() -> None:
    z, t = (embeddings(64, 32, seed=seed, dtype=torch.float32) for seed in (1, 2))
    exact = losses.region_text_loss(z.bfloat16().float(), t.bfloat16().float(), 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        half = losses.region_text_loss(z.bfloat16(), t.bfloat16(), 100.0)
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.loss, exact.loss)
    unit = F.normalize(z, dim=-1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(losses.clip_loss(unit, unit, 100.0), losses.clip_loss(unit.float(), unit.float(), 100.0))


def test_wrong_options_are_named() -> None:
    z = embeddings(3)
    with raises_naming(UserError, "embedding"):
        losses.region_text_loss(z, z, 10.0, filter="embeding")
    with raises_naming(UserError, "exact", "phrase_ids"):
        losses.region_text_loss(z, z, 10.0, filter="exact")
    with raises_naming(UserError, "fixed"):
        losses.region_text_loss(z, z, 10.0, normalize="fixed")
    with raises_naming(UserError, "regions"):
        losses.grounding_loss(z[:, :4], z[:, :4], normalize="region")
    with raises_naming(UserError, "row_chunk"):
        losses.region_text_loss(z, z, 10.0, row_chunk=0)


@pytest.mark.parametrize("row_chunk", [None, 1, 3, 7, 8, 100])
def test_clip_loss_has_the_value_and_gradient_of_plain_cross_entropy(row_chunk: int | None) -> None:
    random = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(8, 5, generator=random, dtype=torch.float64), dim=-1) for _ in range(2))
    scale = torch.tensor([14.0], dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (image, text, scale)]
    rows = torch.arange(8)
    logits = scale * image @ text.T
    expected = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    loss = losses.clip_loss(image, text, scale, row_chunk=row_chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients, reference = (torch.autograd.grad(value, inputs) for value in (loss, expected))
    torch.testing.assert_close(gradients, reference, rtol=1e-12, atol=1e-12)
    with raises_naming(UserError, "row_chunk", "0"):
        losses.clip_loss(image, text, 1.0, row_chunk=0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_clip_loss_in_chunks_bounds_memory() -> None:
    """8,192 images: the whole matrix is 268 MB, and several of it are needed at once; 256 rows are 8 MB."""
    script = (
        "import sys, torch; from foveate.pretrain.losses import clip_loss;"
        # Not ru_maxrss: a new process starts with that of the one that made it, which may be larger.
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]);"
        "a, b = (torch.nn.functional.normalize(torch.randn(8192, 32), dim=-1).requires_grad_() for _ in range(2));"
        "clip_loss(a[:64], b[:64], 10.0, row_chunk=8).backward();"
        "before = peak();"
        "clip_loss(a, b, torch.tensor([10.0]), row_chunk=int(sys.argv[1]) or None).backward();"
        "print((peak() - before) / 1024)"
    )
    grown = [
        float(subprocess.run([sys.executable, "-c", script, chunk], capture_output=True, text=True, check=True).stdout)
        for chunk in ("0", "256")
    ]
    assert grown[0] > 500
    assert grown[1] < 80, f"{grown[1]:.0f} MB, {grown[0]:.0f} MB as a whole"
