"""Video questions for models of images, without training (SlowFast-LLaVA)."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "SlowFast": "foveate.video.strategies",
    "aggregate_frames": "foveate.video.aggregate",
    "measure_occlusion": "foveate.video.occlusion",
    "parse_how": "foveate.video.strategies",
    "plan_video": "foveate.video.plan",
    "watch": "foveate.video.watching",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
