"""What is known of an image before targets are written: short captions, words in it, descriptions, its AltText.

A source is a module of `foveate.caption.targets.sources` with `read(collection, rows, settings)`; nothing here changes
when one is added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foveate.caption.targets.settings import TargetSettings
from foveate.core.errors import choose
from foveate.core.plugins import load_module
from foveate.records.collection import Collection

SOURCES = "foveate.caption.targets.sources"


@dataclass(frozen=True, slots=True)
class Material:
    """What the targets of one image may be made of.

    short: short captions, each by another hand. written: text recognized in the image. descriptions: full ones.
    formats: caption kind -> exact text, where the truth is known; they stand for rewrites of a description. describe:
    gives the dsc of `formats` with a given fact first, for an AltText that names it. alt: the AltText that came with
    the image; alt_clean: whether it is known to say something true (None: not known).
    facts: further words that are known to hold (labels).
    """

    row: int
    key: str
    source: str
    short: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    describe: Callable[[str], str] | None = None
    alt: str = ""
    alt_clean: bool | None = None
    facts: tuple[str, ...] = ()

    def inputs(self) -> list[str]:
        """Every text that a target may take its words from."""
        exact = self.formats.values()
        return [*self.short, *self.written, *self.descriptions, *exact, *self.facts]


def read_material(
    collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int
) -> tuple[list[Material], dict[str, int]]:
    """Material of the rows that a source knows, ascending, and how many images each source gave ("none" too).

    Raises:
        UserError: for an unknown source, or a caption kind that the settings name and no caption has.
    """
    _check_kinds(collection, settings)
    found: dict[int, Material] = {}
    counts: dict[str, int] = {}
    for name in settings.sources:
        source = load_module(SOURCES, name, label="field data.sources")
        left = np.asarray([row for row in rows.tolist() if row not in found], dtype=np.int64)
        taken = source.read(collection, left, settings, seed=seed)
        found |= {material.row: material for material in taken}
        counts[name] = len(taken)
    counts["none"] = len(rows) - len(found)
    return [found[row] for row in sorted(found)], counts


def _check_kinds(collection: Collection, settings: TargetSettings) -> None:
    named = {"short_kinds": settings.short_kinds, "description_kinds": settings.description_kinds}
    if not any(named.values()):
        return
    there = collection.table("captions")["kind"].unique().to_pylist()
    for name, kinds in named.items():
        for kind in kinds:
            choose(kind, there, f"caption kind (data.{name})")
