"""`foveate species predict` against the decode limit of the same files.

    python -m benchmarks.species_predict --out DIR

A small generated survey; a linear head on the shipped encoder. `predict` is the whole call into a new results folder:
reading, encoding, parts and tables. `decode` reads and decodes the same files to the encoder's size and does nothing
else: no prediction can be faster. `needed` runs the network on them as well: no prediction with this network can be
faster. `whole` decodes every pixel, as a program does that does not reduce while it decodes.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch

from benchmarks.common import compare, publish, ratio
from foveate.core.recipes import validate
from foveate.records.collection import Collection
from foveate.records.images import decode
from foveate.species.crops import Views
from foveate.species.folder import open_species
from foveate.species.predict import predict
from foveate.species.recipe import SpeciesRecipe
from foveate.species.settings import PredictSettings
from foveate.species.train import train_species
from foveate.vision.preprocess import read_image
from foveate_labs.worlds.traps import TrapSettings, build_traps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--width", type=int, default=1280, help="of an image in pixels; its height is 3/4")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = {"width": options.width, "height": options.width * 3 // 4}
        settings = TrapSettings(**size, train_cameras=2, validation_cameras=1, test_cameras=2, regions=1)
        build_traps(folder / "survey", train=24, validation=2, test=options.images, seed=0, settings=settings)
        values = {"method": "erm", "view": {"view": "whole"}, "training": {"epochs": 1}, "prior": "none"}
        recipe = validate(SpeciesRecipe, values, where="benchmark")
        train_species(folder / "survey", folder / "run", recipe, device="cpu")
        model = open_species(folder / "run/model")
        encoder = model.load_encoder()
        preprocess = encoder.preprocess
        number = itertools.count()
        with Collection.open(folder / "survey") as collection:
            rows = collection.rows("test").tolist()
            views = Views(collection, rows, model.view)

            def read() -> list[torch.Tensor]:
                return [read_image(collection, row, preprocess, views[row])[0] for row in rows]

            def encode() -> None:
                batch = PredictSettings().batch
                pixels = torch.stack(read())
                for first in range(0, len(rows), batch):
                    encoder.frozen_features(pixels[first : first + batch])

            candidates = {
                "predict": lambda: predict(
                    model,
                    folder / "survey",
                    folder / f"results-{next(number)}",
                    PredictSettings(split="test"),
                    device="cpu",
                    workers=1,
                ),
                "decode": read,
                "needed": encode,
                "whole": lambda: [decode(collection.image_bytes(row)).load() for row in rows],
            }
            timings = compare(candidates, repeats=options.repeats)
    peers = ("decode", "needed", "whole")
    ratios = {f"{peer} / predict": ratio(timings, "predict", peer, processor=True) for peer in peers}
    publish(
        "species_predict",
        timings,
        out=options.out,
        ratios=ratios,
        items=len(rows),
        unit="images",
        extra={"size": size, "seconds_of_ratios": "processor"},
    )


if __name__ == "__main__":
    main()
