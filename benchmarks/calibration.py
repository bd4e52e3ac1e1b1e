"""The exact S/U curve by one sort against the straightforward grid over gamma, in one run, on the same logits.

    python -m benchmarks.calibration --out bench

The straightforward way adds each gamma to all logits of the absent classes, takes the argmax and counts, as the
public code does. Logits are multiples of 1/64 here, so that a grid of that step, shifted by half of it, has a gamma in
every interval of the curve: then both give the same area, which is checked to 1e-9. The grid is timed on --timed gammas
spread over it, and the whole grid's time is that many times longer; the area over a whole grid is compared on
--compare-samples of the samples. --whole times and compares the whole grid instead. Ratios are of processor time.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import Timing, compare, publish, ratio
from foveate.metrics.calibration import logit_gaps
from foveate.metrics.class_groups import ClassGroups
from foveate.metrics.tradeoff import Curve, area, build_curve, su_curve

STEP = 1 / 64


def problem(samples: int, classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, ClassGroups]:
    """Logits float32, multiples of STEP, with the true class raised and the absent half lowered; labels; groups."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, samples)
    groups = ClassGroups.of(np.arange(classes // 2), classes=classes)
    logits = np.empty((samples, classes), np.float32)
    for start in range(0, samples, 4096):
        part = logits[start : start + 4096]
        random.standard_normal(out=part, dtype=np.float32)
        part[np.arange(len(part)), labels[start : start + 4096]] += 3
        part[:, groups.absent] -= 2
        np.round(part / STEP, out=part)
        part *= STEP
    return logits, labels, groups


def grid_of(curve: Curve) -> np.ndarray:
    """Gammas half a step beside every multiple of the step, from below the first break to above the last."""
    first, last = curve.breaks_K[0] - STEP / 2, curve.breaks_K[-1] + STEP / 2
    return np.arange(first, last + STEP / 4, STEP)


def straightforward(
    logits: np.ndarray, labels: np.ndarray, groups: ClassGroups, gammas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of seen and absent classes in percent for each gamma: shift, argmax, count."""
    is_seen, is_absent = np.isin(labels, groups.seen), np.isin(labels, groups.absent)
    mask_C = np.zeros(groups.classes, np.float32)
    mask_C[groups.absent] = 1
    seen, absent = [], []
    for gamma in gammas:
        right = (logits + np.float32(gamma) * mask_C).argmax(1) == labels
        seen.append(100 * right[is_seen].mean())
        absent.append(100 * right[is_absent].mean())
    return np.array(seen), np.array(absent)


def exact(logits: np.ndarray, labels: np.ndarray, groups: ClassGroups) -> Curve:
    """Ours, from the logits: check, two maxima, one sort."""
    return su_curve(logits, labels, groups)


def run(out: Path, *, samples: int, classes: int, timed: int, compared: int, repeats: int, whole: bool) -> None:
    logits, labels, groups = problem(samples, classes)
    gaps = logit_gaps(logits, labels, groups)
    curve = build_curve(gaps)
    grid = grid_of(curve)
    chosen = grid if whole else grid[np.linspace(0, len(grid) - 1, min(timed, len(grid))).round().astype(int)]
    timings = compare(
        {
            "foveate exact": partial(exact, logits, labels, groups),
            "the sort alone": partial(build_curve, gaps),
            "grid, timed gammas": partial(straightforward, logits, labels, groups, chosen),
        },
        repeats=repeats,
        warmup=0,
    )
    factor = len(grid) / len(chosen)
    part = timings["grid, timed gammas"]
    scaled = (tuple(factor * seconds for seconds in column) for column in (part.seconds, part.processor))
    timings["whole grid"] = Timing(*scaled)
    rows = np.arange(samples) if whole else np.random.default_rng(1).permutation(samples)[:compared]
    inner = su_curve(logits[rows], labels[rows], groups)
    by_grid = area(*straightforward(logits[rows], labels[rows], groups, grid_of(inner)))
    ours = area(inner.seen(), inner.absent())
    difference = abs(by_grid - ours)
    assert difference < 1e-9, f"areas differ by {difference}"
    at = curve.at(chosen)
    by_gamma = straightforward(logits, labels, groups, chosen)
    assert np.abs(curve.seen()[at] - by_gamma[0]).max() < 1e-9, "accuracy of seen classes differs"
    assert np.abs(curve.absent()[at] - by_gamma[1]).max() < 1e-9, "accuracy of absent classes differs"
    extra = {
        "samples": samples,
        "classes": classes,
        "grid_gammas": len(grid),
        "timed_gammas": len(chosen),
        "intervals": len(curve.gammas),
        "compared_samples": len(rows),
        "area_difference": difference,
    }
    pairs = {"exact over whole grid": ratio(timings, "foveate exact", "whole grid", processor=True)}
    publish("calibration", timings, out=out, ratios=pairs, items=samples, unit="samples", extra=extra)
    print(f"{len(grid)} gammas cover {len(curve.gammas)} intervals; areas differ by {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the JSON file")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--timed", type=int, default=8, help="gammas of the grid that are timed")
    parser.add_argument("--compare-samples", type=int, default=2_000, help="samples of the compared area")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="time and compare the whole grid")
    arguments = parser.parse_args()
    with threadpool_limits(1):
        run(
            arguments.out,
            samples=arguments.samples,
            classes=arguments.classes,
            timed=arguments.timed,
            compared=arguments.compare_samples,
            repeats=arguments.repeats,
            whole=arguments.whole,
        )


if __name__ == "__main__":
    main()
