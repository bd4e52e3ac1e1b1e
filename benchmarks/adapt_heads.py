"""What a solved head and the choice on validation images give few-label tuning: accuracies on six small tasks.

    python -m benchmarks.adapt_heads --packages FOLDER --out DIR

Each cell trains `foveate adapt train`'s defaults (AdamW, peak rate 0.001, 50 epochs or 300 steps) on drawn images:
characters in other fonts, digits of scikit-learn and turned characters on a ViT that has read characters; emoji by
subcategory, stamps and photographs by folder (see benchmarks/search_folders.py) on a ViT that was distilled from
EfficientNet-Lite0. "features" is the linear probe on the untuned network, "random" starts from a random
head, "solved" from that probe, and "saved" is the better of solved and features on validation images, the tuned one of
equals. Test images decide nothing. All but stamps and photographs comes from the package; a run that is stopped goes
on.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from benchmarks.search_folders import find_folder
from foveate.adapt.compare.bench import Bench
from foveate.adapt.load_backbone import LoadedBackbone
from foveate.adapt.recipe import AdaptTraining
from foveate.core.files import read_json, write_json_atomically
from foveate.core.seeds import generator
from foveate.metrics.intervals import seed_interval
from foveate.training.classification import LabeledImages
from foveate.vision.preprocess import render_file
from foveate_labs.studies import petl_worlds as worlds

METHODS = ("lora", "full", "bitfit")  # beside linear, the features alone
MIN_IMAGES = 25  # of a folder that is a class
VALIDATION, TEST, MAX_CLASSES = 10, 50, 12  # images of a class; classes of a task


def open_digits(folder: Path, packages: Path) -> tuple[LoadedBackbone, LabeledImages]:
    """Open scikit-learn's digits, bilinear to the size of the characters that the network has read."""
    from sklearn.datasets import load_digits

    source: Any = load_digits()
    side = worlds.builtin.SIZE
    scaled = [Image.fromarray(image.astype(np.float32) / 8 - 1) for image in source.images]
    pixels = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))[None] for image in scaled])
    names = [str(number) for number in range(10)]
    splits = np.full(len(pixels), "pool")
    network = worlds.open_rotation(folder / "rotation", folder / "glyphs" / "before.safetensors").opened
    return network, worlds.labeled_pixels("digits", names, source.target, splits, torch.from_numpy(pixels))


def open_rotation(folder: Path, packages: Path) -> tuple[LoadedBackbone, LabeledImages]:
    """Open characters by their rotation, which the network has never been asked for."""
    world = worlds.open_rotation(folder / "rotation", folder / "glyphs" / "before.safetensors")
    return world.opened, world.data


def open_characters(folder: Path, packages: Path) -> tuple[LoadedBackbone, LabeledImages]:
    """Open characters in fonts that the network has not read, with a new head."""
    world = worlds.open_glyph_world(folder / "glyphs")
    network: Any = world.opened.model
    network.reset_classifier(len(world.data.classes))
    return world.opened, world.data


def open_folder(name: str, folder: Path, packages: Path) -> tuple[LoadedBackbone, LabeledImages]:
    """Open the images of a package by folder, squeezed to the side of the distilled network."""
    opened = worlds.open_emoji(folder / "emoji").opened
    root = find_folder(name, packages, folder)
    if root is None:
        raise SystemExit(f"{name}: the package is not below {packages} (--packages)")
    paths = sorted(path for path in root.rglob("*") if path.suffix in (".png", ".webp"))
    of_path = [path.relative_to(root).parts[0] for path in paths]
    classes = sorted({each for each in of_path if of_path.count(each) >= MIN_IMAGES})
    members = [(path, classes.index(each)) for path, each in zip(paths, of_path, strict=True) if each in classes]
    pixels = torch.stack([render_file(path.read_bytes(), opened.preprocess)[0] for path, _ in members])
    splits, labels = np.full(len(members), "pool"), np.array([label for _, label in members])
    return opened, worlds.labeled_pixels(name, classes, labels, splits, pixels)


def open_emoji(folder: Path, packages: Path) -> tuple[LoadedBackbone, LabeledImages]:
    """Open emoji by subcategory."""
    world = worlds.open_emoji(folder / "emoji")
    return world.opened, world.data


TASKS: dict[str, Callable[[Path, Path], tuple[LoadedBackbone, LabeledImages]]] = {
    "characters": open_characters,
    "digits": open_digits,
    "rotation": open_rotation,
    "emoji": open_emoji,
    "stamps": functools.partial(open_folder, "stamps"),
    "photographs": functools.partial(open_folder, "photographs"),
}


def prepare(folder: Path) -> None:
    """Make what is missing of the study's networks and images; the emoji network in a third of its epochs."""
    worlds.prepare_glyph_world(folder / "glyphs", source_per_class=300, pool_per_class=20, epochs=8)
    worlds.prepare_rotation(folder / "rotation")
    worlds.prepare_emoji(folder / "emoji", epochs=8)


def draw_rows(images: LabeledImages, shots: int, seed: int) -> tuple[LabeledImages, dict[str, NDArray[np.int64]]]:
    """Draw images of each class to learn from, to choose on and to test on; of the largest classes where many."""
    in_pool = (images.labels_N >= 0) & (images.splits == "pool")
    counts = np.bincount(images.labels_N[in_pool], minlength=len(images.classes))
    numbers = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES]).tolist()
    labels_N = np.array([numbers.index(label) if label in numbers else -1 for label in images.labels_N.tolist()])
    chosen = LabeledImages(
        images.name,
        tuple(images.classes[number] for number in numbers),
        images.keys,
        labels_N,
        images.splits,
        images.load,
    )
    parts: dict[str, list[NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
    has_test = "test" in images.splits
    for number in range(len(numbers)):
        in_class = labels_N == number
        order = generator("adapt heads", images.name, seed, number).permutation(
            np.flatnonzero(in_class & (images.splits == "pool"))
        )
        # The world's own test where it has one: no network has seen its images, not even without a label.
        test = np.flatnonzero(in_class & (images.splits == "test")) if has_test else order[shots + VALIDATION :]
        for name, part in zip(parts, (order[:shots], order[shots : shots + VALIDATION], test[:TEST]), strict=True):
            parts[name].append(part)
    return chosen, {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def measure(given: argparse.Namespace, task: str, shots: int, seed: int) -> dict[str, Any]:
    """Return the test accuracies of one draw, and by which method each was reached."""
    folder = given.out
    network, images = TASKS[task](folder, given.packages)
    images, rows = draw_rows(images, shots, seed)
    bench, held = Bench(network, device="cpu"), np.concatenate([rows["validation"], rows["test"]])

    def accuracies(method: str, head_init: Literal["solved", "random"]) -> dict[str, float]:
        options: dict[str, Any] = {} if given.rate is None else {"learning_rate": given.rate}
        training = AdaptTraining(
            seed=seed, head_init=head_init, workers=0, checkpoint_every=10_000, log_every=10_000, **options
        )
        done = bench.fit(
            images, rows["train"], {"method": method}, training, folder=folder / "training", test=held
        )  # fmt: skip
        correct = dict(zip(done.rows.tolist(), done.logits.argmax(axis=1) == done.labels, strict=True))
        return {name: float(np.mean([correct[row] for row in rows[name].tolist()])) for name in ("validation", "test")}

    features = accuracies("linear", "solved")
    found: dict[str, Any] = {"n": len(rows["test"]), "features": features["test"], "methods": {}}
    for method in given.methods:
        random, solved = accuracies(method, "random"), accuracies(method, "solved")
        keeps = solved["validation"] >= features["validation"]
        found["methods"][method] = {
            "random": random["test"],
            "solved": solved["test"],
            "saved": solved["test"] if keeps else features["test"],
            "kept": "tuned" if keeps else "features",
        }
    return found


def format_table(cells: dict[str, dict[str, Any]], given: argparse.Namespace) -> list[str]:
    """Return a Markdown table of means over seeds, with the interval of what saved gains over the features."""
    names = ("task", "images a class", "method", "features", "random head", "solved head", "saved", "saved - features")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for task in given.tasks:
        for number in given.shots:
            draws = [cells[f"{task}-{number}-{seed}"] for seed in range(given.seeds)]
            features = seed_interval([draw["features"] for draw in draws]).value
            for method in given.methods:
                rows = [draw["methods"][method] for draw in draws]
                means = [seed_interval([row[key] for row in rows]).value for key in ("random", "solved", "saved")]
                gain = seed_interval([row["saved"] - draw["features"] for row, draw in zip(rows, draws, strict=True)])
                values = " | ".join(f"{value:.3f}" for value in (features, *means))
                interval = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
                lines.append(f"| {task} | {number} | {method} | {values} | {interval} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of networks, images and results")
    parser.add_argument("--packages", type=Path, default=Path("/"), help="folder of installed or unpacked packages")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--shots", nargs="+", type=int, default=[5, 20], help="training images of each class")
    parser.add_argument("--rate", type=float, help="peak learning rate instead of the default")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        given.out.mkdir(parents=True, exist_ok=True)
        prepare(given.out)
        cells: dict[str, dict[str, Any]] = {}
        for name, task, shots, seed in (
            (f"{task}-{shots}-{seed}", task, shots, seed)
            for seed in range(given.seeds)
            for task in given.tasks
            for shots in given.shots
        ):
            folder = "cells" if given.rate is None else f"cells-{given.rate:g}"
            path = given.out / folder / f"{name}.json"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                write_json_atomically(path, measure(given, task, shots, seed))
            cells[name] = read_json(path)
            print(name, cells[name], flush=True)
    print("\n".join(format_table(cells, given)))


if __name__ == "__main__":
    main()
