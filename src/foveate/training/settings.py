"""Training settings: the fields of a recipe's `training` part."""

from __future__ import annotations

import warnings
from typing import Literal

from pydantic import Field, model_validator

from foveate.core.devices import TrainingPrecision
from foveate.core.recipes import Settings


class TrainingSettings(Settings):
    """Length, batch, optimizer, precision, evaluation and checkpoints of a training. Lengths are counted in steps."""

    steps: int = Field(ge=1, description="total number of steps")
    batch_size: int = Field(ge=1, description="samples of one step over all processes together")
    accumulate: int = Field(
        default=1,
        ge=1,
        description="parts of each process's share of a batch: same gradient, less memory; contrastive tasks pay one "
        "more forward pass",
    )
    learning_rate: float = Field(gt=0, description="peak learning rate, before the factors of parameter rules")
    optimizer: Literal["adamw", "sgd", "adafactor"] = Field(
        default="adamw",
        description="adamw; sgd = with Nesterov's momentum; adafactor = factored second moments, little memory",
    )
    weight_decay: float = Field(
        default=0.1, ge=0, description="on weights of two or more dimensions; decoupled, but L2 with sgd"
    )
    # Betas and eps of CLIP's vision transformers (Radford et al. 2021, table 18), not PyTorch's.
    betas: tuple[float, float] = Field(default=(0.9, 0.98), description="AdamW's two decay rates, each in [0, 1)")
    eps: float = Field(default=1e-6, gt=0, description="AdamW's epsilon")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd; 0 = plain gradient descent")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        default="cosine", description="cosine; wsd = warm-up, stable, decay; constant after the warm-up"
    )
    decay_fraction: float = Field(default=0.2, gt=0, le=1, description="wsd: share of the steps that decays")
    final_learning_rate_fraction: float = Field(
        default=0.0, ge=0, le=1, description="cosine and wsd: learning rate at the end over the peak"
    )
    gradient_clip_norm: float | None = Field(default=1.0, gt=0, description="maximum global gradient norm")
    precision: TrainingPrecision = Field(
        default="fp32",
        description="bf16 = autocast, weights stay fp32; auto = bf16 where the device multiplies it in hardware",
    )
    frozen_precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="of frozen parameters while training; bf16 halves their memory if precision is bf16 as well",
    )
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="moving average of the weights over steps")
    seed: int = Field(default=0, ge=0, description="decides order, views, drawn texts and dropout")
    log_every: int = Field(default=10, ge=1, description="steps between two rows of metrics.jsonl")
    evaluate_every: int | None = Field(
        default=None, ge=1, description="steps between two evaluations, the last step included; unset = no evaluation"
    )
    monitor: str | None = Field(
        default=None, description="evaluation metric that decides the best checkpoint and early stopping"
    )
    monitor_mode: Literal["min", "max"] = Field(
        default="min", description="whether a lower or a higher metric is better"
    )
    ties: Literal["earlier", "later"] = Field(
        default="earlier", description="which of two equal evaluations is the best; later = a tie counts as improvement"
    )
    patience: int | None = Field(
        default=None, ge=1, description="evaluations without improvement after which training stops; unset = never"
    )
    restore_best: bool = Field(
        default=False, description="end with the weights of the best evaluation instead of those of the last step"
    )
    checkpoint_every: int = Field(default=500, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="number of newest checkpoints to keep")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="several processes: ddp = full copies; fsdp = weights and optimizer sharded",
    )
    shard_size: int | None = Field(
        default=None,
        ge=2,
        description="fsdp: processes that share one copy of the weights, such as those of a node; all by default",
    )
    gathered_precision: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="fsdp: of weights while their block computes; bf16 halves traffic and memory of a gather; "
        "gradients are summed in fp32",
    )
    offload: bool = Field(
        default=False, description="fsdp: weights, gradients and optimizer wait in the host's memory; slower"
    )
    activation_checkpointing: bool = Field(
        default=False,
        description="compute the activations of each trained block again in the backward pass: less memory, about a "
        "third more time",
    )
    compile: bool = Field(
        default=False, description="compile each block with torch.compile, which takes minutes at the start"
    )
    checkpoints: Literal["gathered", "sharded"] = Field(
        default="gathered",
        description="gathered = one process writes whole tensors; sharded = each process writes its own part, on a "
        "disk that all share",
    )
    workers: int = Field(default=2, ge=0, description="loader threads per process; 0 = load in the main thread")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: out of range (got {self.betas}); expected values in [0, 1)")
        if self.warmup_steps >= self.steps and self.warmup_steps > 0:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        if self.frozen_precision == "bf16" and self.precision == "fp32":
            raise ValueError(
                "frozen_precision: bf16 needs precision bf16 or auto (got fp32); dtypes do not match without autocast"
            )
        if self.gathered_precision == "bf16" and self.precision == "fp32":
            raise ValueError("gathered_precision: bf16 needs precision bf16 or auto (got fp32)")
        # Compare with defaults: a saved recipe lists all fields as set, most of them with their defaults.
        changed = {
            name for name in self.model_fields_set if getattr(self, name) != type(self).model_fields[name].default
        }
        for name, owner in (("betas", "adamw"), ("eps", "adamw"), ("momentum", "sgd")):
            if name in changed and self.optimizer != owner:
                warnings.warn(f"{name} has no effect with optimizer '{self.optimizer}'", stacklevel=2)
        for name in ("shard_size", "gathered_precision", "offload"):
            if name in changed and self.parallel != "fsdp":
                warnings.warn(f"{name} has no effect with parallel '{self.parallel}'", stacklevel=2)
        if "decay_fraction" in changed and self.schedule != "wsd":
            warnings.warn(f"decay_fraction has no effect with schedule '{self.schedule}'", stacklevel=2)
        if "final_learning_rate_fraction" in changed and self.schedule == "constant":
            warnings.warn("final_learning_rate_fraction has no effect with schedule 'constant'", stacklevel=2)
        for name in ("patience", "restore_best", "monitor_mode", "ties"):
            if name in changed and self.monitor is None:
                raise ValueError(
                    f"{name}: has no effect without monitor (got none); expected a metric of the evaluation"
                )
        return self
