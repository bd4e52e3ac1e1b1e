"""What is trained, counted and listed before anything starts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from foveate.adapt.model import AdaptedModel

_SHOWN = 8


def count(module: nn.Module) -> int:
    """Numbers in a module's parameters."""
    return sum(value.numel() for value in module.parameters())


def trained_numbers(adapted: AdaptedModel, name: str | None = None) -> tuple[int, int]:
    """How many numbers an adapter trains: without its head, and the head's."""
    adapter = adapted.adapter(name)
    body = sum(value.numel() for value in adapter.tensors(adapted.view).values())
    return body, count(adapted.heads[name or adapted.active])


def backbone_numbers(adapted: AdaptedModel) -> int:
    """How many numbers the vision tower has."""
    return sum(value.numel() for value in adapted.view.parameters_of_tower().values())


def trainable_table(adapted: AdaptedModel) -> str:
    """The table of the adapter in use as text: what is trained, of how much, and the places that it matched."""
    adapter = adapted.adapter()
    body, head = trained_numbers(adapted)
    whole = backbone_numbers(adapted)
    tensors = adapter.tensors(adapted.view)
    kind = type(adapted.model).__name__
    lines = [
        f"adapter '{adapted.active}': {adapter.settings.method} on {kind} ({adapted.view.family})",
        f"{'part':<10}{'tensors':>9}{'trained':>14}{'of':>14}{'share':>10}",
        f"{'backbone':<10}{len(tensors):>9}{body:>14,}{whole:>14,}{body / max(whole, 1):>10.3%}",
        f"{'head':<10}{len(list(adapted.head.parameters())):>9}{head:>14,}{head:>14,}{1:>10.0%}",
    ]
    places = grouped(adapter.places(adapted.view))
    if places:
        shown = ", ".join(places[:_SHOWN]) + (f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else "")
        lines.append(f"matched: {shown}")
    return "\n".join(lines)


def grouped(names: list[str]) -> list[str]:
    """Names that differ in one number only as one: `blocks.{0..11}.attn.qkv`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"(?<=\.)\d+(?=\.|$)", f".{name}")
        pattern = name if found is None else f"{name[: found.start() - 1]}#{name[found.end() - 1 :]}"
        groups.setdefault(pattern, []).append(-1 if found is None else int(found[0]))
    shown = []
    for pattern, numbers in groups.items():
        known = sorted(set(numbers))
        low, high = known[0], known[-1]
        several = f"{low}..{high}" if len(known) == high - low + 1 else ",".join(map(str, known))
        of = str(low) if low == high else f"{{{several}}}"
        shown.append(pattern if low < 0 else pattern.replace("#", of, 1))
    return shown
