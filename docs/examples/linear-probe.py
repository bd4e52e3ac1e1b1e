"""Compare two scalings of a solved linear probe on few digits: `python linear-probe.py`."""

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from foveate.adapt.load_backbone import load_backbone
from foveate.training.linear_probe import solve_head

DRAWS, PER_CLASS, TESTED, SIDE = 8, 10, 700, 64


def read_features() -> tuple[np.ndarray, np.ndarray]:
    """Features [800, 1280] of EfficientNet-Lite0, and labels, of the first 800 digits, dark on light."""
    data = load_digits()
    number = PER_CLASS * 10 + TESTED
    gray = (255 - data.images[:number] * 255 / 16).astype(np.uint8)
    images = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB") for image in gray]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    network = load_backbone({"kind": "lite0", "image_size": SIDE})
    network.model.eval()
    with torch.no_grad():
        parts = [network.model(network.normalize(part)) for part in pixels.split(64)]
    return torch.cat(parts).numpy(), data.target[:number]


def main() -> None:
    """Print accuracies: means and standard deviations over draws of the training images."""
    features, labels = read_features()
    rows: dict[str, list[float]] = {"one scale": [], "each feature by itself": []}
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(labels))
        train = np.concatenate([order[labels[order] == digit][:PER_CLASS] for digit in range(10)])
        test = np.setdiff1d(order, train)
        scaler = StandardScaler().fit(features[train])
        for name, points in (("one scale", features), ("each feature by itself", scaler.transform(features))):
            head = solve_head(points[train], labels[train], num_classes=10, seed=draw)
            rows[name].append(float((head.logits(points[test]).argmax(axis=1) == labels[test]).mean()))
    for name, values in rows.items():
        print(f"{name}: {np.mean(values):.3f}, standard deviation {np.std(values):.3f}, {DRAWS} draws")


if __name__ == "__main__":
    main()
