"""Writes the photographs that ship, from scikit-image's wheel: PNG files as lossless WebP, JPEG files as they are.

    pip install scikit-image==0.26.0
    python tools/build_photographs.py

Pixels are those of scikit-image (checked as they are written). Its `motorcycle` (Middlebury's, free for research) and
`moon` (no stated origin) are left out: whoever draws scenes on them installs the package.
"""

from __future__ import annotations

import importlib.resources
import io
import json

import numpy as np
from PIL import Image

from foveate.core.files import read_json, sha256_file, write_bytes_atomically, write_text_atomically
from foveate.core.paths import DATA
from foveate.records.builtin.photographs import FOLDER, PHOTOGRAPHS


def main() -> None:
    entries = {}
    for photograph in PHOTOGRAPHS:
        source = importlib.resources.files("skimage.data") / photograph.source
        data = source.read_bytes()
        if photograph.file.endswith(".webp"):
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
            buffer = io.BytesIO()
            # WebP has no gray: three equal channels cost nothing where nothing is lost.
            image.save(buffer, "WEBP", lossless=True, quality=100, method=6)
            data = buffer.getvalue()
            with Image.open(io.BytesIO(data)) as written:
                if not np.array_equal(np.asarray(image), np.asarray(written.convert("RGB"))):
                    raise SystemExit(f"{photograph.name}: lossless WebP changed pixels; use another Pillow")
        path = FOLDER / photograph.file
        write_bytes_atomically(path, data)
        entries[str(path.relative_to(DATA))] = {"sha256": sha256_file(path), "bytes": len(data)}
        print(f"{path.name}: {len(data):,} bytes")
    manifest = read_json(DATA / "manifest.json")
    manifest["photographs"] = entries
    write_text_atomically(DATA / "manifest.json", json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
