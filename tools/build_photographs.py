"""Writes the photographs that ship, from scikit-image's wheel: PNG files as lossless WebP, JPEG files as they are.

    pip install scikit-image==0.26.0
    python tools/build_photographs.py

Pixels are those of scikit-image (checked as they are written). Its `motorcycle` (Middlebury's, free for research) and
`moon` (no stated origin) are left out: whoever draws scenes on them installs the package.
"""

from __future__ import annotations

import importlib.resources
import io

import numpy as np
from manifest import note_files
from PIL import Image

from foveate.core.files import write_bytes_atomically
from foveate.records.builtin.photographs import PHOTOGRAPHS


def main() -> None:
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
        write_bytes_atomically(photograph.path, data)
        print(f"{photograph.file}: {len(data):,} bytes")
    note_files("photographs", *(photograph.path for photograph in PHOTOGRAPHS))


if __name__ == "__main__":
    main()
