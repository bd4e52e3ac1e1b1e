"""List the caches of frozen features in a folder, and remove unused ones."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from foveate.core.errors import UserError
from foveate.core.recipes import Settings, validate

KINDS = ("images", "texts")
# What `foveate species check` keeps of thumbnails; it has no releases.
_THUMBNAILS = "thumbnails"
# Prefixes of earlier releases, which cached one file or folder for each set of images or texts.
_FORMER = ("features-", "texts-")
_REMOVED = ".removed"


class CacheSettings(Settings):
    """Settings of `foveate cache`: the caches to remove."""

    remove: Literal["unused", "all"] | None = Field(
        None, description="remove caches: those of other releases and those not opened for --days, or all"
    )
    days: float = Field(30.0, ge=0, description="days without use after which a cache counts as unused")


@dataclass(frozen=True)
class Cache:
    """One folder (or a file of an older release) of frozen features.

    Attributes:
        kind: "images", "texts" or "thumbnails". encoder: what features depend on, abbreviated; "" for older releases.
        parts: files of features in it. size: bytes on disk. days: since a run last opened it.
        readable: whether this release can read it.
    """

    path: Path
    kind: str
    encoder: str
    parts: int
    size: int
    days: float
    readable: bool

    def is_unused(self, *, days: float) -> bool:
        """Whether it is of another release, or was not opened for `days` days."""
        return not self.readable or self.days >= days


def list_caches(folder: Path) -> list[Cache]:
    """List the caches in a collection's (or run's) cache folder, largest first."""
    caches = [_describe(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return sorted((cache for cache in caches if cache is not None), key=lambda cache: -cache.size)


def select_caches(caches: Iterable[Cache], settings: CacheSettings) -> list[Cache]:
    """Select the caches that the settings remove; none if nothing is to be removed."""
    if settings.remove is None:
        return []
    return [cache for cache in caches if settings.remove == "all" or cache.is_unused(days=settings.days)]


def remove_caches(folder: Path, *, which: str, days: float = 30.0) -> list[Cache]:
    """Remove caches and return them; the next run that needs them computes them again.

    Args:
        which: "unused" removes caches of other releases and those not opened for `days` days, "all" all.

    Raises:
        UserError: for another `which`, or a folder that cannot be removed.
    """
    settings = validate(CacheSettings, {"remove": which, "days": days}, where="foveate cache")
    removed = select_caches(list_caches(folder), settings)
    for cache in removed:
        try:
            if cache.path.is_dir():
                doomed = cache.path
                if not _is_leftover(cache.path):
                    # Renamed first: a removal that is killed must not leave a cache that looks complete.
                    doomed = cache.path.with_name(f".{cache.path.name}{_REMOVED}")
                    if doomed.exists():  # left by a removal that was killed
                        shutil.rmtree(doomed)
                    cache.path.replace(doomed)
                shutil.rmtree(doomed)
            else:
                cache.path.unlink(missing_ok=True)  # a leftover may be gone with its cache
        except OSError as error:
            raise UserError(f"{cache.path}: cannot be removed ({error.strerror})") from error
    return removed


def _describe(path: Path) -> Cache | None:
    """Describe a cache; None for another file or folder."""
    from foveate.vision.feature_store import ABOUT, USED, VERSION  # loads torch, which help does not need

    # A leftover of earlier releases may have several dots.
    name = path.name.lstrip(".")
    kind = next((kind for kind in KINDS if name.startswith(f"{kind}-v")), None)
    readable = not _is_leftover(path) and name.startswith(tuple(f"{kind}-v{VERSION}-" for kind in KINDS))
    if name.startswith(f"{_THUMBNAILS}-"):
        kind, readable = _THUMBNAILS, not _is_leftover(path)
    if kind is None and not name.startswith(_FORMER):
        return None
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    # The file's time is that of the last run, access times of files are often switched off.
    opened = path / USED if (path / USED).is_file() else path
    return Cache(
        path=path,
        kind=kind or ("texts" if name.startswith("texts-") else "images"),
        encoder=_encoder(path / ABOUT) if readable else "",
        parts=sum(file.name.startswith("part-") or file.suffix == ".parquet" for file in files),
        size=sum(file.stat().st_size for file in files),
        days=max(0.0, time.time() - opened.stat().st_mtime) / 86_400,
        readable=readable,
    )


def _is_leftover(path: Path) -> bool:
    """Whether a removal that was killed has left this."""
    return path.name.startswith(".") and path.name.endswith(_REMOVED)


def _encoder(about: Path) -> str:
    if not about.is_file():
        return ""
    described: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
    return ", ".join(str(name) for name in described.get("depends", ()))[:80]
