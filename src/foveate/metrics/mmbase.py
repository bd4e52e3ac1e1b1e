"""Category means and MMBase of MM1.5, from raw scores of benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from foveate.core.errors import UserError, choose

CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "general": ("MME", "SEED-I", "POPE", "LLaVA-W", "MM-Vet", "RealWorldQA"),
        "text_rich": ("WTQ", "TabFact", "OCRBench", "ChartQA", "TextVQA", "DocVQA", "InfoVQA"),
        "knowledge": ("AI2D", "ScienceQA", "MathVista", "MMMU"),
        "refer_ground": ("RefCOCO", "Flickr30k", "LVIS-Ref", "Ferret-Bench"),
        "multi_image": ("QBench2", "Mantis", "NLVR2", "BLINK", "MVBench", "MuirBench"),
    }
)
MMBASE = ("general", "text_rich", "knowledge")
_BENCHMARKS = tuple(name for names in CATEGORIES.values() for name in names)
_MME_PARTS = ("perception", "cognition")
# Highest raw scores, which the paper divides by to bring a benchmark to 0..100. MME: 2000 points of perception and 800
# of cognition. LLaVA-W is relative to a reference model and may pass 100, so nothing bounds the others from above.
_SCALES = {"MME": 28.0, "OCRBench": 10.0}

Raw = float | Mapping[str, float]


@dataclass(frozen=True)
class CategoryScores:
    """Means of MM1.5's categories; None where a benchmark of the category has no score.

    Attributes:
        benchmarks: normalized to 0..100.
        categories: plain mean of a category's benchmarks.
        mmbase: mean of general, text_rich and knowledge.
        five_category_mean: mean of all five.
        missing: benchmarks without a score.
    """

    benchmarks: dict[str, float]
    categories: dict[str, float | None]
    mmbase: float | None
    five_category_mean: float | None
    missing: tuple[str, ...]


def normalize_benchmark(name: str, raw: Raw) -> float:
    """Bring a benchmark's raw score to 0..100 as MM1.5 does.

    MME is (perception + cognition) / 28 and OCRBench its points / 10; all others are percentages already. A share in
    0..1 is not recognized: it would count as less than one percent.

    Args:
        raw: a number, for MME a mapping with `perception` and `cognition`.

    Raises:
        UserError: for an unknown benchmark, or a score that is negative or no finite number.
    """
    choose(name, _BENCHMARKS, "benchmark")
    parts: Mapping[str, float] = raw if isinstance(raw, Mapping) else {name: raw}
    expected = _MME_PARTS if name == "MME" else (name,)
    if set(parts) != set(expected):
        raise UserError(f"benchmark {name}: expected {' and '.join(expected)} (got {raw!r})")
    for value in parts.values():
        # A bool is an int in Python, but as a score it is a mistake.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise UserError(f"benchmark {name}: not a score (got {value!r}); expected a number >= 0")
    return math.fsum(parts.values()) / _SCALES.get(name, 1.0)


def category_scores(raw: Mapping[str, Raw]) -> CategoryScores:
    """Compute category means and MMBase; a category with a missing benchmark has none, rather than another mean.

    Args:
        raw: benchmark -> raw score, see `normalize_benchmark`.

    Source: MM1.5 (arXiv 2409.20566), evaluation.

    Raises:
        UserError: as `normalize_benchmark`.
    """
    benchmarks = {name: normalize_benchmark(name, value) for name, value in raw.items()}
    categories = {category: _mean([benchmarks.get(name) for name in names]) for category, names in CATEGORIES.items()}
    return CategoryScores(
        benchmarks=benchmarks,
        categories=categories,
        mmbase=_mean([categories[name] for name in MMBASE]),
        five_category_mean=_mean(list(categories.values())),
        missing=tuple(name for name in _BENCHMARKS if name not in benchmarks),
    )


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    # All or nothing: a mean without the hard benchmark would look like progress.
    return sum(present) / len(present) if len(present) == len(values) else None
