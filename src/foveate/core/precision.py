"""The number formats that networks compute in. Loads torch only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

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
