"""GGUF files: values against ggml's own reader, a tiny Llama against transformers', and hostile headers."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gguf_files
from foveate.core.errors import UserError
from foveate.language.gguf import LIBRARY_TYPES, GGUFFile
from foveate.language.llama_gguf import read_llama_config, read_llama_weights, read_tokenizer
from gguf_files import ARRAY, F32, STRING, TYPES, U32, gguf_bytes, llama_fields, llama_tensors
from naming import raises_naming


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q4_1"])
def test_values_are_those_of_ggmls_reader(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from gguf.quants import dequantize

    data = gguf_files.block_bytes(np.random.default_rng(5), kind, 6 * 64)
    path = write(tmp_path / "a.gguf", gguf_bytes([("a", U32, 7)], [("w", (6, 64), TYPES[kind], data)]))
    file, reference = GGUFFile(path), gguf.GGUFReader(path).tensors[0]
    expected = dequantize(reference.data, reference.tensor_type)
    assert file.metadata == {"a": 7}
    assert file.tensors["w"].type == kind
    assert file.read("w").dtype == np.float32
    # Bits, not values: a zero's sign counts as well.
    assert np.array_equal(file.read("w").view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("kind", ["F16", "BF16", *LIBRARY_TYPES])
def test_random_blocks_of_more_types(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from gguf.quants import dequantize

    rng, (weights, size) = np.random.default_rng(6), gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (3 * 512 // weights, size), dtype=np.uint8)
    if kind in LIBRARY_TYPES:
        # Scales are at the front or the end of a block; random bytes would be infinite ones.
        halves = rng.normal(size=(2, len(blocks), 2)).astype("<f2").view(np.uint8)
        blocks[:, :4], blocks[:, -4:] = halves
    else:
        blocks = rng.normal(size=3 * 512).astype("<f4").view(np.uint8).reshape(-1, 4)[:, -2:]
        blocks = blocks if kind == "BF16" else rng.normal(size=3 * 512).astype("<f2").view(np.uint8)
    path = write(tmp_path / "a.gguf", gguf_bytes([], [("w", (3, 512), TYPES[kind], blocks.tobytes())]))
    reference = gguf.GGUFReader(path).tensors[0]
    expected = dequantize(reference.data, reference.tensor_type)
    values = GGUFFile(path).read("w")
    assert values.shape == (3, 512)
    assert values.dtype == np.float32
    assert np.array_equal(values.view(np.int32), expected.view(np.int32))
    assert len(np.unique(values)) > 100


def test_a_block_by_hand(tmp_path: Path) -> None:
    """Q6_K: weights of 6 bits (low and high parts), less 32, times 16 scales, times one half-precision scale."""
    pytest.importorskip("gguf")
    block = bytes([0x21] * 128) + bytes([0b01010101] * 64) + bytes([3] * 16) + np.float16(0.5).tobytes()
    path = write(tmp_path / "a.gguf", gguf_bytes([], [("w", (256,), TYPES["Q6_K"], block)]))
    low = np.repeat([1, 1, 2, 2], 32)
    assert np.array_equal(GGUFFile(path).read("w"), np.tile(((low | 1 << 4) - 32) * 3 * 0.5, 2))


def test_a_type_of_the_library_without_it_and_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    content = gguf_bytes([], [("w", (1, 256), TYPES["Q6_K"], b"\xff" * 210)])
    path = write(tmp_path / "a.gguf", content)
    with raises_naming(UserError, path, "'w'", "NaN"):
        GGUFFile(path).read("w")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with raises_naming(UserError, path, "'w'", "Q6_K", "foveate[gguf]"):
        GGUFFile(path)


def test_fields_of_every_type_are_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    values: dict[str, Any] = {
        "uint8": 255, "int8": -1, "uint16": 65535, "int16": -2, "uint32": 2**32 - 1, "int32": -3, "float32": 0.5,
        "bool": True, "string": "é", "uint64": 2**64 - 1, "int64": -(2**63), "float64": 1e300,
    }  # fmt: skip
    for name, value in values.items():
        getattr(writer, f"add_{name}")(name, value)
    writer.add_array("texts", ["a", "", "ü"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("w", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "a.gguf")
    assert {name: file.metadata[name] for name in values} == values
    assert file.metadata["texts"] == ["a", "", "ü"]
    assert file.metadata["numbers"].tolist() == [1, -2, 3]
    assert file.read("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_tiny_llama_equals_transformers_reader(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    path = gguf_files.write_llama(tmp_path / "tiny.gguf")
    file = GGUFFile(path)
    config = read_llama_config(file)
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=read_llama_weights(file, config)).eval()
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    expected = reference.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, reference(ids).logits)
    tokenizer, foreign = read_tokenizer(file), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ("hello world", "Hello, 412 é\n\n", "", " \U0001f600 x"):
        assert tokenizer.encode(text) == foreign(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.end, tokenizer.pad) == (2, 2)


def test_tokenizer_reads_marks_in_text_as_text(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(GGUFFile(gguf_files.write_llama(tmp_path / "tiny.gguf")))
    ids = tokenizer.encode("<|im_end|><repo_name>")
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == "<|im_end|><repo_name>"
    # Placeholders take control tokens that no template uses.
    assert tokenizer.special["<image>"] == gguf_files.CONTROL.index("<repo_name>")
    assert tokenizer.special["<region>"] == gguf_files.CONTROL.index("<file_sep>")
    # Every digit is a token, whatever stands before it (llama.cpp splits at numbers first).
    assert len(tokenizer.encode("  12")) == 4


def replaced(name: str, kind: int, value: Any) -> list[gguf_files.Field]:
    return [(field, kind, value) if field == name else (field, old, values) for field, old, values in llama_fields()]


def without(name: str) -> list[gguf_files.Field]:
    return [field for field in llama_fields() if field[0] != name]


def open_all(path: Path) -> None:
    file = GGUFFile(path)
    read_tokenizer(file)
    read_llama_weights(file, read_llama_config(file))


GOOD = gguf_bytes(llama_fields(), llama_tensors())
HEADER = GOOD.index(b"blk.0.attn_norm")
WEIGHT = ("w", (2, 32), TYPES["Q8_0"], bytes(68))


def patched(position: int, data: bytes) -> bytes:
    return GOOD[:position] + data + GOOD[position + len(data) :]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", ["GGUF"]),
        (b"PK\3\4" + GOOD[4:], ["GGUF"]),
        (GOOD[: len(GOOD) // 2], ["cut short", "tensor"]),
        (GOOD[: HEADER // 2], ["cut short", "tokenizer.ggml.tokens"]),
        (GOOD[:10], ["cut short"]),
        (patched(4, struct.pack("<I", 1)), ["version 1", "2 or 3"]),
        (patched(4, struct.pack(">I", 3)), ["big-endian"]),
        (patched(8, struct.pack("<Q", 2**40)), [2**40, "tensors"]),
        (patched(16, struct.pack("<Q", 2**63)), [2**63, "fields"]),
        (patched(24, struct.pack("<Q", 2**62)), [2**62, "name of a field"]),
        (gguf_bytes([("a", ARRAY, (ARRAY, []))], []), ["'a'", 9]),
        (gguf_bytes([("a", U32, 1), ("a", U32, 1)], []), ["'a'", "twice"]),
        (gguf_bytes([("general.alignment", U32, 24)], []), ["general.alignment"]),
        (gguf_bytes([("a", STRING, b"\xff")], []), ["'a'", "UTF-8"]),
        (gguf_bytes([], [("w", (1, 256), TYPES["TQ1_0"], bytes(54))]), ["'w'", "TQ1_0", "Q4_1"]),
        (gguf_bytes([], [("w", (1, 64), TYPES["F16"], bytes(126))]), ["'w'", "cut short"]),
        (gguf_bytes([], [("w", (2,), 99, bytes(4))]), ["'w'", 99]),
        (gguf_bytes([], [("w", (1,) * 5, 0, bytes(4))]), ["'w'", "5 dimensions"]),
        (gguf_bytes([], [("w", (2, 33), TYPES["Q8_0"], bytes(68))]), ["'w'", "(2, 33)", 32]),
        (gguf_bytes([], [("w", (0, 32), TYPES["Q8_0"], b"")]), ["'w'", "(0, 32)"]),
        (gguf_bytes([], [("w", (2**62, 2**62), 0, bytes(64))]), ["'w'", "cut short"]),
        (gguf_bytes([], [WEIGHT, WEIGHT]), ["'w'", "twice"]),
        (gguf_bytes([], [("v", (2, 32), 0, b""), ("w", (2, 32), 0, bytes(256))]), ["'w'", "shares"]),
    ],
)
def test_hostile_headers_are_refused(data: bytes, names: list[object], tmp_path: Path) -> None:
    path = write(tmp_path / "bad.gguf", data)
    with raises_naming(UserError, path, *names):
        GGUFFile(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with raises_naming(UserError, path):
            GGUFFile(path)


def lost(tensors: list[gguf_files.Tensor]) -> list[gguf_files.Tensor]:
    return tensors[:-1]


def surplus(tensors: list[gguf_files.Tensor]) -> list[gguf_files.Tensor]:
    return [*tensors, ("rope_freqs.weight", (8,), 0, bytes(32))]


def reshaped(tensors: list[gguf_files.Tensor]) -> list[gguf_files.Tensor]:
    return [(name, shape[::-1] if "ffn_down" in name else shape, *rest) for name, shape, *rest in tensors]  # type: ignore[misc]


def not_finite(tensors: list[gguf_files.Tensor]) -> list[gguf_files.Tensor]:
    return [(*tensor[:3], b"\0\x7e" + tensor[3][2:]) if "attn_q" in tensor[0] else tensor for tensor in tensors]


@pytest.mark.parametrize(
    ("change", "name"),
    [(lost, "output_norm"), (surplus, "rope_freqs"), (reshaped, "down_proj"), (not_finite, "attn_q")],
)
def test_weights_that_do_not_fit_are_refused(change: Callable[..., Any], name: str, tmp_path: Path) -> None:
    expected = {"output_norm": "model.norm.weight"}.get(name, name)
    with raises_naming(UserError, "bad.gguf", expected):
        open_all(write(tmp_path / "bad.gguf", gguf_bytes(llama_fields(), change(llama_tensors()))))


@pytest.mark.parametrize(
    ("name", "kind", "value", "names"),
    [
        ("general.architecture", STRING, "gemma", ["architecture", "gemma", "llama"]),
        ("llama.block_count", U32, 10**6, [10**6]),
        ("llama.block_count", F32, 2.0, ["llama.block_count", "2.0"]),
        ("llama.embedding_length", U32, 0, ["llama.embedding_length"]),
        ("llama.embedding_length", U32, 65, ["65"]),
        ("llama.feed_forward_length", U32, 2**31, ["llama.feed_forward_length"]),
        ("llama.attention.head_count_kv", U32, 3, ["3 key heads"]),
        ("llama.attention.layer_norm_rms_epsilon", F32, float("nan"), ["layer_norm_rms_epsilon"]),
        ("tokenizer.ggml.model", STRING, "llama", ["tokenizer", "llama", "gpt2"]),
        ("tokenizer.ggml.pre", STRING, "qwen2", ["pre-tokenizer", "qwen2", "smollm"]),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["zz q"]), ["merges", "zz q"]),
        ("tokenizer.ggml.merges", U32, 1, ["tokenizer.ggml.merges"]),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "a"]), ["tokenizer.ggml.tokens", "twice"]),
        ("tokenizer.ggml.token_type", ARRAY, (U32, [3]), ["tokenizer.ggml.token_type"]),
        ("tokenizer.ggml.eos_token_id", U32, 10**6, ["eos_token_id", 10**6]),
    ],
)
def test_impossible_fields_are_refused(name: str, kind: int, value: Any, names: list[object], tmp_path: Path) -> None:
    with raises_naming(UserError, *names):
        open_all(write(tmp_path / "bad.gguf", gguf_bytes(replaced(name, kind, value), llama_tensors())))


def test_missing_and_unread_fields_are_refused(tmp_path: Path) -> None:
    for name in ("llama.context_length", "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"):
        with raises_naming(UserError, name):
            open_all(write(tmp_path / "bad.gguf", gguf_bytes(without(name), llama_tensors())))
    scaled = [*llama_fields(), ("llama.rope.scaling.type", STRING, "yarn")]
    with raises_naming(UserError, "llama.rope.scaling.type", "yarn"):
        open_all(write(tmp_path / "bad.gguf", gguf_bytes(scaled, llama_tensors())))
