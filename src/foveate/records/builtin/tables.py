"""The shipped tables: clip art and emoji, images and texts together (built by tools/build_builtin.py)."""

from __future__ import annotations

import functools
from typing import Any

from foveate.core.arrow_tables import read_parquet
from foveate.core.paths import DATA

SOURCES = ("clipart", "emoji")


@functools.cache
def rows(source: str) -> tuple[dict[str, Any], ...]:
    """Return all rows of `source` ("clipart" or "emoji") as dictionaries; `image` has WebP bytes with alpha.

    Both: key, image, width, height, covered (share of pixels more than half opaque), category, subcategory,
    package, path, sha256, license, author.
    Clip art: title, keywords, description, creator, date, language, aliases (further names of the same image),
    group (key of the first of its near-duplicates).
    Emoji: style ("noto", "twemoji"), name, short_names, unified (code points). Texts are as the source has them.
    """
    assert source in SOURCES, source
    return tuple(read_parquet(DATA / f"{source}.parquet").to_pylist())
