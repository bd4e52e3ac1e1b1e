"""Embeddings of a collection's images, regions and texts as tables, in parts: `--format parquet` or `npz`.

One schema for all three: key, kind, box, phrase, norm, embedding. A stopped export is resumed; memory does not grow
with the collection.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from foveate.core.errors import UserError
from foveate.core.files import atomic_file, read_json, sha256_file, write_json_atomically, write_text_atomically
from foveate.core.progress import say, track
from foveate.pretrain.embed import visible_regions
from foveate.pretrain.export import ExportReport, Job
from foveate.records.collection import Collection
from foveate.records.ray_work import run_to_end, share_work
from foveate.records.region_sources import SelectedRegions
from foveate.vision.encoder import ImageFeatures
from foveate.vision.feature_cache import ImageBatch, read_batches
from foveate.vision.localizer.folder import CARD, METHODS, WEIGHTS, load_model
from foveate.vision.localizer.inference import embed_phrases
from foveate.vision.localizer.model import LocalizingModel

IMAGES, REGIONS, TEXTS = "images", "regions", "texts"
UNREADABLE = "unreadable.json"
BATCH = 32
# A multiple of the batch, so that no batch falls into two parts.
IMAGES_PER_PART = 2048
TEXTS_PER_PART = 16384
_DONE = "parts"


@dataclass
class EmbeddingRows:
    """Rows of one table before they are written; a missing box is NaN."""

    key: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    box: list[Sequence[float]] = field(default_factory=list)
    phrase: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)

    def arrays(self, width: int) -> dict[str, NDArray[Any]]:
        """Return columns by name; `embedding` has unit length, `norm` is the length before."""
        raw_NE = np.concatenate(self.vectors) if self.vectors else np.zeros((0, width), np.float32)
        norm_N = np.linalg.norm(raw_NE, axis=1).astype(np.float32)
        # A zero vector stays zero instead of becoming NaN.
        unit_NE = raw_NE / np.maximum(norm_N, np.finfo(np.float32).tiny)[:, None]
        return {
            "key": np.array(self.key, dtype=np.str_),
            "kind": np.array(self.kind, dtype=np.str_),
            "box": np.array(self.box, dtype=np.float32).reshape(-1, 4),
            "phrase": np.array(self.phrase, dtype=np.str_),
            "norm": norm_N,
            "embedding": unit_NE.astype(np.float32),
        }


NO_BOX = (np.nan,) * 4


def check(job: Job) -> list[str]:
    """List the files.

    Raises:
        UserError: without a collection, for an unknown split, or a source without regions in it.
    """
    if job.collection is None:
        raise UserError(
            "--collection: required by `--to embeddings`, which embeds the images and texts of a collection"
        )
    job.collection.rows(job.split)
    _chosen_regions(job)
    ending = "parquet" if job.format == "parquet" else "npz"
    return [*(f"{name}/00000.{ending}" for name in (IMAGES, REGIONS, TEXTS)), UNREADABLE, CARD]


def _chosen_regions(job: Job) -> SelectedRegions:
    """Return the regions to embed."""
    assert job.collection is not None
    return SelectedRegions(job.collection, job.region_sources)


def identity(job: Job) -> str:
    """Hash weights, images, texts, regions and format; a stopped export with the same hash is resumed."""
    assert job.collection is not None
    digest = hashlib.blake2b(digest_size=16)
    # Grouped, as `region_boxes` is.
    regions, captions = (job.collection.grouped(name).table for name in ("regions", "captions"))
    parts = [sha256_file(job.source / WEIGHTS), job.format, str(job.split), repr(job.region_sources)]
    parts += [*job.collection.keys, *job.collection.index["sha256"].tolist()]
    for table, columns in ((regions, ("key", "phrase", "source", "recipe_hash")), (captions, ("key", "kind", "text"))):
        parts += [text for column in columns for text in table[column].to_pylist()]
    for part in parts:
        # Join with a separator: "ab", "c" and "a", "bc" must not have one hash.
        digest.update(part.encode("utf-8") + b"\0")
    digest.update(np.ascontiguousarray(job.collection.region_boxes).tobytes())
    digest.update(job.collection.splits.astype(str).tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def export(job: Job) -> ExportReport:
    """Write the missing parts, then the card."""
    assert job.collection is not None
    rows = job.collection.rows(job.split)
    (job.folder / _DONE).mkdir(exist_ok=True)
    source_regions = _chosen_regions(job)
    _images(job, job.collection, source_regions, rows)
    _texts(job, job.collection, source_regions, rows)
    unreadable: dict[str, str] = {}
    counts = dict.fromkeys((IMAGES, REGIONS, TEXTS, "regions out of view"), 0)
    for path in sorted((job.folder / _DONE).glob("*.json")):
        part = read_json(path)
        unreadable |= part["unreadable"]
        for name, count in part["counts"].items():
            counts[name] += count
    counts["unreadable images"] = len(unreadable)
    write_json_atomically(job.folder / UNREADABLE, unreadable)
    write_text_atomically(job.folder / CARD, _card(job, job.collection, counts))
    # Removed last: as long as these notes exist, a killed export resumes from them.
    shutil.rmtree(job.folder / _DONE)
    counts["regions of other sources"] = source_regions.left_out
    return ExportReport(counts=counts, notes=[note] if (note := source_regions.describe_left_out()) else [])


def _done(job: Job, name: str, part: int) -> Path:
    """Return the file that is written last of a part: with it the part is complete."""
    return job.folder / _DONE / f"{name}-{part:05d}.json"


def _images(job: Job, collection: Collection, source_regions: SelectedRegions, rows: NDArray[np.int64]) -> None:
    """Embed images and their regions, part by part."""
    starts = range(0, len(rows), IMAGES_PER_PART)
    left = [part for part in range(len(starts)) if not _done(job, IMAGES, part).is_file()]
    if len(left) < len(starts):
        say(f"{len(starts) - len(left)} of {len(starts)} parts of the images already done")
    items = [(part, rows[starts[part] : starts[part] + IMAGES_PER_PART]) for part in left]
    executor = share_work(
        functools.partial(_embed_part, job.model, collection, source_regions),
        functools.partial(_open_embedder, job.source, collection.path, job.region_sources, str(job.model.device)),
        items,
        job.work,
        description="embedding images",
    )
    for part in run_to_end(executor):
        # Regions first, the note last: a part counts only when all of it is there.
        _write(job, REGIONS, part.number, part.regions)
        _write(job, IMAGES, part.number, part.images)
        counts = {IMAGES: len(part.images.key), REGIONS: len(part.regions.key), "regions out of view": part.hidden}
        write_json_atomically(_done(job, IMAGES, part.number), {"unreadable": part.unreadable, "counts": counts})


@dataclass
class _EmbeddedPart:
    """Rows of a part; `hidden` counts the regions that the encoder's view does not show."""

    number: int
    images: EmbeddingRows = field(default_factory=EmbeddingRows)
    regions: EmbeddingRows = field(default_factory=EmbeddingRows)
    hidden: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def _open_embedder(
    source: Path, path: Path, region_sources: tuple[str, ...], device: str
) -> Callable[[tuple[int, NDArray[np.int64]]], Iterator[_EmbeddedPart]]:
    """Open model and collection in a process of its own; return what embeds a part there."""
    collection = Collection.open(path)
    regions = SelectedRegions(collection, region_sources)
    return functools.partial(_embed_part, load_model(source, device=device), collection, regions)


@torch.inference_mode()
def _embed_part(
    model: LocalizingModel,
    collection: Collection,
    source_regions: SelectedRegions,
    item: tuple[int, NDArray[np.int64]],
) -> Iterator[_EmbeddedPart]:
    number, rows = item
    part, bad = _EmbeddedPart(number), dict[int, str]()
    batches = read_batches(
        model.image_encoder, collection, rows, device=model.device, description=f"part {number}", bad=bad, batch=BATCH
    )
    for batch in batches:
        part.hidden += _embed(model, collection, source_regions, batch, part.images, part.regions)
    part.unreadable = {collection.keys[row]: why for row, why in bad.items()}
    yield part


def _embed(
    model: LocalizingModel,
    collection: Collection,
    source_regions: SelectedRegions,
    batch: ImageBatch,
    images: EmbeddingRows,
    regions: EmbeddingRows,
) -> int:
    """Add the rows of a batch; return how many regions the encoder's view does not show."""
    batch_rows, placements, pixels = batch
    tokens: ImageFeatures = model.encode_image_tokens(pixels)
    images.vectors.append(tokens.pooled.float().cpu().numpy())
    images.key += [collection.keys[row] for row in batch_rows]
    images.kind += ["image"] * len(batch_rows)
    images.box += [NO_BOX] * len(batch_rows)
    images.phrase += [""] * len(batch_rows)
    by_image = [source_regions.read(row) for row in batch_rows]
    visible, inside_R4 = visible_regions(placements, by_image)
    regions.key += [collection.keys[batch_rows[index]] for index, _ in visible]
    regions.kind += ["region"] * len(visible)
    regions.box += [by_image[index][number].box.to_array().tolist() for index, number in visible]
    regions.phrase += [by_image[index][number].phrase for index, number in visible]
    if visible:
        device = model.device
        owner_R = torch.tensor([index for index, _ in visible], device=device)
        z_RE = model.encode_regions(tokens, torch.from_numpy(inside_R4).to(device), owner_R)
        regions.vectors.append(z_RE.float().cpu().numpy())
    return sum(map(len, by_image)) - len(visible)


def _texts(job: Job, collection: Collection, source_regions: SelectedRegions, rows: NDArray[np.int64]) -> None:
    """Embed each distinct text of a kind once: captions by their kind, and the phrases of regions."""
    distinct = {("phrase", region.phrase) for row in rows for region in source_regions.read(int(row))}
    distinct |= {(caption.kind, caption.text) for row in rows for caption in collection.read_captions(int(row))}
    # Sort the texts, so that a resumed export cuts the same parts.
    ordered = sorted(distinct)
    starts = range(0, len(ordered), TEXTS_PER_PART)
    for start in track(starts, description="embedding texts") if len(starts) > 1 else starts:
        part = start // TEXTS_PER_PART
        if _done(job, TEXTS, part).is_file():
            continue
        block = ordered[start : start + TEXTS_PER_PART]
        texts = EmbeddingRows(
            key=[""] * len(block),
            kind=[kind for kind, _ in block],
            box=[NO_BOX] * len(block),
            phrase=[text for _, text in block],
            vectors=[embed_phrases(job.model, [text for _, text in block]).numpy()],
        )
        _write(job, TEXTS, part, texts)
        write_json_atomically(_done(job, TEXTS, part), {"unreadable": {}, "counts": {TEXTS: len(block)}})


def _write(job: Job, name: str, part: int, rows: EmbeddingRows) -> None:
    """Write one part of a table atomically."""
    width = job.model.recipe.embed_dim
    columns = rows.arrays(width)
    if job.format == "npz":
        with atomic_file(job.folder / name / f"{part:05d}.npz") as handle:
            # Not `allow_pickle=False`: NumPy before 2.0 would store it as a column of that name.
            assert not any(column.dtype.hasobject for column in columns.values())
            np.savez(handle, **columns)  # pyrefly: ignore[bad-argument-type]
        return
    # The arrays mark "no box" with NaN; in Parquet it becomes null.
    empty_N = np.isnan(columns["box"]).any(axis=1)
    arrays = {
        "key": pa.array(rows.key, pa.string()),
        "kind": pa.array(rows.kind, pa.string()),
        "box": pa.FixedSizeListArray.from_arrays(columns["box"].ravel(), 4, mask=pa.array(empty_N)),
        "phrase": pa.array(rows.phrase, pa.string()),
        "norm": pa.array(columns["norm"]),
        "embedding": pa.FixedSizeListArray.from_arrays(columns["embedding"].ravel(), width),
    }
    with atomic_file(job.folder / name / f"{part:05d}.parquet") as handle:
        pq.write_table(pa.table(arrays), handle, compression="zstd")


_READING = {
    "parquet": """```python
import pandas

images = pandas.read_parquet("images")
```

```sql
SELECT p.key, list_inner_product(p.embedding, t.embedding) AS cosine
FROM 'images/*.parquet' AS p, 'texts/*.parquet' AS t
WHERE t.phrase = 'a red boat' ORDER BY cosine DESC LIMIT 10;  -- duckdb
```""",
    "npz": """```python
import numpy as np

images = np.load("images/00000.npz", allow_pickle=False)
images["key"], images["embedding"]
```""",
}


def _card(job: Job, collection: Collection, counts: dict[str, int]) -> str:
    listed = "".join(f"| {name} | {count:,} |\n" for name, count in counts.items())
    method, weights = METHODS[job.config["recipe"]["regions"]["method"]], sha256_file(job.source / WEIGHTS)
    return f"""---
license: other
license_name: that-of-the-collection
tags: [embeddings, {job.format}]
---
# Embeddings of the collection {collection.name}

{"All images" if job.split is None else f"Split `{job.split}`"}; license of the images as the collection states it:
{collection.license or "none stated"}. Model: {method}, whose weights have the SHA-256 `{weights}`.

| what | rows |
|---|---|
{listed}
## Columns

| column | content |
|---|---|
| `key` | of the image; "" for texts |
| `kind` | "image", "region", "phrase", or the kind of a caption |
| `box` | x1, y1, x2, y2 in [0, 1] of the image after its EXIF rotation; null (NaN in npz) where there is none |
| `phrase` | the phrase of a region, or the text itself |
| `embedding` | {job.model.recipe.embed_dim} numbers, float32, unit length: inner products are cosines |
| `norm` | length of the embedding before |

Each text is there once for each kind. `{UNREADABLE}` has the images that could not be read, and why.

## Reading

{_READING[job.format]}
"""
