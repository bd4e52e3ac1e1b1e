"""First floor: one task protocol and one loop, evaluation, distribution, checkpoints, loader, mixtures, trackers.

Read in this order: task.py (what a system implements), loop.py (what trains it), accumulation.py (one step), order.py
and loader.py (which samples, and how they are loaded), optimizer.py, distributed.py, checkpoint.py.
"""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "open_labeled_images": "foveate.training.labeled_images",
    "report_to": "foveate.training.trackers",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
