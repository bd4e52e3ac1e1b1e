"""The third world of the study `petl`: by how many sixths of a turn is a character rotated?

The glyph network was trained to read upright characters in any font, and a new head can hardly read an angle off its
last layer. A "structured" task, for a network that knows the images but not the question (section
7.3 of the method's specification measured it on a reference implementation).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from foveate.adapt.load_backbone import LoadedBackbone
from foveate.core.files import atomic_file
from foveate.core.seeds import generator
from foveate.vision.registry import seeded
from foveate_labs.studies.calibration_worlds import glyph_network
from foveate_labs.studies.petl_worlds import GLYPH_PREPROCESS, World, labeled_pixels
from foveate_labs.worlds.builtin import glyphs

TURNS = 6
CLASSES = tuple(f"{number * 360 // TURNS} degrees" for number in range(TURNS))
JITTER = 10.0  # degrees to either side
# Images of each character in the pool, the test and the shifted test.
PER_CHARACTER: dict[str, tuple[glyphs.Style, int]] = {
    "pool": ("source", 22),
    "test": ("source", 42),
    "shift": ("target", 21),
}


def prepare_rotation(folder: Path) -> None:
    """Draw and rotate the images, unless their file exists."""
    path = folder / "images.npz"
    if path.is_file():
        return
    pixels, labels, splits = [], [], []
    for split, (style, per_class) in PER_CHARACTER.items():
        drawn = glyphs.load_glyphs(style, f"petl rotation {split}", per_class=per_class)
        random = generator("petl rotation", split)
        multiples = random.permutation(np.arange(len(drawn.labels)) % TURNS)
        angles = multiples * (360 / TURNS) + random.uniform(-JITTER, JITTER, len(multiples))
        pixels.append(rotated(drawn.images, angles))
        labels.append(multiples)
        splits += [split] * len(multiples)
    with atomic_file(path) as handle:
        np.savez(
            handle,
            pixels=np.concatenate(pixels),
            labels=np.concatenate(labels).astype(np.int64),
            split=np.array(splits),
        )


def rotated(images_N1HW: NDArray[np.float32], degrees_N: NDArray[Any]) -> NDArray[np.float32]:
    """Rotate each image [1, H, W] counter-clockwise about its center, bilinear, on a background of -1."""
    turned = np.empty_like(images_N1HW)
    for row, angle in enumerate(degrees_N.tolist()):
        image = Image.fromarray(images_N1HW[row, 0])
        turned[row, 0] = np.asarray(image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=-1.0))
    return turned


def open_rotation(folder: Path, weights: Path) -> World:
    """Open the images of `prepare_rotation` and the glyph network of a weights file with a new head."""
    with seeded(0):
        network: Any = glyph_network()
        network.load_state_dict(load_file(weights), strict=True)
        network.reset_classifier(TURNS)
    with np.load(folder / "images.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("pixels", "labels", "split")}
    data = labeled_pixels("rotation", CLASSES, arrays["labels"], arrays["split"], torch.from_numpy(arrays["pixels"]))
    return World(LoadedBackbone(network.eval(), GLYPH_PREPROCESS, {"kind": "study"}), False, data)
