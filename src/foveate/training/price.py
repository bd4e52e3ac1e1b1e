"""Price of a training before it starts: FLOPs, memory and time of its stages on a device, and what would make it fit.

A wing counts the parts of its model (`foveate.training.costs`) and says what a sample is; time follows from the peak
rate of the hardware and the share of it that is reached (MFU). Communication between devices is not modeled: it is part
of that share. Loads torch only for the hardware "cpu".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, computed_field, model_serializer

from foveate.core.devices import TrainingPrecision, fast_precision, total_memory, usable_cores
from foveate.core.errors import UserError, nearest
from foveate.core.progress import duration
from foveate.core.recipes import Settings
from foveate.core.results import ResultModel
from foveate.training.settings import TrainingSettings

# One core of a server at 2.5 GHz with 512-bit fused multiply-add: 2 x 16 x 2.5e9, half of it for narrower machines.
_CORE_TFLOPS = 0.04


class PriceSettings(Settings):
    """The devices that a planned run is priced for."""

    devices: int = Field(1, ge=1, description="number of devices that a dry run assumes, one process each")
    hardware: str = Field(
        "cpu", description="device that a dry run assumes: cpu, a100-80gb, h100-80gb, h200, tpu-v5p, or name=TFLOPs,GB"
    )
    samples: float | None = Field(
        None,
        gt=0,
        description="training samples that a dry run assumes, for example 14.4e9; by default those of the recipe",
    )
    # Optimistic, so that days are a lower bound; docs/scaling.md compares it with the paper's run.
    mfu: float = Field(
        0.4, gt=0, le=1, description="model FLOPs utilization (share of the peak rate) that a dry run assumes"
    )


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
        tflops: peak of bfloat16 products with float32 sums, in 10^12 FLOPs a second, dense.
        wide_tflops: peak of float32 products, in which the losses are computed.
        gigabytes: memory, in 10^9 bytes.
        auto: what the training precision "auto" is here; by default the one of the higher rate.
    """

    name: str
    tflops: float
    wide_tflops: float
    gigabytes: float
    auto: Literal["fp32", "bf16"] | None = None

    def resolve_precision(self, precision: TrainingPrecision) -> Literal["fp32", "bf16"]:
        """Return the precision of a training here: "auto" is bf16 where the device multiplies it faster."""
        if precision == "auto":
            return self.auto or ("bf16" if self.tflops > self.wide_tflops else "fp32")
        return precision

    def rate(self, precision: str) -> float:
        """Return the peak FLOPs a second."""
        return (self.tflops if precision == "bf16" else self.wide_tflops) * 1e12


# The numbers are from the vendors' data sheets. Foveate does not run on TPUs: the v5p is here to compare with the
# paper; a float32 product takes six bfloat16 passes there.
ACCELERATORS = {
    "a100-80gb": Hardware("a100-80gb", 312, 19.5, 80),
    "h100-80gb": Hardware("h100-80gb", 989, 67, 80),
    "h200": Hardware("h200", 989, 67, 141),
    "tpu-v5p": Hardware("tpu-v5p", 459, 459 / 6, 95),
}


def parse_hardware(text: str) -> Hardware:
    """Parse a device name, or "name=TFLOPs,GB" or "name=TFLOPs,GB,float32 TFLOPs".

    The float32 rate is a sixteenth of the peak by default (as of an A100). "cpu" is all cores of this machine and its
    memory.

    Raises:
        UserError: naming the known devices and the nearest name.
    """
    name, equals, values = text.partition("=")
    if not equals:
        if name == "cpu":
            import torch

            cores, rate = usable_cores(), usable_cores() * _CORE_TFLOPS
            memory = total_memory() / 1e9
            # Both rates are alike for want of a number; what a training would choose here is known.
            precision = "bf16" if fast_precision(torch.device("cpu")) == torch.bfloat16 else "fp32"
            return Hardware(f"cpu ({cores} cores)", rate, rate, memory, precision)
        if name in ACCELERATORS:
            return ACCELERATORS[name]
        names = ["cpu", *ACCELERATORS]
        raise UserError(f"hardware '{name}': expected {', '.join(names)} or name=TFLOPs,GB{nearest(name, names)}")
    try:
        rates = [float(value) for value in values.split(",")]
    except ValueError:
        rates = []
    if len(rates) not in (2, 3) or not all(math.isfinite(rate) and rate > 0 for rate in rates) or not name:
        raise UserError(
            f"hardware '{text}': expected name=TFLOPs,GB or name=TFLOPs,GB,float32-TFLOPs with positive numbers, "
            "for example mine=165,24"
        )
    return Hardware(name, rates[0], rates[2] if len(rates) == 3 else rates[0] / 16, rates[1])


@dataclass(frozen=True)
class Stage:
    """One stage of a training as its wing counts it; FLOPs and bytes are of one sample.

    Attributes:
        training: settings from `resolve_training`.
        parameters: by part. trained: of them all. largest_unit: of the largest module that FSDP2 shards.
        forward, backward: FLOPs by part.
        repeated: FLOPs that are computed a second time to save memory.
        saved: bytes by use, of a sample that is in memory for its backward pass.
        loss_flops: of a step's losses over the whole batch, in float32; each device has its share of them.
        loss_bytes: number of devices -> bytes by use that the losses take on one, however the batch is accumulated.
        options: settings that would lower memory, as "field=value" -> `saved` with them.
        facts: what only this wing knows, by name, JSON values.
    """

    training: TrainingSettings
    parameters: Mapping[str, int]
    trained: int
    largest_unit: int
    forward: Mapping[str, float]
    backward: Mapping[str, float]
    saved: Mapping[str, float]
    name: str = ""
    repeated: float = 0.0
    loss_flops: float = 0.0
    loss_bytes: Callable[[int], Mapping[str, float]] = lambda devices: {}
    options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def change(self, **training: Any) -> Stage:
        """Return the stage with other training settings."""
        return replace(self, training=self.training.model_copy(update=training))


class _WithFacts(ResultModel):
    """A result whose `facts` are fields of its JSON object like all others."""

    facts: dict[str, Any] = {}

    @model_serializer(mode="wrap")
    def _merge_facts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return values | values.pop("facts")


class PricedStage(_WithFacts):
    """One stage of a price; a stage that was timed has no FLOPs by part and no memory.

    Attributes:
        trainings: how many of this kind. batch_size: 0 where they differ.
        trained: parameters.
        forward_per_sample: FLOPs by part and in all. flops_per_sample: the same with the backward passes.
        flops_per_step, flops: of all devices together, in a step and in all.
        loss_share: share of the time that goes into losses over the whole batch.
        memory_per_device: bytes by use and in all. memory_with: in all, with other settings.
    """

    name: str = ""
    trainings: int = 1
    steps: int = 0
    batch_size: int = 0
    samples: int = 0
    trained: int = 0
    parallel: str = ""
    devices: int = 1
    forward_per_sample: dict[str, float] = {}
    flops_per_sample: dict[str, float] = {}
    flops_per_step: float = 0.0
    flops: float = 0.0
    loss_share: float = 0.0
    seconds_per_step: float = 0.0
    samples_per_second: float = 0.0
    seconds: float
    memory_per_device: dict[str, float] = {}
    memory_with: dict[str, float] = {}
    fits: bool = True
    warnings: list[str] = []


class Price(_WithFacts):
    """What a run will take, stage by stage and in all; sizes in bytes.

    Attributes:
        hardware: name, TFLOP/s and GB of a device; may be empty where this machine was timed.
        mfu: share of the peak that is assumed; None where this machine was timed. notes: how the numbers were made.
    """

    parameters_by_part: dict[str, int]
    hardware: dict[str, Any] = {}
    devices: int = 1
    mfu: float | None = None
    stages: list[PricedStage]
    notes: list[str] = []
    warnings: list[str] = []

    @computed_field  # type: ignore[prop-decorator]
    @property
    def parameters(self) -> int:
        return sum(self.parameters_by_part.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def totals(self) -> dict[str, Any]:
        """Sums over the stages."""
        names = ("trainings", "steps", "samples", "flops", "seconds")
        sums = {name: sum(getattr(stage, name) for stage in self.stages) for name in names}
        days = sums["seconds"] / 86_400
        return sums | {"days": days, "device_days": days * self.devices}


def resolve_training(training: TrainingSettings, assumed: PriceSettings, *, name: str = "") -> TrainingSettings:
    """Return the settings of a stage as they are on the hardware that is priced.

    Raises:
        UserError: unknown hardware, or devices that do not divide the batch.
    """
    if training.batch_size % assumed.devices:
        # The largest power of two that divides the batch size and does not exceed `devices`.
        divisor = math.gcd(training.batch_size, 2 ** int(math.log2(assumed.devices)))
        where = f"stage '{name}': {assumed.devices} devices" if name else f"devices: {assumed.devices}"
        raise UserError(
            f"{where} do not divide batch_size {training.batch_size}; expected a divisor, for example {divisor}"
        )
    # A recipe's "auto" is resolved for the hardware that is priced, not for the machine that runs this.
    precision = parse_hardware(assumed.hardware).resolve_precision(training.precision)
    return training.model_copy(update={"precision": precision})


def price(stages: Sequence[Stage], assumed: PriceSettings) -> Price:
    """Price a training of several stages, whose settings are resolved; parameters are those of the last one."""
    device = parse_hardware(assumed.hardware)
    last = stages[-1]
    return Price(
        parameters_by_part=dict(last.parameters),
        hardware={
            "name": device.name,
            "tflops": device.rate(last.training.precision) / 1e12,
            "float32_tflops": device.wide_tflops,
            "gb": device.gigabytes,
        },
        devices=assumed.devices,
        mfu=assumed.mfu,
        stages=[_price_stage(stage, assumed, device) for stage in stages],
    )


def _price_stage(stage: Stage, assumed: PriceSettings, device: Hardware) -> PricedStage:
    training, devices = stage.training, assumed.devices
    batch = training.batch_size
    steps = training.steps if assumed.samples is None else max(1, round(assumed.samples / batch))
    forward, backward = sum(stage.forward.values()), sum(stage.backward.values())
    flops = batch * (forward + backward) * (1 + stage.repeated / (forward + backward))
    seconds_model = flops / devices / (device.rate(training.precision) * assumed.mfu)
    # Use the float32 peak: losses over the whole batch are computed without autocast.
    seconds_loss = stage.loss_flops / devices / (device.wide_tflops * 1e12 * assumed.mfu)
    seconds = seconds_model + seconds_loss
    memory, limit = memory_per_device(stage, devices), device.gigabytes * 1e9
    warnings = list(stage.warnings)
    if memory["total"] > limit:
        warnings.append(
            f"needs {memory['total'] / 1e9:,.1f} GB on each device, {device.name} has {device.gigabytes:,.4g} GB; "
            + _advise(stage, devices, limit)
        )
    if training.shard_size and devices % training.shard_size:
        raise UserError(f"training.shard_size: {training.shard_size} does not divide {devices} devices")
    if training.parallel == "fsdp" and devices == 1:
        warnings.append("training.parallel=fsdp has no effect with one device")
    others = {f"training.parallel={parallel}": stage.change(parallel=parallel) for parallel in ("ddp", "fsdp")}
    if training.parallel == "fsdp":
        others["training.offload=true"] = stage.change(offload=True)
    others |= {name: replace(stage, saved=saved) for name, saved in stage.options.items()}
    return PricedStage(
        name=stage.name,
        steps=steps,
        batch_size=batch,
        samples=steps * batch,
        trained=stage.trained,
        parallel=training.parallel,
        devices=devices,
        forward_per_sample={**stage.forward, "total": forward},
        flops_per_sample={
            **{part: stage.forward[part] + stage.backward[part] for part in stage.forward},
            "total": forward + backward,
        },
        flops_per_step=flops + stage.loss_flops,
        flops=(flops + stage.loss_flops) * steps,
        loss_share=seconds_loss / seconds,
        seconds_per_step=seconds,
        samples_per_second=batch / seconds,
        seconds=seconds * steps,
        memory_per_device=memory,
        memory_with={name: memory_per_device(other, devices)["total"] for name, other in others.items()},
        fits=memory["total"] <= limit,
        warnings=warnings,
        facts=dict(stage.facts),
    )


def optimizer_bytes(training: TrainingSettings, trained: int) -> int:
    """Return the bytes of the optimizer's moments in float32."""
    # AdaFactor keeps a row and a column of each matrix: about 2 in the square root of its size, and nothing in GB.
    return {"adamw": 8, "sgd": 4 if training.momentum else 0, "adafactor": 0}[training.optimizer] * trained


def memory_per_device(stage: Stage, devices: int) -> dict[str, float]:
    """Return the bytes in one process by use, and the `total`.

    Weights and gradients in float32 (frozen weights in bfloat16 where the settings say so), the optimizer's moments, an
    average where there is one; with DDP its buckets; with bf16 the narrow copies of the weights; then what is saved of
    the samples of one part of the process's share of the batch, and the losses.
    """
    training, trained = stage.training, float(stage.trained)
    frozen = float(sum(stage.parameters.values())) - trained
    sharded = training.parallel == "fsdp" and devices > 1
    share = (training.shard_size or devices) if sharded else 1
    # What waits in the host's memory takes none here but the units that compute.
    kept = 0 if sharded and training.offload else 1
    gathered = 2 if training.gathered_precision == "bf16" else 4
    # FSDP2 gathers a whole unit for its pass, and already prefetches the next one: two are in memory below.
    unit = float(stage.largest_unit) if sharded else 0.0
    narrow = training.precision == "bf16"
    frozen_bytes = 2 if narrow and training.frozen_precision == "bf16" else 4
    # Only one part's activations are in memory at a time, so accumulation lowers them.
    samples = training.batch_size / devices / training.accumulate
    memory = {
        # FSDP2 gathers whole units for their pass: one computes while the next is on its way, hence two.
        "weights": kept * (4 * trained + frozen_bytes * frozen) / share + 2 * gathered * unit,
        "gradients": kept * 4 * trained / share + 2 * gathered * unit,
        "optimizer": kept * optimizer_bytes(training, stage.trained) / share,
        "average": kept * 4 * trained / share if training.ema_decay is not None else 0.0,
        "ddp_buckets": 4 * trained if training.parallel == "ddp" and devices > 1 else 0.0,
        "narrow_weights": 2 * (unit if sharded else trained) if narrow and gathered == 4 else 0.0,
        **{use: samples * size for use, size in stage.saved.items()},
        **stage.loss_bytes(devices),
    }
    return memory | {"total": sum(memory.values())}


def _advise(stage: Stage, devices: int, limit: float) -> str:
    """Return the smallest change of settings with which a stage would fit into memory."""

    def fits(devices: int, **training: Any) -> bool:
        return memory_per_device(stage.change(**training), devices)["total"] <= limit

    training = stage.training
    per_device = training.batch_size // devices
    # Accumulation first: it needs no other hardware, and a loss over the batch keeps all negatives.
    for parallel in dict.fromkeys([training.parallel, "fsdp"] if devices > 1 else [training.parallel]):
        parts = training.accumulate
        while parts <= per_device:
            if fits(devices, accumulate=parts, parallel=parallel):
                changes = [f"training.accumulate={parts}"] if parts != training.accumulate else []
                changes += [f"training.parallel={parallel}"] if parallel != training.parallel else []
                return f"it fits with {' '.join(changes)} ({per_device // parts} samples at a time)"
            parts *= 2
    for more in (devices * 2**power for power in range(1, 15)):
        for parallel in ("ddp", "fsdp"):
            if training.batch_size % more == 0 and fits(more, parallel=parallel):
                return f"it fits with --devices {more} and training.parallel={parallel}"
    if sum(stage.loss_bytes(devices).values()) > limit:
        return (
            "the embeddings and matrices of the losses alone do not fit: lower training.batch_size, or set "
            "regions.row_chunk"
        )
    return "no number of devices helps: a smaller model, sample or training.batch_size does"


# Print a price: the same lines for all commands.


def format_price(price: Price) -> list[str]:
    """Describe a price in lines of text, for the command line."""
    lines = [f"parameters: {price.parameters:,} ({_join(price.parameters_by_part)})"]
    lines += _format_facts(price.facts)
    for stage in price.stages:
        lines += _format_stage(stage, price)
    totals, hardware = price.totals, price.hardware
    machine = f"{price.devices} x {hardware['name']} at MFU {price.mfu:g}" if price.mfu else "this machine"
    flops = f", {totals['flops']:.3g} FLOPs" if totals["flops"] else ""
    days = f", {totals['device_days']:,.4g} device-days" if price.devices > 1 else ""
    lines.append(f"in all: about {duration(totals['seconds'])} on {machine}{flops}{days}")
    lines += [f"note: {sentence}" for sentence in price.notes]
    return lines + [f"warning: {sentence}" for sentence in price.warnings]


def _format_stage(stage: PricedStage, price: Price) -> Iterator[str]:
    counts = [f"{stage.trainings:,} trainings"] if stage.trainings > 1 else []
    if stage.steps:
        counts.append(f"{stage.steps:,} steps" + (f" of {stage.batch_size:,} samples" if stage.batch_size else ""))
        counts.append(f"{stage.samples:,} samples in all")
    title = f"stage {stage.name}" if stage.name else "training"
    yield f"{title}: {', '.join([*counts, duration(stage.seconds)])}"
    if stage.trained:
        yield f"  trained parameters: {stage.trained:,}"
    if stage.flops_per_sample:
        forward = {part: flops / 1e9 for part, flops in stage.forward_per_sample.items() if part != "total"}
        total = stage.flops_per_sample["total"] / 1e9
        yield f"  GFLOPs per sample: {total:,.4g} with backward; forward {_join(forward, ',.3g')}"
        rate = f" at {price.hardware['tflops']:,.4g} TFLOP/s each" if price.mfu else ", timed here"
        losses = f", {stage.loss_share:.0%} of it in the loss matrices" if stage.loss_share else ""
        yield (
            f"  time: {stage.seconds_per_step:,.3g} s a step{rate}{losses}; "
            f"{stage.samples_per_second:,.4g} samples a second"
        )
    if stage.memory_per_device:
        memory = {name.replace("_", " "): size / 1e9 for name, size in stage.memory_per_device.items()}
        total, limit = memory.pop("total"), price.hardware["gb"]
        yield f"  memory per device in GB: {total:,.4g} of {limit:,.4g} ({_join(memory, ',.3g')})"
        others = {name: size / 1e9 for name, size in stage.memory_with.items() if size / 1e9 != total}
        if others:
            yield f"  memory with {_join(others, ',.4g')}"
    yield from (f"  {line}" for line in _format_facts(stage.facts))
    yield from (f"  warning: {sentence}" for sentence in stage.warnings)


def _format_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for name, value in facts.items():
        # Tables are for programs.
        if value and not (isinstance(value, list) and isinstance(value[0], Mapping)):
            yield f"{name.replace('_', ' ')}: {_format_value(name, value)}"


def _format_value(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_format_value(name, item)}" for key, item in value.items() if item)
    if isinstance(value, list):
        return ", ".join(_format_value(name, item) for item in value)
    if isinstance(value, bool | str):
        return "yes" if value is True else str(value)
    if "seconds" in name:
        return duration(value)
    if "bytes" in name:
        power = min(int(math.log10(max(value, 1)) // 3), 4)
        return f"{value / 1000**power:,.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _join(values: Mapping[str, float], form: str = ",") -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items() if value)
