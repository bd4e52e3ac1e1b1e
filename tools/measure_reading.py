"""Measure how often a model reads words in photographs without any: crops of shipped ones and of camera frames.

python tools/measure_reading.py mini --frames FOLDER

None of them had a part in choosing the model's lowest score.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import click
from PIL import Image

from foveate.core.seeds import generator
from foveate.metrics.intervals import wilson_interval
from foveate.multimodal.folder import load_model
from foveate.multimodal.opening import find_folder
from foveate_labs.worlds.scenes.grounds import HELD_OUT_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS, load

# With letters or figures on them: a flag's and a suit's labels, a number plate, a clock's face, coins.
_WRITTEN_ON = frozenset(("astronaut", "motorcycle_left", "clock_motion", "coins"))
_STRIP = 0.15  # of a camera frame's height at either end, where cameras print date and place


def list_photographs(frames: Path | None) -> dict[str, Image.Image]:
    """Return photographs without letters, by their names."""
    shipped = (*TRAINING_PHOTOGRAPHS, *HELD_OUT_PHOTOGRAPHS)
    photographs = {each.name: load(each) for each in shipped if each.name not in _WRITTEN_ON}
    for path in sorted(frames.glob("*.jp*g")) if frames else []:
        with Image.open(path) as image:
            edge = round(_STRIP * image.height)
            photographs[path.name] = image.convert("RGB").crop((0, edge, image.width, image.height - edge))
    return photographs


@click.command()
@click.argument("model")
@click.option("--frames", type=click.Path(path_type=Path, exists=True), help="Folder with camera frames.")
@click.option(
    "--crops", default=10, show_default=True, help="Crops of each photograph, of a quarter of its sides at least."
)
def main(model: str, frames: Path | None, crops: int) -> None:
    """Print in how many crops a word is read."""
    reader = load_model(find_folder(model)).reader
    if reader is None:
        raise click.UsageError(f"{model} reads no words")
    scores = []
    photographs = list_photographs(frames)
    for name, image in photographs.items():
        for number in range(crops):
            rng = generator("reading crops", name, number)
            size = [max(1, round(side * rng.uniform(0.25, 1.0))) for side in image.size]
            left, top = (int(rng.integers(whole - side + 1)) for whole, side in zip(image.size, size, strict=True))
            buffer = io.BytesIO()
            image.crop((left, top, left + size[0], top + size[1])).save(buffer, "PNG")
            scores.append(max((word.score for word in reader.read(buffer.getvalue())), default=0.0))
    hits = sum(score > 0 for score in scores)
    result = {"photographs": len(photographs), "crops": len(scores), "read": hits, "share": hits / len(scores)}
    print(json.dumps({**result, "interval": wilson_interval(hits, len(scores))}))


if __name__ == "__main__":
    main()
