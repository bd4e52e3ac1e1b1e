"""Methods by name, as `foveate.adapt.methods.METHODS` lists them, and what each needs of a network."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from foveate.adapt.adapter import Method, MethodSettings, bias_names, norm_names
from foveate.adapt.backbone import Backbone, TransformerBlock, get_tensor
from foveate.adapt.methods import METHODS
from foveate.adapt.methods.lora import LoraSettings, MissingLayersError, find_targets
from foveate.core.errors import UserError, choose
from foveate.core.plugins import find_plugins, load_from_plugin
from foveate.core.progress import say
from foveate.core.recipes import validate

_PACKAGE = "foveate.adapt.methods"


@cache
def method_names() -> tuple[str, ...]:
    """Return the names of all methods, as a user writes them."""
    return tuple(sorted({*METHODS, *find_plugins(_PACKAGE)}))


def get_method(name: str) -> Method:
    """Return the method of a name; `-` and `_` are the same.

    Raises:
        UserError: there is no such method; the nearest is named.
    """
    # Chosen among names with `-`, so that the error lists them as a user writes them.
    chosen = choose(name.replace("_", "-"), method_names(), "method")
    if chosen not in METHODS:
        return load_from_plugin(_PACKAGE, chosen, "METHOD")
    module, _, attribute = METHODS[chosen].partition(":")
    method: Method = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), attribute)
    return method


def parse_settings(config: MethodSettings | Mapping[str, Any] | str) -> MethodSettings:
    """Check the settings of a method, given as settings, as a mapping with `method`, or as a method's name.

    Raises:
        UserError: unknown method or option; allowed ones and the nearest are named.
    """
    if isinstance(config, MethodSettings):
        return config
    options = {"method": config} if isinstance(config, str) else dict(config)
    name = options.pop("method", None)
    if not isinstance(name, str):
        raise UserError(f"field 'method' is missing; expected one of {', '.join(method_names())}")
    return validate(get_method(name).settings, options, where=f"method '{name}'")


# Check what each method needs of a network, and list the methods that a network can carry.


def _everywhere(check: Callable[[TransformerBlock], bool]) -> Callable[[Backbone], bool]:
    return lambda backbone: all(check(block) for block in backbone.blocks)


def _is_standard(block: TransformerBlock) -> bool:
    names = [letters for letters, _ in block.projections()]
    return names == ["qkv"] or (names == ["q", "k", "v"] and block.one_input)


def _is_square(block: TransformerBlock) -> bool:
    shapes = {name: get_tensor(layer, "weight") for name, layer in block.projections()}
    widths = [weight.shape[1] for weight in shapes.values() if weight is not None]
    sizes = [weight.shape[0] / len(name) for name, weight in shapes.items() if weight is not None]
    return block.ordered and {*sizes, *widths} == {block.width or next(iter(widths), 0)}


# Name of a need -> what it is, for errors, and whether a network with blocks has it.
_NEEDS: dict[str, tuple[str, Callable[[Backbone], bool]]] = {
    "mlps": (
        "plain MLPs of two linear layers",
        _everywhere(lambda block: block.fc1 is not None and block.fc2 is not None),
    ),
    "projections": ("q, k and v of one input in every block", _everywhere(_is_standard)),
    "square": (
        "projections of q, k and v as wide as the tokens, one after another",
        _everywhere(_is_square),
    ),
    "proj": ("an output projection of every attention", _everywhere(lambda block: block.proj is not None)),
    "mlp_end": ("MLPs that are modules", _everywhere(lambda block: block.mlp_end is not None)),
    "attention_end": (
        "attentions that are modules",
        _everywhere(lambda block: block.attention_end is not None),
    ),
    "norms": (
        "two norms in every block",
        _everywhere(lambda block: block.norm1 is not None and block.norm2 is not None),
    ),
    "norms_in_front": ("norms in front of attention and MLP that feed nothing else", lambda b: b.norms == "pre"),
    "grid": ("the grid of the image's patches in every block", lambda b: b.tokens != "map" and b.grid[0] > 0),
    "whole_tokens": ("attention over all tokens at once", lambda b: b.tokens != "map"),
    "free_tokens": ("blocks that take any number of tokens", lambda b: b.tokens == "sequence"),
    "one_width": ("blocks of one width", lambda b: len({b.block_width(block) for block in b.blocks}) == 1),
}  # fmt: skip


def find_obstacle(method: Method, backbone: Backbone) -> str:
    """Return what the method needs and the network lacks, as the end of a sentence; "" where it lacks nothing."""
    if not method.needs:
        return ""
    kind = type(backbone.model).__name__
    if not backbone.blocks:
        return f"needs transformer blocks, a {kind} has none"
    for need in method.needs:
        if need == "blocks":
            continue
        what, check = _NEEDS[need]
        if not check(backbone):
            form = next((block for block in backbone.blocks if block.fc1 is None), None)
            if need == "mlps" and form is not None:
                return f"needs {what}, that of {form.name} is {form.mlp_form}"
            return f"needs {what}, a {kind} has none" if need != "free_tokens" else f"needs {what}; a {kind} has others"
    return ""


def list_carried(backbone: Backbone) -> list[str]:
    """Return the methods that the network can carry, with the options that they then need."""
    carried = []
    for name in method_names():
        if name == "lora":
            targets = find_default_targets(backbone)
            if targets is not None:
                is_default = targets == LoraSettings().targets
                carried.append("lora" if is_default else f"lora with targets=[{','.join(targets)}]")
        elif name == "subset" and not backbone.blocks:
            carried.append("subset with a pattern")
        # Both methods need nothing from the map, but without biases or norms there is nothing to tune.
        elif (name == "bitfit" and not bias_names(backbone)) or (name == "layernorm" and not norm_names(backbone)):
            continue
        elif not find_obstacle(get_method(name), backbone):
            carried.append(name)
    return carried


def find_default_targets(backbone: Backbone) -> list[str] | None:
    """Return the layers that LoRA changes unless they are named: q, k and v, else MLPs, else convolutions."""
    for targets in (LoraSettings().targets, ["mlp"], ["conv"]):
        try:
            find_targets(backbone, LoraSettings(targets=targets))
        except MissingLayersError:
            continue
        return targets
    return None


def choose_targets(settings: MethodSettings, backbone: Backbone) -> MethodSettings:
    """Return the settings for this network: LoRA whose targets nobody named takes what there is, and prints it."""
    if not isinstance(settings, LoraSettings) or "targets" in settings.model_fields_set:
        return settings
    targets = find_default_targets(backbone)
    if targets is None or targets == settings.targets:
        return settings
    say(f"lora: a {type(backbone.model).__name__} has no q, k and v; taken: targets=[{','.join(targets)}]")
    # Named from here on, so that the saved adapter has them.
    return settings.model_copy(update={"targets": targets})


def check_carried(settings: MethodSettings, backbone: Backbone) -> None:
    """Check that a network can carry a method.

    Raises:
        UserError: it cannot; the error says what is lacking and lists the methods that the network can carry.
    """
    obstacle = find_obstacle(get_method(settings.method), backbone)
    if isinstance(settings, LoraSettings):
        try:
            find_targets(backbone, settings)
        except MissingLayersError as error:
            raise UserError(f"{error}; expected one of {', '.join(list_carried(backbone))} for this network") from error
    elif obstacle:
        name = settings.method.replace("_", "-")
        raise UserError(
            f"method '{name}' {obstacle}; expected one of {', '.join(list_carried(backbone))} for this network"
        )
