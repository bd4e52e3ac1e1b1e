"""Measure which words a model reads: held-out ones by kind, the study's signs, and photographs without any.

foveate collect words --out words
python tools/measure_reading.py mini --data words --frames FOLDER

Controls: what is read against the word of the next image, and against words dealt at random. None of these images
chose the model's lowest score; its rule was changed once after a look at photographs, some of which are grounds of
training images.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.metrics.intervals import wilson_interval
from foveate.multimodal.folder import load_model
from foveate.multimodal.opening import find_folder
from foveate.records.collection import Collection
from foveate.vision.text_reader import TextReader
from foveate_labs.studies.mllm_worlds import draw_asked_scene
from foveate_labs.worlds.scenes.grounds import HELD_OUT_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load

# With letters or figures on them: a flag and labels of a suit, a number plate, a clock's face, coins.
_WRITTEN_ON = frozenset(("astronaut", "motorcycle_left", "clock_motion", "coins"))
_STRIP = 0.15  # of a camera frame's height at either end, where cameras print date and place
_DEALS = 100  # of words at random


def read_words(data: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield kind, words and image of the test split of `foveate collect words`."""
    with Collection.open(data) as collection:
        for row in track(collection.rows("test").tolist(), description="words"):
            record = collection.record(row)
            yield (
                record.labels["kind"],
                " ".join(region.phrase for region in record.regions),
                collection.image_bytes(row),
            )


def draw_signs(count: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield the test scenes of the study `mllm` that have a sign."""
    for index in track(range(count), description="signs"):
        (image,) = draw_asked_scene(("test", index))
        for talk in image.conversations:
            if talk.id.startswith("read/"):
                yield "signs of the study", talk.turns[-1].text.casefold(), image.data


def draw_crops(frames: Path | None, crops: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield crops of photographs without letters, a quarter of their sides or more."""
    shipped = (*TRAINING_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS)
    photographs = {each.name: load(each) for each in shipped if each.name not in _WRITTEN_ON}
    for path in sorted(frames.glob("*.jp*g")) if frames else []:
        with Image.open(path) as image:
            edge = round(_STRIP * image.height)
            photographs[path.name] = image.convert("RGB").crop((0, edge, image.width, image.height - edge))
    for name, image in track(photographs.items(), description="photographs"):
        for number in range(crops):
            rng = generator("reading crops", name, number)
            size = [max(1, round(side * rng.uniform(0.25, 1.0))) for side in image.size]
            left, top = (int(rng.integers(whole - side + 1)) for whole, side in zip(image.size, size, strict=True))
            buffer = io.BytesIO()
            image.crop((left, top, left + size[0], top + size[1])).save(buffer, "PNG")
            yield "photographs", "", buffer.getvalue()


def score(pairs: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Score (truth, read) of images of one kind: exact words, or how often one is read where there is none."""
    truths, texts = zip(*pairs, strict=True)
    if not any(truths):
        interval = wilson_interval(sum(map(bool, texts)), len(texts))
        return {"read": str(interval), "n": len(texts)}
    interval = wilson_interval(sum(text == truth for truth, text in pairs), len(pairs))
    others = [*truths[1:], *truths[:1]]
    rng = generator("deal words")
    dealt = [np.mean([text == truths[i] for text, i in zip(texts, rng.permutation(len(texts)), strict=True)])
             for _ in range(_DEALS)]  # fmt: skip
    return {
        "exact": str(interval),
        "silent": round(texts.count("") / len(texts), 3),
        "another image": round(float(np.mean([text == other for text, other in zip(texts, others, strict=True)])), 3),
        "dealt": round(float(np.mean(dealt)), 4),
        "n": len(texts),
    }


def measure(reader: TextReader, images: Iterator[tuple[str, str, bytes]]) -> None:
    """Read images, and print a row for each kind."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for kind, truth, data in images:
        kinds[kind].append((truth, " ".join(word.text for word in reader.read(data))))
    for kind, pairs in kinds.items():
        print(json.dumps({"images": kind, **score(pairs)}), flush=True)


@click.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Collection of words.")
@click.option("--frames", type=click.Path(path_type=Path, exists=True), help="Folder with camera frames.")
@click.option("--signs", default=250, show_default=True, help="Test scenes of the study; half of them have a sign.")
@click.option("--crops", default=10, show_default=True, help="Crops of each photograph.")
def main(model: str, data: Path, frames: Path | None, signs: int, crops: int) -> None:
    """Print a row for each kind of images."""
    reader = load_model(find_folder(model)).reader
    if reader is None:
        raise click.UsageError(f"{model} reads no words")
    measure(reader, read_words(data))
    measure(reader, draw_signs(signs))
    measure(reader, draw_crops(frames, crops))


if __name__ == "__main__":
    main()
