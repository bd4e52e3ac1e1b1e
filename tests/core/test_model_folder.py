"""A model folder has a config only while its files belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.errors import UserError
from foveate.core.model_folder import CONFIG, WEIGHTS, read_config, read_tensors, write_model_folder
from naming import raises_naming


def write(folder: Path, value: float, **changes: Any) -> None:
    options: dict[str, Any] = {"config": {"value": value}, "tensors": {"weight": torch.full((2,), value)}}
    write_model_folder(folder, kind="toy", format=1, **options | changes)


def test_a_model_that_was_half_replaced_is_none(tmp_path: Path) -> None:
    write(tmp_path, 1.0)
    assert read_config(tmp_path, kind="toy", formats=[1])["value"] == 1.0
    with pytest.raises(TypeError):
        write(tmp_path, 2.0, files={"metrics.json": {"score": object()}})
    assert read_tensors(tmp_path / WEIGHTS)["weight"].tolist() == [2.0, 2.0]
    with raises_naming(UserError, tmp_path, CONFIG):
        read_config(tmp_path, kind="toy", formats=[1])
    write(tmp_path, 2.0)
    assert read_config(tmp_path, kind="toy", formats=[1])["value"] == 2.0


def test_a_model_stays_where_the_new_weights_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path, 1.0)
    shared = torch.zeros(2)
    with pytest.raises(RuntimeError, match="share memory"):
        write(tmp_path, 2.0, tensors={"a": shared, "b": shared})
    assert read_config(tmp_path, kind="toy", formats=[1])["value"] == 1.0
    assert read_tensors(tmp_path / WEIGHTS)["weight"].tolist() == [1.0, 1.0]
