"""Search a folder for clips by their names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from foveate.core.errors import UserError
from foveate.records.importers.sample import IMAGE_SUFFIXES

CLIP_SUFFIXES = frozenset("3gp avi flv gif m4v mkv mov mp4 mpeg mpg ogv ts webm webp wmv".split())


def find_clips(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Find clips below a folder, however nested: key -> video file, or folder of images.

    Args:
        names: key -> names of its clip without suffix, the best first; one with "/" is a path below the folder. Keys
            without a clip are not in the result.

    Raises:
        UserError: no such folder, or several clips of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a folder with videos")
    by_path, by_stem = _index_clips(folder)
    clips = {}
    for key, listed_names in names.items():
        for name in listed_names:
            # A path is no mere name: another folder may hold another clip of this name.
            matches = by_path.get(name) or ([] if "/" in name else by_stem.get(name, []))
            if len(matches) > 1:
                listed = ", ".join(sorted(str(match.relative_to(folder)) for match in matches)[:3])
                raise UserError(f"{folder}: {len(matches)} clips are called '{name}' ({listed}); expected one")
            if matches:
                clips[key] = matches[0]
                break
    return clips


def _index_clips(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    by_path: dict[str, list[Path]] = {}
    by_stem: dict[str, list[Path]] = {}
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        # Links to a folder above would go round forever.
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        clips = [Path(parent, file) for file in files if _suffix(file) in CLIP_SUFFIXES]
        if not clips and parent != str(folder) and any(_suffix(file) in IMAGE_SUFFIXES for file in files):
            by_path.setdefault(Path(parent).relative_to(folder).as_posix(), []).append(Path(parent))
            by_stem.setdefault(Path(parent).name, []).append(Path(parent))
        for clip in clips:
            by_path.setdefault(clip.relative_to(folder).with_suffix("").as_posix(), []).append(clip)
            by_stem.setdefault(clip.stem, []).append(clip)
    return by_path, by_stem


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()
