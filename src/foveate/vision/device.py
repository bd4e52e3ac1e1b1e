"""The device that a model is opened on."""

from __future__ import annotations

import torch

from foveate.core.devices import device_name


def choose_device(device: str = "auto") -> torch.device:
    """The device of a name such as "cpu", "cuda", "cuda:1", "mps"; "auto" is CUDA where there is one.

    Raises:
        UserError: when the device does not exist here.
    """
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device(device_name(device, cuda_devices=cuda, mps=torch.backends.mps.is_available()))
