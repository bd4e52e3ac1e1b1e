"""The three worlds of the study `petl`: emoji for a distilled ViT, glyphs in two fonts, and turned characters.

Each is a network, labeled images of a pool, of a test and of a shifted test, all from the package itself. Nothing of
the tests takes part in making a network: the distillation sees no held-out concept, not even without its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from foveate.adapt.load_backbone import LoadedBackbone
from foveate.core.errors import UserError
from foveate.core.files import atomic_file, write_bytes_atomically
from foveate.core.runs import RunFolder
from foveate.core.seeds import generator, uniform
from foveate.records.geometry import View
from foveate.training.classification import LabeledImages
from foveate.training.distributed import start
from foveate.training.loader import Loader
from foveate.training.loop import train
from foveate.training.settings import TrainingSettings
from foveate.training.task import Batch, Losses, Report, Task
from foveate.vision.preprocess import Preprocess
from foveate.vision.registry import seeded
from foveate_labs.studies.calibration_worlds import glyph_network, prepare_glyphs
from foveate_labs.worlds import builtin

GLYPHS, EMOJI, ROTATION = "glyphs", "emoji", "rotation"
SIZE, TEACHER_SIZE, GRID = 64, 128, 4
MIN_IMAGES = 20  # of a subcategory in one style
HELD_OUT = 0.4  # share of the concepts
_HALF = (0.5, 0.5, 0.5)
GLYPH_PREPROCESS = Preprocess(size=builtin.SIZE, mean=_HALF, std=_HALF)


@dataclass(frozen=True)
class AdaptationWorld:
    """A network with a classifier, and labeled images.

    Attributes:
        trained_head: whether the classifier was trained for these classes; else it is to be replaced.
        data: splits "pool" (to learn and to choose from), "test", "shift".
    """

    opened: LoadedBackbone
    trained_head: bool
    data: LabeledImages


def small_vit(classes: int) -> nn.Module:
    """Build the student: 64 px in 16 patches, width 96, 4 blocks, 3 heads."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIZE, patch_size=SIZE // GRID, embed_dim=96, depth=4, num_heads=3, num_classes=classes
    )


def prepare_emoji(folder: Path, *, epochs: int) -> None:
    """Write images with the teacher's features; distill the student on those that are not held out."""
    path = folder / "images.npz"
    if not path.is_file():
        _write_images(path)
    if not (folder / "student.safetensors").is_file():
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("pixels", "map", "pooled", "held_out")}
        _distil(arrays, folder, epochs=epochs)


def open_emoji(folder: Path) -> AdaptationWorld:
    """Open subcategories of emoji: Noto to train on, Twemoji of the held-out concepts as the shifted test."""
    with np.load(folder / "images.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("pixels", "source", "style", "subcategory", "held_out")}
    arrays = {name: values[arrays["source"] == "emoji"] for name, values in arrays.items()}
    noto = arrays["style"] == "noto"
    names = []
    for name in sorted(set(arrays["subcategory"].tolist())):
        in_class = (arrays["subcategory"] == name) & noto
        if in_class.sum() >= MIN_IMAGES and 0 < arrays["held_out"][in_class].sum() < in_class.sum():
            names.append(str(name))
    labels = np.array(
        [names.index(name_of_row) if name_of_row in names else -1 for name_of_row in arrays["subcategory"].tolist()]
    )
    # Twemoji of concepts in the pool are in no split, so that the shifted test, too, shows only held-out concepts.
    splits = np.where(arrays["held_out"], np.where(noto, "test", "shift"), np.where(noto, "pool", ""))
    with seeded(0):
        network = small_vit(len(names))
    weights = load_file(folder / "student.safetensors")
    # The student was distilled without a classifier.
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert set(missing) == {"head.weight", "head.bias"}
    assert not unexpected
    pixels = torch.from_numpy(arrays["pixels"])
    preprocess = Preprocess(size=SIZE, mean=_HALF, std=_HALF)
    return AdaptationWorld(
        LoadedBackbone(network.eval(), preprocess, {"kind": "study"}),
        False,
        labeled_pixels("emoji", names, labels, splits, pixels),
    )


def prepare_glyph_world(folder: Path, *, source_per_class: int, pool_per_class: int, epochs: int) -> None:
    """Train the glyph ViT on clean fonts; draw target images, and clean ones for the shifted test."""
    prepare_glyphs(folder, source_per_class=source_per_class, target_per_class=pool_per_class, epochs=epochs)
    path = folder / "shift.npz"
    if not path.is_file():
        # The fonts of the pre-training, but other images: the name of a set decides its draws.
        drawn = builtin.load_glyphs("source", "petl shift", per_class=pool_per_class)
        with atomic_file(path) as handle:
            np.savez(handle, arrays=drawn.images, labels=drawn.labels)


def open_glyph_world(folder: Path) -> AdaptationWorld:
    """Open 36 characters: five disturbed fonts to train on, the clean fonts as the shifted test."""
    with seeded(0):
        network = glyph_network()
    network.load_state_dict(load_file(folder / "before.safetensors"), strict=True)
    images, labels, splits = [], [], []
    for file_name, split in (("train", "pool"), ("test", "test"), ("shift", "shift")):
        with np.load(folder / f"{file_name}.npz", allow_pickle=False) as file:
            images.append(file["arrays"])
            labels.append(file["labels"])
            splits += [split] * len(file["labels"])
    data = labeled_pixels(
        "glyphs", builtin.CLASSES, np.concatenate(labels), np.array(splits), torch.from_numpy(np.concatenate(images))
    )
    return AdaptationWorld(LoadedBackbone(network.eval(), GLYPH_PREPROCESS, {"kind": "study"}), True, data)


def labeled_pixels(
    name: str, classes: Sequence[str], labels: NDArray[Any], splits: NDArray[Any], pixels: Tensor
) -> LabeledImages:
    """Wrap images [N, C, H, W] in memory with names, labels and splits."""

    def load(row: int, view: View) -> Tensor:
        return pixels[row].flip(-1) if view.flip else pixels[row]

    keys = [str(number) for number in range(len(labels))]
    return LabeledImages(name, tuple(classes), keys, labels.astype(np.int64), splits, load)


def _write_images(path: Path) -> None:
    """Write all emoji and clip art at 64 px, with the teacher's map [4, 4, 320] and the means of both maps [432]."""
    from foveate.vision.lite0 import Lite0Encoder
    from foveate.vision.preprocess import place_image, render_image
    from foveate_labs.studies.image_features import encode_single_objects

    teacher = Lite0Encoder(image_size=TEACHER_SIZE, width=64, embed_dim=64, precision="float32").eval()
    small = Preprocess(size=SIZE, mean=_HALF, std=_HALF)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("pixels", "map", "pooled", "source", "style", "subcategory", "held_out")
    }
    for batch in encode_single_objects(teacher, ["emoji", "clipart"], size=TEACHER_SIZE):
        columns["map"].append(batch.maps[1].half().numpy())
        columns["pooled"].append(batch.means.half().numpy())
        for single, image in zip(batch.objects, batch.images, strict=True):
            columns["pixels"].append(render_image(small, image, place_image(small, image.size, View())).numpy())
            columns["source"].append(single.labels["source"])
            columns["style"].append(single.labels["style"])
            columns["subcategory"].append(single.labels["subcategory"])
            # By group: a thing is held out in all styles at once.
            columns["held_out"].append(uniform("petl study", single.group) < HELD_OUT)
    arrays: dict[str, Any] = {key: np.concatenate(columns.pop(key)) for key in ("map", "pooled")}
    arrays |= {key: np.array(values) for key, values in columns.items()}
    with atomic_file(path) as handle:
        np.savez(handle, **arrays)


class DistilTask(Task):
    """Distillation: patches predict the teacher's map, the class token its means, by two linear layers.

    Half of the images are mirrored together with their map.
    """

    def __init__(self, network: Any, *, channels: int, pooled: int) -> None:
        super().__init__()
        self.network = network
        self.to_map = nn.Linear(network.embed_dim, channels)
        self.to_pooled = nn.Linear(network.embed_dim, pooled)

    def losses(self, batch: Batch) -> tuple[Losses, Report]:
        """Return the squared errors of both."""
        tokens = self.network.forward_features(batch["pixels"])
        spread = F.mse_loss(self.to_map(tokens[:, 1:]), batch["map"])
        whole = F.mse_loss(self.to_pooled(tokens[:, 0]), batch["pooled"])
        return {"loss": spread + whole}, {"map": spread.detach(), "pooled": whole.detach()}

    def export(self, folder: Path) -> None:
        """Write the student's weights; the two linear layers are dropped."""
        write_bytes_atomically(folder / "student.safetensors", save(student_weights(self.network)))


def student_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network, contiguous for safetensors."""
    return {name: value.detach().contiguous() for name, value in network.state_dict().items()}


class _Pairs:
    """Images with the teacher's features as training samples."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        rows = np.flatnonzero(~arrays["held_out"])
        pooled = arrays["pooled"][rows].astype(np.float32)
        self.pixels = torch.from_numpy(arrays["pixels"][rows])
        self.map = torch.from_numpy(arrays["map"][rows].astype(np.float32))
        # The means of both maps differ in scale by channel: standardized, no channel dominates the loss.
        self.pooled = torch.from_numpy((pooled - pooled.mean(0)) / (pooled.std(0) + 1e-6))

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        """Return normalized pixels, the map's 16 positions, the means; half of the samples mirrored."""
        pixels, map_ = self.pixels[row].float() / 127.5 - 1, self.map[row]
        if uniform("petl mirrored", seed, row, epoch) < 0.5:
            # The map is [rows, columns, channels], so its columns are flipped with the pixels.
            pixels, map_ = pixels.flip(-1), map_.flip(1)
        return {"pixels": pixels, "map": map_.flatten(0, 1), "pooled": self.pooled[row]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples."""
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def _distil(arrays: dict[str, NDArray[Any]], folder: Path, *, epochs: int) -> None:
    pairs = _Pairs(arrays)
    with seeded(0):
        task = DistilTask(small_vit(0), channels=pairs.map.shape[-1], pooled=pairs.pooled.shape[-1])
    steps = epochs * len(pairs.pixels) // 64
    settings = TrainingSettings(
        steps=steps,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup_steps=min(100, steps // 4),
        betas=(0.9, 0.999),
        checkpoint_every=200,
        keep_checkpoints=1,
        log_every=max(1, steps // 20),
        workers=0,
    )
    rows = np.arange(len(pairs.pixels))
    with start("cpu"):
        outcome = train(
            task, Loader(pairs, rows=rows, batch_size=64, seed=0, workers=0), settings,
            RunFolder.create(folder / "distillation"),
        )  # fmt: skip
    if outcome.status == "stopped":
        raise UserError(f"{folder}: stopped after step {outcome.step}/{steps}; run the same command to resume")
    task.export(folder)


# The third world of the study `petl`: by how many sixths of a turn is a character rotated?
#
# The glyph network was trained to read upright characters in any font, and a new head can hardly read an angle off its
# last layer. A "structured" task, for a network that knows the images but not the question (section
# 7.3 of the method's specification measured it on a reference implementation).


TURNS = 6
CLASSES = tuple(f"{number * 360 // TURNS} degrees" for number in range(TURNS))
JITTER = 10.0  # degrees to either side
# Images of each character in the pool, the test and the shifted test.
PER_CHARACTER: dict[str, tuple[builtin.Style, int]] = {
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
        drawn = builtin.load_glyphs(style, f"petl rotation {split}", per_class=per_class)
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


def open_rotation(folder: Path, weights: Path) -> AdaptationWorld:
    """Open the images of `prepare_rotation` and the glyph network of a weights file with a new head."""
    with seeded(0):
        network: Any = glyph_network()
        network.load_state_dict(load_file(weights), strict=True)
        network.reset_classifier(TURNS)
    with np.load(folder / "images.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("pixels", "labels", "split")}
    data = labeled_pixels("rotation", CLASSES, arrays["labels"], arrays["split"], torch.from_numpy(arrays["pixels"]))
    return AdaptationWorld(LoadedBackbone(network.eval(), GLYPH_PREPROCESS, {"kind": "study"}), False, data)
