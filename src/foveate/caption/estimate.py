"""What a run will take, before it is started: requests, tokens, cost. Labeled as an estimate, for it is one.

Tokens of text are counted as one per four letters of the prompt. An image counts one token per 28 x 28 pixels of its
prepared size, which is what Qwen's models take; others take fewer or many more. An answer counts what the format's
captions have on average: 15, 50, 150 and 60 CLIP tokens, with 15 more for the JSON around it, and a third more for
tokenizers other than CLIP's.
"""

from __future__ import annotations

import math
from typing import Any

from foveate.caption.work import Worklist

_ANSWERS = {"ssc": 15, "dsc": 50, "dsc_plus": 150, "afc": 60}
_JSON_TOKENS = 15
_LETTERS_PER_TOKEN = 4
_PATCH = 28


def estimate(listed: Worklist) -> dict[str, Any]:
    """Requests by format, tokens, and cost at the settings' prices."""
    settings = listed.asking.settings
    index = listed.collection.index
    tokens_in = tokens_out = 0.0
    for todo in listed:
        width, height = int(index["width"][todo.row]), int(index["height"][todo.row])
        scale = min(1.0, settings.longest_side / max(width, height))
        image = math.ceil(width * scale / _PATCH) * math.ceil(height * scale / _PATCH)
        for kind in todo.kinds:
            prompt, shown = listed.asking.prompt(kind, todo.alt)
            tokens_in += image + (len(prompt.text) + len(shown)) / _LETTERS_PER_TOKEN
            tokens_out += _JSON_TOKENS + _ANSWERS[kind] * 4 / 3
    return {
        "images": listed.images,
        "requests": listed.todo,
        "formats": {
            kind: {"in": one.total, "to ask": one.todo, "done": one.done, "final error earlier": one.final_errors}
            for kind, one in listed.counts.items()
        },
        "tokens_in": round(tokens_in),
        "tokens_out": round(tokens_out),
        "cost": (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6,
    }
