"""Estimate what a comparison takes before it starts; refuse a grid that nobody could finish."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.adapt.backbone import Backbone
from foveate.adapt.backbones import map_backbone
from foveate.adapt.compare.grids import Candidate, Grid
from foveate.adapt.estimate import time_call
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.prefix import frozen_extent
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.registry import get_method, parse_settings
from foveate.adapt.results import RefusedCandidate
from foveate.core.errors import UserError
from foveate.core.progress import duration
from foveate.training.distributed import start

# Plan a comparison: the candidates that fit the network and the budget, and those that do not, with the reason.


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


# Sustained operations a second of one H100 in training, two fifths of its TF32 peak: for scale, not a promise.
H100 = 2e14
_IMAGES = 8


@dataclass(frozen=True)
class PlannedTraining:
    """A training that is not finished: its candidate, settings, and numbers of training and test images."""

    candidate: Candidate
    settings: AdaptTraining
    images: int
    tested: int


@dataclass(frozen=True)
class Speed:
    """Seconds and operations of one image's forward pass."""

    seconds: float
    flops: float


@torch.no_grad()
def measure_speed(network: LoadedBackbone, *, device: str = "auto") -> Speed:
    """Measure the forward pass of a small batch; the best of three counts."""
    backbone = map_backbone(network.model, network.modules)
    size = network.preprocess.side
    with start(device) as here:
        network.model.to(here.device)
        channels = getattr(backbone.patch, "in_channels", 3)
        pixels = torch.zeros(_IMAGES, channels, size, size, device=here.device)
        # Counting is the warm-up of the measurement too.
        with FlopCounterMode(display=False) as counter:
            backbone.features(pixels)
        # The best of three: other processes can only slow a pass down.
        seconds = min(time_call(lambda: backbone.features(pixels), here.device) for _ in range(3))
    return Speed(seconds / _IMAGES, counter.get_total_flops() / _IMAGES)


def estimate_cost(plan: Plan, trainings: Sequence[PlannedTraining], speed: Speed) -> dict[str, Any]:
    """Return trainings, steps, samples, and the time on this machine and on one H100, in all and by variant."""
    lines: dict[str, dict[str, Any]] = {}
    for training in trainings:
        settings = training.settings.resolve(training.images)
        samples = settings.steps * settings.batch_size
        caching = training.settings.cache and not training.settings.varies_images
        share = plan.size(training.candidate).recomputed if caching else 1.0
        # A backward pass costs two forward passes, so a trained sample three; what is frozen is passed once an image.
        passes = 3 * samples * share + training.tested * share + (1 - share) * (training.images + training.tested)
        line = lines.setdefault(training.candidate.variant, {"trainings": 0, "steps": 0, "samples": 0, "passes": 0.0})
        line["trainings"] += 1
        line["steps"] += settings.steps
        line["samples"] += samples
        line["passes"] += passes
    total = {key: sum(line[key] for line in lines.values()) for key in ("trainings", "steps", "samples", "passes")}
    return {
        **total,
        "hours": total["passes"] * speed.seconds / 3600,
        "flops": total["passes"] * speed.flops,
        "gpu_hours": total["passes"] * speed.flops / H100 / 3600,
        "methods": [
            {"variant": name, **line, "hours": line["passes"] * speed.seconds / 3600} for name, line in lines.items()
        ],
    }


def format_cost(cost: Mapping[str, Any]) -> list[str]:
    """Format the estimate of `Comparison.estimate` as lines of text."""
    lines = [
        f"{cost['trainings']:,} trainings, {cost['steps']:,} steps, {cost['samples']:,} samples",
        f"about {duration(cost['hours'] * 3600)} on this machine, {duration(cost['gpu_hours'] * 3600)} on one H100 "
        f"({cost['flops']:.2g} operations at 2e14 a second)",
    ]
    for line in sorted(cost["methods"], key=lambda line: -line["hours"]):
        lines.append(f"  {line['variant']:<14}{line['trainings']:>7,} trainings{duration(line['hours'] * 3600):>12}")
    reasons: dict[tuple[str, str], int] = {}
    for row in cost.get("refused", []):
        reasons[row["variant"], row["reason"]] = reasons.get((row["variant"], row["reason"]), 0) + 1
    return lines + [f"  left out: {count} of {variant}, {reason}" for (variant, reason), count in reasons.items()]


def check_hours(cost: Mapping[str, Any], *, max_hours: float, grid: str) -> None:
    """Raise UserError if the time on this machine is more than `max_hours`; name the cost and what would be cheaper."""
    if cost["hours"] <= max_hours:
        return
    slowest = max(cost["methods"], key=lambda line: line["hours"])
    raise UserError(
        f"grid '{grid}': {cost['trainings']:,} trainings would take about {duration(cost['hours'] * 3600)} on this "
        f"machine ({duration(cost['gpu_hours'] * 3600)} on one H100; {slowest['variant']} alone "
        f"{duration(slowest['hours'] * 3600)}), allowed are {max_hours:g} h; choose a smaller --grid, fewer "
        "--methods or training.epochs, or raise --max-hours"
    )
