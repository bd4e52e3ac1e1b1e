"""Both towers as a folder that `open_clip.create_model("local-dir:FOLDER")` loads: same embeddings, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, write_bytes_atomically, write_json_atomically
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_SHARED_BY_TOWERS = ("embed_dim", "quick_gelu")
_RESIZE_MODES = {"letterbox": "longest", "center_crop": "shortest", "stretch": "squash"}


def check_pair(image: OpenClipImageEncoder, text: OpenClipTextEncoder) -> None:
    """Raise UserError, naming the field that differs, for towers that one open_clip model cannot hold."""
    for key in _SHARED_BY_TOWERS:
        ours, theirs = image.model_config.get(key), text.model_config.get(key)
        if ours != theirs:
            raise UserError(
                f"the image tower has {key} {ours} and the text tower {theirs}: open_clip holds one for both; "
                "`--to onnx` and `--to embeddings` take this model as it is"
            )


def export_open_clip(
    image: OpenClipImageEncoder,
    text: OpenClipTextEncoder,
    *,
    log_scale: Tensor | float,
    folder: Path,
    logit_bias: float | None = None,
) -> None:
    """Write open_clip_config.json, open_clip_model.safetensors and the tokenizer's files, if it has any.

    Args:
        image, text: towers of the same joint width.
        log_scale: logarithm of 1 / temperature.
        folder: created if it does not exist.
        logit_bias: of a sigmoid loss between images and texts; None for a softmax.

    Raises:
        UserError: see `check_pair`.
    """
    check_pair(image, text)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"visual.{name}": value for name, value in image.visual.state_dict().items()}
    state |= text.text_model.state_dict()
    # A scalar in open_clip; here it has shape (1,), for FSDP2.
    state["logit_scale"] = torch.as_tensor(log_scale, dtype=torch.float32).reshape(())
    model = {key: value for key, value in text.model_config.items() if key != "init_logit_bias"}
    if logit_bias is not None:
        state["logit_bias"] = torch.tensor(float(logit_bias))
        model["init_logit_bias"] = float(logit_bias)
    temporary = folder / (WEIGHTS_FILE + ".partial")
    # Cloned, because safetensors refuses tensors that share memory.
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, temporary)
    commit_atomically(temporary, folder / WEIGHTS_FILE)
    preprocess = image.preprocess
    for name, content in text.tokenizer_files().items():
        write_bytes_atomically(folder / name, content)
    write_json_atomically(
        folder / CONFIG_FILE,
        {
            "model_cfg": {
                **model,
                "vision_cfg": image.model_config["vision_cfg"],
                "text_cfg": _self_contained(text),
            },
            "preprocess_cfg": {
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
                "interpolation": preprocess.interpolation,
                "resize_mode": _RESIZE_MODES[preprocess.geometry],
                # open_clip fills with one gray level.
                "fill_color": round(math.fsum(preprocess.fill) / 3),
            },
        },
    )


def _self_contained(text: OpenClipTextEncoder) -> dict[str, Any]:
    """Return the text configuration, with the name of a tokenizer of `transformers` where the folder has one."""
    config = dict(text.model_config["text_cfg"])
    if hasattr(text.tokenizer, "save_pretrained") and not config.get("hf_tokenizer_name"):
        config["hf_tokenizer_name"] = text.model_name
    return config
