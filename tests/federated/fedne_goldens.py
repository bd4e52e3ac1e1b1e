"""Stored numbers of FedNE: arrays and surrogate weights in the names of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[1] / "goldens" / "fedne"


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def about(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def surrogate(stored: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    names = ("fc1", "fc2", "out")
    return {
        f"layers.{place}.{part}": stored[f"{prefix}_{name}_{part}"]
        for place, name in enumerate(names)
        for part in ("weight", "bias")
    }


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)
