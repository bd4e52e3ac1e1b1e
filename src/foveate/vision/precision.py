"""In which precision frozen networks run: bfloat16 where the hardware multiplies it, else float32."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "bfloat16", "float32")


def fast_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16")):
            return torch.bfloat16
    return torch.float32


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of one of `PRECISIONS` on a device."""
    return fast_precision(device) if name == "auto" else getattr(torch, name)
