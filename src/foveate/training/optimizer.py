"""Optimizer, learning-rate schedule, and the parameter table: rate, decay, freezing by rules on names."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveate.core.errors import UserError, nearest
from foveate.training.adafactor import ShardedAdafactor
from foveate.training.settings import TrainingSettings

# _NormBase is the base of batch and instance norms; PyTorch has no public name for it.
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class ParameterRule:
    """Rule for the parameters whose whole name matches `pattern` (a regular expression).

    `weight_decay=None` is the default: the recipe's decay on weights of two or more dimensions, none on
    biases, norms and one-dimensional parameters. Learning rates are the recipe's times `learning_rate_scale`.
    """

    pattern: str
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None
    frozen: bool = False


@dataclass(frozen=True)
class ParameterRow:
    """Learning rate, decay and freezing of one parameter; `rule` is the matching pattern or empty."""

    name: str
    shape: tuple[int, ...]
    rule: str
    learning_rate_scale: float
    weight_decay: float
    frozen: bool


def parameter_table(
    module: nn.Module, *, rules: Sequence[ParameterRule], settings: TrainingSettings
) -> list[ParameterRow]:
    """Resolve learning rate, decay and freezing of every parameter; the first rule that matches it applies.

    A parameter that came frozen (`requires_grad=False`) stays frozen.

    Raises:
        UserError: a rule is no regular expression, matches nothing, or is hidden by earlier ones.
    """
    compiled = [_compile(rule) for rule in rules]
    undecayed = _undecayed_names(module)
    used: set[int] = set()
    table = []
    names = [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        # The whole name: a rule for "norm" must not catch "normal_head.weight".
        index = next((i for i, pattern in enumerate(compiled) if pattern.fullmatch(name)), None)
        rule = ParameterRule("") if index is None else rules[index]
        if index is not None:
            used.add(index)
        default_decay = 0.0 if name in undecayed else settings.weight_decay
        table.append(
            ParameterRow(
                name=name,
                shape=tuple(parameter.shape),
                rule=rule.pattern,
                learning_rate_scale=rule.learning_rate_scale,
                weight_decay=default_decay if rule.weight_decay is None else rule.weight_decay,
                # Parameters that the model froze itself stay frozen: no rule unfreezes them.
                frozen=rule.frozen or not parameter.requires_grad,
            )
        )
    for index, rule in enumerate(rules):
        if index in used:
            continue
        if any(compiled[index].fullmatch(name) for name in names):
            raise UserError(
                f"parameter rule '{rule.pattern}' has no effect: earlier rules match all of its parameters. Move it up"
            )
        raise UserError(
            f"parameter rule '{rule.pattern}' matches no parameter (the whole name must match)"
            f"{nearest(re.sub(r'[^A-Za-z0-9_.]', '', rule.pattern), names)}"
        )
    return table


def _compile(rule: ParameterRule) -> re.Pattern[str]:
    try:
        return re.compile(rule.pattern)
    except re.error as error:
        raise UserError(f"parameter rule '{rule.pattern}' is not a regular expression: {error}") from error


def _undecayed_names(module: nn.Module) -> set[str]:
    """Collect names of one-dimensional parameters, biases and parameters of normalization layers."""
    names = set()
    for prefix, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            # Test the owner as well: a norm over several dimensions has a weight with as many, which must not decay
            # either.
            if parameter.ndim <= 1 or name == "bias" or isinstance(owner, _NORMS):
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def freeze(module: nn.Module, *, table: Sequence[ParameterRow]) -> None:
    """Turn off the gradient of frozen parameters, before wrapping: DDP and FSDP look at it.

    Raises:
        UserError: nothing is left to train.
    """
    parameters = dict(module.named_parameters())
    for row in table:
        parameters[row.name].requires_grad_(not row.frozen)
    if all(row.frozen for row in table):
        raise UserError("parameter rules freeze all parameters; leave at least one to train")


@contextlib.contextmanager
def frozen_in_bf16(module: nn.Module) -> Iterator[None]:
    """Hold the frozen parameters of `module` in bfloat16 within the block; afterwards they have their own bits again.

    Under autocast products round their weights to bfloat16 anyway, so little changes but memory: half of it, and no
    cast in every forward pass. The originals wait on the CPU, so what is exported afterwards is exact. FSDP2 shards
    cannot change their type: there `foveate.training.checkpoint.gather_weights` gives the originals.
    """
    originals: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            originals[name] = parameter.detach().cpu()
            # The parameter object stays, and with it whatever is tied to it.
            parameter.data = parameter.data.to(torch.bfloat16)
    module.full_precision = originals  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            if name in originals and not isinstance(parameter, DTensor):
                parameter.data = originals.pop(name).to(parameter.device)


def build_optimizer(
    module: nn.Module, *, table: Sequence[ParameterRow], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov and Hutter 2019), or SGD or AdaFactor in PyTorch's form, over trainable rows.

    SGD has Nesterov momentum. AdaFactor (Shazeer and Stern 2018) has an absolute learning rate and no momentum.

    Built after sharding, because FSDP2 replaces the parameters. Parameters are grouped by learning rate and decay; each
    group has its `learning_rate_scale`.
    """
    parameters = dict(module.named_parameters())
    # Few groups with many parameters: fused kernels run once a group.
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for row in table:
        if not row.frozen:
            groups.setdefault((row.learning_rate_scale, row.weight_decay), []).append(parameters[row.name])
    devices = {parameter.device.type for group in groups.values() for parameter in group}
    listed = [
        {"params": group, "weight_decay": decay, "learning_rate_scale": scale}
        for (scale, decay), group in groups.items()
    ]
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(listed, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0)
    if settings.optimizer == "adafactor":
        # PyTorch multiplies the rate by max(eps[1], RMS of the parameter). With 1 it is the rate itself for all but
        # large parameters, as in AXLearn (multiply_by_parameter_scale=False); the default would take MM1.5's 1e-5 as a
        # hundred times less.
        is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters.values())
        kind = ShardedAdafactor if is_sharded else torch.optim.Adafactor
        return kind(listed, lr=settings.learning_rate, eps=(None, 1.0))
    return torch.optim.AdamW(
        listed,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.eps,
        fused=devices <= {"cpu", "cuda"},  # one pass over memory; other devices have no such kernel
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, *, learning_rate: float) -> None:
    """Set every group to `learning_rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["learning_rate_scale"]


def format_table(table: Sequence[ParameterRow]) -> str:
    """Format the table as text: one line per parameter with its shape, learning-rate factor, decay and rule."""
    width = max((len(row.name) for row in table), default=4)
    lines = [f"{'parameter':<{width}}  {'shape':<18} {'rate':>6} {'decay':>6}  rule"]
    for row in table:
        shape = "x".join(map(str, row.shape)) or "scalar"
        rate, decay = ("frozen", "-") if row.frozen else (f"{row.learning_rate_scale:g}", f"{row.weight_decay:g}")
        lines.append(f"{row.name:<{width}}  {shape:<18} {rate:>6} {decay:>6}  {row.rule or '(default)'}")
    return "\n".join(lines)


# Schedules as pure functions: step (from 0) -> factor of the peak learning rate. They are evaluated once a step on each
# rank. Nothing is stepped, so resuming needs no state and nothing can be stepped twice.


def warmup(step: int, *, warmup_steps: int) -> float:
    """Rise linearly from 1/warmup_steps to 1 over the first `warmup_steps` steps, then stay at 1."""
    # Warmup starts above 0, because a step at rate 0 would change nothing.
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def constant(step: int, *, warmup_steps: int) -> float:
    """Stay at 1 after the warm-up."""
    return warmup(step, warmup_steps=warmup_steps)


def cosine(step: int, *, steps: int, warmup_steps: int, final: float = 0.0) -> float:
    """Fall as half a cosine from 1 to `final` after the warm-up (Loshchilov and Hutter 2017, eq 5, one cycle)."""
    if step < warmup_steps:
        return warmup(step, warmup_steps=warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(step: int, *, steps: int, warmup_steps: int, decay_fraction: float, final: float = 0.0) -> float:
    """Warm up, stay at 1, then fall linearly to `final` over the last `decay_fraction` of all steps.

    Hu et al. 2024 (MiniCPM, section 4) name it; the linear form of the decay is Hägele et al. 2024.
    """
    if step < warmup_steps:
        return warmup(step, warmup_steps=warmup_steps)
    # A short training may leave less room than `decay_fraction` asks for: the decay never reaches into the warm-up.
    decay_steps = max(1, min(round(decay_fraction * steps), steps - warmup_steps))
    progress = min(1.0, max(0.0, (step - (steps - decay_steps)) / decay_steps))
    return 1 - (1 - final) * progress


def learning_rate_factor(step: int, *, settings: TrainingSettings) -> float:
    """Return the factor of the schedule that `settings` names, at `step`, counted from 0."""
    if settings.schedule == "constant":
        return constant(step, warmup_steps=settings.warmup_steps)
    final = settings.final_learning_rate_fraction
    if settings.schedule == "cosine":
        return cosine(step, steps=settings.steps, warmup_steps=settings.warmup_steps, final=final)
    return wsd(
        step,
        steps=settings.steps,
        warmup_steps=settings.warmup_steps,
        decay_fraction=settings.decay_fraction,
        final=final,
    )
