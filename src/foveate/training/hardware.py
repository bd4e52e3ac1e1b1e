"""Peak rates and memory of devices by name, and the settings of a price. Loads torch only for "cpu"."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from foveate.core.devices import TrainingPrecision, fast_precision, usable_cores
from foveate.core.errors import UserError, nearest
from foveate.core.recipes import Settings

# One core of a server at 2.5 GHz with 512-bit fused multiply-add: 2 x 16 x 2.5e9, half of it for narrower machines.
_CORE_TFLOPS = 0.04


class PriceSettings(Settings):
    """The devices that a planned run is priced for."""

    devices: int = Field(1, ge=1, description="number of devices that a dry run assumes, one process each")
    hardware: str = Field(
        "cpu", description="device that a dry run assumes: cpu, a100-80gb, h100-80gb, h200, tpu-v5p, or name=TFLOPs,GB"
    )
    samples: float | None = Field(
        None,
        gt=0,
        description="training samples that a dry run assumes, for example 14.4e9; by default those of the recipe",
    )
    # Optimistic, so that days are a lower bound; docs/scaling.md compares it with the paper's run.
    mfu: float = Field(
        0.4, gt=0, le=1, description="model FLOPs utilization (share of the peak rate) that a dry run assumes"
    )


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
        tflops: peak of bfloat16 products with float32 sums, in 10^12 FLOPs a second, dense.
        wide_tflops: peak of float32 products, in which the losses are computed.
        gigabytes: memory, in 10^9 bytes.
        auto: what the training precision "auto" is here; by default the one of the higher rate.
    """

    name: str
    tflops: float
    wide_tflops: float
    gigabytes: float
    auto: Literal["fp32", "bf16"] | None = None

    def resolve_precision(self, precision: TrainingPrecision) -> Literal["fp32", "bf16"]:
        """Return the precision of a training here: "auto" is bf16 where the device multiplies it faster."""
        if precision == "auto":
            return self.auto or ("bf16" if self.tflops > self.wide_tflops else "fp32")
        return precision


# The numbers are from the vendors' data sheets. Foveate does not run on TPUs: the v5p is here to compare with the
# paper; a float32 product takes six bfloat16 passes there.
ACCELERATORS = {
    "a100-80gb": Hardware("a100-80gb", 312, 19.5, 80),
    "h100-80gb": Hardware("h100-80gb", 989, 67, 80),
    "h200": Hardware("h200", 989, 67, 141),
    "tpu-v5p": Hardware("tpu-v5p", 459, 459 / 6, 95),
}


def parse_hardware(text: str) -> Hardware:
    """Parse a device name, or "name=TFLOPs,GB" or "name=TFLOPs,GB,float32 TFLOPs".

    The float32 rate is a sixteenth of the peak by default (as of an A100). "cpu" is all cores of this machine and its
    memory.

    Raises:
        UserError: naming the known devices and the nearest name.
    """
    name, equals, values = text.partition("=")
    if not equals:
        if name == "cpu":
            import torch

            cores, rate = usable_cores(), usable_cores() * _CORE_TFLOPS
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
            # Both rates are alike for want of a number; what a training would choose here is known.
            precision = "bf16" if fast_precision(torch.device("cpu")) == torch.bfloat16 else "fp32"
            return Hardware(f"cpu ({cores} cores)", rate, rate, memory, precision)
        if name in ACCELERATORS:
            return ACCELERATORS[name]
        names = ["cpu", *ACCELERATORS]
        raise UserError(f"hardware '{name}': expected {', '.join(names)} or name=TFLOPs,GB{nearest(name, names)}")
    try:
        rates = [float(value) for value in values.split(",")]
    except ValueError:
        rates = []
    if len(rates) not in (2, 3) or not all(math.isfinite(rate) and rate > 0 for rate in rates) or not name:
        raise UserError(
            f"hardware '{text}': expected name=TFLOPs,GB or name=TFLOPs,GB,float32-TFLOPs with positive numbers, "
            "for example mine=165,24"
        )
    return Hardware(name, rates[0], rates[2] if len(rates) == 3 else rates[0] / 16, rates[1])
