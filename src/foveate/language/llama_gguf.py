"""Llama models from GGUF files: configuration, weights under the names of transformers, and the tokenizer.

llama.cpp stores the rows of the query and key projections with the two halves of each head interleaved; transformers
rotates halves, so the interleaving is undone (https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py, `permute`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import Tensor

from foveate.core.errors import UserError, choose
from foveate.core.model_folder import check_tensors
from foveate.language.gguf import GGUFFile
from foveate.language.tokenizer import BackendTokenizer, place_placeholders

_ARCHITECTURES = ("llama",)
_PRE_TOKENIZERS = ("smollm",)
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of tokenizer.ggml.token_type; llama.cpp finds tokens of the last two in a text before it merges bytes."""
_LARGEST = 1 << 24  # of any size in a configuration
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def read_llama_config(file: GGUFFile) -> Any:
    """Read the configuration of a Llama model as transformers' `LlamaConfig`.

    Raises:
        UserError: another architecture, a missing or impossible field, or one that changes the network in a way that
            is not read (scaled rotary positions, experts).
    """
    from transformers import LlamaConfig

    choose(str(file.metadata.get("general.architecture")), _ARCHITECTURES, f"architecture of {file.path}")
    for name in ("llama.rope.scaling.type", "llama.expert_count"):
        if file.metadata.get(name, 0) not in (0, "none"):
            raise UserError(f"{file.path}: field '{name}' is not read (got {file.metadata[name]!r})")
    width, heads = _size(file, "llama.embedding_length"), _size(file, "llama.attention.head_count")
    key_heads = _size(file, "llama.attention.head_count_kv", default=heads)
    head_width = _size(file, "llama.rope.dimension_count", default=max(width // heads, 1))
    layers = _size(file, "llama.block_count")
    # With a damaged count, millions of layers would be built before the tensor names are compared.
    if layers > len(file.tensors):
        raise UserError(f"{file.path}: field 'llama.block_count' is {layers}; the file has {len(file.tensors)} tensors")
    if width % heads or head_width != width // heads or head_width % 2 or heads % key_heads:
        raise UserError(
            f"{file.path}: width {width}, {heads} heads, {key_heads} key heads and head width {head_width} do not "
            "fit one another"
        )
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=_size(file, "llama.feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_width,
        max_position_embeddings=_size(file, "llama.context_length"),
        rms_norm_eps=_positive(file, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={
            "rope_type": "default",
            # llama.cpp's default when the file leaves the field out.
            "rope_theta": _positive(file, "llama.rope.freq_base", default=10000.0),
        },
        vocab_size=len(_texts(file, "tokenizer.ggml.tokens")),
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=_token_id(file, "bos"),
        eos_token_id=_token_id(file, "eos"),
        pad_token_id=_token_id(file, "padding"),
    )


def read_llama_weights(file: GGUFFile, config: Any) -> dict[str, Tensor]:
    """Read all weights in float32, under the names of transformers' `LlamaForCausalLM`.

    Names and shapes are compared with the network on the meta device before a value is read.

    Raises:
        UserError: tensors are missing, surplus, of another shape, or hold NaN.
    """
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        expected = LlamaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        # The file stores a tied matrix only once, as the input embeddings.
        del expected["lm_head.weight"]
    names = {_rename(name): name for name in file.tensors}
    shapes = {new: torch.empty(file.tensors[name].shape, device="meta") for new, name in names.items()}
    check_tensors(shapes, expected, file.path)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for new, name in names.items():
        values = file.read(name)
        projection = new.split(".")[-2]
        tensors[new] = torch.from_numpy(_join_halves(values, heads[projection]) if projection in heads else values)
    return tensors


def _join_halves(values_OI: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    rows, columns = values_OI.shape
    # llama.cpp rotates neighboring pairs within a head, transformers its two halves: query and key rows are reordered.
    halves = values_OI.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(halves).reshape(rows, columns)


def interleave_halves(values: Tensor, heads: int) -> Tensor:
    """Interleave the halves of each head of a query or key projection, as llama.cpp stores them."""
    return values.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rename(name: str) -> str:
    """Return the name in transformers; an unknown name stays as it is and is surplus then."""
    match = _LAYER.fullmatch(name)
    if match is not None and match[2] in LAYER_NAMES:
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"
    return TOP_NAMES.get(name, name)


def read_tokenizer(file: GGUFFile) -> BackendTokenizer:
    """Build the byte-level BPE tokenizer that a file holds.

    Of pre-tokenizers only SmolLM's is read: every digit is a token, then GPT-2's byte-level pattern.

    Raises:
        UserError: another kind of tokenizer, or a vocabulary that contradicts itself.
    """
    choose(str(file.metadata.get("tokenizer.ggml.model")), ("gpt2",), f"tokenizer of {file.path}")
    choose(str(file.metadata.get("tokenizer.ggml.pre")), _PRE_TOKENIZERS, f"pre-tokenizer of {file.path}")
    tokens = _texts(file, "tokenizer.ggml.tokens")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise UserError(f"{file.path}: field 'tokenizer.ggml.tokens' holds a token twice")
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise UserError(f"{file.path}: field 'tokenizer.ggml.token_type' must have one number per token")
    merges = [_split_merge(merge, vocabulary, file) for merge in _texts(file, "tokenizer.ggml.merges")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = {tokens[id]: id for id in np.flatnonzero(kinds == CONTROL).tolist()}
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    end = _token_id(file, "eos")
    if end is None:
        raise UserError(f"{file.path}: field 'tokenizer.ggml.eos_token_id' is missing; answers would never end")
    pad = _token_id(file, "padding")
    used = {id for id in (end, pad, _token_id(file, "bos"), _token_id(file, "unknown")) if id is not None}
    template = str(file.metadata.get("tokenizer.chat_template", ""))
    used |= {id for token, id in control.items() if token in template}
    # No free rows: the embedding table of a GGUF file is exactly as long as its vocabulary.
    special = place_placeholders(control, used, free=())
    return BackendTokenizer(backend, end=end, pad=end if pad is None else pad, special=special)


def _split_merge(merge: str, vocabulary: dict[str, int], file: GGUFFile) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (space and left in vocabulary and right in vocabulary and left + right in vocabulary):
        raise UserError(
            f"{file.path}: field 'tokenizer.ggml.merges': '{merge:.40}' does not merge two tokens to a third"
        )
    return left, right


def _texts(file: GGUFFile, name: str) -> Sequence[str]:
    value = file.metadata.get(name)
    if not isinstance(value, list) or not value:
        raise UserError(f"{file.path}: field '{name}' must be a list of strings")
    return value


def _token_id(file: GGUFFile, name: str) -> int | None:
    field = f"tokenizer.ggml.{name}_token_id"
    value, count = file.metadata.get(field), len(_texts(file, "tokenizer.ggml.tokens"))
    # An id outside the vocabulary would fail in the middle of an answer.
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise UserError(f"{file.path}: field '{field}' must be an id from 0 to {count - 1} (got {value!r:.40})")
    return value


def _size(file: GGUFFile, name: str, default: int | None = None) -> int:
    value = file.metadata.get(name, default)
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise UserError(f"{file.path}: field '{name}' must be an integer from 1 to {_LARGEST} (got {value!r:.40})")
    return value


def _positive(file: GGUFFile, name: str, default: float | None = None) -> float:
    value = file.metadata.get(name, default)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise UserError(f"{file.path}: field '{name}' must be a positive number (got {value!r:.40})")
    return value
