"""Export a collection for Hugging Face `datasets`: Parquet files for each split, which `load_dataset(FOLDER)` opens.

The files state their features, so images come out as images and classes as names. Written with pyarrow; `datasets` is
not needed. `objects` has the convention of COCO: x, y, width, height in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from foveate.core.export_folder import staged_folder
from foveate.records.collection import Collection
from foveate.records.image_export import ExportSummary, ImageExport, make_unique_names
from foveate.records.region_sources import OWN_SOURCES

COLLECTION_TARGET = True  # `foveate export` offers it
# A reader holds a row group in memory, and shuffles and shares out files: the hub's own sizes.
_MAX_GROUP_ROWS, _MAX_GROUP_BYTES, _MAX_FILE_BYTES = 100, 64 * 2**20, 500 * 2**20


def export_datasets(
    collection: Collection,
    folder: str | Path,
    *,
    rows: Iterable[int] | None = None,
    region_sources: Sequence[str] = (OWN_SOURCES,),
) -> ExportSummary:
    """Write a collection to `folder`/data/SPLIT-00000.parquet, ... and README.md, atomically. Images keep their bytes.

    Boxes are float64 and not rounded, as in `export_coco`. Images without split are in "train" if no image has one,
    else in "unassigned"; characters of a split's name that `datasets` forbids become "_".

    Args:
        rows: all rows by default.
        region_sources: "own" (everything except pseudo-labels), "all", or sources such as "vesl:nanodet".

    Raises:
        UserError: the folder is not empty, no image is selected or can be read, or no region has a source.

    Example:
        >>> export_datasets(Collection.open(collection_folder), new_folder).images
        32
    """
    export = ImageExport(collection, rows, region_sources)
    schema = _make_schema(export.classes)
    splits = export.rows_by_split()
    written = []
    with staged_folder(Path(folder)) as stage:
        (stage / "data").mkdir()
        for name, selected in zip(make_unique_names(splits), splits.values(), strict=True):
            if _write_split(stage / "data", name, schema, _make_rows(export, selected)):
                written.append(name)
        summary = export.finish()
        (stage / "README.md").write_text(_make_card(collection, written), encoding="utf-8")
    return summary


def _make_schema(classes: list[str]) -> pa.Schema:
    text, real = {"dtype": "string", "_type": "Value"}, {"dtype": "float64", "_type": "Value"}
    names = {"names": classes, "_type": "ClassLabel"}

    def many(feature: object, **length: int) -> dict[str, object]:
        return {"feature": feature, **length, "_type": "List"}

    features = {
        "image": {"_type": "Image"},
        **dict.fromkeys(("key", "group"), text),
        **dict.fromkeys(("width", "height"), {"dtype": "int32", "_type": "Value"}),
        "captions": many({"text": text, "kind": text, "source": text}),
        "labels": many({"field": text, "value": text}),
        "objects": {
            "bbox": many(many(real, length=4)),
            "category": many(names),
            "score": many(real),
            **{name: many(text) for name in ("phrase", "slice", "source")},
        },
    }

    def describe(feature: dict[str, Any]) -> pa.DataType:
        if feature.get("_type") == "Image":
            return pa.struct({"bytes": pa.binary(), "path": pa.string()})
        if feature.get("_type") == "List":
            return pa.list_(describe(feature["feature"]), feature.get("length", -1))
        if feature.get("_type") in ("Value", "ClassLabel"):
            return pa.type_for_alias(feature.get("dtype", "int64"))
        return pa.struct({name: describe(inner) for name, inner in feature.items()})

    # `datasets` reads the types that Arrow does not have from this entry.
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)}
    return pa.schema({name: describe(feature) for name, feature in features.items()}, metadata=metadata)


def _make_rows(export: ImageExport, selected: list[int]) -> Iterator[dict[str, Any]]:
    collection = export.collection
    for row, data in export.read_images(selected):
        (width, height), regions, captions = export.size(row), export.read_regions(row), collection.read_captions(row)
        export.summary.captions += len(captions)
        boxes = [region.box.to_xywh(width, height) for region in regions]
        yield {
            "image": {"bytes": data, "path": export.file_names[row]},
            "key": collection.keys[row],
            "group": collection.groups[row],
            "width": width,
            "height": height,
            "captions": [{name: getattr(caption, name) for name in ("text", "kind", "source")} for caption in captions],
            "labels": [{"field": field, "value": value} for field, value in collection.read_labels(row).items()],
            "objects": {
                "bbox": [[box.x, box.y, box.width, box.height] for box in boxes],
                "category": [export.find_class(region) for region in regions],
                **{
                    name: [getattr(region, name) for region in regions]
                    for name in ("score", "phrase", "slice", "source")
                },
            },
        }


def _write_split(folder: Path, split: str, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
    """Write the files of one split; return their number, 0 if there are no rows."""
    files, written, writer = 0, 0, None
    for group in _group_rows(rows):
        if writer is None:
            writer, written, files = pq.ParquetWriter(folder / f"{split}-{files:05d}.parquet", schema), 0, files + 1
        writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
        written += sum(len(row["image"]["bytes"]) for row in group)
        if written >= _MAX_FILE_BYTES:
            writer = writer.close()
    if writer is not None:
        writer.close()
    return files


def _group_rows(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"]["bytes"])
        if len(group) == _MAX_GROUP_ROWS or size >= _MAX_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _make_card(collection: Collection, splits: list[str]) -> str:
    """Return README.md: its head says which files are which split, since their names may be anything."""
    license = " ".join(collection.license.split()) or "none"
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    return f"""---
{head}---

# {" ".join(collection.name.split())}

Images with captions and boxes, exported from a Foveate collection. License as stated there: {license}.

```python
from datasets import load_dataset

dataset = load_dataset("FOLDER")
dataset["{splits[0]}"].features["objects"]["category"].feature.names
```

`objects["bbox"]` is x, y, width, height in pixels of the image after EXIF rotation; `objects["category"]` is a class,
"object" for boxes without a label; `captions` are about the whole image.
"""
