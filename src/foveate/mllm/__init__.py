"""Wing: multimodal language models after MM1.5, from recipe and stages to evaluation suites."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "DenseSettings": "foveate.mllm.dense",
    "LabelSettings": "foveate.mllm.labeling",
    "MllmRecipe": "foveate.mllm.recipe",
    "SuiteSettings": "foveate.mllm.settings",
    "box_loss": "foveate.mllm.task",
    "evaluate_suite": "foveate.mllm.evaluate:evaluate",
    "export_mllm": "foveate.mllm.export",
    "label_collection": "foveate.mllm.labeling",
    "load_suite": "foveate.mllm.evaluate",
    "plan_images": "foveate.mllm.plan",
    "prepare_dense": "foveate.mllm.dense",
    "resolve_options": "foveate.mllm.plan",
    "train_mllm": "foveate.mllm.train",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
