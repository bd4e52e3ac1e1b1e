"""Devices by name, their number formats, and the memory of this process; loads torch only when called."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foveate.core.errors import UserError, choose

if TYPE_CHECKING:
    import torch


def peak_gigabytes() -> float:
    """Return the peak resident memory of this process so far, in GiB."""
    # Linux starts a child's `ru_maxrss` at its parent's, so /proc is read instead.
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 2**20
    if os.name == "nt":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def tree_gigabytes() -> float:
    """Return the memory of this process and of all below it now, in GiB; what they share is counted once.

    Outside Linux the peak of this process alone, since only there the kernel tells what is shared.
    """
    kilobytes, pids = 0, [os.getpid()]
    while pids:
        process = Path("/proc", str(pids.pop()))
        # A process may end between two lines.
        with contextlib.suppress(OSError):
            kilobytes += int((process / "smaps_rollup").read_text(encoding="ascii").split("Pss:")[1].split()[0])
            for children in process.glob("task/*/children"):
                pids += map(int, children.read_text(encoding="ascii").split())
    return kilobytes / 2**20 or peak_gigabytes()


def available_memory() -> int:
    """Return the bytes that are available without swapping: the kernel's estimate where there is one."""
    import psutil

    return psutil.virtual_memory().available


def total_memory() -> int:
    """Return the bytes of this machine's memory."""
    import psutil

    return psutil.virtual_memory().total


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


# The number formats that networks compute in. Loads torch only when called.


PRECISIONS = ("auto", "bfloat16", "float32")
TrainingPrecision = Literal["fp32", "bf16", "auto"]


def fast_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, else float32."""
    import torch

    if device.type == "cuda":
        # PyTorch answers for its current device, which need not be this one.
        with torch.cuda.device(device):
            # Emulated bfloat16 exists on old cards and is slower than float32.
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16")):
            return torch.bfloat16
    return torch.float32


def emulates_bf16(device: torch.device) -> bool:
    """Return whether a device is known to be an x86 processor without instructions for bfloat16."""
    import torch

    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    return torch.cpu.get_capabilities().get("architecture") == "x86_64" and fast_precision(device) == torch.float32


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of one of `PRECISIONS` on a device."""
    import torch

    return fast_precision(device) if name == "auto" else getattr(torch, name)


def autocast_dtype(precision: TrainingPrecision, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast in a training on a device, None for a training without; "auto" is the faster one."""
    import torch

    if precision == "auto":
        return torch.bfloat16 if fast_precision(device) == torch.bfloat16 else None
    return torch.bfloat16 if precision == "bf16" else None


# The C library's allocator: keep freed memory for the next layer of a network. No torch.


# `mallopt`'s parameters, from glibc's malloc.h, with the values that commands run with.
_OPTIONS = {
    -8: 1,  # M_ARENA_MAX: threads share one heap; those of the other arenas are given back at 64 MB
    -1: 1 << 30,  # M_TRIM_THRESHOLD: give the end of the heap back only from 1 GiB on
    # M_MMAP_THRESHOLD: below 128 MiB no mapping that ends with its tensor. Larger tensors are few, and would leave
    # holes that nothing else fits.
    -3: 1 << 27,
    -2: 1 << 26,  # M_TOP_PAD: grow by 64 MiB at a time
}


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next allocation; return whether it was told.

    A network allocates and frees the same megabytes in every layer. By default glibc gives most of them back to the
    system, which fills every page with zeros when it is used again: on two cores with AMX the frozen features of an
    image took 6.3 ms with that and 4.2 ms without. For processes of Foveate's own, early, before there are threads: a
    library must not decide this for the program that imports it. Other C libraries are left as they are, and so is
    glibc where an environment variable tunes it.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        # Only glibc knows this name: other libraries refuse it, and Windows has no such call.
        os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # A list: all are set, even where one is refused.
    return all([mallopt(option, value) == 1 for option, value in _OPTIONS.items()])
