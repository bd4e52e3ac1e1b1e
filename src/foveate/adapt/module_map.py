"""Find the modules that methods change by patterns of their names: those of a known family, or a user's own.

A pattern is a name in which `*` stands for one part (mostly the number of a block): `blocks.*.attn.qkv`. Patterns of a
table (`foveate.adapt.families`) are relative to the block; a user gives them from the top, and the block is what they
share up to their last `*`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foveate.adapt.backbone import (
    Backbone,
    InProjection,
    ParameterScale,
    SublayerEnd,
    TransformerBlock,
    capture_input,
    split_attention,
)
from foveate.core.errors import UserError, choose, nearest
from foveate.core.progress import say

# What a name may stand for: within a block, and in the whole network.
BLOCK_ROLES = (
    "norm1", "qkv", "q", "k", "v", "qk", "kv", "proj", "norm2", "fc1", "fc2", "attention", "mlp",
    "attention_end", "mlp_end", "scale1", "scale2",
)  # fmt: skip
MODEL_ROLES = ("head", "patch", "pre_norm", "final_norm")
# How the tokens and norms of a user's network are; see `Backbone`.
DECLARATIONS = {"tokens": ("sequence", "rotary", "map"), "norms": ("pre", "post", "other")}
ROLES = ("block", *BLOCK_ROLES, *MODEL_ROLES, *DECLARATIONS)


def parse_modules(texts: Sequence[str]) -> dict[str, str]:
    """Return role -> pattern of texts such as `qkv=blocks.*.attn.qkv`.

    Raises:
        UserError: a text without `=`, or an unknown role.
    """
    modules: dict[str, str] = {}
    for text in texts:
        role, sign, pattern = text.partition("=")
        if not sign or not pattern:
            raise UserError(f"--modules: expected ROLE=PATTERN, such as qkv='blocks.*.attn.qkv' (got '{text}')")
        modules[choose(role, ROLES, "role of --modules")] = pattern.strip("'\"")
    return modules


def glob_expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern in which `*` is any text without a dot."""
    return re.compile(re.escape(pattern).replace(r"\*", r"[^.]*"))


def match_names(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that one of the patterns `a|b` matches as a whole, in the order of `names`."""
    expressions = [glob_expression(part) for part in pattern.split("|")]
    return [name for name in names if any(expression.fullmatch(name) for expression in expressions)]


def map_blocks(
    tower: nn.Module, modules: Mapping[str, str], *, prefix: str = "", one_input: bool = True, ordered: bool = True
) -> tuple[list[TransformerBlock], Callable[[], contextlib.AbstractContextManager[None]]]:
    """Return the blocks whose names match, and what prepares the network for hooks.

    Args:
        tower: names are relative to it.
        modules: role -> name, those within a block relative to `block`.
        prefix: of the tower in the whole model ("" or ending in a dot).
        one_input, ordered: see `TransformerBlock`.
    """
    names = dict(tower.named_modules())
    blocks: list[TransformerBlock] = []
    pairs: list[tuple[nn.MultiheadAttention, InProjection]] = []
    biased: list[Any] = []
    for name in match_names(modules["block"], list(names)):
        parts = _Parts(name, names, modules)
        # A match inside a block already found is part of that block and would be hooked twice.
        if parts.is_empty or any(name.startswith(f"{block.name.removeprefix(prefix)}.") for block in blocks):
            continue
        block = _map_block(len(blocks), prefix, parts, pairs, biased, one_input=one_input, ordered=ordered)
        if block is not None:
            blocks.append(block)

    @contextlib.contextmanager
    def install() -> Iterator[None]:
        with split_attention(pairs):
            # BEiT and EVA of timm read the weight of qkv directly, to add a bias that they hold themselves; with this
            # flag they call the module and add the bias behind it.
            for attention in biased:
                attention.qkv_bias_separate = True
            try:
                yield
            finally:
                for attention in biased:
                    attention.qkv_bias_separate = False

    return blocks, install if pairs or biased else contextlib.nullcontext


class _Parts:
    """The modules of one block by role; None for those that it lacks."""

    def __init__(self, name: str, names: Mapping[str, nn.Module], modules: Mapping[str, str]) -> None:
        self.name, self.block, self._modules = name, names[name], modules
        self._by_role = {role: self._find(role, names) for role in BLOCK_ROLES}

    def _find(self, role: str, names: Mapping[str, nn.Module]) -> nn.Module | None:
        for relative in self._modules.get(role, "").split("|"):
            module = names.get(f"{self.name}.{relative}") if relative else None
            if module is not None:
                return module
        return None

    def get(self, role: str) -> nn.Module | None:
        return self._by_role[role]

    def linear(self, role: str) -> nn.Linear | None:
        module = self._by_role[role]
        return module if isinstance(module, nn.Linear) else None

    @property
    def is_empty(self) -> bool:
        """Whether the name matched something that is no block, such as a downsampling between two stages."""
        return self.get("attention") is None and self.get("mlp") is None and not self.projections()

    def projections(self) -> list[tuple[str, nn.Module]]:
        """Return the linear modules that make q, k and v, with their letters."""
        for letters in (("qkv",), ("q", "k", "v"), ("q", "kv"), ("qk", "v")):
            layers = [(letter, self.linear(letter)) for letter in letters]
            if all(layer is not None for _, layer in layers):
                return [(letter, layer) for letter, layer in layers if layer is not None]
        return []

    def scale(self, role: str) -> nn.Module | None:
        """Return LayerScale as a module: the block's own, or one for a parameter of the block."""
        for relative in self._modules.get(role, "").split("|"):
            # A bare parameter takes no hook, so a module stands for it.
            if relative and isinstance(getattr(self.block, relative, None), nn.Parameter):
                return ParameterScale(self.block, relative)
        return self.get(role)

    def end(self, sublayer: str, number: int) -> SublayerEnd | None:
        """Return where the result of a sublayer leaves it: its last module, else the sublayer itself."""
        last, whole = self.get(f"{sublayer}_end"), self.get(sublayer)
        if last is None or last is whole:
            return None if whole is None else SublayerEnd(whole)
        scale = self.scale(f"scale{number}")
        return SublayerEnd(last, (last,) if scale is None or scale is last else (scale, last))


def _map_block(
    number: int,
    prefix: str,
    parts: _Parts,
    pairs: list[tuple[nn.MultiheadAttention, InProjection]],
    biased: list[Any],
    *,
    one_input: bool,
    ordered: bool,
) -> TransformerBlock | None:
    attention, mlp = parts.get("attention"), parts.get("mlp")
    projections, proj = parts.projections(), parts.get("proj")
    # With another kdim or vdim, torch has three separate weights, and `in_proj_weight` is None.
    if not projections and isinstance(attention, nn.MultiheadAttention) and attention.in_proj_weight is not None:
        projection = InProjection(attention)
        pairs.append((attention, projection))
        projections, proj = [("qkv", projection)], attention.out_proj
    if getattr(attention, "q_bias", None) is not None and getattr(attention, "qkv_bias_separate", None) is False:
        biased.append(attention)
    fc1, fc2 = parts.linear("fc1"), parts.linear("fc2")
    linears = [] if mlp is None else [module for module in mlp.modules() if isinstance(module, nn.Linear)]
    # A gated unit has a third layer, or a first one that is twice as wide as what the second reads.
    plain = fc1 is not None and fc2 is not None and fc1.out_features == fc2.in_features and len(linears) <= 2
    width = _width(parts, proj, fc2 if fc2 is not None else linears[-1] if linears else None)
    if width == 0:
        return None
    return TransformerBlock(
        number=number,
        name=prefix + parts.name,
        module=parts.block,
        norm1=parts.get("norm1"),
        norm2=parts.get("norm2"),
        qkv=tuple(module for _, module in projections),
        proj=proj if isinstance(proj, nn.Linear) else None,
        fc1=fc1 if plain else None,
        fc2=fc2 if plain else None,
        attention_end=parts.end("attention", 1),
        mlp_end=parts.end("mlp", 2),
        attention=() if attention is None else (attention,),
        mlp=() if mlp is None else (mlp,),
        mlp_form="two layers" if plain else "none" if mlp is None else type(mlp).__name__,
        letters=tuple(letter for letter, _ in projections),
        one_input=one_input,
        ordered=ordered,
        width=width,
    )


def _width(parts: _Parts, proj: nn.Module | None, last: nn.Module | None) -> int:
    """Return the channels of the tokens that leave a block."""
    # `last` first: the MLP comes after the attention, so its last layer produces the block's output.
    for module in (last, proj):
        if isinstance(module, nn.Linear):
            return module.out_features
    _, projection = (parts.projections() or [("", None)])[0]
    return projection.in_features if isinstance(projection, nn.Linear) else 0


def find_module(tower: nn.Module, pattern: str) -> nn.Module | None:
    """Return the first module of the names `a|b` that exists and is no placeholder."""
    names = dict(tower.named_modules())
    for name in pattern.split("|"):
        module = names.get(name) if name else None
        if module is not None and not isinstance(module, nn.Identity):
            return module
    return None


def last_linear(model: nn.Module) -> str:
    """Return the name of the last linear layer, which of a classifier is its head; "" where there is none."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else ""


def map_by_head(model: nn.Module, head: str, **fields: Any) -> Backbone:
    """Return the map of a classifier whose features are what its head, a linear layer, reads.

    Args:
        head: name of the linear layer.
        fields: of `Backbone`.
    """
    layer = model.get_submodule(head)
    assert isinstance(layer, nn.Linear)

    def features(pixels: Tensor) -> Tensor:
        # Captured at the head's input, because each library has another method for features before the head.
        return capture_input(layer, lambda: model(pixels)).flatten(1)

    def forward_original(pixels: Tensor) -> Tensor:
        outputs: Any = model(pixels)
        return getattr(outputs, "logits", outputs)  # models of transformers return an object

    return Backbone(
        model=model,
        features=features,
        features_dim=layer.in_features,
        forward_original=forward_original,
        classifier=head,
        **fields,
    )


def map_by_patterns(model: nn.Module, modules: Mapping[str, str], known: Backbone | None = None) -> Backbone:
    """Return the map of a user's network from patterns of names.

    Args:
        known: the map of a network of a known library, whose features and head stay unless `head` is given.
        modules: role -> pattern from the top of the network, such as {"qkv": "blocks.*.attn.qkv", "head": "head"};
            `tokens` and `norms` say how they are in this network ("map" and "other" by default, which no method relies
            on). Without `head` the last linear layer is the head.

    Raises:
        UserError: an unknown role, or a pattern that matches nothing or no fitting module.
    """
    for role in modules:
        choose(role, ROLES, "role of modules")
    for role, values in DECLARATIONS.items():
        if role in modules:
            choose(modules[role], values, f"modules.{role}")
    names = [name for name, _ in model.named_modules() if name]
    relative, block = _split_patterns(modules, names)
    blocks: list[TransformerBlock] = []
    install: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    if block:
        blocks, install = map_blocks(model, {"block": block, **relative})
        _check_blocks(blocks, relative, modules, model)
    ends = {role: find_module(model, modules[role]) for role in ("patch", "pre_norm", "final_norm") if role in modules}
    for role, module in ends.items():
        if module is None:
            raise UserError(f"modules.{role} '{modules[role]}': no such module{nearest(modules[role], names)}")
    tokens: Any = modules.get("tokens", "map")
    norms: Any = modules.get("norms", "other")
    fields: dict[str, Any] = {
        "blocks": tuple(blocks),
        "width": blocks[-1].width if blocks else 0,
        "tokens": tokens,
        "norms": norms,
        "install": install,
        "modules": dict(modules),
        **ends,
    }
    if isinstance(ends.get("patch"), nn.Conv2d) and not (known is not None and known.patch_size):
        fields["patch_size"] = int(ends["patch"].kernel_size[0])  # for the initial range of prompts
    if known is not None and "head" not in modules:
        family = "timm" if known.family == "cnn" else known.family
        return dataclasses.replace(known, family=family, **fields)
    head = modules.get("head", last_linear(model))
    if not isinstance(dict(model.named_modules()).get(head), nn.Linear):
        raise UserError(f"modules.head '{head}': expected the name of a linear layer{nearest(head, names)}")
    if "head" not in modules:
        say(f"features are what '{head}' reads, the last linear layer; another one by modules={{'head': ...}}")
    return map_by_head(model, head, family="custom", **fields)


def _split_patterns(modules: Mapping[str, str], names: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the patterns within a block, and that of the block, which all of them share."""
    block = modules.get("block", "")
    relative: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for role in BLOCK_ROLES:
        pattern = modules.get(role, "")
        if not pattern:
            continue
        if block and "*" not in pattern:
            relative[role] = pattern  # within the block that the user names
            continue
        if not match_names(pattern, names):
            raise UserError(f"modules.{role} '{pattern}': matches no module{nearest(pattern, names)}")
        head, star, rest = pattern.rpartition("*.")
        if not star:
            raise UserError(
                f"modules.{role} '{pattern}': expected a * for the number of the block, such as 'blocks.*.attn.qkv'"
            )
        prefixes[role], relative[role] = f"{head}*", rest
    # The block of most roles, so that the error names the one that deviates.
    block = block or (Counter(prefixes.values()).most_common(1)[0][0] if prefixes else "")
    for role, pattern in prefixes.items():
        if pattern != block:
            raise UserError(f"modules.{role} '{modules[role]}': its block is '{pattern}', that of the others '{block}'")
    return relative, block


def _check_blocks(
    blocks: Sequence[TransformerBlock], relative: Mapping[str, str], modules: Mapping[str, str], model: nn.Module
) -> None:
    if not blocks:
        raise UserError(f"modules {dict(modules)}: no block has these modules as linear layers")
    for role in ("qkv", "q", "k", "v", "qk", "kv", "proj", "fc1", "fc2"):
        if role not in relative:
            continue
        for block in blocks:
            module = dict(block.module.named_modules()).get(relative[role])
            if not isinstance(module, nn.Linear):
                raise UserError(
                    f"modules.{role}: {block.name}.{relative[role]} must be a linear layer "
                    f"(got {type(module).__name__})"
                )
    if any(role in relative for role in ("qkv", "q", "k", "v", "qk", "kv")) and not blocks[0].qkv:
        raise UserError("modules: q, k and v must be complete: qkv, or q, k and v, or q and kv, or qk and v")
