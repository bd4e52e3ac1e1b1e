"""Export a collection as WebDataset tars: `KEY.jpg`, `KEY.txt` and `KEY.json` next to each other.

The text is the first caption; the JSON has all captions, regions (in [0, 1]), labels, group and split, as
`foveate.records.importers.sidecar` reads them. Importing the tars gives the same images, captions, regions and labels;
conversations and contexts are not exported.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from foveate.core.errors import UserError
from foveate.core.export_folder import check_empty_folder
from foveate.core.files import commit_atomically, name_in_errors
from foveate.core.progress import track
from foveate.records.collection import Collection
from foveate.records.image_export import select_rows
from foveate.records.images import SUFFIXES
from foveate.records.layout import member_name
from foveate.records.record import Record
from foveate.records.region_sources import OWN_SOURCES, SelectedRegions

COLLECTION_TARGET = True  # `foveate export` offers it


def export_webdataset(
    collection: Collection,
    target: str | Path,
    *,
    rows: Iterable[int] | None = None,
    region_sources: Sequence[str] = (OWN_SOURCES,),
    images_per_shard: int = 1000,
) -> list[Path]:
    """Write a collection to `target`/00000.tar, ...; return the tars. Images keep their bytes.

    Member names have "." and "%" of a key escaped, since WebDataset readers end the key at the first dot; the JSON
    field `key` has the original.

    Args:
        rows: all rows by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: the target is not empty, no region has a source, or no image is selected.

    Example:
        >>> [tar.name for tar in export_webdataset(Collection.open(collection_folder), new_folder)]
        ['00000.tar']
    """
    target = Path(target)
    selected = select_rows(collection, rows)
    if images_per_shard < 1:
        raise UserError(f"images_per_shard must be at least 1 (got {images_per_shard})")
    check_empty_folder(target)
    regions = SelectedRegions(collection, region_sources)
    target.mkdir(parents=True, exist_ok=True)
    shards = [selected[start : start + images_per_shard] for start in range(0, len(selected), images_per_shard)]
    paths = []
    for number, shard in enumerate(track(shards, description="exporting shards")):
        path = target / f"{number:05d}.tar"
        temporary = path.with_name(f".{path.name}.tmp")
        # PAX headers allow names of any length, in UTF-8.
        with name_in_errors(path), tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for row in shard:
                _write_sample(tar, collection, regions, row)
        commit_atomically(temporary, path)
        paths.append(path)
    return paths


def _write_sample(tar: tarfile.TarFile, collection: Collection, regions: SelectedRegions, row: int) -> None:
    record = replace(collection.record(row), regions=tuple(regions.read(row)))
    suffix = SUFFIXES[collection.index["format"][row]]
    members = {suffix: collection.image_bytes(row)}
    if record.captions:
        members["txt"] = record.captions[0].text.encode()
    members["json"] = json.dumps(sidecar_fields(record), ensure_ascii=False).encode()
    # Readers take neighbors with one key for a sample, so its members are written one behind another.
    for ending, data in members.items():
        # With TarInfo's defaults, time 0 and no owner, a repeated export has the same bytes.
        member = tarfile.TarInfo(member_name(record.key, ending))
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


def sidecar_fields(record: Record) -> dict[str, object]:
    """Convert a record to the JSON object of a sidecar file, without empty fields."""
    fields: dict[str, object] = {
        "key": record.key,
        "width": record.width,
        "height": record.height,
        "captions": [
            {"text": caption.text, "kind": caption.kind, "source": caption.source} for caption in record.captions
        ],
        "regions": [
            {
                "box": [region.box.x1, region.box.y1, region.box.x2, region.box.y2],
                "format": "xyxy",
                "unit": "normalized",
                "phrase": region.phrase,
                "score": region.score,
                "label": region.label,
                "slice": region.slice,
                "source": region.source,
            }
            for region in record.regions
        ],
        "labels": record.labels,
        "group": record.group,
        "split": record.split,
    }
    return {name: value for name, value in fields.items() if value not in ("", [], {})}
