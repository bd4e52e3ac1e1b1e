"""An epoch of COSMO on cached features, against the structure of the released loop, at equal weights.

    python -m benchmarks.species_epoch --out DIR

The peer reads every row of a table singly, builds its preprocessing anew for every image, decodes it and runs the
frozen encoder, in every pass, as the released data set class does. Both take the same batches through the same model
and optimizer and must end with the same weights up to rounding. Ours had its features computed before, which takes the
seconds under `features_s` once. The ratio is of the processor's seconds.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import compare, publish, ratio
from foveate.records.geometry import View
from foveate.records.images import decode
from foveate.species.fit import build_link_model, order_passes
from foveate.species.link_data import LinkData, link_arrays
from foveate.species.links import ImageNetwork, LinkModel, Relation
from foveate.species.passes import FeatureBatches, LinkTask, PassOrder
from foveate.species.recipe import GraphSettings, LinkTraining
from foveate.survey.taxa import Taxa
from foveate.training.optimizer import build_optimizer, parameter_table
from foveate.vision.feature_cache import VectorEncoder
from foveate.vision.lite0 import Lite0Encoder
from foveate.vision.preprocess import Preprocess, place_image, render_image

AIM = 3.0
_SIDE, _KINDS, _FAMILIES = 64, 24, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table, data = draw_survey(options.images)
    encoder = VectorEncoder(Lite0Encoder(image_size=_SIDE, precision="float32"))
    began = time.process_time()
    features = torch.cat([encode_rows(encoder, table, rows) for rows in np.array_split(np.arange(len(table)), 16)])
    seconds = time.process_time() - began
    graph, training = GraphSettings(dim=options.dim), LinkTraining()

    def run(read: Callable[[PassOrder, int], dict[str, object]]) -> LinkModel:
        model = build_link_model(data, graph, lambda: ImageNetwork(encoder.vector_width, options.dim), seed=0)
        task = LinkTask(model)
        order = order_passes(model, data, training)
        settings = training.resolve(order.steps_per_epoch, selects=False)
        rules = parameter_table(task, rules=task.parameter_groups(), settings=settings)
        optimizer = build_optimizer(task, table=rules, settings=settings)
        for step in range(order.steps_per_epoch):
            task.losses(read(order, step))[0]["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    def read_cached(order: PassOrder, step: int) -> dict[str, object]:
        return next(FeatureBatches(order, features).batches(step, step + 1))

    def read_singly(order: PassOrder, step: int) -> dict[str, object]:
        links, numbers = order.batch(step)
        heads, labels = links.heads_N[numbers], links.tails_N[numbers]
        inputs = torch.from_numpy(heads)
        if links.relation is not Relation.PARENT:
            inputs = encode_rows(encoder, table, heads)
        return {"relation": links.relation, "inputs": inputs, "labels": torch.from_numpy(labels)}

    candidates = {"cached": lambda: run(read_cached), "released structure": lambda: run(read_singly)}
    ours, peer = (candidate().state_dict() for candidate in candidates.values())
    difference = max(float((ours[name] - peer[name]).abs().max()) for name in ours)
    assert difference < 1e-3, difference
    timings = compare(candidates, repeats=options.repeats)
    ratios = {"cached against released structure": ratio(timings, "cached", "released structure", processor=True)}
    extra = {"aim": AIM, "images": options.images, "features_s": seconds, "weight_difference": difference}
    publish("species_epoch", timings, out=options.out, ratios=ratios, items=options.images, unit="images", extra=extra)


def draw_survey(images: int) -> tuple[pd.DataFrame, LinkData]:
    """Draw images as JPEG bytes in a table, and their links."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(_KINDS, size=images)
    ids = ("root", *(f"family{number}" for number in range(_FAMILIES)), *(f"kind{number}" for number in range(_KINDS)))
    parents = [-1, *[0] * _FAMILIES, *(1 + np.arange(_KINDS) % _FAMILIES).tolist()]
    taxa = Taxa(ids=ids, names=ids, ranks=("",) * len(ids), parents=np.array(parents))
    files = []
    for kind in kinds.tolist():
        pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8) // 2 + 5 * kind
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).resize((320, 240)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    cameras = rng.uniform([-60, -180], [60, 180], size=(40, 2))
    places, hours = cameras[rng.integers(40, size=images)], rng.integers(24, size=images).astype(float)
    labels = [f"kind{kind}" for kind in kinds.tolist()]
    return pd.DataFrame({"label": labels, "file": files}), link_arrays(labels, taxa=taxa, places=places, hours=hours)


def encode_rows(encoder: VectorEncoder, table: pd.DataFrame, rows: np.ndarray) -> Tensor:
    """Read rows singly, decode and preprocess each image, and encode the batch."""
    pixels = []
    for row in rows.tolist():
        # As the released data set class: the row by position, its transforms built for this one image.
        data = table.iloc[row, 1]
        preprocess = Preprocess(size=_SIDE, mean=encoder.preprocess.mean, std=encoder.preprocess.std)
        image = decode(data)
        pixels.append(render_image(preprocess, image, place_image(preprocess, image.size, View())))
    return encoder.frozen_features(torch.stack(pixels))


if __name__ == "__main__":
    main()
