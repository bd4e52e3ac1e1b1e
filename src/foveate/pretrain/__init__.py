"""Contrastive pretraining of an image encoder that can be asked about boxes and phrases (CLIP and CLOC)."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "EvaluateSettings": "foveate.pretrain.settings",
    "PretrainRecipe": "foveate.pretrain.recipe",
    "build_model": "foveate.pretrain.train",
    "clip_loss": "foveate.pretrain.losses",
    "duplicate_mask": "foveate.pretrain.losses",
    "embed_collection": "foveate.pretrain.embed",
    "evaluate_model": "foveate.pretrain.evaluate:evaluate",
    "export_model": "foveate.pretrain.export:export",
    "grounding_loss": "foveate.pretrain.losses",
    "pretrain": "foveate.pretrain.train",
    "read_regions": "foveate.pretrain.region_files",
    "region_text_loss": "foveate.pretrain.losses",
    "sigmoid_loss": "foveate.pretrain.losses",
    "sigmoid_region_loss": "foveate.pretrain.losses",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
