"""Written GGUF files are read by the library of llama.cpp and by our reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.language.gguf import GGUFFile, Value, write_gguf

FIELDS: dict[str, Value] = {
    "general.architecture": "llama",
    "a.count": 7,
    "a.rate": 0.25,
    "a.flag": False,
    "a.texts": ["", "é", "Ġthe"],
    "a.none": [],
    "a.kinds": [1, -3, 4],
    "a.means": [0.5, 0.25],
}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(3, 5, generator=generator),
        # Of which the next one begins at a padded place.
        "vector": torch.randn(1, generator=generator).half(),
        "patches": torch.randn(2, 3, 4, 4, generator=generator).transpose(0, 1),
    }


def test_the_library_reads_what_is_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    import gguf

    write_gguf(tmp_path / "a.gguf", FIELDS, tensors)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for name, value in FIELDS.items():
        assert reader.fields[name].contents() == value, name
    types = {name: [kind.name for kind in reader.fields[name].types] for name in FIELDS}
    assert types["a.count"] == ["UINT32"]
    assert types["a.rate"] == ["FLOAT32"]
    assert types["a.flag"] == ["BOOL"]
    assert types["a.kinds"] == ["ARRAY", "INT32"]
    assert types["a.means"] == ["ARRAY", "FLOAT32"]
    assert [tensor.name for tensor in reader.tensors] == list(tensors)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, tensors[tensor.name].float().numpy())


def test_our_reader_reads_what_is_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_gguf(tmp_path / "a.gguf", FIELDS, tensors)
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.metadata["a.texts"] == FIELDS["a.texts"]
    for name, expected in tensors.items():
        np.testing.assert_array_equal(file.read(name), expected.float().numpy())
