"""Read LLaVA and LLaVA-NeXT in the format of transformers as the parts of a model of ours.

LLaVA was trained on images padded to a square, but its processor in transformers crops the center; here they are
padded. LLaVA-NeXT's vector behind each row of its merged tiles, and its removal of padding, have no counterpart: the
tokens of the tiles, padding included, follow row by row.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, loading
from foveate.mllm.checkpoints.parts import ImportedParts
from foveate.vision.hf.processors import processor_settings
from foveate.vision.hf.towers import KIND_OF_TYPE
from foveate.vision.tiling import preset_options

MODEL_TYPES = ("llava", "llava_next")


def read_llava(checkpoint: Checkpoint) -> ImportedParts:
    """Read a folder of LLaVA or LLaVA-NeXT.

    Raises:
        UserError: it has parts that no model of ours has.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    checkpoint.weights()  # refuses pickles, before transformers looks for weights
    folder = str(checkpoint.folder)
    with loading(checkpoint.name):
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    vision, layer = config.vision_config, config.vision_feature_layer
    kind = KIND_OF_TYPE.get(vision.model_type)
    strategy = {"clip": "default", "siglip": "full"}.get(str(kind))
    for name, value, expected in (
        ("vision_config.model_type", kind if strategy else vision.model_type, kind if strategy else "clip, siglip"),
        ("vision_feature_select_strategy", config.vision_feature_select_strategy, strategy),
        ("vision_feature_layer", layer, layer if isinstance(layer, int) and layer < 0 else "a layer from the end: -2"),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
    ):
        if value != expected:
            raise UserError(f"{checkpoint.name}: field {name}: not supported (got {value}); expected {expected}")
    with loading(checkpoint.name):
        theirs, report = AutoModelForImageTextToText.from_pretrained(
            folder, use_safetensors=True, dtype="auto", trust_remote_code=False, output_loading_info=True,
            # `check_loaded` names the tensor, transformers' error does not.
            ignore_mismatched_sizes=True,
        )  # fmt: skip
        check_loaded(report, name=checkpoint.name)
    processor = processor_settings(checkpoint)
    next_ = config.model_type == "llava_next"
    # LLaVA pads with the processor's mean, truncated to whole levels; LLaVA-NeXT's "stretch" leaves nothing to fill.
    fill = [0, 0, 0] if next_ else [int(255 * value) for value in processor["mean"]]
    settings: dict[str, Any] = {
        "tower": {
            "kind": kind,
            "config": json.loads(vision.to_json_string(use_diff=False)),
            "preprocess": {**processor, "fill": fill, "geometry": "stretch" if next_ else "letterbox"},
            "layer": layer,
            "projection": "new",
            "embed_dim": 1,
        },
        "connector": {"kind": "mlp", "bias": bool(config.multimodal_projector_bias)},
        "visual_positions": False,
    }
    if kind == "siglip":
        del settings["tower"]["projection"], settings["tower"]["embed_dim"]
    side = int(vision.image_size)
    if next_:
        grids = tuple(f"{height // side}x{width // side}" for height, width in config.image_grid_pinpoints)
        settings["assembly"] = {
            "tiling": preset_options("llava-next", tile=side, grids=grids).model_dump(mode="json"),
            "indicator": "none",
            "tokens_per_view": (side // vision.patch_size) ** 2,
            "token_order": "rows",
            "max_split_images": 1,
        }
    return ImportedParts(
        settings,
        decoder=_take_decoder(theirs, config.text_config),
        tower=dict(theirs.model.vision_tower.state_dict()),
        connector=dict(theirs.model.multi_modal_projector.state_dict()),
    )


def _take_decoder(theirs: Any, config: Any) -> Any:
    """Return the language model without tower and connector, on the same tensors."""
    from transformers import AutoModelForCausalLM

    state = {f"model.{name}": value for name, value in theirs.model.language_model.state_dict().items()}
    with torch.device("meta"):
        decoder = AutoModelForCausalLM.from_config(config, dtype=theirs.dtype)
    decoder.load_state_dict({**state, "lm_head.weight": theirs.lm_head.weight}, assign=True)
    return decoder
