"""Plan a comparison: the candidates that fit the network and the budget, and those that do not, with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.adapt.backbone import Backbone
from foveate.adapt.compare.grids import Candidate, Grid
from foveate.adapt.find_backbone import map_backbone
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.prefix import frozen_extent
from foveate.adapt.registry import get_method, parse_settings
from foveate.adapt.results import RefusedCandidate
from foveate.core.errors import UserError


@dataclass(frozen=True)
class CandidateSize:
    """Sizes of one candidate on one network: what it trains, and what every epoch computes again.

    Attributes:
        trained: parameters, without the head.
        cached: what of the network is computed once (`FrozenPrefix.kind`).
        recomputed: share of the network's blocks that every epoch passes.
    """

    trained: int
    cached: str
    recomputed: float


@dataclass(frozen=True)
class Plan:
    """The candidates of a comparison.

    Attributes:
        candidates: by variant, in the order of the grid.
        sizes: by `candidate_key`.
        refused: candidates that do not fit the network or the budget.
        backbone: parameters of the network.
    """

    candidates: dict[str, list[Candidate]]
    sizes: dict[str, CandidateSize]
    refused: list[RefusedCandidate]
    backbone: int

    def size(self, candidate: Candidate) -> CandidateSize:
        """Return the size of a candidate."""
        return self.sizes[candidate_key(candidate)]


def candidate_key(candidate: Candidate) -> str:
    """Return what decides a candidate's size: its method options, not how it is trained."""
    return json.dumps(candidate.method, sort_keys=True)


def plan(network: LoadedBackbone, grid: Grid, methods: Sequence[str], *, max_trained: int | None) -> Plan:
    """Try the shapes of every candidate on the network.

    Args:
        methods: names, see `Grid.select`.
        max_trained: parameters allowed, without the head.

    Raises:
        UserError: an unknown method, or no candidate is left; the reason of the last one is given.
    """
    # On the meta device: a grid has hundreds of candidates, and shapes need no values.
    backbone = map_backbone(copy.deepcopy(network.model).to("meta"), network.modules)
    sizes: dict[str, CandidateSize] = {}
    reasons: dict[str, str] = {}
    candidates: dict[str, list[Candidate]] = {}
    refused: list[RefusedCandidate] = []
    for variant in grid.select(methods):
        candidates[variant] = []
        for candidate in grid.candidates(variant):
            # Each set of options once: how a candidate is trained does not change its shapes.
            key = candidate_key(candidate)
            if key not in sizes and key not in reasons:
                try:
                    sizes[key] = measure_candidate(candidate.method, backbone)
                except UserError as problem:
                    reasons[key] = str(problem)
            reason = reasons.get(key, "")
            if not reason and max_trained is not None and sizes[key].trained > max_trained:
                reason = f"trains {sizes[key].trained:,} parameters, the budget is {max_trained:,}"
            if reason:
                refused.append(RefusedCandidate(variant=variant, options=candidate.describe(), reason=reason))
            else:
                candidates[variant].append(candidate)
    # A method without candidates is left out with a note; only a comparison of nothing is an error.
    empty = [variant for variant, of_variant in candidates.items() if not of_variant]
    if empty and len(empty) == len(candidates):
        raise UserError(f"method '{empty[0]}': no candidate fits: {refused[-1].reason}")
    left = {variant: of_variant for variant, of_variant in candidates.items() if of_variant}
    return Plan(left, sizes, refused, backbone.num_parameters())


def measure_candidate(options: dict[str, Any], backbone: Backbone) -> CandidateSize:
    """Return the size of a method's options on a network without values.

    Raises:
        UserError: they do not fit it.
    """
    settings = parse_settings(options)
    with torch.device("meta"):
        adapter = get_method(settings.method).build(settings, backbone)
    trained = sum(value.numel() for value in adapter.tensors(backbone).values())
    cached, block = frozen_extent(adapter.first_block(backbone), backbone)
    recomputed = {"features": 0.0, "block": 1 - block / max(1, len(backbone.blocks))}.get(cached, 1.0)
    return CandidateSize(trained, cached, recomputed)
