"""Shares of training texts that each caption format gets in a mixture (`foveate mix`).

Images lack formats, so the shares are not the weights. What is counted here is the very draw of the loader
(`foveate.training.image_texts`): a run reports the same numbers after its first epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

from foveate.caption.lengths import CLIP_WINDOW, count_clip_tokens
from foveate.caption.results import FormatShare, MixResult
from foveate.caption.settings import PreferredModels
from foveate.core import seeds
from foveate.core.errors import UserError
from foveate.core.progress import track
from foveate.core.recipes import Settings, parse_pairs
from foveate.metrics.captions import normalize_counts
from foveate.records.caption_formats import LONG_FORMATS
from foveate.records.captions import find_wrong_captioners
from foveate.records.collection import Collection
from foveate.training.image_texts import ImageTexts, TextRule
from foveate.training.mixture import FORMATS, PRESETS, Missing, MixtureSampler

_EXPECTED_WEIGHTS = "expected FORMAT=WEIGHT pairs such as alt=.5,ssc=.5"
_MAX_MEASURED = 500  # texts of each kind whose length is measured: enough for a mean, and quick


def parse_weights(text: str) -> dict[str, float]:
    """Parse weights such as "alt=.5,ssc=.5".

    Raises:
        UserError: the text is not of this form.

    >>> parse_weights("alt=.5, ssc=1")
    {'alt': 0.5, 'ssc': 1.0}
    """
    pairs = parse_pairs([part.strip() for part in text.split(",") if part.strip()], hint=_EXPECTED_WEIGHTS)
    if not pairs:
        raise UserError(f"--weights is empty; {_EXPECTED_WEIGHTS}")
    try:
        return {kind: float(number) for kind, number in pairs.items()}
    except ValueError:
        raise UserError(f"--weights '{text}': not all weights are numbers; {_EXPECTED_WEIGHTS}") from None


def _parse_weights(value: Any) -> Any:
    return parse_weights(value) if isinstance(value, str) else value


class MixSettings(Settings):
    """`foveate mix COLLECTION`: weights of the formats, and the training that they are for."""

    preset: str | None = Field(None, description=f"published weights: {', '.join(PRESETS)}")
    weights: Annotated[dict[str, float] | None, BeforeValidator(_parse_weights)] = Field(
        None, description="custom weights, at least 0, such as alt=.5,ssc=.5; any kind of caption of the collection"
    )
    missing: Missing = Field(
        "renormalize",
        description="what to do with the weight of formats that an image lacks: give it to the others, give it to alt, "
        "skip the image that often, or raise an error",
    )
    split: str = Field("train", description="training split")
    prefer: PreferredModels = ()
    context: int | None = Field(
        None,
        ge=8,
        description="context length of the text tower in tokens, special tokens included; 77 for clip and --weights",
    )
    allow_truncation: bool = Field(
        False, description="allow dsc_plus captions that a text tower of 77 tokens truncates"
    )
    recipe: str | None = Field(None, description="with --out: the pretrain recipe that gets the weights")
    to: Path | None = Field(None, description="write that recipe to this file, which must not exist")


def build_sampler(
    collection: Collection, *, preset: str | None, weights: Mapping[str, float] | None, missing: Missing
) -> MixtureSampler:
    """Build the sampler of a preset or of custom weights.

    Custom weights may also name kinds that only this collection has.

    Raises:
        UserError: the preset or a kind is unknown, or the weights are out of range.
    """
    if preset is not None:
        return MixtureSampler.preset(preset, missing=missing)
    assert weights is not None
    # Built once with all known kinds, only to check the names: a misspelled kind gets its nearest match.
    custom_kinds = collection.table("captions")["kind"].unique().to_pylist()
    MixtureSampler(weights, sources=[*FORMATS, *(kind for kind in sorted(custom_kinds) if kind not in FORMATS)])
    # The order of the sources decides the draw, and a recipe has only the weights as they are written.
    sources = list(weights) if missing != "alt" or "alt" in weights else [*weights, "alt"]
    return MixtureSampler(weights, sources=sources, missing=missing)


def check_window(sampler: MixtureSampler, context: int | None, *, allowed: bool) -> None:
    """Refuse dense captions for a text tower that reads only their opening.

    Raises:
        UserError: a format of `LONG_FORMATS` has a weight, `context` is at most 77 tokens, and it is not allowed.
    """
    long = next((kind for kind in LONG_FORMATS if sampler.weights.get(kind, 0) > 0), None)
    if long is not None and context is not None and context <= CLIP_WINDOW and not allowed:
        raise UserError(
            f"{long} captions are longer than the {context} tokens of the text tower: only their opening would be "
            "read; leave them out, name a tower that reads more (--context), or allow it with --allow-truncation"
        )


def measure_shares(
    collection: Collection,
    sampler: MixtureSampler,
    *,
    split: str,
    seed: int = 0,
    prefer: Sequence[str] = (),
    context: int | None = None,
) -> MixResult:
    """Measure the images, expected share and first-epoch share of each caption kind.

    Raises:
        UserError: the split or a model is unknown, or no image of the split has a text to draw.
    """
    texts = ImageTexts(collection, TextRule(sampler), prefer=prefer)
    split_rows = collection.rows(split)
    rows = texts.rows_with_text(split_rows)
    if not len(rows):
        kinds = ", ".join(texts.rule.drawable)
        present = ", ".join(sorted(collection.table("captions")["kind"].unique().to_pylist())) or "no texts"
        raise UserError(
            f"collection {collection.path}: no image of split '{split}' has a text of the kinds {kinds} (it has "
            f"{present}); write captions with foveate caption"
        )
    by_image = [texts.read_row(int(row)) for row in track(rows.tolist(), description="texts")]
    drawn = texts.count_drawn(rows.tolist(), seed=seed)
    # Draws that fell on a format which the image lacks are counted under no name.
    left_out = drawn.pop("", 0)
    expected = texts.compute_expected_shares(rows.tolist())
    first_epoch = normalize_counts(drawn)
    total = sum(sampler.weights.values())
    used = [kind for kind, weight in sampler.weights.items() if weight > 0]
    return MixResult(
        collection=collection.name,
        split=split,
        images=len(split_rows),
        with_text=len(rows),
        without_text=len(split_rows) - len(rows),
        missing=sampler.missing,
        seed=seed,
        context=context,
        left_out_in_first_epoch=left_out,
        formats=[
            FormatShare(
                format=kind,
                weight=sampler.weights.get(kind, 0.0) / total,
                images=sum(kind in image_texts for image_texts in by_image),
                expected_share=expected.get(kind, 0.0),
                first_epoch=drawn.get(kind, 0),
                first_epoch_share=first_epoch.get(kind, 0.0),
                clip_tokens=_mean_length([image_texts[kind] for image_texts in by_image if kind in image_texts], seed),
            )
            for kind in texts.kinds
        ],
        wrong_captioners=[verdict.describe() for verdict in find_wrong_captioners(collection, used)],
        override=f"data.captions={format_weights(sampler.weights)}",
    )


def _mean_length(texts: Sequence[Sequence[str]], seed: int) -> float | None:
    """Average the CLIP tokens, without the two special ones, over a sample of the images."""
    if not texts:
        return None
    # Drawn by the seed: the first texts of a collection may come from one source.
    sample = seeds.generator("lengths", seed).permutation(len(texts))[:_MAX_MEASURED]
    return float(np.mean([count_clip_tokens(texts[index][0]) for index in sample]))


def format_weights(weights: Mapping[str, float]) -> str:
    """Write weights as the value of an override, those of 0 left out.

    >>> format_weights({"alt": 0.5, "ssc": 0.5, "afc": 0.0})
    '{alt: 0.5, ssc: 0.5}'
    """
    return "{" + ", ".join(f"{kind}: {float(weight)!r}" for kind, weight in weights.items() if weight > 0) + "}"


def default_context(preset: str | None) -> int | None:
    """Return the default context: 77 for CLIP and custom weights, unknown for LLMs."""
    return CLIP_WINDOW if preset in (None, "clip") else None


def preset_names() -> list[str]:
    """List the presets, in the order of the table in the docs."""
    return list(PRESETS)
