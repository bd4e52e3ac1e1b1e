"""Match the paths of a results file or a table with the images of a survey.

Tools write paths relative to other folders than ours, with back-slashes, or absolute. A path belongs to the image with
which it shares the most folders from its end; what fits several images equally well belongs to none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from foveate.records.importers.files import make_key

_ABSOLUTE = re.compile(r"^(?:[A-Za-z]:)?[/\\]+")
VIDEO_SUFFIXES = frozenset(".mp4 .avi .mpeg .mpg .mov .mkv .flv .wmv .asf .m4v".split())
"""Of the videos that MegaDetector reads."""
_VIDEO_SUFFIXES = VIDEO_SUFFIXES | {".mts", ".3gp"}  # cameras write these, too


def is_absolute(path: str) -> bool:
    """Whether a path begins with a drive or a slash, of any system."""
    return _ABSOLUTE.match(path.strip()) is not None


def is_video(path: str) -> bool:
    """Whether a path has the extension of a video."""
    return PurePosixPath(path).suffix.lower() in _VIDEO_SUFFIXES


def normalize_path(path: str) -> str:
    """Return a path with forward slashes, without drive, leading slashes and "./".

    >>> normalize_path("C:\\\\cards\\\\A\\\\IMG_1.JPG"), normalize_path("./A/IMG_1.JPG")
    ('cards/A/IMG_1.JPG', 'A/IMG_1.JPG')
    """
    relative = _ABSOLUTE.sub("", path.strip()).replace("\\", "/")
    return "/".join(part for part in relative.split("/") if part not in ("", "."))


class FileIndex:
    """Images of a survey by their paths.

    Args:
        files: path of each image as its source spells it, "" where unknown.
        keys: of each image: a path without extension.

    >>> index = FileIndex(["A/IMG_1.JPG", "B/IMG_1.JPG"], ["A/IMG_1", "B/IMG_1"])
    >>> index.find_all(["C:\\\\cards\\\\A\\\\IMG_1.JPG", "IMG_1.JPG", "D/IMG_9.JPG"])
    ([0, -1, -1], ['IMG_1.JPG'])
    """

    def __init__(self, files: Sequence[str], keys: Sequence[str]) -> None:
        self._rows: dict[str, int] = {key: row for row, key in enumerate(keys)}
        # Files are added after keys: where the key of one image is the path of another, the path wins.
        self._rows |= {normalize_path(file): row for row, file in enumerate(files) if file}
        self._by_name: dict[str, list[str]] = defaultdict(list)

    def find_all(self, paths: Sequence[str]) -> tuple[list[int], list[str]]:
        """Return the row of the image of each path (-1: none), and the paths that fit several images equally well.

        Of two paths that fit one image the one with its extension has it, then the one with more folders in common; of
        equals none. A video fits no image without its extension: cameras give a photo and its video one name.
        """
        matches = [self._find(normalize_path(path)) for path in paths]
        best: dict[int, list[int]] = {}
        for position, (row, depth) in enumerate(matches):
            if row >= 0:
                rivals = best.setdefault(row, [position])
                if rivals[0] == position:
                    continue
                # Rivals of the best depth are all kept: two of them mean that none wins.
                deepest = matches[rivals[0]][1]
                if depth == deepest:
                    rivals.append(position)
                elif depth > deepest:
                    best[row] = [position]
        winners = {rivals[0] for rivals in best.values() if len(rivals) == 1}
        ambiguous = [paths[position] for rivals in best.values() if len(rivals) > 1 for position in rivals]
        ambiguous += [path for path, (row, _) in zip(paths, matches, strict=True) if row == _AMBIGUOUS]
        rows = [row if position in winners else -1 for position, (row, _) in enumerate(matches)]
        return rows, ambiguous

    def _find(self, path: str) -> tuple[int, tuple[bool, int, bool]]:
        """Return the row of a normalized path, and how well it fits."""
        parts = path.split("/")
        names = [path] if is_video(path) else [path, make_key(path)]
        names_parts = [name.split("/") for name in names]
        for start in range(len(parts)):
            tails = ["/".join(name_parts[start:]) for name_parts in names_parts]
            tail = next((tail for tail in tails if tail in self._rows), None)
            if tail is not None:
                # A path that fits as a whole comes before one that is as long without its first folders.
                return self._rows[tail], (tail == tails[0], len(parts) - start, start == 0)
        # The path may begin in a folder below ours.
        # The index by name is built where a path needs it: searching all names for each path would be quadratic.
        if not self._by_name:
            for name in self._rows:
                self._by_name[name.rsplit("/", 1)[-1]].append(name)
        for tail in names:
            known = self._by_name.get(tail.rsplit("/", 1)[-1], ())
            rows = {self._rows[name] for name in known if name.endswith(f"/{tail}")}
            if len(rows) > 1:
                return _AMBIGUOUS, _NO_FIT
            if rows:
                return rows.pop(), (tail == path, len(parts), False)
        return -1, _NO_FIT


_AMBIGUOUS = -2
_NO_FIT = (False, 0, False)
