"""Small data sets in each format that can be imported, made for the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from made_images import jpeg

WIDTH, HEIGHT = 80, 60


def image_bytes(number: int) -> bytes:
    """The image `number` of every set."""
    return jpeg(number, width=WIDTH, height=HEIGHT)


def write_json(path: Path, value: object) -> Path:
    """A JSON file; NaN is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def coco_instances(count: int) -> dict[str, Any]:
    """Instances of `count` images: two boxes each, ids that are not 1, 2, 3, one crowd, one category unused."""
    images, annotations = [], []
    for number in range(count):
        image = 1000 + 7 * number
        images.append({"id": image, "file_name": f"{image:012d}.jpg", "width": WIDTH, "height": HEIGHT, "license": 3})
        for place, category in enumerate((3, 18)):
            box = [10.25 + number / 7, 5.5 + place, 30.13, 20.77]
            annotations.append(
                {
                    "id": 900_000 - 10 * number - place,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": 321.5 + number,
                    "iscrowd": int(number == 1 and place == 1),
                    "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
                }
            )
    categories = [
        {"id": 3, "name": "car", "supercategory": "vehicle"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    ]
    return {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories}


def coco_captions(count: int) -> dict[str, Any]:
    """Two captions for each image of `coco_instances`."""
    images = coco_instances(count)["images"]
    annotations = [
        {"id": 50 + 2 * number + place, "image_id": image["id"], "caption": f"image {number}, said {place} times."}
        for number, image in enumerate(images)
        for place in range(2)
    ]
    return {"images": images, "annotations": annotations}


def write_coco(folder: Path, count: int) -> Path:
    """`annotations/instances_val2017.json`, the captions beside it, and `val2017`."""
    write_json(folder / "annotations" / "instances_val2017.json", coco_instances(count))
    write_json(folder / "annotations" / "captions_val2017.json", coco_captions(count))
    (folder / "val2017").mkdir(exist_ok=True)
    for number, image in enumerate(coco_instances(count)["images"]):
        (folder / "val2017" / image["file_name"]).write_bytes(image_bytes(number))
    return folder


def write_lvis(folder: Path, count: int) -> Path:
    """`lvis_v1_val.json` and the folders of COCO, by turns."""
    coco = coco_instances(count)
    for number, image in enumerate(coco["images"]):
        place = f"{('train2017', 'val2017')[number % 2]}/{image.pop('file_name')}"
        image["coco_url"] = f"http://images.cocodataset.org/{place}"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(image_bytes(number))
    for annotation in coco["annotations"]:
        del annotation["iscrowd"]
    coco["categories"] = [
        {"id": 3, "name": "car_(automobile)", "synonyms": ["car", "auto"], "def": "it drives", "frequency": "f"},
        {"id": 18, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "def": "a can", "frequency": "r"},
    ]
    write_json(folder / "lvis_v1_val.json", coco)
    return folder


def write_visual_genome(folder: Path, count: int) -> Path:
    """`image_data.json`, `region_descriptions.json`, VG_100K and VG_100K_2."""
    images, regions = [], []
    for number in range(count):
        image, place = 2000 + number, ("VG_100K", "VG_100K_2")[number % 2]
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / f"{image}.jpg").write_bytes(image_bytes(number))
        url = f"https://cs.stanford.edu/people/rak248/{place}/{image}.jpg"
        images.append({"image_id": image, "url": url, "width": WIDTH, "height": HEIGHT, "coco_id": None})
        described = [
            {"region_id": 10 * image + place, "image_id": image, "phrase": f"thing {place} of {number}"}
            | {"x": 4 * place, "y": 3, "width": 20, "height": 30}
            for place in range(3)
        ]
        regions.append({"id": image, "regions": described})
    write_json(folder / "image_data.json", images)
    write_json(folder / "region_descriptions.json", regions)
    return folder


def write_table(folder: Path, count: int) -> Path:
    """`pairs.csv` with two rows for each image, and the images."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    lines = ["url,filepath,title,boxes"]
    for place in range(2):
        for number in range(count):
            (folder / "photos" / f"{number}.jpg").write_bytes(image_bytes(number))
            boxes = json.dumps([{"box": [1, 2, 30, 40], "phrase": f"part {number}"}]) if place == 0 else ""
            cell = boxes.replace('"', '""')
            lines.append(f'http://x/{number},photos/{number}.jpg,"title {number}, {place}","{cell}"')
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def write_parquet_of_images(folder: Path, count: int) -> Path:
    """A folder of Parquet files as the hub has them: an image column with bytes, and texts."""
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for part, offset in (("train", 0), ("test", 500)):
        table = pa.table(
            {
                "image": pa.array([{"bytes": image_bytes(offset + n), "path": None} for n in range(count)], image),
                "caption": pa.array([[f"one {n}", f"two {n}"] for n in range(count)]),
            }
        )
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return folder


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "coco": write_coco,
    "lvis": write_lvis,
    "visual-genome": write_visual_genome,
    "table": write_table,
    "datasets": write_parquet_of_images,
}
