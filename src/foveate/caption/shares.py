"""`foveate mix`: what share of the texts each format will really get when a collection is trained with a mixture.

Images lack formats, so the shares are not the weights. What is counted here is the very draw of the loader
(`foveate.training.image_texts`): a run reports the same numbers after its first epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foveate.caption.lengths import CLIP_WINDOW, clip_tokens
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.metrics.captions import shares_of
from foveate.records.collection import Collection
from foveate.training.image_texts import ImageTexts, TextRule
from foveate.training.mixture import FORMATS, PRESETS, Missing, MixtureSampler

_MEASURED = 500  # texts of each kind whose length is measured


def parse_weights(text: str) -> dict[str, float]:
    """ "alt=.5,ssc=.5" as weights.

    Raises:
        UserError: when it is written otherwise.

    >>> parse_weights("alt=.5, ssc=1")
    {'alt': 0.5, 'ssc': 1.0}
    """
    weights: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        kind, equals, number = (one.strip() for one in part.partition("="))
        try:
            if not equals or not kind or kind in weights:
                raise ValueError
            weights[kind] = float(number)
        except ValueError:
            raise UserError(f"weights '{text}': write them as alt=.5,ssc=.5, each format once") from None
    if not weights:
        raise UserError("weights: give at least one, such as alt=.5,ssc=.5")
    return weights


def sampler_of(
    collection: Collection, *, preset: str | None, weights: Mapping[str, float] | None, missing: Missing
) -> MixtureSampler:
    """The sampler of a preset or of own weights; own weights may also name kinds that only this collection has.

    Raises:
        UserError: for an unknown preset or kind, or weights that cannot be.
    """
    if preset is not None:
        return MixtureSampler.preset(preset, missing=missing)
    assert weights is not None
    own = collection.table("captions")["kind"].unique().to_pylist()
    MixtureSampler(weights, sources=[*FORMATS, *(kind for kind in sorted(own) if kind not in FORMATS)])
    # The order of the sources decides the draw, and a recipe has only the weights as they are written.
    sources = list(weights) if missing != "alt" or "alt" in weights else [*weights, "alt"]
    return MixtureSampler(weights, sources=sources, missing=missing)


def check_window(sampler: MixtureSampler, context: int | None, *, allowed: bool) -> None:
    """Refuses dense captions for a text tower that reads only their opening.

    Raises:
        UserError: when dsc_plus has a weight, `context` is at most 77 tokens, and it is not allowed.
    """
    if sampler.weights.get("dsc_plus", 0) > 0 and context is not None and context <= CLIP_WINDOW and not allowed:
        raise UserError(
            f"dsc_plus captions are longer than the {context} tokens of the text tower: only their opening would be "
            "read; leave them out, name a tower that reads more (--context), or allow it with --allow-truncation"
        )


def shares(
    collection: Collection,
    sampler: MixtureSampler,
    *,
    split: str,
    seed: int = 0,
    prefer: Sequence[str] = (),
    context: int | None = None,
) -> dict[str, Any]:
    """What each kind gets: images that have it, expected share, and its share in the first epoch of this seed.

    Raises:
        UserError: for an unknown split or model, or when no image of the split has a text to draw.
    """
    texts = ImageTexts(collection, TextRule(sampler), prefer=prefer)
    every = collection.rows(split)
    rows = texts.rows_with_text(every)
    if not len(rows):
        kinds = ", ".join(texts.rule.drawable)
        there = ", ".join(sorted(collection.table("captions")["kind"].unique().to_pylist())) or "no texts"
        raise UserError(
            f"collection {collection.path}: no image of split '{split}' has a text of the kinds {kinds}; "
            f"it has {there}: write captions with foveate caption"
        )
    found = [texts.of(int(row)) for row in track(rows.tolist(), description="texts")]
    has = {kind: sum(kind in one for one in found) for kind in texts.kinds}
    drawn = texts.drawn_in_epoch(rows.tolist(), seed=seed)
    left_out = drawn.pop("", 0)
    expected = texts.expected(rows.tolist())
    first_epoch = shares_of(drawn)
    total = sum(sampler.weights.values())
    return {
        "kind": "mix",
        "collection": collection.name,
        "split": split,
        "images": len(every),
        "with_text": len(rows),
        "without_text": len(every) - len(rows),
        "missing": sampler.missing,
        "seed": seed,
        "context": context,
        "left_out_in_first_epoch": left_out,
        "formats": [
            {
                "format": kind,
                "weight": sampler.weights.get(kind, 0.0) / total,
                "images": has[kind],
                "expected_share": expected.get(kind, 0.0),
                "first_epoch": drawn.get(kind, 0),
                "first_epoch_share": first_epoch.get(kind, 0.0),
                "clip_tokens": _mean_length([one[kind] for one in found if kind in one], seed),
            }
            for kind in texts.kinds
        ],
        "override": f"data.captions={as_yaml(sampler.weights)}",
    }


def _mean_length(texts: Sequence[Sequence[str]], seed: int) -> float | None:
    """Mean CLIP tokens without the two special ones, over at most 500 images."""
    if not texts:
        return None
    chosen = seeds.generator("lengths", seed).permutation(len(texts))[:_MEASURED]
    return float(np.mean([clip_tokens(texts[index][0]) for index in chosen]))


def as_yaml(weights: Mapping[str, float]) -> str:
    """Weights as they stand in an override, those of 0 left out.

    >>> as_yaml({"alt": 0.5, "ssc": 0.5, "afc": 0.0})
    '{alt: 0.5, ssc: 0.5}'
    """
    return "{" + ", ".join(f"{kind}: {float(weight)!r}" for kind, weight in weights.items() if weight > 0) + "}"


def default_context(preset: str | None) -> int | None:
    """Tokens that a text tower reads when nobody says: 77 for CLIP and own weights, unknown for language models."""
    return CLIP_WINDOW if preset in (None, "clip") else None


def preset_names() -> list[str]:
    """The presets, in the order of the table in the docs."""
    return list(PRESETS)
