"""First floor: from pixels and texts to tokens and embeddings, and from tokens to regions."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "ClipReader": "foveate.vision.video.reading",
    "RegionSampler": "foveate.vision.regions.sampler",
    "choose_frames": "foveate.vision.video.sampling",
    "read_clip": "foveate.vision.video.reading",
    "sample": "foveate.vision.video.sampling",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
