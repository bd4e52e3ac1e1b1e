"""Imports and removals that tests kill, as functions of paths, texts and numbers."""

from __future__ import annotations

from typing import Any

from foveate.core import progress
from foveate.records.importers.folder import import_folder
from foveate.records.importers.formats import load_formats
from foveate.records.removal import remove_images
from foveate.survey.importers.cards import import_cards

STAMP = "2026-01-01T00:00:00+00:00"
progress.configure(quiet=True)


def take(source: str, target: str, shard: int) -> None:
    """A folder of images, packed."""
    import_folder(source, target, name="c", workers=2, images_per_shard=shard, created=STAMP)


def take_both(packed: str, referenced: str, target: str, shard: int) -> None:
    """One folder packed, another one left where it is."""
    options: dict[str, Any] = {"name": "c", "workers": 2, "images_per_shard": shard, "created": STAMP}
    import_folder(packed, target, **options)
    import_folder(referenced, target, reference=True, **options)


def take_conversations(source: str, target: str, shard: int) -> None:
    """A file of LLaVA's conversations, and its images."""
    load_formats()["llava"].run(
        source, target, coordinates="0-1", name="c", workers=2, images_per_shard=shard, created=STAMP
    )


def take_cards(source: str, target: str, shard: int) -> None:
    """The cards of camera traps, with the table of deployments that is among them."""
    import_cards(source, target, name="c", workers=2, images_per_shard=shard, created=STAMP)


def remove(target: str, keys: list[str]) -> None:
    """Takes images out for good."""
    remove_images(target, keys, reason="asked for")


def update(source: str, target: str) -> None:
    """A folder whose files changed, once more."""
    import_folder(source, target, name="c", workers=2, update=True)


def mirror(source: str, target: str) -> None:
    """The same for a collection that is derived from its folder."""
    import_folder(source, target, name="c", workers=2, update=True, mirror=True)
