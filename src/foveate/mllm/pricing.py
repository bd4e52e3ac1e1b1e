"""Cost of training a multimodal LLM before anything is allocated: parameters, tokens, FLOPs, memory and steps.

Tower and language model are given by transformers configs. Their networks are built on the meta device, and one and two
of their layers are counted; the others are equal. Experts are priced without their module, from the layer's MLP.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from foveate.core.errors import UserError
from foveate.core.progress import duration
from foveate.mllm.recipe import MllmPriceSettings, MllmRecipe
from foveate.mllm.train import build_stage_model
from foveate.multimodal.model import MultimodalModel
from foveate.training.costs import (
    ModuleCost,
    count_parameters,
    extend_layers,
    make_fake,
    measure,
    shorten_config,
    state_bytes,
)
from foveate.training.hardware import PriceSettings, parse_hardware
from foveate.training.settings import TrainingSettings
from foveate.vision.connectors import Connector, build_connector
from foveate.vision.encoder import ImageEncoder

PARTS = ("tower", "connector", "regions", "language")
_PRICE, _SAMPLE = PriceSettings(), MllmPriceSettings()
# What the views of a dry run's images are planned for: most data sets of photographs are about so large.
_MEAN_IMAGE = (480, 640)


@dataclass(frozen=True)
class Experts:
    """Sparse MLPs: `num` experts in every `every`-th layer, of which a token takes `top_k`.

    Attributes:
        divisor: an expert's hidden width is that of the dense MLP over this.
    """

    num: int = 64
    top_k: int = 2
    every: int = 2
    divisor: int = 1


@dataclass(frozen=True)
class ModelShape:
    """Shapes of a multimodal LLM.

    Attributes:
        tower: config of a vision model with square patches and one class token or none.
        language: config of a causal language model.
        connector, options: kind and options, see `foveate.vision.connectors.build_connector`.
        view_side: side of a view in pixels.
    """

    tower: PretrainedConfig
    language: PretrainedConfig
    connector: str = "cabstractor"
    options: Mapping[str, Any] = field(default_factory=dict)
    view_side: int = 672
    experts: Experts | None = None


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


@dataclass(frozen=True)
class PartCost:
    """Cost of one part: of a view for tower and connector, of a sequence for the language model.

    Attributes:
        parameters: all of them. active: those that a token passes through. largest_unit: of the largest layer.
    """

    parameters: int
    active: int
    largest_unit: int
    cost: ModuleCost


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
        key = (model.tower.feature_shape, precision)
        if key not in counted:
            counted[key] = _count_built_vision(model.tower, model.connector, precision)
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
        settings = stage.training
        if unknown := set(stage.trained) - set(PARTS):
            raise UserError(f"stage '{stage.name}': no part {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
        if settings.batch_size % devices:
            raise UserError(f"stage '{stage.name}': {devices} devices do not divide batch_size {settings.batch_size}")
        view_parts, view_tokens = count(stage)
        length = round(stage.views * view_tokens + stage.text_tokens)
        parts = view_parts | {"language": count_language(language, length, experts, settings.precision)}
        limit = getattr(language, "max_position_embeddings", None)
        flops = step_flops(parts, stage)
        memory = memory_per_device(parts, stage, vocabulary=language.vocab_size, devices=devices)
        peak = device.tflops if settings.precision == "bf16" else device.wide_tflops
        seconds = settings.batch_size * flops["total"] / devices / (peak * 1e12 * mfu)
        named = {name: part.parameters for name, part in parts.items()}
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

    Activations are saved from the first trained part on. Logits are float32, of the answers' tokens alone, with their
    gradient.
    """
    settings = stage.training
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


def count_vision(shape: ModelShape, precision: str) -> tuple[dict[str, PartCost], int]:
    """Count tower and connector of one view; also return the tokens of a view."""
    patch, side = shape.tower.patch_size, shape.view_side
    if side % patch:
        raise UserError(f"view_side {side}: no multiple of the tower's patch_size {patch}")
    grid = (side // patch, side // patch)
    config = copy.deepcopy(shape.tower)
    config.image_size = side
    channels = getattr(config, "num_channels", 3)

    def tower(layers: int) -> nn.Module:
        return AutoModel.from_config(_with_layers(config, layers))

    def see(model: nn.Module, batch: int) -> list[Tensor]:
        return [model(pixel_values=torch.empty(batch, channels, side, side)).last_hidden_state]

    tower_cost = _count_layers(tower, see, config.num_hidden_layers, grid[0] * grid[1], config.hidden_size, precision)
    with torch.device("meta"):
        connector = build_connector(
            shape.connector,
            shape.options,
            in_width=config.hidden_size,
            out_width=shape.language.hidden_size,
            grid=grid,
        )
    return {"tower": tower_cost, "connector": _count_connector(connector, precision)}, connector.num_tokens


def _count_built_vision(tower: ImageEncoder, connector: Connector, precision: str) -> tuple[dict[str, PartCost], int]:
    """Count a tower of this house and its connector, of one view, on copies of their meta tensors."""
    tower = copy.deepcopy(tower)
    mode, size = FakeTensorMode(), count_parameters(tower)
    make_fake(tower, mode)
    tower.eval()
    with mode, _autocast(precision):
        cost = measure(
            lambda batch: [tower(torch.empty(batch, *tower.feature_shape, dtype=tower.feature_dtype)).tokens],
            blocks=0,
            length=tower.grid[0] * tower.grid[1],
            width=tower.width,
        )
    parts = {"tower": PartCost(size, size, size, cost), "connector": _count_connector(connector, precision)}
    return parts, connector.num_tokens


def _count_connector(connector: Connector, precision: str) -> PartCost:
    connector = copy.deepcopy(connector)
    mode, size, (rows, columns) = FakeTensorMode(), count_parameters(connector), connector.grid
    make_fake(connector, mode)
    with mode, _autocast(precision):
        cost = measure(
            lambda batch: [connector(torch.empty(batch, rows * columns, connector.in_width))],
            blocks=0,
            length=connector.num_tokens,
            width=connector.out_width,
        )
    return PartCost(size, size, size, cost)


def count_language(config: PretrainedConfig, length: int, experts: Experts | None, precision: str) -> PartCost:
    """Count a language model on a sequence of `length` embeddings; with experts, as many as a token takes."""

    def build(layers: int) -> nn.Module:
        return AutoModelForCausalLM.from_config(_with_layers(config, layers))

    def read(model: nn.Module, batch: int) -> list[Tensor]:
        embeddings = torch.empty(batch, length, config.hidden_size)
        return [model(inputs_embeds=embeddings, use_cache=False).logits]

    part = _count_layers(build, read, config.num_hidden_layers, length, config.hidden_size, precision)
    if experts is None:
        return part
    with torch.device("meta"):
        mlp = _find_mlp(build(1))
    size, sparse = count_parameters(mlp), config.num_hidden_layers // experts.every
    expert, router = size // experts.divisor, config.hidden_size * experts.num
    more = experts.top_k * expert - size
    extra = sparse * 2.0 * (more + router) * length
    total = part.parameters + sparse * (experts.num * expert - size + router)
    cost = replace(part.cost, forward=part.cost.forward + extra, backward=part.cost.backward + 2 * extra)
    return PartCost(
        total,
        part.active + sparse * (more + router),
        part.largest_unit + experts.num * expert - size + router,
        cost,
    )


def _find_mlp(model: nn.Module) -> nn.Module:
    mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    if not mlps:
        raise UserError("experts: the language model's layers have no part 'mlp' to make experts of")
    return mlps[0]


def _count_layers(
    build: Callable[[int], nn.Module],
    call: Callable[[nn.Module, int], list[Tensor]],
    layers: int,
    length: int,
    width: int,
    precision: str,
) -> PartCost:
    """Count networks of one and two layers, and extend the difference to all."""
    sizes: list[float] = []
    costs: list[ModuleCost] = []
    for few in (1, 2):
        with torch.device("meta"):
            model = build(few).train()
        sizes.append(count_parameters(model))
        mode = FakeTensorMode()
        make_fake(model, mode)
        with mode, _autocast(precision):
            costs.append(measure(lambda batch: call(model, batch), blocks=few, length=length, width=width))  # noqa: B023

    def extend(read: Callable[[ModuleCost], float]) -> float:
        return extend_layers([read(cost) for cost in costs], layers)

    forward, backward = extend(lambda cost: cost.forward), extend(lambda cost: cost.backward)
    # Shares cannot be extended: those of one and two layers are of other totals.
    attention = extend(lambda cost: cost.quadratic * (cost.forward + cost.backward))
    quadratic = attention / (forward + backward) if forward + backward else 0.0
    saved = extend(lambda cost: cost.saved)
    parameters, layer = round(extend_layers(sizes, layers)), round(sizes[1] - sizes[0])
    # Everything outside the layers (embeddings and head) is a unit of its own.
    unit = max(layer, round(sizes[0]) - layer)
    return PartCost(
        parameters, parameters, unit, ModuleCost(forward, backward, quadratic, saved, layers, length, width)
    )


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    config = shorten_config(config, layers)
    # Fused, as in a training: eager attention would save its weights for the backward pass.
    config._attn_implementation = "sdpa"
    return config


def _autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
