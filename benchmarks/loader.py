"""The loader against `webdataset` and `datasets` on the same shards: `python -m benchmarks.loader --out DIR`.

Whole: every candidate unpacks the whole image and applies the same transform, so that all give the same pixels
(checked). Draft: ours as it trains, with JPEGs unpacked at a fraction, against the same peers; how far the embeddings
move is printed beside it. Decoding alone, from memory, is the ceiling. Needs `pip install webdataset datasets`.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.common import Ratio, Timing, compare, publish, ratio
from foveate.core import progress
from foveate.records.collection import Collection
from foveate.records.geometry import View
from foveate.records.images import decode
from foveate.records.record import Caption
from foveate.records.writer import CollectionWriter
from foveate.training.loader import Loader
from foveate.vision.preprocess import Preprocess, place_image, read_image, render_image
from foveate.vision.registry import build_image_encoder

SIZES = {"small": (640, 480), "large": (2000, 1500)}
BATCH = 16
SHARDS = 4
PREPROCESS = Preprocess(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


def photographs() -> list[Image.Image]:
    """The sample photographs of scikit-learn and scikit-image that come with the packages."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    return [Image.fromarray(array) for array in arrays]


def build(folder: Path, *, size: tuple[int, int], count: int) -> Collection:
    """A collection of `count` JPEGs, random crops of the photographs enlarged to `size`, in four shards."""
    width, height = size
    random = np.random.default_rng(0)
    sources = photographs()
    shard = -(-count // SHARDS)
    with CollectionWriter(folder, name="bench", license="BSD", source="samples", images_per_shard=shard) as writer:
        for number in range(count):
            image = sources[number % len(sources)]
            scale = random.uniform(0.6, 1.0) * min(image.width / width, image.height / height)
            crop_w, crop_h = int(width * scale), int(height * scale)
            left = int(random.integers(0, image.width - crop_w + 1))
            top = int(random.integers(0, image.height - crop_h + 1))
            crop = image.crop((left, top, left + crop_w, top + crop_h))
            buffer = io.BytesIO()
            crop.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
            caption = Caption(f"image {number}", "alt")
            writer.add(f"{number:06d}", buffer.getvalue(), captions=[caption], split="train")
    return Collection.open(folder)


def transform(data: bytes) -> Tensor:
    """The whole image unpacked, long side to 224 px, padded: uint8 [3, 224, 224]."""
    image = decode(data)
    return render_image(PREPROCESS, image, place_image(PREPROCESS, image.size, View()))


class Images:
    """A dataset of images alone, for `foveate.training.loader.Loader`."""

    def __init__(self, collection: Collection, *, draft: bool) -> None:
        self.collection, self.draft = collection, draft

    def sample(self, row: int, epoch: int, seed: int) -> dict[str, Any]:
        if self.draft:
            return {"image": read_image(self.collection, row, PREPROCESS)[0]}
        return {"image": transform(self.collection.image_bytes(row))}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"image": torch.stack([sample["image"] for sample in samples])}


def ours(collection: Collection, *, workers: int, draft: bool) -> Iterator[Tensor]:
    loader = Loader(
        Images(collection, draft=draft), rows=np.arange(len(collection)), batch_size=BATCH, seed=0, workers=workers
    )
    for batch in loader.batches(0, len(collection) // BATCH):
        yield batch["image"]


def decode_alone(images: list[bytes], *, workers: int) -> Iterator[Tensor]:
    """The ceiling: the transform of bytes in memory, nothing read and nothing put into batches."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(transform, images)


def of_webdataset(collection: Collection, *, workers: int) -> Iterator[Tensor]:
    import webdataset

    urls = sorted(str(path) for path in (collection.path / "images").glob("*.tar"))
    data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).to_tuple("jpg").map(_first)
    data = data.batched(BATCH, collation_fn=torch.stack, partial=False)
    yield from webdataset.WebLoader(data, batch_size=None, num_workers=workers)


def _first(sample: tuple[bytes, ...]) -> Tensor:
    return transform(sample[0])


def of_datasets(collection: Collection, *, workers: int) -> Iterator[Tensor]:
    import datasets

    urls = sorted(str(path) for path in (collection.path / "images").glob("*.tar"))
    data: Any = datasets.load_dataset("webdataset", data_files={"train": urls}, streaming=True, split="train")
    data = data.cast_column("jpg", datasets.Image(decode=False)).select_columns(["jpg"])
    data = data.map(_of_row, remove_columns=["jpg"])
    yield from torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=_stack)


def _of_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"image": transform(row["jpg"]["bytes"])}


def _stack(rows: list[dict[str, Any]]) -> Tensor:
    return torch.stack([torch.as_tensor(row["image"]) for row in rows])


def consume(make: Callable[[], Iterator[Tensor]]) -> Callable[[], object]:
    return lambda: sum(len(batch) for batch in make())


def check_equal(candidates: dict[str, Callable[[], Iterator[Tensor]]], count: int) -> None:
    """All candidates give the same images: the sorted sums of their pixels agree."""
    sums = {}
    for name, make in candidates.items():
        pixels = [image for batch in make() for image in batch]
        assert len(pixels) == count, f"{name} gave {len(pixels)} images of {count}"
        sums[name] = sorted(int(image.long().sum()) for image in pixels)
    first, *others = sums.items()
    for name, found in others:
        assert found == first[1], f"{name} and {first[0]} give other pixels"


def embedding_difference(collection: Collection, *, most: int = 64) -> dict[str, float]:
    """Cosine of Lite0 features with and without draft scaling: mean and smallest over images."""
    encoder = build_image_encoder({"kind": "lite0", "embed_dim": 192})
    cosines = []
    for row in range(min(most, len(collection))):
        drafted, _ = read_image(collection, row, encoder.preprocess)
        image = decode(collection.image_bytes(row))
        whole = render_image(encoder.preprocess, image, place_image(encoder.preprocess, image.size, View()))
        features = encoder.frozen_features(torch.stack([drafted, whole])).float()
        cosines.append(float(F.cosine_similarity(features[0], features[1], dim=0)))
    return {"mean": float(np.mean(cosines)), "smallest": float(np.min(cosines)), "n": len(cosines)}


def measure(collection: Collection, *, workers: int, repeats: int) -> tuple[dict[str, Timing], dict[str, Ratio]]:
    """Seconds of one pass of every candidate, and the ratios."""
    count = len(collection)
    images = [collection.image_bytes(row) for row in range(count)]
    same = {
        "foveate, whole images": lambda: ours(collection, workers=workers, draft=False),
        "webdataset": lambda: of_webdataset(collection, workers=workers),
        "datasets": lambda: of_datasets(collection, workers=workers),
    }
    check_equal(same, count)
    candidates = {name: consume(make) for name, make in same.items()}
    candidates["foveate, draft"] = consume(lambda: ours(collection, workers=workers, draft=True))
    candidates["decoding alone"] = consume(lambda: decode_alone(images, workers=workers))
    timings = compare(candidates, repeats=repeats, warmup=1)
    ratios = {
        f"{mine} over {peer}": ratio(timings, mine, peer)
        for mine in ("foveate, whole images", "foveate, draft")
        for peer in ("webdataset", "datasets")
    }
    share = "foveate, whole images, share of decoding alone"
    for title, processor in ((share, False), (f"{share}, processor time", True)):
        ratios[title] = ratio(timings, "foveate, whole images", "decoding alone", processor=processor)
    return timings, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--workers", type=int, default=2, help="threads of ours, processes of the peers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--counts", default="256,1024", help="images of the small size; 0 for none")
    parser.add_argument("--large", default="128", help="images of the large size; 0 for none")
    options = parser.parse_args()
    progress.configure(quiet=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, counts in (("small", options.counts), ("large", options.large)):
            for count in filter(None, (int(one) // (BATCH * SHARDS) * BATCH * SHARDS for one in counts.split(","))):
                collection = build(Path(folder) / f"{name}-{count}", size=SIZES[name], count=count)
                timings, ratios = measure(collection, workers=options.workers, repeats=options.repeats)
                publish(
                    f"loader-{name}-{count}",
                    timings,
                    out=options.out,
                    ratios=ratios,
                    items=count,
                    unit="images",
                    extra={
                        "image_px": SIZES[name],
                        "image_bytes": float(np.mean(collection.index["length"])),
                        "workers": options.workers,
                        "cosine_of_features_draft_and_whole": embedding_difference(collection),
                    },
                )


if __name__ == "__main__":
    main()
