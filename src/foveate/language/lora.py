"""LoRA on the linear layers of a language model, in PEFT's folder format.

W x + s B A dropout(x), W frozen, A Kaiming uniform, B zero (arXiv 2106.09685, section 4.1). The layers stay linear ones
with their names: the weights of the model are saved and loaded as before, and a pair's names are PEFT's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core import seeds
from foveate.core.errors import UserError, nearest
from foveate.core.peft_folder import (
    check_shape,
    collect_pairs,
    describe_ranks,
    exact_pattern,
    lora_factor,
    match_modules,
    read_lora_config,
    read_peft_tensors,
    write_peft_config,
    write_peft_tensors,
)
from foveate.language.settings import ALL_LINEAR, LoraOptions


class LoraLinear(nn.Linear):
    """A linear layer that shares its weight with the one that it replaces, and a pair beside it."""

    def __init__(self, layer: nn.Linear, *, rank: int, factor: float, dropout: float) -> None:
        # On the meta device: the parameters are those of the layer, and none are made only to be thrown away.
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        # In float32 beside half-precision weights, whose steps would be lost in rounding.
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        options: dict[str, Any] = {"bias": False, "device": "meta", "dtype": dtype}
        device = layer.weight.device
        # Through the meta device as well: a layer's first values would be drawn from the process's random state.
        self.lora_A = nn.Linear(layer.in_features, rank, **options).to_empty(device=device)
        self.lora_B = nn.Linear(rank, layer.out_features, **options).to_empty(device=device)
        self.factor, self.dropout = factor, nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b + s B A dropout(x)."""
        outputs = F.linear(input, self.weight, self.bias)
        # Autocast casts both operands itself; without it, half-precision inputs do not mix with float32 weights.
        x = input if torch.is_autocast_enabled(input.device.type) else input.to(self.lora_A.weight.dtype)
        added = self.lora_B(self.lora_A(self.dropout(x)))
        return outputs + (added if self.factor == 1 else added * self.factor).to(outputs.dtype)

    def merged(self) -> nn.Linear:
        """Return the plain layer, its weight W + s B A."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        with torch.no_grad():
            delta = self.lora_B.weight @ self.lora_A.weight * self.factor
            # Added in float32 and rounded once: in half precision a small delta would vanish.
            weight = (self.weight.to(delta.dtype) + delta).to(self.weight.dtype)
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=self.weight.requires_grad), self.bias
        return layer.train(self.training)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield name and layer of each pair."""
    yield from ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear))


def add_lora(model: nn.Module, options: LoraOptions, *, seed: int = 0) -> list[str]:
    """Freeze a language model and put a pair beside its linear layers, in place; return their names.

    Raises:
        UserError: it has pairs already, or a target names no linear layer.
    """
    names = _find_targets(model, options)
    factor = 1.0 if options.alpha is None else options.alpha / options.rank
    model.requires_grad_(False)
    for name in names:
        layer = _replace(model, name, rank=options.rank, factor=factor, dropout=options.dropout)
        device = layer.lora_A.weight.device
        generator = torch.Generator("cpu" if device.type == "meta" else device)
        # Seeded by the layer's name: a pair starts the same no matter which other layers have one.
        generator.manual_seed(seeds.integer("lora", seed, name))
        # As in PEFT: with B zero, the model at first computes what it did without LoRA (arXiv 2106.09685, Section 4.1).
        nn.init.kaiming_uniform_(layer.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(layer.lora_B.weight)
    return names


def merge_lora(model: nn.Module) -> int:
    """Add each pair to its weight, in place, and leave plain linear layers; return how many."""
    # A list, since modules are replaced while the model is walked.
    layers = list(lora_layers(model))
    for name, layer in layers:
        _set(model, name, layer.merged())
    return len(layers)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the pairs, named as in the model's state dict."""
    return {
        f"{name}.{letter}.weight": getattr(layer, letter).weight.detach()
        for name, layer in lora_layers(model)
        for letter in ("lora_A", "lora_B")
    }


def save_lora(model: nn.Module, folder: str | Path, *, source: str | None = None, revision: str | None = None) -> Path:
    """Write the pairs as PEFT's `PeftModel.from_pretrained` reads them.

    Args:
        source, revision: where the weights beside the pairs are: a folder or a hub id.

    Raises:
        UserError: the model has no pairs.
    """
    path, layers = Path(folder), dict(lora_layers(model))
    if not layers:
        raise UserError(f"{path}: the {type(model).__name__} has no LoRA to save")
    first = next(iter(layers.values()))
    ranks = {name: layer.lora_A.out_features for name, layer in layers.items()}
    factors = {name: layer.factor for name, layer in layers.items()}
    rank, factor = first.lora_A.out_features, first.factor
    write_peft_tensors(path, lora_state(model))
    write_peft_config(
        path,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": source,
            "revision": revision,
            "inference_mode": True,
            **describe_ranks(ranks, factors, rank=rank, factor=factor),
            "lora_dropout": first.dropout.p,
            "bias": "none",
            "target_modules": _shorten(model, list(layers)),
            "modules_to_save": None,
        },
    )
    return path


def load_lora(model: nn.Module, folder: str | Path, *, trainable: bool = False) -> list[str]:
    """Put the pairs of a PEFT folder beside the layers of a language model, in place; return their names.

    PEFT notes no digest of the model's weights, so that they are those of the training is not checked.

    Args:
        trainable: the pairs can be trained on; the model itself is frozen in either case.

    Raises:
        UserError: another method of PEFT, an option that changes more than a pair does, or tensors for layers that the
            model does not have.
    """
    path = Path(folder)
    if dict(lora_layers(model)):
        raise UserError(f"{path}: the {type(model).__name__} has LoRA already; merge it first")
    config = read_lora_config(path)
    pairs = collect_pairs(read_peft_tensors(path), path)
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    names = match_modules(
        list(pairs),
        linear,
        path,
        prefixes=dict.fromkeys(("", prefix)),
        network=f"{type(model).__name__}'s list of layers",
    )
    # Everything that can be wrong is found before the model is changed.
    factors: dict[str, float] = {}
    for key, (a, b) in pairs.items():
        layer = linear[names[key]]
        # All shapes are checked before any layer is replaced: a folder that does not fit leaves the model as it was.
        check_shape((a.shape[0], layer.in_features), a.shape, f"{key}.lora_A", path)
        check_shape((layer.out_features, a.shape[0]), b.shape, f"{key}.lora_B", path)
        factors[key] = lora_factor(config, key, len(a), path)
    dropout = float(config.get("lora_dropout") or 0.0)
    model.requires_grad_(False)
    for key, (a, b) in pairs.items():
        pair = _replace(model, names[key], rank=len(a), factor=factors[key], dropout=dropout)
        with torch.no_grad():
            pair.lora_A.weight.copy_(a)
            pair.lora_B.weight.copy_(b)
        pair.lora_A.requires_grad_(trainable)
        pair.lora_B.requires_grad_(trainable)
    return list(names.values())


def _find_targets(model: nn.Module, options: LoraOptions) -> list[str]:
    if dict(lora_layers(model)):
        raise UserError(f"LoRA: the {type(model).__name__} has it already; merge it first")
    # Without the head, as in PEFT's `all-linear`.
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linear = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    }
    names: dict[str, None] = {}
    for target in options.targets:
        matches = [name for name in linear if target == ALL_LINEAR or f".{name}".endswith(f".{target}")]
        if not matches:
            known = dict.fromkeys([ALL_LINEAR, *(name.rpartition(".")[2] for name in linear)])
            raise UserError(
                f"targets: '{target}' names no linear layer of the {type(model).__name__}; expected one of "
                f"{', '.join(known)}, or a longer name{nearest(target, known)}"
            )
        names |= dict.fromkeys(matches)
    return sorted(names, key=list(linear).index)


def _replace(model: nn.Module, name: str, *, rank: int, factor: float, dropout: float) -> LoraLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    pair = LoraLinear(layer, rank=rank, factor=factor, dropout=dropout).train(layer.training)
    _set(model, name, pair)
    return pair


def _set(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def _shorten(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return ends of names as people write them, where they mean exactly these layers; else an expression."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    # The pair's own layers end in lora_A and lora_B, and are not in the model that PEFT opens.
    matches = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends and ".lora_" not in name]
    return ends if sorted(matches) == sorted(names) else exact_pattern(names)


def is_lora(name: str) -> bool:
    """Return whether a tensor of this name belongs to a pair of LoRA."""
    return ".lora_A." in name or ".lora_B." in name
