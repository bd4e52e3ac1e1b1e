"""Measure what fine-tuning damaged, as in the paper, and summarize it, and the harm of a gamma, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.results import CalibrateRow
from foveate.metrics.calibration import label_ranks, logit_gaps
from foveate.metrics.class_groups import ClassGroups
from foveate.metrics.nearest_mean import nearest_mean_ranks
from foveate.metrics.tradeoff import Curve, area, best_intervals, build_curve, select_gamma

# Features count as damaged when accuracy among the absent classes falls by more than this many points and by more than
# two standard errors; in the study the recommended recipe does not lower it (docs/studies/calibration.md).
DAMAGE_POINTS = 5.0
_UNCHANGED_POINTS = 1.0
# Enough for a plot; the exact curve has up to one point for each sample.
_CURVE_POINTS = 400


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for N labeled samples.

    Attributes:
        logits: [N, C].
        features: [N, D] before the head, or None.
        oracle: features [M, D] and labels [M] of training data of all classes, for the nearest class mean; or None.
    """

    logits: NDArray[Any]
    features: NDArray[Any] | None = None
    oracle: tuple[NDArray[Any], NDArray[Any]] | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Rows of the table, the curves by model, gap statistics, and the sentence.

    Attributes:
        verdict: "damaged", "level", "nothing" or "unknown".
        harm: why the gamma that is used should not be; "" where it does no harm, or nothing can be measured.
    """

    rows: tuple[CalibrateRow, ...]
    curves: dict[str, Curve]
    gaps: dict[str, Any]
    verdict: str
    sentence: str
    harm: str = ""


def diagnose(
    after: Outputs,
    labels: NDArray[Any],
    groups: ClassGroups,
    *,
    before: Outputs | None = None,
    gammas: dict[str, float] | None = None,
    used: str = "",
) -> Diagnosis:
    """Build the table of a fine-tuned model on labeled test data.

    Args:
        after: outputs of the fine-tuned model.
        labels: [N], class numbers.
        groups: seen, absent and other classes.
        before: outputs of the pre-trained model on the same samples.
        gammas: estimates by title; each becomes a row.
        used: title of the estimate that is used; the last one by default.

    Raises:
        UserError: see `foveate.metrics.calibration.label_ranks`.
    """
    estimates = gammas or {}
    rows, curves = [], {}
    for key, title, outputs in (("before", "pre-trained", before), ("after", "fine-tuned", after)):
        if outputs is not None:
            row, curve = _model_row(key, title, outputs, labels, groups)
            rows.append(row)
            if curve is not None:
                curves[key] = curve
    for title, gamma in estimates.items():
        rows.append(_gamma_row(_key_of(title), f"+ {title}", gamma, after, labels, groups))
    curve = curves.get("after")
    gaps = {}
    if curve is not None:
        gaps = logit_gaps(after.logits, labels, groups).statistics()
        if curve.absent_count and curve.seen_count:
            # The best gamma for these very samples: an upper bound, never an estimate.
            star = select_gamma(curve)
            assert star is not None
            rows.append(_gamma_row("star", "+ gamma* (peeks)", star.gamma, after, labels, groups, peeks=True))
    used = used or next(reversed(estimates), "")
    verdict, sentence = _verdict(rows, curve, estimates, used)
    if verdict in ("damaged", "nothing"):
        sentence = f"{_describe_repair({row.key: row for row in rows}, estimates, used)}. {sentence}"
    return Diagnosis(tuple(rows), curves, gaps, verdict, sentence, _harm(rows, estimates, used))


def find_better(
    outputs: Outputs, labels: NDArray[Any], groups: ClassGroups, *, gammas: Mapping[str, float], used: str
) -> tuple[str, str]:
    """Return the estimate that gets most samples right, if beyond chance more than `used`, and the reason.

    Args:
        gammas: estimates by title. used: one of them, which is returned with "" where no other is better.
    """
    right_of = {
        title: label_ranks(outputs.logits, labels, groups, gamma=gamma).all_N == 0 for title, gamma in gammas.items()
    }
    best = max(right_of, key=lambda title: right_of[title].mean())
    # Paired: the same samples under two gammas. Two standard errors, as of damage.
    difference_N = right_of[best].astype(float) - right_of[used]
    if difference_N.mean() <= 2 * difference_N.std() / max(len(difference_N), 1) ** 0.5:
        return used, ""
    shares = {title: 100 * right_of[title].mean() for title in (best, used)}
    return best, (
        f"on these {len(labels):,} labeled samples it gets {shares[best]:.1f} % of all right, {used} "
        f"{shares[used]:.1f} %, which is more than chance"
    )


def _key_of(title: str) -> str:
    """Return the key of an estimate's row: "best gap" has the row best_gap."""
    return title.casefold().replace(" ", "_")


def _model_row(
    key: str, title: str, outputs: Outputs, labels: NDArray[Any], groups: ClassGroups
) -> tuple[CalibrateRow, Curve | None]:
    ranks = label_ranks(outputs.logits, labels, groups, what=f"logits of the {title} model")
    curve = build_curve(logit_gaps(outputs.logits, labels, groups)) if len(groups.absent) else None
    both = curve is not None and curve.seen_count and curve.absent_count
    ncm: dict[str, float | None] = {}
    if outputs.features is not None and outputs.oracle is not None:
        ncm = nearest_mean_ranks(outputs.features, labels, *outputs.oracle, groups).accuracies()
    value = area(curve.seen(), curve.absent()) if curve is not None and both else None
    return CalibrateRow(
        key=key, title=title, accuracies=ranks.accuracies(), top5=ranks.accuracies(5), ausuc=value, ncm=ncm
    ), curve


def _gamma_row(
    key: str,
    title: str,
    gamma: float,
    outputs: Outputs,
    labels: NDArray[Any],
    groups: ClassGroups,
    *,
    peeks: bool = False,
) -> CalibrateRow:
    ranks = label_ranks(outputs.logits, labels, groups, gamma=gamma)
    return CalibrateRow(
        key=key, title=title, gamma=gamma, accuracies=ranks.accuracies(), top5=ranks.accuracies(5), peeks=peeks
    )


def _harm(rows: list[CalibrateRow], estimates: dict[str, float], used: str) -> str:
    """Return why the estimate `used` should not be: it lowers Y/Y, or moves the absent classes the wrong way."""
    by_key = {row.key: row for row in rows}
    star, row = by_key.get("star"), by_key.get(_key_of(used))
    # Without samples of both groups every gamma looks harmful, or none does.
    if star is None or row is None:
        return ""
    before, after = (by_key[key].accuracies["Y/Y"] or 0.0 for key in ("after", row.key))
    gamma, level = row.gamma or 0.0, star.gamma or 0.0
    if after < before:
        problem = f"lowers Y/Y, the accuracy over all samples, from {before:.1f} % to {after:.1f} %"
    elif gamma <= 0 < level and (star.accuracies["Y/Y"] or 0.0) > before:
        problem = f"is not above 0, though the level of the absent classes is {level:.1f} too low"
    else:
        return ""
    reached = {title: by_key[_key_of(title)].accuracies["Y/Y"] or 0.0 for title in estimates}
    better = max(reached, key=lambda title: reached[title])
    hint = "; without --method every estimate is measured" if len(estimates) == 1 else ""
    if reached[better] > before and estimates[better] > 0:
        gain = f"{better} ({estimates[better]:+.2f}) takes it to {reached[better]:.1f} %"
        hint = f"; {gain}: choose --method {_key_of(better)}"
    return f"Harm: gamma {gamma:+.2f} by {used} {problem}{hint}."


def _verdict(rows: list[CalibrateRow], curve: Curve | None, estimates: dict[str, float], used: str) -> tuple[str, str]:
    by_key = {row.key: row for row in rows}
    after, before, star = by_key["after"], by_key.get("before"), by_key.get("star")
    now = after.accuracies["U/U"]
    if curve is None or now is None or star is None:
        listed = "; ".join(f"{title} estimates {gamma:+.2f}" for title, gamma in estimates.items())
        return "unknown", (
            "The samples lack seen or absent classes, so what was damaged cannot be measured"
            + (f" (gamma: {listed})." if listed else ".")
        )
    if before is not None:
        count = curve.absent_count
        for measure, was, became in (
            ("accuracy of the absent classes among themselves (U/U)", before.accuracies["U/U"], now),
            ("that of the nearest class mean (NCM U/U)", before.ncm.get("U/U"), after.ncm.get("U/U")),
        ):
            if was is not None and became is not None and _fell(was, became, count):
                return "damaged", (
                    f"Features damaged: {measure} fell from {was:.1f} % to {became:.1f} %. No gamma repairs that; "
                    "fine-tune again with a smaller learning rate for the backbone (a hot uniform rate does this)."
                )
    gain = (star.accuracies["Y/Y"] or 0) - (after.accuracies["Y/Y"] or 0)
    # If 0 lies in an interval of best gammas, doing nothing is already among the best choices.
    _, intervals = best_intervals(curve)
    if any(low < 0 < high for low, high in intervals) or gain < 0.5:
        return "nothing", (
            f"Nothing to repair: the best gamma on these samples would gain {gain:.1f} points of overall accuracy."
        )
    return "level", f"{_describe_repair(by_key, estimates, used)}. {_describe_features(before, now, star)}."


def _describe_repair(by_key: dict[str, CalibrateRow], estimates: dict[str, float], used: str) -> str:
    """Say what fine-tuning broke and what the estimate `used` gives back, without the columns' short names."""
    before, after = by_key.get("before"), by_key["after"].accuracies
    was = "" if before is None else f"{before.accuracies['U/Y']:.1f} % before fine-tuning, "
    absent, seen = f"Absent classes: {was}{after['U/Y']:.1f} % right after it", f"seen classes: {after['S/Y']:.1f} %"
    if before is None:
        absent = f"Absent classes: {after['U/Y']:.1f} % right"
    if not used:
        return f"{absent}; {seen}"
    shifted = by_key[_key_of(used)].accuracies
    text = (
        f"{absent}, {shifted['U/Y']:.1f} % with gamma {estimates[used]:+.2f} ({used}); {seen}, {shifted['S/Y']:.1f} %"
    )
    reached = {title: by_key[_key_of(title)].accuracies["Y/Y"] or 0.0 for title in estimates}
    best = max(reached, key=lambda title: reached[title])
    if reached[best] > reached[used]:
        # Within chance; beyond it, `find_better` has chosen it.
        text += f". On these samples {best} gets {reached[best]:.1f} % of all right, {used} {reached[used]:.1f} %"
    return text


def _describe_features(before: CalibrateRow | None, now: float, star: CalibrateRow) -> str:
    """Say whether the features suffered, and how far off the absent classes' level is."""
    level = star.gamma or 0.0
    text = f"the level of the absent classes is {abs(level):.1f} {'too low' if level > 0 else 'too high'}"
    if before is None:
        judged = f"Among themselves {now:.1f} % of them are right (whether the features suffered needs --before)"
        return f"{judged}: {text}"
    was = before.accuracies["U/U"] or 0.0
    judged = "Features are fine" if now > was - _UNCHANGED_POINTS else "No damage to the features beyond chance shows"
    return f"{judged} (among themselves {was:.1f} % of the absent were right before, {now:.1f} % after): {text}"


def _fell(was: float, became: float, count: int) -> bool:
    """Whether an accuracy fell by more than DAMAGE_POINTS and two standard errors of the difference of two shares."""
    # In percent squared; the two shares are taken as independent, which overstates the error on the same images.
    variance = sum(share * (100 - share) for share in (was, became)) / max(count, 1)
    return was - became > max(DAMAGE_POINTS, 2 * variance**0.5)


def curve_points(curve: Curve) -> list[list[float]]:
    """Return [gamma, S/Y, U/Y, Y/Y] in percent along the curve, thinned out to some hundred points for a page."""
    size = len(curve.gammas)
    # Evenly along the curve: break points are dense where many samples change sides.
    indices = np.unique(np.linspace(0, size - 1, min(size, _CURVE_POINTS)).round().astype(int))
    table = np.stack([curve.gammas, curve.seen(), curve.absent(), curve.overall()], axis=1)[indices]
    return np.round(table, 6).tolist()
