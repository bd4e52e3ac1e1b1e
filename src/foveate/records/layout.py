"""File names in a collection folder, and tar member names of image keys."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from foveate.core.errors import UserError, nearest

FORMAT = "foveate-collection"
# 3: fields `images`, `images_per_shard` and `license` of collection.json, folder `dataset`. There is no reader for
# older ones.
VERSION = 3

DESCRIPTION = "collection.json"
SPLITS_FILE = "splits.parquet"
DRAWN_FILE = "splits.json"  # fractions and seed of the splits
REMOVED_FILE = "removed.parquet"
QUARANTINE_FILE = "quarantine.parquet"
CACHE_FOLDER = "cache"
DATASET_FOLDER = "dataset"

_PART = re.compile(r"\d{5,}\.parquet")
_ADDED = re.compile(r"added-\d{5,}\.parquet")
MAX_KEY_LENGTH = 512


def tar_path(collection: Path, shard: int) -> Path:
    """Return the tar file of a shard."""
    return collection / "images" / f"{shard:05d}.tar"


def index_path(collection: Path, shard: int) -> Path:
    """Return the index part of a shard; its existence makes the shard part of the collection."""
    return collection / "index" / f"{shard:05d}.parquet"


def annotation_path(collection: Path, kind: str, shard: int) -> Path:
    """Return the file of annotations that were imported with the images of a shard."""
    return collection / "annotations" / kind / f"{shard:05d}.parquet"


def committed_shards(collection: Path) -> list[int]:
    """Return the numbers of shards that have an index part, ascending."""
    folder = collection / "index"
    if not folder.is_dir():
        return []
    return sorted(int(path.stem) for path in folder.iterdir() if _PART.fullmatch(path.name))


def annotation_kinds(collection: Path) -> list[str]:
    """Return the names of annotation tables that have a folder, sorted."""
    folder = collection / "annotations"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def annotation_parts(collection: Path, kind: str, shards: set[int]) -> list[Path]:
    """Return the parts of an annotation table: those of `shards`, then those added later, in order of writing."""
    folder = collection / "annotations" / kind
    if not folder.is_dir():
        return []
    paths = list(folder.iterdir())
    with_shards = [path for path in paths if _PART.fullmatch(path.name) and int(path.stem) in shards]
    added = [path for path in paths if _ADDED.fullmatch(path.name)]
    # Sort by number, not by name: part 100000 comes after part 99999.
    return sorted(with_shards, key=lambda path: int(path.stem)) + sorted(added, key=added_number)


def dataset_table_path(collection: Path, kind: str) -> Path:
    """Return the file of a table about the whole data set, such as the categories of COCO."""
    return collection / DATASET_FOLDER / f"{kind}.parquet"


def dataset_table_names(collection: Path) -> list[str]:
    """Return the names of tables about the whole data set, sorted."""
    folder = collection / DATASET_FOLDER
    return sorted(path.stem for path in folder.glob("*.parquet")) if folder.is_dir() else []


def added_path(collection: Path, kind: str, number: int) -> Path:
    """Return the file of part `number` of annotations that were added to existing images."""
    return collection / "annotations" / kind / f"added-{number:05d}.parquet"


def added_number(path: Path) -> int:
    """Return the number of a path from `added_path`."""
    return int(path.stem.removeprefix("added-"))


def is_added(path: Path) -> bool:
    """Whether a part of an annotation table was added to images that existed."""
    return _ADDED.fullmatch(path.name) is not None


def next_added_path(collection: Path, kind: str) -> Path:
    """Return an unused path for annotations that are added to existing images."""
    folder = collection / "annotations" / kind
    paths = folder.iterdir() if folder.is_dir() else ()
    used = [added_number(path) for path in paths if _ADDED.fullmatch(path.name)]
    return added_path(collection, kind, max(used, default=-1) + 1)


def check_key(key: str) -> str:
    """Return `key`; raise UserError if it cannot name an image.

    A key has 1 to 512 characters, no control characters or backslashes, and "/" only between non-empty parts that are
    neither "." nor "..".
    """
    # Exports make file paths of keys, so a key must never lead out of the target folder.
    parts = key.split("/")
    if not key or len(key) > MAX_KEY_LENGTH:
        raise UserError(f"image key {key[:40]!r}: expected 1 to {MAX_KEY_LENGTH} characters (got {len(key)})")
    if any(part in ("", ".", "..") for part in parts):
        raise UserError(f"image key {key!r}: parts between '/' must not be empty, '.' or '..'")
    if "\\" in key or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in key):
        raise UserError(f"image key {key!r}: control characters, surrogates and '\\' are not allowed")
    return key


def member_name(key: str, suffix: str) -> str:
    """Return the tar member name of an image: the key with "%" and "." escaped, then the suffix ("jpg")."""
    # WebDataset ends the key of a sample at the first dot of the file name, so the key itself must not have one.
    # "%" first: replaced after the dots, it would break their escapes.
    return f"{key.replace('%', '%25').replace('.', '%2E')}.{suffix}"


def check_collection(path: Path) -> Path:
    """Return `path` if it is a collection folder; else raise UserError with the nearest one."""
    if (path / DESCRIPTION).is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path} is not a collection: it has no {DESCRIPTION}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [sibling.name for sibling in siblings if (sibling / DESCRIPTION).is_file()]
    raise UserError(f"no collection at {path}{nearest(path.name, names)}")
