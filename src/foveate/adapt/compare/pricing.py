"""What a comparison would take, said before it starts; a grid that nobody could finish is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.adapt.backbones.registry import view_of
from foveate.adapt.compare.grids import Candidate
from foveate.adapt.compare.plan import Plan
from foveate.adapt.load_backbone import Opened
from foveate.adapt.recipe import AdaptTraining
from foveate.core.errors import UserError
from foveate.core.progress import duration
from foveate.training.distributed import start

# Sustained operations a second of one H100 in training, two fifths of its TF32 peak: for scale, not a promise.
H100 = 2e14
_IMAGES = 8


@dataclass(frozen=True)
class Training:
    """One training to do: of which candidate, on how many images, measured on how many."""

    candidate: Candidate
    settings: AdaptTraining
    images: int
    measured: int


@dataclass(frozen=True)
class Speed:
    """Seconds and operations of one image's way through the network, forward."""

    seconds: float
    flops: float


@torch.no_grad()
def measured(opened: Opened, *, device: str = "auto") -> Speed:
    """One image's share of a small batch, the best of three behind a first one."""
    view = view_of(opened.model)
    size = opened.preprocess.side
    with start(device) as here:
        opened.model.to(here.device)
        channels = getattr(view.patch, "in_channels", 3)
        pixels = torch.zeros(_IMAGES, channels, size, size, device=here.device)
        with FlopCounterMode(display=False) as counter:
            view.features(pixels)
        seconds = min(_timed(view.features, pixels) for _ in range(3))
    return Speed(seconds / _IMAGES, counter.get_total_flops() / _IMAGES)


def _timed(call: Callable[[Tensor], Tensor], pixels: Tensor) -> float:
    began = time.monotonic()
    call(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize(pixels.device)
    return time.monotonic() - began


def price(plan: Plan, trainings: Sequence[Training], speed: Speed) -> dict[str, Any]:
    """Trainings, updates, visits, and time on this machine and on one H100.

    An epoch is three forward passes through the blocks that are not frozen (one forward, two backward); what is frozen
    is passed once an image and method.
    """
    lines: dict[str, dict[str, Any]] = {}
    for one in trainings:
        numbers = plan.of(one.candidate)
        settings = one.settings.resolved(one.images)
        visits = settings.steps * settings.batch_size
        share = numbers.share if one.settings.keep and not one.settings.flip else 1.0
        passes = 3 * visits * share + one.measured * share + (1 - share) * (one.images + one.measured)
        line = lines.setdefault(one.candidate.variant, {"trainings": 0, "updates": 0, "visits": 0, "passes": 0.0})
        line["trainings"] += 1
        line["updates"] += settings.steps
        line["visits"] += visits
        line["passes"] += passes
    total = {key: sum(line[key] for line in lines.values()) for key in ("trainings", "updates", "visits", "passes")}
    return {
        **total,
        "hours": total["passes"] * speed.seconds / 3600,
        "flops": total["passes"] * speed.flops,
        "gpu_hours": total["passes"] * speed.flops / H100 / 3600,
        "methods": [
            {"variant": name, **line, "hours": line["passes"] * speed.seconds / 3600} for name, line in lines.items()
        ],
    }


def words(priced: Mapping[str, Any]) -> list[str]:
    """The same in words."""
    lines = [
        f"{priced['trainings']:,} trainings, {priced['updates']:,} updates, {priced['visits']:,} visits of images",
        f"about {duration(priced['hours'] * 3600)} on this machine, {duration(priced['gpu_hours'] * 3600)} on one H100 "
        f"({priced['flops']:.2g} operations at 2e14 a second)",
    ]
    for line in sorted(priced["methods"], key=lambda one: -one["hours"]):
        lines.append(f"  {line['variant']:<14}{line['trainings']:>7,} trainings{duration(line['hours'] * 3600):>12}")
    reasons: dict[tuple[str, str], int] = {}
    for row in priced.get("left_out", []):
        reasons[row["variant"], row["why"]] = reasons.get((row["variant"], row["why"]), 0) + 1
    return lines + [f"  left out: {count} of {variant}, {why}" for (variant, why), count in reasons.items()]


def refuse_if_dear(priced: Mapping[str, Any], *, max_hours: float, grid: str) -> None:
    """Raises:
    UserError: when the time on this machine is more than `max_hours`, with the price and what would be cheaper.
    """
    if priced["hours"] <= max_hours:
        return
    dearest = max(priced["methods"], key=lambda line: line["hours"])
    raise UserError(
        f"grid '{grid}': {priced['trainings']:,} trainings would take about {duration(priced['hours'] * 3600)} on this "
        f"machine ({duration(priced['gpu_hours'] * 3600)} on one H100; {dearest['variant']} alone "
        f"{duration(dearest['hours'] * 3600)}), allowed are {max_hours:g} h; take a smaller --grid, fewer "
        "--methods or training.epochs, or raise --max-hours"
    )
