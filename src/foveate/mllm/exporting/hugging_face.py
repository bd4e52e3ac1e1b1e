"""Export as folders that transformers opens (LLaVA, LLaVA-NeXT, Idefics3), or the LoRA alone for PEFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.lora import lora_layers, save_lora
from foveate.mllm.export import (
    ExportJob,
    ExportReport,
    chat_template,
    check_parts,
    copy_tokenizer,
    decoder_config,
    decoder_weights,
    fold_prefix,
    image_processor,
    measure_differences,
    measure_views,
    write_export,
)
from foveate.multimodal.folder import LoadedModel
from foveate.multimodal.settings import SourceSettings
from foveate.records.conversations import IMAGE
from foveate.vision.open_clip.export import clip_image_processor

LOADING = """```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder")
processor = AutoProcessor.from_pretrained("this folder")
```"""
# Grids of LLaVA-1.6 as rows and columns of views.
_NEXT_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_NEXT_NOTE = (
    "LlavaNextProcessor always shows an overview and its tiles, joined row by row, with a vector (here zero) behind "
    "each row: each view's visual tokens are this model's, answers about an image are not, as it was trained on one "
    "view; tune it further or use --to llava."
)
# `Idefics3Processor` writes these around an image and knows no other names.
_IDEFICS3_FRAME = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
_IDEFICS3_NOTE = (
    "Idefics3Processor writes <fake_token_around_image><global-img> in front of an image and "
    "<fake_token_around_image> behind it, which this model was not trained on (their embeddings are zero): logits are "
    "this model's for its own ids, answers to the processor's prompts may differ."
)
_IDEFICS3_TOWER = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
_PEFT_LOADING = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("its language model"), "this folder")
```"""
_PEFT_NOTE = "The adapter holds the language model's pairs alone: without tower and connector it reads no images."


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


def export_llava(job: ExportJob) -> ExportReport:
    """Write a folder for `LlavaForConditionalGeneration`: CLIP or SigLIP, an MLP, a Llama or Qwen2 decoder."""
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


def export_llava_next(job: ExportJob) -> ExportReport:
    """Write a folder for `LlavaNextForConditionalGeneration`: LLaVA's parts, and tiles that it was not trained on."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    loaded = job.loaded
    # Its processor stretches the overview.
    fields, trunk = read_parts(loaded, target="LlavaNextForConditionalGeneration", geometries=("stretch",))
    side = loaded.model.tower.preprocess.side
    pinpoints = [[rows * side, columns * side] for rows, columns in _NEXT_GRIDS]
    sizes = {
        "size": {"height": side, "width": side},
        "crop_size": {"height": side, "width": side},
        "image_grid_pinpoints": pinpoints,
    }
    images = image_processor(loaded, LlavaNextImageProcessor, sizes)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**fields, image_grid_pinpoints=pinpoints)).eval()
    width = loaded.model.width
    # The class expects a vector for the ends of rows, which this model never had.
    model.load_state_dict(read_weights(loaded, trunk) | {"model.image_newline": torch.zeros(width)})
    theirs, reopened = write_export(job, model, LlavaNextProcessor(images, **processor_options(loaded, fields)))
    # Twice as wide as high, so that there are tiles behind the overview.
    noise = torch.randint(0, 256, (3, side, 2 * side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = reopened.image_processor(noise, return_tensors="pt")
    with torch.no_grad():
        (tokens_LE,) = theirs.get_image_features(**inputs).pooler_output
    count = loaded.model.connector.num_tokens
    # The overview comes first; the rest is the tiles' rows.
    overview = measure_views(loaded.model, inputs["pixel_values"][0, :1], tokens_LE[None, :count])
    return ExportReport(LOADING, {"visual tokens of the overview": overview}, [_NEXT_NOTE])


def export_idefics3(job: ExportJob) -> ExportReport:
    """Write a folder for `Idefics3ForConditionalGeneration`: SigLIP, pixel shuffle, a Llama or Qwen2 decoder."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    loaded, target = job.loaded, "Idefics3ForConditionalGeneration"
    ours = loaded.model
    # Its processor stretches an image that is not split.
    trunk = check_parts(ours, target=target, towers=("siglip",), connector="pixel_shuffle", geometries=("stretch",))
    layer, norm = ours.settings.tower.get("layer"), ours.settings.tower.get("norm", False)
    if layer is not None and (layer != -1 or not norm):
        raise UserError(
            f"tower.layer, tower.norm: {target} reads the last layer behind its norm (got {layer}, {norm}); expected "
            "layer: -1 and norm: true, or neither"
        )
    tokenizer = copy_tokenizer(loaded, added=_IDEFICS3_FRAME)
    frame = tokenizer.convert_tokens_to_ids(list(_IDEFICS3_FRAME))
    weights = _read_idefics3_weights(job, trunk, rows=max(frame) + 1)
    text = {**decoder_config(loaded), "vocab_size": max(frame) + 1}
    connector: Any = ours.connector
    fields: dict[str, Any] = {
        "vision_config": {name: getattr(trunk.config, name) for name in _IDEFICS3_TOWER},
        "text_config": text,
        "scale_factor": connector.factor,
        "image_token_id": loaded.tokenizer.special[IMAGE],
        "pad_token_id": loaded.tokenizer.pad,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
    }
    model = Idefics3ForConditionalGeneration(Idefics3Config(**fields)).eval()
    model.load_state_dict(weights)
    side = ours.tower.preprocess.side
    sizes = {"size": {"height": side, "width": side}, "max_image_size": {"longest_edge": side}}
    images = image_processor(loaded, Idefics3ImageProcessor, {**sizes, "do_image_splitting": False})
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=ours.connector.num_tokens, chat_template=chat_template(loaded)
    )
    theirs, reopened = write_export(job, model, processor, suppressed=frame)
    differences = measure_differences(
        job, theirs, lambda image: dict(reopened.image_processor([[image]], return_tensors="pt"))
    )
    return ExportReport(LOADING, differences, [_IDEFICS3_NOTE])


def _read_idefics3_weights(job: ExportJob, trunk: Any, *, rows: int) -> dict[str, Tensor]:
    """Return the weights under the names of the class, with rows of zeros for the frame of images."""
    connector = dict(job.loaded.model.connector.state_dict())
    fold_prefix(job.loaded.model, connector, weight="modality_projection.proj.weight", bias=None)
    weights = decoder_weights(job.loaded.model, "text_model")
    for name in ("model.text_model.embed_tokens.weight", "lm_head.weight"):
        table = weights[name]
        weights[name] = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
    # The attention-pooling head belongs to the joint space.
    tower = {name: value for name, value in trunk.state_dict().items() if not name.startswith("head.")}
    weights |= {f"model.vision_model.{name}": value for name, value in tower.items()}
    return weights | {f"model.connector.{name}": value for name, value in connector.items()}


def export_peft(job: ExportJob) -> ExportReport:
    """Write the LoRA of the language model as an adapter folder of PEFT.

    Raises:
        UserError: the language model has none.
    """
    language_model = job.loaded.model.language_model
    if not dict(lora_layers(language_model)):
        raise UserError("language: it has no LoRA, which --to peft writes; expected a model that was tuned with LoRA")
    settings = job.loaded.model.settings.language
    source, revision = (settings.source, settings.revision) if isinstance(settings, SourceSettings) else (None, None)
    save_lora(language_model, job.folder, source=source, revision=revision)
    return ExportReport(_PEFT_LOADING, notes=[_PEFT_NOTE])


TARGETS = {
    "llava": export_llava,
    "llava-next": export_llava_next,
    "idefics3": export_idefics3,
    "peft": export_peft,
}
