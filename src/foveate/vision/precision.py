"""Device and precision that frozen networks run in."""

from __future__ import annotations

import torch

from foveate.core.devices import device_name

PRECISIONS = ("auto", "bfloat16", "float32")


def fast_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        # Emulated bfloat16 exists on old cards and is slower than float32.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16")):
            return torch.bfloat16
    return torch.float32


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of one of `PRECISIONS` on a device."""
    return fast_precision(device) if name == "auto" else getattr(torch, name)


def choose_device(device: str = "auto") -> torch.device:
    """Return the device of a name such as "cpu", "cuda:1", "mps"; "auto" is CUDA where there is one.

    Raises:
        UserError: when the device does not exist here.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device(device_name(device, cuda_devices=cuda, mps=torch.backends.mps.is_available()))
