"""GGUF files byte by byte: a tiny Llama with its tokenizer, and the means to make it wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

U32, F32, STRING, ARRAY, I32 = 4, 6, 8, 9, 5
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12}
TYPES |= {"Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30, "TQ1_0": 34}
LAYERS, WIDTH, HEADS, KEY_HEADS, INNER = 2, 64, 4, 2, 96
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld")
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"

Field = tuple[str, int, Any]
Tensor = tuple[str, tuple[int, ...], int, bytes]


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value_bytes(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(value_bytes(inner, one) for one in values)
    return struct.pack({U32: "<I", F32: "<f", I32: "<i", 7: "<?", 10: "<Q"}[kind], value)


def gguf_bytes(fields: Sequence[Field], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32) -> bytes:
    """A file with these fields and tensors; shapes outermost first, values packed one after the other."""
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields))
    for name, kind, value in fields:
        header += string(name) + struct.pack("<I", kind) + value_bytes(kind, value)
    body = b""
    for name, shape, kind, data in tensors:
        body += b"\0" * (-len(body) % alignment)
        header += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += struct.pack("<IQ", kind, len(body))
        body += data
    return header + b"\0" * (-len(header) % alignment) + body


def vocabulary() -> list[str]:
    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*CONTROL, *sorted(ByteLevel.alphabet()), *merged]


def llama_fields() -> list[Field]:
    tokens = vocabulary()
    return [
        ("general.architecture", STRING, "llama"),
        ("llama.block_count", U32, LAYERS),
        ("llama.context_length", U32, 128),
        ("llama.embedding_length", U32, WIDTH),
        ("llama.feed_forward_length", U32, INNER),
        ("llama.attention.head_count", U32, HEADS),
        ("llama.attention.head_count_kv", U32, KEY_HEADS),
        ("llama.rope.freq_base", F32, 10000.0),
        ("llama.rope.dimension_count", U32, WIDTH // HEADS),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [3 if token in CONTROL else 1 for token in tokens])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, MERGES)),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.padding_token_id", U32, 2),
        ("tokenizer.ggml.unknown_token_id", U32, 0),
        ("tokenizer.chat_template", STRING, CHATML),
    ]


def llama_shapes() -> dict[str, tuple[int, ...]]:
    key_width = WIDTH // HEADS * KEY_HEADS
    layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (key_width, WIDTH),
        "attn_v": (key_width, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    layers = {f"blk.{index}.{name}.weight": shape for index in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (len(vocabulary()), WIDTH), **layers, "output_norm.weight": (WIDTH,)}


def block_bytes(random: np.random.Generator, kind: str, count: int) -> bytes:
    """`count` random values as they lie in a file."""
    if kind == "F32":
        return random.normal(0, 0.1, count).astype("<f4").tobytes()
    if kind == "F16":
        return random.normal(0, 0.1, count).astype("<f2").tobytes()
    if kind == "BF16":
        # The upper half of each float32.
        return random.normal(0, 0.1, count).astype("<f4").view("<u2")[1::2].tobytes()
    halves = {"Q8_0": 1, "Q4_0": 1, "Q4_1": 2}[kind]
    quants = 32 if kind == "Q8_0" else 16
    scales = random.normal(0, 0.01, (count // 32, halves)).astype("<f2").view(np.uint8)
    return np.concatenate([scales, random.integers(0, 256, (count // 32, quants), dtype=np.uint8)], axis=1).tobytes()


def llama_tensors(seed: int = 0) -> list[Tensor]:
    """Random weights; every type that is read without a library occurs."""
    random, tensors = np.random.default_rng(seed), []
    for index, (name, shape) in enumerate(llama_shapes().items()):
        kind = "F32" if len(shape) == 1 else ("Q8_0", "Q4_0", "Q4_1", "F16", "BF16")[index % 5]
        tensors.append((name, shape, TYPES[kind], block_bytes(random, kind, int(np.prod(shape)))))
    return tensors


def write_llama(path: Path) -> Path:
    path.write_bytes(gguf_bytes(llama_fields(), llama_tensors()))
    return path
