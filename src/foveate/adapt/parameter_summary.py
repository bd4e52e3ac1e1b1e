"""Count and list what an adapter trains, before anything starts."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn

from foveate.adapt.adapter import Adapter
from foveate.adapt.backbone import Backbone

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
