"""Regions as users and files pass them, made hostile: each is refused in a sentence, or is what it says."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from fuzz_values import as_json, damaged, odd_number, odd_text
from fuzz_values import mutated as mutate
from PIL import Image

from foveate.core.errors import UserError
from foveate.records.boxes import PixelBox
from foveate.records.conversations import decode_shape, encode_shape, find_shape_problem, read_conversation
from foveate.records.importers.coordinates import CoordinateFrame
from foveate.records.region_prompts import parse_box, parse_point, read_mask, read_stroke
from foveate.records.shapes import Point, Shape, Stroke, decode_counts, enclosing_box, encode_mask

SIZE = WIDTH, HEIGHT = 12, 9
STORED: tuple[dict[str, Any], ...] = (
    {"point": [3, 4.5]},
    {"box": [1, 2, 8, 9]},
    {"stroke": [[0, 0], [5.5, 2], [11, 8]]},
    {"mask": encode_mask(np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 5 == 0)},
)


def check(shape: Shape) -> None:
    """Check a shape against an image, and in all units: it has a problem, or a box that lies in the image."""
    problem = find_shape_problem(shape, width=WIDTH, height=HEIGHT)
    if problem is not None:
        return
    box = enclosing_box(shape)
    assert box is not None, shape
    assert 0 <= box.x1 <= box.x2 <= WIDTH, shape
    assert 0 <= box.y1 <= box.y2 <= HEIGHT, shape
    for unit in ("0-1", "0-1000"):
        converted = CoordinateFrame(unit, WIDTH, HEIGHT).to_pixels(shape)
        assert type(converted) is type(shape)
    assert decode_shape(json.loads(json.dumps(encode_shape(shape)))) == shape


def mutated(random: Random, value: Any) -> Any:
    """Change parts of a JSON structure."""
    # What is nested by chance as deep as Python calls functions cannot be copied.
    with contextlib.suppress(RecursionError):
        return mutate(random, value)
    return value


def read_text(random: Random, folder: Path) -> Shape:
    """A box or a point as an option's value."""
    count = random.choice((4, 4, 2, 2, 0, 1, 3, 5, 300))
    parts = [str(odd_number(random)) if random.random() < 0.3 else str(random.uniform(0, 9)) for _ in range(count)]
    text = random.choice((",", ",", ",", ", ", ";", " ")).join(parts)
    if random.random() < 0.1:
        text = text[: random.randrange(len(text) + 1)] + odd_text(random)
    return parse_box(text) if random.random() < 0.6 else parse_point(text)


def read_stroke_file(random: Random, folder: Path) -> Shape:
    path = folder / "stroke.json"
    points: Any = [[random.uniform(0, WIDTH), random.uniform(0, HEIGHT)] for _ in range(random.choice((1, 2, 5, 40)))]
    path.write_bytes(as_json(random, mutated(random, random.choice((points, {"stroke": points})))))
    shape = read_stroke(path)
    assert isinstance(shape, Stroke)
    assert shape.points
    assert all(math.isfinite(point.x) and math.isfinite(point.y) for point in shape.points)
    return shape


def read_mask_file(random: Random, folder: Path) -> Shape:
    path, file = folder / "mask.png", io.BytesIO()
    size = SIZE if random.random() < 0.8 else (random.choice((1, 9, 40)), random.choice((1, 12, 40)))
    image = Image.frombytes("L", size, bytes(random.choice((0, 0, 1, 255)) for _ in range(size[0] * size[1])))
    image = image.convert(random.choice(("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F", "CMYK")))
    kinds = {"F": "TIFF", "CMYK": "JPEG"}
    image.save(file, kinds.get(image.mode, "PNG"))
    path.write_bytes(damaged(random, file.getvalue()) if random.random() < 0.6 else file.getvalue())
    shape = read_mask(path)
    assert sum(shape.counts) == shape.size[0] * shape.size[1]
    return shape


def read_stored(random: Random, folder: Path) -> Shape:
    """A shape as collections store it."""
    return decode_shape(mutated(random, random.choice(STORED)))


def read_row(random: Random, folder: Path) -> Shape:
    """A shape in the row of a conversation."""
    regions = as_json(random, mutated(random, list(STORED))).decode("utf-8", "replace")
    turns = [{"role": "user", "text": "<region>" * len(STORED), "regions": regions}]
    shapes = read_conversation({"id": "a", "images": ["a"], "turns": turns, "group": "general", "source": ""})
    for shape in shapes.turns[0].regions:
        check(shape)
    return shapes.turns[0].regions[0] if shapes.turns[0].regions else Point(0, 0)


def read_counts(random: Random, folder: Path) -> Shape:
    """COCO's compressed run lengths."""
    text = "".join(chr(random.randrange(40, 120)) for _ in range(random.choice((0, 1, 3, 20))))
    counts = decode_counts(odd_text(random) if random.random() < 0.2 else text)
    return decode_shape({"mask": {"size": [HEIGHT, WIDTH], "counts": counts}})


READERS: tuple[Callable[[Random, Path], Shape], ...] = (
    *[read_text] * 7, *[read_stored] * 7, *[read_counts] * 3, read_row, read_stroke_file, read_mask_file,
)  # fmt: skip


@contextlib.contextmanager
def named(seed: int, reader: Callable[[Random, Path], Shape]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise AssertionError(f"{reader.__name__}, seed {seed}: {type(error).__name__}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("count", [1000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_hostile_regions_are_refused_or_what_they_say(count: int, tmp_path: Path) -> None:
    accepted: Counter[str] = Counter()
    for seed in range(count):
        reader = READERS[seed % len(READERS)]
        with contextlib.suppress(UserError), named(seed, reader):
            check(reader(Random(seed), tmp_path))
            accepted[reader.__name__] += 1
    for reader in set(READERS):
        total = count * READERS.count(reader) // len(READERS)
        assert 0.02 * total < accepted[reader.__name__] < total, reader.__name__


@pytest.mark.parametrize(
    "stored",
    [
        {"point": ["1", "2"]},
        {"point": [True, 1]},
        {"box": [1, 2, 3, None]},
        {"box": [1, 2, 3, 10**400]},
        {"stroke": "ab"},
        {"mask": {"size": [2, 3], "counts": ["6"]}},
        {"mask": {"size": [2, 3.0], "counts": [6]}},
    ],
)
def test_stored_shapes_have_numbers(stored: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        decode_shape(stored)


def test_boxes_keep_their_numbers() -> None:
    assert decode_shape({"box": [1, 2, 3.5, 4]}) == PixelBox(1, 2, 3.5, 4)
