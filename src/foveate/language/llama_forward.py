"""The forward pass of small Llamas without the checks of transformers, which take longer than the weights.

Whatever is not a plain Llama in float32 is left to transformers: other families, sparse experts, LoRA, hooks, sharding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Keys and values of a sequence that was read once, for the texts that follow it.


@dataclass(frozen=True)
class Prefix:
    """A sequence that was read once, for many prompts to follow: images and a system line, or a chat so far.

    Attributes:
        cache: keys and values, one row. length: its tokens.
        shift: by which positions run ahead of the tokens behind it, as where images have positions of a grid.
        peak: largest position in it; generated tokens stand behind it, also where their question does not.
    """

    cache: Any
    length: int
    shift: int = 0
    peak: int = -1

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


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """A prompt whose positions are not those of its tokens in order.

    Attributes:
        embeddings_LD: of its tokens. positions_L: of its tokens [L], or of each axis of a grid [3, L].
        follow: position of a text behind it.
    """

    embeddings_LD: Tensor
    positions_L: Tensor
    follow: int

    def __len__(self) -> int:
        return len(self.embeddings_LD)


def place_prompt(prompt: Tensor | PlacedPrompt, prefix: Prefix | None) -> PlacedPrompt:
    """Return a prompt with its positions; by default they go on where the prefix ended, whose keys have theirs."""
    if isinstance(prompt, PlacedPrompt):
        return prompt
    start = prefix.length + prefix.shift if prefix else 0
    end = start + len(prompt)
    return PlacedPrompt(prompt, torch.arange(start, end, device=prompt.device), end)


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


# Up to here W x is faster than x W^T: 0.6 and 1.3 ms for all of mini's layers and one row, 1.0 and 1.8 for 4 rows.
_FEW_ROWS = 8


class _Unsupported(Exception):
    """A part is not one of a plain Llama."""


class _Linear(NamedTuple):
    weight: Tensor
    bias: Tensor | None

    def apply(self, x_RD: Tensor) -> Tensor:
        """Return [R, out] of rows [R, in]."""
        if len(x_RD) > _FEW_ROWS:
            return F.linear(x_RD, self.weight, self.bias)
        # Rows that are not contiguous take four times as long.
        y = torch.mm(self.weight, x_RD.contiguous().T).T
        return y if self.bias is None else y + self.bias


class _LayerWeights(NamedTuple):
    attention_norm: Tensor
    query: _Linear
    key: _Linear
    value: _Linear
    out: _Linear
    mlp_norm: Tensor
    gate: _Linear
    up: _Linear
    down: _Linear


class LlamaForward:
    """The weights of a Llama, taken out of its modules: looking up an attribute of one costs as much as a product.

    Args:
        model: of transformers. Its tensors are used, not copied.
    """

    def __init__(self, model: Any) -> None:
        from transformers.models.llama import modeling_llama as llama

        config, network = model.config, _take(model, "model", llama.LlamaModel)
        self.rotary = _take(network, "rotary_emb", llama.LlamaRotaryEmbedding)
        self.norm, self.head = _take(network, "norm", llama.LlamaRMSNorm).weight, _take_linear(model, "lm_head")
        self.epsilon = config.rms_norm_eps
        self.is_grouped = config.num_attention_heads != config.num_key_value_heads
        self.layers: list[_LayerWeights] = []
        for name in _take(network, "layers", nn.ModuleList)._modules:
            layer = _take(network.layers, name, llama.LlamaDecoderLayer)
            attention, mlp = _take(layer, "self_attn", llama.LlamaAttention), _take(layer, "mlp", llama.LlamaMLP)
            self.head_dim, self.scale = attention.head_dim, attention.scaling
            query, key, value, out = (_take_linear(attention, f"{letter}_proj") for letter in "qkvo")
            gate, up, down = (_take_linear(mlp, f"{kind}_proj") for kind in ("gate", "up", "down"))
            before = _take(layer, "input_layernorm", llama.LlamaRMSNorm).weight
            between = _take(layer, "post_attention_layernorm", llama.LlamaRMSNorm).weight
            self.layers.append(_LayerWeights(before, query, key, value, out, between, gate, up, down))

    @classmethod
    def of(cls, model: Any, cache: Any) -> LlamaForward | None:
        """Return the forward pass of a plain Llama in float32; None for any other model, whose own is used."""
        from transformers.cache_utils import DynamicCache, DynamicLayer
        from transformers.models.llama.modeling_llama import LlamaForCausalLM

        config = model.config
        if (
            # Exact types: a subclass may compute something else.
            type(model) is not LlamaForCausalLM
            or _is_changed(model)
            or model.training
            or (config._attn_implementation, config.hidden_act) != ("sdpa", "silu")
            or model.lm_head.weight.dtype != torch.float32
            or torch.is_autocast_enabled(model.lm_head.weight.device.type)
            or type(cache) is not DynamicCache
            or any(type(layer) is not DynamicLayer for layer in cache.layers)
        ):
            return None
        try:
            return cls(model)
        except _Unsupported:
            return None

    def states(self, embeddings_BTD: Tensor, cache: Any, *, positions_BT: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Read a part of the sequence into the cache; return the states [B, T, D] that the head reads.

        Args:
            cache: of transformers, with layers that grow.
            mask_BL: 0 at padding, of all positions up to the last of this part; None where there is none.
        """
        cos, sin = (part[:, None] for part in self.rotary(embeddings_BTD, position_ids=positions_BT))
        length, before = embeddings_BTD.shape[1], cache.get_seq_length()
        mask = None
        # A mask, not `is_causal`: PyTorch aligns that to the upper left, which is wrong when cached keys come first.
        if length > 1:
            mask = torch.ones(length, before + length, dtype=torch.bool, device=embeddings_BTD.device).tril(before)
        if mask_BL is not None:
            padding = mask_BL[:, None, None].bool()
            # A position of padding sees itself, since a softmax over nothing would be NaN.
            mask = padding if mask is None else padding & mask | mask & ~mask.tril(before - 1)
        heads = (*embeddings_BTD.shape[:2], -1, self.head_dim)
        x_RD = embeddings_BTD.flatten(0, 1)
        for number, layer in enumerate(self.layers):
            y = self._normalize(x_RD, layer.attention_norm)
            query, key, value = (
                linear.apply(y).reshape(heads).transpose(1, 2) for linear in (layer.query, layer.key, layer.value)
            )
            key, value = cache.update(_rotate(key, cos, sin), value, number)
            y = F.scaled_dot_product_attention(
                _rotate(query, cos, sin), key, value, attn_mask=mask, scale=self.scale, enable_gqa=self.is_grouped
            )
            x_RD = x_RD + layer.out.apply(y.transpose(1, 2).reshape(len(x_RD), -1))
            y = self._normalize(x_RD, layer.mlp_norm)
            x_RD = x_RD + layer.down.apply(F.silu(layer.gate.apply(y)) * layer.up.apply(y))
        return self._normalize(x_RD, self.norm).view_as(embeddings_BTD)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [..., V] of states."""
        return self.head.apply(states.flatten(0, -2)).unflatten(0, states.shape[:-1])

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # transformers rotates the two halves of a head against each other; the rows of GGUF files are reordered for it when
    # they are read.
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _take(parent: nn.Module, name: str, kind: type[nn.Module]) -> Any:
    """Return a part of a module; raise _Unsupported where it was replaced, wrapped or hooked."""
    part = parent._modules.get(name)
    if part is None or type(part) is not kind or _is_changed(part):
        raise _Unsupported(name)
    return part


def _is_changed(part: nn.Module) -> bool:
    """Return whether a call of a module does more than its class says: by hooks, or by a `forward` of its own."""
    return bool(part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__)


def _take_linear(parent: nn.Module, name: str) -> _Linear:
    parameters = _take(parent, name, nn.Linear)._parameters
    return _Linear(parameters["weight"], parameters["bias"])


def pad_left(prompts: Sequence[Tensor], before: int) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left: embeddings [B, T, D]; mask [B, P + T] with the P positions of a prefix before them.

    Generation goes on at the right end of each row, so no padding may stand there.
    """
    longest = max(map(len, prompts))
    embeddings_BTD = prompts[0].new_zeros((len(prompts), longest, prompts[0].shape[1]))
    mask_BL = torch.ones((len(prompts), before + longest), dtype=torch.int64, device=prompts[0].device)
    for row, prompt_LD in enumerate(prompts):
        padding = longest - len(prompt_LD)
        embeddings_BTD[row, padding:] = prompt_LD
        mask_BL[row, before : before + padding] = 0
    return embeddings_BTD, mask_BL
