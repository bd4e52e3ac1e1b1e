"""Estimate what a comparison takes before it starts; refuse a grid that nobody could finish."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveate.adapt.backbone import Backbone
from foveate.adapt.backbones import map_backbone
from foveate.adapt.compare.grids import Candidate, VariantGrid
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.prefix import frozen_extent
from foveate.adapt.recipe import AdaptTraining
from foveate.adapt.registry import get_method, parse_settings
from foveate.adapt.results import RefusedCandidate
from foveate.core.errors import UserError
from foveate.core.progress import duration
from foveate.training.costs import count_forward, time_call
from foveate.training.distributed import start
from foveate.training.price import Price, PricedStage, PriceSettings, parse_hardware

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
class ComparisonPlan:
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


def plan(
    network: LoadedBackbone, grid: VariantGrid, methods: Sequence[str], *, max_trained: int | None
) -> ComparisonPlan:
    """Try the shapes of every candidate on the network.

    Args:
        methods: names, see `VariantGrid.select`.
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
    return ComparisonPlan(left, sizes, refused, backbone.num_parameters())


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


@dataclass(frozen=True)
class PlannedTraining:
    """A training that is not finished: its candidate, settings, and numbers of training and test images."""

    candidate: Candidate
    settings: AdaptTraining
    images: int
    tested: int


@dataclass(frozen=True)
class ForwardSpeed:
    """Seconds and FLOPs of one image's forward pass."""

    seconds: float
    flops: float


_IMAGES = 8
# The times of a comparison elsewhere, for scale.
_ELSEWHERE = "h100-80gb"


@torch.no_grad()
def measure_speed(network: LoadedBackbone, *, device: str = "auto") -> ForwardSpeed:
    """Measure the forward pass of a small batch."""
    backbone = map_backbone(network.model, network.modules)
    size = network.preprocess.side
    with start(device) as here:
        network.model.to(here.device)
        channels = getattr(backbone.patch, "in_channels", 3)
        pixels = torch.zeros(_IMAGES, channels, size, size, device=here.device)
        flops = count_forward(lambda: backbone.features(pixels))
        seconds = time_call(lambda: backbone.features(pixels), here.device)
    return ForwardSpeed(seconds / _IMAGES, flops / _IMAGES)


def price_trainings(
    plan: ComparisonPlan, trainings: Sequence[PlannedTraining], speed: ForwardSpeed, **facts: Any
) -> Price:
    """Price trainings by variant on this machine, the longest first; `facts` are further ones of the price."""
    elsewhere, mfu = parse_hardware(_ELSEWHERE), PriceSettings().mfu
    seconds_elsewhere = 0.0
    lines: dict[str, list[tuple[int, int, float]]] = {}
    for training in trainings:
        settings = training.settings.resolve(training.images)
        samples = settings.steps * settings.batch_size
        caching = training.settings.cache and not training.settings.varies_images
        share = plan.size(training.candidate).recomputed if caching else 1.0
        # A backward pass costs two forward passes, so a trained sample three; what is frozen is passed once an image.
        passes = 3 * samples * share + training.tested * share + (1 - share) * (training.images + training.tested)
        rate = elsewhere.rate(elsewhere.resolve_precision(settings.precision))
        seconds_elsewhere += passes * speed.flops / (rate * mfu)
        lines.setdefault(training.candidate.variant, []).append((settings.steps, samples, passes))
    stages = []
    for name, rows in lines.items():
        steps, samples, passes = (sum(column) for column in zip(*rows, strict=True))
        stages.append(
            PricedStage(
                name=name,
                trainings=len(rows),
                steps=int(steps),
                samples=int(samples),
                seconds=passes * speed.seconds,
                flops=passes * speed.flops,
                facts={"passes": passes},
            )
        )
    reasons = Counter((row.variant, row.reason) for row in plan.refused)
    return Price(
        parameters_by_part={"backbone": plan.backbone},
        stages=sorted(stages, key=lambda stage: -stage.seconds),
        facts={
            f"seconds_on_{_ELSEWHERE}": seconds_elsewhere,
            **facts,
            "refused": [row.to_json() for row in plan.refused],
        },
        notes=[f"left out: {count} of {variant}, {reason}" for (variant, reason), count in reasons.items()],
    )


def check_hours(price: Price, *, max_hours: float, grid: str) -> None:
    """Raise UserError if the time on this machine is more than `max_hours`; name the cost and what would be cheaper."""
    totals = price.totals
    if totals["seconds"] <= max_hours * 3600:
        return
    slowest, elsewhere = price.stages[0], price.facts[f"seconds_on_{_ELSEWHERE}"]
    raise UserError(
        f"grid '{grid}': {totals['trainings']:,} trainings would take about {duration(totals['seconds'])} on this "
        f"machine ({duration(elsewhere)} on one {_ELSEWHERE}; {slowest.name} alone {duration(slowest.seconds)}), "
        f"allowed are {max_hours:g} h; choose a smaller --grid, fewer --methods or training.epochs, or raise "
        "--max-hours"
    )
