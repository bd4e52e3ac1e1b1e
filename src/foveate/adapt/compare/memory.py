"""What one update of the weights holds at its peak, counted tensor by tensor; the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from foveate.training.task import Batch, Task


def update_bytes(task: Task, batch: Batch) -> int:
    """Bytes of the weights, their gradients, AdamW's two moments, and what one forward pass saves for the backward one.

    Each storage is counted once. Working memory of single operations and of the allocator is not in it.
    """
    weights = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in task.parameters()}
    trained = sum(value.numel() * value.element_size() for value in task.parameters() if value.requires_grad)
    saved: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return value

    devices = [value.device for value in task.parameters() if value.is_cuda][:1]
    training = task.training
    task.train()
    with torch.random.fork_rng(devices=devices), torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        losses, _ = task.losses(batch)
    del losses
    task.train(training)
    return sum(weights.values()) + 3 * trained + sum(saved.values())
