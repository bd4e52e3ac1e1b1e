"""Timing side by side: alternated order, medians with quartiles, ratios with an interval, JSON and a table."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from foveate.core.files import write_json_atomically

_RESAMPLES = 2000
_SEED = 20_240_903


@dataclass(frozen=True)
class Timing:
    """The seconds of each repeat of one candidate, in the order in which they were measured.

    `processor` are the seconds that this process's threads spent computing: with one thread they hardly depend on what
    else the machine does. Work in other processes is not in them.
    """

    seconds: tuple[float, ...]
    processor: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        low, high = self.quartiles
        return {
            "median_s": self.median,
            "lower_quartile_s": low,
            "upper_quartile_s": high,
            "n": len(self.seconds),
            "seconds": list(self.seconds),
            "processor_seconds": list(self.processor),
        }


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is than the peer: median of the peer's seconds over ours, per repeat.

    `low` and `high` are the 95 % interval of the median over resampled repeats.
    """

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, Any]:
        return {"ratio": self.value, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        return f"{self.value:.2f}x ({self.low:.2f} to {self.high:.2f}, n {self.n})"


def compare(candidates: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Times every candidate `repeats` times, one after the other; every second round goes backwards.

    So that whatever else the machine does, and what a candidate leaves warm, falls on all of them alike.

    Args:
        candidates: name -> a call that does the whole work and has finished when it returns.
        warmup: rounds that are not counted.
    """
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    names = list(candidates)
    for round_number in range(warmup + repeats):
        for name in names if round_number % 2 == 0 else reversed(names):
            began = time.perf_counter(), time.process_time()
            candidates[name]()
            took = time.perf_counter() - began[0], time.process_time() - began[1]
            if round_number >= warmup:
                spent[name].append(took)
    columns = {name: [tuple(column) for column in zip(*values, strict=True)] for name, values in spent.items()}
    return {name: Timing(seconds, processor) for name, (seconds, processor) in columns.items()}


def ratio(timings: Mapping[str, Timing], ours: str, peer: str, *, processor: bool = False) -> Ratio:
    """The peer's time over ours (above 1: ours is faster), paired by round.

    Args:
        processor: of the seconds of computing instead of those of a clock on the wall.
    """
    ours_S, peer_S = (np.asarray(one.processor if processor else one.seconds) for one in (timings[ours], timings[peer]))
    pairs = peer_S / ours_S
    draws = np.random.default_rng(_SEED).integers(0, len(pairs), (_RESAMPLES, len(pairs)))
    low, high = np.percentile(np.median(pairs[draws], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(pairs)), float(low), float(high), len(pairs))


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, PyTorch and its threads, and the commit."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "commit": _commit(),
    }
    try:
        import torch
    except ImportError:
        return facts
    facts |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name(0)
    return facts


def publish(
    name: str,
    timings: Mapping[str, Timing],
    *,
    out: Path,
    ratios: Mapping[str, Ratio] | None = None,
    items: int | None = None,
    unit: str = "items",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Prints the table and writes `out/NAME.json`; returns its path.

    Args:
        items: what one call worked through; gives a column of `unit` per second.
    """
    table = Table(title=name)
    for column in ("candidate", "median s", "quartiles s", *([f"{unit}/s"] if items else [])):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for candidate, timing in timings.items():
        low, high = timing.quartiles
        rate = [f"{items / timing.median:,.0f}"] if items else []
        table.add_row(candidate, f"{timing.median:.4g}", f"{low:.4g} to {high:.4g}", *rate)
    console = Console()
    console.print(table)
    for pair, found in (ratios or {}).items():
        console.print(f"{pair}: {found}")
    result = {
        "kind": "benchmark",
        "name": name,
        "machine": machine(),
        "items": items,
        "unit": unit,
        "timings": {candidate: timing.as_json() for candidate, timing in timings.items()},
        "ratios": {pair: found.as_json() for pair, found in (ratios or {}).items()},
        **(extra or {}),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    write_json_atomically(path, result)
    console.print(f"written: {path}")
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
