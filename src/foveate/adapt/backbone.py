"""One map of all backbones: where the blocks are, and within a block the modules that methods change.

Nothing of a backbone is replaced or renamed. Methods change it in two ways only: hooks on the modules that are named
here, and parameters that are swapped with the backbone's own (`foveate.adapt.parameter_swap`).
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
from foveate.core.plugins import load_all


class InProjection(nn.Module):
    """The fused q, k, v projection of an `nn.MultiheadAttention` as a module, so that it can have hooks.

    It has no parameters: `owner` does, under the names in_proj_weight and in_proj_bias.
    """

    def __init__(self, owner: nn.MultiheadAttention) -> None:
        super().__init__()
        self._owner = [owner]  # in a list, so that it is not registered as a submodule

    @property
    def owner(self) -> nn.MultiheadAttention:
        """The attention that the projection belongs to."""
        return self._owner[0]

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Project [B, L, D] to [B, L, 3 D], in the order q, k, v."""
        return F.linear(x_BLD, self.owner.in_proj_weight, self.owner.in_proj_bias)


@dataclass(frozen=True)
class SublayerEnd:
    """Module at which a sublayer's result leaves it, before the residual addition.

    Attributes:
        module: the last one that belongs to this sublayer alone; its output (or the first of a tuple) is the result.
        inner: LayerScale and DropPath inside; a branch that is added at `module` has to pass them too.
    """

    module: nn.Module
    inner: tuple[nn.Module, ...] = ()

    def pass_inner(self, branch_BLD: Tensor) -> Tensor:
        """Apply LayerScale and DropPath to a branch."""
        for module in self.inner:
            # `forward`, not a call: `module` is among them, and its hook is what added the branch.
            branch_BLD = module.forward(branch_BLD)
        return branch_BLD


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        number: index in the order of the blocks, from 0.
        name: of its module in the model.
        module: the block.
        norm1, norm2: in front of attention and MLP.
        qkv: one projection to 3 D, or three to D each.
        proj: the attention's output projection.
        fc1, fc2: of a plain two-layer MLP; None where it has another form, which `mlp_form` names.
        attention_end, mlp_end: where the sublayers' results leave them.
        attention, mlp: modules that hold the parameters of the sublayer, without its norm.
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
    attention_end: SublayerEnd
    mlp_end: SublayerEnd
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    mlp_form: str = "two layers"


@dataclass(frozen=True)
class Backbone:
    """A model with the modules that methods change.

    Attributes:
        family: "timm", "open_clip", "transformers", "foveate" or "cnn".
        model: as the user gave it; names of tensors are its own.
        root: prefix of the vision tower within the model ("" or ending in a dot).
        features: pixels to what a classifier reads, [B, features_dim].
        forward_original: pixels to what the model itself gives.
        stem: pixels to what `features` also takes, for networks with a part that is never trained.
        blocks: empty for networks without transformer blocks.
        width: D, channels of a token.
        heads: of the attention.
        grid: rows and columns of patches.
        patch_size: in pixels.
        prefix_tokens: class and register tokens in front of the patches.
        patch: the patch convolution.
        positions: parameter name of the position embedding, and the axis and first row of its patches; None unless it
            is added right behind the patch convolution.
        final_norm, pre_norm: behind and in front of the blocks.
        classifier: name of the model's own head, a Linear, where it has one.
        unused: parameters of the tower that only pre-training uses; never trained.
        install: context manager that prepares the model for hooks (splits the attention of open_clip).
    """

    family: str
    model: nn.Module
    features: Callable[[Tensor], Tensor]
    features_dim: int
    forward_original: Callable[[Tensor], Tensor]
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
        """Input channels of the patch convolution, or of the network's first convolution."""
        # The patch convolution first: a model with text or audio towers may have other convolutions in front of it.
        modules = [self.patch, *self.model.modules()]
        return next((module.in_channels for module in modules if isinstance(module, nn.Conv2d)), 3)

    @property
    def device(self) -> torch.device:
        """Device of the tower's parameters."""
        return next(iter(self.tower_parameters().values())).device

    def key(self, module: nn.Module, kind: str) -> str:
        """Return the name in the model of a module's parameter "weight" or "bias".

        Raises:
            KeyError: the module is not in the model.
        """
        owner, attribute = find_owner(module, kind)
        # With duplicates: a module that is shared appears under each of its names, and any of them will do.
        for name, candidate in self.model.named_modules(remove_duplicate=False):
            if candidate is owner:
                return f"{name}.{attribute}" if name else attribute
        raise KeyError(type(module).__name__)

    def name_of(self, module: nn.Module) -> str:
        """Return the module's name in the model."""
        owner = module.owner if isinstance(module, InProjection) else module
        modules = self.model.named_modules(remove_duplicate=False)
        name = next(name for name, candidate in modules if candidate is owner)
        return f"{name}.in_proj" if isinstance(module, InProjection) else name

    def tower_parameters(self) -> dict[str, nn.Parameter]:
        """Return the vision tower's parameters by name, without the model's own classifier and text tower."""
        # With the dot: other names may begin like that of the classifier.
        head = f"{self.classifier}." if self.classifier else None
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if name.startswith(self.root) and not (head and name.startswith(head))
        }

    def num_parameters(self) -> int:
        """Count the scalar parameters of the vision tower."""
        return sum(value.numel() for value in self.tower_parameters().values())

    def norm_layers(self) -> list[nn.Module]:
        """Return all layer norms of the tower, those in front of and behind the blocks too."""
        in_blocks = [norm for block in self.blocks for norm in (block.norm1, block.norm2)]
        return [norm for norm in (self.pre_norm, *in_blocks, self.final_norm) if norm is not None]

    def require_blocks(self, method: str) -> tuple[Block, ...]:
        """Return the blocks.

        Raises:
            UserError: the network has none.
        """
        if not self.blocks:
            raise UserError(
                f"method '{method}' needs transformer blocks, a {type(self.model).__name__} has none; expected linear, "
                "full, bitfit, layernorm or subset for such a network"
            )
        return self.blocks

    def require_mlps(self, method: str) -> list[tuple[nn.Linear, nn.Linear]]:
        """Return fc1 and fc2 of each block.

        Raises:
            UserError: an MLP is not a pair of linear layers.
        """
        pairs = []
        for block in self.require_blocks(method):
            if not isinstance(block.fc1, nn.Linear) or not isinstance(block.fc2, nn.Linear):
                raise UserError(
                    f"method '{method}' changes both layers of plain MLPs; that of {block.name} is {block.mlp_form}"
                )
            pairs.append((block.fc1, block.fc2))
        return pairs

    def describe(self) -> dict[str, Any]:
        """Describe what an adapter must match when it is loaded: family, sizes, and a hash of names and shapes."""
        shapes = {name: list(value.shape) for name, value in sorted(self.tower_parameters().items())}
        # Without the root: an adapter of a tower alone fits the same tower within a CLIP model.
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
        """Hash the tower's values to 16 hexadecimal digits; empty on the meta device."""
        return _digest({name.removeprefix(self.root): value for name, value in self.tower_parameters().items()})

    def buffers_digest(self) -> str:
        """Hash the tower's floating-point buffers (batch-norm statistics); empty where it has none.

        Two networks with equal weights and other statistics give other features.
        """
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = {
            name.removeprefix(self.root): value
            for name, value in self.model.state_dict().items()
            if name.startswith(self.root) and name not in parameters and value.is_floating_point()
        }
        return _digest(buffers) if buffers else ""


def map_backbone(model: nn.Module) -> Backbone:
    """Return the map of a model, from the first module of `foveate.adapt.backbones` that knows it.

    Raises:
        UserError: no module knows the model.
    """
    for map_model in load_all("foveate.adapt.backbones", "map_backbone").values():
        backbone = map_model(model)
        if backbone is not None:
            return backbone
    raise UserError(
        f"{type(model).__module__}.{type(model).__name__} cannot be adapted; expected a VisionTransformer or "
        "convolutional network of timm, a vision tower or CLIP model of open_clip, CLIPVisionModel, CLIPModel or "
        "Dinov2Model of transformers, or an image encoder or model of Foveate"
    )


def _digest(values: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        if value.is_meta:
            return ""
        # The zero byte ends the name, so that no two sets of names and values give the same stream.
        digest.update(name.encode() + b"\0")
        # As bytes: NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def find_owner(module: nn.Module, kind: str) -> tuple[nn.Module, str]:
    """Return the module that registers "weight" or "bias" of a projection or norm, and the name there."""
    return (module.owner, f"in_proj_{kind}") if isinstance(module, InProjection) else (module, kind)


def get_tensor(module: nn.Module, kind: str) -> Tensor | None:
    """Return the "weight" or "bias" of a projection or norm; None where it has none."""
    owner, attribute = find_owner(module, kind)
    return getattr(owner, attribute, None)


def attend(attention: nn.MultiheadAttention, projection: InProjection, x_BLD: Tensor) -> Tensor:
    """Compute the self-attention of an `nn.MultiheadAttention` with its projections called as modules."""
    batch, length, width = x_BLD.shape
    heads = attention.num_heads
    qkv = projection(x_BLD).view(batch, length, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)
    return attention.out_proj(attended.reshape(batch, length, width))


@contextlib.contextmanager
def split_attention(pairs: list[tuple[nn.MultiheadAttention, InProjection]]) -> Iterator[None]:
    """Let `nn.MultiheadAttention` call its projections as modules inside the block.

    Its own forward reads the weights directly, so that hooks on the projections would never run.
    """

    def build_forward(attention: nn.MultiheadAttention, projection: InProjection) -> Callable[..., Any]:
        # Callers differ in how they pass key, value and flags; in a vision tower all three inputs are the query.
        def forward(query: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
            assert attn_mask is None, "vision towers have no mask"
            return attend(attention, projection, query), None

        return forward

    for attention, projection in pairs:
        attention.forward = build_forward(attention, projection)  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        for attention, _ in pairs:
            # The class's own forward shows through again once the instance's attribute is gone.
            vars(attention).pop("forward", None)
