"""LoRA on the query, key and value projections, or on other layers: a low-rank matrix added to the frozen one.

Hu et al. 2022, arXiv 2106.09685, section 4. [q; k; v] += scale B A dropout(z) with z = norm1(x), one A (r x d) that the
three share and one B (3 d x r). ViT-B/16: 36,864 r parameters. Starts as the identity: A Kaiming uniform, B 0.
Merges: W_qkv += scale B A. The scale is 1 as in the study (arXiv 2409.16434); "alpha/r" is PEFT's convention.

Other layers have a pair each: A (r x in), B (out x r) beside a linear layer; beside a convolution A is one like it with
r output channels, and B one of 1 x 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from foveate.adapt.adapter import (
    Adapter,
    BranchSettings,
    Handle,
    Method,
    PassState,
    check_rank,
    find_first_block,
    hook_output,
    init_kaiming,
    init_zero,
    select_blocks,
    upcast,
)
from foveate.adapt.backbone import Backbone, InProjection, TransformerBlock, get_tensor
from foveate.adapt.module_map import match_names
from foveate.core.errors import UserError, nearest

# What each name of `targets` stands for; "mlp" is every linear layer of the MLP, also of a gated one.
_EXPANDED = {"attention": ("q", "k", "v", "proj"), "qkv": ("q", "k", "v")}
_LETTERS = ("q", "k", "v")
TARGET_ROLES = (*_LETTERS, "qkv", "proj", "attention", "fc1", "fc2", "mlp", "conv")


class LoraSettings(BranchSettings):
    """Rank, scale, dropout and layers."""

    method: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="r, of the added matrix")
    scale: Literal["one", "alpha/r"] = Field("one", description="factor of the branch: 1 (the study), or alpha / rank")
    alpha: float | None = Field(None, gt=0, description="of scale alpha/r; the rank by default")
    dropout: float = Field(0.1, ge=0, lt=1, description="on the branch's input, in training")
    targets: list[str] = Field(
        ["q", "k", "v"],
        min_length=1,
        description="layers: q, k, v, qkv, proj, attention, fc1, fc2, mlp, conv, or patterns of names with a dot or *",
    )
    shared: bool = Field(True, description="q, k and v share A (the study); false: a pair for each layer, as in PEFT")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.alpha is not None and self.scale == "one":
            raise ValueError("alpha has no effect with scale one; set scale to alpha/r")
        for target in self.targets:
            if target not in TARGET_ROLES and not _is_pattern(target):
                raise ValueError(
                    f"targets '{target}': expected {', '.join(TARGET_ROLES)}, or a pattern of names such as "
                    f"'blocks.*.attn.proj'{nearest(target, TARGET_ROLES)}"
                )
        return self

    @property
    def factor(self) -> float:
        """Factor of the branch."""
        return 1.0 if self.scale == "one" or self.alpha is None else self.alpha / self.rank

    def roles(self) -> set[str]:
        """Return the roles that the targets name, each for one kind of layer."""
        return {role for target in self.targets for role in _EXPANDED.get(target, (target,))}


class MissingLayersError(UserError):
    """A network has none of the layers that LoRA shall change."""


def _is_pattern(target: str) -> bool:
    return "." in target or "*" in target


class Pair(nn.Module):
    """The matrices A (r x d) and B (3 d x r) of one block."""

    def __init__(self, width: int, rank: int, dropout: float, *, outputs: int | None = None) -> None:
        super().__init__()
        self.a = nn.Linear(width, rank, bias=False)
        self.b = nn.Linear(rank, outputs or 3 * width, bias=False)
        self.dropout = nn.Dropout(dropout)
        init_kaiming(self.a)
        # Only one of the two starts at 0: with both at 0, neither would get a gradient.
        init_zero(self.b)
        self._state = PassState()

    def part(self, z_BLD: Tensor, number: int, *, of: int) -> Tensor:
        """Return rows `number` of B A z out of `of` equal parts: [B, L, 3 D / of].

        Args:
            z_BLD: input of the projection, the block's normed tokens.
            number: 0 to of - 1, in the order q, k, v.
            of: 1 for a fused qkv projection, 3 for separate ones.
        """
        if of == 1:
            return self.b(self.a(self.dropout(z_BLD)))
        # q, k and v of transformers are three modules with one input: A z is computed once for all, whatever order they
        # are called in. A part that comes a second time is a new pass, whose dropout has to be drawn anew.
        state: tuple[Tensor, Tensor, set[int]] | None = self._state.value
        if state is None or state[0] is not z_BLD or number in state[2]:
            state = self._state.value = (z_BLD, self.a(self.dropout(z_BLD)), set())
        _, low, served = state
        served.add(number)
        if len(served) == of:
            self._state.value = None  # frees the graph of this pass
        # Only this projection's rows of B: the product with all 3 D rows would be computed three times.
        return F.linear(low, self.b.weight.chunk(of)[number])


class LayerPair(nn.Module):
    """A and B beside one linear layer or convolution, or beside some rows of a linear layer."""

    def __init__(self, layer: nn.Module, rank: int, dropout: float, *, outputs: int | None = None) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        if isinstance(layer, nn.Conv2d):
            # Use the layer's own class: those that pad as TensorFlow does compute their padding from the input.
            kind: Any = type(layer)
            self.a = kind(
                layer.in_channels,
                rank,
                layer.kernel_size,
                stride=layer.stride,
                padding=layer.padding,
                dilation=layer.dilation,
                bias=False,
            )
            self.b = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            inputs, rows = _features(layer)
            self.a = nn.Linear(inputs, rank, bias=False)
            self.b = nn.Linear(rank, outputs or rows, bias=False)
        init_kaiming(self.a)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return B A dropout(x)."""
        return self.b(self.a(self.dropout(x)))

    def delta(self) -> Tensor:
        """Return B A in the shape of the layer's weight."""
        a, b = upcast(self.a.weight), upcast(self.b.weight)
        return torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a) if a.dim() == 4 else b @ a


@dataclass(frozen=True)
class Target:
    """A layer that has a pair of its own.

    Attributes:
        key: of its pair in the adapter.
        name: of the layer in the model.
        layer: the layer.
        part: which of how many equal parts of its rows; (0, 1) is all of them.
    """

    key: str
    name: str
    layer: nn.Module
    part: tuple[int, int] = (0, 1)

    @property
    def rows(self) -> slice:
        """The rows of the layer's weight that the pair changes."""
        number, of = self.part
        size = _features(self.layer)[1] // of if of > 1 else 0
        return slice(number * size, (number + 1) * size) if of > 1 else slice(None)


def _features(layer: nn.Module) -> tuple[int, int]:
    """Return inputs and outputs of a linear layer."""
    # From the weight's shape: the fused projection of an `nn.MultiheadAttention` has no `in_features`.
    weight = get_tensor(layer, "weight")
    assert weight is not None
    return weight.shape[1], weight.shape[0]


def find_targets(backbone: Backbone, settings: LoraSettings) -> tuple[list[TransformerBlock], list[Target]]:
    """Return the blocks whose q, k and v share one pair, and the layers that have a pair each.

    Raises:
        MissingLayersError: the network has none of the layers of a role.
        UserError: a pattern matches none that can have a pair.
    """
    patterns = [target for target in settings.targets if _is_pattern(target)]
    roles, shared = settings.roles() - set(patterns), list[TransformerBlock]()
    targets: dict[str, Target] = {}
    matched: set[str] = set()
    # Convolutions are found by type below, because networks without blocks have them, too.
    if roles - {"conv"}:
        letters = [letter for letter in _LETTERS if letter in roles]
        for block in select_blocks(backbone, settings) if backbone.blocks else ():
            # One layer may stand for several letters, such as "kv".
            present = set("".join(names for names, _ in block.projections())) & set(letters)
            matched |= present
            if len(present) == 3 and settings.shared and _can_share(block):
                shared.append(block)
            else:
                _add_projections(targets, backbone, block, letters)
            for role, layer in _other_layers(block):
                if role in roles:
                    matched.add(role)
                    _add(targets, backbone, layer)
    if "conv" in roles:
        for name, layer in backbone.model.named_modules():
            if name.startswith(backbone.root) and isinstance(layer, nn.Conv2d) and _is_plain(layer):
                matched.add("conv")
                # Keys of a `ModuleDict` must not contain a dot.
                targets[name] = Target(name.replace(".", "/"), name, layer)
    for pattern in patterns:
        _add_pattern(targets, backbone, pattern)
    missing = sorted(roles - matched)
    if missing:
        raise MissingLayersError(
            f"method 'lora' needs layers {', '.join(missing)}, a {type(backbone.model).__name__} has none that hooks "
            "can change"
        )
    return shared, list(targets.values())


def _can_share(block: TransformerBlock) -> bool:
    names = [letters for letters, _ in block.projections()]
    if names == ["qkv"]:
        return True
    # Three layers of equal sizes with one input; q of an attention that reduces its keys has another one.
    sizes = {_features(layer) for layer in block.qkv}
    return names == ["q", "k", "v"] and block.one_input and len(sizes) == 1


def _add(targets: dict[str, Target], backbone: Backbone, layer: nn.Module) -> None:
    name = backbone.name_of(layer)
    targets[name] = Target(name.replace(".", "/"), name, layer)


def _add_projections(
    targets: dict[str, Target], backbone: Backbone, block: TransformerBlock, letters: list[str]
) -> None:
    for names, layer in block.projections():
        if set(names) <= set(letters) and len(names) == 1:
            _add(targets, backbone, layer)
            continue
        for number, letter in enumerate(names):
            if letter in letters:
                inputs, outputs = _features(layer)
                if not block.ordered or outputs != len(names) * inputs:
                    raise UserError(
                        f"method.targets: rows of '{letter}' in {backbone.name_of(layer)} are not known; expected "
                        f"all of {', '.join(names)} with shared=true"
                    )
                name = backbone.name_of(layer)
                key = f"{name}#{letter}"
                targets[key] = Target(key.replace(".", "/"), name, layer, (number, len(names)))


def _other_layers(block: TransformerBlock) -> Iterator[tuple[str, nn.Module]]:
    if block.proj is not None:
        yield "proj", block.proj
    if block.fc1 is not None and block.fc2 is not None:
        yield from (("fc1", block.fc1), ("fc2", block.fc2))
    for module in block.mlp:
        yield from (("mlp", layer) for layer in module.modules() if isinstance(layer, nn.Linear))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a pair beside the layer is the same as one added to its weight."""
    if isinstance(layer, nn.Conv2d):
        # Subclasses may standardize their weight, which no added matrix survives; Conv2dSame of timm only pads.
        known = type(layer) is nn.Conv2d or type(layer).__name__ == "Conv2dSame"
        return known and layer.groups == 1 and layer.padding_mode == "zeros"
    # The output layer of an `nn.MultiheadAttention` is never called, unless the map splits that attention.
    return isinstance(layer, nn.Linear) and type(layer).__name__ != "NonDynamicallyQuantizableLinear"


def _add_pattern(targets: dict[str, Target], backbone: Backbone, pattern: str) -> None:
    head = f"{backbone.classifier}." if backbone.classifier else None
    layers = {
        name: layer
        for name, layer in backbone.model.named_modules()
        if name.startswith(backbone.root) and name != backbone.classifier and not (head and name.startswith(head))
    }
    mapped = {id(layer) for block in backbone.blocks for layer in (*block.qkv, block.proj) if layer is not None}
    matches = match_names(pattern, list(layers))
    plain = [name for name in matches if _is_plain(layers[name]) or id(layers[name]) in mapped]
    if not plain:
        kinds = ", ".join(sorted({type(layers[name]).__name__ for name in matches}))
        what = f"matches only {kinds}, which can have no pair" if matches else "matches no layer"
        raise UserError(f"method.targets '{pattern}': {what}{nearest(pattern, layers)}")
    for name in plain:
        targets[name] = Target(name.replace(".", "/"), name, layers[name])


def _warn_of_unlimited(settings: LoraSettings) -> None:
    whole = [target for target in settings.targets if target == "conv" or _is_pattern(target)]
    if settings.last_blocks is not None and whole:
        # No error: adapters of before, trained so, must load.
        warnings.warn(
            f"last_blocks has no effect on targets {', '.join(whole)}; name the layers of these blocks by a pattern "
            "instead",
            stacklevel=3,
        )


class LoraAdapter(Adapter[LoraSettings]):
    """One pair of matrices per block, or per layer."""

    def __init__(self, settings: LoraSettings, backbone: Backbone) -> None:
        super().__init__(settings, backbone)
        blocks, targets = find_targets(backbone, settings)
        _warn_of_unlimited(settings)
        rank = settings.rank
        if blocks:
            check_rank(rank, backbone.width)
        for target in targets:
            if isinstance(target.layer, nn.Linear | InProjection):
                check_rank(rank, max(_features(target.layer)))
        self.blocks = nn.ModuleDict(
            {
                str(block.number): Pair(
                    _features(block.qkv[0])[0],
                    rank,
                    settings.dropout,
                    outputs=sum(_features(layer)[1] for layer in block.qkv),
                )
                for block in blocks
            }
        )
        self.layers = nn.ModuleDict(
            {
                target.key: LayerPair(
                    target.layer,
                    rank,
                    settings.dropout,
                    outputs=target.rows.stop - target.rows.start if target.part[1] > 1 else None,
                )
                for target in targets
            }
        )

    def hooks(self, backbone: Backbone) -> Iterator[Handle]:
        """Hook each projection."""
        blocks, targets = find_targets(backbone, self.settings)
        for block in blocks:
            for number, module in enumerate(block.qkv):
                yield hook_output(module, self._branch(self.pair(block.number), number, len(block.qkv)))
        for target in targets:
            yield hook_output(target.layer, self._layer_branch(self.layer_pair(target), target))

    def pair(self, number: int) -> Pair:
        """Return the matrices that q, k and v of a block share."""
        pair = self.blocks[str(number)]
        assert isinstance(pair, Pair)
        return pair

    def layer_pair(self, target: Target) -> LayerPair:
        """Return the matrices of a layer."""
        pair = self.layers[target.key]
        assert isinstance(pair, LayerPair)
        return pair

    def _branch(self, pair: Pair, number: int, of: int):  # noqa: ANN202
        def change(output: Tensor, z_BLD: Tensor | None) -> Tensor:
            assert z_BLD is not None
            factor = self.settings.factor * self.strength
            added = pair.part(z_BLD, number, of=of)
            # Without a multiplication by 1: an update is as fast as PEFT's only without it.
            return output + (added if factor == 1 else added * factor)

        return change

    def _layer_branch(self, pair: LayerPair, target: Target):  # noqa: ANN202
        rows, total = target.rows, _features(target.layer)[1]
        margins = (rows.start, total - rows.stop) if target.part[1] > 1 else None

        def change(output: Tensor, x: Tensor | None) -> Tensor:
            assert x is not None
            added = pair(x) * (self.settings.factor * self.strength)
            # Zeros beside the rows of one letter, so that the sum is out of place.
            return output + (added if margins is None else F.pad(added, margins))

        return change

    def first_block(self, backbone: Backbone) -> int:
        """Return the first block with a pair; 0 where one is in front of the blocks."""
        return find_first_block([f"{name}." for name in self.matched_names(backbone)], backbone)

    def matched_names(self, backbone: Backbone) -> list[str]:
        """Return the names of the layers."""
        blocks, targets = find_targets(backbone, self.settings)
        names = [backbone.name_of(module) for block in blocks for module in block.qkv]
        return names + list(dict.fromkeys(target.name for target in targets))

    def merged_tensors(self, backbone: Backbone) -> dict[str, Tensor]:
        """Return W + s B A of each layer."""
        tensors = {}
        blocks, targets = find_targets(backbone, self.settings)
        factor = self.settings.factor * self.strength
        for block in blocks:
            pair = self.pair(block.number)
            delta = upcast(pair.b.weight) @ upcast(pair.a.weight) * factor
            for module, rows in zip(block.qkv, delta.chunk(len(block.qkv)), strict=True):
                weight = get_tensor(module, "weight")
                assert weight is not None
                tensors[backbone.key(module, "weight")] = upcast(weight) + rows
        for target in targets:
            key, weight = backbone.key(target.layer, "weight"), get_tensor(target.layer, "weight")
            assert weight is not None
            merged = tensors[key] if key in tensors else upcast(weight).clone()
            # In place on the copy: q and v of one fused layer are two targets with rows of their own.
            merged[target.rows] += self.layer_pair(target).delta() * factor
            tensors[key] = merged
        return tensors


LORA = Method(
    LoraSettings, LoraAdapter, paper="arXiv 2106.09685", location="beside q, k, v", mergeable=True, peft="LORA"
)
