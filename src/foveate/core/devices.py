"""Names of devices, as a user gives them."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from foveate.core.errors import UserError, choose


def peak_gigabytes() -> float:
    """The most memory of this process so far, in GiB.

    On Linux from /proc, since `ru_maxrss` begins there with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_name(device: str = "auto", *, cuda_devices: int, mps: bool, local_rank: int = 0) -> str:
    """The whole name ("cpu", "cuda:1", "mps") of what a user calls "auto", "cpu", "cuda", "cuda:1" or "mps".

    Args:
        cuda_devices: how many this machine has; with at least one, "auto" is CUDA.
        mps: whether it has Apple's.
        local_rank: number of this process on the machine: its CUDA device, where the name has none.

    Raises:
        UserError: when the device does not exist here.
    """
    if device == "auto":
        device = "cuda" if cuda_devices else "cpu"
    kind = choose(device.split(":")[0], ("cpu", "cuda", "mps"), "device")
    if kind == "cuda":
        if not cuda_devices:
            raise UserError("device 'cuda': this machine or this build of PyTorch has no CUDA; use cpu or auto")
        number = device.partition(":")[2] or str(local_rank)
        if not number.isdecimal() or int(number) >= cuda_devices:
            here = f"this machine has {cuda_devices}, cuda:0 to cuda:{cuda_devices - 1}"
            raise UserError(f"device 'cuda:{number}': {here}")
        return f"cuda:{number}"
    if kind == "mps" and not mps:
        raise UserError("device 'mps': not available here; use cpu or auto")
    return kind
