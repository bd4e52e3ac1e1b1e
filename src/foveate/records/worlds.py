"""Built-in collections by name: the extension point for a laboratory's worlds in `foveate collect`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from foveate.core.plugins import load_plugin, module_names

_DOOR = "foveate.records.builders"


class Builder(NamedTuple):
    """A built-in collection.

    Attributes:
        build: called as `build(target, workers, seed)`; imports its world when it is called.
        is_drawn: whether it is drawn from the seed, by several processes; the others are shipped as they are.
    """

    build: Callable[[Path, int, int], None]
    is_drawn: bool = True


def load_builders() -> Mapping[str, Builder]:
    """Return the built-in collections; none where the laboratory is left out."""
    if "collections" not in module_names(_DOOR):
        return {}
    builders: Mapping[str, Builder] = load_plugin(_DOOR, "collections", "BUILDERS", label="built-in collections")
    return builders
