"""Cost of training a multimodal LLM before anything is allocated: parameters, tokens, FLOPs, memory and steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from transformers import PretrainedConfig

from foveate.core.errors import UserError
from foveate.core.progress import duration
from foveate.mllm.part_costs import Experts, ModelShape, PartCost, count_built_vision, count_language, count_vision
from foveate.mllm.recipe import MllmPriceSettings, MllmRecipe
from foveate.mllm.stages import build_stage_model
from foveate.multimodal.model import MultimodalModel
from foveate.training.costs import ModuleCost, count_parameters, state_bytes
from foveate.training.hardware import PriceSettings, parse_hardware
from foveate.training.settings import TrainingSettings

PARTS = ("tower", "connector", "regions", "language")
_PRICE, _SAMPLE = PriceSettings(), MllmPriceSettings()
# Assumed size of a dry run's images: photographs of most data sets are about that large.
_MEAN_IMAGE = (480, 640)


@dataclass(frozen=True)
class StageShape:
    """One stage of a training.

    Attributes:
        views: views of a mean sample, overviews included. text_tokens: tokens of a mean sample's text.
        answer_tokens: those that a loss is computed of.
        trained: parts that are trained; the others only go forward.
        runs_language: whether the language model runs at all.
    """

    name: str
    training: TrainingSettings
    views: float
    text_tokens: float
    answer_tokens: float
    trained: tuple[str, ...] = ("tower", "connector", "language")
    runs_language: bool = True


def price(
    shape: ModelShape,
    stages: Sequence[StageShape],
    *,
    devices: int = _PRICE.devices,
    hardware: str = _PRICE.hardware,
    mfu: float = _PRICE.mfu,
) -> dict[str, Any]:
    """Estimate a training stage by stage, as JSON values: sizes in bytes and FLOPs, times in seconds and days.

    Args:
        devices: processes, each with one device of `hardware`. mfu: share of the peak that is reached.

    Raises:
        UserError: shapes that do not fit together, unknown parts or hardware, a batch that devices do not divide.
    """
    # Stages of one precision have the same costs, which take seconds to count.
    counted = cache(lambda precision: count_vision(shape, precision))
    return _price(
        lambda stage: counted(stage.training.precision),
        shape.language,
        stages,
        experts=shape.experts,
        devices=devices,
        hardware=hardware,
        mfu=mfu,
    )


def price_recipe(
    recipe: MllmRecipe,
    *,
    images: int = _SAMPLE.images,
    text_tokens: float = _SAMPLE.text_tokens,
    answer_tokens: float = _SAMPLE.answer_tokens,
    devices: int = _PRICE.devices,
    hardware: str = _PRICE.hardware,
    mfu: float = _PRICE.mfu,
) -> dict[str, Any]:
    """Estimate the training of a recipe, all stages, with its tower and connector as they are; see `price`.

    A stage without texts does not run the language model. A region encoder counts with its parameters and their state,
    not with its FLOPs: a sample has few regions. Heads, positions and indicators, some thousands of
    parameters and tens of tokens, are left out, and the table of tokens is counted at all positions. The tower's
    features are computed in every step: frozen ones that are cached cost less.

    Args:
        images: of a mean sample, of 480 x 640 pixels each.
        text_tokens: of a mean conversation, `answer_tokens` of them the answer's.
    """
    stages: list[StageShape] = []
    models: dict[str, MultimodalModel] = {}
    for stage in recipe.stages:
        # Build without memory: the largest recipes are priced on a laptop.
        with torch.device("meta"):
            model = build_stage_model(recipe, stage)
        models[stage.name] = model
        conversations = stage.max_conversations if stage.texts else 0
        frozen = all(not weight.requires_grad for weight in model.tower.parameters())
        rates = {
            "tower": 0 if frozen else stage.tower_factor,
            "connector": stage.connector_rate,
            "regions": model.region_reader is not None,
            "language": stage.language_rate if stage.texts else 0,
        }
        trained = [name for name in PARTS if rates[name]]
        stages.append(
            StageShape(
                stage.name,
                stage.training,
                len(model.plan(*[_MEAN_IMAGE] * images).views),
                conversations * text_tokens,
                conversations * answer_tokens,
                tuple(trained),
                runs_language=stage.texts,
            )
        )
    counted: dict[tuple[tuple[int, ...], str], tuple[dict[str, PartCost], int]] = {}

    def count(stage: StageShape) -> tuple[dict[str, PartCost], int]:
        model, precision = models[stage.name], stage.training.precision
        # Counting takes seconds, and stages differ in the size of their views at most.
        key = (model.tower.feature_shape, precision)
        if key not in counted:
            counted[key] = count_built_vision(model.tower, model.connector, precision)
            if model.region_reader is not None:
                size = count_parameters(model.region_reader)
                cost = ModuleCost(0.0, 0.0, 0.0, 0.0, 0, 1, model.width)
                counted[key][0]["regions"] = PartCost(size, size, size, cost)
        return counted[key]

    options = recipe.model.experts
    return _price(
        count,
        models[stages[-1].name].language_model.config,
        stages,
        experts=None if options is None else Experts(options.num_experts, divisor=options.width_divisor),
        devices=devices,
        hardware=hardware,
        mfu=mfu,
    )


def _price(
    count: Callable[[StageShape], tuple[dict[str, PartCost], int]],
    language: PretrainedConfig,
    stages: Sequence[StageShape],
    *,
    experts: Experts | None,
    devices: int,
    hardware: str,
    mfu: float,
) -> dict[str, Any]:
    device = parse_hardware(hardware)
    result: dict[str, Any] = {"stages": [], "hardware": {"name": device.name, "gb": device.gigabytes}, "mfu": mfu}
    for stage in stages:
        # A recipe's "auto" is resolved for the hardware that is priced, not for the machine that runs this.
        precision = device.resolve_precision(stage.training.precision)
        settings = stage.training.model_copy(update={"precision": precision})
        stage = replace(stage, training=settings)
        if unknown := set(stage.trained) - set(PARTS):
            raise UserError(f"stage '{stage.name}': no part {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
        if settings.batch_size % devices:
            raise UserError(f"stage '{stage.name}': {devices} devices do not divide batch_size {settings.batch_size}")
        view_parts, view_tokens = count(stage)
        length = round(stage.views * view_tokens + stage.text_tokens)
        parts = view_parts | {"language": count_language(language, length, experts, precision)}
        limit = getattr(language, "max_position_embeddings", None)
        flops = step_flops(parts, stage)
        memory = memory_per_device(parts, stage, vocabulary=language.vocab_size, devices=devices)
        peak = device.tflops if precision == "bf16" else device.wide_tflops
        seconds = settings.batch_size * flops["total"] / devices / (peak * 1e12 * mfu)
        named = {name: part.parameters for name, part in parts.items()}
        # Each stage overwrites the last: the numbers are those of the model that comes out.
        result |= {"parameters": sum(named.values()), "parameters_by_part": named, "view_tokens": view_tokens}
        result["parameters_active"] = sum(part.active for part in parts.values())
        result["stages"].append(
            {
                "name": stage.name,
                "trained": sum(named[name] for name in stage.trained),
                "image_tokens": round(stage.views * view_tokens),
                "sequence": length,
                "steps": settings.steps,
                "batch_size": settings.batch_size,
                "parallel": settings.parallel,
                "tokens": length * settings.batch_size * settings.steps,
                "flops_per_sample": flops,
                "flops": flops["total"] * settings.batch_size * settings.steps,
                "memory_per_device": memory,
                "fits": memory["total"] <= device.gigabytes * 1e9,
                "fits_on": _find_devices(parts, stage, vocabulary=language.vocab_size, limit=device.gigabytes * 1e9),
                "too_long": limit is not None and length > limit,
                "devices": devices,
                "seconds_per_step": seconds,
                "days": seconds * settings.steps / 86_400,
            }
        )
    return result


def step_flops(parts: Mapping[str, PartCost], stage: StageShape) -> dict[str, float]:
    """Return the FLOPs of one sample by part, and the `total`, with the backward passes that the stage needs.

    A part that is not trained has no backward pass, unless a trained one lies before it, whose gradient passes through:
    half of a whole one, as no weights get gradients.
    """
    times = {"tower": stage.views, "connector": stage.views, "regions": 1.0, "language": 1.0}
    flops, before = {}, False
    for name in (name for name in PARTS if name in parts):
        cost = parts[name].cost
        backward = 1.0 if name in stage.trained else 0.5 if before else 0.0
        runs = times[name] if name != "language" or stage.runs_language else 0.0
        flops[name] = runs * (cost.forward + backward * cost.backward)
        before = before or name in stage.trained
    return flops | {"total": sum(flops.values())}


def memory_per_device(
    parts: Mapping[str, PartCost], stage: StageShape, *, vocabulary: int, devices: int
) -> dict[str, float]:
    """Return the bytes in one process by use, and the `total`: the training's state, activations and logits.

    Activations are saved from the first trained part on. Logits are float32, only of the answers' tokens, with their
    gradient.
    """
    settings = stage.training
    # Only one part's activations are in memory at a time, so accumulation lowers them.
    samples = settings.batch_size / devices / settings.accumulate
    first = min((PARTS.index(name) for name in stage.trained), default=len(PARTS))
    times = {"tower": stage.views, "connector": stage.views, "regions": 1.0, "language": float(stage.runs_language)}
    saved = sum(times[name] * parts[name].cost.saved for name in PARTS[first:] if name in parts)
    state = state_bytes(
        float(sum(part.parameters for part in parts.values())),
        float(sum(parts[name].parameters for name in stage.trained)),
        settings,
        devices=devices,
        parallel=settings.parallel,
        largest_unit=float(max(part.largest_unit for part in parts.values())),
    )
    use = state | {"activations": samples * saved, "logits": samples * 8.0 * vocabulary * stage.answer_tokens}
    return use | {"total": sum(use.values())}


def _find_devices(parts: Mapping[str, PartCost], stage: StageShape, *, vocabulary: int, limit: float) -> int | None:
    """Find the smallest number of devices on which a stage fits, a whole number of samples each; None if none does."""
    settings = stage.training
    for devices in range(1, settings.batch_size // settings.accumulate + 1):
        if settings.batch_size % (devices * settings.accumulate) == 0:
            memory = memory_per_device(parts, stage, vocabulary=vocabulary, devices=devices)
            if memory["total"] <= limit:
                return devices
    return None


def format_price(result: Mapping[str, Any]) -> list[str]:
    """Describe a price in lines of text, for the command line."""
    by_part = ", ".join(f"{name} {count:,}" for name, count in result["parameters_by_part"].items())
    lines = [f"parameters: {result['parameters']:,} ({by_part})"]
    if result["parameters_active"] < result["parameters"]:
        lines.append(f"active parameters of a token: {result['parameters_active']:,}")
    lines.append(f"image tokens: {result['view_tokens']} a view")
    for stage in result["stages"]:
        memory = stage["memory_per_device"]
        uses = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:,.3g}" for name, size in memory.items() if size)
        lines += [
            f"stage {stage['name']}: {stage['steps']:,} steps of {stage['batch_size']:,} samples with "
            f"{stage['sequence']:,} tokens, {stage['image_tokens']:,} of them of images; "
            f"{stage['tokens']:,} tokens in all",
            f"  trained parameters: {stage['trained']:,}; FLOPs: {stage['flops']:.3g}; "
            f"{duration(86_400 * stage['days'])} on {stage['devices']} x {result['hardware']['name']} "
            f"at MFU {result['mfu']:g}",
            f"  memory per device in GB, of {result['hardware']['gb']:,.4g}: {uses}",
        ]
        if not stage["fits"]:
            shards = "" if stage["parallel"] == "fsdp" else "training.parallel=fsdp, "
            advice = f"it fits on {stage['fits_on']}" if stage["fits_on"] else f"{shards}more accumulate needs less"
            lines.append(f"  warning: it does not fit on {stage['devices']} devices; {advice}")
        if stage["too_long"]:
            lines.append("  warning: the mean sample is longer than the language model's positions")
    return lines
