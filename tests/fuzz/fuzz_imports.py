"""Sources of every format that can be imported, made hostile; and what must hold of the collection after it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_images import good, random_image
from fuzz_run import Target, Trial
from fuzz_values import as_json, damaged, mutated, odd_text, odd_value

from foveate.records.collection import Collection
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.formats import load_formats

SECRET = good(99, 40)
_WIDTH, _HEIGHT = 24, 18


def _attempt(trial: Trial, name: str, source: Path, **options: Any) -> str:
    """Import, then look at what came of it; at times the same again."""
    target = trial.folder / "c"
    (trial.folder / "secret.jpg").write_bytes(SECRET)
    takes = load_formats()[name].options
    if "reference" in takes and trial.random.random() < 0.2:
        options["reference"] = True
    if "group_by" in takes and trial.random.random() < 0.2:
        options["group_by"] = "folder"
    trial.note((name, str(source.relative_to(trial.folder)), options))
    before = {path.name for path in trial.folder.iterdir()} | {"c"}
    summary = load_formats()[name].run(source, target, workers=1, **options)
    check(target, summary)
    if trial.random.random() < 0.1:
        again = load_formats()[name].run(source, target, workers=1, **options)
        assert again.imported == 0, "the same import took images again"
        check(target, again)
    assert {path.name for path in trial.folder.iterdir()} <= before, "files were written beside the collection"
    return "quarantined" if summary.quarantined else "taken" if summary.imported else "nothing"


def check(target: Path, summary: ImportSummary) -> None:
    """All rows can be read, nothing lies outside of its image, and nothing came from outside of the source."""
    assert "\n" not in "".join(summary.lines())
    secret = hashlib.sha256(SECRET).hexdigest()
    with Collection.open(target) as collection:
        for row, record in enumerate(collection):
            assert record.width > 0
            assert record.height > 0
            assert collection.index["sha256"][row] != secret, "an image from outside of the source was taken"
            collection.image_bytes(row, verify=True)
        if summary.quarantined:
            assert len(collection.quarantine()), "counted as quarantined, but not noted"


def _sidecar() -> dict[str, Any]:
    return {
        "caption": "a red boat",
        "captions": ["one", {"text": "two", "kind": "title", "source": "me"}],
        "regions": [
            {"box": [1, 2, 10, 12], "phrase": "boat", "score": 0.5},
            {
                "box": [0.1, 0.2, 0.3, 0.4],
                "unit": "normalized",
                "format": "xywh",
                "label": "b",
                "slice": "s",
                "source": "x",
            },
        ],
        "labels": {"color": "red", "number": 3},
        "group": "g",
        "split": "train",
        "url": "http://x",
        "key": "k",
        "status": "success",
    }


def _file_name(random: Random) -> str:
    """A name that a file system takes."""
    if random.random() < 0.6:
        return random.choice(("p", "q", "sub/p", "a b", "p.q", "%2Fx", "P"))
    name = odd_text(random).replace("\0", "").replace("\ud800", "\udc80").strip("/").replace("..", "_")
    return os.fsdecode(os.fsencode(name.encode("utf-8", "replace").decode()))[:60].strip("/") or "p"


def _write(path: Path, content: bytes) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (OSError, ValueError):
        return False
    return True


def _links(trial: Trial, source: Path) -> None:
    """Links, pipes and folders where images are expected."""
    random, place = trial.random, source / f"odd{trial.random.randrange(3)}.jpg"
    kind = random.randrange(6)
    trial.note(("odd file", kind))
    try:
        if kind == 0:
            place.symlink_to(random.choice(("../secret.jpg", "/etc/passwd", "odd0.jpg", "nowhere", "/dev/zero", "..")))
        elif kind == 1:
            os.mkfifo(place)
        elif kind == 2:
            place.mkdir()
        elif kind == 3:
            (source / "up").symlink_to("..")
        elif kind == 4:
            place.with_suffix(".json").symlink_to("/dev/zero")
            place.write_bytes(good(1))
        else:
            place.with_suffix(".txt").mkdir()
            place.write_bytes(good(2))
    except FileExistsError:
        pass


def folder(trial: Trial) -> str:
    """Images with sidecars."""
    random, source = trial.random, trial.folder / "s"
    source.mkdir()
    for number in range(random.choice((1, 1, 2, 3))):
        name = _file_name(random)
        suffix = random.choice(("jpg", "jpg", "png", "gif", "tif", "webp", "JPG", "bmp", "svg"))
        data = good(number) if random.random() < 0.6 else random_image(random)
        trial.note(name)
        _write(source / f"{name}.{suffix}", data)
        if random.random() < 0.8:
            _write(source / f"{name}.json", as_json(random, mutated(random, _sidecar())))
        if random.random() < 0.4:
            text = odd_text(random).encode("utf-8", "surrogatepass")
            _write(source / f"{name}.txt", damaged(random, text) if random.random() < 0.2 else text)
    if random.random() < 0.15:
        _links(trial, source)
    return _attempt(trial, "folder", source)


def _member(random: Random, name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    if random.random() < 0.1:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S", b"Z")
        member.type = random.choice(kinds)
        member.linkname = random.choice(("../secret.jpg", "/etc/passwd", "p.jpg"))
        member.size = 0
    if random.random() < 0.1:
        member.mtime, member.uid = random.choice((-1, 0, 2**33, 1e300)), random.choice((0, 2**31))
        member.pax_headers = {odd_text(random).replace("=", "").replace("\0", "") or "a": odd_text(random)}
    return member


def tar(trial: Trial) -> str:
    """WebDataset tars: hostile members, then at times hostile bytes."""
    random, buffer = trial.random, io.BytesIO()
    packed = random.choice(("w", "w", "w", "w:gz"))
    style = random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode=packed, format=style, errors="surrogatepass", encoding="utf-8") as made:
        for number in range(random.choice((0, 1, 2, 3))):
            name = random.choice(("p", "q", "a/b", "%2E")) if random.random() < 0.6 else odd_text(random)
            files = {
                random.choice(("jpg", "png", "JPG", "webp")): good(number)
                if random.random() < 0.5
                else random_image(random),
                "json": as_json(random, mutated(random, {**_sidecar(), "key": name})),
                "txt": odd_text(random).encode("utf-8", "surrogatepass"),
                random.choice(("cls", "seg.png", "npy", "txt")): b"3",
            }
            for suffix, data in files.items():
                member = _member(random, f"{name}.{suffix}", len(data))
                try:
                    made.addfile(member, io.BytesIO(data))
                except (ValueError, UnicodeError, OverflowError, tarfile.TarError):
                    continue
    data = buffer.getvalue()
    if random.random() < 0.4:
        data = damaged(random, data)
    source = trial.folder / random.choice(("s.tar", "s.tar", "s.tar.gz", "s.tgz"))
    source.write_bytes(data)
    return _attempt(trial, "webdataset", source)


def _coco() -> dict[str, Any]:
    images = [
        {"id": n, "file_name": f"{n}.jpg", "width": _WIDTH, "height": _HEIGHT, "coco_url": f"h://x/v/{n}.jpg"}
        for n in (1, 2)
    ]
    annotations = [
        {
            "id": 10 * n + place,
            "image_id": n,
            "category_id": 3 + place,
            "bbox": [1, 2, 10, 9.5],
            "area": 95.0,
            "iscrowd": place,
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
        for n in (1, 2)
        for place in (0, 1)
    ]
    captions = [{"id": n, "image_id": n, "caption": f"image {n}"} for n in (1, 2)]
    categories = [
        {"id": 3, "name": "car", "supercategory": "vehicle"},
        {"id": 4, "name": "aerosol_can", "synonyms": ["can"], "def": "a can", "frequency": "r"},
    ]
    return {"images": images, "annotations": annotations + captions, "categories": categories}


def _images(trial: Trial, place: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        _write(place / name, good(number) if trial.random.random() < 0.85 else random_image(trial.random))
    if trial.random.random() < 0.1:
        _links(trial, place)


_ESCAPES = ("../secret.jpg", "/etc/passwd", "i/../../secret.jpg", "..\\secret.jpg", "odd0.jpg", "", "\0", "a/" * 3000)


def _coco_like(trial: Trial, name: str, file: str, folder_of: str) -> str:
    random, source = trial.random, trial.folder / "s"
    content = mutated(random, _coco())
    if random.random() < 0.3 and isinstance(content, dict) and content.get("images"):
        first = content["images"][0] if isinstance(content["images"], list) else None
        if isinstance(first, dict):
            first["file_name"] = random.choice((*_ESCAPES, str(trial.folder / "secret.jpg")))
            first["coco_url"] = f"http://x/{first['file_name']}"
    _images(trial, source / folder_of, ("1.jpg", "2.jpg"))
    _write(source / file, as_json(random, content))
    options: dict[str, Any] = {}
    if random.random() < 0.2:
        captions = {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "c"}]}
        _write(source / "caps.json", as_json(random, mutated(random, captions)))
        options["captions"] = source / "caps.json"
    return _attempt(trial, name, source / file, **options)


def coco(trial: Trial) -> str:
    """Instances and captions in COCO's form."""
    return _coco_like(trial, "coco", "instances_v.json", "images")


def lvis(trial: Trial) -> str:
    """The same in LVIS's form."""
    return _coco_like(trial, "lvis", "lvis_v1_val.json", "v")


def visual_genome(trial: Trial) -> str:
    """Both files of Visual Genome."""
    random, source = trial.random, trial.folder / "s"
    images = [
        {"image_id": n, "url": f"https://x/VG_100K/{n}.jpg", "width": _WIDTH, "height": _HEIGHT, "coco_id": None}
        for n in (1, 2)
    ]
    regions = [
        {
            "id": n,
            "regions": [{"region_id": n, "image_id": n, "phrase": "thing", "x": 1, "y": 2, "width": 9, "height": 9}]
            * 2,
        }
        for n in (1, 2)
    ]
    which = random.randrange(3)
    images = mutated(random, images) if which != 1 else images
    if random.random() < 0.2 and isinstance(images, list) and images and isinstance(images[0], dict):
        images[0]["url"] = random.choice(("https://x/../secret.jpg", "/../1.jpg", "https://x/VG/../1.jpg"))
    _images(trial, source / "VG_100K", ("1.jpg", "2.jpg"))
    _write(source / "image_data.json", as_json(random, images))
    _write(source / "region_descriptions.json", as_json(random, mutated(random, regions) if which else regions))
    return _attempt(trial, "visual-genome", source)


def _cell(random: Random, number: int) -> str:
    choice = random.randrange(6)
    if choice < 3:
        return f"{number % 2}.jpg" if choice < 2 else random.choice(_ESCAPES)
    return odd_text(random) if choice < 5 else json.dumps(mutated(random, _sidecar()["regions"]))


def table(trial: Trial) -> str:
    """CSV and TSV by text and by bytes, Parquet by types."""
    random, source = trial.random, trial.folder / "s"
    _images(trial, source, ("0.jpg", "1.jpg"))
    names = random.choice(
        (("path", "caption", "boxes"), ("filepath", "title"), ("image", "text", "regions", "n"), ("a", "b"))
    )
    rows = [
        [f"{number % 2}.jpg", odd_text(random), json.dumps(mutated(random, _sidecar()["regions"])), "3"][: len(names)]
        for number in range(random.choice((0, 1, 3, 12)))
    ]
    for row in rows:
        if random.random() < 0.4:
            row[random.randrange(len(row))] = _cell(random, random.randrange(2))
    if random.random() < 0.35:
        return _attempt(trial, "table", _parquet_table(trial, source, names, rows))
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter=random.choice(",,\t;"), quoting=random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    )
    writer.writerow(names)
    for row in rows:
        writer.writerow(
            row if random.random() < 0.9 else row[: random.randrange(len(row))] + ["x"] * random.randrange(4)
        )
    text = out.getvalue()
    if random.random() < 0.1:
        text = text.replace('"', "", 1) if random.random() < 0.5 else text + '"' * random.choice((1, 3)) + "\r\n,,,\n"
    encoding = random.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "latin-1"))
    data = text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")
    path = source / random.choice(("t.csv", "t.tsv", "t.CSV"))
    path.write_bytes(damaged(random, data) if random.random() < 0.3 else data)
    return _attempt(trial, "table", path)


def _typed(random: Random, values: list[Any]) -> pa.Array:
    kinds = (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.list_(pa.string()),
        pa.int64(),
        pa.null(),
        pa.dictionary(pa.int32(), pa.string()),
    )
    kind = random.choice((pa.string(), pa.string(), *kinds))
    safe = [None if random.random() < 0.1 else one.encode("utf-8", "replace").decode() for one in values]
    if kind == pa.int64():
        return pa.array([len(one or "") for one in safe], kind)
    if kind == pa.null():
        return pa.nulls(len(safe))
    if pa.types.is_list(kind):
        return pa.array([None if one is None else [one, None] for one in safe], kind)
    if kind == pa.binary():
        return pa.array([None if one is None else one.encode() + random.choice((b"", b"\xff")) for one in safe], kind)
    if pa.types.is_dictionary(kind):
        return pa.array(safe, pa.string()).dictionary_encode()
    return pa.array(safe, kind)


def _parquet_table(trial: Trial, source: Path, names: tuple[str, ...], rows: list[list[str]]) -> Path:
    random = trial.random
    columns = {name: _typed(random, [row[place] for row in rows]) for place, name in enumerate(names)}
    if "boxes" in names and random.random() < 0.5:
        regions = (
            [
                [
                    {
                        "box": [
                            random.choice((float("nan"), 1e308, -3.0)) if random.random() < 0.3 else 1.0,
                            2.0,
                            9.0,
                            9.0,
                        ],
                        "phrase": "x",
                    }
                ]
                for _ in rows
            ]
            if random.random() < 0.9
            else [None] * len(rows)
        )
        columns["boxes"] = pa.array(regions)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    path = source / "t.parquet"
    path.write_bytes(damaged(random, buffer.getvalue()) if random.random() < 0.5 else buffer.getvalue())
    return path


def datasets(trial: Trial) -> str:
    """Parquet with images in it, as the hub has it."""
    random, source = trial.random, trial.folder / "s"
    source.mkdir()
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells: list[Any] = []
    for number in range(random.choice((0, 1, 2, 4))):
        data = good(number) if random.random() < 0.6 else random_image(random)
        cells.append(
            random.choice(
                (
                    {"bytes": data, "path": None},
                    {"bytes": data, "path": "x"},
                    {"bytes": data, "path": None},
                    {"bytes": None, "path": random.choice((*_ESCAPES[:4], "p.jpg"))},
                    None,
                )
            )
        )
    columns: dict[str, Any] = {"image": pa.array(cells, struct)}
    if random.random() < 0.8:
        columns["caption"] = _typed(random, [odd_text(random) for _ in cells])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    data = buffer.getvalue()
    (source / "p.jpg").write_bytes(good(5))
    (source / "train-0.parquet").write_bytes(damaged(random, data) if random.random() < 0.5 else data)
    return _attempt(trial, "datasets", source)


def recognize(trial: Trial) -> str:
    """Telling the format of files and folders of any name and content."""
    from foveate.records.importers.formats import detect_format

    random, names = (
        trial.random,
        ("instances_x.json", "lvis_v.json", "image_data.json", "a.tar", "a.parquet", "a.csv", "dataset_info.json", "x"),
    )
    place = trial.folder / "s"
    place.mkdir()
    for _ in range(random.choice((0, 1, 2))):
        content = random.choice(
            (as_json(random, odd_value(random)), random_image(random), b"PAR1" + bytes(20) + b"PAR1")
        )
        if random.random() < 0.8:
            _write(place / random.choice(names), content)
        else:
            _links(trial, place)
    inside = [str(path) for path in place.iterdir()]
    source = random.choice(
        [str(place), *inside, str(place / "none"), str(place / "{0..3}.tar"), odd_text(random).replace("/", "_")]
    )
    trial.note(source)
    return detect_format(source)[0].name


IMPORTS = {
    one.name: one
    for one in (
        Target("folder", folder),
        Target("webdataset", tar),
        Target("coco", coco),
        Target("lvis", lvis),
        Target("visual-genome", visual_genome),
        Target("table", table),
        Target("datasets", datasets),
        Target("recognize", recognize),
    )
}
