"""A study's result with drawn numbers, for the tests of its page."""

from __future__ import annotations

from typing import Any

import numpy as np

from foveate_labs.studies import cloc
from foveate_labs.studies.study import summary

_LEVELS = {
    "cloc": 0.42, "clip-crop": 0.13, "clip-roi": 0.08, "roi": 0.41, "filter-embedding": 0.24, "filter-none": 0.4,
    "no-grounding": 0.43, "m1": 0.3, "m2": 0.38, "pool-all": 0.2, "no-positions": 0.12, "shuffled-phrases": 0.01,
    "shuffled-boxes": 0.15,
}  # fmt: skip


def study_result(*, seeds: int = 5) -> dict[str, Any]:
    """All rows on true and spoiled boxes; no real regions."""
    rng = np.random.default_rng(0)
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for condition, share in (("true", 1.0), ("noisy", 0.8)):
        for row, level in _LEVELS.items():
            values[condition, row] = {
                seed: {
                    measure.key: float(
                        np.clip((0.06 if measure.control else level * share) + rng.normal(0, 0.02), 0, 1)
                    )
                    for measure in cloc.MEASURES
                    if measure.key != "details"
                }
                for seed in range(seeds)
            }
        values[condition, "mean-box"] = {seed: {"box_gain": 0.0} for seed in range(seeds)}
    design = cloc.DESIGN
    return {
        "kind": "study",
        "study": "cloc",
        "title": design.title,
        "question": design.question,
        "reference": design.reference,
        "seeds": list(range(seeds)),
        "scale": vars(cloc.FULL),
        "conditions": [vars(one) for one in design.conditions[:2]],
        "rows": [{"key": row.key, "title": row.title, "what": row.what, "role": row.role} for row in design.rows],
        "measures": [vars(one) for one in design.measures],
        **summary(design, values),
        "optional_data": [
            {"name": "kgeography, maps recolored at random", "package": "kgeography-data", "used": False},
            {"name": "GCompris, details of photographs and paintings", "package": "gcompris-qt-data", "used": False},
        ],
        "limits": list(design.limits),
        "trainings": 21 * seeds,
        "seconds": {"prepare": 60.0, "trainings": 3600.0},
        "machine": {"cores": 2, "python": "3.13", "torch": "2.13"},
        "version": "0.1.0",
        "command": ["foveate", "study", "cloc"],
    }
