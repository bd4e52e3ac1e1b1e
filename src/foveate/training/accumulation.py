"""Forward and backward of one step, whole or in parts with cached embeddings.

Plain gradient accumulation takes away negatives: each part would be contrasted with itself only. Here the embeddings
of all parts are made first without gradient, the loss is taken over the whole batch, and its gradient with respect to
the embeddings is then carried through the networks part by part: the gradient of the whole batch, with the memory of
one part, for one forward pass more. Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup" (arXiv 2101.06983), section 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foveate.core.errors import UserError
from foveate.training.task import Batch, EmbeddingTask, Losses, Report, Task


def check_accumulation(task: Task, *, parts: int, samples: int) -> None:
    """Refuses a split that cannot be done.

    Args:
        parts: of a process's batch. samples: in a process's batch.

    Raises:
        UserError: for a task whose loss does not go through embeddings, or more parts than samples.
    """
    if parts == 1:
        return
    if not isinstance(task, EmbeddingTask):
        raise UserError(
            f"training.accumulate {parts}: the loss of {type(task).__name__} cannot be split into parts of a batch; "
            "allowed is 1"
        )
    assert not task.find_unused_parameters, "parts of a batch need every parameter in every part"
    if parts > samples:
        raise UserError(
            f"training.accumulate {parts}: a process has {samples} samples of a batch; allowed are 1 to {samples}"
        )


def forward_and_backward(
    model: nn.Module, task: Task, batch: Batch, *, parts: int, precision: torch.dtype | None
) -> tuple[Losses, Report]:
    """The losses of a batch, with the gradient of their "loss" left in the parameters, which had none.

    Args:
        model: the task as it is called: itself, or wrapped by DDP or FSDP2.
        parts: 1 for the batch as a whole. More give the same gradient up to rounding, and where the networks draw
            random numbers, other ones.
        precision: of autocast; None for none.
    """
    device = next(task.parameters()).device

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)

    if parts == 1:
        with autocast():
            losses, report = model(batch)
        losses["loss"].backward()
        return losses, report

    assert isinstance(task, EmbeddingTask)
    pieces = task.split(batch, parts)
    made: list[dict[str, Tensor]] = []
    states: list[list[Tensor]] = []
    with torch.no_grad(), autocast():
        for piece in pieces:
            states.append(_random_state(device))
            made.append(model(piece, call="embed"))
    cached = {name: torch.cat([one[name] for one in made]).requires_grad_() for name in made[0]}
    sizes = {name: [len(one[name]) for one in made] for name in made[0]}
    del made

    with _without_sync(model):
        with autocast():
            losses, report = model(batch, call="loss_of", embeddings=cached)
        losses["loss"].backward()
    of_loss = [parameter for parameter in task.parameters() if parameter.grad is not None]
    gradients = {
        name: (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).split(sizes[name])
        for name, tensor in cached.items()
    }
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        with contextlib.nullcontext() if last else _without_sync(model):
            _set_random_state(device, states[index])
            with autocast():
                embeddings: dict[str, Tensor] = model(piece, call="embed")
            pairs = [(tensor, gradients[name][index]) for name, tensor in embeddings.items() if tensor.requires_grad]
            if last and isinstance(model, DistributedDataParallel):
                # Their gradient is there already, but DDP waits for every parameter before it takes the mean.
                pairs += [(parameter * 1.0, torch.zeros_like(parameter)) for parameter in of_loss]
            torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
    return losses, report


@contextlib.contextmanager
def _without_sync(model: nn.Module) -> Iterator[None]:
    """DDP adds up gradients on each rank inside the block; FSDP2 goes on reducing them, which keeps them sharded."""
    with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
        yield


def _random_state(device: torch.device) -> list[Tensor]:
    """State of the global generators that dropout reads, on the CPU and on the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
