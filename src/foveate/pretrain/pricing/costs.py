"""What a model costs, found without allocating it: FLOPs and kept activations, per image, text and region.

Towers are built on the meta device and counted as fake CPU tensors, which have shapes and no memory. The Prompter and
the losses work on ragged rows whose number decides what is computed, so they are formulas, held to the counter by
tests. One multiplication with one addition counts as 2 FLOPs; norms, activations and softmax are left out, as is
usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from foveate.vision.encoder import ImageFeatures
from foveate.vision.localizer.model import LocalizingModel

# Bytes kept for each token and unit of width when only the inputs of the blocks are kept (checkpointing).
_BLOCK_INPUT = 4


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *rest: Any, **named: Any
) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    gradient: tuple[int, ...],
    query: tuple[int, ...],
    key: tuple[int, ...],
    value: tuple[int, ...],
    *rest: Any,
    **named: Any,
) -> int:
    """Twice the forward pass: recomputing the weights is the kernel's choice, not the model's work."""
    return 2 * sdpa_flop_count(query, key, value)


# The counter knows the fused kernels of CUDA only.
_FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@dataclass(frozen=True)
class TowerCost:
    """One sample through one tower, forward and backward.

    Attributes:
        forward, backward: FLOPs of a sample. quadratic: share of both that grows with the square of its length.
        kept: bytes kept for the backward pass; fused attention keeps no weights.
        blocks: repeated layers. length, width: of the tokens in them.
    """

    forward: float
    backward: float
    quadratic: float
    kept: float
    blocks: int
    length: int
    width: int

    def at_length(self, length: float) -> TowerCost:
        """The same tower on a sequence of `length` tokens: products grow with it, attention with its square."""
        share = length / self.length
        grown = share * (1 - self.quadratic) + share**2 * self.quadratic
        quadratic = share**2 * self.quadratic / grown if grown else 0.0
        return TowerCost(
            self.forward * grown,
            self.backward * grown,
            quadratic,
            self.kept * share,
            self.blocks,
            round(length),
            self.width,
        )

    def activations(self, *, checkpointed: bool) -> float:
        """Bytes kept for the backward pass; with checkpointing the inputs of the blocks, and one block whole."""
        if not checkpointed or self.blocks < 2:
            return self.kept
        return self.blocks * self.length * self.width * _BLOCK_INPUT + self.kept / self.blocks


@dataclass(frozen=True)
class ModelCost:
    """Both towers of a model, and what its other parts need to be priced."""

    image: TowerCost
    text: TowerCost
    parameters: dict[str, int]
    trained: int
    largest_unit: int


def model_cost(model: LocalizingModel, *, units: list[nn.Module], precision: str) -> ModelCost:
    """Counts a model that was built on the meta device; its weights are fake tensors afterwards.

    Args:
        units: modules that FSDP2 shards one by one, as the task names them.
        precision: "fp32" or "bf16", what autocast makes of the kept tensors (as on a CPU; CUDA keeps norms wide, up to
            an eighth more).
    """
    image, text = model.image_encoder, model.text_encoder
    mode = FakeTensorMode()
    _make_fake(model, mode)
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with mode, narrow, _data_free(text):
        text_cost = _tower(
            lambda batch: text(_features(batch, text.feature_shape, text.feature_dtype)),
            blocks=_blocks(text),
            length=text.feature_shape[0] if text.feature_dtype in (torch.int32, torch.int64) else 1,
            width=_width(text, default=text.embed_dim),
        )
    with mode, narrow, _data_free(image):
        image_cost = _tower(
            lambda batch: image(_features(batch, image.feature_shape, image.feature_dtype)),
            blocks=_blocks(image),
            length=image.grid[0] * image.grid[1],
            width=image.width,
        )
    heads = [model.prompter, model.box_head, model.roi]
    parameters = {
        "image tower": _count(image),
        "text tower": _count(text),
        "prompter": _count(model.prompter) + _count(model.roi),
        "box head": _count(model.box_head),
    }
    parameters["temperatures"] = _count(model) - _count(image) - _count(text) - sum(map(_count, heads))
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return ModelCost(image_cost, text_cost, parameters, trained, max(map(_count, units), default=0))


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(one.numel() for one in module.parameters())


def _features(batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(batch, *shape, dtype=dtype)


def _make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Weights and buffers as tensors that say "cpu" and have no memory: some layers ask for the device's autocast,
    which the meta device does not have."""
    assert all(one.is_meta for one in model.parameters()), "build the model on the meta device"
    with mode:
        for module in model.modules():
            for name, one in module.named_parameters(recurse=False):
                fake = torch.empty(one.shape, dtype=one.dtype, device="cpu")
                module.register_parameter(name, nn.Parameter(fake, requires_grad=one.requires_grad))
            for name, one in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(one.shape, dtype=one.dtype, device="cpu")


@contextmanager
def _data_free(encoder: nn.Module) -> Iterator[None]:
    """Training mode, but for the encoder's own switch: what it does only in training may look at values (it trims
    texts), and there are none."""
    before = encoder.training
    encoder.train()
    encoder.training = False
    try:
        yield
    finally:
        encoder.train(before)


def _blocks(encoder: nn.Module) -> int:
    """Layers of the longest list of layers."""
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    like = [len(one) for one in lists if len(one) and len({type(layer) for layer in one}) == 1]
    return max(like, default=0)


def _width(encoder: nn.Module, *, default: int) -> int:
    norms = [module.normalized_shape[0] for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    return max(norms, default=default)


def _tower(call: Callable[[int], Any], *, blocks: int, length: int, width: int) -> TowerCost:
    one, two = _counted(call, 1), _counted(call, 2)
    forward, both, attention, kept = (second - first for first, second in zip(one, two, strict=True))
    return TowerCost(forward, both - forward, attention / both if both else 0.0, kept, blocks, length, width)


def _counted(call: Callable[[int], Any], batch: int) -> tuple[float, float, float, float]:
    """FLOPs forward, FLOPs forward and backward, those of attention, bytes kept."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False, custom_mapping=_FUSED_ATTENTION) as counter:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = call(batch)
        forward = counter.get_total_flops()
        tensors = [out.tokens, out.pooled] if isinstance(out, ImageFeatures) else [out]
        total = sum(tensor.sum() for tensor in tensors)
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
    by_operation = counter.get_flop_counts().get("Global", {})
    attention = sum(
        flops for operation, flops in by_operation.items() if "bmm" in str(operation) or "attention" in str(operation)
    )
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return float(forward), float(counter.get_total_flops()), float(attention), float(size)


def prompter_flops(
    *, tokens: int, width: int, embed_dim: int, boxes: float, phrases: float, pool: str, once: bool = True
) -> float:
    """Forward FLOPs of the Prompter and the box head for one image.

    Args:
        tokens: L, image tokens. width: D. embed_dim: E.
        boxes, phrases: prompts of the image, of two tokens and of one.
        pool: "all" or "prompt".
        once: what all prompts of an image share is computed once, as the Prompter here does; False is the plain way,
            a sequence [prompt ; image] through the layer for each prompt.
    """
    square = width * width
    ends = (boxes + phrases) * 2 * width * embed_dim  # projection of z
    ends += phrases * (2 * embed_dim * width + 2 * embed_dim * width + 8 * width)  # phrase prompt, box head
    if not once:

        def layer(length: int) -> float:
            return 24 * length * square + 4 * length**2 * width

        return boxes * layer(tokens + 2) + phrases * layer(tokens + 1) + ends
    prompt_tokens = 2 * boxes + phrases
    inner = prompt_tokens * (24 * square + 4 * tokens * width)
    if pool == "prompt":
        return inner + ends
    shared = 8 * tokens * square + 4 * tokens**2 * width
    each = prompt_tokens * (6 * square + 4 * tokens * width) + (boxes + phrases) * 16 * tokens * square
    return inner + shared + each + ends


def prompter_activations(*, tokens: int, width: int, prompts: float, pool: str, precision: str) -> float:
    """Bytes that the Prompter keeps for one image: with pool "all" the layer's outputs at all tokens, per prompt."""
    shared = (10 if precision == "bf16" else 16) * tokens * width
    if pool == "prompt":
        return shared
    return 2 * shared + prompts * (36 if precision == "bf16" else 64) * tokens * width


def loss_flops(
    *,
    images: int,
    regions: float,
    embed_dim: int,
    filter: str,
    chunked: bool,
    with_regions: bool,
    processes: int = 1,
) -> float:
    """FLOPs of the contrastive losses of one step in one process, which computes its own rows of the matrices.

    Args:
        images, regions: N and R of the batch of all processes; each has its share of them.
        filter: of duplicate phrases; "embedding" is a product of its own.
        chunked: blocks of rows, of which logits and filter are computed twice.

    Products of N x N and R x R entries over the processes, forward and backward.
    """
    per_entry = 8.0 if chunked else 6.0
    total = per_entry * images**2 * embed_dim
    if with_regions:
        per_entry += (4.0 if chunked else 2.0) * (filter == "embedding")
        total += per_entry * regions**2 * embed_dim
    return total / processes


def loss_bytes(*, images: int, regions: float, row_chunk: int | None, with_regions: bool, processes: int = 1) -> float:
    """Bytes of the float32 matrices of the losses that are alive at once in one process.

    At most four blocks of this process's rows of each matrix: logits, their gradient, and two while one is made. The
    blocks of the regions come after those of the images were made and before they are freed.
    """

    def matrix(size: float) -> float:
        rows = size / processes
        return 4 * 4.0 * (rows if row_chunk is None else min(row_chunk, rows)) * size

    return matrix(images) + (matrix(regions) if with_regions else 0.0)


def gathered_bytes(*, images: int, regions: float, embed_dim: int, with_regions: bool, processes: int = 1) -> float:
    """Bytes of the embeddings of the whole batch in float32.

    A single process has both sides of images and regions, with gradients, and those of regions once more of unit
    length. Of several each has the texts and phrases of all: gathered, gradient, and its sum over the processes.
    """
    regions = regions if with_regions else 0
    if processes == 1:
        return 4.0 * embed_dim * 2 * (2 * images + 4 * regions)
    return 4.0 * embed_dim * 3 * (images + regions)
