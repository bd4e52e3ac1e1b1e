"""Page of a calibration: what fine-tuning damaged, the gammas, the curve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.results import GAMMA_TITLES, CalibrateResult, parse_result
from foveate.report import numbers
from foveate.report.calibration import VERDICTS, charts, signed, table
from foveate.report.page import Page, command_text


def build(result: Mapping[str, Any], run_folder: Path) -> Page:
    """Build the page of a calibration's result.json (`CalibrateResult`)."""
    r = parse_result(CalibrateResult, result)
    facts = [
        ("gamma", signed(r.gamma)),
        ("found by", GAMMA_TITLES.get(r.method, r.method)),
        ("Verdict", VERDICTS.get(r.verdict, "")),
    ]
    facts += [("Seen classes", numbers.count(len(r.classes.seen))), ("Absent", numbers.count(len(r.classes.absent)))]
    facts += [("Other classes", numbers.count(r.classes.rest))] if r.classes.rest else []
    facts += [("Test samples", numbers.count(r.samples))] if r.samples else []
    context = {
        "r": r,
        "facts": [(name, value) for name, value in facts if value],
        "table": table(r),
        "charts": charts(r),
        "gammas": [
            {
                "name": GAMMA_TITLES.get(name, name),
                "gamma": signed(estimate.gamma),
                "each": ", ".join("not feasible" if value is None else signed(value) for value in estimate.each),
                "spread": "" if estimate.spread is None else f"{estimate.spread:.2f}",
            }
            for name, estimate in r.gammas.items()
        ],
        "gaps": [(letter, gap) for letter, gap in r.gaps.items() if gap is not None],
        "heads": [(letter, head) for letter, head in r.head.items() if head is not None],
        "signed": signed,
        "gamma_titles": GAMMA_TITLES,
        "command": command_text(r.command),
    }
    return Page("calibrate.html.j2", f"Calibrated: gamma {signed(r.gamma)}", context)
