"""The numbers of an audit: per format and kind of image, each with a bootstrap interval over images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.caption.entities import entities
from foveate.caption.lengths import CLIP_SPECIALS, OtherTokenizer, clip_tokens, words
from foveate.metrics.captions import (
    CONTRADICTED,
    SUPPORTED,
    UNVERIFIABLE,
    agreement,
    assertion_metrics,
    length_summary,
    overlap,
    share_above,
    style,
)
from foveate.metrics.intervals import Interval, bootstrap_interval

Phrases = Callable[[str], Sequence[str]]


@dataclass
class Said:
    """The captions of one format over the sample, in the order of its images.

    verdicts: per caption, as many as assertions; None where nobody judged. shuffled: the verdicts of the caption of
    another image of the sample. model, model_shuffled: what an image-text model says of both, where `verdicts` are
    the truth's. scores: CLIPScore of each caption, None for images that could not be read; or None where no model
    was asked.
    """

    kind: str
    texts: list[str]
    assertions: list[list[str]]
    verdicts: list[list[str]] | None = None
    shuffled: list[list[str]] | None = None
    model: list[list[str]] | None = None
    model_shuffled: list[list[str]] | None = None
    scores: list[float | None] | None = None
    phrases: list[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Units:
    """What is counted: CLIP's tokens against `context` (special ones included), and another tokenizer's, if any."""

    context: int
    other: OtherTokenizer | None = None
    entity: str = "phrase"
    seed: int = 0


def of_interval(found: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {"value": found.value, "low": found.low, "high": found.high}


def numbers(said: Said, units: Units, *, alt: Said | None) -> dict[str, Any]:
    """All numbers of one format; see docs/verbs/audit.md for what each means.

    Args:
        alt: the alt-texts of the same images, for what they share; None where there are none.
    """
    clip = [clip_tokens(text) + CLIP_SPECIALS for text in said.texts]
    counts = [len(one) for one in said.assertions]
    found: dict[str, Any] = {
        "format": said.kind,
        "n": len(said.texts),
        "lengths": {
            "clip_with_specials": length_summary(clip),
            "words": length_summary([words(t) for t in said.texts]),
        },
        "mean_tokens": of_interval(bootstrap_interval(clip, seed=units.seed)),
        **_truncation(clip, units.context),
        "ana_rule": of_interval(bootstrap_interval(counts, seed=units.seed)),
        "style": style(said.texts),
    }
    if units.other is not None:
        other = [units.other.count(text) for text in said.texts]
        found["lengths"]["other"] = length_summary(other)
        found["other"] = {"mean_tokens": of_interval(bootstrap_interval(other, seed=units.seed))}
        found["other"] |= _truncation(other, units.context)
    if said.verdicts is not None:
        found |= _holds(said.verdicts, units.seed)
        if said.shuffled is not None:
            found["shuffled"] = _holds(said.shuffled, units.seed)
        if said.model is not None:
            found["judge"] = _agreement(said.verdicts, said.model, units.seed)
            if said.shuffled is not None and said.model_shuffled is not None:
                found["judge"]["shuffled"] = _agreement(said.shuffled, said.model_shuffled, units.seed)
    scores = [score for score in said.scores or () if score is not None]
    if scores:
        found["clip_score"] = of_interval(bootstrap_interval(scores, seed=units.seed))
    if alt is not None and alt is not said:
        found["entities"] = _shared(said, alt, units)
    return found


def _truncation(lengths: Sequence[int], context: int) -> dict[str, float]:
    """Share of the captions longer than the context, and of all tokens that lie beyond it."""
    lost = sum(max(0, length - context) for length in lengths)
    return {"share_above_context": share_above(lengths, context), "tokens_lost": float(lost / max(1, sum(lengths)))}


def _holds(verdicts: Sequence[Sequence[str]], seed: int) -> dict[str, Any]:
    """Shares of assertions that hold, with intervals that draw whole images."""
    flat = [verdict for one in verdicts for verdict in one]
    owner = [number for number, one in enumerate(verdicts) for _ in one]
    found: dict[str, Any] = {"assertions": assertion_metrics(verdicts)}
    if not flat:
        return {**found, "accuracy": None, "contradicted": None, "unverifiable": None, "accuracy_decided": None}
    for name, verdict in (("accuracy", SUPPORTED), ("contradicted", CONTRADICTED), ("unverifiable", UNVERIFIABLE)):
        hits = [float(one == verdict) for one in flat]
        found[name] = of_interval(bootstrap_interval(hits, seed=seed, groups_N=owner))
    decided = [(float(one == SUPPORTED), who) for one, who in zip(flat, owner, strict=True) if one != UNVERIFIABLE]
    found["accuracy_decided"] = (
        of_interval(bootstrap_interval([hit for hit, _ in decided], seed=seed, groups_N=[who for _, who in decided]))
        if decided
        else None
    )
    return found


def _agreement(truth: Sequence[Sequence[str]], judged: Sequence[Sequence[str]], seed: int) -> dict[str, Any]:
    """How a model's verdicts agree with the truth's; shares of nothing are None."""
    return {
        name: {**of_interval(bootstrap_interval(hits, seed=seed, groups_N=owner)), "n": len(hits)} if hits else None
        for name, (hits, owner) in agreement(truth, judged).items()
    }


def _shared(said: Said, alt: Said, units: Units) -> dict[str, Any]:
    """Entities over the whole sample as the paper counts them, and the mean share of an image's own alt entities."""
    whole = overlap(entities(said.phrases, units.entity), entities(alt.phrases, units.entity))
    own = []
    for mine, theirs in zip(said.phrases, alt.phrases, strict=True):
        wanted = entities([theirs], units.entity)
        if wanted:
            own.append(len(wanted & entities([mine], units.entity)) / len(wanted))
    per_image = of_interval(bootstrap_interval(own, seed=units.seed)) if own else None
    return {**whole, "key": units.entity, "own_image_coverage": per_image}


def shuffled_order(count: int, rng: np.random.Generator) -> np.ndarray:
    """An order in which no one keeps its place (for two or more)."""
    order = rng.permutation(count)
    result = np.empty(count, dtype=np.int64)
    result[order] = np.roll(order, 1)
    return result


def _other(numbers: Mapping[str, Any], key: str) -> Any:
    """A share that the other tokenizer gives, if there is one."""
    return {"value": numbers["other"][key]} if "other" in numbers else None


def _judge_measure(key: str, control: bool) -> Callable[[Mapping[str, Any]], Any]:
    """Reads a share of a model's agreement with the truth, of the captions or of the control."""

    def value_of(numbers: Mapping[str, Any]) -> Any:
        found = numbers.get("judge") or {}
        return ((found.get("shuffled") or {}) if control else found).get(key)

    return value_of


MEASURES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], Any], str], ...] = (
    ("mean_tokens", "Length: CLIP tokens, special ones included", lambda n: n["mean_tokens"], ""),
    ("above", "Longer than the text tower's context", lambda n: {"value": n["share_above_context"]}, "fraction"),
    ("lost", "Tokens lost beyond it", lambda n: {"value": n["tokens_lost"]}, "fraction"),
    ("other_tokens", "Length: tokens of --tokenizer", lambda n: (n.get("other") or {}).get("mean_tokens"), ""),
    ("other_above", "Longer than the context, by --tokenizer", lambda n: _other(n, "share_above_context"), "fraction"),
    ("other_lost", "Tokens lost beyond it, by --tokenizer", lambda n: _other(n, "tokens_lost"), "fraction"),
    ("ana", "Assertions per caption (ANA by rules)", lambda n: n["ana_rule"], ""),
    ("accuracy", "Assertions that hold (of all)", lambda n: n.get("accuracy"), "fraction"),
    ("decided", "Assertions that hold (of those decided)", lambda n: n.get("accuracy_decided"), "fraction"),
    ("contradicted", "Assertions that are contradicted", lambda n: n.get("contradicted"), "fraction"),
    (
        "control",
        "Control: captions of other images, assertions that hold (of all)",
        lambda n: (n.get("shuffled") or {}).get("accuracy"),
        "fraction",
    ),
    *(
        (f"judge_{key}", f"The model as judge: {question}", _judge_measure(key, control), "fraction")
        for key, question, control in (
            ("supports_true", "supports what holds", False),
            ("supports_false", "supports what does not hold", False),
            ("supports_false", "supports what does not hold, captions of other images", True),
            ("right", "is right where it decides", False),
        )
    ),
    ("clip_score", "CLIPScore, by the model", lambda n: n.get("clip_score"), ""),
    (
        "coverage",
        "Entities of the image's AltText that the caption names",
        lambda n: (n.get("entities") or {}).get("own_image_coverage"),
        "fraction",
    ),
    ("duplicates", "Exact duplicates", lambda n: {"value": n["style"]["duplicate_share"]}, "fraction"),
    ("opening", "Share of the commonest opening", lambda n: {"value": n["style"]["opening_share"]}, "fraction"),
)


def table(per_format: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows for the page and the terminal: a question per measure, a row per kind of images, a column per format.

    Args:
        per_format: kind of images ("scenes", "images") -> numbers of each format.
    """
    rows = []
    for _, question, value_of, unit in MEASURES:
        for data, found in per_format.items():
            values = {one["format"]: _full(value_of(one)) for one in found if value_of(one) is not None}
            if values:
                rows.append({"question": question, "data": data, "n": found[0]["n"], "unit": unit, "values": values})
    return rows


def _full(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": value["value"], "low": value.get("low"), "high": value.get("high")}
