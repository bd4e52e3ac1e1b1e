"""Metrics of captions: lengths, assertions, style, and overlap with another text. Pure numpy.

ANA, the average number of assertions, says how rich captions are; the share of assertions that hold says how much of it
is true. Neither means much without the other. Definitions: specification of captions, section 3.7; the paper is Lai et
al. 2024, "Revisit Large-Scale Image-Caption Data in Pre-training Multimodal Foundation Models".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from foveate.core.errors import UserError, choose

SUPPORTED, CONTRADICTED, UNVERIFIABLE = "supported", "contradicted", "unverifiable"
VERDICTS = (SUPPORTED, CONTRADICTED, UNVERIFIABLE)


def length_summary(lengths: Sequence[int] | np.ndarray) -> dict[str, float | int]:
    """Return n, mean, population standard deviation, median, 5th and 95th percentile (linear), min and max.

    Raises:
        UserError: when there are none.
    """
    values = np.asarray(lengths, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise UserError("a summary of lengths needs at least one caption")
    low, middle, high = (float(value) for value in np.percentile(values, (5, 50, 95)))
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "std_population": float(values.std()),
        "median": middle,
        "p05": low,
        "p95": high,
        "min": int(values.min()),
        "max": int(values.max()),
    }


def share_above(lengths: Sequence[int] | np.ndarray, limit: int) -> float:
    """Return the share of captions longer than `limit` tokens.

    Raises:
        UserError: when there are none.
    """
    if not len(lengths):
        raise UserError("a share of lengths needs at least one caption")
    return float((np.asarray(lengths) > limit).mean())


def assertion_metrics(verdicts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return ANA and the share of assertions that hold, from one list of verdicts per caption.

    ana counts captions without an assertion as 0, ana_nonempty leaves them out. accuracy_micro: supported of all
    assertions; accuracy_macro: mean over captions that have any. The `decided` variants leave out what is
    unverifiable; otherwise that counts as not supported. A number without anything to divide by is None.

    Raises:
        UserError: for an unknown verdict, or no captions.
    """
    if not verdicts:
        raise UserError("assertion metrics need at least one caption")
    for verdict in {verdict for caption in verdicts for verdict in caption}:
        choose(verdict, VERDICTS, "verdict")
    # A caption without assertions is a row of zeros: it counts in ana and has no accuracy.
    counts = np.array([[list(caption).count(verdict) for verdict in VERDICTS] for caption in verdicts], dtype=np.int64)
    supported, contradicted, unverifiable = counts.T
    all_N = counts.sum(1)
    decided_N = supported + contradicted
    return {
        "ana": float(all_N.mean()),
        "ana_nonempty": _ratio(all_N.sum(), (all_N > 0).sum()),
        "accuracy_micro": _ratio(supported.sum(), all_N.sum()),
        "accuracy_macro": _mean(supported, all_N),
        "accuracy_micro_decided": _ratio(supported.sum(), decided_N.sum()),
        "accuracy_macro_decided": _mean(supported, decided_N),
        "contradicted_rate": _ratio(contradicted.sum(), all_N.sum()),
        "unverifiable_rate": _ratio(unverifiable.sum(), all_N.sum()),
        "captions_with_contradiction": float((contradicted > 0).mean()),
        "n_captions": len(verdicts),
        "n_assertions": int(all_N.sum()),
        "n_empty": int((all_N == 0).sum()),
    }


def agreement(
    truth: Sequence[Sequence[str]], judged: Sequence[Sequence[str]]
) -> dict[str, tuple[list[float], list[int]]]:
    """Compare a judge of assertions with the truth: metric -> (hits, caption of each hit), to be averaged.

    supports_true, supports_false: assertions that hold, or do not, and that the judge supports; a judge that knows
    nothing supports both alike. denies_false, denies_true: those that it contradicts. right: the judge's verdict is the
    truth's, of the assertions that both decide. What the truth does not decide is left out.

    Args:
        truth, judged: one list of verdicts per caption, for the same assertions.
    """
    hits_by_metric: dict[str, tuple[list[float], list[int]]] = {
        name: ([], []) for name in ("supports_true", "supports_false", "denies_false", "denies_true", "right")
    }
    for number, (true_verdicts, judged_verdicts) in enumerate(zip(truth, judged, strict=True)):
        for true, verdict in zip(true_verdicts, judged_verdicts, strict=True):
            if true == UNVERIFIABLE:
                continue
            kind = "true" if true == SUPPORTED else "false"
            hits = {f"supports_{kind}": verdict == SUPPORTED, f"denies_{kind}": verdict == CONTRADICTED}
            if verdict != UNVERIFIABLE:
                hits["right"] = verdict == true
            for name, hit in hits.items():
                hits_by_metric[name][0].append(float(hit))
                hits_by_metric[name][1].append(number)
    return hits_by_metric


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _mean(part_N: np.ndarray, whole_N: np.ndarray) -> float | None:
    some = whole_N > 0
    return float((part_N[some] / whole_N[some]).mean()) if some.any() else None


def overlap(entities: Collection[str], reference: Collection[str]) -> dict[str, Any]:
    """Return the overlap of a set of entities with a reference set (that of the AltText).

    alt_coverage: share of the reference that is also here; jaccard: shared of both together. None where there is
    nothing to divide by.

    >>> overlap({"dog", "tree"}, {"dog", "port ellery"})["alt_coverage"]
    0.5
    """
    mine, other = set(entities), set(reference)
    shared = mine & other
    return {
        "total": len(mine),
        "alt_total": len(other),
        "only_format": len(mine - other),
        "shared": len(shared),
        "only_alt": len(other - mine),
        "alt_coverage": _ratio(len(shared), len(other)),
        "jaccard": _ratio(len(shared), len(mine | other)),
    }


def style(captions: Sequence[str]) -> dict[str, Any]:
    """Measure repetition: the most common opening of three words, distinct word pairs, exact duplicates.

    opening_share: share of the captions that begin with `opening`. distinct_2: different pairs of neighboring words
    over all pairs. duplicate_share: share of captions whose text is exactly that of an earlier one.

    Raises:
        UserError: when there are no captions.
    """
    if not captions:
        raise UserError("style needs at least one caption")
    tokens = [caption.casefold().split() for caption in captions]
    openings = Counter(" ".join(caption[:3]) for caption in tokens)
    opening, times = openings.most_common(1)[0]
    # Pairs within a caption: the seam between two captions is nobody's word choice.
    pairs = [pair for caption in tokens for pair in zip(caption[:-1], caption[1:], strict=True)]
    return {
        "opening": opening,
        "opening_share": times / len(captions),
        "distinct_2": _ratio(len(set(pairs)), len(pairs)),
        "duplicate_share": 1 - len(set(captions)) / len(captions),
    }


def normalize_counts(drawn: Mapping[str, int]) -> dict[str, float]:
    """Divide counts by their sum; all 0 if the sum is 0."""
    total = sum(drawn.values())
    return {name: count / total if total else 0.0 for name, count in drawn.items()}
