"""How well the floor of an image tells phrases that are in it from others, on test scenes of the tour.

    foveate study tour && python -m benchmarks.locate_floor --out bench

Phrases of an image's regions, phrases of another scene, and texts without a meaning are scored by their best candidate
box. The floor is what a share of random names reach in the same image, or in the same image with its tiles shuffled.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import machine
from benchmarks.search_queries import NONSENSE
from foveate.core.files import write_json_atomically
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.search.locate import draw_names, encode_image
from foveate.vision.localizer.folder import load_model
from foveate.vision.localizer.inference import candidate_scores, embed_phrases
from foveate.vision.localizer.model import LocalizingModel

_TILES = 4  # rows and columns of shuffled tiles
SHARES = (0.05, 0.1, 0.25, 0.5)


@torch.inference_mode()
def score_best(model: LocalizingModel, image: bytes, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the cosine of each text [T] with its best candidate box."""
    encoded = encode_image(model, image)
    vectors = embed_phrases(model, texts).to(model.device)
    index = torch.zeros(len(texts), dtype=torch.int64, device=model.device)
    return candidate_scores(model, encoded.tokens, [encoded.placement], vectors, index)[1].max(axis=1)


def shuffle_tiles(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut an image into tiles and put them together in random order."""
    image = decode(data)
    width, height = (side // _TILES for side in image.size)
    shuffled = Image.new("RGB", (width * _TILES, height * _TILES))
    for target, source in enumerate(rng.permutation(_TILES**2).tolist()):
        (row, column), (top, left) = divmod(source, _TILES), divmod(target, _TILES)
        tile = image.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        shuffled.paste(tile, (left * width, top * height))
    buffer = io.BytesIO()
    shuffled.save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tour", type=Path, default=Path("runs/study-tour"), help="run folder of `foveate study tour`")
    parser.add_argument("--model", default="cloc-seed0", help="model of the tour")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    tour = Collection.open(options.tour / "collection")
    model = load_model(options.tour / options.model / "model")
    rows = tour.rows(where={"source": "scenes"})
    rows = generator("locate floor").permutation(rows[tour.splits[rows] == "test"])[: options.images].tolist()
    phrases = [[region.phrase for region in tour.read_regions(row) if region.phrase][:3] for row in rows]
    names = draw_names()
    # share of names that score at least as much as a text, by image (as it is, shuffled) and by what the text is
    reached: dict[str, dict[str, list[float]]] = {}
    for number, row in enumerate(track(rows, description="images")):
        nouns = {phrase.split()[-1] for phrase in phrases[number]}
        others = [text for text in phrases[(number + 7) % len(rows)] if text.split()[-1] not in nouns]
        groups = {"in the image": phrases[number], "of another scene": others, "nonsense": list(NONSENSE)}
        texts = [text for group in groups.values() for text in group]
        data = tour.image_bytes(row)
        scores_T = score_best(model, data, [*texts, *names])
        shuffled_N = score_best(model, shuffle_tiles(data, generator("locate floor tiles", row)), names)
        for image, names_N in (("as it is", scores_T[len(texts) :]), ("shuffled", shuffled_N)):
            shares = iter((names_N[:, None] >= scores_T[: len(texts)]).mean(axis=0).tolist())
            for group, group_texts in groups.items():
                reached.setdefault(image, {}).setdefault(group, []).extend(next(shares) for _ in group_texts)
    refused = {
        f"{image}, {share:g} of names": {
            group: [sum(value > share for value in values), len(values)] for group, values in groups.items()
        }
        for image, groups in reached.items()
        for share in SHARES
    }
    for floor, counts in refused.items():
        print(f"{floor}: refused", ", ".join(f"{count} of {total} {group}" for group, (count, total) in counts.items()))
    write_json_atomically(options.out / "locate-floor.json", {"machine": machine(), "refused": refused})


if __name__ == "__main__":
    main()
