"""Captions of chosen formats for the images of a collection, and audits of them."""

from __future__ import annotations

from foveate.core.plugins import load_lazily

_LAZY = {
    "AuditSettings": "foveate.caption.settings",
    "PhraseSettings": "foveate.caption.vesl.phrases",
    "RegionLabelSettings": "foveate.caption.settings",
    "TargetSettings": "foveate.caption.settings",
    "apply_length_filter": "foveate.caption.lengths",
    "audit_captions": "foveate.caption.audit:audit",
    "caption_request": "foveate.caption.chat_requests",
    "count_clip_tokens": "foveate.caption.lengths",
    "find_content_flags": "foveate.caption.lengths",
    "find_detector": "foveate.caption.vesl.detection",
    "find_prompt": "foveate.caption.prompts",
    "label_regions": "foveate.caption.vesl.run",
    "open_extractor": "foveate.caption.vesl.tagging",
    "parse_caption": "foveate.caption.response_parser",
    "prepare_captions": "foveate.caption.targets.conversations",
    "split_assertions": "foveate.caption.splitter:split",
}

__all__ = list(_LAZY)

__getattr__, __dir__ = load_lazily(__name__, _LAZY)
