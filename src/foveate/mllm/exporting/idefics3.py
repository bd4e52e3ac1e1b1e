"""A folder for `Idefics3ForConditionalGeneration`: SigLIP behind its norm, pixel shuffle, a Llama or Qwen2 decoder."""

from __future__ import annotations

from typing import Any

import torch

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
    image_processor,
    measure_differences,
    write_export,
)
from foveate.mllm.exporting.llava import LOADING
from foveate.records.conversations import IMAGE

# `Idefics3Processor` writes these around an image and knows no other names.
_FRAME = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
_NOTE = (
    "Idefics3Processor writes <fake_token_around_image><global-img> in front of an image and "
    "<fake_token_around_image> behind it, which this model was not trained on (their embeddings are zero): logits are "
    "this model's for its own ids, answers to the processor's prompts may differ."
)
_TOWER = (
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


def export(job: Job) -> ExportReport:
    """Write the folder, load it with transformers and compare."""
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
    tokenizer = copy_tokenizer(loaded, added=_FRAME)
    frame = tokenizer.convert_tokens_to_ids(list(_FRAME))
    weights = _read_weights(job, trunk, rows=max(frame) + 1)
    text = {**decoder_config(loaded), "vocab_size": max(frame) + 1}
    connector: Any = ours.connector
    fields: dict[str, Any] = {
        "vision_config": {name: getattr(trunk.config, name) for name in _TOWER},
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
    return ExportReport(LOADING, differences, [_NOTE])


def _read_weights(job: Job, trunk: Any, *, rows: int) -> dict[str, torch.Tensor]:
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
