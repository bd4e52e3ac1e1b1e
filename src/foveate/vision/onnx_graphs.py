"""Write networks as ONNX graphs, run them with onnxruntime, and read images for them without torch.

Written with PyTorch's `torch.export`-based exporter. `read_pixels_script` is the part of an exported script that turns
a file into the pixels of a graph, as `foveate.vision.preprocess` does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import UserError
from foveate.vision.preprocess import DRAFT_PIXELS, Preprocess

# The lowest that PyTorch's exporter targets without conversion, for old runtimes.
OPSET = 18
# A protobuf file ends at 2 GB; some room for the graph itself.
_LARGEST_FILE = 1_800_000_000


def check_packages() -> None:
    """Raise UserError where a library of the extra is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`--to onnx` needs the package {name}: run `pip install 'foveate[onnx]'`")


def write_graph(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    first_axes: dict[str, str],
    outputs: list[str],
    path: Path,
    *,
    max_length: int | None = None,
) -> None:
    """Write a graph with dynamic first axes; weights above the 2 GB of a protobuf go to a file of their own.

    Args:
        first_axes: name of the first axis of each input of `graph`, in its order; equal names are equal sizes.
        max_length: of the second axis, which is dynamic as well, then.
    """
    graph.requires_grad_(False)
    axes = {axis: torch.export.Dim(axis, min=1) for axis in first_axes.values()}
    second_axis = {} if max_length is None else {1: torch.export.Dim("length", min=2, max=max_length)}
    large = sum(weight.numel() * weight.element_size() for weight in graph.state_dict().values()) > _LARGEST_FILE
    with _quiet():
        torch.onnx.export(
            graph,
            inputs,
            str(path),
            input_names=list(first_axes),
            output_names=outputs,
            dynamic_shapes={name: {0: axes[axis], **second_axis} for name, axis in first_axes.items()},
            opset_version=OPSET,
            dynamo=True,
            external_data=large,
            verbose=False,
        )


def run_graph(path: Path, **inputs: Tensor) -> list[Tensor]:
    """Run a graph in onnxruntime on the CPU."""
    import onnxruntime

    # Foveate's side of the comparison also runs on the CPU.
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # A graph has no input that it does not read, such as the mask of a causal text tower.
    outputs: Any = session.run(None, {node.name: inputs[node.name].numpy() for node in session.get_inputs()})
    return [torch.from_numpy(np.asarray(output)) for output in outputs]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports its steps on standard output, as warnings and in the log."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def read_pixels_script(preprocess: Preprocess) -> str:
    """Return Python source of `read_pixels(path)`, uint8 [1, 3, H, W], for the geometry of a model input.

    It reads `PREPROCESS`, the content of preprocess.json, and needs numpy, Pillow and math.
    """
    fit = _FIT[preprocess.geometry].strip().replace("DRAFT_PIXELS", str(DRAFT_PIXELS))
    return _READ.replace("FIT", fit).strip()


_READ = """
SIDE, FILL = PREPROCESS["size"], tuple(PREPROCESS["fill"])
RESAMPLE = Image.Resampling[PREPROCESS["interpolation"].upper()]

def read_pixels(path):  # uint8 [1, 3, SIDE, SIDE]
    image = Image.open(path)
    FIT
    return np.asarray(image).transpose(2, 0, 1)[None]

def upright(image):  # RGB on white
    layers = ImageOps.exif_transpose(image).convert("RGBA")
    image = Image.new("RGB", layers.size, "white")
    image.paste(layers, mask=layers.getchannel("A"))
    return image
"""
# A JPEG is decoded at a fraction, as Foveate does: `step` is how much smaller it is than the whole image.
_FIT = {
    "letterbox": """
    width, height = image.size
    scale = min(1.0, math.ceil(DRAFT_PIXELS * SIDE) / max(width, height))
    image.draft(None, (max(1, round(width * scale)), max(1, round(height * scale))))
    if image.getexif().get(274, 1) > 4:
        width, height = height, width
    image = upright(image)
    step = round(max(width, height) / max(image.size))
    size, corner = (SIDE, height * SIDE // width), (0, SIDE * (width - height) // (2 * width))
    if height > width:
        size, corner = (width * SIDE // height, SIDE), (SIDE * (height - width) // (2 * height), 0)
    content = image.resize(size, RESAMPLE, box=(0, 0, width / step, height / step), reducing_gap=3.0)
    image = Image.new("RGB", (SIDE, SIDE), FILL)
    image.paste(content, corner)
""",
    "center_crop": """
    width, height = image.size
    scale = min(1.0, math.ceil(DRAFT_PIXELS * SIDE * max(width, height) / min(width, height)) / max(width, height))
    image.draft(None, (max(1, round(width * scale)), max(1, round(height * scale))))
    if image.getexif().get(274, 1) > 4:
        width, height = height, width
    image = upright(image)
    step, crop = round(max(width, height) / max(image.size)), min(width, height)
    left, top = (width - crop) // 2, (height - crop) // 2
    box = (left / step, top / step, (left + crop) / step, (top + crop) / step)
    image, box = (image.crop(box), None) if step == 1 else (image, box)
    image = image.resize((SIDE, SIDE), RESAMPLE, box=box, reducing_gap=3.0)
""",
    "stretch": """
    image = upright(image)
    image = image.resize((SIDE, image.height), RESAMPLE).resize((SIDE, SIDE), RESAMPLE)
""",
}
