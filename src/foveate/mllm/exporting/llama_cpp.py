"""Two GGUF files for llama.cpp: the language model with its vocabulary, and tower and MLP as `mmproj`.

llama.cpp's own converter reads no LLaVA with a CLIP or SigLIP tower. It identifies tokenizers by a hash of their output
for one text, so it refuses every vocabulary of a collection (convert_hf_to_gguf.py, 0c1e57098).
"""

from __future__ import annotations

import json
import re
from typing import Any

from torch import Tensor

from foveate.core.errors import UserError
from foveate.language.gguf import Value, write_gguf
from foveate.language.llama_gguf import (
    CONTROL,
    LAYER_NAMES,
    NORMAL,
    TOP_NAMES,
    USER_DEFINED,
    interleave_halves,
)
from foveate.mllm.export import ExportJob, ExportReport, chat_marks, silent_ids
from foveate.mllm.exporting.hugging_face import read_parts, read_weights
from foveate.multimodal.folder import LoadedModel
from foveate.vision.preprocess import GEOMETRIES, Preprocess

MODEL, PROJECTOR = "model.gguf", "mmproj.gguf"
_LOADING = f"""```bash
llama-server --model {MODEL} --mmproj {PROJECTOR} --temp 0
llama-mtmd-cli --model {MODEL} --mmproj {PROJECTOR} --temp 0 --image holiday.jpg --prompt "What is in the image?"
```"""
# Padding color of images that are not square, in mtmd: clip.cpp, PROJECTOR_TYPE_MLP.
_FILL = (122, 116, 104)
_CLASS_TOKEN = (
    "llama.cpp up to b11549 puts the class token of a CLIP tower behind the patches, where no position and no output "
    "expects it: answers about images differ from this model's until that is mended "
    "(https://github.com/ggml-org/llama.cpp/pull/25844). A SigLIP tower has no class token."
)
_TOWER_NAMES = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    # transformers' own spelling.
    "pre_layrnorm": "v.pre_ln",
}
_BLOCK_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_GELU = {"quick_gelu": False, "gelu": True, "gelu_pytorch_tanh": True}
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def export(job: ExportJob) -> ExportReport:
    """Write both files.

    Raises:
        UserError: see `read_parts`; or the decoder has a part that llama.cpp computes otherwise.
    """
    loaded = job.loaded
    fields, trunk = read_parts(loaded, target="llama.cpp", geometries=GEOMETRIES)
    weights = read_weights(loaded, trunk)
    write_gguf(
        job.folder / MODEL, {**_decoder_fields(loaded), **_vocabulary(loaded)}, _decoder_tensors(loaded, weights)
    )
    # Hidden layers are counted from the end and include the embedding: -1 is after all blocks, -2 before the last one.
    layers = trunk.config.num_hidden_layers + 1 + fields["vision_feature_layer"]
    if layers < 1:
        raise UserError("tower.layer: llama.cpp reads a layer's output (got that of the embedding); expected another")
    tower = _tower_fields(loaded, trunk.config, layers)
    projector = _projector_tensors(weights, layers, trunk.config)
    write_gguf(job.folder / PROJECTOR, tower, projector)
    return ExportReport(
        _LOADING, notes=list_notes(loaded.model.tower.preprocess, class_token="v.class_embd" in projector)
    )


def list_notes(preprocess: Preprocess, *, class_token: bool) -> list[str]:
    """List what llama.cpp does otherwise with images than a model that was trained with `preprocess`."""
    notes = [_CLASS_TOKEN] if class_token else []
    if preprocess.geometry != "letterbox" or preprocess.fill != _FILL:
        fill = f" on {preprocess.fill}" if preprocess.geometry == "letterbox" else ""
        notes.append(
            f"llama.cpp pads an image that is not square with {_FILL}; this model was trained with "
            f"{preprocess.geometry}{fill}. Make images square before, or answers differ."
        )
    if preprocess.interpolation != "bicubic":
        notes.append(
            f"llama.cpp resizes images with a bicubic filter; this model was trained with a {preprocess.interpolation} "
            f"one. Resize images to {preprocess.side} x {preprocess.side} pixels before, or answers may differ."
        )
    return notes


def _decoder_fields(loaded: LoadedModel) -> dict[str, Value]:
    config: Any = loaded.model.language_model.config
    kind = config.model_type
    rope = config.rope_parameters
    for name, value, expected in (
        ("rope_parameters.rope_type", rope.get("rope_type", "default"), "default"),
        ("hidden_act", config.hidden_act, "silu"),
        ("use_sliding_window", getattr(config, "use_sliding_window", False), False),
    ):
        if value != expected:
            raise UserError(f"language.{name}: not written for llama.cpp (got {value}); expected {expected}")
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "general.architecture": kind,
        "general.type": "model",
        "general.file_type": 0,
        "general.quantization_version": 2,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        # By default llama.cpp takes width / heads, from which a config's `head_dim` may differ.
        f"{kind}.attention.key_length": head_width,
        f"{kind}.attention.value_length": head_width,
        f"{kind}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{kind}.rope.dimension_count": head_width,
        f"{kind}.rope.freq_base": float(rope["rope_theta"]),
        f"{kind}.vocab_size": config.vocab_size,
    }


def _vocabulary(loaded: LoadedModel) -> dict[str, Value]:
    """Return the tokenizer: byte-level BPE behind GPT-2's pattern, names whole, marks as control tokens."""
    tokenizer: Any = loaded.tokenizer
    names = {id: name for name, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    kinds = dict.fromkeys(names, NORMAL)
    kinds |= dict.fromkeys(tokenizer.backend.get_added_tokens_decoder(), USER_DEFINED)
    # Marks are added tokens, too, so they are set last and end up as control tokens.
    kinds |= dict.fromkeys(tokenizer.special.values(), CONTROL)
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [names[id] for id in range(len(names))],
        "tokenizer.ggml.token_type": [kinds[id] for id in range(len(names))],
        # tokenizers writes merges as pairs since 0.20; before, as text with a blank between.
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": tokenizer.end,
        # Without it, llama.cpp warns that the end mark is not among the tokens that end an answer.
        "tokenizer.ggml.eot_token_id": tokenizer.end,
        "tokenizer.ggml.padding_token_id": tokenizer.pad,
        # Small vocabularies have no begin mark.
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.suppress_tokens": silent_ids(loaded),
        "tokenizer.chat_template": write_template(loaded),
    }


def write_template(loaded: LoadedModel) -> str:
    """Return the Jinja template of `chat_template` for llama.cpp, which hands over strings with `<__media...__>` marks.

    Its `split` without a separator cuts at single blanks (common/jinja/value.cpp), hence the loop over words.
    """
    before, after, blank = chat_marks(loaded)
    return (
        f"{{%- set before = {before} -%}}{{%- set after = {after} -%}}"
        "{%- set seen = namespace(text=false, lead=true, content='', words='') -%}"
        "{%- for message in messages if message.role != 'system' -%}"
        "{%- for piece in message.content.split('<__media') -%}"
        "{%- if not loop.first and seen.text -%}{%- set seen.lead = false -%}{%- endif -%}"
        "{%- set rest = piece if loop.first else piece.split('__>', 1)[-1] -%}"
        "{%- if rest.strip() -%}{%- set seen.text = true -%}{%- endif -%}"
        "{%- endfor -%}{%- endfor -%}"
        "{%- for message in messages if seen.lead -%}"
        "{%- for piece in message.content.split('<__media') -%}{%- if not loop.first -%}"
        "{{ '<__media' ~ piece.split('__>', 1)[0] ~ '__>' }}"
        "{%- endif -%}{%- endfor -%}{%- endfor -%}"
        "{%- for message in messages -%}{%- set seen.content = '' -%}"
        "{%- for piece in message.content.split('<__media') -%}"
        "{%- if not loop.first and not seen.lead -%}"
        "{%- set seen.content = seen.content.strip() ~ '<__media' ~ piece.split('__>', 1)[0] ~ '__>' -%}{%- endif -%}"
        "{%- set seen.content = seen.content ~ (piece if loop.first else ' ' ~ piece.split('__>', 1)[-1]) -%}"
        "{%- endfor -%}"
        "{%- set seen.words = seen.content.strip() -%}"
        "{%- if message.role == 'user' -%}{%- set seen.words = '' -%}"
        "{%- for word in seen.content.replace('\\n', ' ').replace('\\r', ' ').replace('\\t', ' ').split(' ') -%}"
        "{%- if word -%}{%- set seen.words = seen.words ~ (' ' if seen.words else '') ~ word -%}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
        f"{{%- set start = {blank} if seen.words and not seen.words.startswith('<__media') else '' -%}}"
        "{{ before[message.role] ~ start ~ seen.words ~ after[message.role] }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ before['assistant'] }}{%- endif -%}"
    )


def _decoder_tensors(loaded: LoadedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    config: Any = loaded.model.language_model.config
    top = {name.removeprefix("model."): new for new, name in TOP_NAMES.items()}
    inner = {name: new for new, name in LAYER_NAMES.items()}
    # Qwen2 turns halves as transformers does.
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    heads = heads if config.model_type == "llama" else {}
    tensors = {}
    for name, value in weights.items():
        prefix, _, local_name = name.partition("language_model.")
        match = _LAYER.fullmatch(local_name)
        # `partition` returns a name without the separator whole, as it does for lm_head.weight.
        if prefix not in ("model.", "lm_head.weight"):
            continue
        if match is None:
            tensors[top[local_name or name]] = value
        elif match[3] == "bias" and config.model_type == "llama":
            raise UserError(f"language: llama.cpp has no place for {local_name}; expected a decoder without biases")
        else:
            new = inner[match[2]]
            value = interleave_halves(value, heads[new]) if new in heads else value
            tensors[f"blk.{match[1]}.{new}.{match[3]}"] = value
    # A decoder with a vocabulary of its own always ties its output layer to the table of embeddings.
    assert config.tie_word_embeddings
    del tensors["output.weight"]
    return tensors


def _tower_fields(loaded: LoadedModel, config: Any, layers: int) -> dict[str, Value]:
    preprocess = loaded.model.tower.preprocess
    if config.hidden_act not in _GELU:
        raise UserError(
            f"tower.hidden_act: llama.cpp has no {config.hidden_act} in a tower; expected {' or '.join(_GELU)}"
        )
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.has_llava_projector": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": _GELU[config.hidden_act],
        "clip.vision.image_size": preprocess.side,
        "clip.vision.patch_size": config.patch_size,
        "clip.vision.embedding_length": config.hidden_size,
        "clip.vision.feed_forward_length": config.intermediate_size,
        "clip.vision.projection_dim": loaded.model.width,
        "clip.vision.block_count": layers,
        "clip.vision.feature_layer": [layers],
        "clip.vision.attention.head_count": config.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(config.layer_norm_eps),
        "clip.vision.image_mean": [float(value) for value in preprocess.mean],
        "clip.vision.image_std": [float(value) for value in preprocess.std],
    }


def _projector_tensors(weights: dict[str, Tensor], layers: int, config: Any) -> dict[str, Tensor]:
    tensors = {}
    for name, value in weights.items():
        local_name = name.partition("vision_tower.")[2].removeprefix("vision_model.")
        stem, _, kind = local_name.rpartition(".")
        match = _BLOCK.fullmatch(local_name)
        if match is not None and int(match[1]) < layers:
            tensors[f"v.blk.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"] = value
        elif local_name in _TOWER_NAMES:
            tensors[_TOWER_NAMES[local_name]] = value
        elif stem in _TOWER_NAMES:
            tensors[f"{_TOWER_NAMES[stem]}.{kind}"] = value
    for number, name in ((0, "linear_1"), (2, "linear_2")):
        weight = weights[f"model.multi_modal_projector.{name}.weight"]
        bias = weights.get(f"model.multi_modal_projector.{name}.bias")
        # clip.cpp adds both biases unconditionally, so a missing one is written as zeros.
        tensors |= {
            f"mm.{number}.weight": weight,
            f"mm.{number}.bias": weight.new_zeros(len(weight)) if bias is None else bias,
        }
    if config.intermediate_size == config.hidden_size:
        # clip.cpp takes files in which `up` is as wide as the tower for old ones, whose names were swapped.
        tensors = {swap_names(name): value for name, value in tensors.items()}
    return tensors


def swap_names(name: str) -> str:
    """Exchange `up` and `down` in the name of a weight of a tower."""
    return re.sub(r"ffn_(up|down)", lambda match: "ffn_down" if match[1] == "up" else "ffn_up", name)


TARGETS = {"llama-cpp": export}
