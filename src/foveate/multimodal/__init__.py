"""First floor, above vision and language: a sample of images and texts as one sequence of tokens."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "Answer": "foveate.multimodal.answers",
    "Mllm": "foveate.multimodal.ask",
    "open_foreign": "foveate.multimodal.foreign",
    "open_mllm": "foveate.multimodal.opening",
    "prompt_regions": "foveate.multimodal.pointing",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
