"""Models and helpers that the tests of exports share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import tiny
from foveate.pretrain.train import build_model
from foveate.vision.localizer.folder import load_model, save_model
from foveate.vision.localizer.model import LocalizingModel

PROVENANCE = {
    "collection": "shapes",
    "license": "CC0-1.0",
    "split": "train",
    "images": 16,
    "command": ["foveate", "pretrain", "tiny.yaml", "--collection", "my shapes"],
    "revision": "Foveate 0.1.0, commit 0123456789ab",
}
METRICS = {
    "collection": "shapes",
    "split": "test",
    "images": 10,
    "regions": 18,
    "table": [
        {
            "question": "where is it: IoU",
            "data": "seen",
            "n": 18,
            "values": {"cloc": {"value": 0.4321, "low": 0.4, "high": 0.5}, "center": {"value": 0.2, "low": None}},
        }
    ],
}


def saved(folder: Path, *, metrics: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A model folder of the tiny recipe with changes; no weight is left at zero, so that each of them matters."""
    model = build_model(tiny.recipe(**changes))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if not parameter.detach().any():
            parameter.data.normal_(std=0.1, generator=generator)
    return save_model(model, folder, metrics=metrics, provenance=PROVENANCE)


def opened(folder: Path) -> LocalizingModel:
    return load_model(folder, device="cpu")


def noise(size: int = 64, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


BOXES = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.4, 0.95, 0.5], [0.2, 0.1, 0.3, 0.9]])
OWNERS = torch.tensor([2, 0, 1, 0])


def run_card(folder: Path, **names: Any) -> dict[str, Any]:
    """Runs the Python of a folder's README.md in order, as a reader would, and gives back its names."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlicense: ")
    space: dict[str, Any] = dict(names)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        code = re.sub(r'"(\w+\.onnx)"', rf'"{folder}/\1"', block.replace("this folder", str(folder)))
        exec(compile(code, "README.md", "exec"), space)
    return space
