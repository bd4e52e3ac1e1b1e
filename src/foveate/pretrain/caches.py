"""Which folders of frozen features a collection has, and removing those that nobody uses."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.errors import UserError, choose
from foveate.vision.store import ABOUT, USED, VERSION

KINDS = ("images", "texts")
WHICH = ("unused", "all")
# Of the release before, whose caches were one file or folder for each set of images or texts.
_FORMER = ("features-", "texts-")


@dataclass(frozen=True)
class Cache:
    """One folder (or a file of an older release) of frozen features.

    Attributes:
        kind: "images" or "texts". encoder: what its features depend on, in short; empty for older releases.
        parts: files of features in it. size: bytes on disk. days: since a run last opened it.
        readable: whether this release still reads it.
    """

    path: Path
    kind: str
    encoder: str
    parts: int
    size: int
    days: float
    readable: bool

    def is_unused(self, *, days: float) -> bool:
        """Of another release, or not opened for that long."""
        return not self.readable or self.days >= days


def list_caches(folder: Path) -> list[Cache]:
    """The caches in a collection's (or run's) cache folder, the largest first. None where there is no such folder."""
    found = [_describe(path) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    return sorted((cache for cache in found if cache is not None), key=lambda cache: -cache.size)


def remove_caches(folder: Path, *, which: str, days: float = 30.0) -> list[Cache]:
    """Removes caches and returns them; the next run that wants them makes them again.

    Args:
        which: "unused" removes those of other releases and those that no run opened for `days` days, "all" all.

    Raises:
        UserError: for another `which`, or a folder that cannot be removed.
    """
    choose(which, WHICH, "--remove")
    chosen = [cache for cache in list_caches(folder) if which == "all" or cache.is_unused(days=days)]
    for cache in chosen:
        try:
            if cache.path.is_dir():
                # Under another name first: a removal that is stopped leaves nothing that looks whole.
                going = cache.path.with_name(f".{cache.path.name}.removed")
                cache.path.replace(going)
                shutil.rmtree(going)
            else:
                cache.path.unlink()
        except OSError as error:
            raise UserError(f"{cache.path}: cannot be removed ({error.strerror})") from error
    return chosen


def _describe(path: Path) -> Cache | None:
    """None for what is no cache."""
    leftover = path.name.startswith(".") and path.name.endswith(".removed")
    name = path.name.removeprefix(".")
    kind = next((kind for kind in KINDS if name.startswith(f"{kind}-v")), None)
    readable = not leftover and name.startswith(tuple(f"{kind}-v{VERSION}-" for kind in KINDS))
    if kind is None and not name.startswith(_FORMER):
        return None
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    opened = path / USED if (path / USED).is_file() else path
    return Cache(
        path=path,
        kind=kind or ("texts" if name.startswith("texts-") else "images"),
        encoder=_encoder(path / ABOUT) if readable else "",
        parts=sum(one.name.startswith("part-") for one in files),
        size=sum(one.stat().st_size for one in files),
        days=max(0.0, time.time() - opened.stat().st_mtime) / 86_400,
        readable=readable,
    )


def _encoder(about: Path) -> str:
    if not about.is_file():
        return ""
    described: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
    return ", ".join(str(one) for one in described.get("depends", ()))[:80]
