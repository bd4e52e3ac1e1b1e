"""What will be trained: the candidates that fit the network and the budget, and those that do not, with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.adapt.backbone import Backbone
from foveate.adapt.backbones.registry import view_of
from foveate.adapt.compare.bench import on_meta
from foveate.adapt.compare.grids import Candidate, Grid
from foveate.adapt.load_backbone import Opened
from foveate.adapt.prefix import place_of
from foveate.adapt.registry import method, settings_of
from foveate.core.errors import UserError


@dataclass(frozen=True)
class Numbers:
    """Of one candidate on one network.

    Attributes:
        trained: numbers beside the head. where: what of the network is computed once (see `Prefix.where`).
        share: of the network's blocks that every epoch passes.
    """

    trained: int
    where: str
    share: float


@dataclass(frozen=True)
class Plan:
    """Attributes:
    candidates: by variant, in the order of the grid. numbers: by `key_of` a candidate.
    left_out: variant, options and reason of those that cannot be or may not be.
    backbone: numbers of the network.
    """

    candidates: dict[str, list[Candidate]]
    numbers: dict[str, Numbers]
    left_out: list[dict[str, str]]
    backbone: int

    def of(self, candidate: Candidate) -> Numbers:
        """The numbers of a candidate."""
        return self.numbers[key_of(candidate)]


def key_of(candidate: Candidate) -> str:
    """What decides a candidate's numbers."""
    return json.dumps(candidate.method, sort_keys=True)


def plan(opened: Opened, grid: Grid, methods: Sequence[str], *, most: int | None) -> Plan:
    """Tries every candidate's shapes on the network, without values.

    Args:
        most: numbers beside the head that are allowed.

    Raises:
        UserError: for an unknown method, or one of which no candidate is left, with the reason of its last one.
    """
    view = view_of(on_meta(opened))
    whole = sum(value.numel() for value in view.parameters_of_tower().values())
    numbers: dict[str, Numbers] = {}
    reasons: dict[str, str] = {}
    kept: dict[str, list[Candidate]] = {}
    left_out: list[dict[str, str]] = []
    for variant in grid.chosen(methods):
        kept[variant] = []
        for candidate in grid.candidates(variant):
            key = key_of(candidate)
            if key not in numbers and key not in reasons:
                try:
                    numbers[key] = numbers_of(candidate.method, view)
                except UserError as problem:
                    reasons[key] = str(problem)
            reason = reasons.get(key, "")
            if not reason and most is not None and numbers[key].trained > most:
                reason = f"trains {numbers[key].trained:,} numbers, the budget is {most:,}"
            if reason:
                left_out.append({"variant": variant, "said": candidate.said, "why": reason})
            else:
                kept[variant].append(candidate)
    gone = [variant for variant, candidates in kept.items() if not candidates]
    if gone and len(gone) == len(kept):
        raise UserError(f"method '{gone[0]}': none of its candidates can be: {left_out[-1]['why']}")
    return Plan({variant: found for variant, found in kept.items() if found}, numbers, left_out, whole)


def numbers_of(options: dict[str, Any], view: Backbone) -> Numbers:
    """The numbers of a method's options on a network without values.

    Raises:
        UserError: when they do not fit it.
    """
    settings = settings_of(options)
    with torch.device("meta"):
        adapter = method(settings.method).build(settings, view)
    trained = sum(value.numel() for value in adapter.tensors(view).values())
    where, block = place_of(adapter.first_block(view), view)
    share = {"features": 0.0, "block": 1 - block / max(1, len(view.blocks))}.get(where, 1.0)
    return Numbers(trained, where, share)
