"""GGUF files with changed headers, fields, lengths and bytes, opened as a language model is."""

from __future__ import annotations

import struct
from random import Random
from typing import Any

from fuzz_run import Target, Trial
from fuzz_values import damaged, odd_text

import gguf_files

_NUMBERS = (0, 1, 2, 3, 7, 31, 32, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_LONG = (*_NUMBERS, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("nan"))


def _text(random: Random) -> bytes:
    return odd_text(random).encode("utf-8", "surrogatepass")[:300]


def _odd_field(random: Random) -> tuple[int, Any]:
    return random.choice(
        (
            (gguf_files.U32, random.choice(_NUMBERS)),
            (10, random.choice(_LONG)),
            (gguf_files.F32, random.choice(_FLOATS)),
            (7, True),
            (gguf_files.STRING, _text(random)),
            (gguf_files.ARRAY, (gguf_files.STRING, [_text(random) for _ in range(random.randrange(4))])),
            (gguf_files.ARRAY, (gguf_files.I32, [random.randrange(-9, 9) for _ in range(random.randrange(4))])),
        )
    )


def _odd_tensor(random: Random, tensor: gguf_files.Tensor) -> gguf_files.Tensor:
    name, shape, kind, data = tensor
    match random.randrange(5):
        case 0:
            name = random.choice(("", "blk.0.attn_q.weight", "blk.99.attn_q.weight", "output.weight", "x" * 500))
        case 1:
            shape = tuple(random.choice(_LONG) for _ in range(random.randrange(1, 6)))
        case 2:
            shape = shape[::-1] + (1,) * random.randrange(3)
        case 3:
            kind = random.choice((0, 1, 2, 3, 8, 14, 30, 99, 2**32 - 1))
        case _:
            data = data[: random.randrange(len(data) + 1)]
    return name, shape, kind, data


def _changed(random: Random, trial: Trial) -> bytes:
    fields, tensors = gguf_files.llama_fields(), gguf_files.llama_tensors()
    for _ in range(random.choice((1, 1, 2))):
        index = random.randrange(len(fields))
        match random.randrange(4):
            case 0:
                fields.pop(index)
            case 1:
                fields.append(fields[index])
            case _:
                kind, value = _odd_field(random)
                fields[index] = (fields[index][0], kind, value)
        trial.note(fields[index] if index < len(fields) else index)
    if random.random() < 0.4:
        index = random.randrange(len(tensors))
        tensors[index] = _odd_tensor(random, tensors[index])
        trial.note(tensors[index][:3])
    return gguf_files.gguf_bytes(fields, tensors, version=random.choice((2, 3, 3, 3)))


def _broken(random: Random, trial: Trial) -> bytes:
    data = gguf_files.gguf_bytes(gguf_files.llama_fields(), gguf_files.llama_tensors())
    action = random.randrange(4)
    trial.note(action)
    if action == 0:
        return data[: random.randrange(len(data))]
    if action == 1:
        return damaged(random, data)
    # A number of 32 or 64 bits somewhere in the header, where counts, lengths, types and offsets are.
    position, layout = random.randrange(4, 6000), random.choice(("<I", "<Q"))
    number = random.choice(_NUMBERS if layout == "<I" else _LONG)
    trial.note((position, number))
    return data[:position] + struct.pack(layout, number) + data[position + struct.calcsize(layout) :]


def files(trial: Trial) -> str:
    """A GGUF file of a tiny Llama, changed field by field or byte by byte, opened with its tokenizer and weights."""
    from foveate.language.gguf import GGUFFile
    from foveate.language.llama_gguf import read_llama_config, read_llama_weights, read_tokenizer

    path = trial.folder / "model.gguf"
    path.write_bytes((_changed if trial.random.random() < 0.5 else _broken)(trial.random, trial))
    file = GGUFFile(path)
    tokenizer = read_tokenizer(file)
    read_llama_weights(file, read_llama_config(file))
    tokenizer.decode(tokenizer.encode("hello <|im_end|> 12"))
    return "used"


GGUF = {"gguf": Target("gguf", files)}
