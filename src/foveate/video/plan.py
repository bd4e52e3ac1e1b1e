"""Estimate what a video costs a model before a weight is read: tokens of each path, context, FLOPs and memory.

Networks are built without memory from the model's config. A multiplication with an addition counts as 2 FLOPs, and
attention over all pairs of tokens.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from foveate.core.errors import UserError
from foveate.core.hub import fetch, loading
from foveate.core.model_folder import shapes_alone
from foveate.language.positions import count_positions, find_context
from foveate.language.vocabulary import read_tokenizer
from foveate.multimodal.build import build_untrained, build_vision
from foveate.multimodal.folder import TOKENIZER, read_settings
from foveate.multimodal.opening import find_native_folder
from foveate.multimodal.settings import MultimodalSettings
from foveate.training.costs import (
    PLAIN_DECODERS,
    build_flop_counter,
    count_cache_values,
    count_decoder,
    count_forward,
    count_parameters,
    extend_layers,
    make_fake,
    shorten_config,
)
from foveate.video.adapter import count_square
from foveate.video.networks import find_grid, read_config, refuse_factor, stretch_positions
from foveate.video.splice import Room, list_fitting
from foveate.video.strategies import SlowFast, Strategy, parse_how
from foveate.vision.connectors import Connector
from foveate.vision.encoder import ImageEncoder

# The paper's 3,680 tokens leave as many of LLaVA's 4,096.
TEXT_TOKENS = 416


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs of a model.

    Attributes:
        image_tokens: of a frame before pooling. limit: positions of the language model.
        parameters: of each part. tower_flops: of a frame, with its projector.
        count_language: positions -> FLOPs of reading them.
        cache_values: keys and values of a position. bytes: of a weight.
    """

    name: str
    image_tokens: int
    limit: int | None
    width: int
    parameters: dict[str, int]
    tower_flops: float
    count_language: Callable[[int], float]
    cache_values: int
    bytes: int


@dataclass(frozen=True)
class VideoPlan:
    """What a video costs.

    Attributes:
        frames: sampled frames. images: passes of the tower, as frames may be read once or in collages.
        tokens: of each path. text: of prompt, question and answer. limit: of the language model.
        left: positions that stay free, below 0 where it does not fit; None without a limit.
        fitting: options with which it would fit, each alone.
        flops: of the tower for all images, of reading the video and the text, and of a second question.
        memory: bytes of the weights, of keys and values of all positions, and of the video's tokens.
        seconds_per_frame: time between two sampled frames, where the length of the clip is known.
    """

    model: str
    how: str
    frames: int
    images: int
    tokens: dict[str, int]
    text: int
    limit: int | None
    left: int | None
    fitting: tuple[str, ...]
    parameters: dict[str, int]
    flops: dict[str, float]
    memory: dict[str, float]
    seconds_per_frame: float | None
    warnings: tuple[str, ...]


def plan_video(
    model: ModelShape | str | Path,
    *,
    how: Strategy | str = SlowFast(),  # noqa: B008, settings are frozen
    total: int | None = None,
    seconds: float | None = None,
    text_tokens: int = TEXT_TOKENS,
    rope_factor: float | None = None,
) -> VideoPlan:
    """Plan a video without reading weights or frames.

    Args:
        model: as of `foveate.watch`; a hub id needs its config alone.
        total: decoded frames of the clip; by default as many as the strategy samples.
        seconds: length of the clip.
        text_tokens: of prompt, question and answer.
        rope_factor: as of `open_network`, where the model is no shape.

    Raises:
        UserError: the model is of no family that watches, or a number is out of range.

    Example:
        >>> plan_video("mini", how="slowfast-slow_4frms_grid_1x2-fast_2x2").tokens
        {'slow': 84, 'fast': 200}
    """
    for name, value in (("total", total), ("seconds", seconds), ("text_tokens", text_tokens)):
        if value is not None and value <= 0:
            raise UserError(f"{name}: too small (got {value}); expected a number above 0")
    shape = model if isinstance(model, ModelShape) else read_shape(model, rope_factor=rope_factor)
    strategy = parse_how(how) if isinstance(how, str) else how
    # A clip of unknown length is priced as if it had all frames that the strategy asks for.
    room = Room(total or strategy.frames, shape.image_tokens, text_tokens, shape.limit)
    frames = min(strategy.frames, room.frames)
    layout = strategy.layout(frames, shape.image_tokens)
    length = layout.num_tokens + text_tokens
    memory = {
        "weights": float(sum(shape.parameters.values()) * shape.bytes),
        "cache": float(length * shape.cache_values * shape.bytes),
        "video": float(layout.num_tokens * shape.width * shape.bytes),
    }
    reading = shape.count_language(length)
    return VideoPlan(
        model=shape.name,
        how=strategy.kind,
        frames=frames,
        images=len(layout.images),
        tokens=layout.count_tokens(),
        text=text_tokens,
        limit=shape.limit,
        left=None if shape.limit is None else shape.limit - length,
        fitting=() if room.holds(strategy) else tuple(list_fitting(strategy, room)),
        parameters=shape.parameters,
        flops={
            "tower": len(layout.images) * shape.tower_flops,
            "language": reading,
            # Behind a clip that was read: what the text adds.
            "later question": reading - shape.count_language(layout.num_tokens),
        },
        memory=memory | {"total": sum(memory.values())},
        seconds_per_frame=None if seconds is None else seconds / frames,
        warnings=layout.warnings,
    )


def format_plan(plan: VideoPlan) -> list[str]:
    """Describe a plan in lines of text, for the command line."""
    every = "" if plan.seconds_per_frame is None else f", one every {plan.seconds_per_frame:.3g} s"
    paths = ", ".join(f"{name} {count:,}" for name, count in plan.tokens.items())
    context = "context: no limit"
    if plan.limit is not None and plan.left is not None and plan.left >= 0:
        context = f"context: {plan.left:,} of {plan.limit:,} positions left beside {plan.text:,} of text and answer"
    elif plan.limit is not None and plan.left is not None:
        advice = f"; it fits with {' or '.join(plan.fitting)}" if plan.fitting else ""
        context = f"context: {-plan.left:,} more than {plan.limit:,} with {plan.text:,} of text and answer{advice}"
    return [
        f"frames: {plan.frames}{every}; images for the tower: {plan.images}",
        f"tokens: {sum(plan.tokens.values()):,} ({paths})",
        context,
        "parameters: " + ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in plan.parameters.items()),
        "FLOPs: " + ", ".join(f"{name} {count:.3g}" for name, count in plan.flops.items()),
        "memory in GB: " + ", ".join(f"{name} {size / 1e9:,.3g}" for name, size in plan.memory.items()),
        *(f"warning: {text}" for text in plan.warnings),
    ]


def read_shape(source: str | Path, *, rope_factor: float | None = None) -> ModelShape:
    """Read the shape of a model from its config; see `open_network` for what opens, and for the factor."""
    folder = find_native_folder(source)
    if folder is not None:
        refuse_factor(rope_factor)
        return _read_native(folder, str(source))
    from transformers import AutoModelForImageTextToText

    checkpoint = fetch(str(source), field="model", patterns=("*.json",))
    config = read_config(checkpoint)
    vision, text, (rows, columns) = config.vision_config, config.get_text_config(), find_grid(config)
    stretched = copy.deepcopy(text)
    stretch_positions(stretched, rope_factor)
    mode, counts, languages = FakeTensorMode(), list[dict[str, int]](), list[Any]()
    # Layers of a stack cost the same: networks of one and two layers give the constant and the slope for any number.
    tower_flops: list[float] = []
    for layers in (1, 2):
        few = copy.deepcopy(config)
        few.vision_config = shorten_config(vision, layers)
        few.text_config = shorten_config(text, layers)
        # The weights are counted in float16, in which the official code runs.
        with torch.device("meta"), loading(source):
            model: Any = AutoModelForImageTextToText.from_config(few, dtype=torch.float16).eval()
        make_fake(model, mode)
        tower, projector = model.model.vision_tower, model.model.multi_modal_projector
        with mode:
            pixels = torch.empty(1, 3, vision.image_size, vision.image_size, dtype=torch.float16)
            features = torch.empty(1, rows * columns, projector.linear_1.in_features, dtype=torch.float16)
            flops = [count_forward(functools.partial(part, x)) for part, x in ((tower, pixels), (projector, features))]
        tower_flops.append(sum(flops))
        parts = {"tower": count_parameters(tower), "projector": count_parameters(projector)}
        counts.append(parts | {"language": count_parameters(model) - sum(parts.values())})
        languages.append(model)
    layers = {"tower": vision.num_hidden_layers, "projector": 1, "language": text.num_hidden_layers}
    return ModelShape(
        name=str(source),
        image_tokens=rows * columns,
        limit=count_positions(stretched),
        width=text.hidden_size,
        parameters={
            part: round(extend_layers([each[part] for each in counts], count)) for part, count in layers.items()
        },
        tower_flops=extend_layers(tower_flops, layers["tower"]),
        count_language=build_flop_counter(languages, mode, text, torch.float16),
        cache_values=count_cache_values(text),
        bytes=torch.float16.itemsize,
    )


def _read_native(folder: Path, name: str) -> ModelShape:
    settings, _ = read_settings(folder)
    language, vocabulary = settings.language, 0
    if isinstance(language, dict):
        vocabulary = read_tokenizer(folder / TOKENIZER).size
        # What ships: nothing of transformers is needed, whose import takes longer than all else.
        if language.get("model_type") in PLAIN_DECODERS and settings.tiles_tower is None and settings.experts is None:
            return _read_plain(settings, SimpleNamespace(**language), vocabulary, name)
    from transformers import AutoModelForCausalLM

    with shapes_alone():
        built = build_untrained(settings, vocabulary=vocabulary)
    config, mode, languages = built.language_model.config, FakeTensorMode(), list[Any]()
    # A tower may read its frozen part from a package: one image is encoded in earnest, by untrained weights.
    tower_flops = _count_tower(build_vision(settings, out_width=config.hidden_size))
    for layers in (1, 2):
        with shapes_alone():
            languages.append(AutoModelForCausalLM.from_config(shorten_config(config, layers)).eval())
        make_fake(languages[-1], mode)
    parts = {"tower": built.tower, "projector": built.connector, "language": built.language_model}
    return ModelShape(
        name=name,
        image_tokens=count_square(settings, built.connector.num_tokens, name=name),
        limit=find_context(built.language_model),
        width=config.hidden_size,
        parameters={part: count_parameters(module) for part, module in parts.items()},
        tower_flops=tower_flops,
        count_language=build_flop_counter(languages, mode, config, torch.float32),
        cache_values=count_cache_values(config),
        bytes=torch.float32.itemsize,
    )


def _read_plain(settings: MultimodalSettings, config: Any, vocabulary: int, name: str) -> ModelShape:
    """Read the shape of a model whose language model is one of `PLAIN_DECODERS`."""
    tower, connector = build_vision(settings, out_width=config.hidden_size)
    language, count_language = count_decoder(config, vocabulary)
    return ModelShape(
        name=name,
        image_tokens=count_square(settings, connector.num_tokens, name=name),
        limit=count_positions(config),
        width=config.hidden_size,
        parameters={
            "tower": count_parameters(tower),
            "projector": count_parameters(connector),
            "language": language,
        },
        tower_flops=_count_tower((tower, connector)),
        count_language=count_language,
        cache_values=count_cache_values(config),
        bytes=torch.float32.itemsize,
    )


def _count_tower(vision: tuple[ImageEncoder, Connector]) -> float:
    """Count the FLOPs of an image through a tower and its connector."""
    tower, connector = vision
    tower.eval()
    connector.eval()
    pixels = torch.zeros(1, 3, tower.preprocess.height, tower.preprocess.width, dtype=torch.uint8)
    return count_forward(lambda: connector(tower(pixels).tokens))
