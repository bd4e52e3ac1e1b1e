"""What every method gives: parameters, the hooks that let them act, and the weights after merging."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from foveate.adapt.backbone import Backbone, Block
from foveate.adapt.parameter_swap import ParameterSwap
from foveate.core.errors import UserError
from foveate.core.recipes import Settings


class Handle(Protocol):
    """What `register_forward_hook` gives."""

    def remove(self) -> None:
        """Takes the hook out."""
        ...


class MethodSettings(Settings):
    """Base of the settings of all methods; a subclass narrows `method` to its name."""

    method: str


class BranchSettings(MethodSettings):
    """Fields of methods that add something to transformer blocks."""

    last_blocks: int | None = Field(None, ge=1, description="only in the last blocks, this many; all by default")
    init: Literal["declared", "osu_release"] = Field(
        "declared",
        description="first values: as the method's paper declares them, or as the study's released code leaves them",
    )


S = TypeVar("S", bound=MethodSettings)


@dataclass(frozen=True)
class Method:
    """One method: what a module of `foveate.adapt.methods` offers as METHOD.

    Attributes:
        settings: its fields with their defaults. build: settings and backbone to the adapter.
        paper: where it comes from. place: in words, where it sits.
        mergeable: whether the adapted model can become one of the backbone's own architecture.
        peft: the name of the method in PEFT, where it has it.
    """

    settings: type[MethodSettings]
    build: Callable[[Any, Backbone], Adapter[Any]]
    paper: str
    place: str
    mergeable: bool
    peft: str = ""

    @property
    def name(self) -> str:
        """The name by which it is chosen."""
        return str(self.settings.model_fields["method"].default)


class Adapter(nn.Module, ABC, Generic[S]):
    """The parameters of one method on one backbone.

    Attributes:
        strength: factor of the added branch; 1 in training.
        exchange: tuned copies of the backbone's own tensors, for methods that tune some.
        why_not_mergeable: the reason, for methods that cannot be merged.
        wise: how the model between the given and the tuned one is made: "branch" scales the branch, "weights"
            interpolates tuned tensors, "merged" interpolates merged weights, "" is not defined.
    """

    why_not_mergeable: ClassVar[str] = ""
    wise: ClassVar[Literal["branch", "weights", "merged", ""]] = "branch"

    def __init__(self, settings: S, backbone: Backbone) -> None:
        super().__init__()
        self.settings = settings
        self.strength = 1.0
        self.exchange: ParameterSwap | None = None

    @abstractmethod
    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Registers the hooks that let the parameters act; yields what removes them."""

    @abstractmethod
    def first_block(self, backbone: Backbone) -> int:
        """The first block that this method changes; 0 also for what comes before, `len(blocks)` for what follows."""

    def places(self, backbone: Backbone) -> list[str]:
        """Names of the backbone's modules or tensors that it matched."""
        return list(self.exchange.names) if self.exchange is not None else []

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """The backbone's tensors, by name, that differ once the branch has gone into them; at least float32.

        Called while the adapter is attached: tuned tensors are in the backbone.
        """
        return {}

    def reset(self) -> None:
        """What the study's released code does to first values: its network's constructor draws every linear layer
        anew after the methods had set theirs (trunc normal 0.02, bias 0)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def tensors(self, backbone: Backbone) -> dict[str, nn.Parameter]:
        """What the method trains, by the name under which it is saved."""
        own = {name: value for name, value in self.named_parameters() if not name.startswith("exchange.")}
        tuned = {} if self.exchange is None else self.exchange.own(backbone.model)
        return own | {f"backbone.{name}": value for name, value in tuned.items()}


class NativeAdapter(Adapter[S]):
    """A method that trains tensors of the backbone itself."""

    wise: ClassVar[Literal["branch", "weights", "merged", ""]] = "weights"

    def __init__(self, settings: S, backbone: Backbone, names: Sequence[str]) -> None:
        super().__init__(settings, backbone)
        if not names:
            raise UserError(f"method '{settings.method}': the backbone has no such tensors")
        self.exchange = ParameterSwap.copies(backbone.model, tuple(names))

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """None: the tensors are in the backbone."""
        return iter(())

    def first_block(self, backbone: Backbone) -> int:
        """The first block with a tuned tensor."""
        assert self.exchange is not None
        return first_block_of(self.exchange.names, backbone)


B = TypeVar("B", bound=BranchSettings)


class BlockAdapter(Adapter[B]):
    """A method that sits in the chosen blocks alone."""

    def first_block(self, backbone: Backbone) -> int:
        """The first chosen one."""
        return chosen_blocks(backbone, self.settings)[0].number

    def places(self, backbone: Backbone) -> list[str]:
        """The blocks."""
        return [block.name for block in chosen_blocks(backbone, self.settings)]


def first_block_of(names: Sequence[str], backbone: Backbone) -> int:
    """The first block that changes when these tensors do."""
    numbers = []
    behind = () if backbone.final_norm is None else tuple(_prefixes(backbone, backbone.final_norm))
    for name in names:
        inside = [block.number for block in backbone.blocks if name.startswith(f"{block.name}.")]
        if inside:
            numbers.append(inside[0])
        elif name.startswith(behind) and behind:
            numbers.append(len(backbone.blocks))
        else:
            numbers.append(0)
    return min(numbers, default=len(backbone.blocks))


def _prefixes(backbone: Backbone, module: nn.Module) -> Iterator[str]:
    yield f"{backbone.name_of(module)}."


def biases(backbone: Backbone) -> list[str]:
    """Names of all biases of the tower, those of norms and of the patch convolution too."""
    return [name for name in trainable(backbone) if name.endswith("bias")]


def norm_tensors(backbone: Backbone) -> list[str]:
    """Names of weights and biases of all norm layers of the tower, batch norms of convolutional networks too."""
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    wanted = {id(norm) for norm in backbone.norms()}
    found = {
        f"{prefix}.{name}"
        for prefix, module in backbone.model.named_modules()
        if id(module) in wanted or (not backbone.blocks and isinstance(module, kinds))
        for name, _ in module.named_parameters(recurse=False)
    }
    return [name for name in trainable(backbone) if name in found]


def trainable(backbone: Backbone) -> list[str]:
    """Names of the tower's parameters that images pass."""
    return [name for name in backbone.parameters_of_tower() if name not in backbone.unused]


def chosen_blocks(backbone: Backbone, settings: BranchSettings) -> tuple[Block, ...]:
    """The blocks that a method sits in.

    Raises:
        UserError: when there are none, or fewer than asked for.
    """
    blocks = backbone.need_blocks(settings.method)
    if settings.last_blocks is None:
        return blocks
    if settings.last_blocks > len(blocks):
        raise UserError(f"last_blocks {settings.last_blocks}: this backbone has {len(blocks)} blocks")
    return blocks[-settings.last_blocks :]


def check_rank(rank: int, width: int, *, what: str = "rank") -> int:
    """`rank` if it is below the width.

    Raises:
        UserError: when it is not: the product would cost more than the full matrix.
    """
    if rank > width:
        raise UserError(f"{what} {rank}: allowed are 1 to {width}, the width of this backbone")
    return rank


def on_output(module: nn.Module, change: Callable[[Tensor, Tensor | None], Tensor]) -> Handle:
    """A hook that replaces a module's output (the first of a tuple) by `change(output, first input)`."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first = inputs[0] if inputs else None
        if isinstance(output, tuple):
            return (change(output[0], first), *output[1:])
        return change(output, first)

    return module.register_forward_hook(hook)


def on_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Handle:
    """A hook that replaces a module's first input, given by position or as `hidden_states`."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if inputs:
            return (change(inputs[0]), *inputs[1:]), named
        return inputs, {**named, "hidden_states": change(named["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def watch_input(module: nn.Module, keep: Callable[[Tensor], None]) -> Handle:
    """A hook that shows a module's first input."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        keep(inputs[0])

    return module.register_forward_pre_hook(hook)


def kaiming(linear: nn.Linear) -> None:
    """Uniform with a = sqrt 5, as PyTorch's own linear layers start; bias 0."""
    nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def xavier(linear: nn.Linear) -> None:
    """Glorot's uniform; bias 0."""
    nn.init.xavier_uniform_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def zero(linear: nn.Linear) -> None:
    """All 0."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)
