"""Forward and backward of one step, of the batch as a whole or in parts that need less memory.

Plain accumulation is the rule: each part's mean loss is weighted by its share of all targets (rows, tokens) over parts
and ranks, and the gradients add up to that of the whole batch. An unweighted mean of parts would favor the targets of
parts that have few.

Contrastive tasks are the exception, for plain accumulation takes away negatives: each part would be contrasted with
itself only. Here the embeddings of all parts are computed first without gradient, the loss is taken over the whole
batch, and its gradient with respect to the embeddings is then carried through the networks part by part: the gradient
of the whole batch, with the memory of one part, for one more forward pass. Source: Gao et al. 2021, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983), section 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foveate.core.errors import UserError
from foveate.training.distributed import all_sum, world
from foveate.training.task import Batch, EmbeddingTask, Losses, Report, Task


def check_accumulation(task: Task, *, parts: int, rows: int) -> None:
    """Raise UserError if a process has fewer `rows` of a batch than `parts`."""
    if parts > rows:
        raise UserError(f"training.accumulate: more parts than a process has rows (got {parts}); expected 1 to {rows}")
    if parts > 1 and isinstance(task, EmbeddingTask):
        assert not task.find_unused_parameters, "cached embeddings need every parameter in every part"


def forward_and_backward(
    model: nn.Module, task: Task, batch: Batch, *, parts: int, precision: torch.dtype | None
) -> tuple[Losses, Report]:
    """Return the losses of a batch and leave the gradient of their "loss" in the parameters, which had none.

    Args:
        model: the task as it is called: itself, or wrapped by DDP or FSDP2.
        parts: 1 for the batch as a whole. More give the same gradient up to rounding, and where the networks draw
            random numbers, other ones.
        precision: of autocast; None for none.

    Returns:
        Losses and report of this rank, detached; their mean over ranks is that of the whole batch.
    """
    device = next(task.parameters()).device

    def autocast() -> torch.autocast:
        # autocast wants a dtype even where it is off.
        return torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)

    if isinstance(task, EmbeddingTask) and parts > 1:
        return _with_cached_embeddings(model, task, task.split(batch, parts), batch, autocast, device)
    return _weighted_parts(model, task, [batch] if parts == 1 else task.split(batch, parts), autocast)


def _weighted_parts(
    model: nn.Module, task: Task, pieces: Sequence[Batch], autocast: Callable[[], torch.autocast]
) -> tuple[Losses, Report]:
    """Run the parts one after another, each with its weight; their gradients add up in the parameters."""
    weights = _part_weights(task, pieces)
    losses: Losses = {}
    report: Report = {}
    for index, (piece, weight) in enumerate(zip(pieces, weights, strict=True)):
        # DDP takes its mean over ranks once, in the last part: one all-reduce a step whatever the number of parts.
        with contextlib.nullcontext() if index == len(pieces) - 1 else _without_sync(model):
            with autocast():
                terms, part_report = model(piece)
            if weight is not None:
                terms = {name: value * weight.get(name, weight["loss"]) for name, value in terms.items()}
                part_report = {name: value * weight.get(name, weight["loss"]) for name, value in part_report.items()}
                # Terms may have weights of their own, so the total is taken anew instead of being scaled.
                terms["loss"] = task.total(terms)
            terms["loss"].backward()
        for sums, values in ((losses, terms), (report, part_report)):
            for name, value in values.items():
                value = value.detach() if isinstance(value, Tensor) else value
                sums[name] = sums[name] + value if name in sums else value
    return losses, report


def _part_weights(task: Task, pieces: Sequence[Batch]) -> list[Mapping[str, float] | None]:
    """Weight of each mean in each part: targets of the part times world size, over the targets of all parts and ranks.

    The factor of the world size undoes the mean that DDP and FSDP take over ranks. None where all weights are 1.
    """
    ranks = world().size
    # The loader gives every rank the same number of rows, so that rows need no collective.
    rows_only = isinstance(task, EmbeddingTask) or type(task).count_targets is Task.count_targets
    if len(pieces) == 1 and (rows_only or ranks == 1):
        return [None]
    counts = [task.count_targets(piece) for piece in pieces]
    # Sorted, so that the ranks add up the same number at each position.
    names = sorted(counts[0])
    totals = torch.tensor([sum(count[name] for count in counts) for name in names], dtype=torch.float64)
    totals = totals * ranks if rows_only else all_sum(totals)
    of_all = dict(zip(names, totals.tolist(), strict=True))
    return [
        {name: ranks * value / of_all[name] if of_all[name] else 0.0 for name, value in count.items()}
        for count in counts
    ]


def _with_cached_embeddings(
    model: nn.Module,
    task: EmbeddingTask,
    pieces: Sequence[Batch],
    batch: Batch,
    autocast: Callable[[], torch.autocast],
    device: torch.device,
) -> tuple[Losses, Report]:
    outputs: list[dict[str, Tensor]] = []
    states: list[list[Tensor]] = []
    # First pass: embeddings of all parts. Without gradient, so that no activations are kept.
    with torch.no_grad(), autocast():
        for piece in pieces:
            states.append(_random_state(device))
            outputs.append(model(piece, call="embed"))
    # Parts may differ in rows (regions are ragged), so the size of each is needed to cut the gradient apart again.
    cached = {name: torch.cat([part[name] for part in outputs]).requires_grad_() for name in outputs[0]}
    sizes = {name: [len(part[name]) for part in outputs] for name in outputs[0]}
    # The concatenated copies are all that is needed from here on.
    del outputs

    # The loss over the whole batch; its gradient stops at the cached embeddings.
    with _without_sync(model):
        with autocast():
            losses, report = model(batch, call="loss_of", embeddings=cached)
        losses["loss"].backward()
    # Parameters that the loss itself has (temperature, bias): they are ready before the second pass begins.
    with_gradient = [parameter for parameter in task.parameters() if parameter.grad is not None]
    # A loss need not read every embedding: then its gradient is zero.
    gradients = {
        name: (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).split(sizes[name])
        for name, tensor in cached.items()
    }
    # Second pass: each part again, with gradient; the cached gradient enters where its embeddings leave.
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        with contextlib.nullcontext() if last else _without_sync(model):
            # Dropout must draw the same masks as in the first pass: the cached gradients belong to those embeddings.
            _set_random_state(device, states[index])
            with autocast():
                embeddings: dict[str, Tensor] = model(piece, call="embed")
            pairs = [(tensor, gradients[name][index]) for name, tensor in embeddings.items() if tensor.requires_grad]
            if last and isinstance(model, DistributedDataParallel):
                # Parameters of the loss have their gradient, but DDP waits for every parameter before it averages; a
                # gradient of zero marks them as ready.
                pairs += [(parameter * 1.0, torch.zeros_like(parameter)) for parameter in with_gradient]
            torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
    return losses, report


@contextlib.contextmanager
def _without_sync(model: nn.Module) -> Iterator[None]:
    """Let DDP add up gradients on each rank inside the block; FSDP2 still reduces them, which keeps them sharded."""
    with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
        yield


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the global generators that dropout reads, on the CPU and on the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
