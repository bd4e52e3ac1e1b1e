"""One view of all backbones: where the blocks are, and within a block the places that methods change.

Nothing of a backbone is replaced or renamed. Methods change it in two ways only: hooks on the modules that stand here,
and parameters that take turns with the backbone's own (`foveate.adapt.parameter_swap`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError


class InProjection(nn.Module):
    """The fused q, k, v projection of an `nn.MultiheadAttention` as a module of its own, so that hooks find it.

    It owns no parameter: `owner` does, under the names in_proj_weight and in_proj_bias.
    """

    def __init__(self, owner: nn.MultiheadAttention) -> None:
        super().__init__()
        self._owner = [owner]  # in a list, so that it is no submodule

    @property
    def owner(self) -> nn.MultiheadAttention:
        """The attention whose projection this is."""
        return self._owner[0]

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] to [B, L, 3 D], in the order q, k, v."""
        return F.linear(x_BLD, self.owner.in_proj_weight, self.owner.in_proj_bias)


@dataclass(frozen=True)
class Place:
    """Where the result of a sublayer leaves it, before the residual addition.

    Attributes:
        module: the last one that belongs to this sublayer alone; its output (or the first of a tuple) is the result.
        own: LayerScale and DropPath inside; a branch beside the sublayer passes them on its own.
    """

    module: nn.Module
    own: tuple[nn.Module, ...] = ()

    def passed(self, branch_BLD: Tensor) -> Tensor:
        """`branch_BLD` through LayerScale and DropPath, without their hooks."""
        for module in self.own:
            branch_BLD = module.forward(branch_BLD)
        return branch_BLD


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        number, name: its place in the order, and its module's name in the model.
        module: the block. norm1, norm2: in front of attention and MLP.
        qkv: one projection to 3 D, or three to D each. proj: behind the attention.
        fc1, fc2: of a plain two-layer MLP; None where it has another form (`mlp_form` says which).
        attention_end, mlp_end: see `Place`.
        attention, mlp: modules whose parameters are those of the sublayer without its norm.
    """

    number: int
    name: str
    module: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    qkv: tuple[nn.Module, ...]
    proj: nn.Module
    fc1: nn.Module | None
    fc2: nn.Module | None
    attention_end: Place
    mlp_end: Place
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    mlp_form: str = "two layers"


@dataclass(frozen=True)
class Backbone:
    """A model with its places.

    Attributes:
        family: "timm", "open_clip", "transformers", "foveate" or "cnn".
        model: as the user gave it; names of tensors are its own.
        root: prefix of the vision tower within the model ("" or ending in a dot).
        features: pixels to what a classifier reads, [B, features_dim].
        plain: pixels to what the model itself gives.
        stem: pixels to what `features` also takes, for networks with a part that is never trained.
        blocks: empty for networks without transformer blocks.
        width: D of the tokens. heads: of the attention. grid: rows and columns of patches. patch_size: in pixels.
        prefix_tokens: class and register tokens in front of the patches.
        patch: the patch convolution. positions: parameter name of the position embedding and the axis and first row
            of its patches; None unless it is added right behind the convolution.
        final_norm, pre_norm: behind and in front of the blocks.
        classifier: name of the model's own head, a Linear, where it has one.
        unused: parameters of the tower that no image passes (of pre-training): never trained.
        install: puts in place what hooks need (split attention of open_clip) and gives back what takes it out.
    """

    family: str
    model: nn.Module
    features: Callable[[Tensor], Tensor]
    features_dim: int
    plain: Callable[[Tensor], Tensor]
    stem: Callable[[Tensor], Tensor] | None = None
    root: str = ""
    blocks: tuple[Block, ...] = ()
    width: int = 0
    heads: int = 0
    grid: tuple[int, int] = (0, 0)
    patch_size: int = 0
    prefix_tokens: int = 0
    patch: nn.Module | None = None
    positions: tuple[str, int, int] | None = None
    final_norm: nn.Module | None = None
    pre_norm: nn.Module | None = None
    classifier: str = ""
    unused: tuple[str, ...] = ()
    install: Callable[[], contextlib.AbstractContextManager[None]] = field(default=contextlib.nullcontext)

    @property
    def channels(self) -> int:
        """How many values a pixel has: of the patch convolution, or of the network's first one."""
        found = [self.patch, *self.model.modules()]
        return next((module.in_channels for module in found if isinstance(module, nn.Conv2d)), 3)

    def key(self, module: nn.Module, kind: str) -> str:
        """The name in the model of a module's parameter "weight" or "bias".

        Raises:
            KeyError: for a module that is not in the model.
        """
        owner, attribute = owner_of(module, kind)
        for name, found in self.model.named_modules(remove_duplicate=False):
            if found is owner:
                return f"{name}.{attribute}" if name else attribute
        raise KeyError(type(module).__name__)

    def name_of(self, module: nn.Module) -> str:
        """The module's name in the model."""
        owner = module.owner if isinstance(module, InProjection) else module
        name = next(name for name, found in self.model.named_modules(remove_duplicate=False) if found is owner)
        return f"{name}.in_proj" if isinstance(module, InProjection) else name

    def parameters_of_tower(self) -> dict[str, nn.Parameter]:
        """The vision tower's parameters by name, without the model's own classifier and without text towers."""
        head = f"{self.classifier}." if self.classifier else None
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if name.startswith(self.root) and not (head and name.startswith(head))
        }

    def norms(self) -> list[nn.Module]:
        """All layer norms of the tower, those in front of and behind the blocks too."""
        found = [norm for block in self.blocks for norm in (block.norm1, block.norm2)]
        return [norm for norm in (self.pre_norm, *found, self.final_norm) if norm is not None]

    def need_blocks(self, method: str) -> tuple[Block, ...]:
        """The blocks.

        Raises:
            UserError: when the network has none.
        """
        if not self.blocks:
            raise UserError(
                f"method '{method}' sits in transformer blocks, a {type(self.model).__name__} has none; allowed for "
                "it are linear, full, bitfit, layernorm and subset, for a ViT all"
            )
        return self.blocks

    def need_mlps(self, method: str) -> list[tuple[nn.Linear, nn.Linear]]:
        """fc1 and fc2 of each block.

        Raises:
            UserError: when an MLP is no pair of linear layers.
        """
        found = []
        for block in self.need_blocks(method):
            if not isinstance(block.fc1, nn.Linear) or not isinstance(block.fc2, nn.Linear):
                raise UserError(
                    f"method '{method}' changes both layers of plain MLPs; that of {block.name} is {block.mlp_form}"
                )
            found.append((block.fc1, block.fc2))
        return found

    def describe(self) -> dict[str, Any]:
        """What an adapter must find again: family, class, and a hash of the names and shapes of the tower."""
        shapes = {name: list(value.shape) for name, value in sorted(self.parameters_of_tower().items())}
        text = repr(sorted((name.removeprefix(self.root), shape) for name, shape in shapes.items()))
        return {
            "family": self.family,
            "blocks": len(self.blocks),
            "width": self.width,
            "features": self.features_dim,
            "tensors": len(shapes),
            "architecture": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    def weights_digest(self) -> str:
        """16 hexadecimal digits that name the tower's values; empty on the meta device."""
        return _digest({name.removeprefix(self.root): value for name, value in self.parameters_of_tower().items()})

    def buffers_digest(self) -> str:
        """The same of its stored numbers that no gradient reaches, the statistics of batch norms; empty where none."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        found = {
            name.removeprefix(self.root): value
            for name, value in self.model.state_dict().items()
            if name.startswith(self.root) and name not in parameters and value.is_floating_point()
        }
        return _digest(found) if found else ""


def _digest(values: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        if value.is_meta:
            return ""
        digest.update(name.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def owner_of(module: nn.Module, kind: str) -> tuple[nn.Module, str]:
    """The module that registers "weight" or "bias" of a projection or norm, and the name there."""
    return (module.owner, f"in_proj_{kind}") if isinstance(module, InProjection) else (module, kind)


def value_of(module: nn.Module, kind: str) -> Tensor | None:
    """The present value of "weight" or "bias"; None where there is none."""
    owner, attribute = owner_of(module, kind)
    return getattr(owner, attribute, None)


def attend(attention: nn.MultiheadAttention, projection: InProjection, x_BLD: Tensor) -> Tensor:
    """Self-attention of `nn.MultiheadAttention` with its projections called as modules."""
    batch, length, width = x_BLD.shape
    heads = attention.num_heads
    qkv = projection(x_BLD).view(batch, length, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)
    return attention.out_proj(attended.reshape(batch, length, width))


@contextlib.contextmanager
def split_attention(pairs: list[tuple[nn.MultiheadAttention, InProjection]]) -> Iterator[None]:
    """`nn.MultiheadAttention` computes with its weights directly and calls no submodule; inside the block it does."""

    def forward_of(attention: nn.MultiheadAttention, projection: InProjection) -> Callable[..., Any]:
        def forward(query: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
            assert attn_mask is None, "vision towers have no mask"
            return attend(attention, projection, query), None

        return forward

    for attention, projection in pairs:
        attention.forward = forward_of(attention, projection)  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        for attention, _ in pairs:
            vars(attention).pop("forward", None)
