"""Note the files that ship in `src/foveate/data/manifest.json`: their sha256 and size, by which they are checked."""

from __future__ import annotations

import json
from pathlib import Path

from foveate.core.files import read_json, sha256_file, write_text_atomically
from foveate.core.paths import DATA


def note_files(kind: str, *paths: Path) -> None:
    """Note files below the data folder under a kind, such as "weights"; entries of other files stay."""
    manifest = read_json(DATA / "manifest.json")
    for path in paths:
        name = path.relative_to(DATA).as_posix()
        manifest.setdefault(kind, {})[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    write_text_atomically(DATA / "manifest.json", json.dumps(manifest, indent=2) + "\n")
