"""Material for training targets: short captions, recognized text, descriptions, and the AltText of each image.

A source is a module of `foveate.caption.targets.sources` with `read(collection, rows, settings, seed=...)`, found by
its name.
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
    """Texts that the targets of one image are made from.

    Attributes:
        row, key: of the image in the collection.
        source: name of the module that it comes from.
        short: short captions by different people.
        written: text recognized in the image.
        descriptions: full descriptions.
        formats: caption kind -> exact text, where the truth is known; used instead of rewrites of a description.
        describe: returns the dsc of `formats` with a fact first, for an AltText that names the fact.
        alt: the AltText that came with the image.
        alt_clean: whether the AltText is known to be true; None if unknown.
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
        """List all texts that a target may take its words from."""
        exact = self.formats.values()
        return [*self.short, *self.written, *self.descriptions, *exact, *self.facts]


def read_material(
    collection: Collection, rows: NDArray[np.int64], settings: TargetSettings, *, seed: int
) -> tuple[list[Material], dict[str, int]]:
    """Read material of all rows that a source has something for.

    Returns:
        Material, ascending by row, and the number of images by source, with "none" for those without.

    Raises:
        UserError: a source is unknown, or no caption is of a kind that the settings name.
    """
    _check_kinds(collection, settings)
    by_row: dict[int, Material] = {}
    counts: dict[str, int] = {}
    for name in settings.sources:
        source = load_module(SOURCES, name, label="field sources")
        # The first source that knows an image has it: a scene's truth is better than its captions.
        remaining = np.asarray([row for row in rows.tolist() if row not in by_row], dtype=np.int64)
        materials = source.read(collection, remaining, settings, seed=seed)
        by_row |= {material.row: material for material in materials}
        counts[name] = len(materials)
    counts["none"] = len(rows) - len(by_row)
    return [by_row[row] for row in sorted(by_row)], counts


def _check_kinds(collection: Collection, settings: TargetSettings) -> None:
    named = {"short_kinds": settings.short_kinds, "description_kinds": settings.description_kinds}
    if not any(named.values()):
        return
    # A misspelled kind would otherwise give a training set without it.
    available = collection.table("captions")["kind"].unique().to_pylist()
    for name, kinds in named.items():
        for kind in kinds:
            choose(kind, available, f"caption kind ({name})")
