"""Cost of the parts of a multimodal LLM: tower and connector of a view, language model of a sequence.

Tower and language model are given by transformers configs. Their networks are built on the meta device, and one and two
of their layers are counted; the others are equal. Experts are priced without their module, from the layer's MLP.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from foveate.core.errors import UserError
from foveate.training.costs import (
    ModuleCost,
    count_parameters,
    extend_layers,
    make_fake,
    measure,
    shorten_config,
)
from foveate.vision.connectors import Connector, build_connector
from foveate.vision.encoder import ImageEncoder


@dataclass(frozen=True)
class Experts:
    """Sparse MLPs: `num` experts in every `every`-th layer, of which a token takes `top_k`.

    Attributes:
        divisor: an expert's hidden width is that of the dense MLP over this.
    """

    # MM1.5's sparse models have 64 experts in every second layer, two of them for each token.
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
class PartCost:
    """Cost of one part: of a view for tower and connector, of a sequence for the language model.

    Attributes:
        parameters: all of them. active: those that a token passes through. largest_unit: of the largest layer.
    """

    parameters: int
    active: int
    largest_unit: int
    cost: ModuleCost


def count_vision(shape: ModelShape, precision: str) -> tuple[dict[str, PartCost], int]:
    """Count tower and connector of one view; also return the tokens of a view."""
    patch, side = shape.tower.patch_size, shape.view_side
    if side % patch:
        raise UserError(f"view_side {side}: no multiple of the tower's patch_size {patch}")
    grid = (side // patch, side // patch)
    config = copy.deepcopy(shape.tower)
    # A view may be larger than what the tower was trained on: position embeddings of its grid are counted.
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


def count_built_vision(tower: ImageEncoder, connector: Connector, precision: str) -> tuple[dict[str, PartCost], int]:
    """Count a tower of this house and its connector, of one view, on copies of their meta tensors."""
    # A copy: `make_fake` replaces the weights of its argument, and the caller prices further stages with its own tower.
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
    # Add the weights that a token passes beyond the dense MLP, which is counted already: 2 FLOPs a weight, twice that
    # backward.
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
            # Use training mode: tensors that dropout saves for the backward pass count, too.
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
