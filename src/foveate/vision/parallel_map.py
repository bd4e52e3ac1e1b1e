"""Parallel map: small frozen networks on the cores of a processor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_THREADS = 4


def map_on_cores(function: Callable[[Item], Result], items: Iterable[Item], *, device: torch.device) -> list[Result]:
    """Apply a function to every item, in order, several at a time; on a processor each call gets one core.

    A small network that shares all cores within each of its layers waits for the slowest core after each of them: on a
    busy machine that takes several times as long. On an accelerator the threads get its next inputs ready.
    """
    if device.type != "cpu":
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            return list(pool.map(function, items))
    cores = torch.get_num_threads()
    if cores == 1:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        # The number is each thread's own, but threads that are yet to come take the one that was set last.
        torch.set_num_threads(cores)
