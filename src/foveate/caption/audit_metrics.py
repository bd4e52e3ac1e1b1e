"""Metrics of an audit: per format and kind of data, each with a bootstrap interval over images.

Entities are the noun phrases of the region recipe (`foveate.caption.vesl.phrases`) without the determiner, in lower
case and without that recipe's limit of twenty. `phrase` is the whole phrase ("old harbor lighthouse"), `head` its last
word ("lighthouse"). `ner` are names instead ("Port Ellery"), as spaCy's recognizer finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foveate.caption.lengths import CLIP_SPECIALS, OtherTokenizer, count_clip_tokens, count_words
from foveate.caption.vesl.phrases import ExtractedPhrases, PhraseSettings
from foveate.caption.vesl.tagging import Extractor, open_extractor
from foveate.core.errors import choose
from foveate.core.results import Row, Value
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

NAMED = "ner"
KEYS = ("phrase", "head", NAMED)
# Entities are counted in whole captions: the region recipe's limit of 20 phrases must not cut long ones.
_ALL_PHRASES = 10_000
# Labels of spaCy for numbers and measures, which are no names.
_NUMBER_LABELS = frozenset(("CARDINAL", "ORDINAL", "PERCENT", "QUANTITY"))
# Removed from the front of a phrase. Narrower than what a phrase may start with: published counts were made so.
DETERMINERS = frozenset("a an the this that these those each every some any no another all both".split())


def extract_entity(phrase: str, key: str = "phrase") -> str:
    """Return the entity that a phrase names, "" where nothing is left of it.

    >>> extract_entity("The old harbor lighthouse"), extract_entity("a white lighthouse", "head")
    ('old harbor lighthouse', 'lighthouse')
    """
    tokens = phrase.lower().split()
    if tokens and tokens[0] in DETERMINERS:
        tokens = tokens[1:]
    return tokens[-1] if tokens and choose(key, KEYS, "entity key") == "head" else " ".join(tokens)


def collect_entities(phrases: Iterable[Sequence[str]], key: str = "phrase") -> set[str]:
    """Collect the different entities in the phrases of many captions."""
    return {entity for caption in phrases for phrase in caption if (entity := extract_entity(phrase, key))}


class NamedEntities:
    """Finds names of people, places, organizations, works and days with spaCy's recognizer.

    Raises:
        UserError: spaCy or its model is not installed.
    """

    name = "spacy_ner"

    def __init__(self) -> None:
        from foveate.caption.vesl.tagging import load_spacy

        # Load only the recognizer: the excluded parts take most of the time.
        self._model = load_spacy(exclude=("parser", "tagger", "lemmatizer", "attribute_ruler"))
        self.version = f"{self._model.meta['name']} {self._model.meta['version']}"

    def __call__(self, text: str) -> ExtractedPhrases:
        names = [entity.text for entity in self._model(text).ents if entity.label_ not in _NUMBER_LABELS]
        return ExtractedPhrases(names, [], len(names))


def open_entities() -> Extractor:
    """Open the extractor that finds the names in a caption."""
    return NamedEntities()


def open_phrases(tagger: str = "rules") -> Extractor:
    """Open the extractor of all noun phrases of a caption, by the published recipe.

    Raises:
        UserError: the tagger is unknown, or a package that it needs is not installed.
    """
    return open_extractor(PhraseSettings(tagger=tagger, recipe="paper", max_phrases=_ALL_PHRASES))


@dataclass
class JudgedCaptions:
    """Captions of one format over the sample, in the order of its images.

    Attributes:
        verdicts: one list per caption, as long as its assertions; None if there was no judge.
        shuffled: verdicts of the assertions of another image of the sample (control).
        model_verdicts, model_shuffled: the same by an image-text model, where `verdicts` are the ground truth's.
        scores: CLIPScore of each caption, None for images that could not be read; or None without a model.
        phrases: noun phrases of each caption.
    """

    format: str
    texts: list[str]
    assertions: list[list[str]]
    verdicts: list[list[str]] | None = None
    shuffled: list[list[str]] | None = None
    model_verdicts: list[list[str]] | None = None
    model_shuffled: list[list[str]] | None = None
    scores: list[float | None] | None = None
    phrases: list[Sequence[str]] = field(default_factory=list)


@dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics.

    Attributes:
        context: CLIP tokens that a text tower reads, special ones included.
        other: a second tokenizer whose tokens are counted as well.
        entity: key of `foveate.caption.audit_metrics.KEYS`.
        seed: of the bootstrap.
    """

    context: int
    other: OtherTokenizer | None = None
    entity: str = "phrase"
    seed: int = 0


def interval_to_json(interval: Interval) -> dict[str, Any]:
    """Convert an interval to JSON values."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def compute_metrics(
    captions: JudgedCaptions, settings: MetricSettings, *, alt: JudgedCaptions | None
) -> dict[str, Any]:
    """Compute all metrics of one format; docs/verbs/audit.md explains each.

    Args:
        alt: alt-texts of the same images, for shared entities; None if there are none.
    """
    # Add the start and end tokens, which take two places of the context.
    clip_lengths = [count_clip_tokens(text) + CLIP_SPECIALS for text in captions.texts]
    counts = [len(assertions) for assertions in captions.assertions]
    metrics: dict[str, Any] = {
        "format": captions.format,
        "n": len(captions.texts),
        "lengths": {
            "clip_with_specials": length_summary(clip_lengths),
            "words": length_summary([count_words(text) for text in captions.texts]),
        },
        "mean_tokens": interval_to_json(bootstrap_interval(clip_lengths, seed=settings.seed)),
        **_truncation(clip_lengths, settings.context),
        "ana_rule": interval_to_json(bootstrap_interval(counts, seed=settings.seed)),
        "style": style(captions.texts),
    }
    if settings.other is not None:
        lengths = [settings.other.count(text) for text in captions.texts]
        metrics["lengths"]["other"] = length_summary(lengths)
        metrics["other"] = {"mean_tokens": interval_to_json(bootstrap_interval(lengths, seed=settings.seed))}
        metrics["other"] |= _truncation(lengths, settings.context)
    if captions.verdicts is not None:
        metrics |= measure_accuracy(captions.verdicts, settings.seed)
        if captions.shuffled is not None:
            metrics["shuffled"] = measure_accuracy(captions.shuffled, settings.seed)
        if captions.model_verdicts is not None:
            metrics["judge"] = _agreement(captions.verdicts, captions.model_verdicts, settings.seed)
            if captions.shuffled is not None and captions.model_shuffled is not None:
                metrics["judge"]["shuffled"] = _agreement(captions.shuffled, captions.model_shuffled, settings.seed)
    scores = [score for score in captions.scores or () if score is not None]
    if scores:
        metrics["clip_score"] = interval_to_json(bootstrap_interval(scores, seed=settings.seed))
    # AltTexts are a format of the audit too; compared with themselves they share everything.
    if alt is not None and alt is not captions:
        metrics["entities"] = _entity_overlap(captions, alt, settings)
    return metrics


def _truncation(lengths: Sequence[int], context: int) -> dict[str, float]:
    """Share of captions longer than the context, and share of all tokens beyond it."""
    # Report both shares: many captions may be one token too long and lose next to nothing.
    lost = sum(max(0, length - context) for length in lengths)
    return {"share_above_context": share_above(lengths, context), "tokens_lost": float(lost / max(1, sum(lengths)))}


def measure_accuracy(verdicts: Sequence[Sequence[str]], seed: int) -> dict[str, Any]:
    """Shares of each verdict over all assertions, with intervals."""
    flat = [verdict for of_caption in verdicts for verdict in of_caption]
    # Assertions of one caption are not independent: the bootstrap draws whole images.
    owner = [index for index, of_caption in enumerate(verdicts) for _ in of_caption]
    metrics: dict[str, Any] = {"assertions": assertion_metrics(verdicts)}
    if not flat:
        return {**metrics, "accuracy": None, "contradicted": None, "unverifiable": None, "accuracy_decided": None}
    for name, verdict in (("accuracy", SUPPORTED), ("contradicted", CONTRADICTED), ("unverifiable", UNVERIFIABLE)):
        hits = [float(item == verdict) for item in flat]
        metrics[name] = interval_to_json(bootstrap_interval(hits, seed=seed, groups_N=owner))
    decided = [
        (float(item == SUPPORTED), image) for item, image in zip(flat, owner, strict=True) if item != UNVERIFIABLE
    ]
    hits, images = [hit for hit, _ in decided], [image for _, image in decided]
    interval = bootstrap_interval(hits, seed=seed, groups_N=images) if decided else None
    metrics["accuracy_decided"] = None if interval is None else interval_to_json(interval)
    return metrics


def _agreement(truth: Sequence[Sequence[str]], judged: Sequence[Sequence[str]], seed: int) -> dict[str, Any]:
    """Agreement of a model's verdicts with the ground truth; a share of nothing is None."""
    return {
        name: {**interval_to_json(bootstrap_interval(hits, seed=seed, groups_N=owner)), "n": len(hits)}
        if hits
        else None
        for name, (hits, owner) in agreement(truth, judged).items()
    }


def _entity_overlap(captions: JudgedCaptions, alt: JudgedCaptions, settings: MetricSettings) -> dict[str, Any]:
    """Entities shared with the alt-texts: over the whole sample as in the paper, and mean coverage per image."""
    # Over the whole sample as published: an entity counts once, whichever image names it.
    whole = overlap(collect_entities(captions.phrases, settings.entity), collect_entities(alt.phrases, settings.entity))
    coverage = []
    for of_caption, of_alt in zip(captions.phrases, alt.phrases, strict=True):
        alt_entities = collect_entities([of_alt], settings.entity)
        if alt_entities:  # an alt-text without entities leaves nothing to cover
            coverage.append(len(alt_entities & collect_entities([of_caption], settings.entity)) / len(alt_entities))
    per_image = interval_to_json(bootstrap_interval(coverage, seed=settings.seed)) if coverage else None
    return {**whole, "key": settings.entity, "own_image_coverage": per_image}


def shuffled_order(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a permutation without fixed points (for two or more)."""
    # One cycle through all indices: a plain permutation leaves one of them in its position on average.
    order = rng.permutation(count)
    result = np.empty(count, dtype=np.int64)
    result[order] = np.roll(order, 1)
    return result


def _other_share(metrics: Mapping[str, Any], key: str) -> Any:
    """Return a share by the second tokenizer, None if there is none."""
    return {"value": metrics["other"][key]} if "other" in metrics else None


def _judge_measure(key: str, control: bool) -> Callable[[Mapping[str, Any]], Any]:
    """Make a reader of a share of the model's agreement, of the captions or of the shuffled control."""

    def read_share(metrics: Mapping[str, Any]) -> Any:
        shares = metrics.get("judge") or {}
        return ((shares.get("shuffled") or {}) if control else shares).get(key)

    return read_share


# Key, question, reader of the value, unit ("" = a plain number): the rows of the audit's table, in order.
MEASURES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], Any], str], ...] = (
    ("mean_tokens", "Length: CLIP tokens, special ones included", lambda m: m["mean_tokens"], ""),
    ("above", "Longer than the text tower's context", lambda m: {"value": m["share_above_context"]}, "fraction"),
    ("lost", "Tokens lost beyond it", lambda m: {"value": m["tokens_lost"]}, "fraction"),
    ("other_tokens", "Length: tokens of --tokenizer", lambda m: (m.get("other") or {}).get("mean_tokens"), ""),
    (
        "other_above",
        "Longer than the context, by --tokenizer",
        lambda m: _other_share(m, "share_above_context"),
        "fraction",
    ),
    ("other_lost", "Tokens lost beyond it, by --tokenizer", lambda m: _other_share(m, "tokens_lost"), "fraction"),
    ("ana", "Assertions per caption (ANA by rules)", lambda m: m["ana_rule"], ""),
    ("accuracy", "Assertions that hold (of all)", lambda m: m.get("accuracy"), "fraction"),
    ("decided", "Assertions that hold (of those decided)", lambda m: m.get("accuracy_decided"), "fraction"),
    ("contradicted", "Assertions that are contradicted", lambda m: m.get("contradicted"), "fraction"),
    (
        "control",
        "Control: captions of other images, assertions that hold (of all)",
        lambda m: (m.get("shuffled") or {}).get("accuracy"),
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
    ("clip_score", "CLIPScore, by the model", lambda m: m.get("clip_score"), ""),
    (
        "coverage",
        "Entities of the image's AltText that the caption names",
        lambda m: (m.get("entities") or {}).get("own_image_coverage"),
        "fraction",
    ),
    ("duplicates", "Exact duplicates", lambda m: {"value": m["style"]["duplicate_share"]}, "fraction"),
    ("opening", "Share of the commonest opening", lambda m: {"value": m["style"]["opening_share"]}, "fraction"),
)


def build_table(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Build the rows for page and terminal: a question per measure, a row per kind of data, a column per format.

    Args:
        metrics: kind of data ("scenes", "images") -> metrics of each format.
    """
    rows = []
    for _, question, read_value, unit in MEASURES:
        for data, of_formats in metrics.items():
            values = {m["format"]: _to_value(read_value(m)) for m in of_formats if read_value(m) is not None}
            if values:
                rows.append(Row(question=question, data=data, n=of_formats[0]["n"], unit=unit, values=values))
    return rows


def _to_value(value: Mapping[str, Any]) -> Value:
    return Value(value=value["value"], low=value.get("low"), high=value.get("high"))
