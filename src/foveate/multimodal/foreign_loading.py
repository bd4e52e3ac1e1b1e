"""Open what strangers saved for transformers: processor, chat template and network; code of theirs is never run."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from safetensors import safe_open

from foveate.core.errors import UserError
from foveate.core.hub import Checkpoint, check_loaded, fetch, loading
from foveate.multimodal.foreign_boxes import check_family, find_unit
from foveate.multimodal.settings import OpeningOptions

# Chat templates of families whose released processors have none. PaliGemma's processor begins and ends the line itself
# (big_vision).
_TEMPLATES = {
    # As in transformers' documentation of Kosmos-2; its processor writes the image in front of all text itself.
    "kosmos-2": (
        "{% if messages | map(attribute='role') | join(' ') not in ('user', 'user assistant') %}"
        "{{ raise_exception('Kosmos-2 answers single questions') }}{% endif %}"
        "<grounding> Question:{% for part in messages[0]['content'] if part['type'] == 'text' %} {{ part['text'] }}"
        "{% endfor %} Answer:{% for message in messages[1:] %} {{ message['content'][0]['text'] }}</s>{% endfor %}"
    ),
    "paligemma": (
        "{% if messages | length > 1 %}{{ raise_exception('PaliGemma answers single questions') }}{% endif %}"
        "{% for part in messages[0]['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    ),
}


def read_foreign(
    source: str, *, revision: str | None = None, unit: str | None = None
) -> tuple[Checkpoint, Any, str | None]:
    """Return files, processor and unit of boxes of an image-text-to-text model; its weights are not loaded.

    Raises:
        UserError: see `open_foreign`.
    """
    checkpoint = fetch(source, revision=revision, field="model")
    model_type = str(checkpoint.config().get("model_type"))
    check_family(model_type, unit, source=source)
    # `_frame` reads the resized size from the grid of patches that the processors of Qwen return.
    if unit == "resized-pixels" and not model_type.startswith("qwen"):
        raise UserError(f"unit of boxes: '{model_type}' tells no resized image (got '{unit}'); expected another unit")
    checkpoint.weights()  # refuses pickles, before transformers looks for a processor
    processor = open_processor(checkpoint)
    return checkpoint, processor, unit or find_unit(model_type, processor)


def open_processor(checkpoint: Checkpoint) -> Any:
    """Open the processor of a checkpoint, with the chat template of its family where it brings none.

    Raises:
        UserError: it cannot be opened, or has no chat template.
    """
    from transformers import AutoProcessor

    with loading(checkpoint.name, kind="it as an image-text-to-text model"):
        processor: Any = AutoProcessor.from_pretrained(str(checkpoint.folder), trust_remote_code=False)
    if not getattr(processor, "chat_template", None):
        processor.chat_template = _TEMPLATES.get(str(checkpoint.config().get("model_type")))
    if not processor.chat_template:
        raise UserError(
            f"{checkpoint.name}: its processor has no chat template; expected chat_template.jinja in the folder"
        )
    return processor


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
        _check_layers(checkpoint)
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(checkpoint.folder),
            config=config,
            use_safetensors=True,
            # As stored on an accelerator; processors compute float32 faster.
            dtype=opening.dtype or ("float32" if device.type == "cpu" else "auto"),
            output_loading_info=True,
            # `check_loaded` names the tensor and both shapes, transformers' error does not.
            ignore_mismatched_sizes=True,
            **placement,
        )
    check_loaded(report, name=checkpoint.name)
    return (model if placement else model.to(device)).eval().requires_grad_(False)


# What configs call the number of their layers; `max_window_layers` of Qwen may be larger.
_LAYERS = ("num_hidden_layers", "num_layers", "depth")


def _check_layers(checkpoint: Checkpoint) -> None:
    """Raise UserError for more layers than tensors: to build a million, which no weights fill, takes minutes."""
    num_tensors = 0
    for file in checkpoint.weights():
        with safe_open(file, framework="pt") as tensors:
            num_tensors += len(tensors.keys())
    config = checkpoint.config()
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, value in part.items():
            if name in _LAYERS and isinstance(value, int) and value > num_tensors:
                raise UserError(
                    f"{checkpoint.name}: config.json: {name}: {value:,}; expected at most {num_tensors:,}, as many as "
                    "its weights have tensors"
                )


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
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            # The scales are quantized too, as in QLoRA (arXiv 2305.14314, section 3).
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return placement
