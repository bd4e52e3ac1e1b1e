"""Sample files to try every job on: photographs, a clip, a camera-trap card, tables of two hospitals, a labeled folder.

Everything is made from images that ship with Foveate and a table of scikit-learn; the same seed makes the same bytes.
"""

from __future__ import annotations

import csv
import functools
import io
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from foveate.core.errors import UserError
from foveate.core.files import commit_atomically, fsync_path
from foveate.core.seeds import generator
from foveate.records.builtin.families import emoji_phrase, rows
from foveate.records.builtin.photographs import open_photograph


@dataclass(frozen=True)
class Sample:
    """A sample file or folder.

    Attributes:
        path: of the file or folder. description: what it is. command: to try first on it.
    """

    path: Path
    description: str
    command: str


# Name -> author, an alt-text as poor as those of the web.
_PHOTOGRAPHS = {
    "astronaut": ("NASA, public domain", "portrait"),
    "cat": ("Stefan van der Walt, CC0", "IMG_2041 my cat"),
    "coffee": ("Rachel Michetti, CC0", "coffee break"),
    "coins": ("Brooklyn Museum, public domain", "greek coins"),
    "photographer": ("Lav Varshney, CC0", "DSC_0007"),
    "rocket": ("SpaceX, public domain", "launch"),
}
_MAX_SIDE = 640
_NUM_IMAGES_OF_CLASS = 32
_CLASSES = {
    "car": ("automobile", "taxi", "police car", "racing car"),
    "fish": ("fish", "tropical fish", "blowfish", "shark"),
    "flower": ("tulip", "hibiscus", "sunflower", "cherry blossom"),
    "fruit": ("red apple", "pear", "lemon", "banana"),
}
_ANIMALS = ("deer", "rabbit", "boar")
_CLIP_FRAMES = 8


def photographs() -> dict[str, Image.Image]:
    """Return six photographs by name, RGB and at most 640 pixels wide and high."""
    images: dict[str, Image.Image] = {}
    for name in _PHOTOGRAPHS:
        image = open_photograph("camera" if name == "photographer" else name)
        image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        images[name] = image
    return images


def list_samples(folder: Path) -> list[Sample]:
    """List the samples of a folder, with a command to try first on each that runs without a network."""

    def name(part: str) -> str:
        return shlex.quote(str(folder / part))

    hospitals = f"{name('hospital-a.csv')} {name('hospital-b.csv')} --label diagnosis"

    return [
        Sample(
            folder / "photographs",
            "six photographs",
            f"foveate index {name('photographs')}",
        ),
        Sample(
            folder / "alt-texts.csv",
            "poor alt-texts of the photographs",
            f"foveate collect {name('alt-texts.csv')} --out {name('collection')}",
        ),
        Sample(
            folder / "clip.webp",
            "a clip of six seconds: a cup of coffee, then a cat, then a rocket",
            f'foveate video find bridge {name("clip.webp")} "a kitten"',
        ),
        Sample(
            folder / "labeled",
            "128 drawings, a folder for each of four classes",
            f"foveate collect {name('labeled')} --label-from-folder category --out {name('labeled-collection')}",
        ),
        Sample(
            folder / "card",
            "twelve frames of two generated camera traps, and the table of their deployments",
            f"foveate collect {name('card')} --out {name('survey')}",
        ),
        Sample(
            folder / "hospital-a.csv",
            "measurements of 569 biopsies, those of a first hospital",
            f"foveate federated cluster {hospitals} --clusters 2 --scale standard",
        ),
        Sample(
            folder / "hospital-b.csv",
            "those of a second hospital, which has more malignant ones",
            f"foveate federated embed {hospitals} --rounds 5",
        ),
    ]


def write_samples(folder: Path | str, *, seed: int = 0) -> list[Sample]:
    """Write all samples into a new or empty folder, whole or not at all, and return them.

    Args:
        folder: missing or empty, or one that this function has written with the same seed, which is left as it is.
        seed: of the drawings, the frames, and the hospital of each biopsy; the photographs are always the same.

    Raises:
        UserError: the folder has other files.

    Examples:
        >>> [sample.path.name for sample in write_samples(new_folder)]
        ['photographs', 'alt-texts.csv', 'clip.webp', 'labeled', 'card', 'hospital-a.csv', 'hospital-b.csv']
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"DIR: {folder} is a file; expected a new or empty folder")
    existing = _read_files(folder)
    files = make_files(seed)
    others = sorted(name for name in existing if files.get(name) != existing[name])
    if others:
        raise UserError(
            f"DIR: {folder} has other files (got '{others[0]}'); expected a new or empty folder, since samples "
            "overwrite nothing"
        )
    if len(existing) < len(files):
        _write_folder(folder, files)
    return list_samples(folder)


def _read_files(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder beside the final one, and rename it: a stopped command leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        # mkdtemp's folders are for their owner alone.
        temporary.chmod(0o755)
        for name, data in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            fsync_path(path)
        commit_atomically(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_files(seed: int) -> dict[str, bytes]:
    """Return the bytes of all sample files by their path below the folder."""
    images = photographs()
    files = {"README.md": _describe().encode("utf-8")}
    files |= {f"photographs/{name}.jpg": _encode_jpeg(image) for name, image in images.items()}
    texts = [(f"photographs/{name}.jpg", text) for name, (_, text) in _PHOTOGRAPHS.items()]
    files["alt-texts.csv"] = _encode_csv([("file", "text"), *texts])
    files["clip.webp"] = _make_clip(images)
    files |= _make_labeled(seed)
    files |= _make_card(seed)
    return files | _make_hospitals(seed)


def _describe() -> str:
    """Say who made what, since some of the licenses ask for it."""
    lines = ["# Samples of Foveate", "", "`foveate samples DIR` writes these files.", ""]
    lines += [f"- photographs/{name}.jpg: {author}." for name, (author, _) in _PHOTOGRAPHS.items()]
    lines += [
        "- alt-texts.csv: texts of Foveate (Apache-2.0).",
        "- clip.webp: made from three of the photographs.",
        "- labeled/, card/: Noto Emoji (Apache-2.0) and Twemoji (CC-BY-4.0, copyright Twitter, Inc and other "
        "contributors), pasted on drawn grounds.",
        "- hospital-a.csv, hospital-b.csv: Breast Cancer Wisconsin (Diagnostic) of W. Wolberg, O. Mangasarian, "
        "N. Street and W. Street (UCI, CC-BY-4.0). Which hospital has a row is made up.",
    ]
    return "\n".join(lines) + "\n"


def _encode_jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, exif=exif or Image.Exif())
    return buffer.getvalue()


def _encode_csv(table: list[tuple[str, ...]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table)
    return buffer.getvalue().encode("utf-8")


def _make_clip(images: Mapping[str, Image.Image]) -> bytes:
    """Pan over three photographs, one after the other, as an animated WebP, which needs no FFmpeg."""
    frames = []
    for name in ("coffee", "cat", "rocket"):
        image = images[name]
        width = min(image.width, image.height * 4 // 3) * 9 // 10
        height = width * 3 // 4
        for index in range(_CLIP_FRAMES):
            left = (image.width - width) * index // (_CLIP_FRAMES - 1)
            top = (image.height - height) // 2
            frames.append(image.resize((320, 240), Image.Resampling.LANCZOS, (left, top, left + width, top + height)))
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], duration=250, quality=80)
    return buffer.getvalue()


@functools.cache
def _load_emoji(name: str) -> tuple[Image.Image, ...]:
    """Return an emoji in its styles, with alpha."""
    matches = [row["image"] for row in rows("emoji") if emoji_phrase(row["name"]) == name]
    return tuple(Image.open(io.BytesIO(data)).convert("RGBA") for data in matches)


def _make_labeled(seed: int) -> dict[str, bytes]:
    """Draw the members of each class in turn, turned and scaled, on grounds of random colors."""
    files = {}
    for label, members in _CLASSES.items():
        for index in range(_NUM_IMAGES_OF_CLASS):
            rng = generator("samples", "labeled", seed, label, index)
            styles = _load_emoji(members[index % len(members)])
            thing = styles[index // len(members) % len(styles)].rotate(
                float(rng.uniform(-20, 20)), Image.Resampling.BICUBIC, expand=True
            )
            side = int(rng.integers(90, 180))
            thing.thumbnail((side, side))
            thing = thing.resize((side, side * thing.height // thing.width), Image.Resampling.LANCZOS)
            red, green, blue = (int(value) for value in rng.integers(120, 256, 3))
            image = Image.new("RGB", (224, 224), (red, green, blue))
            position = tuple(int(rng.integers(0, max(1, 224 - length))) for length in thing.size)
            image.paste(thing, (position[0], position[1]), thing)
            files[f"labeled/{label}/{index + 1:02}.jpg"] = _encode_jpeg(image)
    return files


def _make_card(seed: int) -> dict[str, bytes]:
    """Draw bursts of two camera traps: an animal that walks through, or an empty frame that the wind triggered."""
    files = {}
    deployments: list[tuple[str, ...]] = [
        ("deploymentID", "folder", "locationID", "latitude", "longitude", "deploymentStart", "deploymentEnd"),
        ("meadow-1", "meadow", "meadow", "46.52", "6.57", "2024-05-01", "2024-05-31"),
        ("forest-1", "forest", "forest", "46.61", "6.68", "2024-05-01", "2024-05-31"),
    ]
    for camera, color in (("meadow", (116, 138, 72)), ("forest", (74, 92, 62))):
        rng = generator("samples", "card", seed, camera)
        ground = _draw_ground(rng, color)
        for burst, animal in enumerate((str(rng.choice(_ANIMALS)), "")):
            time = datetime(2024, 5, int(rng.integers(2, 29)), int(rng.choice((6, 7, 12, 19, 23))), 10, 0)
            side, left, top = int(rng.integers(90, 170)), int(rng.integers(20, 160)), int(rng.integers(190, 260))
            for shot in range(3):
                frame = ground.copy()
                if animal:
                    thing = _load_emoji(animal)[0].resize((side, side), Image.Resampling.LANCZOS)
                    frame.paste(thing, (left + 90 * shot, top), thing)
                if not 5 < time.hour < 21:
                    # The flash of a camera trap is infrared: frames of the night are gray.
                    frame = ImageEnhance.Brightness(frame.convert("L")).enhance(0.6).convert("RGB")
                moment = time + timedelta(seconds=shot)
                draw = ImageDraw.Draw(frame)
                draw.rectangle((0, 456, 640, 480), fill=(0, 0, 0))
                draw.text((8, 462), f"{camera}  {moment:%Y-%m-%d %H:%M:%S}", fill=(255, 255, 255))
                exif = Image.Exif()
                # Tag DateTimeOriginal of the block that cameras write.
                exif[0x8769] = {0x9003: f"{moment:%Y:%m:%d %H:%M:%S}"}
                name = f"card/{camera}/DCIM/100RECNX/IMG_{3 * burst + shot + 1:04}.JPG"
                files[name] = _encode_jpeg(frame, exif)
    return files | {"card/deployments.csv": _encode_csv(deployments)}


def _draw_ground(rng: np.random.Generator, color: tuple[int, int, int]) -> Image.Image:
    """Draw a ground with noise of two sizes below a paler sky, 640 by 480 pixels."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(rng.integers(0, 256, (160, 213), dtype=np.uint8)).resize((640, 480))
    light = (np.asarray(coarse, np.float32) * 0.5 + np.asarray(fine, np.float32) * 0.5) / 255
    pixels = np.array(color, np.float32) * (0.7 + 0.6 * light[..., None])
    sky = np.array((196, 206, 214), np.float32)
    weight = np.clip((170 - np.arange(480, dtype=np.float32)) / 40, 0, 1)[:, None, None]
    return Image.fromarray((pixels + weight * (sky - pixels)).clip(0, 255).astype(np.uint8))


def _make_hospitals(seed: int) -> dict[str, bytes]:
    """Split a table of biopsies over two hospitals whose shares of malignant ones differ."""
    # Loaded here: only this table needs it.
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    rng = generator("samples", "hospitals", seed)
    is_second = rng.random(len(data.target)) < np.where(data.target == 0, 0.7, 0.3)
    files = {}
    for letter, mask in (("a", ~is_second), ("b", is_second)):
        table: list[tuple[str, ...]] = [(*names, "diagnosis")]
        for values, target in zip(data.data[mask], data.target[mask], strict=True):
            table.append((*(f"{value:.6g}" for value in values), str(data.target_names[target])))
        files[f"hospital-{letter}.csv"] = _encode_csv(table)
    return files
