"""A folder for `LlavaForConditionalGeneration`: CLIP or SigLIP, an MLP, a Llama or Qwen2 decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveate.core.errors import UserError
from foveate.mllm.export import (
    ExportReport,
    Job,
    chat_template,
    check_parts,
    copy_tokenizer,
    decoder_config,
    decoder_weights,
    fold_prefix,
    measure_differences,
    write_export,
)
from foveate.multimodal.folder import LoadedModel
from foveate.records.conversations import IMAGE
from foveate.vision.open_clip.export import clip_image_processor

LOADING = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder")
processor = AutoProcessor.from_pretrained("this folder")
```"""


def read_parts(loaded: LoadedModel, *, target: str, geometries: tuple[str, ...]) -> tuple[dict[str, Any], Any]:
    """Check a model for the classes of LLaVA; return the fields of their configs, and the tower's network.

    Raises:
        UserError: see `check_parts`; or the tower is not read behind a hidden layer, without norm.
    """
    model = loaded.model
    trunk = check_parts(model, target=target, towers=("clip", "siglip"), connector="mlp", geometries=geometries)
    layer, norm = model.settings.tower.get("layer"), model.settings.tower.get("norm", False)
    if layer is None or norm:
        raise UserError(
            f"tower.layer, tower.norm: {target} reads a hidden layer without its norm (got {layer}, {norm}); expected "
            "layer: -2, or another, and norm: false"
        )
    text = decoder_config(loaded)
    fields = {
        "vision_config": trunk.config.to_dict(),
        "text_config": text,
        # LLaVA-NeXT's config does not take it from the decoder's.
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "image_token_index": loaded.tokenizer.special[IMAGE],
        "vision_feature_layer": layer,
        # SigLIP has no class token to leave out.
        "vision_feature_select_strategy": "default" if model.settings.tower["kind"] == "clip" else "full",
        "multimodal_projector_bias": bool(model.settings.connector.get("bias", True)),
    }
    return fields, trunk


def read_weights(loaded: LoadedModel, trunk: Any) -> dict[str, Tensor]:
    """Return the weights under the names of the classes of LLaVA."""
    model = loaded.model
    connector = dict(model.connector.state_dict())
    bias = "linear_2.bias" if "linear_2.bias" in connector else None
    fold_prefix(model, connector, weight="linear_2.weight", bias=bias)
    weights = {f"model.vision_tower.{name}": value for name, value in trunk.state_dict().items()}
    weights |= {f"model.multi_modal_projector.{name}": value for name, value in connector.items()}
    return weights | decoder_weights(model, "language_model")


def processor_options(loaded: LoadedModel, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a processor of LLaVA beside its image processor."""
    strategy = fields["vision_feature_select_strategy"]
    return {
        "tokenizer": copy_tokenizer(loaded),
        "patch_size": fields["vision_config"]["patch_size"],
        "vision_feature_select_strategy": strategy,
        # CLIP's class token: LlavaProcessor adds it to the patch count and, by strategy, subtracts it again.
        "num_additional_image_tokens": int(strategy == "default"),
        "chat_template": chat_template(loaded),
    }


def export(job: Job) -> ExportReport:
    """Write the folder, load it with transformers and compare."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    loaded = job.loaded
    geometries = ("letterbox", "center_crop", "stretch")
    fields, trunk = read_parts(loaded, target="LlavaForConditionalGeneration", geometries=geometries)
    images = clip_image_processor(loaded.model.tower.preprocess)
    config = LlavaConfig(**fields, image_seq_length=loaded.model.connector.num_tokens)
    model = LlavaForConditionalGeneration(config).eval()
    model.load_state_dict(read_weights(loaded, trunk))
    processor = LlavaProcessor(images, **processor_options(loaded, fields))
    theirs, reopened = write_export(job, model, processor)
    differences = measure_differences(
        job, theirs, lambda image: dict(reopened.image_processor(image, return_tensors="pt"))
    )
    return ExportReport(LOADING, differences)
