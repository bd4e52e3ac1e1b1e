"""A folder collected again after a few of its files changed, against its first import.

    python -m benchmarks.collect_update --out DIR

Both end with a collection of all images. Of the changes four are texts, four images with other bytes, one image is new
and one is gone. The ratio is of the processor's seconds, on one thread.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import compare, publish, ratio
from foveate.core import progress
from foveate.records.importers.folder import import_folder

AIM = 20.0  # the first import takes as many times as long
_KINDS = 50
_SIZE = (320, 240)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    progress.configure(quiet=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = make_images()
        source = write_images(root / "images", images, options.images)
        rounds = itertools.count(1)

        def first() -> None:
            shutil.rmtree(root / "first", ignore_errors=True)
            import_folder(source, root / "first", workers=1)

        def update() -> None:
            number = next(rounds)
            change(source, images, options.images, number)
            summary = import_folder(source, root / "updated", workers=1, update=True)
            taken = (summary.imported, summary.texts_changed, summary.files_replaced)
            assert taken == (5, 4, 4), taken

        import_folder(source, root / "updated", workers=1)
        timings = compare({"first import": first, "update of 10": update}, repeats=options.repeats, warmup=0)
    ratios = {"update against first import": ratio(timings, "update of 10", "first import", processor=True)}
    extra = {"aim": AIM}
    publish("collect_update", timings, out=options.out, ratios=ratios, items=options.images, unit="images", extra=extra)


def make_images() -> list[bytes]:
    """Return JPEGs of blocks, so that one has the size of a thumbnail's file."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(_KINDS):
        blocks = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        blocks.resize(_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        images.append(buffer.getvalue())
    return images


def write_images(folder: Path, images: list[bytes], count: int) -> Path:
    """Write `count` images with texts, an hour old."""
    for number in range(count):
        path = name_image(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number_bytes(images, number))
        path.with_suffix(".txt").write_text(f"caption of image {number}")
        for written in (path, path.with_suffix(".txt")):
            os.utime(written, (time.time() - 3600, time.time() - 3600))
    return folder


def name_image(folder: Path, number: int) -> Path:
    """Return the path of an image, a hundred in a folder."""
    return folder / f"part{number // 100:03d}" / f"image{number:05d}.jpg"


def number_bytes(images: list[bytes], number: int) -> bytes:
    """Return the bytes of a JPEG that no other image has: decoders ignore what follows its end."""
    return images[number % len(images)] + number.to_bytes(8, "big")


def change(source: Path, images: list[bytes], count: int, round_number: int) -> None:
    """Change four texts and four images, spread over the folder; add an image, and delete that of the last round."""
    for step in range(4):
        number = (round_number + step * count // 4) % count
        name_image(source, number).with_suffix(".txt").write_text(f"text {number} of round {round_number}")
        name_image(source, (number + 20) % count).write_bytes(number_bytes(images, count * round_number + number))
    added = name_image(source, count + round_number)
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(number_bytes(images, 10 * count + round_number))
    name_image(source, count + round_number - 1).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
