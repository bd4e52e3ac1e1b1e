"""Readable names for keys of results: sources, splits, rules that answer 'where is it', losses."""

from __future__ import annotations

SOURCES = {
    "clipart": ("Open Clip Art", "real"),
    "emoji": ("Emoji", "real"),
    "scenes": ("Generated scenes", "generated"),
}
RULES = {
    "truth": "true box",
    "head": "grounding head",
    "candidates": "best candidate",
    "center": "center box",
    "random": "random box",
}
CONCEPTS = {"seen": "a concept it has seen", "unseen": "an unseen concept", "unseen kind": "an unseen kind"}
SLICES = {
    "seen": "concepts it has seen",
    "unseen": "unseen concepts, though it knows a relative",
    "unseen kind": "unseen kinds, of which it knows no relative",
    "": "all",
}
LOSSES = {
    "loss": "total loss",
    "loss_clip": "image–text loss",
    "loss_image_text": "image–text loss",
    "image_text": "image–text loss",
    "image": "image–text loss",
    "loss_image": "image–text loss",
    "loss_region": "region–text loss",
    "loss_region_text": "region–text loss",
    "region_text": "region–text loss",
    "region": "region–text loss",
    "loss_ground": "grounding loss",
    "loss_grounding": "grounding loss",
    "grounding": "grounding loss",
    "token_loss": "next-token loss",
    "alignment_loss": "alignment loss",
    "box_loss": "box loss",
    "token_accuracy": "share of next tokens that are right",
    "nearest_name": "share of regions whose nearest name is right",
    "iou": "overlap of boxes (IoU)",
    "learning_rate": "learning rate",
}
# Measures of the first screen, for a reader who does not know the field's names yet.
IN_SHORT = {
    "what is in this box, of all names: top-1": "of boxes get their right name, out of all names",
    "where is it (grounding head): IoU at least .5": "of phrases are found: half of the joint area is shared, or more",
    "which of the image's boxes: accuracy": "of phrases choose their own among the image's boxes",
}
SEARCHES = {"text": "by text", "image": "by image", "box": "by a box in an image"}
SPLITS = {"train": "training", "test": "testing", "validation": "validation", "val": "validation"}
STAGES = {
    "collection": "draw the collection",
    "size": "measure this machine",
    "features": "cache features",
    "clip": "train CLIP",
    "cloc": "train CLOC",
    "evaluate": "evaluate",
    "evaluation": "measure both",
    "questions": "search and ask",
    "video": "find a thing in a clip",
    "ask": "ask the shipped model",
    "mllm": "train a multimodal model briefly",
    "captions": "write captions and try them",
    "adaptation": "tune CLOC for a new question",
    "calibration": "calibrate a fine-tuned model",
    "federated": "cluster and map eight clients",
    "species": "recognize animals at unseen cameras",
    "report": "write the report",
}


def plain(key: str) -> str:
    """Return a key as words where no better name is known: `text_length` as `text length`."""
    return key.replace("_", " ").replace("-", " ").strip()


def source(key: str) -> str:
    return SOURCES.get(key, (plain(key), ""))[0]


def reality(key: str) -> str:
    """Return `real`, `generated`, or an empty string where it is unknown."""
    return SOURCES.get(key, ("", ""))[1]


def data(key: str) -> str:
    """Return the name of a set of images and whether it is real or generated."""
    if key not in SOURCES:
        return plain(key)
    name, kind = SOURCES[key]
    return f"{name} (real images)" if kind == "real" else name


def rule(key: str) -> str:
    return RULES.get(key, plain(key))


def slice_name(key: str) -> str:
    return SLICES.get(key, plain(key))


def concept_name(key: str) -> str:
    """Return the name of a concept of a slice, short enough for a caption."""
    return CONCEPTS.get(key, plain(key))


def loss(key: str) -> str:
    return LOSSES.get(key, plain(key))


def search(kind: str) -> str:
    return SEARCHES.get(kind, plain(kind))


def split(key: str) -> str:
    return SPLITS.get(key, plain(key))


def in_short(question: str) -> str:
    """Return the measure of a table's question in plain words, where there are some."""
    return IN_SHORT.get(question, question)


def stage(key: str) -> str:
    return STAGES.get(key, plain(key))
