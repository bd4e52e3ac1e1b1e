"""Tiny random language models of several families, and a byte-level tokenizer for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foveate.language.open import LanguageModel, open_language_model
from foveate.language.tokenizer import BackendTokenizer, wrap_transformers
from gguf_files import CHATML, CONTROL, MERGES, vocabulary

SIZES = {"vocab_size": 288, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.4}
LLAMA_LIKE = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, **SIZES,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, **LLAMA_LIKE},
    "qwen2": {"model_type": "qwen2", **LLAMA_LIKE},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 96, **SIZES},
}


def foreign_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers over the alphabet of bytes; 5 control tokens, 270 in all."""
    ids = {token: id for id, token in enumerate(vocabulary())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[tuple(merge.split(" ")) for merge in MERGES]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=chat_template
    )


def tokenizer() -> BackendTokenizer:
    return wrap_transformers(foreign_tokenizer(), source="tiny")


def tiny(family: str, *, seed: int = 0) -> LanguageModel:
    return open_language_model(CONFIGS[family], tokenizer=tokenizer(), chat="chatml", seed=seed)


def save(folder: Path, family: str = "llama", *, chat_template: str | None = CHATML) -> LanguageModel:
    """Save a tiny model as transformers does; return it."""
    language_model = tiny(family)
    language_model.model.save_pretrained(folder)
    foreign_tokenizer(chat_template).save_pretrained(folder)
    return language_model
