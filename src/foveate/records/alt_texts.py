"""Select the alt-text of an image, and recognize uninformative alt-texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.records.record import Caption
from foveate.records.text import split_words

# Kinds of texts that came with an image, best first.
ALT_KINDS = ("alt", "title", "description", "caption", "keywords")
_FILE = re.compile(r"\S*\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|raw|pdf|html?|php|aspx?)", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.|data:)\S*", re.IGNORECASE)
_CAMERA = re.compile(
    r"(?:img|dsc[nf]?|p|pict|dscn|image|photo|screenshot|wp|vid|mvi|gopr)[\W_]*\d[\d\W_]*", re.IGNORECASE
)
_GENERIC = frozenset(
    "a an and by copy default download empty featured figure file for full gallery graphic header hero icon image "
    "images img large logo medium missing my n na no none null of photo photograph photos pic pics picture pictures "
    "placeholder preview product screen screenshot shot size small stock temp test text the this thumb thumbnail "
    "undefined unknown untitled upload view alt banner background jpg jpeg png gif webp title description "
    "caption".split()
)


def select_alt_text(captions: Sequence[Caption], kinds: Sequence[str] = ALT_KINDS) -> str:
    """Return the first text of the first of `kinds` that an image has, or ""."""
    for kind in kinds:
        for caption in captions:
            if caption.kind == kind and caption.text.strip():
                return caption.text
    return ""


def is_usable_alt_text(alt: str) -> bool:
    """Whether an alt-text is informative: not empty, no file name or address, not only generic words."""
    text = " ".join(alt.split())
    if not text or _FILE.fullmatch(text) or _ADDRESS.fullmatch(text) or _CAMERA.fullmatch(text):
        return False
    candidates = [word for word in split_words(text) if not word.isdigit()]
    return any(word not in _GENERIC and (len(word) > 1 or not word.isascii()) for word in candidates)
