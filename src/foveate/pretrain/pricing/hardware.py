"""Devices by name: their peaks and memory, for prices. No torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from foveate.core.errors import UserError, nearest

# One core of a server at 2.5 GHz with 512-bit fused multiply-add: 2 x 16 x 2.5e9, half of it for narrower machines.
_CORE_TFLOPS = 0.04


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
        tflops: peak of bfloat16 products with float32 sums, in 10^12 FLOPs a second, dense.
        wide_tflops: peak of float32 products, in which the losses are computed.
        gigabytes: memory, in 10^9 bytes.
    """

    name: str
    tflops: float
    wide_tflops: float
    gigabytes: float


# Peaks and memory from the vendors' data sheets. A TPU runs no PyTorch program of ours: it is there for the paper.
ACCELERATORS = {
    "a100-80gb": Hardware("a100-80gb", 312, 19.5, 80),
    "h100-80gb": Hardware("h100-80gb", 989, 67, 80),
    "h200": Hardware("h200", 989, 67, 141),
    "tpu-v5p": Hardware("tpu-v5p", 459, 459 / 6, 95),
}


def hardware_of(text: str) -> Hardware:
    """The hardware of a name, or of "name=TFLOPs,GB" or "name=TFLOPs,GB,float32 TFLOPs".

    Float32 products are taken as a sixteenth of the peak where they are not given (an A100's share). "cpu" is all
    cores of this machine and its memory.

    Raises:
        UserError: naming what is known and the nearest name.
    """
    name, equals, numbers = text.partition("=")
    if not equals:
        if name == "cpu":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
            return Hardware(f"cpu ({cores} cores)", cores * _CORE_TFLOPS, cores * _CORE_TFLOPS, memory)
        if name in ACCELERATORS:
            return ACCELERATORS[name]
        names = ["cpu", *ACCELERATORS]
        raise UserError(f"hardware '{name}': allowed are {', '.join(names)} or name=TFLOPs,GB{nearest(name, names)}")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if len(values) not in (2, 3) or not all(math.isfinite(value) and value > 0 for value in values) or not name:
        raise UserError(
            f"hardware '{text}': write name=TFLOPs,GB or name=TFLOPs,GB,float32-TFLOPs with positive numbers, "
            "for example mine=165,24"
        )
    return Hardware(name, values[0], values[2] if len(values) == 3 else values[0] / 16, values[1])
