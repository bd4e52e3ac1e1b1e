"""Ground floor: typed recipes, errors for users, atomic files, run folders, seeds and progress. No torch."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "UserError": "foveate.core.errors",
    "load_recipe": "foveate.core.recipes:load",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
