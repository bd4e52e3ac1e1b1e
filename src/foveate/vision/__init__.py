"""First floor: from pixels and texts to tokens and embeddings, and from tokens to regions."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "ClipReader": "foveate.vision.video.reading",
    "OpenClipImageEncoder": "foveate.vision.open_clip.towers",
    "RegionSampler": "foveate.vision.regions.sampler",
    "choose_frames": "foveate.vision.video.sampling",
    "open_classifier": "foveate.vision.classifier",
    "read_clip": "foveate.vision.video.reading",
    "read_image": "foveate.vision.preprocess",
    "sample": "foveate.vision.video.sampling",
    "save_classifier": "foveate.vision.classifier",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
