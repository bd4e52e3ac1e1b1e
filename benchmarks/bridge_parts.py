"""What each part of the encoder `bridge` adds, on the contents of two folders of images alone.

    python -m benchmarks.bridge_parts --packages FOLDER --out bench

The queries of benchmarks/search_queries.csv to stamps and photographs; every second one (and the images' own names)
chose the parts and their numbers, the others are reported beside them. Two controls: classes with permuted names, and
images in random order. Folders of packages as in benchmarks/search_quality.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import machine
from benchmarks.search_folders import find_folder
from benchmarks.search_quality import Data, read_data, score_first
from foveate.core.files import read_json, write_json_atomically
from foveate.core.paths import DATA
from foveate.core.progress import track
from foveate.core.seeds import generator
from foveate.records.collection import Collection
from foveate.records.folder_collection import refer_to_folder
from foveate.vision.bridge import BridgeEncoder
from foveate.vision.detectors import CLASSES as DETECTED
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.sources import open_localizer
from foveate.vision.minilm import SentenceEncoder
from foveate.vision.preprocess import read_image

_BATCH = 16


def embed_variants(encoder: BridgeEncoder, features_NF: Tensor) -> dict[str, Tensor]:
    """Embed images [N, E] by more and more of the encoder's parts, and by all with permuted classes."""
    head, cells = encoder.open_networks(torch.device("cpu"))[1], encoder.grid[0] * encoder.grid[1] * encoder.width
    view_ND, detected_NC = features_NF[:, cells:].float().split((encoder.width, DETECTED), dim=1)
    map_NLD = features_NF[:, :cells].unflatten(1, (-1, encoder.width))
    view_NC = head(view_ND)
    # In parts, because the maps of all images in float32 take gigabytes.
    all_NC = torch.cat(
        [
            encoder.classify(maps.float(), views)
            for maps, views in zip(map_NLD.split(64), view_ND.split(64), strict=True)
        ]
    )
    names = read_json(DATA / "bridge" / "names.json")["classes"]
    name_CE, four_CE = SentenceEncoder()(names), encoder.class_vectors_CE

    def conse(probabilities_NC: Tensor, vectors_CE: Tensor) -> Tensor:
        top_NT, class_NT = probabilities_NC.topk(10, dim=1)
        return torch.einsum("nt,nte->ne", top_NT, vectors_CE[class_NT])

    order = torch.from_numpy(generator("bridge parts").permutation(len(four_CE)))
    return {
        "ConSE, one view, the names of classes": conse(view_NC, name_CE),
        "+ photo, definition and hypernyms": conse(view_NC, four_CE),
        "+ map at 448 px and its windows": conse(all_NC, four_CE),
        "+ roots of probabilities": encoder.embed(all_NC),
        "+ detector (bridge)": encoder.embed(all_NC, detected_NC),
        "control: names of classes permuted": encoder.embed(all_NC[:, order], detected_NC),
    }


def read_features(encoder: BridgeEncoder, collection: Collection) -> Tensor:
    """Compute the packed features [N, F] of all images."""
    parts = []
    for start in track(range(0, len(collection), _BATCH), description="images"):
        rows = range(start, min(start + _BATCH, len(collection)))
        pixels = torch.stack([read_image(collection, row, encoder.preprocess)[0] for row in rows])
        parts.append(encoder.frozen_features(pixels))
    return torch.cat(parts)


def score(data: Data, embed: Callable[[list[str]], Tensor], images_NE: Tensor) -> dict[str, list[float]]:
    """Score the queries by group and half: the share of right images among the first five."""
    scores: dict[str, list[float]] = {}
    for group, queries in zip(("plain", "harder"), data.queries, strict=True):
        cosines_QN = (embed(list(queries)) @ F.normalize(images_NE, dim=-1).T).double().numpy()
        for number, (cosines_N, patterns) in enumerate(zip(cosines_QN, queries.values(), strict=True)):
            right_N = data.judge(*patterns)
            if right_N.any():
                half = "reported" if number % 2 else "chosen on"
                scores.setdefault(f"{group}, {half}", []).append(score_first(cosines_N, right_N))
    return scores


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("/"), help="folder of installed or unpacked packages")
    parser.add_argument("--work", type=Path, default=Path("runs/search-quality"), help="folder for collections")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    model = open_localizer("bridge")
    encoder = model.image_encoder
    assert isinstance(encoder, BridgeEncoder)
    rows: list[dict[str, Any]] = []
    for name in ("photographs", "stamps"):
        folder = find_folder(name, options.packages, options.work)
        if folder is None:
            print(f"{name}: skipped, their package is not below {options.packages}")
            continue
        target = options.work / f"{name}-collection"
        if not target.is_dir():
            refer_to_folder(folder, target)
        collection = Collection.open(target)
        data = read_data(name, collection, collection.keys)
        variants = embed_variants(encoder, read_features(encoder, collection))
        shuffled = torch.from_numpy(generator("bridge parts images").permutation(len(data.keys)))
        variants["control: images shuffled"] = variants["+ detector (bridge)"][shuffled]
        for part, images_NE in variants.items():
            scores = score(data, lambda texts: F.normalize(embed_phrases(model, texts), dim=-1), images_NE)
            row = {half: [round(float(np.mean(values)), 3), len(values)] for half, values in scores.items()}
            rows.append({"images": name, "part": part, **row})
            print(f"{name:12} {part:38} " + "  ".join(f"{half} {mean:.2f} (n {n})" for half, (mean, n) in row.items()))
    write_json_atomically(options.out / "bridge-parts.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
