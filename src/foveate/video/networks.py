"""The interface that video needs from an image model: frame tokens, text embeddings, pixel rule, context limit.

One adapter serves five classes of transformers. It calls tower and projector directly: `get_image_features` of three of
them expects tiles, and adds newline tokens that video must not have. `families` serves those whose own image path makes
a grid. Models of `foveate mllm train` have their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from foveate.core.devices import choose_device
from foveate.core.errors import UserError
from foveate.core.files import read_json
from foveate.core.hub import Checkpoint, fetch, loading
from foveate.language.chat import frame_of_template
from foveate.language.positions import scale_rope
from foveate.language.tokenizer import wrap_transformers
from foveate.multimodal.folder import hash_model, load_model
from foveate.multimodal.foreign_loading import load_foreign
from foveate.multimodal.opening import find_native_folder, knows_scenes_alone, refuse_opening
from foveate.multimodal.settings import OpeningOptions
from foveate.video.adapter import Network, render_frame, wrap_native
from foveate.video.families import GRIDS, add_native, open_processor, wrap_family
from foveate.vision.hf.processors import processor_settings
from foveate.vision.preprocess import Preprocess

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "llava": "vision_feature_layer",
        "llava_next": "vision_feature_layer",
        "llava_next_video": "vision_feature_layer",
        "llava_onevision": "vision_feature_layer",
        "vipllava": "vision_feature_layers",
    }
)
"""model_type -> config field with the hidden layer of the tower, or several, whose channels are joined."""
# Mean and deviation by tower, for folders without an image processor.
_PIXELS = {
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip_vision_model": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
# Classes with a video input of their own.
_WATCHING = frozenset({"llava_next_video", "llava_onevision"})
# The length that LLaVA 1.5 and 1.6 were trained with, which the paper doubles (SlowFast-LLaVA, Section 4.1).
_DOUBLED = 4096


def open_network(
    source: str | Path,
    *,
    device: str | None = None,
    revision: str | None = None,
    rope_factor: float | None = None,
    opening: OpeningOptions | None = None,
) -> Network:
    """Open an image model for video.

    Args:
        source: "mini", a folder of `foveate mllm train`, or a folder or hub id of one of `FAMILIES` or
            `families.GRIDS`.
        device: such as "cpu" or "cuda"; by default the fastest there is.
        rope_factor: stretches the positions by dynamic NTK scaling; 1 = as trained. By default 2 where the model's
            limit is 4,096, as in the paper: up to there results are the same bit for bit.
        opening: dtype, device map and quantization of a model of transformers.

    Raises:
        UserError: no such model, one of another kind, without a tower or with a Q-Former, or an incomplete one.
    """
    folder, torch_device = find_native_folder(source, revision=revision), choose_device(device or "auto")
    if folder is not None:
        refuse_factor(rope_factor)
        refuse_opening(source, opening)
        loaded = load_model(folder, device=torch_device)
        return wrap_native(loaded, name=str(source), scenes_alone=knows_scenes_alone(folder))
    checkpoint = fetch(str(source), revision=revision, field="model")
    if is_grid(checkpoint):
        refuse_factor(rope_factor, owner=checkpoint.name)
        model = load_foreign(checkpoint, device=torch_device, opening=opening)
        return wrap_foreign(model, checkpoint, name=str(source))
    config = read_config(checkpoint)
    # Before the model is built, since it computes its rotary frequencies from the config.
    stretch_positions(config.get_text_config(), rope_factor)
    model = load_foreign(checkpoint, device=torch_device, config=config, opening=opening)
    return wrap_foreign(model, checkpoint, name=str(source))


def wrap_foreign(model: Any, checkpoint: Checkpoint, *, name: str) -> Network:
    """Wrap a model of transformers with the tokenizer and the rule of pixels of its checkpoint.

    Raises:
        UserError: it is of none of `FAMILIES` or `families.GRIDS`, or its files do not fit one another.
    """
    if is_grid(checkpoint):
        # A frame is tried: sizes of zero, wrong token ids and images of another size show here.
        with loading(name, kind="the frames"):
            return wrap_family(model, checkpoint, name=name)
    preprocess = _read_preprocess(checkpoint, read_config(checkpoint))
    tokenizer, template = _read_tokenizer(checkpoint)
    network = wrap_llava(model, name=name, preprocess=preprocess, tokenizer=tokenizer, template=template)
    files = ("video_preprocessor_config.json", "processor_config.json")
    if model.config.model_type not in _WATCHING or not any((checkpoint.folder / file).is_file() for file in files):
        return network
    return add_native(network, open_processor(checkpoint))


def is_grid(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is of one of `families.GRIDS`."""
    return checkpoint.config().get("model_type") in GRIDS


def hash_weights(source: str | Path, *, revision: str | None = None) -> str:
    """Hash the weights of what `open_network` opens."""
    folder = find_native_folder(source, revision=revision)
    return fetch(str(source), revision=revision, field="model").digest() if folder is None else hash_model(folder)[:16]


def wrap_llava(
    model: Any, *, name: str, preprocess: Preprocess, tokenizer: Any = None, template: str | None = None
) -> Network:
    """Wrap a model of one of `FAMILIES`.

    Args:
        preprocess: of a frame; the paper squashes it to a square, without a crop or padding.
        tokenizer: of transformers. template: its chat template, Jinja; by default LLaVA's "USER: ... ASSISTANT:".
    """
    config, inner = model.config, model.model
    side, _ = find_grid(config)
    layers, device, dtype = getattr(config, FAMILIES[config.model_type]), model.device, model.dtype

    @torch.inference_mode()
    def encode(pixels_T3HW: Tensor) -> Tensor:
        # Normalized in float32, as in the official code, and only then cast to the dtype of the tower's weights.
        pixels = preprocess.normalize(pixels_T3HW.to(device)).to(dtype)
        with loading(name, kind="the frames"):
            hidden = inner.vision_tower(pixels, output_hidden_states=True).hidden_states
            features = torch.cat([hidden[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        # The patches are last: a class token, which has no place in the grid, is dropped as LLaVA's "default" does.
        if features.shape[1] < side * side:
            raise UserError(f"{name}: its tower gives {features.shape[1]} tokens; expected a grid of {side} x {side}")
        return inner.multi_modal_projector(features[:, -side * side :])

    wrapped = None if tokenizer is None else wrap_transformers(tokenizer, source=name)
    ends = model.generation_config.eos_token_id
    stop = {ends} if isinstance(ends, int) else set(ends or ())
    if wrapped is not None:
        stop.add(wrapped.end)
    image_id = getattr(config, "image_token_id", None)
    return Network(
        name=name,
        language=model,
        tower=inner.vision_tower,
        projector=inner.multi_modal_projector,
        preprocess=preprocess,
        grid=(side, side),
        encode=encode,
        render=lambda image: render_frame(preprocess, image),
        tokenizer=wrapped,
        frame=frame_of_template(tokenizer, template, image=None if image_id is None else int(image_id), name=name),
        stop=frozenset(stop),
    )


def stretch_positions(config: Any, factor: float | None) -> None:
    """Set dynamic NTK scaling of RoPE in a text config; see `open_network` for the factor.

    Source: SlowFast-LLaVA (arXiv 2407.15841), Section 4.1.
    """
    if factor is None:
        rope = getattr(config, "rope_parameters", None) or {}
        is_doubled = getattr(config, "max_position_embeddings", None) == _DOUBLED
        # A model whose positions are scaled already keeps its own scaling.
        factor = 2 if is_doubled and rope.get("rope_type") == "default" else 1
    scale_rope(config, factor)


def refuse_factor(factor: float | None, *, owner: str = "models of foveate mllm train") -> None:
    """Raise UserError for a factor that stretches the positions of a model which cannot take one."""
    if factor not in (None, 1):
        raise UserError(f"rope_factor: not for {owner} (got {factor}); leave it out")


def find_grid(config: Any) -> tuple[int, int]:
    """Return rows and columns of the tokens of a frame from the config of one of `FAMILIES`."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side


def read_config(checkpoint: Checkpoint) -> Any:
    """Read the config of one of `FAMILIES`; raise UserError for any other."""
    from transformers import AutoConfig

    model_type = str(checkpoint.config().get("model_type"))
    if model_type in GRIDS:
        raise UserError(
            f"{checkpoint.name}: tokens of '{model_type}' are known to its processor alone and cannot be planned from "
            f"its config; expected one of {', '.join(FAMILIES)}"
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"{checkpoint.name}: video needs a square grid of tokens for each frame (got model_type '{model_type}'); "
            f"expected one of {', '.join([*FAMILIES, *GRIDS])}, or a model of foveate mllm train"
        )
    with loading(checkpoint.name):
        # Explicitly False: by default transformers asks on the terminal whether to run the code of a repository.
        config = AutoConfig.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    tower = config.vision_config
    # Pixtral has an image_size too, but its grid depends on each image.
    if tower.model_type == "pixtral" or not isinstance(getattr(tower, "image_size", None), int):
        raise UserError(f"{checkpoint.name}: its tower '{tower.model_type}' has no fixed grid; expected CLIP or SigLIP")
    return config


def _read_preprocess(checkpoint: Checkpoint, config: Any) -> Preprocess:
    """Return the rule of pixels: squash to the tower's side, bicubic, with the mean and deviation of the processor."""
    tower = config.vision_config
    files = ("preprocessor_config.json", "processor_config.json")
    if any((checkpoint.folder / name).is_file() for name in files):
        settings = processor_settings(checkpoint)
        mean, std, interpolation = settings["mean"], settings["std"], settings["interpolation"]
    elif tower.model_type in _PIXELS:
        (mean, std), interpolation = _PIXELS[tower.model_type], "bicubic"
    else:
        raise UserError(f"{checkpoint.folder}: no preprocessor_config.json; expected the mean and deviation of pixels")
    # The crop, padding and tiles of the model's own processor are ignored: the official code squashes each frame to a
    # square (its aspect mode `resize`).
    return Preprocess(size=tower.image_size, mean=mean, std=std, interpolation=interpolation, geometry="stretch")


def _read_tokenizer(checkpoint: Checkpoint) -> tuple[Any, str | None]:
    """Return the tokenizer of transformers and its chat template; None and None where the folder has no tokenizer."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    if not any((checkpoint.folder / name).is_file() for name in files):
        return None, None
    with loading(checkpoint.name, kind="its tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    template = tokenizer.chat_template
    # Written by processors before transformers 4.45 or so.
    path = checkpoint.folder / "chat_template.json"
    if template is None and path.is_file():
        content = read_json(path)
        template = content.get("chat_template") if isinstance(content, dict) else None
    return tokenizer, template
