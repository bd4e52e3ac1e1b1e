"""Search: an index of the embeddings of a collection, what is asked of it, and what it answers; phrases in one image.

The package itself can be called, as `foveate.search(index, "a red boat")`.
"""

from __future__ import annotations

from foveate.core.plugins import load_lazily, make_callable

_LAZY = {
    "Hit": "foveate.search.search",
    "Location": "foveate.search.api",
    "Model": "foveate.search.api",
    "SearchIndex": "foveate.search.api",
    "open_index": "foveate.search.api",
    "open_model": "foveate.search.api",
}

__all__ = list(_LAZY)

make_callable(__name__, "foveate.search.api", "search")
__getattr__, __dir__ = load_lazily(__name__, _LAZY)
