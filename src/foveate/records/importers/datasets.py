"""Import from Hugging Face `datasets`: a saved data set, Parquet files with images in them, or a hub id.

An image's key is its part ("train") and the SHA-256 of its bytes, so that the same image has the same key
wherever it stands; a column can give the keys instead. The part becomes the split: data sets come divided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa

from foveate.core.errors import UserError, choose, nearest
from foveate.records.import_summary import ImportSummary
from foveate.records.importers.files import file_sample
from foveate.records.importers.formats import Format
from foveate.records.importers.ingest import import_samples
from foveate.records.importers.json_files import finding
from foveate.records.importers.sample import IMAGE_SUFFIXES, MAX_BYTES, Sample, SharedOptions
from foveate.records.importers.table import IMAGES, TEXTS, find_column, need_column
from foveate.records.importers.table_files import is_of_images

_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_KEY_DIGITS = 32


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
    """Take the images of a data set, with their texts, into the collection `target`.

    Rows are read one after the other, images are not decoded on the way and keep their bytes.

    Args:
        source: a folder written by `save_to_disk`, a Parquet file or a folder of Parquet files that have an
            image column, or the id of a data set on the hub (`owner/name`, which `datasets` downloads into
            its cache).
        target: collection folder, made where it does not exist.
        part: take only this part of the data set ("train"); by default all of them.
        image_column, text_column: names of the columns; by default the first image column, and one of the
            usual names. A text column may hold text or a list of texts.
        key_column: column with a name for each image; by default its hash.
        revision: branch, tag or commit of a data set on the hub.
        shared: see `SharedOptions`.

    Raises:
        UserError: `datasets` is not installed; there is no such data set, part or column; it has no images.
    """
    parts = _open(str(source), revision)
    if part is not None:
        parts = {choose(part, parts, f"part of {source}"): parts[part]}
    images = {}
    columns: dict[str, tuple[str, str | None, str | None]] = {}
    for name, data in parts.items():
        columns[name] = _columns(data, image_column, text_column, key_column, source)
        images[name] = _undecoded(data, columns[name][0])
    return import_samples(
        target,
        _samples(images, columns, Path(source)),
        default_source=Path(source).name if Path(source).exists() else str(source),
        **shared,
    )


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("the format 'datasets' needs a library: pip install 'foveate[datasets]'") from error
    return datasets


def _damage() -> tuple[type[Exception], ...]:
    """What the library raises while it opens or reads damaged files."""
    others = (pa.ArrowException, _library().exceptions.DatasetsError)
    return (OSError, ValueError, KeyError, TypeError, OverflowError, *others)


def _open(source: str, revision: str | None) -> Mapping[str, Any]:
    """The parts of a data set by name."""
    datasets = _library()
    place = Path(source)
    if place.exists() and revision is not None:
        raise UserError(f"--revision has no effect on {source}, which is on this machine")
    try:
        if place.is_dir() and any((place / name).is_file() for name in _SAVED):
            found = datasets.load_from_disk(source)
        elif place.exists():
            files = _parquet_files(place)
            found = datasets.load_dataset("parquet", data_files=files, streaming=True)
        else:
            found = datasets.load_dataset(source, revision=revision)
    except _damage() as error:
        siblings = [path.name for path in place.parent.glob("*")] if place.parent.is_dir() else []
        hint = "" if place.exists() else nearest(place.name, siblings)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} cannot be opened as a data set ({first[:200]}){hint}") from error
    return found if isinstance(found, dict) else {str(getattr(found, "split", None) or "train"): found}


def _parquet_files(place: Path) -> dict[str, list[str]]:
    """Files by part, which their names begin with on the hub ("train-00000-of-00002.parquet")."""
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    if not files or any(path.suffix.lower() != ".parquet" for path in files):
        allowed = "a folder written by save_to_disk, Parquet files, or the id of a data set on the hub"
        raise UserError(f"{place} is no data set: wanted is {allowed}")
    by_part: dict[str, list[str]] = {}
    for path in files:
        name = path.stem.split("-")[0]
        by_part.setdefault(name if name in ("train", "validation", "test") else "train", []).append(str(path))
    return by_part


def _columns(
    data: Any, image: str | None, text: str | None, key: str | None, source: object
) -> tuple[str, str | None, str | None]:
    """The names of the image, text and key columns."""
    features = data.features
    if features is None:
        raise UserError(f"{source}: the columns of the data set are not known")
    names = list(features)
    images = [name for name, feature in features.items() if _is_image(feature)]
    if image is None and not images:
        listed = ", ".join(names[:30])
        raise UserError(f"{source} has no column of images: its columns are {listed}; name it with --image-column")
    if image is None and len(images) > 1:
        usual = find_column(images, IMAGES, given=None, option="--image-column", where=source)
        image = usual or images[0]
    chosen = need_column(names, images[:1] or IMAGES, given=image, option="--image-column", where=source)
    if not _is_image(features[chosen]):
        raise UserError(f"{source}: column {chosen!r} holds no images but {features[chosen]}")
    texts = find_column(names, TEXTS, given=text, option="--text-column", where=source)
    keys = None if key is None else need_column(names, (), given=key, option="--key-column", where=source)
    return chosen, texts, keys


def _is_image(feature: object) -> bool:
    """An Image feature, or the struct of bytes and path that it is stored as."""
    return isinstance(feature, _library().Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _undecoded(data: Any, column: str) -> Any:
    return data.cast_column(column, _library().Image(decode=False))


def _samples(
    parts: Mapping[str, Any], columns: Mapping[str, tuple[str, str | None, str | None]], source: Path
) -> Iterator[Sample]:
    for part, data in parts.items():
        image, text, key = columns[part]
        number = 0
        try:
            for number, row in enumerate(data, start=1):
                yield _sample(row[image], row, text, key, where=f"{part}, row {number}", part=part, source=source)
        except _damage() as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            detail = f"the part {part!r} cannot be read after row {number}: {first[:200]}"
            yield finding(part, str(source), "part", "damaged part", detail)


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
    found = image if isinstance(image, Mapping) else {}
    data, path = found.get("bytes"), found.get("path")
    if data is None and path is None:
        return finding(where, where, "image", "no image", "the cell of the image is empty")
    if isinstance(data, bytes):
        sample = Sample(key="", source=where, load=lambda: data)
    else:
        sample = file_sample(path, _root(source, path), source=where)
        if sample.only_problems:
            return sample
        data = _bytes_of(sample)
    sample.location = None
    sample.key = f"{part}/{hashlib.sha256(data).hexdigest()[:_KEY_DIGITS]}" if key is None else _key(row[key])
    texts = None if text is None else row[text]
    captions = [] if texts is None else texts if isinstance(texts, list) else [texts]
    sample.fields = {"captions": captions, "split": part}
    return sample


def _root(source: Path, path: object) -> Path:
    """Where files that a data set names may lie: below it, or in the cache of `datasets`."""
    cache = Path(_library().config.HF_CACHE_HOME)
    below = isinstance(path, str) and Path(path).is_absolute() and Path(path).is_relative_to(cache)
    return cache if below else source


def _bytes_of(sample: Sample) -> bytes:
    """The image's bytes for its key; a file that cannot be read is refused later, with its reason."""
    from foveate.records.images import BadImage

    assert sample.load is not None
    try:
        return sample.load()[: MAX_BYTES + 1]
    except (OSError, BadImage):
        return sample.source.encode()


def _key(value: object) -> str:
    """A key from a cell; an ending like that of a file is left out."""
    text = str(value)
    stem, _, suffix = text.rpartition(".")
    return stem if stem and suffix.lower() in IMAGE_SUFFIXES else text


def _recognize(source: str) -> str | None:
    path = Path(source)
    if path.is_file():
        return "a Parquet file with images in it" if is_of_images(path) else None
    if not path.is_dir():
        return None
    saved = next((name for name in _SAVED if (path / name).is_file()), None)
    if saved is not None:
        return saved
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet"))
    return "Parquet files with images in them" if files and is_of_images(files[0]) else None


FORMAT = Format(
    name="datasets",
    run=import_datasets,
    recognize=_recognize,
    options=("part", "image_column", "text_column", "key_column", "revision"),
    refusals={"reference": "the images lie inside of the data set's files"},
)
