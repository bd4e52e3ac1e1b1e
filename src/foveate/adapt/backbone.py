"""One map of all backbones: where the blocks are, and within a block the modules that methods change.

Nothing of a backbone is replaced or renamed. Methods change it in two ways only: hooks on the modules that are named
here, and parameters that are swapped with the backbone's own (`foveate.adapt.adapter`).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import UserError


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


class ParameterScale(nn.Module):
    """LayerScale that a block holds as a parameter of its own, as a module that multiplies by it.

    It has no parameters: `owner` does, so that the model's names stay as they are.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self._owner, self._name = [owner], name  # in a list, so that it is not registered as a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the scale, whichever values are in the model now."""
        return x * getattr(self._owner[0], self._name)


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
class TransformerBlock:
    """One transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)), where norms are in front.

    Attributes:
        number: index in the order of the blocks, from 0.
        name: of its module in the model.
        module: the block.
        norm1, norm2: of attention and MLP.
        qkv: one projection to 3 D, or three to D each; empty where the block has none that hooks can change.
        proj: the attention's output projection.
        fc1, fc2: of a plain two-layer MLP; None where it has another form, which `mlp_form` names.
        attention_end, mlp_end: where the sublayers' results leave them.
        attention, mlp: modules that hold the parameters of the sublayer, without its norm.
        letters: what each module of `qkv` projects to, such as ("q", "kv"); by default ("qkv",) or ("q", "k", "v").
        one_input: all of `qkv` read the same tensor.
        ordered: rows of a fused projection are all of q, then all of k, then all of v.
        width: channels of the tokens that leave the block, where blocks differ; 0 is the backbone's width.
    """

    number: int
    name: str
    module: nn.Module
    norm1: nn.Module | None
    norm2: nn.Module | None
    qkv: tuple[nn.Module, ...]
    proj: nn.Module | None
    fc1: nn.Module | None
    fc2: nn.Module | None
    attention_end: SublayerEnd | None
    mlp_end: SublayerEnd | None
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    mlp_form: str = "two layers"
    letters: tuple[str, ...] = ()
    one_input: bool = True
    ordered: bool = True
    width: int = 0

    @property
    def norms(self) -> tuple[nn.Module, nn.Module]:
        """Both norms, of a block that has them."""
        assert self.norm1 is not None
        assert self.norm2 is not None
        return self.norm1, self.norm2

    @property
    def ends(self) -> tuple[SublayerEnd, SublayerEnd]:
        """The ends of attention and MLP, of a block that has them."""
        assert self.attention_end is not None
        assert self.mlp_end is not None
        return self.attention_end, self.mlp_end

    @property
    def outputs(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """proj, fc1 and fc2, of a block that has them."""
        assert self.proj is not None
        assert self.fc1 is not None
        assert self.fc2 is not None
        return self.proj, self.fc1, self.fc2

    def projections(self) -> list[tuple[str, nn.Module]]:
        """Return the modules of `qkv` with their letters."""
        letters = self.letters or (("qkv",) if len(self.qkv) == 1 else ("q", "k", "v"))
        # A block without projections has the default letters too, so `strict` must be off for it.
        return list(zip(letters, self.qkv, strict=bool(self.qkv)))


@dataclass(frozen=True)
class Backbone:
    """A model with the modules that methods change.

    Attributes:
        family: "timm", "open_clip", "transformers", "torchvision", "foveate", "cnn" or "custom".
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
        tokens: "sequence" where every block maps [B, L, D] tokens whatever their number; "rotary" where their number
            and order is that of the image's grid; "map" where tokens are a map, in windows, or change their number or
            width.
        norms: "pre" where the norms are in front of the sublayers and feed them alone, "post" behind them, "other".
        modules: the patterns of names that the map was made from, where the user gave them.
    """

    family: str
    model: nn.Module
    features: Callable[[Tensor], Tensor]
    features_dim: int
    forward_original: Callable[[Tensor], Tensor]
    stem: Callable[[Tensor], Tensor] | None = None
    root: str = ""
    blocks: tuple[TransformerBlock, ...] = ()
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
    tokens: Literal["sequence", "rotary", "map"] = "sequence"
    norms: Literal["pre", "post", "other"] = "pre"
    modules: Mapping[str, str] = field(default_factory=dict)

    def block_width(self, block: TransformerBlock) -> int:
        """Return the channels of the tokens that leave a block."""
        return block.width or self.width

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

    def require_blocks(self, method: str) -> tuple[TransformerBlock, ...]:
        """Return the blocks.

        Raises:
            UserError: the network has none.
        """
        if not self.blocks:
            raise UserError(f"method '{method}' needs transformer blocks, a {type(self.model).__name__} has none")
        return self.blocks

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


def capture_input(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Return the first input of a module within `run()`, of this thread's call alone."""
    inputs, thread = list[Tensor](), threading.get_ident()

    def receive(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        # The hook is on a module that all threads share: passes of the others are not this one's.
        if threading.get_ident() == thread:
            inputs.append(arguments[0])

    handle = module.register_forward_pre_hook(receive)
    try:
        run()
    finally:
        handle.remove()
    return inputs[-1]


def attend(attention: nn.MultiheadAttention, projection: InProjection, x_BLD: Tensor) -> Tensor:
    """Compute the self-attention of an `nn.MultiheadAttention` with its projections called as modules."""
    if not attention.batch_first:
        return _attend(attention, projection, x_BLD.transpose(0, 1)).transpose(0, 1)
    return _attend(attention, projection, x_BLD)


def _attend(attention: nn.MultiheadAttention, projection: InProjection, x_BLD: Tensor) -> Tensor:
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
        def forward(query: Tensor, key: Any = None, value: Any = None, **options: Any) -> tuple[Tensor, None]:
            if any(other is not None and other is not query for other in (key, value)):
                raise UserError("an adapted nn.MultiheadAttention must be self-attention (got another key or value)")
            if options.get("attn_mask") is not None or options.get("key_padding_mask") is not None:
                raise UserError("an adapted nn.MultiheadAttention takes no mask (got one)")
            return attend(attention, projection, query), None

        return forward

    handles = []
    for attention, projection in pairs:
        attention.forward = build_forward(attention, projection)  # pyrefly: ignore[bad-assignment]
        # A hook that does nothing: nn.TransformerEncoderLayer takes a fused path in evaluation that calls no module,
        # unless one of its modules has a hook; those of the projection are on `InProjection`, which is none of them.
        handles.append(attention.register_forward_pre_hook(lambda *_: None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for attention, _ in pairs:
            # The class's own forward shows through again once the instance's attribute is gone.
            vars(attention).pop("forward", None)
