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


def loss(key: str) -> str:
    return LOSSES.get(key, plain(key))
