"""From a folder of images to the first answer, against open_clip with faiss, with the same tiny model.

    python -m benchmarks.first_answer --out DIR

Both start from a folder of JPEGs and a CLIP in open_clip's format, and end with the five images nearest to a text. Ours
also checks every file, keeps a collection with captions, and writes an index that the next question opens. Libraries
are imported before: each first answer opens the model anew. The ratio is of the processor's seconds, on one thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import open_clip
import torch
from PIL import Image

import foveate
from benchmarks.common import compare, publish, ratio
from foveate.search.index import build_index
from foveate.vision.open_clip.export import export_open_clip
from foveate.vision.open_clip.towers import OpenClipImageEncoder, OpenClipTextEncoder

AIM = 1.0
QUERY = "a red boat"
_VISION = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
_TEXT = {"layers": 2, "width": 48, "heads": 2, "context_length": 77}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images, model = write_images(root / "images", options.images), write_model(root / "model")

        def ours() -> list[str]:
            shutil.rmtree(root / "index", ignore_errors=True)
            build_index(model, images, root / "index", workers=1)
            return [hit.key for hit in foveate.open_index(root / "index").search(QUERY, count=5, kind="images")]

        candidates = {"ours": ours, "open_clip + faiss": lambda: search_with_faiss(model, images)}
        # JPEGs are decoded at a fraction here, so a near tie may change places: the best five, in any order but one.
        common = set(ours()) & set(search_with_faiss(model, images))
        assert len(common) >= 4, common
        timings = compare(candidates, repeats=options.repeats)
    ratios = {"ours against open_clip + faiss": ratio(timings, "ours", "open_clip + faiss", processor=True)}
    extra = {"aim": AIM, "common_of_five": len(common)}
    publish("first_answer", timings, out=options.out, ratios=ratios, items=options.images, unit="images", extra=extra)


def write_images(folder: Path, count: int) -> Path:
    """Write JPEGs of the size of a small photograph, with smooth content."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg")
    return folder


def write_model(folder: Path) -> Path:
    """Write a tiny random CLIP in open_clip's format."""
    image = OpenClipImageEncoder(model="ViT-B-16", embed_dim=64, vision=_VISION)
    text = OpenClipTextEncoder(model="ViT-B-16", embed_dim=64, text=_TEXT)
    export_open_clip(image, text, log_scale=3.5, folder=folder)
    return folder


@torch.inference_mode()
def search_with_faiss(folder: Path, images: Path) -> list[str]:
    """Do the same as a script of open_clip and faiss does, in batches of 32."""
    opened: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model, _, preprocess = opened
    model.eval()
    paths = sorted(images.glob("*.jpg"))
    parts = []
    for start in range(0, len(paths), 32):
        pixels = [preprocess(Image.open(path).convert("RGB")) for path in paths[start : start + 32]]
        parts.append(model.encode_image(torch.stack(pixels), normalize=True).numpy())
    vectors = np.concatenate(parts)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([QUERY])
    _, rows = index.search(model.encode_text(tokens, normalize=True).numpy(), 5)
    return [paths[row].stem for row in rows[0]]


if __name__ == "__main__":
    main()
