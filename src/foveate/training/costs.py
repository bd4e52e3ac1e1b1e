"""Cost of a network without allocating it: FLOPs, saved activations, parameters; and the time of a call.

Networks are built on the meta device and counted as fake CPU tensors, which have shapes and no memory. A multiplication
with an addition counts as 2 FLOPs; norms, activations and softmax are left out, as usual.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

# Decoders whose only products are those of grouped attention, a gated MLP, and the head.
PLAIN_DECODERS = frozenset({"llama", "mistral"})
# Bytes per token and unit of width when only the inputs of the blocks are saved (checkpointing).
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
    """Count twice the forward pass: recomputing the weights is the kernel's choice, not the model's work."""
    return 2 * sdpa_flop_count(query, key, value)


def _fused_convolution_flops(
    pixels: tuple[int, ...], weight: tuple[int, ...], *rest: Any, out_shape: tuple[int, ...], **named: Any
) -> int:
    # Kernels of Lite0 have odd sides; an even one has a row and a column of zeros, which are no work of the model.
    outputs, inputs, *sides = weight
    return conv_flop_count(list(pixels), [outputs, inputs, *(side - 1 + side % 2 for side in sides)], list(out_shape))


# torch's counter knows only the fused kernels of CUDA.
_FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    # A convolution with its activation; see `foveate.vision.lite0.Lite0.fuse`.
    _FUSED[torch.ops.mkldnn._convolution_pointwise] = _fused_convolution_flops


@dataclass(frozen=True)
class PartCost:
    """One sample through one part of a model, forward and backward.

    Attributes:
        parameters: all of them. active: those that a token passes through. largest_unit: of the largest layer.
        forward, backward: FLOPs of a sample. quadratic: share of both that grows with the square of its length.
        saved: bytes saved for the backward pass; fused attention saves no attention weights.
        blocks: repeated layers. length, width: of the tokens in them.
    """

    parameters: int
    active: int
    largest_unit: int
    forward: float = 0.0
    backward: float = 0.0
    quadratic: float = 0.0
    saved: float = 0.0
    blocks: int = 0
    length: int = 1
    width: int = 1

    def at_length(self, length: float) -> PartCost:
        """Return the cost at a sequence of `length` tokens: products grow with it, attention with its square."""
        # The share of attention in all FLOPs grows with the length.
        share = length / self.length
        grown = share * (1 - self.quadratic) + share**2 * self.quadratic
        return replace(
            self,
            forward=self.forward * grown,
            backward=self.backward * grown,
            quadratic=share**2 * self.quadratic / grown if grown else 0.0,
            saved=self.saved * share,
            length=round(length),
        )

    def activations(self, *, checkpointed: bool) -> float:
        """Return the bytes saved for the backward pass; with checkpointing the blocks' inputs and one whole block."""
        # With one block there is nothing to recompute from: its inputs are those of the tower.
        if not checkpointed or self.blocks < 2:
            return self.saved
        return self.blocks * self.length * self.width * _BLOCK_INPUT + self.saved / self.blocks


def count_parameters(module: nn.Module | None) -> int:
    """Count the parameters of a module, tied ones once; 0 without a module."""
    return 0 if module is None else sum(weight.numel() for weight in module.parameters())


def make_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace weights and buffers by fake CPU tensors, which have no memory."""
    # Meta tensors do not work here: some layers query the autocast state of their device, and "meta" has none.
    assert all(weight.is_meta for weight in model.parameters()), "build the model on the meta device"
    with mode:
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                module.register_parameter(name, nn.Parameter(fake, requires_grad=weight.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def shorten_config(config: Any, layers: int) -> Any:
    """Return a copy of a transformers config with fewer layers; see `extend_layers`."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    rope = getattr(short, "rope_parameters", None)
    if rope and rope.get("rope_type") == "dynamic":
        # Its frequencies depend on values, which fake tensors do not have; they cost the same.
        short.rope_parameters = {**rope, "rope_type": "default"}
    return short


def extend_layers(few: Sequence[float], layers: int) -> float:
    """Extrapolate the cost of all equal layers from that of one and of two.

    The difference between the two is the cost of a layer; the rest is that of embeddings and head. Counting all layers
    would take minutes: some take a second each in fake tensors.
    """
    first, second = few
    return first + (layers - 1) * (second - first)


def count_blocks(module: nn.Module) -> int:
    """Return the length of the longest list of equal layers."""
    lists = [layers for layers in module.modules() if isinstance(layers, nn.ModuleList | nn.Sequential)]
    uniform = [len(layers) for layers in lists if len(layers) and len({type(layer) for layer in layers}) == 1]
    return max(uniform, default=0)


def count_part(
    module: nn.Module, call: Callable[[Any, int], Sequence[Tensor]], *, precision: str, **shape: int
) -> PartCost:
    """Count what one sample costs, forward and backward, in a copy of a module on the meta device.

    Args:
        call: the copy and a batch size -> outputs of a forward pass.
        precision: "fp32" or "bf16", of the saved tensors under autocast (as on a CPU; CUDA computes norms in float32:
            up to an eighth more).
        shape: blocks, length and width of `PartCost`.
    """
    # A copy: `make_fake` replaces the weights of its argument, and the caller may count its model again.
    module, mode, size = copy.deepcopy(module), FakeTensorMode(), count_parameters(module)
    make_fake(module, mode)
    with mode, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        # Take the difference of two batch sizes: what does not grow with the batch (positional tables) is no cost per
        # sample.
        single, double = _count_costs(lambda: call(module, 1)), _count_costs(lambda: call(module, 2))
    forward, both, attention, saved = (second - first for first, second in zip(single, double, strict=True))
    return PartCost(size, size, size, forward, both - forward, attention / both if both else 0.0, saved, **shape)


def count_layers(
    build: Callable[[int], nn.Module],
    call: Callable[[Any, int], Sequence[Tensor]],
    *,
    layers: int,
    precision: str,
    **shape: int,
) -> PartCost:
    """Count a network of equal layers from those of one and of two layers, which `build` makes; see `count_part`."""
    few = []
    for number in (1, 2):
        with torch.device("meta"):
            # Use training mode: tensors that dropout saves for the backward pass count, too.
            model = build(number).train()
        few.append(count_part(model, call, precision=precision, **shape))

    def extend(read: Callable[[PartCost], float]) -> float:
        return extend_layers([read(part) for part in few], layers)

    forward, backward = extend(lambda part: part.forward), extend(lambda part: part.backward)
    # Shares cannot be extended: those of one and two layers are of other totals.
    attention = extend(lambda part: part.quadratic * (part.forward + part.backward))
    size, layer = round(extend(lambda part: part.parameters)), few[1].parameters - few[0].parameters
    # Everything outside the layers (embeddings and head) is a unit of its own.
    unit = max(layer, few[0].parameters - layer)
    quadratic, saved = attention / (forward + backward), extend(lambda part: part.saved)
    return PartCost(size, size, unit, forward, backward, quadratic, saved, layers, **shape)


def time_call(call: Callable[[], object], device: torch.device, *, repeats: int = 3) -> float:
    """Return the seconds of the fastest of several calls, after one that warms up; work on a CUDA device included."""

    def run() -> float:
        began = time.monotonic()
        call()
        # CUDA runs asynchronously: without waiting, only the launch of the pass would be timed.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - began

    run()
    # The best counts: other processes can only slow a call down.
    return min(run() for _ in range(repeats))


def count_forward(call: Callable[[], object]) -> float:
    """Count the FLOPs of a forward pass in fake tensors, under the mode of `make_fake`."""
    with FlopCounterMode(display=False, custom_mapping=_FUSED) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


def build_flop_counter(
    languages: Sequence[Any], mode: FakeTensorMode, config: Any, dtype: torch.dtype
) -> Callable[[int], float]:
    """Return a function from positions to the FLOPs of reading them, at full depth.

    Args:
        languages: language models of one and of two layers, under the mode of `make_fake`.
        config: of the whole model. dtype: of its weights.
    """

    def count(length: int) -> float:
        def read(model: Any) -> None:
            embeddings_1LD = torch.empty(1, length, config.hidden_size, dtype=dtype)
            model(inputs_embeds=embeddings_1LD, use_cache=False, logits_to_keep=1)

        with mode:
            flops = [count_forward(functools.partial(read, model)) for model in languages]
        return extend_layers(flops, config.num_hidden_layers)

    return count


def count_decoder(config: Any, vocabulary: int) -> tuple[int, Callable[[int], float]]:
    """Count a model of `PLAIN_DECODERS` with a tied head and no biases by its config alone, which loads no library.

    With width D, inner width I, h query and g key heads of size s, a layer has 2Dhs + 2Dgs + 3DI weights and two norms
    of D. Reading L tokens takes 2 FLOPs a weight and token, 4 L^2 hs in the attention of each layer, and 2DV for the
    last token's logits.

    Args:
        config: with the fields of transformers' config, as attributes.

    Returns:
        Parameters, and a function from positions to the FLOPs of reading them.
    """
    width, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    products = 2 * width * head * (heads + key_heads) + 3 * width * config.intermediate_size
    parameters = layers * (products + 2 * width) + width + vocabulary * width

    def count(length: int) -> float:
        attention = 4.0 * length**2 * heads * head
        return layers * (2.0 * length * products + attention) + 2.0 * width * vocabulary

    return parameters, count


def count_cache_values(config: Any) -> int:
    """Count the keys and values that a language model caches for a position."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    # 2: keys and values; their heads are fewer than the queries' in grouped attention.
    return 2 * config.num_hidden_layers * heads * head


def count_decoder_activations(
    config: Any, length: int, *, product_bytes: int = 4, keeps_weights: bool = False
) -> float:
    """Return the bytes that a decoder with gated MLPs saves of `length` tokens for its backward pass, without the head.

    With width D, inner width I and h query heads of size s, a layer saves of each token, in values:

        norms      2 D float32 before and behind the scaling, D for the products; twice: 6 D
        attention  queries, keys, values (repeated for all query heads) and their sum: 4 h s; a kernel that keeps the
                   weights computes in float32 and saves length h of them, too
        MLP        gate, its activation, the other factor, their product: 4 I

    and the last norm 2 D float32. Nothing is dropped out.

    Source: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198),
    section 4.1, here with RMSNorm and a gated MLP, and counted per tensor that autograd keeps.

    Args:
        config: with the fields of transformers' config, as attributes.
        product_bytes: of a value in matrix products: 4 in float32, 2 under autocast to bfloat16.
        keeps_weights: the attention kernel saves its weights, as plain matrix products do; fused ones do not.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    inner = heads * (getattr(config, "head_dim", None) or width // heads)
    norms = 2 * (2 * 4 + product_bytes) * width
    attention = 3 * (4 if keeps_weights else product_bytes) * inner + product_bytes * inner
    weights = 4 * heads * length if keeps_weights else 0
    mlp = 4 * product_bytes * config.intermediate_size
    return float(length * (config.num_hidden_layers * (norms + attention + weights + mlp) + 2 * 4 * width))


def _count_costs(call: Callable[[], Sequence[Tensor]]) -> tuple[float, float, float, float]:
    """Return FLOPs forward, FLOPs forward and backward, those of attention, and bytes saved for backward."""
    saved: dict[int, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage()._cdata] = tensor  # keyed by storage, so that views of a tensor count once
        return tensor

    with FlopCounterMode(display=False, custom_mapping=_FUSED) as counter:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            tensors = call()
        forward = counter.get_total_flops()
        total = sum(tensor.sum() for tensor in tensors)
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
    by_operation = counter.get_flop_counts().get("Global", {})
    attention = sum(
        flops for operation, flops in by_operation.items() if "bmm" in str(operation) or "attention" in str(operation)
    )
    size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    return float(forward), float(counter.get_total_flops()), float(attention), float(size)
