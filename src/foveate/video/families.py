"""Families of transformers whose own image path gives each frame one square grid of tokens, and their video input.

Frames go through the family's processor, tower and projector: its forward pass is stopped where the language model
begins, so that embeddings are those of an image of the family whatever it adds. What the language model needs beside
them (features for its first layers, marks of image tokens for its mask) is carried in further columns, which are pooled
as the embeddings are, and taken apart again by a hook.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, loading
from foveate.language.chat import ChatFrame, frame_of_template
from foveate.language.tokenizer import Piece, encode_pieces, list_start_ids, wrap_transformers
from foveate.multimodal.foreign_loading import open_processor
from foveate.video.adapter import NativeVideo, Network, VideoPlaces, render_frame
from foveate.video.layout import Layout
from foveate.vision.preprocess import Preprocess
from foveate.vision.tiling import Grid

_SQUARE = MappingProxyType({"do_resize": False})
GRIDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "gemma3": {},
        "glm4v": _SQUARE,
        "idefics3": {"do_image_splitting": False},
        "internvl": {"crop_to_patches": False},
        "paligemma": {},
        "qwen2_5_vl": _SQUARE,
        "qwen2_vl": _SQUARE,
        "qwen3_vl": _SQUARE,
        "smolvlm": {"do_image_splitting": False},
    }
)
"""model_type -> options with which its processor gives an image one grid of tokens."""
# Families that separate the frames of a video, each with positions of its own; others have one axis of time.
_APART = frozenset({"glm4v", "qwen3_vl"})
# Families whose image tokens see one another, and whose whole prompt does (PaliGemma's prefix).
_MARKED = frozenset({"gemma3", "paligemma"})
# The paper's grid, where the family takes any size.
_SIDE = 24


class _Stop(Exception):  # noqa: N818, it ends a forward pass and is no error
    """The forward pass has reached the language model."""


class _Captured(NamedTuple):
    """What a family gives its language model: embeddings with further columns [L, W], and positions [3, L]."""

    rows_LW: Tensor
    positions_3L: Tensor | None


def wrap_family(model: Any, checkpoint: Checkpoint, *, name: str) -> Network:
    """Wrap a model of one of `GRIDS`.

    Raises:
        UserError: its processor cannot be opened, or gives a frame no square grid of tokens.
    """
    kind, processor = str(model.config.model_type), open_processor(checkpoint)
    tokenizer = processor.tokenizer
    side, options = _find_side(model, processor, kind), dict(GRIDS[kind])
    if kind in ("smolvlm", "idefics3"):
        # Without tiles the image is enlarged to the canvas of tiles and shrunk again.
        options["size"] = {"longest_edge": side}
    image_id = int(model.config.image_token_id)

    @torch.inference_mode()
    def encode(pixels_T3HW: Tensor) -> Tensor:
        frames = [Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()) for frame in pixels_T3HW]
        text = _write(processor, "image", len(frames), name)
        inputs = _process(model, processor, name, images=frames, text=text, **options)
        is_image_L = inputs["input_ids"][0] == image_id
        rows_LW = _capture(model, inputs).rows_LW[is_image_L]
        return rows_LW.unflatten(0, (len(frames), -1))

    _read_columns(model, kind)
    blank = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    count = encode(blank).shape[1]
    rows = round(count**0.5)
    if rows * rows != count:
        raise UserError(f"{name}: its processor gives a frame {count} tokens; expected a square grid")
    template = processor.chat_template
    mark = tokenizer.convert_tokens_to_ids(processor.image_token)
    frame = _frame(model, processor, kind, name, options, side)
    place: Callable[[Layout], VideoPlaces] | None = None
    if hasattr(model.model, "get_rope_index"):
        place = lambda layout: place_layout(model, layout, apart=kind in _APART)  # noqa: E731
    preprocess = Preprocess(side, (0.5,) * 3, (0.5,) * 3, "bicubic", geometry="stretch")
    ends = model.generation_config.eos_token_id
    wrapped = wrap_transformers(tokenizer, source=name)
    network = Network(
        name=name,
        language=model,
        tower=getattr(model.model, "visual", None)
        or getattr(model.model, "vision_tower", None)
        or model.model.vision_model,
        projector=model.model,
        preprocess=preprocess,
        grid=(rows, rows),
        encode=encode,
        render=lambda image: render_frame(preprocess, image),
        tokenizer=wrapped,
        frame=frame or frame_of_template(tokenizer, template, image=mark, name=name),
        stop=frozenset({ends} if isinstance(ends, int) else set(ends or ())) | {wrapped.end},
        place=place,
        # PaliGemma counts from 1, and its whole prompt is one block that sees itself.
        first=int(kind == "paligemma"),
        reuses=kind != "paligemma",
    )
    return add_native(network, processor)


def add_native(network: Network, processor: Any) -> Network:
    """Return a network that watches through the model's own video input, too, where its processor has one."""
    if getattr(processor, "video_processor", None) is None or not getattr(processor, "video_token", None):
        return network
    model, tokenizer, name = network.language, processor.tokenizer, network.name
    template, mark = processor.chat_template, tokenizer.convert_tokens_to_ids(processor.video_token)
    frame = frame_of_template(tokenizer, template, image=mark, name=name, part="video")
    has_mark = processor.video_token in _write(processor, "video", 1, name)
    if not has_mark:
        # Templates that write images alone: the video takes the place of one.
        image = tokenizer.convert_tokens_to_ids(processor.image_token)
        frame = frame_of_template(tokenizer, template, image=image, name=name)

    wrapped = wrap_transformers(tokenizer, source=name)

    @torch.inference_mode()
    def watch(frames: Sequence[Image.Image], times: Sequence[float]) -> NativeVideo:
        # The question is left out: the texts around it are compared with what stands around it alone.
        text = f"{frame.head}{processor.video_token}{frame.middle}{frame.tail}"
        inputs = _process(model, processor, name, videos=[_stack(frames)], text=text, **_describe(frames, times))
        captured, ids = _capture(model, inputs), inputs["input_ids"][0].tolist()
        backend = wrapped.backend
        before = [*list_start_ids(backend), *encode_pieces(backend, [Piece(frame.head)])]
        after = encode_pieces(backend, [Piece(frame.middle + frame.tail)])
        start = _count_shared(ids, before)
        end = len(ids) - _count_shared(ids[start:][::-1], after[::-1])
        places = None
        if captured.positions_3L is not None:
            positions_3L = captured.positions_3L - start
            follow = positions_3L[:, end].max() if end < len(ids) else positions_3L[:, :end].max() + 1
            places = VideoPlaces(positions_3L[:, start:end], int(follow))
        return NativeVideo(captured.rows_LW[start:end], places, (len(before) - start, len(after) - (len(ids) - end)))

    return replace(network, watch=watch, native_frame=frame)


def place_layout(model: Any, layout: Layout, *, apart: bool) -> VideoPlaces:
    """Return the positions of the rows of a layout by the family's own rule, for the pooled grids.

    Each block begins behind the last position of the one before it, as images that follow one another do.

    Args:
        apart: each frame is placed for itself; otherwise those of a block share an axis of time.

    Raises:
        UserError: a block is no grid.
    """
    parts, start = [], 0
    for block, rows in zip(layout.blocks, layout.block_rows, strict=True):
        if not rows:
            continue
        grid = block.pool.find_grid(layout.image_tokens)
        if grid is None:
            raise UserError(
                f"how: tokens of path '{block.path}' are no grid, which the positions of this model need; expected an "
                "operator that keeps one, such as --slow-pool 2x2 or 1x1"
            )
        frames = rows // (grid.rows * grid.columns)
        for count in [1] * frames if apart else [frames]:
            part_3L = _place_grid(model, grid, count)
            parts.append(part_3L + start)
            start += int(part_3L.max()) + 1
    return VideoPlaces(torch.cat(parts, dim=1), start)


def _place_grid(model: Any, grid: Grid, frames: int) -> Tensor:
    """Return the positions [3, frames x rows x columns] of a grid that begins at 0."""
    merge = int(model.config.vision_config.spatial_merge_size)
    length = frames * grid.rows * grid.columns
    ids_1L = torch.full((1, length), int(model.config.image_token_id))
    # Rows and columns in patches, which the rule divides by the side of a merged one.
    grid_13 = torch.tensor([[frames, grid.rows * merge, grid.columns * merge]])
    types_1L = torch.ones_like(ids_1L)
    return model.model.get_rope_index(ids_1L, mm_token_type_ids=types_1L, image_grid_thw=grid_13)[0][:, 0]


def _find_side(model: Any, processor: Any, kind: str) -> int:
    """Return the side in pixels to which frames are squashed."""
    images = processor.image_processor
    if "do_resize" in GRIDS[kind]:
        unit = images.patch_size * images.merge_size
        side = min(_SIDE, int(images.size["longest_edge"] ** 0.5) // unit)
        # An even side: pairs of neighbors then stay within rows.
        return max(1, side // 2 * 2 or side) * unit
    side = model.config.vision_config.image_size
    return int(side if isinstance(side, int) else side[0])


def _frame(model: Any, processor: Any, kind: str, name: str, options: Mapping[str, Any], side: int) -> ChatFrame | None:
    """Return what stands around a question, with the marks that the processor writes around an image."""
    tokenizer = processor.tokenizer
    if kind == "paligemma":
        # The image stands in front of all, then BOS; its processor ends the line.
        return ChatFrame(tokenizer.bos_token or "", "", "\n", leads=True)
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"):
        return None
    blank = Image.new("RGB", (side, side))
    inputs = _process(model, processor, name, images=[blank], text=processor.image_token, **options)
    ids = inputs["input_ids"][0].tolist()
    positions = [number for number, id in enumerate(ids) if id == model.config.image_token_id]
    starts = len(list_start_ids(wrap_transformers(tokenizer, source=name).backend))
    around = (tokenizer.decode(ids[starts : positions[0]]), tokenizer.decode(ids[positions[-1] + 1 :]))
    mark = tokenizer.convert_tokens_to_ids(processor.image_token)
    return frame_of_template(tokenizer, processor.chat_template, image=mark, name=name, around=around)


def _write(processor: Any, kind: str, count: int, name: str) -> str:
    """Write a turn of images or videos in the chat template; raise UserError if it fails on one."""
    messages = [{"role": "user", "content": [{"type": kind}] * count + [{"type": "text", "text": " "}]}]
    try:
        return processor.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    except TemplateError as error:
        raise UserError(f"{name}: its chat template fails on an {kind} with a text ({error})") from error


def _process(model: Any, processor: Any, name: str, **arguments: Any) -> dict[str, Any]:
    with loading(name, kind="the frames"):
        inputs = processor(return_tensors="pt", **arguments)
    moved = {}
    for key, value in inputs.items():
        if isinstance(value, Tensor) and key != "labels":
            dtype = model.dtype if value.is_floating_point() and key.startswith("pixel") else value.dtype
            moved[key] = value.to(model.device, dtype)
    return moved


def _capture(model: Any, inputs: Mapping[str, Any]) -> _Captured:
    """Run the family's forward pass up to its language model."""
    language = getattr(model.model, "language_model", None) or model.model.text_model
    arguments: dict[str, Any] = {}

    def stop(_module: Any, _positional: Any, named: dict[str, Any]) -> None:
        arguments.update(named)
        raise _Stop

    handle = language.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs)
    except _Stop:
        pass
    finally:
        handle.remove()
    rows_LW = arguments["inputs_embeds"][0]
    mask_BL, deep = arguments.get("visual_pos_masks"), arguments.get("deepstack_visual_embeds") or ()
    for features_ND in deep:
        assert isinstance(mask_BL, Tensor), "features come with the tokens that they belong to"
        column_LD = torch.zeros_like(rows_LW[:, : features_ND.shape[1]])
        column_LD[mask_BL[0]] = features_ND.to(column_LD.dtype)
        rows_LW = torch.cat([rows_LW, column_LD], dim=1)
    if model.config.model_type in _MARKED:
        # Means and maxima of ones are ones: the mark survives pooling.
        is_image_L = inputs["input_ids"][0] == model.config.image_token_id
        rows_LW = torch.cat([rows_LW, is_image_L[:, None].to(rows_LW.dtype)], dim=1)
    positions = arguments.get("position_ids")
    return _Captured(rows_LW, positions[-3:, 0] if isinstance(positions, Tensor) and positions.dim() == 3 else None)


def _read_columns(model: Any, kind: str) -> None:
    """Let a model take embeddings with further columns apart before its forward pass."""
    width = model.get_input_embeddings().weight.shape[1]
    deep: list[Tensor] = []

    def narrow(_module: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        rows_BLW = named.get("inputs_embeds")
        deep.clear()
        if rows_BLW is None or rows_BLW.shape[-1] == width:
            return positional, named
        named = {**named, "inputs_embeds": rows_BLW[..., :width]}
        if kind in _MARKED:
            is_image_BL = rows_BLW[..., width] > 0.5
            # Zeros of PaliGemma are the prompt, all of which sees itself.
            named["token_type_ids"] = is_image_BL.long() if kind == "gemma3" else torch.zeros_like(is_image_BL).long()
        else:
            deep.extend(rows_BLW[..., width:].split(width, dim=-1))
        return positional, named

    def deepen(_module: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not deep:
            return positional, named
        # Texts have zeros there, which change nothing.
        mask_BL = torch.ones(deep[0].shape[:2], dtype=torch.bool, device=deep[0].device)
        features = [each.flatten(0, 1) for each in deep]
        return positional, {**named, "visual_pos_masks": mask_BL, "deepstack_visual_embeds": features}

    model.register_forward_pre_hook(narrow, with_kwargs=True)
    if kind == "qwen3_vl":
        model.model.language_model.register_forward_pre_hook(deepen, with_kwargs=True)


def _stack(frames: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])


def _describe(frames: Sequence[Image.Image], times: Sequence[float]) -> dict[str, Any]:
    """Return the arguments that tell a processor when its frames were sampled."""
    from transformers.video_utils import VideoMetadata

    # In milliseconds, because processors compute seconds as index / rate: clips of variable rate keep their times.
    step = (times[-1] - times[0]) / max(1, len(times) - 1)
    seconds = times[-1] - times[0] + (step or 1.0)
    metadata = VideoMetadata(
        total_num_frames=max(len(frames), round(seconds * 1000)),
        fps=1000,
        duration=seconds,
        frames_indices=[round(time * 1000) for time in times],
        width=frames[0].width,
        height=frames[0].height,
    )
    return {"do_sample_frames": False, "video_metadata": [metadata]}


def _count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens with which both begin."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
