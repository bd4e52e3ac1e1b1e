"""Devices by name, and the peak memory of this process. Loads torch only to choose a device."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.core.errors import UserError, choose

if TYPE_CHECKING:
    import torch


def peak_gigabytes() -> float:
    """Return the peak resident memory of this process so far, in GiB."""
    # Linux starts a child's `ru_maxrss` at its parent's, so /proc is read instead.
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def usable_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: str = "auto", *, cuda_devices: int, mps: bool, local_rank: int = 0) -> str:
    """Resolve "auto", "cpu", "cuda", "cuda:1" or "mps" to a full device name.

    Args:
        cuda_devices: number of CUDA devices; with at least one, "auto" is CUDA.
        mps: whether Apple's GPU is available; "auto" never chooses it, since some operators are missing there.
        local_rank: rank of this process on the machine, its CUDA device where the name has no number.

    Raises:
        UserError: the device does not exist on this machine.
    """
    if device == "auto":
        device = "cuda" if cuda_devices else "cpu"
    kind = choose(device.split(":")[0], ("cpu", "cuda", "mps"), "device")
    if kind == "cuda":
        if not cuda_devices:
            raise UserError("device 'cuda' is not available (no GPU or a PyTorch without CUDA); expected cpu or auto")
        number = device.partition(":")[2] or str(local_rank)
        if not number.isdecimal() or int(number) >= cuda_devices:
            raise UserError(f"device 'cuda:{number}' does not exist; expected cuda:0 to cuda:{cuda_devices - 1}")
        return f"cuda:{number}"
    if kind == "mps" and not mps:
        raise UserError("device 'mps' is not available on this machine; expected cpu or auto")
    return kind


def choose_device(device: str = "auto", *, local_rank: int = 0) -> torch.device:
    """Return the device of a name such as "cpu", "cuda:1", "mps"; "auto" is CUDA where there is one.

    Args:
        local_rank: see `device_name`.

    Raises:
        UserError: the device does not exist here.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    return torch.device(device_name(device, cuda_devices=cuda, mps=mps, local_rank=local_rank))
