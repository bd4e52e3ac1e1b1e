"""The options that every importer takes, and the keywords that two or more of them share."""

from __future__ import annotations

from typing import TypedDict

GROUPINGS = ("none", "folder")


class SharedOptions(TypedDict, total=False):
    """Keywords of every importer.

    `name`: of a new collection, by default that of the target folder. `license`: of the images.
    `source_name`: provenance, by default the name of the source. `workers`: threads that examine images.
    `max_pixels`, `images_per_shard`, `bytes_per_shard`, `created`: see `CollectionWriter`.
    """

    name: str | None
    license: str | None
    source_name: str | None
    workers: int | None
    max_pixels: int
    images_per_shard: int
    bytes_per_shard: int
    created: str | None
