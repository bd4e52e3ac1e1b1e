"""The worlds of the study `calibration`: 36 glyphs in other fonts, emoji in another style, turned handwritten digits.

Each has a pre-trained classifier over all classes Y, and labeled target data of all of them; the study draws the half
that is fine-tuned on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import nn

from foveate.calibrate.fine_tuning import fine_tune
from foveate.calibrate.settings import FineTuneSettings
from foveate.core.files import atomic_file, write_bytes_atomically
from foveate.core.seeds import generator, uniform
from foveate.training.classification import LabeledImages, array_images
from foveate.vision.classifier import Classifier
from foveate.vision.registry import seeded
from foveate_labs.worlds import builtin

MIN_CONCEPTS = 20  # of a subcategory of emoji
TEST_SHARE = 0.4  # of the concepts of emoji
NUM_SOURCE_DIGITS, NUM_TRAIN_DIGITS = 800, 500  # of 1,797; the others are the test images
# With these the pre-trained model reads about half of the turned digits, as it reads about half of the glyphs.
DIGIT_DEGREES, DIGIT_NOISE = 20, 0.15


DIGIT_NAMES = [str(number) for number in range(10)]


@dataclass(frozen=True)
class FineTuningWorld:
    """A pre-trained classifier, and training and test arrays of the target."""

    before: Classifier
    train: LabeledImages
    test: LabeledImages

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.before.names)


def glyph_network() -> nn.Module:
    """Build the ViT of 106,404 parameters: 24 px in patches of 6, width 64, 3 blocks, 4 heads."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=builtin.SIZE,
        patch_size=6,
        in_chans=1,
        num_classes=len(builtin.CLASSES),
        embed_dim=64,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        # PyTorch's eps instead of timm's 1e-6: tests load the stored network of the goldens, which has it.
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),  # pyrefly: ignore[bad-argument-type]
    )


class FeatureNetwork(nn.Module):
    """A small trainable backbone on frozen features, and a linear head."""

    def __init__(self, inputs: int, *, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, 256), nn.GELU(), nn.Linear(256, 128), nn.GELU(), nn.LayerNorm(128)
        )
        self.head = nn.Linear(128, classes)

    def forward(self, features_BD: torch.Tensor) -> torch.Tensor:
        """Map features [B, D] to logits [B, C]."""
        return self.head(self.backbone(features_BD))


def prepare_glyphs(folder: Path, *, source_per_class: int, target_per_class: int, epochs: int) -> None:
    """Draw the target's sets and pre-train on the source; only what is missing."""
    for name in ("train", "test"):
        path = folder / f"{name}.npz"
        if not path.is_file():
            drawn = builtin.load_glyphs("target", name, per_class=target_per_class)
            _save(path, drawn.images, drawn.labels)
    if not (folder / "before.safetensors").is_file():
        source = builtin.load_glyphs("source", "train", per_class=source_per_class)
        samples = array_images(source.images, source.labels)
        _pretrain(glyph_network, builtin.CLASSES, samples, folder, epochs=epochs, learning_rate=2e-3, batch=128)


def open_glyphs(folder: Path) -> FineTuningWorld:
    """Open the world of `prepare_glyphs`."""
    return _open(folder, glyph_network(), builtin.CLASSES)


def prepare_emoji(folder: Path, *, epochs: int, features: Callable[[Path], None] | None = None) -> None:
    """Write frozen EfficientNet-Lite0 features of all emoji; pre-train a network on the Noto style.

    Args:
        features: writes features.npz (features, style, subcategory, held_out); the study's own by default.
    """
    path = folder / "features.npz"
    if not path.is_file():
        (features or _write_emoji_features)(path)
    arrays, names = emoji_arrays(path)
    for name in ("train", "test"):
        selected = (arrays["style"] == "twemoji") & (arrays["held_out"] == (name == "test"))
        if not (folder / f"{name}.npz").is_file():
            _save(folder / f"{name}.npz", arrays["features"][selected], arrays["labels"][selected])
    if not (folder / "before.safetensors").is_file():
        # Held-out concepts are left out of this style, too: no training may see the things of the test.
        selected = (arrays["style"] == "noto") & ~arrays["held_out"]
        samples = array_images(arrays["features"][selected], arrays["labels"][selected])
        network = functools.partial(FeatureNetwork, arrays["features"].shape[1], classes=len(names))
        _pretrain(network, names, samples, folder, epochs=5 * epochs, learning_rate=1e-3, batch=64)


def held_out(group: str) -> bool:
    """Whether a group of emoji (one thing in all styles) is held out for tests."""
    # By a hash of the group, so that the tour holds out the same things with other features.
    return uniform("calibration study", group) < TEST_SHARE


def open_emoji(folder: Path) -> FineTuningWorld:
    """Open the world of `prepare_emoji`."""
    arrays, names = emoji_arrays(folder / "features.npz")
    return _open(folder, FeatureNetwork(arrays["features"].shape[1], classes=len(names)), names)


def prepare_digits(folder: Path, *, epochs: int) -> None:
    """Turn scikit-learn's digits and add noise; pre-train a network on other, upright ones."""
    from scipy.ndimage import rotate
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_digits(return_X_y=True)
    # Without the seed of a cell: all cells share the world and its pre-trained model.
    order = generator("calibration digits").permutation(len(labels))
    source, target = order[:NUM_SOURCE_DIGITS], order[NUM_SOURCE_DIGITS:]
    images = pixels.reshape(-1, 8, 8)[target] / 16
    turned = rotate(images, DIGIT_DEGREES, axes=(1, 2), reshape=False, order=1).reshape(len(target), -1)
    turned += DIGIT_NOISE * generator("calibration digits, noise").standard_normal(turned.shape)
    for name, part in (("train", slice(None, NUM_TRAIN_DIGITS)), ("test", slice(NUM_TRAIN_DIGITS, None))):
        if not (folder / f"{name}.npz").is_file():
            _save(folder / f"{name}.npz", turned[part].astype(np.float32), labels[target][part])
    if not (folder / "before.safetensors").is_file():
        samples = array_images((pixels[source] / 16).astype(np.float32), labels[source])
        _pretrain(digit_network, DIGIT_NAMES, samples, folder, epochs=5 * epochs, learning_rate=1e-3, batch=64)


def digit_network() -> FeatureNetwork:
    """Build the network on 64 pixels."""
    return FeatureNetwork(64, classes=len(DIGIT_NAMES))


def open_digits(folder: Path) -> FineTuningWorld:
    """Open the world of `prepare_digits`."""
    return _open(folder, digit_network(), DIGIT_NAMES)


def open_world(folder: Path) -> FineTuningWorld:
    """Open the world in a folder that is named after it.

    Raises:
        KeyError: there is no such world.
    """
    return {"glyphs": open_glyphs, "emoji": open_emoji, "digits": open_digits}[folder.name](folder)


def _write_emoji_features(path: Path) -> None:
    """Write features [N, 432] of all emoji, with style, subcategory and whether the concept is held out."""
    from foveate.vision.lite0 import Lite0Encoder
    from foveate_labs.studies.image_features import encode_single_objects

    encoder = Lite0Encoder(image_size=128, width=64, embed_dim=64).eval()
    batches = list(encode_single_objects(encoder, ["emoji"], size=128))
    singles = [single for batch in batches for single in batch.objects]
    with atomic_file(path) as handle:
        np.savez(
            handle,
            features=np.concatenate([batch.means.numpy() for batch in batches]).astype(np.float32),
            style=np.array([single.labels["style"] for single in singles]),
            subcategory=np.array([single.labels["subcategory"] for single in singles]),
            held_out=np.array([held_out(single.group) for single in singles]),
        )


def emoji_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Read the subcategories that are large enough and on both sides of the hold-out; return arrays and names."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = []
    for name in sorted(set(arrays["subcategory"].tolist())):
        in_class = (arrays["subcategory"] == name) & (arrays["style"] == "twemoji")
        if in_class.sum() >= MIN_CONCEPTS and 0 < arrays["held_out"][in_class].sum() < in_class.sum():
            names.append(str(name))
    has_name = np.isin(arrays["subcategory"], names)
    arrays = {key: value[has_name] for key, value in arrays.items()}
    arrays["labels"] = np.searchsorted(names, arrays["subcategory"]).astype(np.int64)
    return arrays, names


def _pretrain(
    network: Callable[[], nn.Module],
    names: Any,
    samples: LabeledImages,
    folder: Path,
    *,
    epochs: int,
    learning_rate: float,
    batch: int,
) -> None:
    """Pre-train on the source's samples of all classes: AdamW, one rate for all weights."""
    # One pre-trained model for all seeds: intervals are over splits of the classes and orders of the samples.
    with seeded(0):
        untrained = Classifier(network(), head_name="head", names=names)
    settings = FineTuneSettings(
        epochs=epochs,
        batch_size=batch,
        learning_rate=learning_rate,
        backbone_rate=1.0,
        weight_decay=0.05,
        optimizer="adamw",
    )
    trained = fine_tune(untrained, samples, settings, folder / "pretraining")
    weights = {name: value.detach().contiguous() for name, value in trained.network.state_dict().items()}
    write_bytes_atomically(folder / "before.safetensors", save(weights))


def _save(path: Path, arrays: NDArray[Any], labels: NDArray[Any]) -> None:
    with atomic_file(path) as handle:
        np.savez(handle, arrays=arrays, labels=labels)


def _open(folder: Path, network: nn.Module, names: Any) -> FineTuningWorld:
    network.load_state_dict(load_file(folder / "before.safetensors"), strict=True)
    samples = {}
    for name in ("train", "test"):
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            samples[name] = array_images(file["arrays"], file["labels"])
    before = Classifier(network, head_name="head", names=names).eval()
    return FineTuningWorld(before, samples["train"], samples["test"])
