"""Import from Hugging Face `datasets`: a saved data set, Parquet files with images, or a hub id.

The key of an image is its part ("train") and the SHA-256 of its bytes, so that it does not depend on the order of rows;
a column can give the keys instead. The part becomes the split; files whose names state no part give none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from foveate.core.errors import UserError, choose, nearest
from foveate.core.tables import find_column, need_column
from foveate.records.images import BadImage
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import file_sample, make_finding
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import import_samples
from foveate.records.importers.sample import IMAGE_SUFFIXES, MAX_BYTES, Sample, SharedOptions
from foveate.records.importers.table import IMAGES, TEXTS, has_images

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_KEY_DIGITS = 32  # 128 bits: no collision in any data set
_PARTS = {name: name for name in ("train", "validation", "test")} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "eval": "test",
}
_UNNAMED = "unnamed"  # part of files whose names state none; their images have no split


def import_datasets(
    source: str | Path,
    target: str | Path,
    *,
    part: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    key_column: str | None = None,
    revision: str | None = None,
    **shared: Unpack[SharedOptions],
) -> ImportSummary:
    """Import the images of a data set, with their texts, into the collection `target`.

    Rows are read one by one; images keep their bytes, since the library does not decode them.

    Args:
        source: a folder written by `save_to_disk`, a Parquet file or a folder of Parquet files with an image
            column, or a hub id (`owner/name`, which `datasets` downloads into its cache).
        target: collection folder; created if it does not exist.
        part: import only this part of the data set ("train"); by default all.
        image_column, text_column: column names; by default the first image column, and one of the usual names.
            A text column has texts or lists of texts.
        key_column: column with a name per image; by default the hash.
        revision: branch, tag or commit of a data set on the hub.
        shared: see `SharedOptions`.

    Raises:
        UserError: `datasets` is not installed; the data set, part or column does not exist, or has no images.
    """
    parts = _open(str(source), revision)
    if part is not None:
        # Files whose names state no part are what `datasets` calls train.
        known = _UNNAMED if part == "train" and list(parts) == [_UNNAMED] else choose(part, parts, f"part of {source}")
        parts = {known: parts[known]}
    images = {}
    columns: dict[str, tuple[str, str | None, str | None]] = {}
    for name, data in parts.items():
        columns[name] = _find_columns(data, image_column, text_column, key_column, source)
        # Decoded and encoded again, an image would have other bytes, and its key is their hash.
        images[name] = data.cast_column(columns[name][0], _import_datasets().Image(decode=False))
    return import_samples(
        target,
        _samples(images, columns, Path(source)),
        default_source=Path(source).name if Path(source).exists() else str(source),
        **shared,
    )


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "--format datasets needs the library 'datasets'; run pip install 'foveate[datasets]'"
        ) from error
    return datasets


def _reading_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the library raises for damaged files."""
    others = (pa.ArrowException, _import_datasets().exceptions.DatasetsError)
    return (OSError, ValueError, KeyError, TypeError, OverflowError, *others)


def _open(source: str, revision: str | None) -> Mapping[str, Any]:
    """Open a data set; return {part name: data}."""
    datasets = _import_datasets()
    path = Path(source)
    if path.exists() and revision is not None:
        raise UserError(f"--revision has no effect on the local data set {source}")
    try:
        if path.is_dir() and any((path / name).is_file() for name in _SAVED):
            data = datasets.load_from_disk(source)
        elif path.exists():
            files = _list_parquet_files(path)
            # Streamed: `datasets` would otherwise write a second copy of the files into its cache first.
            data = datasets.load_dataset("parquet", data_files=files, streaming=True)
        else:
            data = datasets.load_dataset(source, revision=revision)
    except UserError:
        raise  # it is a ValueError, too
    except _reading_errors() as error:
        siblings = [sibling.name for sibling in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = "" if path.exists() else nearest(path.name, siblings)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} cannot be opened as a data set ({first[:200]}){hint}") from error
    return data if isinstance(data, dict) else {str(getattr(data, "split", None) or "train"): data}


def _list_parquet_files(source: Path) -> dict[str, list[str]]:
    """List Parquet files by part."""
    files = [source] if source.is_file() else sorted(source.rglob("*.parquet"))
    if not files or any(path.suffix.lower() != ".parquet" for path in files):
        expected = "a folder written by save_to_disk, Parquet files, or a hub id"
        raise UserError(f"{source} is not a data set; expected {expected}")
    by_part: dict[str, list[str]] = {}
    for path in files:
        by_part.setdefault(_find_part(path, source), []).append(str(path))
    return by_part


def _find_part(path: Path, source: Path) -> str:
    """Return the part that the name of a file or of a folder above it states, the nearest first.

    On the hub: "train-00000-of-00002.parquet", "default/test/0000.parquet".
    """
    # The folder of a single file may be any folder of a user, so it counts only if its whole name is that of a part.
    folders = [path.parent.name] if path == source else path.relative_to(source).parts[-2::-1]
    for name in (path.stem, *folders):
        whole = path == source and name != path.stem
        for word in [name.lower()] if whole else re.split(r"[^a-z]+", name.lower()):
            if word in _PARTS:
                return _PARTS[word]
    return _UNNAMED


def _find_columns(
    data: Any, image: str | None, text: str | None, key: str | None, source: object
) -> tuple[str, str | None, str | None]:
    """Find the image, text and key columns."""
    features = data.features
    if features is None:
        raise UserError(f"{source}: the columns of the data set are unknown")
    names = list(features)
    images = [name for name, feature in features.items() if _is_image(feature)]
    if image is None and not images:
        listed = ", ".join(names[:30])
        raise UserError(f"{source} has no image column among {listed}; choose one with --image-column")
    if image is None and len(images) > 1:
        usual = find_column(images, IMAGES, requested=None, option="--image-column", where=source)
        image = usual or images[0]
    column = need_column(names, images[:1] or IMAGES, requested=image, option="--image-column", where=source)
    if not _is_image(features[column]):
        raise UserError(f"{source}: column {column!r} has no images (got {features[column]})")
    texts = find_column(names, TEXTS, requested=text, option="--text-column", where=source)
    keys = None if key is None else need_column(names, (), requested=key, option="--key-column", where=source)
    return column, texts, keys


def _is_image(feature: object) -> bool:
    """Whether a feature is an Image, or the struct of bytes and path that it is stored as."""
    return isinstance(feature, _import_datasets().Image) or (
        isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    )


def _samples(
    parts: Mapping[str, Any], columns: Mapping[str, tuple[str, str | None, str | None]], source: Path
) -> Iterator[Sample]:
    for part, data in parts.items():
        image, text, key = columns[part]
        # Set before the loop, because the first row itself may be damaged.
        number = 0
        try:
            for number, row in enumerate(data, start=1):
                yield _sample(row[image], row, text, key, where=f"{part}, row {number}", part=part, source=source)
        except _reading_errors() as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            detail = f"the part {part!r} cannot be read after row {number}: {first[:200]}"
            yield make_finding(part, str(source), "part", "damaged part", detail)


def _sample(
    image: object,
    row: Mapping[str, Any],
    text: str | None,
    key: str | None,
    *,
    where: str,
    part: str,
    source: Path,
) -> Sample:
    cell = image if isinstance(image, Mapping) else {}
    data, path = cell.get("bytes"), cell.get("path")
    if data is None and path is None:
        return make_finding(where, where, "image", "no image", "the image cell is empty")
    if isinstance(data, bytes):
        sample = Sample(key="", source=where, load=lambda: data)
    else:
        sample = file_sample(path, _find_root(source, path), source=where)
        if sample.only_problems:
            return sample
        data = _read_bytes(sample)
    # Never refer to the file: it is the data set's own, or lies in a cache that may be cleared.
    sample.location = None
    # The prefix that files without a part have had from the start: another one would import their images twice.
    prefix = "train" if part == _UNNAMED else part
    sample.key = f"{prefix}/{hashlib.sha256(data).hexdigest()[:_KEY_DIGITS]}" if key is None else _make_key(row[key])
    texts = None if text is None else row[text]
    captions = [] if texts is None else texts if isinstance(texts, list) else [texts]
    sample.fields = {"captions": captions, "split": "" if part == _UNNAMED else part}
    return sample


def _find_root(source: Path, path: object) -> Path:
    """Return the folder that a file of a data set must be in: the source, or the cache of `datasets`."""
    # A row may name any file of this machine: only the data set's folder and the library's cache are read.
    cache = Path(_import_datasets().config.HF_CACHE_HOME)
    below = isinstance(path, str) and Path(path).is_absolute() and Path(path).is_relative_to(cache)
    return cache if below else source


def _read_bytes(sample: Sample) -> bytes:
    """Read the bytes for the key; a file that cannot be read is refused later, with its reason."""
    assert sample.load is not None
    try:
        return sample.load()[: MAX_BYTES + 1]
    except (OSError, BadImage):
        return sample.source.encode()


def _make_key(value: object) -> str:
    """Make a key from a cell, without an image extension."""
    text = str(value)
    stem, _, suffix = text.rpartition(".")
    return stem if stem and suffix.lower() in IMAGE_SUFFIXES else text


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_file():
        return "a Parquet file with images in it" if has_images(path) else None
    if not path.is_dir():
        return None
    saved = next((name for name in _SAVED if (path / name).is_file()), None)
    if saved is not None:
        return saved
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet"))
    return "Parquet files with images in them" if files and has_images(files[0]) else None


FORMATS = (
    Format(
        name="datasets",
        run=import_datasets,
        recognize=_recognize,
        options=("part", "image_column", "text_column", "key_column", "revision"),
        refusals={"reference": "the images lie inside of the data set's files"},
    ),
)
