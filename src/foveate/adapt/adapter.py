"""Base classes of methods: parameters, the hooks that apply them, and the weights after merging."""

from __future__ import annotations

import math
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, TransformerBlock
from foveate.core.errors import UserError
from foveate.core.recipes import Settings
from foveate.core.reference import reference_values

# Swap a backbone's parameters with tuned copies: one set is in the backbone, the other is stored here.
#
# So every tensor is registered exactly once, whichever set is active, and swapping back restores the original bits.


class ParameterSwap(nn.Module):
    """Alternative values of some parameters of a model.

    Attributes:
        names: of the parameters, as the model names them.
        is_active: whether the alternative values are in the model now.
    """

    def __init__(self, values: Mapping[str, Tensor], *, trained: bool) -> None:
        super().__init__()
        self.names = tuple(values)
        self.is_active = False
        for name, value in values.items():
            self.register_parameter(_key(name), nn.Parameter(value, requires_grad=trained))

    @classmethod
    def copy_from(cls, model: nn.Module, names: tuple[str, ...]) -> ParameterSwap:
        """Copy a model's parameters of these names, trainable."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return cls({name: parameters[name].detach().clone() for name in names}, trained=True)

    def swap(self, model: nn.Module) -> None:
        """Exchange the values with the model's; calling it twice changes nothing."""
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in self.names:
            owner, _, attribute = name.rpartition(".")
            # Written to `_parameters` and not by setattr: the tensors themselves move, so that an optimizer that
            # holds one keeps training it, and a swap costs no copy.
            in_model, in_swap = modules[owner]._parameters, self._parameters
            in_model[attribute], in_swap[_key(name)] = in_swap[_key(name)], in_model[attribute]
        self.is_active = not self.is_active
        # LeViT, TinyViT and EfficientFormer cache in evaluation what they compute of these parameters.
        for module in modules.values():
            cache = getattr(module, "attention_bias_cache", None)
            if isinstance(cache, dict):
                cache.clear()

    def tuned_values(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the alternative values, wherever they are now."""
        return self._from_model(model) if self.is_active else self._from_storage()

    def original_values(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the model's values from before the swap, wherever they are now."""
        return self._from_storage() if self.is_active else self._from_model(model)

    def _from_model(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return {name: parameters[name] for name in self.names}

    def _from_storage(self) -> dict[str, nn.Parameter]:
        stored = {name: self._parameters[_key(name)] for name in self.names}
        assert all(value is not None for value in stored.values())
        return {name: value for name, value in stored.items() if value is not None}


def _key(name: str) -> str:
    # A parameter's name in a module may not hold a dot.
    return name.replace(".", "/")


def upcast(value: Tensor) -> Tensor:
    """Return the values detached and in float32 at least, for sums of weights.

    Sums in bfloat16 or float16 would round the small changes of an adapter away.
    """
    return value.detach() if value.dtype == torch.float64 else value.detach().float()


Interpolation = Literal["branch", "weights", "merged", ""]


class Handle(Protocol):
    """Handle of a registered hook, as `register_forward_hook` returns it."""

    def remove(self) -> None:
        """Remove the hook."""
        ...


class MethodSettings(Settings):
    """Base of the settings of all methods; a subclass narrows `method` to its name."""

    method: str


class BranchSettings(MethodSettings):
    """Fields of methods that add something to transformer blocks."""

    last_blocks: int | None = Field(None, ge=1, description="only in this many last blocks; all by default")
    init: Literal["declared", "osu_release"] = Field(
        "declared",
        description="initial values: as the method's paper declares them, or as the study's released code leaves them",
        json_schema_extra=reference_values("osu_release"),
    )


S = TypeVar("S", bound=MethodSettings)


@dataclass(frozen=True)
class Method:
    """Description of a method, listed in `foveate.adapt.methods.METHODS`.

    Attributes:
        settings: its fields with their defaults.
        build: settings and backbone to the adapter.
        paper: identifier of the paper, "" for the two baselines.
        location: where in a block it sits, for tables.
        mergeable: whether the adapted model can become one of the backbone's own architecture.
        peft: name of the method in PEFT, where it has it.
        needs: what a network must have; see `foveate.adapt.registry`.
    """

    settings: type[MethodSettings]
    build: Callable[[Any, Backbone], Adapter[Any]]
    paper: str
    location: str
    mergeable: bool
    peft: str = ""
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in settings and files, with `_`."""
        return str(self.settings.model_fields["method"].default)


class Adapter(nn.Module, ABC, Generic[S]):
    """The parameters of one method on one backbone.

    Attributes:
        strength: factor of the added branch; 1 in training.
        parameter_swap: tuned copies of the backbone's own tensors, for methods that tune some.
        why_not_mergeable: the reason, for methods that cannot be merged.
        interpolation: how models between the original and the tuned one are made: "branch" scales the branch,
            "weights" interpolates tuned tensors, "merged" interpolates merged weights, "" is not defined.
    """

    why_not_mergeable: ClassVar[str] = ""
    interpolation: ClassVar[Interpolation] = "branch"

    def __init__(self, settings: S, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.strength = 1.0
        # Set by a subclass that tunes tensors of the backbone; the added parameters are plain attributes.
        self.parameter_swap: ParameterSwap | None = None

    @abstractmethod
    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Register the hooks that apply the parameters; yield their handles."""

    @abstractmethod
    def first_block(self, backbone: Backbone) -> int:
        """Return the first block that this method changes: 0 if it changes what comes before the blocks,
        `len(blocks)` if only what follows them."""

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the backbone's modules or tensors that the method changes."""
        return list(self.parameter_swap.names) if self.parameter_swap is not None else []

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return the backbone's tensors that differ once the branch is merged, by name, in float32 at least.

        Called while the adapter is attached: tuned tensors are in the backbone.
        """
        return {}

    def reset_as_released(self) -> None:
        """Draw every linear layer anew (truncated normal 0.02, bias 0), as the study's released code does.

        There the network's constructor initializes all linear layers after the methods have set theirs, so that no
        declared start survives. Published numbers depend on it.
        """
        # Plain parameters (prompts, scales, RepAdapter, FacT's C and P) keep their start: the released code skips them
        # too.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def tensors(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """Return the parameters that the method trains, by the name under which they are saved."""
        # Names in the swap depend on which set is active; tuned tensors are listed under the backbone's names instead.
        added = {name: value for name, value in self.named_parameters() if not name.startswith("parameter_swap.")}
        tuned = {} if self.parameter_swap is None else self.parameter_swap.tuned_values(backbone.model)
        return added | {f"backbone.{name}": value for name, value in tuned.items()}


class NativeAdapter(Adapter[S]):
    """A method that trains tensors of the backbone itself."""

    interpolation: ClassVar[Interpolation] = "weights"

    def __init__(self, settings: S, backbone: Backbone, names: Sequence[str]) -> None:
        super().__init__(settings, backbone)
        if not names:
            # Refused: otherwise only the head would be trained, under the name of the method.
            raise UserError(f"method '{settings.method}': the backbone has none of the tensors that it trains")
        self.parameter_swap = ParameterSwap.copy_from(backbone.model, tuple(names))

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Register nothing: the tuned tensors are in the backbone."""
        return iter(())

    def first_block(self, backbone: Backbone) -> int:
        """Return the first block with a tuned tensor."""
        assert self.parameter_swap is not None
        return find_first_block(self.parameter_swap.names, backbone)


B = TypeVar("B", bound=BranchSettings)


class BlockAdapter(Adapter[B]):
    """A method that changes the selected blocks alone."""

    def first_block(self, backbone: Backbone) -> int:
        """Return the number of the first selected block."""
        return select_blocks(backbone, self.settings)[0].number

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the selected blocks."""
        return [block.name for block in select_blocks(backbone, self.settings)]


def find_first_block(names: Sequence[str], backbone: Backbone) -> int:
    """Return the first block that changes when these tensors do; see `Adapter.first_block`."""
    after_blocks = None if backbone.final_norm is None else f"{backbone.name_of(backbone.final_norm)}."
    firsts = []
    for name in names:
        # With the dot: "blocks.1" is also the beginning of "blocks.10".
        block = next((block.number for block in backbone.blocks if name.startswith(f"{block.name}.")), None)
        if block is not None:
            firsts.append(block)
        elif after_blocks is not None and name.startswith(after_blocks):
            firsts.append(len(backbone.blocks))
        else:  # patch convolution, position embedding, class token
            firsts.append(0)
    return min(firsts, default=len(backbone.blocks))


def bias_names(backbone: Backbone) -> list[str]:
    """Return the names of all biases of the tower, those of norms and of the patch convolution too."""
    # Without a dot in front: fused projections name theirs `in_proj_bias`, and BEiT has `q_bias` and `v_bias`.
    return [name for name in trainable_names(backbone) if name.endswith("bias")]


def norm_names(backbone: Backbone) -> list[str]:
    """Return the names of weights and biases of all norms, batch norms of convolutional networks too."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    # In a ViT those of the map only: norms inside the attention (of q and k) are no layer norms of the method.
    mapped = {id(norm) for norm in backbone.norm_layers()}
    # Where maps of tokens shrink between stages, norms stand there too.
    every = not backbone.blocks or backbone.tokens == "map"
    names = {
        f"{prefix}.{name}"
        for prefix, module in backbone.model.named_modules()
        if id(module) in mapped or (every and isinstance(module, kinds))
        for name, _ in module.named_parameters(recurse=False)
    }
    return [name for name in trainable_names(backbone) if name in names]


def trainable_names(backbone: Backbone) -> list[str]:
    """Return the names of the tower's parameters, without those that only pre-training uses."""
    return [name for name in backbone.tower_parameters() if name not in backbone.unused]


class BlockSettings(Protocol):
    """Settings of a method that may act on the last blocks alone; see `BranchSettings.last_blocks`."""

    @property
    def method(self) -> str: ...

    @property
    def last_blocks(self) -> int | None: ...


def select_blocks(backbone: Backbone, settings: BlockSettings) -> tuple[TransformerBlock, ...]:
    """Return the blocks that a method changes.

    Raises:
        UserError: the network has none, or fewer than requested.
    """
    blocks = backbone.require_blocks(settings.method)
    if settings.last_blocks is None:
        return blocks
    if settings.last_blocks > len(blocks):
        raise UserError(
            f"last_blocks must be at most {len(blocks)}, the blocks of this backbone (got {settings.last_blocks})"
        )
    return blocks[-settings.last_blocks :]


def check_rank(rank: int, width: int, *, what: str = "rank") -> int:
    """Return `rank` if it is at most the width.

    Raises:
        UserError: it is above the width, so that the product would cost more than the full matrix.
    """
    if rank > width:
        raise UserError(f"{what} {rank}: allowed are 1 to {width}, the width of this backbone")
    return rank


def hook_output(module: nn.Module, change: Callable[[Tensor, Tensor | None], Tensor]) -> Handle:
    """Replace a module's output (the first of a tuple) by `change(output, first input)`."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first = inputs[0] if inputs else None
        # Attention layers of transformers return a tuple of output and attention weights.
        if isinstance(output, tuple):
            return (change(output[0], first), *output[1:])
        return change(output, first)

    return module.register_forward_hook(hook)


def hook_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Handle:
    """Replace a module's first input, passed by position or as `hidden_states` (layers of transformers)."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if inputs:
            return (change(inputs[0]), *inputs[1:]), keywords
        return inputs, {**keywords, "hidden_states": change(keywords["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def watch_input(module: nn.Module, receive: Callable[[Tensor], None]) -> Handle:
    """Pass a module's first input to `receive`, unchanged."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        receive(inputs[0])

    return module.register_forward_pre_hook(hook)


class PassState(threading.local):
    """What one hook leaves for a later hook of the same forward pass.

    Each thread sees its own value: several threads may run one model at once, and a pass never changes threads.
    """

    value: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied and pickled empty: thread-local values cannot be, and a copy of the model begins a pass of its own.
        return type(self), ()

    def put(self, value: Tensor) -> None:
        """Store a tensor; one that a failed pass left behind is replaced."""
        self.value = value

    def take(self) -> Tensor:
        """Return the tensor and forget it: a stored activation would outlive the pass."""
        value, self.value = self.value, None
        assert value is not None, "the hook that stores it runs first"
        return value


def init_kaiming(linear: nn.Linear) -> None:
    """Draw weights uniformly with a = sqrt 5, as PyTorch's own linear layers start; bias 0."""
    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_xavier(linear: nn.Linear) -> None:
    """Draw weights from Glorot's uniform distribution; bias 0."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_zero(linear: nn.Linear) -> None:
    """Set weights and bias to 0: with a zero output layer a branch starts as the identity."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


# Count and list what an adapter trains, before anything starts.


_MAX_NAMES = 8  # in one line of text


class ParameterCounts(NamedTuple):
    """Numbers of scalar parameters: trained in the backbone, in the head, and of the whole vision tower."""

    trained: int
    head: int
    backbone: int


def count_parameters(adapter: Adapter[Any], backbone: Backbone, head: nn.Module) -> ParameterCounts:
    """Count what an adapter trains with its head, and the tower that it is on."""
    return ParameterCounts(
        trained=sum(value.numel() for value in adapter.tensors(backbone).values()),
        head=sum(value.numel() for value in head.parameters()),
        backbone=backbone.num_parameters(),
    )


def format_summary(name: str, adapter: Adapter[Any], backbone: Backbone, head: nn.Module) -> str:
    """Format as a table what the adapter `name` trains, of how much, and the modules that it matched."""
    counts = count_parameters(adapter, backbone, head)
    num_tensors, num_head_tensors = len(adapter.tensors(backbone)), len(list(head.parameters()))
    share = counts.trained / max(counts.backbone, 1)
    model = type(backbone.model).__name__
    lines = [
        f"adapter '{name}': {adapter.settings.method} on {model} ({backbone.family})",
        f"{'part':<10}{'tensors':>9}{'trained':>14}{'of':>14}{'share':>10}",
        f"{'backbone':<10}{num_tensors:>9}{counts.trained:>14,}{counts.backbone:>14,}{share:>10.3%}",
        f"{'head':<10}{num_head_tensors:>9}{counts.head:>14,}{counts.head:>14,}{1:>10.0%}",
    ]
    matched = list_matches(adapter, backbone)
    return "\n".join([*lines, f"matched: {matched}"] if matched else lines)


def list_matches(adapter: Adapter[Any], backbone: Backbone) -> str:
    """List the matched modules or tensors in one line, `blocks.{0..11}.attn.qkv and 3 more`."""
    groups = group_names(adapter.matched_names(backbone))
    more = f" and {len(groups) - _MAX_NAMES} more" if len(groups) > _MAX_NAMES else ""
    return ", ".join(groups[:_MAX_NAMES]) + more


def group_names(names: list[str]) -> list[str]:
    """Join names that differ in one number only.

    >>> group_names(["blocks.0.norm1", "blocks.1.norm1", "norm"])
    ['blocks.{0..1}.norm1', 'norm']
    """
    groups: dict[str, list[int]] = {}
    for name in names:
        # The first number between dots: the block's. A dot in front finds one at the very beginning too.
        match = re.search(r"(?<=\.)\d+(?=\.|$)", f".{name}")
        pattern = name if match is None else f"{name[: match.start() - 1]}#{name[match.end() - 1 :]}"
        groups.setdefault(pattern, []).append(-1 if match is None else int(match[0]))
    joined = []
    for pattern, group in groups.items():
        indices = sorted(set(group))
        low, high = indices[0], indices[-1]
        is_range = len(indices) == high - low + 1
        several = f"{low}..{high}" if is_range else ",".join(map(str, indices))
        text = str(low) if low == high else f"{{{several}}}"
        joined.append(pattern if low < 0 else pattern.replace("#", text, 1))
    return joined
