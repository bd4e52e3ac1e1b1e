"""Names of the files in a collection folder, and how image keys become names of tar members."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from foveate.core.errors import UserError, nearest

FORMAT = "foveate-collection"
# 3: fields `images`, `images_per_shard` and `license` of collection.json, folder `dataset`. There is no reader for older ones.
VERSION = 3

DESCRIPTION = "collection.json"
SPLITS_FILE = "splits.parquet"
REMOVED_FILE = "removed.parquet"
QUARANTINE_FILE = "quarantine.parquet"
LOCK_FILE = "writer.lock"
CACHE_FOLDER = "cache"
DATASET_FOLDER = "dataset"

_PART = re.compile(r"\d{5,}\.parquet")
_ADDED = re.compile(r"added-\d{5,}\.parquet")
LONGEST_KEY = 512


def tar_path(collection: Path, shard: int) -> Path:
    """The tar file of one shard."""
    return collection / "images" / f"{shard:05d}.tar"


def index_path(collection: Path, shard: int) -> Path:
    """The index part of one shard; its existence is what makes the shard part of the collection."""
    return collection / "index" / f"{shard:05d}.parquet"


def annotation_path(collection: Path, kind: str, shard: int) -> Path:
    """The annotations that came with the images of one shard."""
    return collection / "annotations" / kind / f"{shard:05d}.parquet"


def committed_shards(collection: Path) -> list[int]:
    """Numbers of the shards that have an index part, ascending."""
    folder = collection / "index"
    if not folder.is_dir():
        return []
    return sorted(int(path.stem) for path in folder.iterdir() if _PART.fullmatch(path.name))


def annotation_kinds(collection: Path) -> list[str]:
    """Names of the annotation tables that have at least one folder, sorted."""
    folder = collection / "annotations"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def annotation_parts(collection: Path, kind: str, shards: set[int]) -> list[Path]:
    """Parts of one annotation table: those of `shards`, then those added later, in the order of writing."""
    folder = collection / "annotations" / kind
    if not folder.is_dir():
        return []
    paths = list(folder.iterdir())
    with_shards = [path for path in paths if _PART.fullmatch(path.name) and int(path.stem) in shards]
    added = [path for path in paths if _ADDED.fullmatch(path.name)]
    return sorted(with_shards, key=lambda path: int(path.stem)) + sorted(added, key=added_number)


def dataset_table_path(collection: Path, kind: str) -> Path:
    """A table that belongs to no image, such as the categories of an imported file."""
    return collection / DATASET_FOLDER / f"{kind}.parquet"


def dataset_table_names(collection: Path) -> list[str]:
    """Names of the tables that belong to no image, sorted."""
    folder = collection / DATASET_FOLDER
    return sorted(path.stem for path in folder.glob("*.parquet")) if folder.is_dir() else []


def added_path(collection: Path, kind: str, number: int) -> Path:
    """The part `number` of annotations that were added to images already there."""
    return collection / "annotations" / kind / f"added-{number:05d}.parquet"


def added_number(path: Path) -> int:
    """The number of a path of `added_path`."""
    return int(path.stem.removeprefix("added-"))


def next_added_path(collection: Path, kind: str) -> Path:
    """A free name for annotations that are added to images already there."""
    folder = collection / "annotations" / kind
    paths = folder.iterdir() if folder.is_dir() else ()
    numbers = [added_number(path) for path in paths if _ADDED.fullmatch(path.name)]
    return added_path(collection, kind, max(numbers, default=-1) + 1)


def check_key(key: str) -> str:
    """Return `key` if it can name an image, else raise UserError.

    A key is text of 1 to 512 characters, with "/" between non-empty parts that are neither "." nor "..", and
    without control characters or backslashes.
    """
    parts = key.split("/")
    if not key or len(key) > LONGEST_KEY:
        raise UserError(f"image key {key[:40]!r}: allowed are 1 to {LONGEST_KEY} characters, got {len(key)}")
    if any(part in ("", ".", "..") for part in parts):
        raise UserError(f"image key {key!r}: the parts between '/' may not be empty, '.' or '..'")
    if "\\" in key or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in key):
        raise UserError(f"image key {key!r}: control characters, surrogates and '\\' are not allowed")
    return key


def member_name(key: str, suffix: str) -> str:
    """The tar member of an image: the key with "%" and "." escaped, then the suffix ("jpg").

    WebDataset ends a sample's key at the first dot of the file name, so the key itself may have none.
    """
    return f"{key.replace('%', '%25').replace('.', '%2E')}.{suffix}"


def check_collection(path: Path) -> Path:
    """Return `path` if it is a collection folder; else raise UserError that names the nearest folder."""
    if (path / DESCRIPTION).is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is a folder but no collection: it has no {DESCRIPTION}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [sibling.name for sibling in siblings if (sibling / DESCRIPTION).is_file()]
    raise UserError(f"no collection at {path}{nearest(path.name, names)}")
