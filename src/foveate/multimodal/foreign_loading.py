"""Load networks of transformers from folders of strangers: placed, quantized and checked, and no code of theirs run."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, loading
from foveate.multimodal.settings import OpeningOptions


def load_foreign(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device = "cpu",
    config: Any = None,
    opening: OpeningOptions | None = None,
) -> Any:
    """Load the network of an image-text-to-text model of transformers, for inference.

    Args:
        config: instead of the checkpoint's, as changed by the caller.

    Raises:
        UserError: its weights are a pickle, incomplete, or not those of the config; or what `opening` needs is missing.
    """
    from transformers import AutoModelForImageTextToText

    opening, device = opening or OpeningOptions(), torch.device(device)
    placement = _place_weights(opening, device)
    checkpoint.weights()
    with loading(checkpoint.name, kind="it as an image-text-to-text model"):
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(checkpoint.folder),
            config=config,
            use_safetensors=True,
            # As stored on an accelerator; processors compute float32 faster.
            dtype=opening.dtype or ("float32" if device.type == "cpu" else "auto"),
            output_loading_info=True,
            **placement,
        )
    check_loaded(report, name=checkpoint.name)
    return (model if placement else model.to(device)).eval().requires_grad_(False)


def _place_weights(opening: OpeningOptions, device: torch.device) -> dict[str, Any]:
    """Return how `from_pretrained` places and quantizes weights; nothing where they are moved to the device afterwards.

    Raises:
        UserError: a library or a GPU is missing.
    """
    needs = ["accelerate"] * (opening.device_map is not None) + ["accelerate", "bitsandbytes"] * bool(opening.quantize)
    if opening.quantize and device.type != "cuda":
        raise UserError(
            f"quantize: {opening.quantize} needs a CUDA GPU (got device {device}); expected --dtype bfloat16"
        )
    if missing := [name for name in dict.fromkeys(needs) if importlib.util.find_spec(name) is None]:
        option = "quantize" if opening.quantize else "device map"
        raise UserError(f"{option}: needs {' and '.join(missing)}; run `pip install 'foveate[gpu]'`")
    if not needs:
        return {}
    # bitsandbytes quantizes weights while they are loaded onto the GPU, so they cannot be moved there afterwards.
    placement: dict[str, Any] = {"device_map": opening.device_map or {"": device}}
    if opening.quantize:
        from transformers import BitsAndBytesConfig

        placement["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return placement
