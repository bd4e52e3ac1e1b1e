"""A collection whose keys, labels and texts are difficult for other programs, for the tests of exporters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from made_images import encoded, noise
from PIL import Image

from foveate.records.boxes import Box
from foveate.records.collection import Collection
from foveate.records.record import Caption, Region
from foveate.records.removal import remove_images
from foveate.records.writer import CollectionWriter

WIDTH, HEIGHT = 48, 32
# Equal without folders, in other cases or when cut; device names of Windows; parts that other programs replace.
KEYS = (
    "a/b",
    "a_b",
    "A/B",
    "CON",
    "..up/..x",
    "x/images/y",
    "50% off.v1",
    "猫/ä #1?*",
    "long/" + "n" * 400,
    "long/" + "n" * 401,
    "-rf",
    "plain",
    "many",
)
CLASSES = ("", "a,b", "new\nline", "Größe 猫", 'it\'s "1": #x', "null", "object", "{{x}}", " blank", "blank")
SPLITS = ("train", "validation", "test", "")
GONE = "gone"


def make_difficult(folder: Path) -> Collection:
    """Write the collection and open it.

    Image 0 has no annotation, image 1 is rotated by its EXIF tag, and the last has many random boxes.
    """
    with CollectionWriter(folder, source="tests", images_per_shard=5) as writer:
        for number, key in enumerate((*KEYS, GONE)):
            data = encoded(noise(number), ("JPEG", "PNG", "WEBP")[number % 3])
            if number == 1:
                exif = Image.Exif()
                exif[0x0112] = 6
                data = encoded(noise(number, width=HEIGHT, height=WIDTH), "JPEG", exif=exif)
            writer.add(
                key,
                data,
                captions=[Caption(f"alt {number}\n二 & <b>", "alt"), Caption("title", "title", "shop")][: number % 3],
                regions=_regions(number) if key != "many" else _random_regions(300),
                labels={"place": f"p,{number}"} if number % 2 else {},
                group=f"g{number // 3}",
                split="" if number % 4 == 3 else SPLITS[number % 4],
            )
    remove_images(folder, [GONE], purge=False)
    return Collection.open(folder)


def _regions(number: int) -> list[Region]:
    box = Box(0.1, 1 / 3, 0.7, 0.9 + number / 1000)
    regions = [
        Region(box, f"part {number}, «x»\n.", 0.3, CLASSES[number % 10], "seen", "model"),
        Region(Box(0, 0, 1, 1), "", label=CLASSES[(number + 5) % 10]),
        Region(Box(1 / 7, 0.25, 1 / 7 + 1e-4, 0.5), "thin", label="猫", source="vesl:nanodet"),
    ]
    return regions[: 1 + number % 3 if number else 0]


def _random_regions(count: int) -> list[Region]:
    """Boxes of all sizes, down to a millionth of the image, some at its edges."""
    rng = np.random.default_rng(0)
    size_R2 = 10 ** rng.uniform(-6, 0, (count, 2))
    start_R2 = rng.choice([0.0, 0.5, 1.0], (count, 2)) * (1 - size_R2)
    start_R2[count // 2 :] = rng.uniform(0, 1 - size_R2[count // 2 :])
    corners_R4 = np.concatenate([start_R2, start_R2 + size_R2], axis=1)
    return [
        Region(Box.from_array(corners), f"box {number}", label=CLASSES[number % 10])
        for number, corners in enumerate(corners_R4)
    ]
